"""The events of sessions: which are due, and one that fails keeps no other back."""

from __future__ import annotations

import itertools
import typing as t
from contextlib import closing
from datetime import timedelta

from requests import RequestException
from singer_sdk.exceptions import FatalAPIError, RetriableAPIError
from typing_extensions import override

from tap_bugspulse.client import BugsPulseStream, NotFoundError, RefusedError
from tap_bugspulse.http import PatienceError, reason
from tap_bugspulse.pages import PROJECT
from tap_bugspulse.replication import (
    DAY,
    Bookmark,
    CompleteRange,
    Plan,
    Progress,
    Window,
    make_plan,
    midnight,
)
from tap_bugspulse.run import OutOfTime, duration
from tap_bugspulse.settings import EVENTS_FOR
from tap_bugspulse.streams import MAX_REMEMBERED, Sessions

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import date, datetime

    from singer_sdk import Tap

    from tap_bugspulse.http import Call
    from tap_bugspulse.pages import Row
    from tap_bugspulse.run import Run
    from tap_bugspulse.streams import Candidate

SESSIONS_PER_WINDOW = 5_000  # whose events are fetched before the bookmark moves
SESSIONS_PER_STATE = 100  # asked for again at most, those on their way included
SECONDS_PER_STATE = 60.0
MAX_SET_ASIDE = 10  # sessions whose events fail, newly in a run or in a row
MAX_VANISHED = 10  # sessions without events, in a row
MAX_SHORT = 1000  # sessions remembered whose events came short
MINUTES_PER_DAY = 1440


class Batch(t.NamedTuple):
    """Sessions whose events are due; after them, ``done`` moves the bookmark."""

    window: Window
    due: list[Candidate]
    done: Callable[[Window], None]
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
        self.due = parent.due
        self.set_aside: dict[str, datetime | None] = {}  # with the start of the session
        self.short: dict[str, int] = {}  # with the number of events that came
        self._failed: dict[Candidate, FatalAPIError] = {}  # in a row
        self._vanished: list[Candidate] = []  # likewise
        self._worked = False  # whether /events has answered for any session
        self._newly_set_aside = self._done = self._left = self._since_state = 0
        self._state_at = run.clock.seconds()

    @override
    def set_fixed(self, rows: list[Row], query: Mapping[str, str]) -> None:
        super().set_fixed(rows, query)
        for row in rows:
            row.sessionId = query["sessionId"]

    @override
    def read_rows(self) -> Iterator[Row]:
        if self.ABORT_AT_RECORD_COUNT is not None:  # --test
            for session in itertools.islice(next(iter(self.parent.listing({}))), 1):
                yield from self._rows_of(session.id, self.fetch({"sessionId": session.id}))
            return
        bookmark = Bookmark.read(self.stream_state)
        self.set_aside = {one: at for one, at in bookmark.set_aside.items() if one}
        self.short = bookmark.short
        settings, started = self.run.settings, self.run.started
        plan = make_plan(self.complete(), settings.requested, settings.lookback, started)
        progress = Progress(plan, settings.requested, started)
        parts = (self._forward(plan, progress), self._history(plan, progress))
        batches = itertools.chain.from_iterable(parts)
        try:
            # What is ahead is said before the first request: both parts have begun.
            first = list(itertools.islice(batches, 2))
            self._log_what_is_ahead(first)
            yield from self._retry_set_aside({one.id: one for batch in first for one in batch.due})
            for batch in itertools.chain(first, batches):
                yield from self._fetch(self._still_due(batch.due), progress)
                if self._confirm_pending():
                    batch.done(batch.window)
                    self.checkpoint(progress)
            self.checkpoint(progress)
        except OutOfTime:
            self._confirm_pending()
            self.checkpoint(progress)
            raise
        finally:
            self.run.events_left = self._left
            self.counts.set_aside = sorted(self.set_aside)

    # --- What is complete

    def _ranges(self) -> dict[str, CompleteRange]:
        """Return what is complete for each ``events_for``."""
        complete = Bookmark.read(self.stream_state).complete
        return {name: found for name, one in complete.items() if (found := one.range())}

    def complete(self) -> CompleteRange | None:
        """Return what is complete for the set ``events_for``; a wider one counts, too."""
        ranges = self._ranges()
        wider = EVENTS_FOR[: EVENTS_FOR.index(self.run.settings.events_for) + 1]
        best: CompleteRange | None = None
        for one in (ranges[name] for name in wider if name in ranges):
            best = best.joined(one) if best else one
        return best

    def checkpoint(self, progress: Progress) -> None:
        """Write what is fetched into the state and send it.

        Not while sessions in a row have vanished or failed: should it go on, none of them is to
        count as done.
        """
        if self._failed or self._vanished:
            return
        ranges, now = self._ranges(), progress.complete
        if now and progress.moves_bookmark:
            ranges[self.run.settings.events_for] = now
        lookbacks = [
            (self.parent.kept_from(one), one.complete_to.date() + 2 * DAY)
            for one in ranges.values()
        ]

        def keep(day: date) -> bool:
            # Outside of what is complete, the ledger alone knows what is fetched.
            is_outside = now is None or not (
                (now.complete_from is None or day > now.complete_from.date())
                and day <= now.complete_to.date()
            )
            return is_outside or any(first <= day <= last for first, last in lookbacks)

        self.due.ledger.prune(keep, self.parent.today)
        starts = {one: at and at.isoformat() for one, at in self.set_aside.items()}
        state: dict[str, t.Any] = {"set_aside": starts, "short": dict(self.short)}
        state["complete"] = {name: one.write("complete_to") for name, one in ranges.items()}
        state["fingerprints"] = self.due.ledger.pack()
        state |= {PROJECT: self.run.project} if self.run.project else {}
        self.stream_state.update(state)  # in one step: a signal may write it at any moment
        self.send_state()
        self._since_state = 0
        self._state_at = self.run.clock.seconds()

    # --- Which sessions are due

    def _forward(self, plan: Plan, progress: Progress) -> Iterator[Batch]:
        """Yield the sessions of the forward part: those this run listed, and the rest."""
        days, listed = plan.forward, self.due.windows
        if days is None:
            return
        rest: Window | None = days
        if listed and listed[-1].end == days.end:
            begins = listed[0].start
            is_whole = begins is None or (days.start is not None and begins <= days.start)
            rest = None if is_whole else Window(days.start, begins)
        due: list[Candidate] = []
        for cut in self.parent.cut(rest, lambda: True, newest_first=False) if rest else ():
            due += self.parent.list_due(cut)
            if len(due) > MAX_REMEMBERED:
                yield Batch(cut.window, due, progress.forward_done)
                due = []
        due += [one for one in self.due.found.values() if days.holds(one.day)]
        yield Batch(days, due, progress.forward_done)

    def _history(self, plan: Plan, progress: Progress) -> Iterator[Batch]:
        """Yield the sessions of history, listed anew, in windows that can be fetched."""
        days, before, done = plan.history, progress.complete, progress.history_done
        if days is None:
            return

        def is_wanted() -> bool:
            return not self.run.is_over() or progress.complete == before

        try:
            for cut in self.parent.cut(
                days, is_wanted, newest_first=True, rows=SESSIONS_PER_WINDOW
            ):
                due = self.parent.list_due(cut)
                due = [one for one in due if not plan.was_read(one.instant)]
                yield Batch(cut.window, due, done, cut.rows_left)
        except OutOfTime:
            return  # what is listed gets its turn
        yield Batch(days, [], done)

    def _still_due(self, due: list[Candidate]) -> list[Candidate]:
        """Return sessions newest first, without those of another window or set aside."""
        ledger = self.due.ledger
        tried = self.set_aside.keys() | self.short.keys()
        by_id = {
            one.id: one
            for one in due
            if one.id not in tried and ledger.get(one.id, one.day) != one.mark
        }
        order = sorted(by_id.values(), key=lambda one: one.instant or midnight(one.day))
        return order[::-1]

    def _log_what_is_ahead(self, batches: list[Batch]) -> None:
        """Say how many sessions need events and how long that takes."""
        run, settings = self.run, self.run.settings
        due = [one for batch in batches for one in batch.due]
        # Sessions that are not listed yet are counted by the API's totals.
        self._left = len(due) + (batches[-1].rows_left if batches else 0)
        if not self._left:
            return
        crashed = sum(one.crashed for one in due) * self._left / (len(due) or 1)
        hint = ""
        if settings.events_for != "crashed":
            time = duration(run.minutes_for(round(crashed)))
            hint = f" (events_for: crashed would need {time})"
        self.logger.info(
            "events: %s sessions need events: about %s at %d requests a minute%s",
            f"{self._left:,}",
            duration(run.minutes_for(self._left)),
            settings.requests_per_minute,
            hint,
        )
        yesterday = run.started - timedelta(days=1)
        new = sum(1 for one in due if one.instant and one.instant > yesterday)
        ceiling = settings.requests_per_minute * MINUTES_PER_DAY
        if new > ceiling:
            self.logger.warning(
                "events: %s new sessions a day need events, but %d requests a minute serve %s: "
                "set events_for to errors or crashed, or give each app its own project and key",
                f"{new:,}",
                settings.requests_per_minute,
                f"{ceiling:,}",
            )

    # --- Fetching

    def _fetch(self, due: list[Candidate], progress: Progress) -> Iterator[Row]:
        """Yield the events of sessions; raise OutOfTime at the time limit."""

        def is_late() -> bool:
            # A limit that is too short for all that comes before makes progress, too.
            return self._done > 0 and self.run.is_over()

        wanted = itertools.takewhile(lambda _: not is_late(), due)
        fetched = 0
        with closing(self.prefetch({"sessionId": one.id} for one in wanted)) as calls:
            for session, call in zip(due, calls, strict=False):
                if is_late() and call.cancel(if_unsent=True):
                    break
                try:
                    yield from self._events_of(session, call)
                except FatalAPIError:
                    # One session that stops every run must not have those before it fetched
                    # again and again.
                    self.checkpoint(progress)
                    raise
                fetched += 1
                self._count(progress)
        if fetched < len(due):
            self.run.check_time()

    def _count(self, progress: Progress) -> None:
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
        waited = run.clock.seconds() - self._state_at
        asked = self._since_state + run.settings.concurrency
        if asked >= SESSIONS_PER_STATE or waited >= SECONDS_PER_STATE:
            self.checkpoint(progress)

    def _rows_of(
        self, session_id: str, call: Call, listed: Candidate | None = None
    ) -> Iterator[Row]:
        """Yield a session's events, and note that they were fetched once all are there."""
        listing = self.listing({"sessionId": session_id}, self.take(call))
        yield from itertools.chain.from_iterable(listing)
        self._worked = True
        self.set_aside.pop(session_id, None)
        came, known = len(listing.reading.ids), self.short.pop(session_id, None)
        # What comes short twice in the same way is believed.
        is_short = not listing.reading.is_complete and came != known
        if is_short and len(self.short) < MAX_SHORT:
            self.short[session_id] = came
        elif listed is not None:
            self.due.ledger.put(session_id, listed.day, listed.mark)

    def _events_of(self, session: Candidate, call: Call) -> Iterator[Row]:
        """Yield a session's events; one that fails does not keep the others back."""
        try:
            yield from self._rows_of(session.id, call, session)
            self._confirm_pending()
        except NotFoundError:
            self._vanished.append(session)
            self.logger.info("events: session %s has vanished from the API", session.id)
            if len(self._vanished) >= MAX_VANISHED:
                raise FatalAPIError(
                    f"{self.path} knows none of the last {MAX_VANISHED} sessions, though "
                    "/sessions lists them: the API has changed or is broken. None of them is "
                    "recorded as done"
                ) from None
        except (PatienceError, RefusedError) as error:
            self._failed[session] = error
            if len(self._failed) >= MAX_SET_ASIDE and isinstance(error, RefusedError):
                raise  # it is the endpoint
            self.logger.warning("events: session %s is set aside: %s", session.id, error)
            failed = len(self._failed)
            if failed >= MAX_SET_ASIDE or self._newly_set_aside + failed > MAX_SET_ASIDE:
                raise FatalAPIError(
                    f"{self.path} fails for too many sessions, {session.id} the last of them: "
                    f"{error}"
                ) from None

    def _confirm_pending(self) -> bool:
        """Take what failed or vanished for what it is, if another session worked.

        Returns:
            Whether all sessions so far are accounted for.

        Raises:
            RefusedError: If the API refuses the events of each session.
        """
        if not self._worked and self._vanished:
            self.run.warn_once(
                "events: %s knows none of %d sessions, and no other answered: they are asked for "
                "again in the next run",
                self.path,
                len(self._vanished),
            )
            return False
        errors = list(self._failed.values())
        if not self._worked and errors and isinstance(errors[-1], RefusedError):
            raise errors[-1]
        for session in self._vanished:
            self.due.ledger.put(session.id, session.day, session.mark)
        self.set_aside |= {session.id: session.instant for session in self._failed}
        self._newly_set_aside += len(self._failed)
        self._vanished, self._failed = [], {}
        return True

    def _retry_set_aside(self, listed: Mapping[str, Candidate]) -> Iterator[Row]:
        """Yield the events of sessions that failed or came short in an earlier run."""
        gone: list[str] = []
        for session_id, started_at in (self.set_aside | dict.fromkeys(self.short)).items():
            if not self.run.settings.requested.holds(started_at):
                continue
            if self.run.is_over():
                break  # those that are due get their turn; the next run tries again
            call = self.fetch({"sessionId": session_id}, retries=False)
            try:
                yield from self._rows_of(session_id, call, listed.get(session_id))
            except NotFoundError:
                self.logger.info("events: session %s has vanished from the API", session_id)
                gone.append(session_id)
            except (PatienceError, RefusedError, RetriableAPIError, RequestException) as error:
                why = reason(error)
                self.logger.warning("events: session %s still fails: %s", session_id, why)
        if self._worked:
            for session_id in gone:
                self.set_aside.pop(session_id, None)
                self.short.pop(session_id, None)
