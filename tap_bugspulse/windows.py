"""A stream that is read in windows of days; each one that is read moves the bookmark."""

import typing as t
from dataclasses import dataclass, field, replace
from datetime import date, datetime

import requests
from singer_sdk import Tap
from singer_sdk.singerlib.catalog import REPLICATION_INCREMENTAL
from typing_extensions import override

from tap_bugspulse import replication
from tap_bugspulse.client import BugsPulseStream
from tap_bugspulse.http import RefusedError
from tap_bugspulse.pages import Row, page_of
from tap_bugspulse.replication import DAY, FAR, Bookmark, Cutter, Ledger, Plan, Window
from tap_bugspulse.run import OutOfTime, Run

EARLY = date(1901, 1, 1)  # like FAR, a day without any rows
SAMPLE = 20  # rows of a page whose dates are checked
PAGES_PER_WINDOW = 10  # an API may count and page no further than 10,000 rows
RowsAndIds = t.Generator[Row, None, set[str]]  # yields rows to emit, returns the ids of all


class Cut(t.NamedTuple):
    """A window to read, the response with its first page, and how many rows lie beyond it."""

    window: Window
    first: requests.Response
    rows_left: int


@dataclass(frozen=True)
class Sync:
    """What a stream works on while it reads one window after the other."""

    plan: Plan
    ledger: Ledger = field(default_factory=Ledger)  # from the bookmark, and so are the days
    days: dict[date, replication.DayReading] = field(default_factory=dict)
    seen: frozenset[str] | set[str] = frozenset()  # ids of the windows that touch the next one
    in_history: bool = False
    per_day: float = 0.0  # rows in the forward part; 0: unknown


class WindowedStream(BugsPulseStream):
    """Reads the forward part, then history newest first, and moves its bookmark itself."""

    history_share = 1.0  # of the time limit; after that, no more history is read

    def __init__(self, tap: Tap, run: Run) -> None:
        super().__init__(tap, run)
        self.today = run.started.date()
        self.ignores_dates = False  # the API does: each listing has all rows
        self._knows_dates = False  # whether it does has been found out

    def was_emitted(self, row: Row, instant: datetime | None, sync: Sync) -> bool:
        """Return whether a row was emitted before, by this run or an earlier one."""
        is_known = self.ignores_dates and sync.plan.is_before_lookback(instant)
        return row.id in sync.seen or is_known or (sync.in_history and sync.plan.was_read(instant))

    def check(self, window: Window, first: requests.Response) -> None:
        """Warn if the API may hide rows of a day; find out if it ignores the dates of a window."""
        page, full = page_of(first), PAGES_PER_WINDOW * self.run.settings.page_size
        self.check_dates(window, page.rows)
        is_whole = self.ignores_dates or window.size(self.today) == 1
        if page.rows_in_all and page.rows_in_all % full == 0 and is_whole:
            days = "all days" if self.ignores_dates else window.start
            self.run.warn_once(
                f"{self.name}: the API counts exactly {page.rows_in_all:,} rows on {days}: "
                "there may be more that it neither counts nor sends"
            )

    def check_dates(self, window: Window, rows: list[Row]) -> None:
        """Find out, once in a run, whether the API ignores dates.

        When most rows of a window lie outside of it, two days that cannot have rows are counted.
        """
        sample = [] if self._knows_dates else rows[:: len(rows) // SAMPLE + 1]
        instants = map(self.instant_of, sample)
        outside = sum(1 for one in instants if one and not window.wider().holds(one.date()))
        if 2 * outside > len(sample):
            self._knows_dates = True
            self.ignores_dates = self._count(EARLY) + self._count(FAR) > 0
        if self.ignores_dates:
            self.run.warn_once(
                f"{self.name}: the API ignores from or to: all rows are listed in each run, and "
                "those before the lookback are left out"
            )

    def _count(self, day: date) -> int:
        """Return how many rows the API counts on a day, 0 if it refuses the request."""
        try:
            return page_of(self.take(self.fetch(Window(day, day + DAY).query()))).rows_in_all
        except RefusedError:
            return 0

    # The SDK moves a bookmark with each record, and for good when the stream ends: past rows that a
    # run has not loaded, as it was stopped or reads newest first.
    @override
    def _increment_stream_state(self, *args: t.Any, **kwargs: t.Any) -> None:
        """Do nothing: windows move the bookmark, and the plan has its start and its limit."""

    _write_starting_replication_value = _increment_stream_state
    get_replication_key_signpost = _increment_stream_state

    def begin(self, bookmark: Bookmark) -> Sync:
        """Return what this run works on, by the bookmark of the stream."""
        settings, started = self.run.settings, self.run.started
        is_forced = self.replication_method != REPLICATION_INCREMENTAL
        known = None if is_forced else bookmark.range(now=started)
        plan = replication.make_plan(known, settings.requested, settings.lookback, started)
        if not plan.moves_bookmark:
            self.logger.warning(
                "end_date lies before what is complete: the rows are loaded and the state is "
                "left as it is"
            )
        plan.moves_bookmark = plan.moves_bookmark and not is_forced
        kept = bookmark if plan.known else Bookmark()
        return Sync(plan, Ledger(kept.fingerprints), kept.days)

    @override
    def read_rows(self) -> t.Iterator[Row]:
        if self.ABORT_AT_RECORD_COUNT is not None:  # --test
            yield from super().read_rows()
            return
        sync = self.begin(Bookmark.read(self.stream_state))
        plan = sync.plan
        ids, rows = set[str](), 0
        for window, first, _ in self.cut(plan.forward, sync):
            rows += page_of(first).rows_in_all
            sync = replace(sync, seen=(yield from self.read(window, first, sync)))
            # The first window of history overlaps these, so it lists some rows again.
            if self.ignores_dates or window.start <= plan.history.end:
                ids |= sync.seen
            plan.forward_done(window)
            self.checkpoint(sync)
        per_day = rows / plan.forward.size(self.today)
        sync = replace(sync, seen=ids, in_history=True, per_day=per_day)
        for window, first, _ in self.cut(plan.history, sync):
            sync = replace(sync, seen=(yield from self.read(window, first, sync)))
            plan.history_done(window)
            self.checkpoint(sync)

    def cut(self, days: Window, sync: Sync, rows: int | None = None) -> t.Iterator[Cut]:
        """Yield windows of one day, or with fewer than ``rows`` (ten pages) by the API's totals.

        The next window is requested while one is read. In history, raise OutOfTime at the time
        limit, but not before the bookmark has moved once.
        """
        limit = rows or PAGES_PER_WINDOW * self.run.settings.page_size
        cutter = Cutter(days, limit, self.today, newest_first=sync.in_history, per_day=sync.per_day)
        window, call, total, before = cutter.propose(), None, 0, sync.plan.complete
        try:
            while window:
                first = self.take(call or self.fetch(window.query()))
                self.check(window, first)
                rows_in_all = page_of(first).rows_in_all
                is_day = window.size(self.today) == 1
                is_same = is_day and total == rows_in_all >= limit and self._count(EARLY) == total
                total = total or rows_in_all  # of the first window, which may be all days
                if self.ignores_dates or is_same:
                    # Smaller windows do not help: each lists all rows, or has the same total.
                    rest = cutter.rest
                    yield Cut(rest, self.take(self.fetch(rest.query())), 0)
                    return
                fits, following = cutter.fits(rows_in_all), cutter.propose()
                is_late = sync.in_history and self.run.is_over(self.history_share)
                prefetches = following and not is_late
                call = self.fetch(following.query()) if prefetches else None
                if fits:
                    yield Cut(window, first, cutter.rows_left if following else 0)
                must_go_on = sync.plan.moves_bookmark and sync.plan.complete == before
                if following and is_late and not must_go_on:
                    raise OutOfTime
                window = following
        finally:
            if call is not None:
                call.cancel()

    def read(self, window: Window, first: requests.Response, sync: Sync) -> RowsAndIds:
        """Yield the rows of a window that this run emits; return the ids of all its rows."""
        ids: set[str] = set()
        for rows in self.listing(window.query(), first):
            self.check_dates(window, rows)
            ids.update(row.id for row in rows)
            yield from self.rows_to_emit(rows, window, sync)
        return ids

    def rows_to_emit(self, rows: list[Row], window: Window, sync: Sync) -> list[Row]:  # noqa: ARG002 - Sessions needs it
        """Return the rows of a page that are requested and were not emitted before."""
        requested, instants = self.run.settings.requested, map(self.instant_of, rows)
        if not sync.plan.known and requested == replication.Span():  # no instant matters
            return [row for row in rows if row.id not in sync.seen]
        return [
            row
            for row, instant in zip(rows, instants, strict=True)
            if requested.holds(instant) and not self.was_emitted(row, instant, sync)
        ]

    def kept_from(self, complete: replication.Span | None) -> date:
        """Return the first day that the next lookback can query, less a day for time zones."""
        if complete is None:
            return date.min
        return (complete.end - self.run.settings.lookback).date() - 2 * DAY

    @override
    def log_sync_costs(self) -> None:
        if 0 < self.counts.rows <= self.counts.misfits[self.instant_column]:
            self.logger.warning(
                f"{self.name}: no {self.instant_column} can be read, so it cannot be incremental: "
                "all rows are loaded in each run"
            )
        super().log_sync_costs()

    def checkpoint(self, sync: Sync) -> None:
        """Write a STATE with the complete range; its rows have been written before."""
        state: dict[str, t.Any] = {}
        if sync.plan.moves_bookmark:
            complete = sync.plan.complete
            state = {"replication_key": self.instant_column, **self.more_state(sync)}
            state |= complete.write("replication_key_value") if complete else {}
        self.save(state)

    def more_state(self, sync: Sync) -> dict[str, t.Any]:  # noqa: ARG002 - subclasses need it
        """Return what else the stream keeps in its bookmark, besides the complete range."""
        return {}
