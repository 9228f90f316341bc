"""The events stream: which sessions are due, and what happens when one fails."""

from __future__ import annotations

import itertools
import typing as t
from collections import deque
from datetime import timedelta

from singer_sdk.exceptions import FatalAPIError
from typing_extensions import override

from tap_bugspulse.client import BugsPulseStream, NotFoundError
from tap_bugspulse.patience import PatienceError
from tap_bugspulse.replication import (
    Candidate,
    Marks,
    Stretch,
    Window,
    make_plan,
    midnight,
    parse_instant,
    read_stretch,
    split,
    wider,
    write_stretch,
)
from tap_bugspulse.run import OutOfTime, duration
from tap_bugspulse.streams import Listed, Sessions

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import requests

    from tap_bugspulse.columns import Row
    from tap_bugspulse.replication import Plan
    from tap_bugspulse.tap import TapBugsPulse

    # A window with the sessions whose events are due, and what moves the mark over it.
    Batch = tuple[Listed, Callable[[Window], None]]

COMPLETE_TO = "complete_to"
SESSIONS_PER_WINDOW = 5_000  # whose events are fetched before their mark moves
SESSIONS_PER_STATE = 100  # asked for again at most, those on their way included
SECONDS_PER_STATE = 60.0
MOST_SET_ASIDE = 10  # sessions whose events fail, newly in a run or in a row
MOST_VANISHED = 10  # sessions without events, in a row
MINUTES_PER_DAY = 1440


class Events(BugsPulseStream):
    """The events of sessions, at one request each or more."""

    name = "events"
    path = "/events"
    primary_keys = ("sessionId", "id")
    parent_stream_type = Sessions
    trusts_one_page = True  # its example gives the total as `limit`
    state_partitioning_keys = ()  # one bookmark: the default is one for each session

    def __init__(self, tap: TapBugsPulse) -> None:
        """Set up what one run knows of the sessions whose events are due."""
        super().__init__(tap)
        self.marks: Marks | None = None
        self.set_aside: dict[str, str | None] = {}
        self._failed: list[Candidate] = []  # in a row, most recent last
        self._vanished: list[Candidate] = []  # likewise
        self._newly_set_aside = 0
        self._worked = False  # whether /events has answered for any session
        self._lists_anew = False  # history, which this run's listing does not cover
        self._left = self._done = self._since_state = 0
        self._state_at = 0.0

    @property
    def parent(self) -> Sessions:
        """The parent stream."""
        return t.cast("Sessions", self.tap.streams["sessions"])

    @override
    def shape(self, raw: t.Any, query: Mapping[str, str]) -> Row:
        if isinstance(raw, dict):
            raw = {**raw, **query}
            if not isinstance(raw.get("data"), dict | None):
                raw["data"] = {"value": raw["data"]}
        else:
            for name, value in query.items():
                setattr(raw, name, value)
        return super().shape(raw, query)

    @override
    def get_records(self, context: t.Any) -> Iterator[Row]:
        if self.ABORT_AT_RECORD_COUNT is not None:  # --test
            for session in itertools.islice(self.parent.rows({}), 1):
                rows = self.rows(self.parent.get_child_context(session, None))
                yield from itertools.islice(rows, self.ABORT_AT_RECORD_COUNT)
            return
        written = self.stream_state.get("set_aside")
        self.set_aside = {
            session_id: started_at
            for session_id, started_at in (written or {}).items()
            if session_id and (started_at is None or parse_instant(started_at))
        }
        self._state_at = self.tap.run.clock.seconds()
        try:
            yield from self._retry_set_aside()
            yield from self._fetch_due()
        except OutOfTime:
            self.logger.info("events: time is up, the next run goes on")
        if self._worked or not self._vanished:
            self._settle()
            self.checkpoint()
        else:
            self.logger.warning(
                "events: %s knows none of %d sessions, and no other answered: they are "
                "asked for again in the next run",
                self.path,
                len(self._vanished),
            )
        self.tap.run.events_left = self._left
        self.tap.run.counts[self.name].set_aside = sorted(self.set_aside)

    # --- What is complete --------------------------------------------------------------

    def _written(self) -> dict[str, tuple[Stretch | None, str | None]]:
        """Read the bookmarks: what is complete for each ``events_for``, what is wrong."""
        complete = self.stream_state.get("complete")
        started, lookback = self.tap.run.started, self.tap.settings.lookback
        return {
            events_for: read_stretch(bookmark, COMPLETE_TO, started, lookback)
            for events_for, bookmark in (complete or {}).items()
            if isinstance(bookmark, dict)
        }

    def stretches(self) -> list[Stretch]:
        """Give what is complete for each ``events_for``, whether or not it is set."""
        written = [stretch for stretch, _ in self._written().values() if stretch]
        now = self.marks.stretch if self.marks else None
        return [now, *written] if now else written

    def stretch(self) -> Stretch | None:
        """Give what is complete for the set ``events_for``; a wider one counts, too."""
        if self.marks is not None:
            return self.marks.stretch
        best: Stretch | None = None
        written = self._written()
        for events_for in wider(self.tap.settings.events_for):
            stretch, wrong = written.get(events_for, (None, None))
            if wrong:
                self.tap.run.warn_once(
                    f"events: the state is damaged ({wrong}): fetching history again"
                )
            if best is None or stretch is None:
                best = best or stretch
            else:
                newer = max(best, stretch, key=lambda one: one.complete_to)
                best = best.joined(stretch) or newer
        return best

    def checkpoint(self) -> None:
        """Write what is fetched into the state and send it.

        Not while sessions in a row have vanished or failed: if it goes on, none of
        them is to count as done.
        """
        if self._failed or self._vanished:
            return
        complete = dict(self.stream_state.get("complete") or {})
        if self.marks is not None and self.marks.stretch and self.marks.moves:
            complete[self.tap.settings.events_for] = write_stretch(
                self.marks.stretch, COMPLETE_TO
            )
        # Each in one step: a signal may write the state at any moment.
        self.stream_state.update(
            {
                "complete": complete,
                "set_aside": self.set_aside.copy(),
                **self.tap.state_of_project(),
            }
        )
        self.parent.prune()
        self.parent.stream_state["ledger"] = self.parent.ledger.pack()
        self.tap.state_writer.write_state(self.tap_state)
        self._since_state = 0
        self._state_at = self.tap.run.clock.seconds()

    # --- Which sessions are due --------------------------------------------------------

    def _fetch_due(self) -> Iterator[Row]:
        run, need = self.tap.run, self.tap.need
        plan = make_plan(self.stretch(), need, self.tap.settings.lookback, run.started)
        self.marks = marks = Marks(plan, need, run.started)
        batches: list[Batch] = []
        forward: list[Candidate] = []
        if forward_days := plan.forward_days(run.started):
            windows = list(self._listed(forward_days, newest_first=False))
            forward = self._due(one for listed in windows for one in listed.candidates)
            seen = [instant for listed in windows for instant in listed.seen]
            batches = [(Listed(forward_days, seen, forward), marks.forward_done)]
        self._left = len(forward)
        history = self._history(plan)
        # What this run remembers, and the first window that has to be listed anew.
        known = {session.id for session in forward}
        is_late = False
        try:
            for listed in history:
                found = self._due(listed.candidates, plan)
                due = [session for session in found if session.id not in known]
                known.update(session.id for session in due)
                batches.append((listed._replace(candidates=due), marks.history_done))
                if self._lists_anew:
                    break
        except OutOfTime:
            is_late = True  # to list anew; what is remembered gets its turn
        sessions = [session for listed, _ in batches for session in listed.candidates]
        self._tell_what_is_ahead(forward, sessions[len(forward) :])
        yield from self._fetch(batches)
        if is_late:
            run.check_time()
        for listed in history:
            due = self._due(listed.candidates, plan)
            batches = [(listed._replace(candidates=due), marks.history_done)]
            yield from self._fetch(batches)

    def _due(
        self, found: Iterable[Candidate], history: Plan | None = None
    ) -> list[Candidate]:
        """Give the sessions whose events are due, newest first, each once."""
        due = {}
        for session in found:
            entry = self.parent.ledger.get(session.id)
            if (
                session.id not in self.set_aside
                and not (entry and entry.events == session.mark)
                and not (history and history.was_read(session.instant))
            ):
                due[session.id] = session
        return sorted(
            due.values(),
            key=lambda session: session.instant or midnight(session.day),
            reverse=True,
        )

    def _history(self, plan: Plan) -> Iterator[Listed]:
        days = plan.history_days(self.tap.run.started)
        if days:
            yield from self._listed(days, newest_first=True)

    def _listed(self, days: Window, *, newest_first: bool) -> Iterator[Listed]:
        """Give the sessions of days: what this run has listed from memory, else anew."""
        known = self.parent.listed
        pieces = split(days, [listed.window for listed in known])
        for piece, is_known in pieces if newest_first else reversed(pieces):
            if is_known:
                yield from self._remembered(piece)
                continue
            self._lists_anew = newest_first
            # The next one would have come long before the events of this one are in.
            for window, pages in self.parent.cut(
                piece, newest_first=newest_first, rows=SESSIONS_PER_WINDOW, ahead=False
            ):
                before = self.stretch()
                yield self.parent.list_again(window, pages)
                if newest_first:
                    self.parent.went_back(before, t.cast("Marks", self.marks))

    def _remembered(self, days: Window) -> Iterator[Listed]:
        """Give what this run has listed of days, in windows of about 5,000 sessions."""
        seen = [
            instant
            for listed in self.parent.listed
            for instant in listed.seen
            if days.holds(instant.date())
        ]
        found = sorted(
            (
                session
                for listed in self.parent.listed
                for session in listed.candidates
                if days.holds(session.day)
            ),
            key=lambda session: session.day,
            reverse=True,
        )
        batch: list[Candidate] = []
        end = days.end
        for day, group in itertools.groupby(found, key=lambda session: session.day):
            batch += group
            if len(batch) >= SESSIONS_PER_WINDOW and day != days.start:
                yield Listed(Window(day, end), seen, batch)
                end, batch = day, []
        yield Listed(Window(days.start, end), seen, batch)

    def _tell_what_is_ahead(
        self, forward: list[Candidate], history: list[Candidate]
    ) -> None:
        """Say before the first request how many sessions need events and how long."""
        run, settings = self.tap.run, self.tap.settings
        sure = [*forward, *history]
        # Sessions that are not listed yet are counted by the API's totals.
        self._left = len(sure) + (self.parent.rows_ahead if self._lists_anew else 0)
        if not self._left:
            return
        crashed = sum(session.crashed for session in sure) * self._left / (len(sure) or 1)
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
        new = sum(
            1 for session in forward if session.instant and session.instant > yesterday
        )
        ceiling = settings.requests_per_minute * MINUTES_PER_DAY
        if new > ceiling:
            self.logger.warning(
                "events: %s new sessions a day need events, but %d requests a minute "
                "serve %s: set events_for to errors or crashed, or give each app its "
                "own project and key",
                f"{new:,}",
                settings.requests_per_minute,
                f"{ceiling:,}",
            )

    # --- Fetching ----------------------------------------------------------------------

    def _fetch(self, batches: list[Batch]) -> Iterator[Row]:
        """Fetch the events of windows' due sessions, and move the mark after each.

        Raises:
            OutOfTime: If the time box is used up and what was on its way has arrived.
        """
        due = [session for listed, _ in batches for session in listed.candidates]
        asked = self._ask_ahead(due)
        total, is_whole = self._left + self._done, True
        for listed, move_mark in batches:
            for session, first in itertools.islice(asked, len(listed.candidates)):
                if first is None:
                    is_whole = False
                else:
                    yield from self._events_or_end(session, first)
                    self._count(total)
            # Those after it may have been on their way, of the next window, too.
            if not is_whole:
                continue
            for instant in listed.seen:
                t.cast("Marks", self.marks).saw(instant)
            move_mark(listed.window)
            self.checkpoint()
        if not is_whole:
            self.tap.run.check_time()

    def _events_or_end(
        self, session: Candidate, first: requests.PreparedRequest
    ) -> Iterator[Row]:
        try:
            yield from self._events_of(session, first)
        except FatalAPIError:
            # What was done before is done: one session that stops every run must not
            # have the others fetched again and again.
            self.checkpoint()
            raise

    def _count(self, total: int) -> None:
        """Count a session that is done, and say so from time to time, in a STATE, too."""
        run = self.tap.run
        self._left = max(0, self._left - 1)
        self._done += 1
        self._since_state += 1
        run.progress(
            "events: %s of %s sessions, %d requests a minute, about %s left",
            f"{self._done:,}",
            f"{total:,}",
            self.tap.settings.requests_per_minute,
            duration(run.minutes_for(self._left)),
        )
        waited = run.clock.seconds() - self._state_at
        asked = self._since_state + self.tap.settings.concurrency
        if asked >= SESSIONS_PER_STATE or waited >= SECONDS_PER_STATE:
            self.checkpoint()

    def _ask_ahead(
        self, sessions: list[Candidate]
    ) -> Iterator[tuple[Candidate, requests.PreparedRequest | None]]:
        """Give each session with its request, as many of them on their way as may be.

        One whose request was given up for lack of time comes with None.

        Raises:
            OutOfTime: If the time box is used up and what was on its way has arrived.
        """
        asked: deque[tuple[Candidate, requests.PreparedRequest]] = deque()
        run, http = self.tap.run, self.tap.session
        rest = iter(sessions)
        try:
            while True:
                # No look at the time before the first session is done: a box that is
                # too small for all that comes before would never get past it.
                is_over = bool(self._done) and run.is_over()
                while not is_over and (http.has_room or not asked):
                    following = next(rest, None)
                    if following is None:
                        break
                    request = self.ask({"sessionId": following.id})
                    asked.append((following, request))
                if not asked:
                    break
                session, request = asked.popleft()
                is_given_up = is_over and http.take_back(request)
                yield session, None if is_given_up else request
            if next(rest, None):
                run.check_time()
        finally:
            for _, request in asked:
                http.forget(request)

    def _events_of(
        self, session: Candidate, first: requests.PreparedRequest
    ) -> Iterator[Row]:
        """Give a session's events; one that fails does not keep the others back."""
        query = {"sessionId": session.id}
        try:
            yield from self.rows(query, self.request_pages(query, deque([first])))
        except NotFoundError:
            self._vanished.append(session)
            self.logger.info("events: session %s has vanished from the API", session.id)
            if len(self._vanished) >= MOST_VANISHED:
                msg = (
                    f"{self.path} knows none of the last {MOST_VANISHED} sessions, "
                    "though /sessions lists them: the API has changed or is broken. "
                    "None of them is recorded as done"
                )
                raise FatalAPIError(msg) from None
        except PatienceError as error:
            self._failed.append(session)
            self.logger.warning("events: session %s is set aside: %s", session.id, error)
            if (
                len(self._failed) >= MOST_SET_ASIDE
                or self._newly_set_aside + len(self._failed) > MOST_SET_ASIDE
            ):
                msg = (
                    f"{self.path} fails for too many sessions, {session.id} the last of "
                    f"them: {error}"
                )
                raise FatalAPIError(msg) from None
        else:
            self._worked = True
            self._settle()
            self._keep(session)

    def _settle(self) -> None:
        """Take what failed or vanished before another session worked for what it is."""
        for session in self._vanished:
            self._keep(session)
        for session in self._failed:
            instant = session.instant
            self.set_aside[session.id] = instant.isoformat() if instant else None
        self._newly_set_aside += len(self._failed)
        self._vanished, self._failed = [], []

    def _keep(self, session: Candidate) -> None:
        """Note in the ledger what a session's events were fetched with."""
        self.parent.ledger.put(session.id, session.day, events=session.mark)

    def _retry_set_aside(self) -> Iterator[Row]:
        """Try once more each session that an earlier run set aside."""
        # Only these were listed before their events are asked for: what is listed
        # afterwards may have grown in between.
        listed = {
            session.id: session
            for window in self.parent.listed
            for session in window.candidates
        }
        gone: list[str] = []
        for session_id, started_at in list(self.set_aside.items()):
            if not self.tap.need.holds(parse_instant(started_at)):
                continue
            if self.tap.run.is_over():
                break  # those that are due get their turn; the next run tries again
            self.patience_tries = 1
            try:
                yield from self.rows({"sessionId": session_id})
            except PatienceError as error:
                self.logger.warning("events: session %s still fails: %s", session_id, error)
                continue
            except NotFoundError:
                self.logger.info("events: session %s has vanished from the API", session_id)
                gone.append(session_id)
                continue
            finally:
                del self.patience_tries
            self._worked = True
            del self.set_aside[session_id]
            if session_id in listed:
                self._keep(listed[session_id])
        if self._worked:
            for session_id in gone:
                del self.set_aside[session_id]
