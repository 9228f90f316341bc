"""The rules of replication as plain data: windows, plans, bookmarks and fingerprints."""

from __future__ import annotations

import itertools
import time
import typing as t
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tap_bugspulse.replication import (
    BEGINNING,
    DAY,
    FAR_AWAY,
    JUST_BEFORE,
    LONG_AGO,
    MAX_AHEAD,
    NOTHING,
    Bookmark,
    Cutter,
    Ledger,
    Span,
    StateError,
    Window,
    format_instant,
    make_plan,
    midnight,
    parse_instant,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TODAY = NOW.date()
MIDNIGHT = midnight(TODAY)
WEEK = 7 * DAY
instants = st.integers(0, 60 * 86_400).map(lambda second: NOW - timedelta(seconds=second))
days = st.integers(-60, 3).map(lambda day: TODAY + day * DAY)
spans = (
    st.tuples(st.just(LONG_AGO) | instants, st.just(FAR_AWAY) | instants)
    .filter(lambda pair: pair[0] < pair[1])
    .map(lambda pair: Span(*pair))
)
lookbacks = st.integers(0, 12).map(lambda count: timedelta(days=count))


def ago(number: float) -> datetime:
    """Return the instant some days before now."""
    return NOW - number * DAY


def in_days(start: float | None, end: float) -> Span:
    """Return a range by the days its ends lie before now."""
    return Span(LONG_AGO if start is None else ago(start), ago(end))


def days_ago(start: int | None, end: int | None = None) -> Window:
    """Return a window by the days its ends lie before today."""
    first = date.min if start is None else TODAY - start * DAY
    last = date.max if end is None else TODAY - end * DAY
    return Window(first, last)


# --- Instants ------------------------------------------------------------------------


@pytest.mark.parametrize(("micro", "part"), [(0, "000"), (5000, "005"), (5001, "005001")])
def test_an_instant_is_written_as_the_api_does(micro: int, part: str) -> None:
    """It has milliseconds and a Z; a bookmark loses no part of a second that an API may send."""
    instant = NOW.replace(microsecond=micro)
    assert format_instant(instant) == f"2026-03-01T12:00:00.{part}Z"
    assert parse_instant(format_instant(instant)) == instant


@pytest.mark.parametrize("zone", ["UTC0", "EST5"])
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
    monkeypatch: pytest.MonkeyPatch, zone: str, written: object, instant: datetime | None
) -> None:
    """No offset means UTC on every machine; a year no clock is set to gives no instant."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        found = parse_instant(written)
    time.tzset()
    assert found == instant
    assert found is None or found.tzinfo is UTC


# --- Windows -------------------------------------------------------------------------


def test_a_row_is_filed_under_its_day_or_the_last_of_the_window() -> None:
    """A row far outside of its window, or without an instant, is filed under the last day."""
    week = days_ago(7, 0)
    for days in (0, 3, 8):  # by a day in another time zone
        assert week.day_of(NOW - days * DAY, TODAY) == TODAY - days * DAY
    for instant in (None, NOW + DAY, NOW - 9 * DAY):
        assert week.day_of(instant, TODAY) == TODAY - DAY
    for start in (TODAY - DAY, TODAY + DAY, date.min):
        assert Window(start).day_of(None, TODAY) == max(start, TODAY)


def test_no_more_days_are_asked_for_than_time_zones_need() -> None:
    """They are one on each side, and there is no end where the run reads up to now."""
    assert Window.around(Span(ago(5)), NOW) == days_ago(6)
    for end, until in ((ago(5), 3), (ago(5.5), 4), (NOW, -2), (NOW + JUST_BEFORE, None)):
        assert Window.around(Span(LONG_AGO, end), NOW) == days_ago(None, until)


# --- Cutting days into windows ---------------------------------------------------------


def cut(
    days: Window, limit: int, count: t.Callable[[Window], int], *, newest_first: bool
) -> tuple[list[tuple[Window, int]], int]:
    """Return the windows that days are cut into, with their rows, and how many requests."""
    cutter = Cutter(days, limit, TODAY, newest_first=newest_first)
    windows, requests = [], 0
    while window := cutter.propose():
        requests += 1
        assert requests < 1000
        if cutter.fits(rows := count(window)):
            windows.append((window, rows))
    return windows, requests


@given(
    rows=st.lists(days, max_size=60),
    limit=st.integers(1, 20),
    newest_first=st.booleans(),
    asked=st.builds(Window, st.just(date.min) | days, st.just(date.max) | days),
)
def test_windows_cover_all_days_once_and_in_order(
    rows: list[date], limit: int, asked: Window, *, newest_first: bool
) -> None:
    """Each has fewer rows than the API may count, unless it is a single day."""
    start, end = asked.start, asked.end
    assume(start < end)
    assume(newest_first or start > date.min)

    def count(window: Window) -> int:
        return sum(map(window.holds, rows))

    windows = [one for one, _ in cut(asked, limit, count, newest_first=newest_first)[0]]
    for one in windows:
        is_day = min(one.end, TODAY + DAY) - one.start <= DAY
        assert count(one) < limit or is_day
    windows = windows if newest_first else windows[::-1]
    assert windows[0].end == end
    assert windows[-1].start == start
    assert all(new.start == old.end for new, old in itertools.pairwise(windows))


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("a_day", [1, 9, 40, 400, 4000])
@pytest.mark.parametrize("end", [TODAY, date(1961, 1, 1)], ids=["up to today", "before 1970"])
def test_even_days_are_cut_with_few_requests(end: date, a_day: int, *, newest_first: bool) -> None:
    """Windows are nearly full, and hardly a request asks for one that is too large."""

    def count(window: Window) -> int:
        return (window.end - window.start).days * a_day

    days = Window(end - 400 * DAY, end)
    windows, requests = cut(days, 1000, count, newest_first=newest_first)
    assert max(rows for _, rows in windows) < max(1000, a_day + 1)
    assert len(windows) <= 1.3 * min(400, -(-400 * a_day // 1000)) + 3
    assert requests <= len(windows) + 4


@pytest.mark.parametrize(("asked", "limit"), [(Window(), 10), (Window(TODAY), 2)])
def test_what_fits_is_one_window(asked: Window, limit: int) -> None:
    """All that there is takes one request where it is little, and so does a single day."""
    for newest_first in (True, False):
        windows, requests = cut(asked, limit, lambda _: 9, newest_first=newest_first)
        assert (windows, requests) == ([(asked, 9)], 1)
    assert cut(Window(TODAY, TODAY), limit, lambda _: 9, newest_first=True) == ([], 0)


@pytest.mark.parametrize("end", [TODAY, date(1970, 1, 3), date(1970, 1, 2), date(1960, 1, 1)])
def test_the_beginning_of_time_is_reached_where_rows_lie_before_it(end: date) -> None:
    """Rows of clocks that were never set come in one window, which ends in 1970."""

    def count(window: Window) -> int:
        return 50 if window.start == date.min else 0

    windows, requests = cut(Window(date.min, end), 10, count, newest_first=True)
    assert windows[-1] == (Window(date.min, min(end, date(1970, 1, 2))), 50)
    assert requests < 20


# --- What a run reads ------------------------------------------------------------------


EDGE = TODAY - 8 * DAY  # the first day asked for with a lookback of a week
OPEN = Window(EDGE)
JUST = JUST_BEFORE / DAY


@pytest.mark.parametrize(
    ("known", "requested", "forward", "history", "after"),
    [
        # Nothing is complete: today and the lookback first, then history.
        (None, Span(), OPEN, Window(date.min, EDGE), (7.5, 0)),
        (None, Span(ago(30)), OPEN, days_ago(31, 8), (7.5, 0)),
        (None, Span(MIDNIGHT - WEEK), OPEN, NOTHING, (7.5, 0)),
        (None, Span(LONG_AGO, NOW + WEEK), OPEN, Window(date.min, EDGE), (7.5, 0)),
        (None, Span(ago(30), ago(20)), days_ago(28, 18), days_ago(31, 28), (27.5, 20 + JUST)),
        # The lookback before the bookmark, and history up to what is complete.
        ((None, 0), Span(), OPEN, NOTHING, (None, 0)),
        ((9, 0), Span(), OPEN, Window(date.min, EDGE), (9, 0)),
        ((30, 0), Span(), OPEN, days_ago(None, 28), (30, 0)),
        ((30, 0), Span(ago(60)), OPEN, days_ago(61, 28), (30, 0)),
        ((1, 0), Span(), OPEN, Window(date.min, EDGE), (7, 0)),
        # What the forward part reads in full is no history, now and when the lookback moved on.
        ((7.1, 0), Span(ago(7.3)), OPEN, NOTHING, (7.3, 0)),
        # What begins in the range has no history.
        ((9, 0), Span(ago(1)), days_ago(2), NOTHING, (9, 0)),
        # What ends in the lookback, and what ends where that begins.
        ((None, 3), Span(LONG_AGO, ago(1)), days_ago(11, -1), NOTHING, (None, 1 + JUST)),
        ((None, 0), Span(LONG_AGO, ago(7)), NOTHING, NOTHING, (None, 0)),
        # A gap after the bookmark: the range before it is given up.
        ((None, 9), Span(ago(1)), days_ago(2), NOTHING, (1, 0)),
        ((None, 1), Span(ago(1)), days_ago(2), NOTHING, (None, 1)),
        # What a later start_date inside the lookback leaves out is for the next run, which passes
        # over it if the bookmark moves; where the range begins there, nothing is left out.
        ((30, 2), Span(ago(8)), days_ago(9), NOTHING, (30, 0)),
        ((30, 2), Span(ago(7)), days_ago(8), NOTHING, (30, 0)),
        ((30, 2), Span(ago(5)), days_ago(6), NOTHING, (30, 2)),
        ((5, 2), Span(ago(5)), days_ago(6), NOTHING, (5, 0)),
    ],
)
def test_a_plan_is_what_is_requested_less_what_is_complete(
    known: tuple[float | None, float] | None,
    requested: Span,
    forward: Window,
    history: Window,
    after: tuple[float | None, float],
) -> None:
    """With a lookback of a week; ``after`` is complete when the forward part is read."""
    plan = make_plan(in_days(*known) if known else None, requested, WEEK, NOW)
    assert (plan.forward, plan.history or NOTHING, plan.moves_bookmark) == (forward, history, True)
    if plan.forward:
        plan.forward_done(plan.forward)
    assert plan.complete == in_days(*after)


def test_what_ends_before_the_range_moves_no_bookmark() -> None:
    """Its rows are loaded and the state is left as it is; at the range's start it moves."""
    requested, known = Span(LONG_AGO, ago(5)), in_days(1, 0)
    plan = make_plan(known, requested, WEEK, NOW)
    assert (plan.forward, plan.history) == (NOTHING, days_ago(None, 3))
    plan.history_done(days_ago(None, 3))
    assert (plan.complete, plan.moves_bookmark) == (known, False)
    assert make_plan(known, Span(LONG_AGO, ago(1)), WEEK, NOW).moves_bookmark


def test_rows_were_read_only_where_history_overlaps_the_range() -> None:
    """Only there are they known; further inside they may have been filed elsewhere."""
    plan = make_plan(in_days(9, 0), Span(), DAY, NOW)
    second, last = timedelta(seconds=1), midnight(TODAY - 5 * DAY)
    found = [ago(9) - second, ago(9), last - second, last, None]
    assert list(map(plan.was_read, found)) == [False, True, True, False, False]
    for complete in (None, in_days(None, 0)):
        other = make_plan(complete, Span(), WEEK, NOW)
        assert [other.was_read(one) for one in (ago(9), NOW)] == [False, False]


def test_a_range_grows_window_by_window() -> None:
    """Forward to the start of the run, then back to what was asked for, less a day."""
    plan = make_plan(None, Span(), WEEK, NOW)
    seen = []
    for moves, window in (
        (plan.forward_done, days_ago(8, 3)),
        (plan.forward_done, days_ago(3)),
        (plan.history_done, days_ago(20, 8)),
        (plan.history_done, days_ago(None, 20)),
    ):
        moves(window)
        seen.append(plan.complete)
    assert seen == [in_days(7.5, 4.5), in_days(7.5, 0), in_days(19.5, 0), in_days(None, 0)]


@settings(max_examples=min(17 * settings().max_examples, max(612, settings().max_examples)))
@given(
    rows=st.lists(instants, max_size=25, unique=True),
    runs=st.lists(
        st.tuples(spans, lookbacks, st.integers(1, 30), st.integers(0, 40), st.integers(0, 9)),
        min_size=1,
        max_size=4,
    ),
    offset=st.sampled_from((-12, 0, 5.5, 14)),
)
def test_no_bookmark_claims_an_instant_that_was_not_read(
    rows: list[datetime], runs: list[t.Any], offset: float
) -> None:
    """Through any runs, also ones that stop half-way, it stays inside what was emitted."""
    emitted: set[datetime] = set()
    complete: Span | None = None
    now = ago(sum(run[-1] for run in runs))
    for requested, lookback, size, steps, later in runs:
        now += later * DAY
        if requested.start > now:
            continue
        plan = make_plan(complete, requested, lookback, now)
        done = [(one, plan.forward_done) for one in pieces(plan.forward, size, now)]
        past = pieces(plan.history, size, now)[::-1]
        done += [(one, plan.history_done) for one in past]
        for window, moves in done[:steps]:
            for row in rows:
                day = (row + timedelta(hours=offset)).date()
                if row <= now and requested.holds(row) and window.holds(day):
                    emitted.add(row)
            moves(window)
            assert claimed(plan.complete, rows) <= emitted
        if steps >= len(done) and plan.moves_bookmark:
            assert {one for one in rows if one <= now and requested.holds(one)} <= emitted
        before, complete = complete, plan.complete
        assert claimed(complete, rows) <= emitted
        if complete:  # the next run can read it, and it has lost nothing
            written = Bookmark.read(complete.write("complete_to"))
            assert written.range("events", now) == complete
            if before and plan.known:
                assert complete.start <= before.start
                assert complete.end >= before.end


def claimed(complete: Span | None, rows: list[datetime]) -> set[datetime]:
    """Return the rows that lie in what is said to be complete."""
    if complete is None:
        return set()
    span = Span(complete.start, complete.end + JUST_BEFORE / 1000)
    return set(filter(span.holds, rows))


def pieces(asked: Window, size: int, now: datetime) -> list[Window]:
    """Cut days into windows of some days each, the oldest first."""
    first = asked.start if asked.start > date.min else TODAY - 90 * DAY
    number = (min(asked.end, now.date() + DAY) - first).days
    edges = [first + n * DAY for n in range(size, number, size)]
    return list(map(Window, [asked.start, *edges], [*edges, asked.end])) if number > 0 else []


# --- Bookmarks -------------------------------------------------------------------------


def test_ranges_that_touch_are_one() -> None:
    """Where there is a gap between two, the newer one counts, in whichever order."""
    for one, other, both in (
        (in_days(9, 7), in_days(8, 6), in_days(9, 6)),
        (in_days(9, 7), in_days(7, 6), in_days(9, 6)),
        (in_days(None, 7), in_days(8, 6), in_days(None, 6)),
        (in_days(9, 8), in_days(7, 6), in_days(7, 6)),
        (in_days(None, 8), in_days(7, 6), in_days(7, 6)),
    ):
        assert one.joined(other) == other.joined(one) == both


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from((BEGINNING, "2026-02-01", "2026-02-01T00:00:00Z", "2999-01-01")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from((*Bookmark.__struct_fields__, "all", "2026-02-01", "x")), inner
        )
    ),
    max_leaves=8,
)


@given(junk, st.sampled_from(Bookmark.__struct_fields__))
@example("2026-03-02T00:00:00Z", "replication_key_value")
def test_a_bookmark_is_read_or_named_as_unreadable(value: object, key: str) -> None:
    """Whatever stands in a state, it claims nothing after the start of the run."""
    whole = {"replication_key_value": "2026-02-01", "complete_from": BEGINNING}
    for written in (value, whole | {key: value}):
        with suppress(StateError):
            bookmark = Bookmark.read(written, "sessions")
            Ledger(bookmark.fingerprints).pack()
            for one in (bookmark, *bookmark.complete.values()):
                complete = one.range("sessions", NOW)
                assert complete is None or complete.end <= NOW


# --- Fingerprints ----------------------------------------------------------------------


def again(ledger: Ledger) -> Ledger:
    """Return a ledger as the next run reads it from a state."""
    return Ledger(Bookmark.read({"fingerprints": ledger.pack()}).fingerprints)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12),
        st.tuples(days, st.binary(min_size=4, max_size=4)),
        max_size=40,
    ),
    days,
)
def test_fingerprints_are_read_as_they_were_written(
    sessions: dict[str, tuple[date, bytes]], edge: date
) -> None:
    """A bookmark has 12 bytes for each session, and only the days that are kept."""
    ledger = Ledger()
    for session, (day, mark) in sessions.items():
        ledger.put(session, day, b"0000")
        ledger.pack()
        ledger.put(session, day, mark)
    assert sum(map(len, ledger.pack().values())) == 12 * len(sessions)
    for session, (_, mark) in sessions.items():
        assert again(ledger).get(session) == mark
    ledger.prune(lambda day: day >= edge, TODAY)
    for session, (day, mark) in sessions.items():
        assert again(ledger).get(session) == (mark if day >= edge else None)


def test_of_the_future_the_nearest_thousand_are_remembered() -> None:
    """Of sessions beyond tomorrow so many are kept, of those before it all."""
    ledger, many = Ledger(), MAX_AHEAD // 2 + 1
    for ahead in (2, 4, 3, 1):
        for number in range(many):
            ledger.put(f"{number} in {ahead} days", TODAY + ahead * DAY, b"1234")
    assert ledger.prune(lambda _: True, TODAY) == 3 * many - MAX_AHEAD
    known = again(ledger)
    # 12 bytes a session
    assert sum(map(len, known.pack().values())) == 12 * (MAX_AHEAD + many)
    days = [known.get(f"0 in {ahead} days") is not None for ahead in (1, 2, 3, 4)]
    assert days == [True, True, True, False]
