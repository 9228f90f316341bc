"""The events of sessions: which sessions are due, and what happens if one fails."""

import functools
import itertools
import typing as t
from contextlib import closing
from http import HTTPStatus

from requests import RequestException
from singer_sdk import Tap
from singer_sdk.exceptions import FatalAPIError, RetriableAPIError
from typing_extensions import override

from tap_bugspulse import replication
from tap_bugspulse.client import BugsPulseStream
from tap_bugspulse.http import Call, RefusedError, reason
from tap_bugspulse.pages import Reading, Row
from tap_bugspulse.replication import DAY, Bookmark, Plan, Span, Window, midnight
from tap_bugspulse.run import OutOfTime, Run, duration
from tap_bugspulse.settings import EVENTS_FOR
from tap_bugspulse.streams import PAGES_DUE, Candidate, Sessions
from tap_bugspulse.windows import Sync

PAGES_PER_BATCH = 5  # of sessions; after their events, the bookmark moves
SESSIONS_PER_STATE = 100  # that a killed run loses at most: since the last STATE, and in flight
SECONDS_PER_STATE = 60.0
MAX_IN_A_ROW = 10  # sessions that fail or are not found in a row, or fail newly in a run
MAX_SHORT = 1000  # sessions with too few events that the state names
MANY_SHORT = 20  # if more are short, and most of a run, eventCount counts something else


class Batch(t.NamedTuple):
    """Sessions whose events are due; after them, ``done`` moves the bookmark over ``window``."""

    due: list[Candidate]
    window: Window
    done: t.Callable[[Window], None]
    rows_left: int = 0  # sessions in later batches, by the API's totals


class Events(BugsPulseStream):
    """The events of sessions, one request or more for each session."""

    name = "events"
    path = "/events"
    primary_keys = ("sessionId", "id")
    parent_stream_type = Sessions
    state_partitioning_keys = ()  # one bookmark; the SDK's default is one for each session

    def __init__(self, tap: Tap, run: Run, parent: Sessions) -> None:
        super().__init__(tap, run)
        self.parent = parent
        self._failed: list[tuple[Candidate, Exception]] = []  # in a row, not set aside yet
        self._missing: list[Candidate] = []  # answered with 404, not listed again yet
        self._window = Window()  # of the batch that is fetched
        self._worked = False  # whether /events has answered for any session
        self._newly_set_aside = self._missing_in_a_row = self._done = self._with_fewer = 0
        self._state_at = run.clock.seconds()

    @override
    def read_rows(self) -> t.Iterator[Row]:
        if self.ABORT_AT_RECORD_COUNT is not None:  # --test
            for session in next(iter(self.parent.listing({})), [])[:1]:
                yield from self._rows_of(session.id, self.fetch({"sessionId": session.id}), [])
            return
        bookmark, counts = Bookmark.read(self.stream_state), self.counts
        counts.set_aside = {one: why for one, why in bookmark.set_aside.items() if one}
        counts.short = bookmark.short
        tried = {one: Candidate(one) for one in counts.set_aside}
        tried |= {one: Candidate(one, events=count) for one, (_, count) in counts.short.items()}
        requested, lookback = self.run.settings.requested, self.run.settings.lookback
        plan = replication.make_plan(self.complete(), requested, lookback, self.run.started)
        batches = itertools.chain(self._forward(plan), self._history(plan))
        try:
            # A batch of each part is listed first, so that the log says what is ahead.
            first = list(itertools.islice(batches, 2))
            listed = {one.id: one for batch in first for one in batch.due}
            self._log_what_is_ahead(listed.values(), sum(batch.rows_left for batch in first))
            # Sessions that failed or were short in an earlier run are tried once, after new ones.
            due = [] if self.run.is_over() else [listed.get(one.id, one) for one in tried.values()]
            again = Batch(due, plan.forward or Window(), lambda _: None)
            for batch in itertools.chain(first[:1], [again] if due else [], first[1:], batches):
                due = [one for one in batch.due if batch is again or one.id not in tried]
                self._window = batch.window
                yield from self._fetch(due, plan)
                self._set_aside_failed()
                self._resolve_missing()
                batch.done(batch.window)
                self.checkpoint(plan)
            self._accept_counts()
            self.run.events_left = 0
            self.checkpoint(plan)
        except (OutOfTime, FatalAPIError, RetriableAPIError):
            # If each run ends like this, the next one should not fetch the same events again.
            self.checkpoint(plan)
            raise

    def complete(self) -> Span | None:
        """Return the complete range for ``events_for``; those of wider values count, too."""
        complete = Bookmark.read(self.stream_state).complete
        wider = EVENTS_FOR[: EVENTS_FOR.index(self.run.settings.events_for) + 1]
        ranges = (complete[name].range(now=self.run.started) for name in wider if name in complete)
        found = list(filter(None, ranges))
        return functools.reduce(Span.joined, found) if found else None

    def checkpoint(self, plan: Plan) -> None:
        """Write a STATE with what has been fetched."""
        complete = Bookmark.read(self.stream_state).complete
        ranges = {name: found for name, one in complete.items() if (found := one.range())}
        now, ledger = plan.complete, self.parent.fetched
        if now and plan.moves_bookmark:
            ranges[self.run.settings.events_for] = now
        if now:
            # Outside the complete range, only the ledger says what has been fetched.
            inside = Window(now.start.date() + DAY, now.end.date() + DAY)
            lookbacks = [
                Window(self.parent.kept_from(one), one.end.date() + 3 * DAY)
                for one in ranges.values()
            ]
            ledger.prune(
                lambda day: not inside.holds(day) or any(one.holds(day) for one in lookbacks),
                self.parent.today,
            )
        state = {"set_aside": self.counts.set_aside, "short": self.counts.short}
        written = {name: one.write("complete_to") for name, one in ranges.items()}
        self.save({**state, "fingerprints": ledger.pack(), "complete": written})
        self._state_at = self.run.clock.seconds()

    def _forward(self, plan: Plan) -> t.Iterator[Batch]:
        """Yield the sessions of the forward part: those in ``listed``, and the rest."""
        days, listed = plan.forward, self.parent.listed
        if not days:
            return
        is_listed = listed and listed[-1].end == days.end
        rest = Window(days.start, listed[0].start) if is_listed else days
        due: list[Candidate] = []
        for cut in self.parent.cut(rest, Sync(plan)):
            due += self.parent.list_due(cut)
            if len(due) > PAGES_DUE * self.run.settings.page_size:
                yield Batch(due, cut.window, plan.forward_done)
                due = []
        # Also those of days before these: history may not find them under a day of its own.
        known = plan.is_before_lookback
        due += [one for one in self.parent.due.values() if not known(midnight(one.day + DAY))]
        yield Batch(due, days, plan.forward_done)

    def _history(self, plan: Plan) -> t.Iterator[Batch]:
        """Yield the sessions of history, listed again in windows of fewer than five pages."""
        rows = PAGES_PER_BATCH * self.run.settings.page_size
        try:
            for cut in self.parent.cut(plan.history, Sync(plan, in_history=True), rows):
                due = [one for one in self.parent.list_due(cut) if not plan.was_read(one.instant)]
                yield Batch(due, cut.window, plan.history_done, cut.rows_left)
        except OutOfTime:
            self.run.is_complete = False  # the batches so far are still fetched

    def _log_what_is_ahead(self, due: t.Collection[Candidate], rows_left: int) -> None:
        run, pace = self.run, self.run.settings.requests_per_minute
        run.events_left = left = len(due) + rows_left
        crashed = sum(one.crashed for one in due) * left / (len(due) or 1)
        whole, part = (duration(run.minutes_for(one)) for one in (left, round(crashed)))
        hint = "" if whole == part else f" (events_for: crashed would need {part})"
        if left:
            self.logger.info(
                f"events: {left:,} sessions need events: about {whole} at {pace} requests a "
                f"minute{hint}"
            )
        new = sum(1 for one in due if one.instant and one.instant > run.started - DAY)
        if new > (most := pace * 60 * 24):
            self.logger.warning(
                f"events: {new:,} new sessions a day need events, but {pace} requests a minute "
                f"serve {most:,}: set events_for to errors or crashed, or give "
                "each app its own project and key"
            )

    def _fetch(self, due: list[Candidate], plan: Plan) -> t.Iterator[Row]:
        """Yield the events of sessions, newest first; raise OutOfTime at the time limit."""
        run, ledger, pace = self.run, self.parent.fetched, self.run.settings.requests_per_minute

        def is_late() -> bool:
            # Not before the first session, so that even a limit that is too short makes progress.
            return self._done > 0 and run.is_over()

        # Without those that were fetched with another batch.
        by_id = {one.id: one for one in due if ledger.get(one.id) != one.fingerprint}
        order = sorted(by_id.values(), key=lambda one: one.instant or midnight(one.day))[::-1]
        calls = (
            # A session that is set aside probably fails again.
            self.fetch({"sessionId": one.id}, retries=one.id not in self.counts.set_aside)
            for one in itertools.takewhile(lambda _: not is_late(), order)
        )
        with closing(self.prefetch(calls)) as sent:
            for session, call in itertools.zip_longest(order, sent):
                if call is None or (is_late() and call.cancel()):
                    self._set_aside_failed()
                    self._resolve_missing()
                    raise OutOfTime
                yield from self._events_of(session, call)
                self._done += 1
                left = run.events_left = max(0, run.events_left - 1)
                run.progress(
                    f"events: {self._done:,} of {left + self._done:,} sessions, {pace} requests a "
                    f"minute, about {duration(run.minutes_for(left))} left"
                )
                is_many = self._done % (SESSIONS_PER_STATE - run.settings.concurrency) == 0
                if is_many or run.clock.seconds() - self._state_at >= SECONDS_PER_STATE:
                    self.checkpoint(plan)

    def _rows_of(self, session: str, call: Call, readings: list[Reading]) -> t.Iterator[Row]:
        """Yield a session's events; the last of ``readings`` says how complete they are."""
        listing = self.listing({"sessionId": session}, self.take(call), readings)
        for row in itertools.chain.from_iterable(listing):
            row.sessionId = session
            yield row

    def _events_of(self, session: Candidate, call: Call) -> t.Iterator[Row]:
        """Yield a session's events; if that fails, note it and let the run go on."""
        readings: list[Reading] = []
        try:
            yield from self._rows_of(session.id, call, readings)
        except (RefusedError, RetriableAPIError, RequestException) as error:
            if isinstance(error, RefusedError) and error.status == HTTPStatus.NOT_FOUND:
                self.logger.info("events: session %s is not known to the API", session.id)
                self._missing.append(session)
                self._missing_in_a_row += 1
                if self._missing_in_a_row >= MAX_IN_A_ROW:
                    self._resolve_missing()
                return
            if session.id in self.counts.set_aside:
                self.logger.warning("events: session %s still fails: %s", session.id, reason(error))
                return
            self.logger.warning("events: session %s is set aside: %s", session.id, reason(error))
            self._failed.append((session, error))
            if self._newly_set_aside + len(self._failed) >= MAX_IN_A_ROW:
                self._set_aside_failed()
        else:
            self._worked, self._missing_in_a_row = True, 0
            count = len(readings[-1].ids)
            self._with_fewer += 0 < count < session.events
            # If it was set aside, an answer without events may be a failure, too.
            is_short = count < max(session.events, session.id in self.counts.set_aside)
            self._note_fetched(session, count, is_short=is_short or not readings[-1].is_complete)
            self._set_aside_failed()

    def _note_fetched(self, session: Candidate, count: int, *, is_short: bool) -> None:
        """Note that a session's events were fetched; if some are missing, the next run retries."""
        short = self.counts.short
        self.counts.set_aside.pop(session.id, None)
        # The same number twice is accepted, unless the session has changed in between.
        known = short.pop(session.id, None)
        is_short = is_short and (known != (count, session.events) or bool(session.fingerprint))
        if is_short and len(short) < MAX_SHORT:
            short[session.id] = (count, session.events)
        elif is_short:
            self.run.warn_once(
                f"events: more than {MAX_SHORT:,} sessions came short; those beyond are not asked "
                "for again unless they change"
            )
        if session.fingerprint:
            self.parent.fetched.put(session.id, session.day, session.fingerprint)

    def _accept_counts(self) -> None:
        """Accept fewer events than ``eventCount`` if that is so for most sessions of the run."""
        if self._with_fewer > max(MANY_SHORT, self._done / 2):
            self.run.warn_once(
                "events: most sessions have fewer events than their eventCount: it is taken to "
                "count something else"
            )
            short = self.counts.short.items()
            self.counts.short = {one: n for one, n in short if not 0 < n[0] < n[1]}

    def _set_aside_failed(self) -> None:
        """Set failed sessions aside, or raise RefusedError if too many or all of them failed."""
        if not self._failed:
            return
        failed, self._failed = self._failed, []
        session, error = failed[-1]
        self._newly_set_aside += len(failed)
        if isinstance(error, RefusedError) and not self._worked:
            raise error
        if len(failed) >= MAX_IN_A_ROW or self._newly_set_aside > MAX_IN_A_ROW:
            raise RefusedError(
                f"{self.path} fails for too many sessions, {session.id} the last of them: {error}"
            )
        self.counts.set_aside |= {one.id: reason(why) for one, why in failed}

    def _resolve_missing(self) -> None:
        """Find out which missing sessions are deleted; raise RefusedError if ten are not."""
        missing, in_a_row = self._missing, self._missing_in_a_row
        self._missing, self._missing_in_a_row = [], 0
        listed: set[str] = set()
        if days := [one.day for one in missing if one.fingerprint]:
            # In the whole window, as the API may list them by another of their instants.
            start = min(self._window.start, min(days) - DAY)
            window = Window(start, max(self._window.end, max(days) + 2 * DAY))
            listing = self.parent.listing(window.query())
            ids = {row.id for row in itertools.chain.from_iterable(listing)}
            listed = ids.intersection(one.id for one in missing)
        if min(in_a_row, len(listed)) >= MAX_IN_A_ROW:
            raise RefusedError(
                f"{self.path} knows none of {len(listed)} sessions that /sessions lists: the API "
                "has changed or is broken. None of them is recorded as done"
            )
        for one in missing:
            # Sessions of earlier runs stay as they are while /events seems to be broken.
            if one.fingerprint or self._worked or not listed:
                self.counts.vanished += one.id not in listed
                self._note_fetched(one, 0, is_short=not one.fingerprint or one.id in listed)
