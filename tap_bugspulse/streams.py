"""Sessions, crashes and network calls: which rows a run emits, and whose events are due."""

import itertools
import typing as t
from contextlib import closing
from datetime import date, datetime

import msgspec
import requests
from singer_sdk import Tap
from typing_extensions import override

from tap_bugspulse import replication
from tap_bugspulse.client import BugsPulseStream
from tap_bugspulse.pages import Reading, Row, page_of
from tap_bugspulse.replication import DAY, DayReading, Ledger, Window, fingerprint_of, midnight
from tap_bugspulse.run import Run
from tap_bugspulse.windows import Cut, RowsAndIds, Sync, WindowedStream

PAGES_DUE = 100  # of sessions, kept in memory until their events are fetched: 100,000 at most


class Crashes(BugsPulseStream):
    """Crash groups: all of them in every run, because triage changes none of their dates."""

    name = "crashes"
    path = "/crashes"
    primary_keys = ("id",)


class Network(WindowedStream):
    """Network calls, which never change but can arrive late.

    A day of the lookback is read again only if its number of rows has changed in the API.
    """

    name = "network"
    path = "/network"
    primary_keys = ("id",)
    replication_key = instant_column = "timestamp"
    history_share = 0.5  # the rest of the time is for sessions and events

    def _pieces(self, days: Window, sync: Sync) -> list[Window]:
        """Split days so that each one with a count in the state, now or later, is a window."""
        first = (sync.plan.target - self.run.settings.lookback).date() - DAY
        until = days.end if days.end < date.max else self.today + DAY
        every = [days.start + n * DAY for n in range(max(1, (until - days.start).days))]
        counted = [day for day in every if day >= first or day in sync.days]
        starts = {days.start, *counted, *(day + DAY for day in counted)} - {every[-1] + DAY}
        return [Window(*pair) for pair in itertools.pairwise([*sorted(starts), days.end])]

    @override
    def cut(self, days: Window, sync: Sync, rows: int | None = None) -> t.Iterator[Cut]:
        if sync.in_history or not days:
            yield from super().cut(days, sync, rows)
            return
        pieces = self._pieces(days, sync)
        if pieces[2:] and not any(max(one.total, one.rows) > 0 for one in sync.days.values()):
            first = self.take(self.fetch(days.query()))
            if page_of(first).total == 0:  # one request instead of one for each day
                yield Cut(days, first, 0)
                return
        for are_days, group in itertools.groupby(pieces, lambda one: one.size(self.today) == 1):
            windows = list(group)  # longer ones never follow each other
            yield from self._cut_days(windows) if are_days else super().cut(windows[0], sync)
            if self.ignores_dates:
                yield Cut(days, self.take(self.fetch(days.query())), 0)
                return

    def _cut_days(self, days: list[Window]) -> t.Iterator[Cut]:
        with closing(self.prefetch(self.fetch(one.query()) for one in days)) as calls:
            for day, answer in zip(days, map(self.take, calls), strict=True):
                self.check(day, answer)
                if self.ignores_dates:
                    return
                yield Cut(day, answer, 0)

    @override
    def read(self, window: Window, first: requests.Response, sync: Sync) -> RowsAndIds:
        if sync.in_history or window.size(self.today) > 1:
            return (yield from super().read(window, first, sync))
        day = window.start
        known, requested = sync.days.get(day), self.run.settings.requested
        if known and known.total == page_of(first).total and known.start <= requested.start:
            return set()
        now, old, ids, readings = self.run.clock.now(), list[Row](), set[str](), list[Reading]()
        loaded, known_rows, ends_early, last = 0, 0, False, midnight(day)
        listing = self.listing(window.query(), first, readings)
        for row in itertools.chain.from_iterable(listing):
            instant = self.instant_of(row)
            # By the start_date and the time of the run that counted them, not of this one.
            is_old = known is not None and known.holds(instant)
            known_rows += is_old
            if instant and not requested.holds(instant):
                ends_early = ends_early or instant >= requested.start
                continue
            if instant is None or instant <= now:
                loaded += 1
                last = max(last, instant or last)
            if row.id in sync.seen:
                ids.add(row.id)
            elif is_old:
                old.append(row)
            elif not self.was_emitted(row, instant, sync):
                ids.add(row.id)
                yield row
        # If there are more than an earlier run counted, some came late. If it read without an end,
        # it may have counted rows after this day, by the API's time zone: then any may be late.
        if known and (last < known.last or known_rows > known.rows):
            ids.update(row.id for row in old)
            yield from old
        reading = readings[-1]
        is_comparable = window.end < date.max and reading.is_complete and not ends_early
        # A smaller total than rows is that of one page, or rows came while this run read them.
        total = reading.total if is_comparable and reading.total >= reading.rows else -1
        sync.days[day] = DayReading(total, loaded, last, requested.start)
        return ids

    @override
    def more_state(self, sync: Sync) -> dict[str, t.Any]:
        kept_from, days = self.kept_from(sync.plan.complete), sorted(sync.days.items())
        return {"days": {day: one for day, one in days if day >= kept_from}}


class Candidate(t.NamedTuple):
    """A session whose events may be due, with the day that it is filed under."""

    id: str
    instant: datetime | None = None
    day: date = date.min
    fingerprint: bytes = b""  # of the columns that change with its events
    crashed: bool = False
    events: int = 0  # by its eventCount


def is_wanted(session: Row, events_for: str) -> bool:
    """Return whether a session may have events that this ``events_for`` includes."""
    crashed = bool(session.hasCrash) or session.status == "crashed"
    includes = {"all": True, "errors": crashed or session.hasNetworkErrors, "crashed": crashed}
    return bool(includes[events_for]) and (session.eventCount != 0 or session.status == "active")


class Sessions(WindowedStream):
    """Sessions; all of them are emitted before any events are requested.

    ``fetched`` has the fingerprints of sessions whose events were fetched. ``listed`` has windows
    of the forward part, without a gap; ``due`` the sessions there whose events are due.
    """

    name = "sessions"
    path = "/sessions"
    primary_keys = ("id",)
    replication_key = instant_column = "startedAt"

    def __init__(self, tap: Tap, run: Run) -> None:
        super().__init__(tap, run)
        self.fetched = Ledger()
        self.listed: list[Window] = []
        self.due: dict[str, Candidate] = {}

    @override
    def get_records(self, context: t.Any) -> t.Iterator[Row]:
        events = self.tap_state.get("bookmarks", {}).get("events")
        self.fetched = Ledger(replication.Bookmark.read(events).fingerprints)
        if self.selected:
            yield from super().get_records(context)
        # One sync of the child for all sessions: one for each would write its SCHEMA, and five
        # lines of log, every time.
        if self.has_selected_descendents and self.name not in self.run.errors:
            self._sync_children({})

    @override
    def read(self, window: Window, first: requests.Response, sync: Sync) -> RowsAndIds:
        ids = yield from super().read(window, first, sync)
        if not sync.in_history:
            self.listed.append(window)
        if len(self.due) > PAGES_DUE * self.run.settings.page_size:  # Events lists these days again
            self.due.clear()
            self.listed.clear()
        return ids

    @override
    def rows_to_emit(self, rows: list[Row], window: Window, sync: Sync) -> list[Row]:
        requested, kept_from = self.run.settings.requested, self.kept_from(sync.plan.complete)
        if sync.in_history and window.end <= kept_from and not self.ignores_dates:
            return super().rows_to_emit(rows, window, sync)  # in half the time
        has_events = not sync.in_history and self.has_selected_descendents
        emitted = []
        for row in rows:
            instant = self.instant_of(row)
            if not requested.holds(instant):
                continue
            day = self.day_of(window, instant)
            if has_events and (due := self._candidate(row, instant, day)):
                self.due[row.id] = due
            known = fingerprint = None
            if day >= kept_from and sync.plan.moves_bookmark:
                known, fingerprint = sync.ledger.get(row.id), fingerprint_of(row)
            is_new = not known and not self.was_emitted(row, instant, sync)
            if is_new or (known and known != fingerprint):
                emitted.append(row)
                if fingerprint:
                    sync.ledger.put(row.id, day, fingerprint)
        return emitted

    def _candidate(self, row: Row, instant: datetime | None, day: date) -> Candidate | None:
        """Return a session as a candidate, None if its events are not due."""
        if not is_wanted(row, self.run.settings.events_for):
            return None
        fingerprint = fingerprint_of([row.eventCount, row.status, row.endedAt, row.hasCrash])
        if self.fetched.get(row.id) == fingerprint or not (
            self.is_plain or self.stream_maps[0].get_filter_result(msgspec.structs.asdict(row))
        ):
            return None
        crashed = is_wanted(row, "crashed")
        return Candidate(row.id, instant, day, fingerprint, crashed, row.eventCount or 0)

    def day_of(self, window: Window, instant: datetime | None) -> date:
        """Return the day that a session of a window is filed under."""
        if self.ignores_dates and instant:
            return instant.date()
        return window.day_of(instant, self.today)

    def list_due(self, cut: Cut) -> list[Candidate]:
        """Return the sessions of a window whose events are due, without emitting them."""
        due, listing = [], self.listing(cut.window.query(), cut.first)
        for row in itertools.chain.from_iterable(listing):
            instant = self.instant_of(row)
            day = self.day_of(cut.window, instant)
            is_inside = not self.ignores_dates or cut.window.wider().holds(day)
            if is_inside and self.run.settings.requested.holds(instant):
                due.append(self._candidate(row, instant, day))
        return [*filter(None, due)]

    @override
    def more_state(self, sync: Sync) -> dict[str, t.Any]:
        kept_from = self.kept_from(sync.plan.complete)
        if sync.ledger.prune(lambda day: day >= kept_from, self.today):
            self.run.warn_once(
                "sessions: more than 1,000 lie in the future of the run; those beyond are loaded "
                "again in every run"
            )
        return {"fingerprints": sync.ledger.pack()}
