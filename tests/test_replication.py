"""The rules of replication, property by property, without a server."""

from __future__ import annotations

import itertools
import time
import typing as t
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tap_bugspulse.replication import (
    BEGINNING,
    DAY,
    NOTHING,
    Cutter,
    DayReading,
    Entry,
    Ledger,
    Marks,
    Plan,
    Sample,
    Span,
    Stretch,
    Window,
    asked_for,
    candidate,
    clean_state,
    fingerprint,
    format_instant,
    has_events,
    is_wanted,
    make_plan,
    midnight,
    parse_instant,
    read_stretch,
    split,
    wider,
    write_stretch,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TODAY = NOW.date()
instants = st.integers(0, 60 * 86_400).map(lambda second: NOW - timedelta(seconds=second))
days = st.integers(-60, 3).map(lambda day: TODAY + day * DAY)
spans = st.tuples(st.none() | instants, st.none() | instants).filter(
    lambda pair: pair[0] is None or pair[1] is None or pair[0] < pair[1]
)
lookbacks = st.integers(0, 12).map(lambda count: timedelta(days=count))
# Whatever a state file may hold.
junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from((BEGINNING, "2026-02-01", "2026-02-01T00:00:00Z", "2999-01-01")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("complete_from", "ledger", "days", "2026-02-01", "x")), inner
        )
    ),
    max_leaves=8,
)


# --- Instants ------------------------------------------------------------------------


def test_reading_single_days_again_leaves_the_beginning_alone() -> None:
    """A stretch from the beginning stays one when a bounded window is read afterwards."""
    whole = Stretch(None, NOW)
    marks = Marks(make_plan(whole, Span(), DAY, NOW), Span(), NOW)
    marks.history_done(Window(TODAY - 3 * DAY, TODAY - 2 * DAY))
    assert marks.stretch == whole


@given(instants, st.integers(0, 999_999))
def test_an_instant_is_written_as_it_was_read(instant: datetime, micro: int) -> None:
    """Marks lose no part of a second."""
    exact = instant.replace(microsecond=micro)
    assert parse_instant(format_instant(exact)) == exact


@pytest.mark.parametrize(
    ("written", "instant"),
    [
        ("2026-01-15", datetime(2026, 1, 15, tzinfo=UTC)),
        ("2026-01-15T10:00:00", datetime(2026, 1, 15, 10, tzinfo=UTC)),
        ("2026-01-15T10:00:00+02:00", datetime(2026, 1, 15, 8, tzinfo=UTC)),
        ("1900-01-01", datetime(1900, 1, 1, tzinfo=UTC)),
        ("8999-12-31", datetime(8999, 12, 31, tzinfo=UTC)),
        *((text, None) for text in ("1899-12-31", "9000-01-01", "x", "", 5, None)),
        ("0001-01-01T00:00:00+14:00", None),
    ],
)
def test_an_instant_is_read_in_utc_or_not_at_all(
    written: object, instant: datetime | None
) -> None:
    """Without an offset it is UTC; a clock that was never set gives no instant."""
    found = parse_instant(written)
    assert found == instant
    assert found is None or found.tzinfo is UTC


def test_an_instant_is_read_alike_on_every_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the machine's own time is another, no offset still means UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "EST5")
        time.tzset()
        found = parse_instant("2026-01-15T10:00:00")
    time.tzset()
    assert found == datetime(2026, 1, 15, 10, tzinfo=UTC)


def test_an_instant_is_written_as_the_api_does() -> None:
    """With milliseconds, with microseconds where there are any, and a Z."""
    assert format_instant(NOW) == "2026-03-01T12:00:00.000Z"
    assert format_instant(NOW.replace(microsecond=5000)) == "2026-03-01T12:00:00.005Z"
    assert format_instant(NOW.replace(microsecond=5001)) == "2026-03-01T12:00:00.005001Z"


def test_a_span_has_its_start_and_not_its_end() -> None:
    """Whatever has no instant is held; so is all on a side without a bound."""
    hour = timedelta(hours=1)
    span = Span(NOW - hour, NOW)
    assert [span.holds(NOW + n * hour) for n in (-2, -1, 0, 1)] == [
        False,
        True,
        False,
        False,
    ]
    assert span.holds(None)
    assert Span(None, NOW).holds(NOW - 900 * DAY)
    assert Span(NOW, None).holds(NOW + 900 * DAY)


# --- Windows -------------------------------------------------------------------------


def test_a_window_asks_for_its_bounds() -> None:
    """A bound becomes a query parameter, and one that is missing does not."""
    day = date(2026, 2, 1)
    assert Window(day, TODAY).query() == {"from": "2026-02-01", "to": "2026-03-01"}
    assert Window(day, None).query() == {"from": "2026-02-01"}
    assert Window(None, day).query() == {"to": "2026-02-01"}
    assert Window(None, None).query() == {}


def test_a_row_is_filed_under_its_day_or_the_last_of_the_window() -> None:
    """Outside of the window, or without an instant, it is the last; today, if open."""
    week = Window(TODAY - 7 * DAY, TODAY)
    assert week.day_of(NOW - 3 * DAY, TODAY) == TODAY - 3 * DAY
    for instant in (None, NOW, NOW - 8 * DAY):
        assert week.day_of(instant, TODAY) == TODAY - DAY
    assert Window(TODAY - DAY, None).day_of(None, TODAY) == TODAY
    assert Window(None, None).day_of(None, TODAY) == TODAY
    assert Window(TODAY + DAY, None).day_of(None, TODAY) == TODAY + DAY


def test_no_more_days_are_asked_for_than_time_zones_need() -> None:
    """A day on each side, and no end where the window reaches the run's start."""
    noon, day = NOW - 5 * DAY, TODAY - 5 * DAY
    assert asked_for(Span(noon, None), NOW) == Window(day - DAY, None)
    assert asked_for(Span(None, noon), NOW) == Window(None, day + 2 * DAY)
    assert asked_for(Span(None, midnight(day)), NOW) == Window(None, day + DAY)
    assert asked_for(Span(None, NOW), NOW) == Window(None, TODAY + 2 * DAY)
    assert asked_for(Span(None, NOW + timedelta(seconds=1)), NOW) == Window(None, None)


def cut(
    cutter: Cutter, count: t.Callable[[Window], int]
) -> tuple[list[tuple[Window, int]], int]:
    """Give the windows that were cut with their rows, and the number of requests."""
    windows, requests = [], 0
    while window := cutter.propose():
        requests += 1
        assert requests < 1000
        assert not (window.start and window.end) or window.start < window.end
        total = count(window)
        if cutter.fits(total):
            windows.append((window, total))
    assert cutter.fits(0) is False
    return windows, requests


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("a_day", [1, 9, 40, 400, 4000])
def test_even_days_are_cut_with_few_requests(a_day: int, *, newest_first: bool) -> None:
    """Windows are nearly full, and hardly a request asks for one that is too large.

    A day that is too large by itself is a window of its own.
    """
    asked = Window(TODAY - 400 * DAY, TODAY)

    def count(window: Window) -> int:
        assert window.start is not None
        assert window.end is not None
        return (window.end - window.start).days * a_day

    cutter = Cutter(asked, 1000, TODAY, newest_first=newest_first)
    windows, requests = cut(cutter, count)
    assert max(total for _, total in windows) <= max(1500, a_day)
    floor = min(400, -(-400 * a_day // 1000))
    assert len(windows) <= 1.3 * floor + 3
    assert requests <= len(windows) + 4


def test_what_fits_is_one_window() -> None:
    """Half as many rows again as a window aims at need no second one; nor does a day."""
    asked = Window(None, None)
    windows, requests = cut(Cutter(asked, 10, TODAY, newest_first=True), lambda _: 15)
    assert (windows, requests) == ([(asked, 15)], 1)
    assert not Cutter(asked, 10, TODAY, newest_first=True).fits(16)
    two = Cutter(Window(TODAY - 2 * DAY, TODAY), 10, TODAY, newest_first=True)
    assert two.fits(16) is False
    assert two.propose() == Window(TODAY - DAY, TODAY)
    cutter = Cutter(Window(TODAY, None), 10, TODAY, newest_first=False)
    assert cut(cutter, lambda _: 99) == ([(Window(TODAY, None), 99)], 1)
    assert cutter.rest is None
    future = Window(TODAY + 9 * DAY, None)
    assert cut(Cutter(future, 10, TODAY, newest_first=False), lambda _: 99) == (
        [(future, 99)],
        1,
    )


def test_nothing_is_proposed_of_no_days() -> None:
    """Days that end where they begin are none."""
    for newest_first in (True, False):
        cutter = Cutter(Window(TODAY, TODAY), 10, TODAY, newest_first=newest_first)
        assert cutter.propose() is None


@pytest.mark.parametrize(
    ("rows", "total", "size"),
    [
        *((100, *pair) for pair in ((0, 24), (22, 24), (23, 23), (49, 11), (50, 10))),
        *((2, *pair) for pair in ((0, 10), (1, 10), (2, 5))),
    ],
)
def test_a_window_is_sized_by_the_one_before(rows: int, total: int, size: int) -> None:
    """It aims at nine tenths of what it may have, and grows fourfold at most."""
    newest = Cutter(Window(TODAY - 90 * DAY, TODAY), rows, TODAY, newest_first=True)
    oldest = Cutter(Window(TODAY, TODAY + 90 * DAY), rows, TODAY, newest_first=False)
    for cutter in (newest, oldest):
        assert not cutter.fits(rows * 27 // 2)
        assert cutter.propose() in {
            Window(TODAY - 6 * DAY, TODAY),
            Window(TODAY, TODAY + 6 * DAY),
        }
        assert cutter.fits(total)
    assert newest.propose() == Window(TODAY - (6 + size) * DAY, TODAY - 6 * DAY)
    assert oldest.propose() == Window(TODAY + 6 * DAY, TODAY + (6 + size) * DAY)


def test_what_reaches_now_stays_open() -> None:
    """A last window of just the days that are left has no end either."""
    cutter = Cutter(Window(TODAY - 2 * DAY, None), 10, TODAY, newest_first=False)
    assert not cutter.fits(20)
    assert cutter.propose() == Window(TODAY - 2 * DAY, TODAY - DAY)
    assert cutter.fits(4)
    assert cutter.propose() == Window(TODAY - DAY, None)


@pytest.mark.parametrize(
    "end", [TODAY, date(1970, 1, 3), date(1970, 1, 2), date(1960, 1, 1)]
)
def test_the_beginning_of_time_is_reached_where_rows_lie_before_it(end: date) -> None:
    """Rows of clocks that were never set come in one window, which ends in 1970."""

    def count(window: Window) -> int:
        return 50 if window.start is None else 0

    windows, requests = cut(Cutter(Window(None, end), 10, TODAY, newest_first=True), count)
    assert windows[-1] == (Window(None, min(end, date(1970, 1, 2))), 50)
    assert requests < 20


def test_without_a_beginning_the_newest_month_is_tried_first() -> None:
    """How many rows there are in all tells nothing of how dense they are."""
    for end in (TODAY, None):
        cutter = Cutter(Window(None, end), 10, TODAY, newest_first=True)
        assert not cutter.fits(10_000)
        last = end or TODAY + DAY
        assert cutter.propose() == Window(last - 30 * DAY, end)
        assert not cutter.fits(1000)
        assert cutter.propose() == Window(last - DAY, end)


@pytest.mark.parametrize("start", [None, TODAY - 400 * DAY])
def test_dense_rows_are_cut_before_all_are_counted(start: date | None) -> None:
    """Days like those beside them fill a window at once; then all that is left is tried."""
    asked = Window(start, TODAY)

    def cutter() -> Cutter:
        return Cutter(asked, 1000, TODAY, newest_first=True, sample=Sample(180, 9))

    def count(window: Window) -> int:
        days = ((window.end or TODAY) - window.start).days if window.start else 5
        return 20 * days

    windows, requests = cut(cutter(), count)
    assert windows[0] == (Window(TODAY - 45 * DAY, TODAY), 900)
    assert requests == (2 if start is None else len(windows) + 1)
    one = cutter()
    assert not one.fits(1501)
    # Denser than those beside them: less is tried, and not all before that fits.
    assert one.propose() == Window(TODAY - 26 * DAY, TODAY)
    assert one.fits(900)
    assert one.propose() == Window(start, TODAY - 26 * DAY)
    assert one.rows_left <= 0


@pytest.mark.parametrize(
    ("sample", "first"),
    [
        (None, None),
        (Sample(0, 9), None),
        (Sample(90, 9), Window(TODAY - 90 * DAY, TODAY)),
        (Sample(89, 9), None),
        (Sample(1, 9), None),
        (Sample(10**400, 9), Window(TODAY - DAY, TODAY)),
    ],
)
def test_where_rows_are_few_all_are_asked_for_first(
    sample: Sample | None, first: Window | None
) -> None:
    """All are one request then, as also where nothing is known of days beside."""
    asked = Window(None, TODAY)
    cutter = Cutter(asked, 1000, TODAY, newest_first=True, sample=sample)
    assert cutter.propose() == (first or asked)
    if first is None:
        # Should they be too many after all, a few rows tell nothing of how dense they are.
        assert not cutter.fits(2000)
        assert cutter.propose() == Window(TODAY - 30 * DAY, TODAY)


def test_the_rows_that_are_left_are_known_once_all_were_counted() -> None:
    """What does not fit whole is counted, and each window takes its rows off."""
    cutter = Cutter(Window(TODAY - 60 * DAY, TODAY), 10, TODAY, newest_first=True)
    assert not cutter.fits(30)
    assert cutter.rows_left == 30
    assert cutter.propose() == Window(TODAY - 18 * DAY, TODAY)
    is_open = Cutter(Window(TODAY - 59 * DAY, None), 10, TODAY, newest_first=True)
    assert not is_open.fits(30)
    assert is_open.propose() == Window(TODAY - 17 * DAY, None)
    assert not cutter.fits(16)
    assert cutter.rows_left == 30  # a part that is too large tells nothing of the rest
    assert cutter.propose() == Window(TODAY - 10 * DAY, TODAY)
    assert cutter.fits(9)
    assert cutter.rows_left == 21


@pytest.mark.parametrize(("total", "is_whole"), [(24, True), (25, False)])
def test_what_is_left_is_one_window_as_soon_as_it_fits(
    total: int, *, is_whole: bool
) -> None:
    """Fifteen rows that are left of all are taken at once where ten are aimed at."""
    cutter = Cutter(Window(TODAY - 60 * DAY, TODAY), 10, TODAY, newest_first=True)
    assert not cutter.fits(total)
    assert cutter.fits(9)
    assert cutter.rest is not None
    assert (cutter.propose() == cutter.rest) is is_whole


@given(
    rows=st.lists(days, max_size=60),
    limit=st.integers(1, 20),
    newest_first=st.booleans(),
    asked=st.builds(Window, st.none() | days, st.none() | days),
    sample=st.none() | st.builds(Sample, st.integers(0, 99), st.integers(1, 9)),
)
def test_windows_cover_all_days_once_and_in_order(
    rows: list[date],
    limit: int,
    asked: Window,
    sample: Sample | None,
    *,
    newest_first: bool,
) -> None:
    """What is cut off follows on what was cut before, until nothing is left."""
    start, end = asked.start, asked.end
    assume(start is None or end is None or start < end)
    assume(newest_first or start is not None)
    cutter = Cutter(asked, limit, TODAY, newest_first=newest_first, sample=sample)
    windows: list[Window] = []
    proposals = 0
    while window := cutter.propose():
        proposals += 1
        assert proposals < 400
        assert start is None or (window.start is not None and window.start >= start)
        total = sum(window.holds(day) for day in rows)
        if cutter.fits(total):
            windows.append(window)
            one_day = window.start and (window.end or TODAY + DAY) - window.start <= DAY
            assert total <= 1.5 * limit or one_day or window.start is None
    if start is not None and end is None and start > TODAY + DAY:
        return  # an open window of the future is one window
    if not newest_first:
        windows.reverse()
    assert windows[0].end == asked.end
    assert windows[-1].start == asked.start
    assert all(new.start == old.end for new, old in itertools.pairwise(windows))


@given(spans, st.sampled_from((-12, -5, 0, 5.5, 14)), st.floats(-3, 3))
def test_what_is_asked_for_covers_a_span_in_every_time_zone(
    span: tuple[datetime | None, datetime | None], offset: float, away: float
) -> None:
    """An instant of the span lies in the days asked for, whatever zone they mean."""
    wanted = Span(*span)
    window = asked_for(wanted, NOW)
    for edge in span:
        instant = (edge or NOW) + timedelta(days=away)
        if instant <= NOW and wanted.holds(instant):
            assert window.holds((instant + timedelta(hours=offset)).date())


@given(
    st.none() | days,
    st.none() | days,
    st.lists(st.tuples(st.none() | days, st.none() | days), max_size=4),
)
@example(TODAY, TODAY + DAY, [(TODAY - DAY, TODAY)])
def test_splitting_keeps_every_day(
    start: date | None,
    end: date | None,
    edges: list[tuple[date | None, date | None]],
) -> None:
    """The pieces, newest first, are known and not known by turns, and say so truly."""
    assume(start is None or end is None or start < end)
    asked = Window(start, end)
    known = [Window(*pair) for pair in edges if None in pair or pair[0] < pair[1]]  # type: ignore[operator]  # no None is left
    pieces = split(asked, known)
    assert pieces[0][0].end == asked.end
    assert pieces[-1][0].start == asked.start
    for (new, new_is_known), (old, old_is_known) in itertools.pairwise(pieces):
        assert new.start == old.end
        assert new_is_known != old_is_known
    around = [TODAY + n * DAY for n in range(-62, 6)]
    for day in around:
        said = [is_known for piece, is_known in pieces if piece.holds(day)]
        is_known = any(window.holds(day) for window in known)
        assert said == ([is_known] if asked.holds(day) else [])
    assert all(any(map(piece.holds, around)) for piece, _ in pieces)


# --- Plans and marks -----------------------------------------------------------------


WEEK = 7 * DAY
MIDNIGHT = midnight(TODAY)


@pytest.mark.parametrize(
    ("stretch", "need", "plan"),
    [
        # Nothing is complete: today and the lookback first, then history.
        (None, Span(), Plan(Span(MIDNIGHT - WEEK), Span(None, MIDNIGHT - WEEK))),
        (None, Span(MIDNIGHT - WEEK), Plan(Span(MIDNIGHT - WEEK), None)),
        (
            None,
            Span(NOW - 30 * DAY, NOW - 20 * DAY),
            Plan(
                Span(MIDNIGHT - 27 * DAY, NOW - 20 * DAY),
                Span(NOW - 30 * DAY, MIDNIGHT - 27 * DAY),
            ),
        ),
        (
            None,
            Span(None, NOW + 20 * DAY),
            Plan(Span(MIDNIGHT - WEEK, NOW + 20 * DAY), Span(None, MIDNIGHT - WEEK)),
        ),
        # The lookback before the mark, and history up to what is complete.
        *(
            (stretch, Span(), Plan(Span(edge), history, stretch))
            for stretch, edge, history in (
                (Stretch(None, NOW), NOW - WEEK, None),
                (
                    Stretch(NOW - 9 * DAY, NOW),
                    NOW - WEEK,
                    Span(None, NOW - 9 * DAY),
                ),
                (Stretch(NOW - DAY, NOW), NOW - DAY, Span(None, NOW - DAY)),
            )
        ),
        (
            Stretch(NOW - 9 * DAY, NOW),
            Span(NOW - 30 * DAY),
            Plan(
                Span(NOW - WEEK),
                Span(NOW - 30 * DAY, NOW - 9 * DAY),
                Stretch(NOW - 9 * DAY, NOW),
            ),
        ),
        # A need that ends within the lookback, and one that ends where that begins.
        (
            Stretch(None, NOW - 3 * DAY),
            Span(None, NOW - DAY),
            Plan(Span(NOW - 10 * DAY, NOW - DAY), None, Stretch(None, NOW - 3 * DAY)),
        ),
        (
            Stretch(None, NOW),
            Span(None, NOW - WEEK),
            Plan(None, None, Stretch(None, NOW)),
        ),
        # A need that begins where the stretch does has no history.
        *(
            (stretch, need, Plan(Span(NOW - DAY), None, stretch))
            for stretch, need in [(Stretch(NOW - 9 * DAY, NOW), Span(NOW - DAY))]
        ),
        (
            Stretch(NOW - DAY, NOW),
            Span(NOW - DAY),
            Plan(Span(NOW - DAY), None, Stretch(NOW - DAY, NOW)),
        ),
        # A need that begins after the mark restarts the stretch; at it, it does not.
        (Stretch(None, NOW - 9 * DAY), Span(NOW - DAY), Plan(Span(NOW - DAY), None)),
        (
            Stretch(None, NOW - DAY),
            Span(NOW - DAY),
            Plan(Span(NOW - DAY), None, Stretch(None, NOW - DAY)),
        ),
        # A need that ends before the stretch moves no mark; at its beginning, it does.
        (
            Stretch(NOW - DAY, NOW),
            Span(None, NOW - 2 * DAY),
            Plan(
                None,
                Span(None, NOW - 2 * DAY),
                Stretch(NOW - DAY, NOW),
                moves_marks=False,
            ),
        ),
        (
            Stretch(NOW - DAY, NOW),
            Span(None, NOW - DAY),
            Plan(None, Span(None, NOW - DAY), Stretch(NOW - DAY, NOW)),
        ),
    ],
)
def test_a_plan_is_the_need_less_what_is_complete(
    stretch: Stretch | None, need: Span, plan: Plan
) -> None:
    """With a lookback of a week, nothing is planned that is known to be there."""
    assert make_plan(stretch, need, WEEK, NOW) == plan


def test_history_touches_what_this_run_reads_and_overlaps_what_another_has() -> None:
    """Whole days are asked for, one of them twice where an earlier run read it."""
    fresh = make_plan(None, Span(), WEEK, NOW)
    edge = TODAY - 8 * DAY
    assert fresh.forward_days(NOW) == Window(edge, None)
    assert fresh.history_days(NOW) == Window(None, edge)
    since = make_plan(None, Span(NOW - 30 * DAY), WEEK, NOW)
    assert since.history_days(NOW) == Window(TODAY - 31 * DAY, edge)
    later = make_plan(Stretch(NOW - 9 * DAY, NOW), Span(), WEEK, NOW)
    assert later.forward_days(NOW) == Window(edge, None)
    assert later.history_days(NOW) == Window(None, TODAY - 7 * DAY)
    alone = Plan(None, Span(None, NOW), moves_marks=False)
    assert alone.forward_days(NOW) is None
    assert alone.history_days(NOW) == Window(None, TODAY + 2 * DAY)
    assert Plan(Span(), None).history_days(NOW) is None


def test_rows_were_read_only_where_history_overlaps_the_stretch() -> None:
    """That is from its beginning to three days after the next midnight."""
    begins = NOW - 9 * DAY
    plan = make_plan(Stretch(begins, NOW), Span(), WEEK, NOW)
    second, last = timedelta(seconds=1), midnight(TODAY - 5 * DAY)
    found = [begins - second, begins, last - second, last, None]
    assert [plan.was_read(instant) for instant in found] == [
        False,
        True,
        True,
        False,
        False,
    ]
    short = make_plan(Stretch(begins, begins + DAY), Span(), WEEK, NOW)
    assert short.was_read(begins + DAY)
    assert not short.was_read(begins + DAY + second)
    for other in (
        make_plan(None, Span(), WEEK, NOW),
        make_plan(Stretch(None, NOW), Span(), WEEK, NOW),
        make_plan(Stretch(begins, NOW), Span(None, begins - DAY), WEEK, NOW),
    ):
        assert [other.was_read(instant) for instant in (begins, NOW)] == [False, False]


def test_marks_move_over_what_was_read() -> None:
    """Forward to the largest instant seen, back to the days that were asked for."""
    marks = Marks(make_plan(None, Span(), WEEK, NOW), Span(), NOW)
    marks.forward_done(Window(TODAY - 8 * DAY, None))
    nothing: t.Any = marks.stretch  # mypy does not see that it changes
    assert nothing is None  # no row has been seen
    for instant in (NOW - 5 * DAY, NOW - 3 * DAY, NOW - 4 * DAY, NOW + DAY, None):
        marks.saw(instant)
    marks.forward_done(Window(TODAY - 8 * DAY, TODAY - 3 * DAY))
    # One day inside of what was asked for, in case the API means another time zone.
    assert marks.stretch == Stretch(MIDNIGHT - WEEK, MIDNIGHT - 4 * DAY)
    marks.forward_done(Window(TODAY - 3 * DAY, None))
    assert marks.stretch == Stretch(MIDNIGHT - WEEK, NOW - 3 * DAY)
    marks.forward_done(Window(TODAY - 8 * DAY, TODAY - 4 * DAY))
    assert marks.stretch == Stretch(MIDNIGHT - WEEK, NOW - 3 * DAY)
    marks.history_done(Window(TODAY - 20 * DAY, TODAY - 8 * DAY))
    assert marks.stretch == Stretch(MIDNIGHT - 19 * DAY, NOW - 3 * DAY)
    marks.history_done(Window(None, TODAY - 20 * DAY))
    assert marks.stretch == Stretch(None, NOW - 3 * DAY)


def test_a_row_at_the_start_of_the_run_counts() -> None:
    """The mark may stand at the start of the run, and at the beginning of the need."""
    need = Span(NOW)
    marks = Marks(make_plan(None, need, WEEK, NOW), need, NOW)
    marks.saw(NOW)
    marks.forward_done(Window(TODAY - DAY, None))
    assert marks.stretch == Stretch(NOW, NOW)


def test_a_forward_part_without_a_beginning_is_whole() -> None:
    """Whatever row it brings, all before that one is complete."""
    marks = Marks(Plan(Span(), None), Span(), NOW)
    marks.saw(NOW - 900 * DAY)
    marks.forward_done(Window(None, None))
    assert marks.stretch == Stretch(None, NOW - 900 * DAY)


def test_rows_before_the_forward_part_do_not_begin_a_stretch() -> None:
    """A row that lies elsewhere than it was asked for claims nothing."""
    marks = Marks(make_plan(None, Span(), WEEK, NOW), Span(), NOW)
    marks.saw(MIDNIGHT - 30 * DAY)
    marks.forward_done(Window(TODAY - 8 * DAY, None))
    assert marks.stretch is None
    marks.history_done(Window(TODAY - 20 * DAY, TODAY - 8 * DAY))
    assert marks.stretch is None
    marks.history_done(Window(TODAY - 31 * DAY, TODAY - 20 * DAY))
    assert marks.stretch == Stretch(MIDNIGHT - 30 * DAY, MIDNIGHT - 30 * DAY)


def test_history_without_a_forward_row_begins_the_stretch() -> None:
    """From the beginning of time to the largest instant seen."""
    marks = Marks(make_plan(None, Span(), WEEK, NOW), Span(), NOW)
    marks.saw(MIDNIGHT - 30 * DAY)
    marks.history_done(Window(None, TODAY - 8 * DAY))
    assert marks.stretch == Stretch(None, MIDNIGHT - 30 * DAY)


def test_no_mark_moves_where_the_need_ends_before_the_stretch() -> None:
    """Such a run leaves the state as it is."""
    stretch, need = Stretch(NOW - DAY, NOW - DAY), Span(None, NOW - 5 * DAY)
    marks = Marks(make_plan(stretch, need, WEEK, NOW), need, NOW)
    marks.saw(NOW - 6 * DAY)
    marks.history_done(Window(None, TODAY - 3 * DAY))
    marks.saw(NOW)
    marks.forward_done(Window(TODAY - 9 * DAY, None))
    assert marks.stretch == stretch


def test_a_stretch_reaches_no_further_back_than_the_need() -> None:
    """Days are asked for whole; start_date is where the rows begin."""
    need = Span(NOW - 30 * DAY)
    marks = Marks(make_plan(Stretch(NOW - 9 * DAY, NOW), need, WEEK, NOW), need, NOW)
    marks.history_done(Window(TODAY - 40 * DAY, TODAY - 7 * DAY))
    assert marks.stretch == Stretch(NOW - 30 * DAY, NOW)
    marks.history_done(Window(TODAY - 20 * DAY, TODAY - 7 * DAY))
    assert marks.stretch == Stretch(NOW - 30 * DAY, NOW)


class Reader:
    """An API without a server: which instants a window brings, and what was read."""

    def __init__(self, rows: list[datetime], offset: float) -> None:
        """Begin with nothing read."""
        self.rows = rows
        self.offset = timedelta(hours=offset)
        self.read: set[datetime] = set()

    def list(self, window: Window) -> list[datetime]:
        """Read a window."""
        found = [row for row in self.rows if window.holds((row + self.offset).date())]
        self.read.update(found)
        return found


def windows_of(asked: Window, size: int, *, newest_first: bool) -> list[Window]:
    """Cut days into windows of some days each."""
    first = asked.start or TODAY - 90 * DAY
    last = asked.end or TODAY + DAY
    edges = [
        *itertools.takewhile(
            lambda day: day < last, (first + n * size * DAY for n in range(200))
        )
    ]
    windows = [Window(*pair) for pair in itertools.pairwise([*edges, last])]
    if not windows:
        return []
    windows[0] = Window(asked.start, windows[0].end)
    windows[-1] = Window(windows[-1].start, asked.end)
    return windows[::-1] if newest_first else windows


@given(
    rows=st.lists(instants, max_size=25, unique=True),
    runs=st.lists(
        st.tuples(spans, lookbacks, st.integers(1, 30), st.integers(0, 40)),
        min_size=1,
        max_size=4,
    ),
    offset=st.sampled_from((-12, 0, 5.5, 14)),
)
def test_no_mark_claims_an_instant_that_was_not_read(
    rows: list[datetime],
    runs: list[tuple[tuple[datetime | None, datetime | None], timedelta, int, int]],
    offset: float,
) -> None:
    """Through any runs, also ones that are cut, marks stay inside what was emitted."""
    emitted: set[datetime] = set()
    stretch: Stretch | None = None
    reader = Reader(rows, offset)
    for bounds, lookback, size, steps in runs:
        need = Span(*bounds)
        plan = make_plan(stretch, need, lookback, NOW)
        marks = Marks(plan, need, NOW)
        forward, past = plan.forward_days(NOW), plan.history_days(NOW)
        parts = (
            [(one, True) for one in windows_of(forward, size, newest_first=False)]
            if forward
            else []
        )
        parts += (
            [(one, False) for one in windows_of(past, size, newest_first=True)]
            if past
            else []
        )
        for window, is_forward in parts[:steps]:
            kept = [row for row in reader.list(window) if need.holds(row)]
            emitted.update(kept)
            for row in kept:
                marks.saw(row)
            if is_forward:
                marks.forward_done(window)
            else:
                marks.history_done(window)
            claim = marks.stretch
            assert claim is None or claim.complete_to <= NOW
            assert [
                row for row in rows if claim and claim.holds(row) and row not in emitted
            ] == []
        before, stretch = stretch, marks.stretch
        if steps >= len(parts) and plan.moves_marks:
            assert {row for row in rows if need.holds(row)} <= emitted
        if before and stretch and plan.stretch:
            assert stretch.complete_to >= before.complete_to


@given(instants, instants, lookbacks)
def test_a_stretch_is_read_as_it_was_written(
    one: datetime, other: datetime, lookback: timedelta
) -> None:
    """With a bound or from the beginning, a state says what was complete."""
    for start in (min(one, other), None):
        stretch = Stretch(start, max(one, other))
        written = write_stretch(stretch, "mark")
        assert read_stretch(written, "mark", NOW, lookback) == (stretch, None)


def test_stretches_that_touch_are_one() -> None:
    """Where there is a gap between them they are not, in whichever order."""
    day = [NOW + n * DAY for n in range(6)]
    for one, other, both in (
        (Stretch(day[0], day[2]), Stretch(day[1], day[3]), Stretch(day[0], day[3])),
        (Stretch(day[0], day[2]), Stretch(day[2], day[3]), Stretch(day[0], day[3])),
        (Stretch(day[0], day[5]), Stretch(day[2], day[3]), Stretch(day[0], day[5])),
        (Stretch(None, day[2]), Stretch(day[1], day[3]), Stretch(None, day[3])),
        (Stretch(None, day[2]), Stretch(None, day[3]), Stretch(None, day[3])),
        (Stretch(day[0], day[1]), Stretch(day[2], day[3]), None),
        (Stretch(None, day[1]), Stretch(day[2], day[3]), None),
    ):
        assert one.joined(other) == both
        assert other.joined(one) == both


# --- States --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bookmark", "stretch", "wrong"),
    [
        ({}, None, None),
        ({"other": 1}, None, None),
        ({"complete_from": BEGINNING}, None, "mark is None"),
        ({"mark": "x", "complete_from": BEGINNING}, None, "mark is 'x'"),
        ({"mark": "2026-03-02T12:00:00Z", "complete_from": BEGINNING}, (None, 0), None),
        (
            {"mark": "2026-03-02T12:00:01Z", "complete_from": BEGINNING},
            None,
            "mark is '2026-03-02T12:00:01Z'",
        ),
        ({"mark": "2026-03-01", "complete_from": "2026-03-01"}, (0.5, 0.5), None),
        ({"mark": "2026-03-01"}, (7.5, 0.5), "complete_from is None"),
        (
            {"mark": "2026-03-01", "complete_from": "2026-03-02"},
            (7.5, 0.5),
            "complete_from is '2026-03-02'",
        ),
    ],
)
def test_a_bookmark_is_taken_for_no_more_than_it_says(
    bookmark: dict[str, object],
    stretch: tuple[float | None, float] | None,
    wrong: str | None,
) -> None:
    """What is wrong is said; a mark of tomorrow, by another clock, counts as now."""
    wanted = stretch and Stretch(
        None if stretch[0] is None else NOW - stretch[0] * DAY, NOW - stretch[1] * DAY
    )
    assert read_stretch(bookmark, "mark", NOW, WEEK) == (wanted, wrong)


MARKED = {"replication_key": "startedAt", "replication_key_value": "2026-02-01"}
WHOLE = {**MARKED, "complete_from": BEGINNING, "ledger": {}, "project": "shop"}


@pytest.mark.parametrize(
    ("bookmark", "taken", "problems"),
    [
        (WHOLE, WHOLE, []),
        ({"days": {}, "dates": [], "ahead": "", "set_aside": {}, "complete": {}},) * 2
        + ([],),
        # Written by a person or another tap: complete from start_date on.
        (MARKED, {**MARKED, "complete_from": "2026-01-01T00:00:00.000Z"}, []),
        ({**MARKED, "x": 1}, {**MARKED, "complete_from": "2026-01-01T00:00:00.000Z"}, []),
        (
            {"replication_key_value": "2026-02-01"},
            {
                "replication_key_value": "2026-02-01",
                "complete_from": "2026-01-01T00:00:00.000Z",
            },
            [],
        ),
        ({"replication_key_value": "x"}, {"replication_key_value": "x"}, []),
        # A key of ours that is damaged tells that the bookmark is not foreign.
        ({**MARKED, "ledger": 5}, MARKED, ["ledger of sessions is '5'"]),
        ({**MARKED, "ledger": None}, MARKED, []),
        (
            {**MARKED, "ledger": "y" * 50},
            MARKED,
            [f"ledger of sessions is {'y' * 40!r}"],
        ),
        (
            {"complete_from": "\ud800", "replication_key_value": 5},
            {},
            [
                "complete_from of sessions is '\\ud800'",
                "replication_key_value of sessions is '5'",
            ],
        ),
    ],
)
def test_a_state_is_taken_key_by_key(
    bookmark: dict[str, object], taken: dict[str, object], problems: list[str]
) -> None:
    """What has the right type stays, the rest is named, and none is made up."""
    marks = {"sessions": "replication_key_value"}
    start = datetime(2026, 1, 1, tzinfo=UTC)
    state = {"bookmarks": {"sessions": bookmark}}
    assert clean_state(state, marks, start) == ({"sessions": taken}, problems)


def test_a_foreign_bookmark_without_a_start_date_is_whole() -> None:
    """It counts as complete from the beginning."""
    taken, _ = clean_state(
        {"bookmarks": {"sessions": MARKED}}, {"sessions": "replication_key_value"}, None
    )
    assert taken["sessions"]["complete_from"] == "beginning"


def test_what_is_no_bookmark_is_named() -> None:
    """Nothing at all is no problem, and neither is a stream without a bookmark."""
    marks = {"sessions": "replication_key_value"}
    no_state: tuple[object, ...] = (None, {}, {"bookmarks": {}})
    for nothing in (*no_state, {"bookmarks": {"sessions": None}}):
        assert clean_state(nothing, marks, None) == ({}, [])
    wrongs: tuple[object, ...] = ([], 5, "x", {"bookmarks": []}, {"x": 1})
    for wrong in wrongs:
        assert clean_state(wrong, marks, None) == (
            {},
            ["there are no bookmarks in it"],
        )
    for stream, bookmark in (("sessions", 5), ("sessions", []), ("users", {"a": 1})):
        assert clean_state({"bookmarks": {stream: bookmark}}, marks, None) == (
            {},
            [f"{stream!r} is not a bookmark of this tap"],
        )


def test_all_that_is_wrong_in_a_state_is_named_in_order() -> None:
    """A stream that is damaged or not known keeps no other from being taken."""
    marks = {"sessions": "replication_key_value", "network": "replication_key_value"}
    damaged = {**dict.fromkeys(("set_aside", "project", "days", "dates", "ahead"), 5)}
    state = {"users": 1, "sessions": damaged, "events": {}, "network": WHOLE}
    assert clean_state({"bookmarks": state}, marks, None) == (
        {"sessions": {}, "network": WHOLE},
        [
            "'users' is not a bookmark of this tap",
            "ahead of sessions is '5'",
            "dates of sessions is '5'",
            "days of sessions is '5'",
            "project of sessions is '5'",
            "set_aside of sessions is '5'",
            "'events' is not a bookmark of this tap",
        ],
    )


def test_numbers_of_a_state_are_taken_as_the_sdk_reads_them() -> None:
    """It reads those with a point as decimals, which JSON does not know."""
    bookmark = {"days": {"2026-02-01": [Decimal("1.5"), 1, "2026-02-01"]}}
    taken, problems = clean_state(
        {"bookmarks": {"network": bookmark}}, {"network": "replication_key_value"}, None
    )
    assert (taken, problems) == ({"network": bookmark}, [])


@given(junk, instants)
def test_no_state_crashes_or_claims_more_than_it_says(
    state: object, mark: datetime
) -> None:
    """Whatever stands in a state, what is taken from it can be read and written."""
    whole: object = {"bookmarks": {"sessions": {"replication_key_value": state}}}
    damaged = {"replication_key_value": format_instant(mark), "complete_from": state}
    for given_state in (
        state,
        {"bookmarks": state},
        {"bookmarks": {"sessions": state}},
        whole,
    ):
        bookmarks, _ = clean_state(given_state, {"sessions": "replication_key_value"}, None)
        for bookmark in bookmarks.values():
            stretch, _ = read_stretch(bookmark, "replication_key_value", NOW, DAY)
            assert stretch is None or stretch.complete_to <= NOW
            Ledger.unpack(bookmark.get("ledger"))[0].pack()
    taken, _ = clean_state(
        {"bookmarks": {"sessions": damaged}}, {"sessions": "replication_key_value"}, None
    )
    stretch, wrong = read_stretch(taken["sessions"], "replication_key_value", NOW, DAY)
    begins = parse_instant(state)
    if state is not None and state != BEGINNING and (begins is None or begins > mark):
        assert stretch == Stretch(mark - DAY, mark)
        assert wrong
    assert DayReading.read(state) is None


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12),
        st.tuples(
            days, st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4)
        ),
        max_size=40,
    ),
    days,
)
def test_a_ledger_is_read_as_it_was_written(
    sessions: dict[str, tuple[date, bytes, bytes]], edge: date
) -> None:
    """Packed and unpacked, it knows the same sessions; pruned, only the kept days."""
    ledger = Ledger()
    for session, (day, row, events) in sessions.items():
        ledger.put(session, day - DAY, row=events)  # moves with its session
        ledger.put(session, day, row=row, events=events)
    again, unread = Ledger.unpack(ledger.pack())
    assert unread == 0
    assert again.pack() == ledger.pack()
    again.prune(lambda day, _: day >= edge)
    for session, (day, row, events) in sessions.items():
        assert ledger.get(session) == Entry(row, events)
        assert again.get(session) == (Entry(row, events) if day >= edge else None)
    assert len(again) == sum(day >= edge for day, _, _ in sessions.values())
    text = sum(len(packed) for packed in ledger.pack().values())
    assert text <= 24 * len(sessions)


@given(st.integers(0, 30), st.integers(0, 30))
def test_only_so_much_of_the_future_is_remembered(ahead: int, most: int) -> None:
    """Sessions beyond tomorrow are kept up to a number, all others are."""
    ledger = Ledger()
    for number in range(ahead):
        ledger.put(f"ahead {number}", TODAY + (2 + number) * DAY, row=b"1234")
    ledger.put("today", TODAY, row=b"1234")
    assert ledger.forget_ahead(TODAY, most) == max(0, ahead - most)
    assert len(ledger) == min(ahead, most) + 1
    assert len(Ledger.unpack(ledger.pack())[0]) == len(ledger)


def test_of_the_future_the_nearest_days_are_remembered() -> None:
    """Whatever the order they came in."""
    ledger = Ledger()
    for ahead in (4, 2, 3):
        ledger.put(f"in {ahead} days", TODAY + ahead * DAY, row=b"1234")
    assert ledger.forget_ahead(TODAY, 2) == 1
    assert ledger.get("in 4 days") is None


def test_a_thousand_sessions_of_the_future_are_remembered() -> None:
    """Unless another number is asked for."""
    ledger = Ledger()
    for number in range(1002):
        ledger.put(str(number), TODAY + 2 * DAY, row=b"1234")
    assert ledger.forget_ahead(TODAY) == 2
    assert len(ledger) == 1000


@given(st.integers(0, 9), st.integers(0, 9), instants)
def test_a_reading_of_a_day_is_read_as_it_was_written(
    total: int, rows: int, last: datetime
) -> None:
    """The numbers of a day survive the state."""
    reading = DayReading(total, rows, last)
    written: t.Any = reading.write()
    assert DayReading.read(written) == reading
    assert midnight(TODAY).tzinfo is UTC


def test_days_of_a_ledger_that_cannot_be_read_are_counted() -> None:
    """The others are known; none at all is no damage."""
    ledger = Ledger()
    ledger.put("one", TODAY, row=b"1234")
    packed: dict[str, object] = dict(ledger.pack())
    damaged = {"x": "", "2026-02-01": "AAAA", "2026-02-02": "?", "2026-02-03": None}
    again, unread = Ledger.unpack(packed | damaged)
    assert (unread, again.pack()) == (4, packed)
    others: tuple[object, ...] = (None, {}, 5, [])
    assert [Ledger.unpack(other)[1] for other in others] == [0, 0, 1, 1]


def test_what_was_not_emitted_or_fetched_stays_unknown() -> None:
    """In a state as well, where each has its four bytes."""
    ledger = Ledger()
    ledger.put("fetched", TODAY, events=b"5678")
    ledger.put("emitted", TODAY, row=b"1234")
    for known in (ledger, Ledger.unpack(ledger.pack())[0]):
        assert known.get("fetched") == Entry(NOTHING, b"5678")
        assert known.get("emitted") == Entry(b"1234", NOTHING)


def test_a_ledger_packs_what_has_changed() -> None:
    """A session that is noted, moved, pruned or forgotten shows in the next state."""
    ledger, tomorrow = Ledger(), TODAY + DAY
    ledger.put("none", TODAY, row=b"1234")
    ledger.put("one", TODAY, row=b"1234")
    ledger.prune(lambda *_: False)  # before there was any state
    ledger.put("one", TODAY, row=b"1234")
    single = ledger.pack()
    ledger.put("two", TODAY, row=b"1234")
    before = ledger.pack()
    assert len(before[TODAY.isoformat()]) > len(single[TODAY.isoformat()])
    ledger.put("one", TODAY, events=b"5678")
    after = ledger.pack()
    assert after != before
    assert ledger.get("one") == Entry(b"1234", b"5678")
    ledger.prune(lambda _, entry: entry.events == b"5678")
    assert ledger.get("two") is None
    assert len(ledger.pack()[TODAY.isoformat()]) < len(after[TODAY.isoformat()])
    ledger.put("one", tomorrow)
    assert list(ledger.pack()) == [tomorrow.isoformat()]
    assert ledger.forget_ahead(TODAY, 0) == 0  # tomorrow is not yet the future
    ledger.put("three", tomorrow + DAY, row=b"1234")
    ledger.pack()
    assert ledger.forget_ahead(TODAY, 0) == 1
    assert list(ledger.pack()) == [tomorrow.isoformat()]
    ledger.prune(lambda *_: False)
    assert ledger.pack() == {}


def test_a_day_of_a_ledger_is_written_anew_only_where_it_has_changed() -> None:
    """The others stay the very strings they were; all are in the order of time."""
    ledger, days = Ledger(), [TODAY - n * DAY for n in range(3)]
    for day in days:
        ledger.put(str(day), day, row=b"1234")
    before = ledger.pack()
    ledger.put("another", days[1], row=b"1234")
    ledger.prune(lambda *_: True)
    after = ledger.pack()
    assert list(after) == [str(day) for day in sorted(days)]
    assert [after[day] is text for day, text in before.items()] == [True, False, True]


def test_a_fingerprint_knows_a_row_whatever_the_order_of_its_fields() -> None:
    """Four bytes, the same for the same values, others for others."""
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint(None)) == 4


SESSION = {
    "id": "one",
    "eventCount": 3,
    "status": "completed",
    "endedAt": "2026-02-01T00:00:00Z",
    "hasCrash": False,
    "hasNetworkErrors": False,
}


@pytest.mark.parametrize(
    ("changed", "crashed", "errors"),
    [
        ({}, False, False),
        ({"hasCrash": True}, True, True),
        ({"status": "crashed"}, True, True),
        ({"hasNetworkErrors": True}, False, True),
        ({"hasCrash": None, "hasNetworkErrors": None}, False, False),
    ],
)
def test_events_are_wanted_by_what_happened(
    changed: dict[str, object], *, crashed: bool, errors: bool
) -> None:
    """A crash counts among the errors, and the status tells of one, too."""
    found = candidate(SESSION | changed, NOW, TODAY)
    assert (found.id, found.instant, found.day) == ("one", NOW, TODAY)
    wanted = [is_wanted(found, name) for name in ("all", "errors", "crashed")]
    assert wanted == [True, errors, crashed]


def test_events_are_fetched_again_where_their_session_has_changed() -> None:
    """Four fields tell of that, and no other does."""
    before = candidate(SESSION, NOW, TODAY).mark
    for name, value in (
        ("eventCount", 4),
        ("status", "active"),
        ("endedAt", None),
        ("hasCrash", True),
    ):
        assert candidate(SESSION | {name: value}, NOW, TODAY).mark != before
    assert candidate(SESSION | {"userId": "x"}, NOW, TODAY).mark == before


def test_a_finished_session_without_events_has_none() -> None:
    """One that goes on may still get some, and so may one whose count is not known."""
    for count, status, wanted in (
        (0, "completed", False),
        (0, "crashed", False),
        (0, "active", True),
        (1, "completed", True),
        (None, "completed", True),
    ):
        assert has_events({"eventCount": count, "status": status}) is wanted


def test_what_was_fetched_for_more_sessions_serves_fewer() -> None:
    """The widest comes first, and each serves itself."""
    assert wider("all") == ("all",)
    assert wider("errors") == ("all", "errors")
    assert wider("crashed") == ("all", "errors", "crashed")


@pytest.mark.parametrize(
    "written",
    [
        None,
        {},
        "12",
        [],
        [1, 2],
        [1, 2, "2026-01-01T00:00:00.000Z", 4],
        ["1", 2, "2026-01-01T00:00:00.000Z"],
        [1, "2", "2026-01-01T00:00:00.000Z"],
        [1.0, 2, "2026-01-01T00:00:00.000Z"],
        [True, 2, "2026-01-01T00:00:00.000Z"],
        [1, None, "2026-01-01T00:00:00.000Z"],
        [1, 2, "yesterday"],
        [1, 2, None],
    ],
)
def test_a_damaged_reading_of_a_day_is_none(written: object) -> None:
    """Only two whole numbers and an instant are a reading of a day."""
    assert DayReading.read(written) is None
