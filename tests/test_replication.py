"""The rules of replication, property by property, without a server."""

from __future__ import annotations

import itertools
import typing as t
from datetime import UTC, date, datetime, timedelta

from hypothesis import assume, given
from hypothesis import strategies as st

from tap_bugspulse.replication import (
    BEGINNING,
    DAY,
    Cutter,
    DayReading,
    Entry,
    Ledger,
    Marks,
    Span,
    Stretch,
    Window,
    asked_for,
    clean_state,
    format_instant,
    make_plan,
    midnight,
    parse_instant,
    read_stretch,
    split,
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


# --- Windows -------------------------------------------------------------------------


@given(
    rows=st.lists(days, max_size=60),
    limit=st.integers(1, 20),
    newest_first=st.booleans(),
    start=st.none() | days,
    end=st.none() | days,
)
def test_windows_cover_all_days_once_and_in_order(
    rows: list[date],
    limit: int,
    start: date | None,
    end: date | None,
    *,
    newest_first: bool,
) -> None:
    """What is cut off follows on what was cut before, until nothing is left."""
    assume(start is None or end is None or start < end)
    assume(newest_first or start is not None)
    asked = Window(start, end)
    cutter = Cutter(asked, limit, TODAY, newest_first=newest_first)
    windows: list[Window] = []
    proposals = 0
    while window := cutter.propose():
        proposals += 1
        assert proposals < 400
        total = sum(window.holds(day) for day in rows)
        if cutter.fits(total):
            windows.append(window)
            one_day = window.start and (window.end or TODAY + DAY) - window.start <= DAY
            assert total <= limit or one_day or window.start is None
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


@given(days, days, st.lists(st.tuples(st.none() | days, st.none() | days), max_size=4))
def test_splitting_keeps_every_day(
    one: date, other: date, edges: list[tuple[date | None, date | None]]
) -> None:
    """The pieces follow on each other, and each says truly whether it is known."""
    assume(one != other)
    asked = Window(min(one, other), max(one, other))
    known = [Window(*pair) for pair in edges if None in pair or pair[0] < pair[1]]  # type: ignore[operator]  # no None is left
    pieces = split(asked, known)
    assert pieces[0][0].end == asked.end
    assert pieces[-1][0].start == asked.start
    for (new, _), (old, _) in itertools.pairwise(pieces):
        assert new.start == old.end
    for piece, is_known in pieces:
        day = piece.start
        while day is not None and piece.end is not None and day < piece.end:
            assert is_known == any(window.holds(day) for window in known)
            day += DAY


# --- Plans and marks -----------------------------------------------------------------


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


# --- States --------------------------------------------------------------------------


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


@given(st.integers(0, 9), st.integers(0, 9), instants)
def test_a_reading_of_a_day_is_read_as_it_was_written(
    total: int, rows: int, last: datetime
) -> None:
    """The numbers of a day survive the state."""
    reading = DayReading(total, rows, last)
    written: t.Any = reading.write()
    assert DayReading.read(written) == reading
    assert midnight(TODAY).tzinfo is UTC
