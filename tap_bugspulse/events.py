"""The events of sessions: which are due, and one that fails keeps no other back."""

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
from tap_bugspulse.streams import MAX_DUE, Candidate, Sessions
from tap_bugspulse.windows import Sync

PAGES_PER_BATCH = 5  # of sessions whose events are fetched before the bookmark moves
SESSIONS_PER_STATE = 100  # that a kill may cost: since the last STATE, and on their way
SECONDS_PER_STATE = 60.0
MAX_IN_A_ROW = 10  # sessions that fail, in a row or newly in a run, or are not found
MAX_SHORT = 1000  # sessions remembered whose events came short
MANY_SHORT = 20  # from here on, most of a run say that eventCount counts something else


class Batch(t.NamedTuple):
    """Sessions whose events are due; after them, ``done`` moves the bookmark over ``window``."""

    due: list[Candidate]
    window: Window
    done: t.Callable[[Window], None]
    rows_left: int = 0  # sessions beyond it that are not listed yet


class Events(BugsPulseStream):
    """The events of sessions, at one request each or more."""

    name = "events"
    path = "/events"
    primary_keys = ("sessionId", "id")
    parent_stream_type = Sessions
    state_partitioning_keys = ()  # one bookmark: the default is one for each session

    def __init__(self, tap: Tap, run: Run, parent: Sessions) -> None:
        super().__init__(tap, run)
        self.parent = parent
        self._failed: list[tuple[Candidate, Exception]] = []  # in a row, not set aside yet
        self._missing: list[Candidate] = []  # answered with 404, not looked for yet
        self._window = Window()  # of the sessions that are fetched
        self._worked = False  # whether /events has answered for any session
        self._newly_set_aside = self._in_a_row = self._done = self._fewer = 0
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
        settings = self.run.settings
        asked = settings.requested, settings.lookback, self.run.started
        plan = replication.make_plan(self.complete(), *asked)
        batches = itertools.chain(self._forward(plan), self._history(plan))
        try:
            # What is ahead is said before the first request: both parts have begun.
            first = list(itertools.islice(batches, 2))
            known = {one.id: one for batch in first for one in batch.due}
            self._log_what_is_ahead(known.values(), sum(batch.rows_left for batch in first))
            # What failed or came short in an earlier run is asked for once, after what is new.
            due = [] if self.run.is_over() else [known.get(one.id, one) for one in tried.values()]
            again = Batch(due, plan.forward or Window(), lambda _: None)
            for batch in itertools.chain(first[:1], [again] if due else [], first[1:], batches):
                due = [one for one in batch.due if batch is again or one.id not in tried]
                self._window = batch.window
                yield from self._fetch(due, plan)
                self._set_aside_failed()
                self._settle_missing()
                batch.done(batch.window)
                self.checkpoint(plan)
            self._believe_counts()
            self.run.events_left = 0
            self.checkpoint(plan)
        except (OutOfTime, FatalAPIError, RetriableAPIError):
            # What stops every run must not have what comes before it fetched again and again.
            self.checkpoint(plan)
            raise

    def complete(self) -> Span | None:
        """Return what is complete for the set ``events_for``; a wider one counts, too."""
        complete = Bookmark.read(self.stream_state).complete
        wider = EVENTS_FOR[: EVENTS_FOR.index(self.run.settings.events_for) + 1]
        ranges = (complete[name].range(now=self.run.started) for name in wider if name in complete)
        found = list(filter(None, ranges))
        return functools.reduce(Span.joined, found) if found else None

    def checkpoint(self, plan: Plan) -> None:
        """Write what is fetched into the state and send it."""
        complete = Bookmark.read(self.stream_state).complete
        ranges = {name: found for name, one in complete.items() if (found := one.range())}
        now, ledger = plan.complete, self.parent.fetched
        if now and plan.moves_bookmark:
            ranges[self.run.settings.events_for] = now
        if now:
            # Outside of what is complete, the ledger alone knows what is fetched.
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
        """Yield the sessions of the forward part: those this run listed, and the rest."""
        days, listed = plan.forward, self.parent.listed
        if not days:
            return
        is_listed = listed and listed[-1].end == days.end  # the rest may have no days
        rest = Window(days.start, listed[0].start) if is_listed else days
        due: list[Candidate] = []
        for cut in self.parent.cut(rest, Sync(plan)):
            due += self.parent.list_due(cut)
            if len(due) > MAX_DUE:
                yield Batch(due, cut.window, plan.forward_done)
                due = []
        # Also those before ``days``, which history may list under no day of its own.
        known = plan.is_before_lookback
        due += [one for one in self.parent.due.values() if not known(midnight(one.day + DAY))]
        yield Batch(due, days, plan.forward_done)

    def _history(self, plan: Plan) -> t.Iterator[Batch]:
        """Yield the sessions of history, listed anew, in windows that can be fetched."""
        rows = PAGES_PER_BATCH * self.run.settings.page_size
        try:
            for cut in self.parent.cut(plan.history, Sync(plan, in_history=True), rows):
                due = [one for one in self.parent.list_due(cut) if not plan.was_read(one.instant)]
                yield Batch(due, cut.window, plan.history_done, cut.rows_left)
        except OutOfTime:
            self.run.is_complete = False  # what is listed gets its turn

    def _log_what_is_ahead(self, due: t.Collection[Candidate], rows_left: int) -> None:
        run, pace = self.run, self.run.settings.requests_per_minute
        # Sessions that are not listed yet are counted by the API's totals.
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
            # A limit that is too short for all that comes before makes progress, too.
            return self._done > 0 and run.is_over()

        # Without those that came in another window.
        by_id = {one.id: one for one in due if ledger.get(one.id) != one.fingerprint}
        order = sorted(by_id.values(), key=lambda one: one.instant or midnight(one.day))[::-1]
        calls = (
            # One that has failed for long may do so again.
            self.fetch({"sessionId": one.id}, retries=one.id not in self.counts.set_aside)
            for one in itertools.takewhile(lambda _: not is_late(), order)
        )
        with closing(self.prefetch(calls)) as sent:
            for session, call in itertools.zip_longest(order, sent):
                if call is None or (is_late() and call.cancel()):
                    self._set_aside_failed()
                    self._settle_missing()
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
        """Yield a session's events; the last of ``readings`` tells how it went."""
        listing = self.listing({"sessionId": session}, self.take(call), readings)
        for row in itertools.chain.from_iterable(listing):
            row.sessionId = session
            yield row

    def _events_of(self, session: Candidate, call: Call) -> t.Iterator[Row]:
        """Yield a session's events; one that fails does not keep the others back."""
        readings: list[Reading] = []
        try:
            yield from self._rows_of(session.id, call, readings)
        except (RefusedError, RetriableAPIError, RequestException) as error:
            if isinstance(error, RefusedError) and error.status == HTTPStatus.NOT_FOUND:
                self.logger.info("events: session %s is not known to the API", session.id)
                self._missing.append(session)
                self._in_a_row += 1
                if self._in_a_row >= MAX_IN_A_ROW:
                    self._settle_missing()
                return
            if session.id in self.counts.set_aside:
                self.logger.warning("events: session %s still fails: %s", session.id, reason(error))
                return
            self.logger.warning("events: session %s is set aside: %s", session.id, reason(error))
            self._failed.append((session, error))
            if self._newly_set_aside + len(self._failed) >= MAX_IN_A_ROW:
                self._set_aside_failed()
        else:
            self._worked, self._in_a_row = True, 0
            came = len(readings[-1].ids)
            self._fewer += 0 < came < session.events
            # Nothing of one that failed until now may be a failure, too.
            is_short = came < max(session.events, session.id in self.counts.set_aside)
            self._fetched(session, came, is_short=is_short or not readings[-1].is_complete)
            self._set_aside_failed()

    def _fetched(self, session: Candidate, came: int, *, is_short: bool) -> None:
        """Note that a session's events came; fewer than there are, and it is asked again once."""
        short = self.counts.short
        self.counts.set_aside.pop(session.id, None)
        # What comes short twice in the same way is believed, of a session that has not changed.
        known = short.pop(session.id, None)
        is_short = is_short and (known != (came, session.events) or bool(session.fingerprint))
        if is_short and len(short) < MAX_SHORT:
            short[session.id] = (came, session.events)
        elif is_short:
            self.run.warn_once(
                f"events: more than {MAX_SHORT:,} sessions came short; those beyond are not asked "
                "for again unless they change"
            )
        if session.fingerprint:
            self.parent.fetched.put(session.id, session.day, session.fingerprint)

    def _believe_counts(self) -> None:
        """Take what most sessions of a run say for what ``eventCount`` means."""
        if self._fewer > max(MANY_SHORT, self._done / 2):
            self.run.warn_once(
                "events: most sessions have fewer events than their eventCount: it is taken to "
                "count something else"
            )
            short = self.counts.short.items()
            self.counts.short = {one: n for one, n in short if not 0 < n[0] < n[1]}

    def _set_aside_failed(self) -> None:
        """Set aside what failed, or raise RefusedError if that is too many or all there is."""
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

    def _settle_missing(self) -> None:
        """Tell deleted sessions from those that ``/events`` does not know; ten are an error."""
        missing, self._missing, in_a_row, self._in_a_row = self._missing, [], self._in_a_row, 0
        there: set[str] = set()
        if days := [one.day for one in missing if one.fingerprint]:
            # Anywhere in the window, if the API lists them by another instant.
            start = min(self._window.start, min(days) - DAY)
            window = Window(start, max(self._window.end, max(days) + 2 * DAY))
            listing = self.parent.listing(window.query())
            ids = {row.id for row in itertools.chain.from_iterable(listing)}
            there = ids.intersection(one.id for one in missing)
        if min(in_a_row, len(there)) >= MAX_IN_A_ROW:
            raise RefusedError(
                f"{self.path} knows none of {len(there)} sessions that /sessions lists: the API "
                "has changed or is broken. None of them is recorded as done"
            )
        for one in missing:
            if one.fingerprint or self._worked or not there:
                self.counts.vanished += one.id not in there
                self._fetched(one, 0, is_short=not one.fingerprint or one.id in there)
