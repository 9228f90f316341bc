"""A stream that is read window by window and remembers what is complete."""

from __future__ import annotations

import abc
import itertools
import typing as t
from functools import cached_property

from singer_sdk.singerlib.catalog import REPLICATION_INCREMENTAL
from typing_extensions import override

from tap_bugspulse.client import BugsPulseStream
from tap_bugspulse.columns import sent
from tap_bugspulse.replication import (
    Cutter,
    Marks,
    Plan,
    Sample,
    Window,
    make_plan,
    parse_instant,
    read_stretch,
    write_stretch,
)
from tap_bugspulse.run import OutOfTime

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import date, datetime

    from tap_bugspulse.client import Asked
    from tap_bugspulse.columns import Row
    from tap_bugspulse.paging import Page
    from tap_bugspulse.replication import Stretch
    from tap_bugspulse.tap import TapBugsPulse

PAGES_PER_WINDOW = 20
MARK = "replication_key_value"


class IncrementalStream(BugsPulseStream):
    """Reads forward first, then history newest first, and moves its marks itself."""

    instant_column: t.ClassVar[str]
    plan: Plan
    marks: Marks
    box_share = 1.0  # part of the time box that history may use

    def __init__(self, tap: TapBugsPulse) -> None:
        """Set up what one run knows of the stream's marks."""
        super().__init__(tap)
        self.near: set[str] = set()  # ids met in the window read before this one
        self.in_history = False
        self._has_gone_back = False  # whether this run has brought history forward
        self._asked: dict[Window, Asked] = {}  # listings asked ahead and not read yet
        self.rows_ahead = 0  # beyond the window that was cut last, by the API's totals

    @cached_property
    def today(self) -> date:
        """The day the run started on."""
        return self.tap.run.started.date()

    @cached_property
    def ignores_state(self) -> bool:
        """Whether the catalog forces all rows to be read in this run."""
        return self.replication_method != REPLICATION_INCREMENTAL

    # The SDK moves a bookmark with every record and promotes it when the stream ends,
    # over whatever a stopped or a backward reading has left out.
    @override
    def _increment_stream_state(self, *args: t.Any, **kwargs: t.Any) -> None:
        """Leave the marks to the windows."""

    @override
    def _write_starting_replication_value(self, context: t.Any) -> None:
        """Write none: the plan has its own, and the SDK fails on a mark that is no date."""

    @override
    def get_replication_key_signpost(self, context: t.Any = None) -> None:
        """Give none: the marks never pass the start of the run anyway."""

    # --- One run ---------------------------------------------------------------------

    @override
    def get_records(self, context: t.Any) -> Iterator[Row]:
        if self.ABORT_AT_RECORD_COUNT is not None:  # --test
            yield from itertools.islice(self.rows({}), self.ABORT_AT_RECORD_COUNT)
            return
        self.begin()
        try:
            yield from self._read_forward()
            yield from self._read_history()
        except OutOfTime:
            self.logger.info("%s: time is up, the next run goes on", self.name)
        finally:
            while self._asked:
                self.forget(self._asked.popitem()[1])
        if self.marks.stretch is not None:
            marks = write_stretch(self.marks.stretch, MARK)
            self.logger.info(
                "%s: complete from %s to %s", self.name, marks["complete_from"], marks[MARK]
            )

    def begin(self) -> None:
        """Read the state and plan the run."""
        run, need = self.tap.run, self.tap.need
        if self.ignores_state:
            self.plan = Plan(None, need, moves_marks=False)
        else:
            stretch, wrong = read_stretch(
                self.stream_state, MARK, run.started, self.tap.settings.lookback
            )
            if wrong:
                self.logger.warning(
                    "%s: the state is damaged (%s): reading history again",
                    self.name,
                    wrong,
                )
            self.plan = make_plan(stretch, need, self.tap.settings.lookback, run.started)
            if not self.plan.moves_marks:
                self.logger.warning(
                    "%s: end_date lies before what is complete: the rows are loaded "
                    "and the state is left as it is",
                    self.name,
                )
        self.marks = Marks(self.plan, need, run.started)

    def _read_forward(self) -> Iterator[Row]:
        started = self.tap.run.started
        days, past = self.plan.forward_days(started), self.plan.history_days(started)
        touched: set[str] = set()
        for window, pages in self.forward_windows(days) if days else ():
            yield from self._read(window, pages)
            if past and past.end and (window.start is None or window.start <= past.end):
                touched |= self.near
            self.marks.forward_done(window)
            self.checkpoint()
        # History begins where these windows end, or overlaps them.
        self.near = touched
        self.in_history = True

    def _read_history(self) -> Iterator[Row]:
        days = self.plan.history_days(self.tap.run.started)
        for window, pages in self.history_windows(days) if days else ():
            before = self.marks.stretch
            yield from self._read(window, pages)
            self.marks.history_done(window)
            self.went_back(before, self.marks)
            self.checkpoint()

    def went_back(self, before: Stretch | None, now: Marks) -> None:
        """Note whether a window of history has moved its mark; from then on time counts."""
        self._has_gone_back |= not (now.moves and now.stretch and now.stretch == before)

    def _read(self, window: Window, pages: Iterator[Page]) -> Iterator[Row]:
        not_needed: set[str] = set()
        need, marks = self.tap.need, self.marks
        for row in self.rows(window.query(), pages):
            instant = parse_instant(row[self.instant_column])
            if not need.holds(instant):
                not_needed.add(row["id"])
                continue
            marks.saw(instant)
            if self.is_news(row, instant, window):
                yield row
        self.near = self.known - not_needed if not_needed else self.known

    @override
    def may_move_up(self, head: list[t.Any]) -> bool:
        # With the newest first, what retention deletes is at the end.
        instants = [sent(raw, self.instant_column) for raw in head]
        known = [instant for instant in map(parse_instant, instants) if instant]
        return known != sorted(known, reverse=True)

    @abc.abstractmethod
    def is_news(self, row: Row, instant: datetime | None, window: Window) -> bool:
        """Tell whether a row of a window is new or changed, so that it is to be emitted."""

    def was_met(self, row: Row, instant: datetime | None) -> bool:
        """Tell whether a row came in the window before, or before history overlaps."""
        return row["id"] in self.near or (self.in_history and self.plan.was_read(instant))

    def forward_windows(self, days: Window) -> Iterator[tuple[Window, Iterator[Page]]]:
        """Cut the forward part into windows, oldest first."""
        self.ask_for_first(days, newest_first=False)
        history = self.plan.history_days(self.tap.run.started)
        if history:
            self.ask_for_first(history, newest_first=True)
        return self.cut(days, newest_first=False)

    def history_windows(self, days: Window) -> Iterator[tuple[Window, Iterator[Page]]]:
        """Cut history into windows, newest first, as long as there is time."""
        return self.cut(days, newest_first=True)

    # --- Windows -----------------------------------------------------------------------

    def ask_for(
        self, window: Window, is_wanted: Callable[[Page], bool] | None = None
    ) -> None:
        """Ask ahead for a window's first page and, if that tells to, for those after it."""

        def look(first: Page) -> bool:
            self.has_come(window, first)
            return is_wanted is not None and is_wanted(first)

        if window not in self._asked:
            self._asked[window] = self.ask_for_listing(window.query(), look)

    def ask_for_first(
        self, days: Window, *, newest_first: bool, sample: Sample | None = None
    ) -> None:
        """Ask ahead for the first page of what will be cut from days first.

        Not for more: while others are read, its pages would take the room of theirs.
        """
        window = self._cutter(days, newest_first=newest_first, sample=sample).propose()
        if window:
            self.ask_for(window)

    def has_come(self, window: Window, first: Page) -> None:
        """Take note of the first page of a window, as soon as it has come."""

    def _cutter(
        self,
        days: Window,
        *,
        newest_first: bool,
        rows: int | None = None,
        sample: Sample | None = None,
    ) -> Cutter:
        rows = rows or PAGES_PER_WINDOW * self.tap.settings.page_size
        return Cutter(days, rows, self.today, newest_first=newest_first, sample=sample)

    def cut(
        self,
        days: Window,
        *,
        newest_first: bool,
        rows: int | None = None,
        sample: Sample | None = None,
        ahead: bool = True,
    ) -> Iterator[tuple[Window, Iterator[Page]]]:
        """Cut days into windows of about 20 pages, by the totals the API names.

        Time is looked at before a window of history is asked for: stopping inside of one
        would throw away its pages, and a small time box might never get past it. For the
        same reason windows are read, however late it is, until one has moved the mark: the
        first may be no more than a day that is complete already.

        Args:
            days: What is to be cut.
            newest_first: Whether this is history.
            rows: Rows of a window, if not those of 20 pages.
            sample: What is known of how dense the rows are.
            ahead: Whether a window is asked for while the one before is read.

        Yields:
            Each window with its pages, the first of which has been asked for.
        """
        cutter = self._cutter(days, newest_first=newest_first, rows=rows, sample=sample)
        run = self.tap.run
        while window := cutter.propose():
            # What is on its way is taken.
            if newest_first and self._has_gone_back and self._is_given_up(window):
                run.check_time(self.box_share)
            pages = self.request_pages(window.query(), self._asked.pop(window, None))
            first = next(pages)
            self.has_come(window, first)
            if cutter.fits(first.total):
                self.rows_ahead = max(0, cutter.rows_left) if cutter.rest else 0
                # What follows is known, whatever the rows of this one are.
                following = cutter.propose() if ahead else None
                if following and not (newest_first and run.is_over(self.box_share)):
                    self.ask_for(following, lambda page: cutter.would_fit(page.total))
                yield window, itertools.chain([first], pages)

    def _is_given_up(self, window: Window) -> bool:
        """Tell whether a window is not on its way, or not any more, for lack of time."""
        asked = self._asked.get(window)
        return self.tap.run.is_over(self.box_share) and not (
            asked and not self.tap.session.take_back(asked[0])
        )

    def checkpoint(self) -> None:
        """Write the marks into the state and send it; all rows before it are out."""
        if self.marks.moves:
            stretch = self.marks.stretch  # None: all rows so far lie in the future
            # In one step: a signal may write the state at any moment.
            self.stream_state.update(
                {
                    "replication_key": self.instant_column,
                    **(write_stretch(stretch, MARK) if stretch else {}),
                    **self.tap.state_of_project(),
                    **self.more_state(),
                }
            )
        self.tap.state_writer.write_state(self.tap_state)

    def more_state(self) -> dict[str, t.Any]:
        """Give what the stream keeps in its bookmark beside its marks."""
        return {}
