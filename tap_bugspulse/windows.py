"""A stream that is read in windows, each of which moves its bookmark."""

import typing as t
from dataclasses import dataclass, field, replace
from datetime import date, datetime

import requests
from singer_sdk import Tap
from singer_sdk.singerlib.catalog import REPLICATION_INCREMENTAL
from typing_extensions import override

from tap_bugspulse import replication
from tap_bugspulse.client import FAR, BugsPulseStream
from tap_bugspulse.http import RefusedError
from tap_bugspulse.pages import Row, page_of
from tap_bugspulse.replication import DAY, Bookmark, Ledger, Plan, Window
from tap_bugspulse.run import OutOfTime, Run

EARLY = date(1901, 1, 1)  # a day that no clock is set to, as FAR is
SAMPLE = 20  # rows of a page whose dates are looked at
PAGES_PER_WINDOW = 10  # an API may count and page no further than 10,000 rows
RowsAndIds = t.Generator[Row, None, set[str]]  # what is emitted, and the ids of all that came


class Cut(t.NamedTuple):
    """A window to be read: its first page has come, ``rows_left`` lie beyond it."""

    window: Window
    first: requests.Response
    rows_left: int


@dataclass(frozen=True)
class Sync:
    """What one run of a stream works on."""

    plan: Plan
    ledger: Ledger = field(default_factory=Ledger)  # of its bookmark, as are the days
    days: dict[date, replication.DayReading] = field(default_factory=dict)
    ids: frozenset[str] | set[str] = frozenset()  # that came in the window before
    in_history: bool = False
    per_day: float = 0.0  # rows of the days before, as far as is known


class WindowedStream(BugsPulseStream):
    """Reads forward first, then history newest first, and moves its bookmark itself."""

    history_share = 1.0  # part of the time limit that history may use

    def __init__(self, tap: Tap, run: Run) -> None:
        super().__init__(tap, run)
        self.today = run.started.date()
        self.ignores_dates = False  # so that each listing has all rows
        self._needs_end = False  # or a ``from`` alone is ignored
        self._knows_dates = False

    def query_of(self, window: Window) -> dict[str, str]:
        """Return the query parameters that ask for a window."""
        is_open = self._needs_end and window.end == date.max
        return (replace(window, end=FAR) if is_open else window).query()

    def was_emitted(self, row: Row, instant: datetime | None, sync: Sync) -> bool:
        """Return whether a row came in the window before, or in a run before this one."""
        is_known = self.ignores_dates and sync.plan.is_before_lookback(instant)
        return row.id in sync.ids or is_known or (sync.in_history and sync.plan.was_read(instant))

    def checked(self, window: Window, first: requests.Response) -> requests.Response:
        """Return the first page of a window, asked for anew where its dates were ignored."""
        page, full = page_of(first), PAGES_PER_WINDOW * self.run.settings.page_size
        if page.rows_in_all and page.rows_in_all % full == 0 and window.size(self.today) == 1:
            self.run.warn_once(
                f"{self.name}: the API counts exactly {page.rows_in_all:,} rows on {window.start}: "
                "there may be more that it neither counts nor sends"
            )
        is_news = self.check_dates(window, page.rows)
        return self.take(self.fetch(self.query_of(window))) if is_news else first

    def check_dates(self, window: Window, rows: list[Row]) -> bool:
        """Return whether rows of a window show, for the first time, that dates are ignored.

        Most of them lie outside of it; that a day in which nothing can have happened has rows
        proves it. Where none has, an open window is asked for with an end from then on.
        """
        some = [] if self._knows_dates else rows[:: len(rows) // SAMPLE + 1]
        instants = map(self.instant_of, some)
        outside = sum(1 for one in instants if one and not window.wider().holds(one.date()))
        if 2 * outside <= len(some):
            return False
        self._knows_dates = True
        self.ignores_dates = self._count(EARLY) + self._count(FAR) > 0
        self._needs_end = not self.ignores_dates and window.end == date.max
        if self.ignores_dates:
            self.run.warn_once(
                f"{self.name}: the API ignores from or to: all rows are listed in each run, and "
                "those before the lookback are left out"
            )
        return self.ignores_dates or self._needs_end

    def _count(self, day: date) -> int:
        """Return the number of rows that the API counts on a day in which there can be none."""
        try:
            return page_of(self.take(self.fetch(Window(day, day + DAY).query()))).rows_in_all
        except RefusedError:
            return 0

    # The SDK moves a bookmark with every record and promotes it when the stream ends, over
    # whatever a stopped or a backward reading has left out.
    @override
    def _increment_stream_state(self, *args: t.Any, **kwargs: t.Any) -> None:
        """Leave the bookmark to the windows, what it begins with and its limit to the plan."""

    _write_starting_replication_value = _increment_stream_state
    get_replication_key_signpost = _increment_stream_state

    def begin(self, bookmark: Bookmark) -> Sync:
        """Return the plan of this run, by the stream's bookmark."""
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
            sync = replace(sync, ids=(yield from self.read(window, first, sync)))
            # Where history ends, it overlaps windows of the forward part.
            if self.ignores_dates or window.start <= plan.history.end:
                ids |= sync.ids
            plan.forward_done(window)
            self.checkpoint(sync)
        per_day = rows / plan.forward.size(self.today)
        sync = replace(sync, ids=ids, in_history=True, per_day=per_day)
        for window, first, _ in self.cut(plan.history, sync):
            sync = replace(sync, ids=(yield from self.read(window, first, sync)))
            plan.history_done(window)
            self.checkpoint(sync)

    def cut(self, days: Window, sync: Sync, rows: int | None = None) -> t.Iterator[Cut]:
        """Yield windows of some days, of ten pages or ``rows``, by the totals of the API.

        The next one is asked for while one is read. Raises OutOfTime at the time limit, which
        counts in history; however late it is, a run moves the bookmark.
        """
        limit = rows or PAGES_PER_WINDOW * self.run.settings.page_size
        way, per_day = sync.in_history, sync.per_day
        cutter = replication.Cutter(days, limit, self.today, newest_first=way, per_day=per_day)
        window, call, whole, before = cutter.propose(), None, 0, sync.plan.complete
        try:
            while window:
                first = self.take(call or self.fetch(self.query_of(window)))
                first = self.checked(window, first)
                rows_in_all = page_of(first).rows_in_all
                whole = whole or rows_in_all
                is_day = window != days and window.size(self.today) == 1
                is_same = is_day and whole == rows_in_all >= limit and self._count(EARLY) == whole
                rest = cutter.rest
                if rest and (self.ignores_dates or is_same):
                    # Nothing is gained by other windows: each has all rows, or their number.
                    yield Cut(rest, self.take(self.fetch(self.query_of(rest))), 0)
                    return
                fits, following = cutter.fits(rows_in_all), cutter.propose()
                is_late = sync.in_history and self.run.is_over(self.history_share)
                ahead = None if is_late else following
                call = self.fetch(self.query_of(ahead)) if ahead else None
                if fits:
                    yield Cut(window, first, cutter.rows_left if following else 0)
                stays = sync.plan.moves_bookmark and sync.plan.complete == before
                if following and is_late and not stays:
                    raise OutOfTime
                window = following
        finally:
            if call is not None:
                call.cancel()

    def read(self, window: Window, first: requests.Response, sync: Sync) -> RowsAndIds:
        """Yield the rows of a window that are to be emitted; return the ids of all."""
        ids: set[str] = set()
        for rows in self.listing(self.query_of(window), first):
            if self.check_dates(window, rows) and self._needs_end:
                first = self.take(self.fetch(self.query_of(window)))
                sync = replace(sync, ids={*sync.ids, *ids})
                return ids | (yield from self.read(window, first, sync))
            ids.update(row.id for row in rows)
            yield from self.news(rows, window, sync)
        return ids

    def news(self, rows: list[Row], window: Window, sync: Sync) -> list[Row]:  # noqa: ARG002 - sessions look
        """Return the rows of a page of a window that are requested and not emitted yet."""
        requested, instants = self.run.settings.requested, map(self.instant_of, rows)
        if not sync.plan.known and requested == replication.Span():  # no instant matters
            return [row for row in rows if row.id not in sync.ids]
        return [
            row
            for row, instant in zip(rows, instants, strict=True)
            if requested.holds(instant) and not self.was_emitted(row, instant, sync)
        ]

    def kept_from(self, complete: replication.Span | None) -> date:
        """Return the first day that a lookback may ask for, and a day for time zones."""
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
        """Write what is complete into the state and send it; all rows before it are out."""
        state: dict[str, t.Any] = {}
        if sync.plan.moves_bookmark:
            complete = sync.plan.complete
            state = {"replication_key": self.instant_column, **self.more_state(sync)}
            state |= complete.write("replication_key_value") if complete else {}
        self.save(state)

    def more_state(self, sync: Sync) -> dict[str, t.Any]:  # noqa: ARG002 - streams look
        """Return what the stream keeps in its bookmark beside what is complete."""
        return {}
