"""The events of sessions: which are due, and one that fails keeps no other back."""

from __future__ import annotations

import functools
import itertools
import typing as t
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date, timedelta
from http import HTTPStatus

from requests import RequestException
from singer_sdk import Tap
from singer_sdk.exceptions import FatalAPIError, RetriableAPIError
from typing_extensions import override

from tap_bugspulse.client import BugsPulseStream
from tap_bugspulse.http import Call, RefusedError, reason
from tap_bugspulse.pages import Reading, Row
from tap_bugspulse.replication import (
    DAY,
    Bookmark,
    CompleteRange,
    Plan,
    Window,
    make_plan,
    midnight,
)
from tap_bugspulse.run import OutOfTime, Run, duration
from tap_bugspulse.settings import EVENTS_FOR
from tap_bugspulse.streams import MAX_REMEMBERED, Candidate, Sessions
from tap_bugspulse.windows import PAGES_PER_WINDOW, Sync

SESSIONS_PER_WINDOW = 5_000  # whose events are fetched before the bookmark moves
SESSIONS_PER_STATE = 100  # that a kill may cost: since the last STATE, and on their way
SECONDS_PER_STATE = 60.0
MAX_IN_A_ROW = 10  # sessions that fail, in a row or newly in a run, or are not found
MAX_SHORT = 1000  # sessions remembered whose events came short
MANY_SHORT = 20  # from here on, most of a run say that eventCount counts something else
MINUTES_PER_DAY = 1440


class Batch(t.NamedTuple):
    """Sessions whose events are due; after them, ``done`` moves the bookmark over ``window``."""

    due: list[Candidate]
    window: Window
    done: Callable[[Window], None]
    rows_left: int = 0  # sessions beyond it that are not listed yet
    is_again: bool = False  # whether they failed or came short in an earlier run


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
        self.set_aside: dict[str, str] = {}  # with why they failed
        self.short: dict[str, tuple[int, int]] = {}  # events that came, and ``eventCount``
        self._failed: dict[Candidate, Exception] = {}  # in a row, not set aside yet
        self._fewer: set[str] = set()  # sessions with fewer events than their eventCount
        self._worked = False  # whether /events has answered for any session
        self._missing: list[Candidate] = []  # sessions answered with 404
        self._window = Window()  # of the sessions that are fetched
        self._newly_set_aside = self._in_a_row = self._done = self._left = self._since_state = 0
        self._state_at = run.clock.seconds()

    @override
    def read_rows(self) -> Iterator[Row]:
        if self.ABORT_AT_RECORD_COUNT is not None:  # --test
            for session in next(iter(self.parent.listing({})), [])[:1]:
                yield from self._rows_of(Candidate(session.id), self._ask(session.id))
            return
        bookmark = Bookmark.read(self.stream_state)
        self.set_aside = {one: why for one, why in bookmark.set_aside.items() if one}
        self.short = bookmark.short
        tried = {*self.set_aside, *self.short}
        settings, started = self.run.settings, self.run.started
        plan = make_plan(self.complete(), settings.requested, settings.lookback, started)
        batches = itertools.chain(self._forward(plan), self._history(plan))
        try:
            # What is ahead is said before the first request: both parts have begun.
            first = list(itertools.islice(batches, 2))
            self._log_what_is_ahead(first)
            again = self._again(sorted(tried), first)
            for batch in itertools.chain(first[:1], again, first[1:], batches):
                due = [one for one in batch.due if batch.is_again or one.id not in tried]
                self._window = batch.window
                yield from self._fetch(self._still_due(due), plan)
                self._settle()
                batch.done(batch.window)
                self.checkpoint(plan)
            self._believe_counts()
            self._left = 0
            self.checkpoint(plan)
        except OutOfTime:
            self._settle()
            self.checkpoint(plan)
            raise
        finally:
            self.run.events_left = self._left
            self.counts.set_aside = sorted(self.set_aside)
            self.counts.short_sessions = len(self.short)

    # --- What is complete

    def complete(self) -> CompleteRange | None:
        """Return what is complete for the set ``events_for``; a wider one counts, too."""
        complete = Bookmark.read(self.stream_state).complete
        wider = EVENTS_FOR[: EVENTS_FOR.index(self.run.settings.events_for) + 1]
        ranges = (complete[name].range(now=self.run.started) for name in wider if name in complete)
        found = list(filter(None, ranges))
        return functools.reduce(CompleteRange.joined, found) if found else None

    def checkpoint(self, plan: Plan) -> None:
        """Write what is fetched into the state and send it."""
        complete = Bookmark.read(self.stream_state).complete
        ranges = {name: found for name, one in complete.items() if (found := one.range())}
        now, ledger = plan.complete, self.parent.fetched
        if now and plan.moves_bookmark:
            ranges[self.run.settings.events_for] = now
        lookbacks = [
            (self.parent.kept_from(one), one.complete_to.date() + 2 * DAY)
            for one in ranges.values()
        ]

        def keep(day: date) -> bool:
            # Outside of what is complete, the ledger alone knows what is fetched.
            is_inside = now and now.complete_from.date() < day <= now.complete_to.date()
            return not is_inside or any(first <= day <= last for first, last in lookbacks)

        ledger.prune(keep, self.parent.today)
        state: dict[str, t.Any] = {"set_aside": {**self.set_aside}, "short": {**self.short}}
        state["complete"] = {name: one.write("complete_to") for name, one in ranges.items()}
        state["fingerprints"] = ledger.pack()
        self.save(state)
        self._since_state = 0
        self._state_at = self.run.clock.seconds()

    # --- Which sessions are due

    def _forward(self, plan: Plan) -> Iterator[Batch]:
        """Yield the sessions of the forward part: those this run listed, and the rest."""
        days, listed = plan.forward, self.parent.listed
        if days is None:
            return
        rest: Window | None = days
        if listed and listed[-1].end == days.end:
            begins = listed[0].start
            is_whole = begins is None or (days.start is not None and begins <= days.start)
            rest = None if is_whole else Window(days.start, begins)
        due: list[Candidate] = []
        for cut in self.parent.cut(rest, Sync(plan)) if rest else ():
            due += self.parent.list_due(cut)
            if len(due) > MAX_REMEMBERED:
                yield Batch(due, cut.window, plan.forward_done)
                due = []
        # Also those before ``days``, which history may list under no day of its own.
        known = plan.is_before_lookback
        due += [one for one in self.parent.due.values() if not known(midnight(one.day))]
        yield Batch(due, days, plan.forward_done)

    def _history(self, plan: Plan) -> Iterator[Batch]:
        """Yield the sessions of history, listed anew, in windows that can be fetched."""
        days, done = plan.history, plan.history_done
        if days is None:
            return
        rows = min(SESSIONS_PER_WINDOW, PAGES_PER_WINDOW * self.run.settings.page_size)
        try:
            for cut in self.parent.cut(days, Sync(plan, in_history=True), rows):
                due = self.parent.list_due(cut)
                due = [one for one in due if not plan.was_read(one.instant)]
                yield Batch(due, cut.window, done, cut.rows_left)
        except OutOfTime:
            self.run.is_complete = False
            return  # what is listed gets its turn

    def _again(self, tried: list[str], listed: list[Batch]) -> Iterator[Batch]:
        """Yield the sessions that failed or came short in an earlier run."""
        known = {one.id: one for batch in listed for one in batch.due}
        if tried and not self.run.is_over():
            counts = {one: count for one, (_, count) in self.short.items()}
            due = [known.get(one) or Candidate(one, events=counts.get(one, 0)) for one in tried]
            yield Batch(due, Window(), lambda _: None, is_again=True)

    def _still_due(self, due: list[Candidate]) -> list[Candidate]:
        """Return sessions newest first, without those that came in another window."""
        ledger = self.parent.fetched
        by_id = {one.id: one for one in due if ledger.get(one.id) != one.mark}
        order = sorted(by_id.values(), key=lambda one: one.instant or midnight(one.day))
        return order[::-1]

    def _log_what_is_ahead(self, batches: list[Batch]) -> None:
        """Say how many sessions need events and how long that takes."""
        run, pace = self.run, self.run.settings.requests_per_minute
        due = self._still_due([one for batch in batches for one in batch.due])
        # Sessions that are not listed yet are counted by the API's totals.
        self._left = len(due) + (batches[-1].rows_left if batches else 0)
        if not self._left:
            return
        crashed = sum(one.crashed for one in due) * self._left / (len(due) or 1)
        whole, part = (duration(run.minutes_for(one)) for one in (self._left, round(crashed)))
        hint = f" (events_for: crashed would need {part})"
        self.logger.info(
            "events: %s sessions need events: about %s at %d requests a minute%s",
            f"{self._left:,}",
            whole,
            pace,
            "" if whole == part else hint,
        )
        yesterday = run.started - timedelta(days=1)
        new = sum(1 for one in due if one.instant and one.instant > yesterday)
        if new > pace * MINUTES_PER_DAY:
            self.logger.warning(
                "events: %s new sessions a day need events, but %d requests a minute serve %s: "
                "set events_for to errors or crashed, or give each app its own project and key",
                f"{new:,}",
                pace,
                f"{pace * MINUTES_PER_DAY:,}",
            )

    # --- Fetching

    def _ask(self, session: str) -> Call:
        # One that has failed for long may do so again.
        return self.fetch({"sessionId": session}, retries=session not in self.set_aside)

    def _fetch(self, due: list[Candidate], plan: Plan) -> Iterator[Row]:
        """Yield the events of sessions; raise OutOfTime at the time limit."""

        def is_late() -> bool:
            # A limit that is too short for all that comes before makes progress, too.
            return self._done > 0 and self.run.is_over()

        wanted = itertools.takewhile(lambda _: not is_late(), due)
        fetched = 0
        with closing(self.prefetch(self._ask(one.id) for one in wanted)) as calls:
            for session, call in zip(due, calls, strict=False):
                if is_late() and call.cancel():
                    break
                try:
                    yield from self._events_of(session, call)
                except FatalAPIError:
                    # One session that stops every run must not have those before it fetched
                    # again and again.
                    self.checkpoint(plan)
                    raise
                fetched += 1
                self._count(plan)
        if fetched < len(due):
            raise OutOfTime

    def _count(self, plan: Plan) -> None:
        """Count a session that is done, and say so from time to time, in a STATE, too."""
        run = self.run
        self._left = max(0, self._left - 1)
        self._done += 1
        self._since_state += 1
        run.progress(
            "events: %s of %s sessions, %d requests a minute, about %s left",
            f"{self._done:,}",
            f"{self._left + self._done:,}",
            run.settings.requests_per_minute,
            duration(run.minutes_for(self._left)),
        )
        asked = self._since_state + run.settings.concurrency
        if asked >= SESSIONS_PER_STATE or run.clock.seconds() - self._state_at >= SECONDS_PER_STATE:
            self.checkpoint(plan)

    def _rows_of(self, session: Candidate, call: Call) -> Iterator[Row]:
        """Yield a session's events, and note that they were fetched once all are there."""
        readings = list[Reading]()
        listing = self.listing({"sessionId": session.id}, self.take(call), readings)
        for row in itertools.chain.from_iterable(listing):
            row.sessionId = session.id
            yield row
        self._worked, self._in_a_row = True, 0
        came = len(readings[-1].ids)
        if 0 < came < session.events:
            self._fewer.add(session.id)
        # Nothing of one that failed until now may be a failure, too.
        is_short = came < max(session.events, session.id in self.set_aside)
        self._fetched(session, came, is_short=is_short or not readings[-1].is_complete)

    def _fetched(self, session: Candidate, came: int, *, is_short: bool) -> None:
        """Note that a session's events came; fewer than there are, and it is asked again once."""
        self.set_aside.pop(session.id, None)
        # What comes short twice in the same way is believed, of a session that has not changed.
        known = self.short.pop(session.id, None)
        is_short = is_short and (known != (came, session.events) or bool(session.mark))
        if is_short and len(self.short) < MAX_SHORT:
            self.short[session.id] = (came, session.events)
        elif is_short:
            self.run.warn_once(
                f"events: more than {MAX_SHORT:,} sessions came short; those beyond are not asked "
                "for again unless they change"
            )
        if session.mark:
            self.parent.fetched.put(session.id, session.day, session.mark)

    def _believe_counts(self) -> None:
        """Take what most sessions of a run say for what ``eventCount`` means."""
        if len(self._fewer) > max(MANY_SHORT, self._done / 2):
            self.run.warn_once(
                "events: most sessions have fewer events than their eventCount: it is taken to "
                "count something else"
            )
            self.short = {one: n for one, n in self.short.items() if one not in self._fewer}

    def _events_of(self, session: Candidate, call: Call) -> Iterator[Row]:
        """Yield a session's events; one that fails does not keep the others back."""
        try:
            yield from self._rows_of(session, call)
            self._set_aside_failed()
        except (RefusedError, RetriableAPIError, RequestException) as error:
            if isinstance(error, RefusedError) and error.status == HTTPStatus.NOT_FOUND:
                self.logger.info("events: session %s is not known to the API", session.id)
                self._missing.append(session)
                self._in_a_row += 1
                if self._in_a_row >= MAX_IN_A_ROW:
                    self._settle_missing()
                return
            if session.id in self.set_aside:
                self.logger.warning("events: session %s still fails: %s", session.id, reason(error))
                return
            self.logger.warning("events: session %s is set aside: %s", session.id, reason(error))
            self._failed[session] = error
            failed = len(self._failed)
            if failed >= MAX_IN_A_ROW and isinstance(error, RefusedError):
                raise  # it is the endpoint
            if failed >= MAX_IN_A_ROW or self._newly_set_aside + failed > MAX_IN_A_ROW:
                raise RefusedError(
                    f"{self.path} fails for too many sessions, {session.id} the last of them: "
                    f"{error}"
                ) from None

    def _settle(self) -> None:
        self._set_aside_failed()
        if self._missing:
            self._settle_missing()

    def _set_aside_failed(self) -> None:
        """Set aside what failed, or raise its RefusedError if no other session worked."""
        errors = list(self._failed.values())
        if not self._worked and errors and isinstance(errors[-1], RefusedError):
            raise errors[-1]
        self.set_aside |= {one.id: reason(error) for one, error in self._failed.items()}
        self._newly_set_aside += len(errors)
        self._failed = {}

    def _settle_missing(self) -> None:
        """Tell sessions that were deleted from those that ``/events`` does not know.

        Raises RefusedError if it knows none of ten in a row that are there.
        """
        missing, self._missing, in_a_row, self._in_a_row = self._missing, [], self._in_a_row, 0
        there: set[str] = set()
        if days := [one.day for one in missing if one.mark]:
            first, last, batch = min(days) - DAY, max(days) + 2 * DAY, self._window
            window = Window(first, last)
            if batch != Window():  # in which the API may list them by another instant
                start, end = batch.start, batch.end
                window = Window(start and min(first, start), end and max(last, end))
            listing = self.parent.listing(window.query())
            there = {row.id for rows in listing for row in rows} & {one.id for one in missing}
        if min(in_a_row, len(there)) >= MAX_IN_A_ROW:
            raise RefusedError(
                f"{self.path} knows none of {len(there)} sessions that /sessions lists: the API "
                "has changed or is broken. None of them is recorded as done"
            )
        for one in missing:
            if one.mark or self._worked or not there:
                self.counts.vanished += one.id not in there
                self._fetched(one, 0, is_short=not one.mark or one.id in there)
