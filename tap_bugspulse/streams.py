"""Sessions, crashes and network calls: what they are, and what is news of each."""

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

MAX_REMEMBERED = 100_000  # sessions that a listing keeps for the events


class Crashes(BugsPulseStream):
    """Crash groups: all of them in every run, since triage moves no date."""

    name = "crashes"
    path = "/crashes"
    primary_keys = ("id",)


class Network(WindowedStream):
    """Network calls, which never change but may come late.

    A day of the lookback is read only where the API counts another number of rows than it did.
    """

    name = "network"
    path = "/network"
    primary_keys = ("id",)
    replication_key = instant_column = "timestamp"
    history_share = 0.5  # so that sessions and events get their turn

    def _pieces(self, days: Window, sync: Sync) -> list[Window]:
        """Return days one by one: those the state will count, or does; and the rest."""
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
        if pieces[2:] and not sync.days:
            first = self.take(self.fetch(self.query_of(days)))
            if page_of(first).total == 0:  # so that none of these days has to be asked for
                start = self.run.settings.requested.start
                empty = (DayReading(0, 0, midnight(one.start), start) for one in pieces)
                sync.days.update({one.last.date(): one for one in empty})
                yield Cut(days, first, 0)
                return
        for are_days, group in itertools.groupby(pieces, lambda one: one.size(self.today) == 1):
            some = list(group)  # of those that are no days, two never follow each other
            yield from self._one_by_one(some) if are_days else super().cut(some[0], sync)
            if self.ignores_dates:
                yield Cut(days, self.take(self.fetch(days.query())), 0)
                return

    def _one_by_one(self, days: list[Window]) -> t.Iterator[Cut]:
        with closing(self.prefetch(self.fetch(self.query_of(one)) for one in days)) as calls:
            for day, answer in zip(days, map(self.take, calls), strict=True):
                first = self.checked(day, answer)
                if self.ignores_dates:
                    return
                yield Cut(day, first, 0)

    @override
    def read(self, window: Window, first: requests.Response, sync: Sync) -> RowsAndIds:
        if sync.in_history or window.size(self.today) > 1:
            return (yield from super().read(window, first, sync))
        day = window.start
        known, requested = sync.days.get(day), self.run.settings.requested
        if known and known.total == page_of(first).total and known.start <= requested.start:
            return set()
        now, old, ids = self.run.clock.now(), list[Row](), set[str]()
        count, counted, ends_early, last = 0, 0, False, midnight(day)
        readings = list[Reading]()
        listing = self.listing(self.query_of(window), first, readings)
        for row in itertools.chain.from_iterable(listing):
            instant = self.instant_of(row)
            # By the dates of the run that counted, not by those of this one.
            is_old = known is not None and known.holds(instant)
            counted += is_old
            if instant and not requested.holds(instant):
                ends_early = ends_early or instant >= requested.start
                continue
            if instant is None or instant <= now:
                count += 1
                last = max(last, instant or last)
            if row.id in sync.seen:
                ids.add(row.id)
            elif is_old:
                old.append(row)
            elif not self.was_emitted(row, instant, sync):
                ids.add(row.id)
                yield row
        # The newest day is read without an end. Where it ends before the latest row that was
        # counted, by the API's time zone, its number says nothing.
        if known and (last < known.last or counted > known.rows):
            ids.update(row.id for row in old)
            yield from old
        reading = readings[-1]
        is_told = window.end < date.max and reading.is_complete and not ends_early
        # Fewer than came: it is that of the first page, or rows came meanwhile.
        is_told = is_told and reading.total >= reading.rows
        total = reading.total if is_told else -1
        sync.days[day] = DayReading(total, count, last, requested.start)
        return ids

    @override
    def more_state(self, sync: Sync) -> dict[str, t.Any]:
        kept_from, days = self.kept_from(sync.plan.complete), sorted(sync.days.items())
        return {"days": {day: one for day, one in days if day >= kept_from}}


class Candidate(t.NamedTuple):
    """A session whose events may be due; ``day`` is the one it is filed under."""

    id: str
    instant: datetime | None = None
    day: date = date.min
    mark: bytes = b""  # the fingerprint of what its events would be fetched with
    crashed: bool = False
    events: int = 0  # as far as its row says


def is_wanted(session: Row, events_for: str) -> bool:
    """Return whether a session may have events, and a value of ``events_for`` takes them."""
    crashed = bool(session.hasCrash) or session.status == "crashed"
    takes = {"all": True, "errors": crashed or session.hasNetworkErrors, "crashed": crashed}
    return bool(takes[events_for]) and (session.eventCount != 0 or session.status == "active")


class Sessions(WindowedStream):
    """Sessions; all of them are emitted before the events of any are asked for.

    ``fetched`` knows with what the events of recent sessions were fetched. The windows of the
    forward part that this run has ``listed`` have no gap; the sessions in ``due`` are theirs.
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
        # All due sessions in one sync of the child: a sync for each would send the schema and
        # five lines of log every time.
        if self.has_selected_descendents and self.name not in self.run.errors:
            self._sync_children({})

    @override
    def read(self, window: Window, first: requests.Response, sync: Sync) -> RowsAndIds:
        ids = yield from super().read(window, first, sync)
        if not sync.in_history:
            self.listed.append(window)
        if len(self.due) > MAX_REMEMBERED:  # the days so far are listed again
            self.due.clear()
            self.listed.clear()
        return ids

    @override
    def rows_to_emit(self, rows: list[Row], window: Window, sync: Sync) -> list[Row]:
        requested, kept_from = self.run.settings.requested, self.kept_from(sync.plan.complete)
        if sync.in_history and window.end <= kept_from and not self.ignores_dates:
            return super().rows_to_emit(rows, window, sync)  # which takes half the time
        remembers_due = not sync.in_history and self.has_selected_descendents
        news = []
        for row in rows:
            instant = self.instant_of(row)
            if not requested.holds(instant):
                continue
            day = self.day_of(window, instant)
            if remembers_due and (due := self._candidate(row, instant, day)):
                self.due[row.id] = due
            known = mark = None
            if day >= kept_from and sync.plan.moves_bookmark:
                known, mark = sync.ledger.get(row.id), fingerprint_of(row)
            if known != mark if known else not self.was_emitted(row, instant, sync):
                news.append(row)
                if mark:
                    sync.ledger.put(row.id, day, mark)
        return news

    def _candidate(self, row: Row, instant: datetime | None, day: date) -> Candidate | None:
        """Return what decides about a session's events, None where they are not due."""
        if not is_wanted(row, self.run.settings.events_for):
            return None
        mark = fingerprint_of([row.eventCount, row.status, row.endedAt, row.hasCrash])
        if self.fetched.get(row.id) == mark or not (
            self.is_plain or self.stream_maps[0].get_filter_result(msgspec.structs.asdict(row))
        ):
            return None
        return Candidate(row.id, instant, day, mark, is_wanted(row, "crashed"), row.eventCount or 0)

    def day_of(self, window: Window, instant: datetime | None) -> date:
        """Return the day that a session of a window is filed under."""
        if self.ignores_dates and instant:
            return instant.date()
        return window.day_of(instant, self.today)

    def list_due(self, cut: Cut) -> list[Candidate]:
        """Return the sessions of a window whose events are due, and emit none."""
        due, listing = [], self.listing(self.query_of(cut.window), cut.first)
        for row in itertools.chain.from_iterable(listing):
            instant = self.instant_of(row)
            day = self.day_of(cut.window, instant)
            is_inside = not self.ignores_dates or cut.window.holds(day)
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
