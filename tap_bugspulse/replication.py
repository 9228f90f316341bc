"""What is complete, what to ask for, what is due: plain data, no HTTP, no SDK.

Instants are aware datetimes in UTC, days are UTC dates. The API takes dates only and
does not say which time zone they mean, so whatever is asked for reaches one day
further than what is needed, and a mark stays one day inside what was asked for.
"""

from __future__ import annotations

import base64
import itertools
import json
import struct
import typing as t
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from hashlib import blake2b

import msgspec

if t.TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Bookmark = dict[str, t.Any]

DAY = timedelta(days=1)
BEGINNING = "beginning"  # how a state writes a stretch without a lower bound
MAX_AHEAD = 1000  # rows in the future of the run that are remembered
FIRST_GUESS = 30  # days that a window covers where nothing is known of their rows
DENSE = 90  # days: rows are dense where so many or fewer fill a window
EPOCH = date(1970, 1, 1)
# An instant outside of these is a clock that was never set; days are added to the rest.
FIRST, AFTER = (datetime(year, 1, 1, tzinfo=UTC) for year in (1900, 9000))


def parse_instant(text: t.Any) -> datetime | None:  # noqa: ANN401 - from pages and states
    """Read a date or date-time as an aware instant in UTC; None if it is neither."""
    try:
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is not UTC:
            aware = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
            instant = aware.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):  # the first of what is no text
        return None
    return instant if FIRST <= instant < AFTER else None


def format_instant(instant: datetime) -> str:
    """Write an instant the way the API does, ``2026-01-15T10:00:00.000Z``."""
    digits = "microseconds" if instant.microsecond % 1000 else "milliseconds"
    return instant.isoformat(timespec=digits).replace("+00:00", "Z")


def midnight(day: date) -> datetime:
    """Give the first instant of a day."""
    return datetime.combine(day, time(), UTC)


# --- Which instants -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """The instants from ``start`` up to, not including, ``end``; None is no bound."""

    start: datetime | None = None
    end: datetime | None = None

    def holds(self, instant: datetime | None) -> bool:
        """Tell whether an instant lies in the span; one that is not known does."""
        return instant is None or (
            (self.start is None or instant >= self.start)
            and (self.end is None or instant < self.end)
        )


@dataclass(frozen=True, slots=True)
class Stretch:
    """The one stretch of time that is complete, both ends included.

    ``complete_from`` None means from the beginning of time.
    """

    complete_from: datetime | None
    complete_to: datetime

    def holds(self, instant: datetime) -> bool:
        """Tell whether the rows of an instant have been read."""
        return instant <= self.complete_to and (
            self.complete_from is None or instant >= self.complete_from
        )

    def joined(self, other: Stretch) -> Stretch | None:
        """Give both as one where they touch or overlap, else None."""
        first, last = sorted(
            (self, other), key=lambda stretch: stretch.complete_from or _LONG_AGO
        )
        if last.complete_from and last.complete_from > first.complete_to:
            return None
        return Stretch(first.complete_from, max(first.complete_to, last.complete_to))


_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def read_stretch(
    bookmark: Mapping[str, t.Any],
    complete_to: str,
    now: datetime,
    lookback: timedelta,
) -> tuple[Stretch | None, str | None]:
    """Read the complete stretch of a bookmark, never more than it says.

    Args:
        bookmark: A bookmark of ours.
        complete_to: Name of the key that holds the forward mark.
        now: Start of the run. A mark a little after it, by another machine's clock,
            counts as now; one more than a day after it is no mark.
        lookback: What counts as complete before a forward mark that stands alone.

    Returns:
        The stretch, or None where nothing counts as complete, and what is wrong with
        the bookmark, if anything.
    """
    if complete_to not in bookmark and "complete_from" not in bookmark:
        return None, None
    to = parse_instant(bookmark.get(complete_to))
    if to is None or to > now + DAY:
        return None, f"{complete_to} is {bookmark.get(complete_to)!r}"
    to = min(to, now)
    written = bookmark.get("complete_from")
    start = parse_instant(written)
    if written == BEGINNING or (start is not None and start <= to):
        return Stretch(start, to), None
    return Stretch(to - lookback, to), f"complete_from is {written!r}"


def write_stretch(stretch: Stretch, complete_to: str) -> Bookmark:
    """Write a complete stretch as keys of a bookmark."""
    start = stretch.complete_from
    return {
        complete_to: format_instant(stretch.complete_to),
        "complete_from": BEGINNING if start is None else format_instant(start),
    }


def clean_state(
    state: object, marks: Mapping[str, str], start: datetime | None
) -> tuple[dict[str, Bookmark], list[str]]:
    """Take from a state what can be worked with; nothing in it is trusted.

    Args:
        state: Whatever a state file may hold.
        marks: The forward mark's key of each stream; the streams that are known.
        start: start_date. A bookmark without any key of ours, which a person or
            another tap has written, counts as complete from there on.

    Returns:
        The bookmarks by stream, and what had to be left out.
    """
    bookmarks: dict[str, Bookmark] = {}
    if state is None or state == {}:
        return bookmarks, []
    written = state.get("bookmarks") if isinstance(state, dict) else state
    if not isinstance(written, dict):
        return bookmarks, ["there are no bookmarks in it"]
    problems = []
    for stream, bookmark in written.items():
        if stream not in marks or not isinstance(bookmark, dict):
            if bookmark is not None:
                problems.append(f"{stream!r} is not a bookmark of this tap")
            continue
        kept = {
            key: bookmark[key]
            for key, kind in KEYS.items()
            if isinstance(bookmark.get(key), kind) and _is_writable(bookmark[key])
        }
        ours = bookmark.keys() & KEYS.keys()
        problems += [
            f"{key} of {stream} is {str(bookmark[key])[:40]!r}"
            for key in sorted(ours - kept.keys())
            if bookmark[key] is not None
        ]
        # A key of ours that is damaged tells that the bookmark is not foreign.
        if ours <= SDK_KEYS and parse_instant(kept.get(marks[stream])):
            kept["complete_from"] = BEGINNING if start is None else format_instant(start)
        bookmarks[stream] = kept
    return bookmarks, problems


def _is_writable(value: object) -> bool:
    """Tell whether a value can be sent on; half a surrogate pair cannot."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


SDK_KEYS = {"replication_key", "replication_key_value"}
# The keys a bookmark of ours may have, and the types of their values.
KEYS = {
    "replication_key": str,
    "replication_key_value": str,
    "complete_from": str,
    "ledger": dict,
    "dates": list,
    "days": dict,
    "ahead": str,
    "complete": dict,
    "set_aside": dict,
    "project": str,
}


# --- What to read -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Window:
    """Whole days asked for in one listing, ``[start, end)``; None is no bound."""

    start: date | None
    end: date | None

    def query(self) -> dict[str, str]:
        """Give the query parameters that ask for the window's rows."""
        query = {}
        if self.start:
            query["from"] = self.start.isoformat()
        if self.end:
            query["to"] = self.end.isoformat()
        return query

    def holds(self, day: date) -> bool:
        """Tell whether a day lies in the window."""
        return (self.start is None or day >= self.start) and (
            self.end is None or day < self.end
        )

    def day_of(self, instant: datetime | None, today: date) -> date:
        """Give the day a row is filed under: its own, or the window's last.

        The API does not say which of a row's instants the dates filter on, so the
        row may lie outside of the window.
        """
        day = instant.date() if instant else None
        if day is not None and self.holds(day):
            return day
        if self.end is None:
            return max(today, self.start or today)
        return self.end - DAY


def asked_for(span: Span, now: datetime) -> Window:
    """Give the days to ask for so that a span is complete in every time zone."""
    start = end = None
    if span.start is not None:
        start = span.start.date() - DAY
    if span.end is not None and span.end <= now:
        end = _ceil(span.end) + DAY
    return Window(start, end)


def _ceil(instant: datetime) -> date:
    day = instant.date()
    return day if instant == midnight(day) else day + DAY


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run reads: ``forward`` oldest first, then ``history`` newest first."""

    forward: Span | None
    history: Span | None
    stretch: Stretch | None = None
    moves_marks: bool = True

    def forward_days(self, now: datetime) -> Window | None:
        """Give the days to ask for in the forward part."""
        return asked_for(self.forward, now) if self.forward else None

    def history_days(self, now: datetime) -> Window | None:
        """Give the days to ask for in history.

        Where the forward part of this run reads the days before, both touch; where an
        earlier run did, they overlap.
        """
        if self.history is None:
            return None
        days = asked_for(self.history, now)
        forward = self.forward_days(now)
        if self.stretch is None and forward is not None:
            return Window(days.start, forward.start)
        return days

    def was_read(self, instant: datetime | None) -> bool:
        """Tell whether a row met in history lies where history overlaps the stretch.

        Only there: a row further inside may have been filed under an earlier day by
        another of its instants, and was then never read.
        """
        if instant is None or self.stretch is None or not self.moves_marks:
            return False
        start = self.stretch.complete_from
        return (
            start is not None
            and self.stretch.holds(instant)
            and instant < midnight(_ceil(start)) + 3 * DAY
        )


def make_plan(
    stretch: Stretch | None, need: Span, lookback: timedelta, now: datetime
) -> Plan:
    """Plan what a run reads: its need less what is complete, plus the lookback.

    Args:
        stretch: What is complete, None where nothing is.
        need: The instants from start_date to end_date.
        lookback: How far before the forward mark rows may still change or come.
        now: Start of the run.
    """
    start = need.start or _LONG_AGO
    if stretch is None or start > stretch.complete_to:
        newest = now if need.end is None else min(need.end, now)
        recent = midnight(newest.date()) - lookback
        if start >= recent:
            return Plan(forward=need, history=None)
        return Plan(Span(recent, need.end), Span(need.start, recent))
    complete_from = stretch.complete_from or _LONG_AGO
    if need.end is not None and need.end < complete_from:
        return Plan(None, need, stretch, moves_marks=False)
    edge = max(stretch.complete_to - lookback, start, complete_from)
    return Plan(
        forward=Span(edge, need.end) if need.end is None or need.end > edge else None,
        history=Span(need.start, complete_from) if start < complete_from else None,
        stretch=stretch,
    )


class Marks:
    """The complete stretch while a run extends it, window by window."""

    def __init__(self, plan: Plan, need: Span, now: datetime) -> None:
        """Begin with what the plan found complete."""
        self.need = need
        self.now = now
        self.moves = plan.moves_marks
        self.stretch = plan.stretch
        self._begins = plan.forward.start if plan.forward else None
        self._seen: datetime | None = None

    def saw(self, instant: datetime | None) -> None:
        """Note a row that was read and not dropped; a lying clock moves nothing."""
        if instant is None or instant > self.now:
            return
        if self._seen is None or instant > self._seen:
            self._seen = instant

    def forward_done(self, window: Window) -> None:
        """Move the forward mark over a completed window."""
        known = self.now if window.end is None else midnight(window.end - DAY)
        if self._seen is None or not self.moves:
            return
        to = min(self._seen, known)
        if self.stretch:
            to = max(to, self.stretch.complete_to)
            self.stretch = replace(self.stretch, complete_to=to)
        elif self._begins is None or to >= self._begins:
            self.stretch = Stretch(self._begins, to)

    def history_done(self, window: Window) -> None:
        """Move the beginning of the stretch back over a completed window."""
        if not self.moves:
            return
        start = self.need.start
        if window.start is not None:
            start = max(midnight(window.start + DAY), start or _LONG_AGO)
        if self.stretch:
            known = self.stretch.complete_from
            first = None if start is None or known is None else min(start, known)
            self.stretch = replace(self.stretch, complete_from=first)
        elif self._seen is not None and self._seen >= (start or _LONG_AGO):
            self.stretch = Stretch(start, self._seen)


class Sample(t.NamedTuple):
    """How many rows the API counts in how many days, those beside what is to be cut."""

    rows: int
    days: int


class Cutter:
    """Cuts days into windows of about ``rows`` rows by the API's own totals.

    One that turns out up to half as large again is taken: to ask for a smaller one would
    be one more request.

    Propose a window, ask for its first page, and say with :meth:`fits` how many rows
    the API has in it: True means that the window is to be read, False that a smaller
    one is proposed next.
    """

    def __init__(
        self,
        days: Window,
        rows: int,
        today: date,
        *,
        newest_first: bool,
        sample: Sample | None = None,
    ) -> None:
        """Begin with all of the days, or where rows are dense with some of them.

        To ask for all first tells in one request how much there is, and is all that is
        needed where that is little.
        """
        self.rest: Window | None = days
        self.rows_left = 0  # in ``rest``, by the API's totals, once it was found too large
        self._rows = rows
        self._most = rows * 3 // 2
        self._today = today
        self._newest_first = newest_first
        self._days = FIRST_GUESS
        self._is_dense = False  # so that not all are asked for before a part has fit
        if sample and sample.rows:
            days_of_one = max(1, rows * sample.days * 9 // (sample.rows * 10))
            if days_of_one <= DENSE:  # a few rows tell nothing
                self._days, self._is_dense = days_of_one, True

    def propose(self) -> Window | None:
        """Give the next window to ask for; None when nothing is left."""
        rest = self.rest
        if rest is None or (rest.start and rest.end and rest.start >= rest.end):
            return None
        is_small = self.rows_left <= self._most and not self._is_dense
        if is_small or self._days >= self._size(rest):
            return rest
        step = timedelta(days=self._days)
        if self._newest_first:
            return Window((rest.end or self._today + DAY) - step, rest.end)
        return Window(rest.start, (rest.start or EPOCH) + step)

    def would_fit(self, total: int) -> bool:
        """Tell whether the proposed window is to be read if it has so many rows."""
        window = self.propose()
        return total <= self._most or (window is not None and self._size(window) <= 1)

    def fits(self, total: int) -> bool:
        """Say how many rows the proposed window has; True if it is to be read."""
        rest, window = self.rest, self.propose()
        if rest is None or window is None:
            return False
        size = self._size(window)
        if not self.would_fit(total):
            if window == rest:
                self.rows_left = total
            if window.start is None:
                # All of the years since 1970 tell nothing of how dense the rows are.
                self._days = min(self._days, size - 1)
            else:
                self._days = max(1, int(size * self._rows * 0.9 / total))
            return False
        self._is_dense = False
        if window == rest:
            self.rest = None
            return True
        if self._newest_first:
            self.rest = Window(rest.start, window.start)
        else:
            self.rest = Window(window.end, rest.end)
        self.rows_left -= total
        aim = int(size * self._rows * 0.9 / max(1, total))
        self._days = max(1, min(aim, 4 * size))
        return True

    def _size(self, window: Window) -> int:
        """Give the number of days in a window; without a beginning, those since 1970."""
        end = window.end or self._today + DAY
        return (end - (window.start or EPOCH)).days


# --- Which sessions changed ---------------------------------------------------------

_ENTRY = struct.Struct("5s4s4s")
NOTHING = bytes(4)


def fingerprint(*values: object) -> bytes:
    """Give four bytes that tell values, anything JSON can write, from others."""
    text = msgspec.json.encode(values, order="sorted")
    return blake2b(text, digest_size=4).digest()


class Entry(t.NamedTuple):
    """What the ledger knows of a session: the row emitted, the events fetched."""

    row: bytes = NOTHING
    events: bytes = NOTHING


class Ledger:
    """For each session that may still change: what was emitted and fetched of it.

    In a state it is one string per day, 13 bytes (17.3 characters) per session.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._days: dict[date, dict[bytes, Entry]] = {}
        self._day_of: dict[bytes, date] = {}
        self._packed: dict[date, str] = {}

    @classmethod
    def unpack(cls, packed: object) -> tuple[Ledger, int]:
        """Read a ledger from a state.

        Returns:
            The ledger, and the number of days that could not be read and are
            therefore not known: their sessions count as never seen.
        """
        ledger, unread = cls(), 0
        if not isinstance(packed, dict):
            return ledger, int(packed is not None)
        for name, text in packed.items():
            try:
                day = t.cast("datetime", parse_instant(name)).date()
                entries = _ENTRY.iter_unpack(base64.b64decode(text, validate=True))
                for session, row, events in entries:
                    ledger._put(day, session, Entry(row, events))
            except (AttributeError, TypeError, ValueError, struct.error):
                unread += 1
        return ledger, unread

    def pack(self) -> dict[str, str]:
        """Write the ledger for a state; only changed days are written anew."""
        for day, entries in self._days.items():
            if entries and day not in self._packed:
                content = b"".join(_ENTRY.pack(key, *entries[key]) for key in entries)
                self._packed[day] = base64.b64encode(content).decode()
        return {day.isoformat(): self._packed[day] for day in sorted(self._packed)}

    def __len__(self) -> int:
        """Give the number of sessions remembered."""
        return len(self._day_of)

    def get(self, session: str) -> Entry | None:
        """Give what is known of a session."""
        key = session_key(session)
        day = self._day_of.get(key)
        return None if day is None else self._days[day][key]

    def put(
        self,
        session: str,
        day: date,
        *,
        row: bytes | None = None,
        events: bytes | None = None,
    ) -> None:
        """Note what was emitted or fetched of a session filed under a day."""
        entry = self.get(session) or Entry()
        self._put(
            day, session_key(session), Entry(row or entry.row, events or entry.events)
        )

    def _put(self, day: date, key: bytes, entry: Entry) -> None:
        # A state that was merged from two may have a session under two days.
        self._forget(key)
        self._days.setdefault(day, {})[key] = entry
        self._day_of[key] = day
        self._packed.pop(day, None)

    def _forget(self, key: bytes) -> None:
        day = self._day_of.pop(key, None)
        if day is not None:
            del self._days[day][key]
            self._packed.pop(day, None)

    def prune(self, keep: Callable[[date, Entry], bool]) -> None:
        """Forget the entries that are not to be kept."""
        for day, entries in self._days.items():
            for key in [key for key in entries if not keep(day, entries[key])]:
                self._forget(key)

    def forget_ahead(self, today: date, most: int = MAX_AHEAD) -> int:
        """Keep at most ``most`` sessions of the future; give the number forgotten."""
        ahead = [
            key
            for day in sorted(self._days)
            if day > today + DAY
            for key in self._days[day]
        ]
        for key in ahead[most:]:
            self._forget(key)
        return len(ahead[most:])


def session_key(session: str) -> bytes:
    """Give five bytes that stand for an id."""
    return blake2b(session.encode(), digest_size=5).digest()


# --- Which sessions' events are due -------------------------------------------------


class Candidate(t.NamedTuple):
    """A session whose events may be due; ``day`` is the day it is filed under."""

    id: str
    instant: datetime | None
    day: date
    mark: bytes  # what its events would be fetched with
    crashed: bool
    errors: bool


def candidate(row: Mapping[str, t.Any], instant: datetime | None, day: date) -> Candidate:
    """Reduce a session to what decides whether its events are fetched."""
    crashed = bool(row["hasCrash"]) or row["status"] == "crashed"
    return Candidate(
        row["id"],
        instant,
        day,
        fingerprint(row["eventCount"], row["status"], row["endedAt"], row["hasCrash"]),
        crashed,
        crashed or bool(row["hasNetworkErrors"]),
    )


def has_events(row: Mapping[str, t.Any]) -> bool:
    """Tell whether a session can have events: not if it ended with none."""
    return bool(row["eventCount"] != 0 or row["status"] == "active")


def is_wanted(session: Candidate, events_for: str) -> bool:
    """Tell whether the setting ``events_for`` takes a session's events."""
    return {"all": True, "errors": session.errors, "crashed": session.crashed}[events_for]


def wider(events_for: str) -> tuple[str, ...]:
    """Give the values of ``events_for`` that serve one, the widest first."""
    order = ("all", "errors", "crashed")
    return order[: order.index(events_for) + 1]


def split(days: Window, known: list[Window]) -> list[tuple[Window, bool]]:
    """Cut days, newest first, into those that are known and those that are not."""
    inner = sorted(
        {edge for window in known for edge in (window.start, window.end) if edge}
    )
    inner = [edge for edge in inner if days.holds(edge) and edge != days.start]
    edges = [days.start, *inner, days.end]
    pieces = [Window(*pair) for pair in itertools.pairwise(edges)]
    cut: list[tuple[Window, bool]] = []
    for piece in reversed(pieces):
        is_known = any(_covers(window, piece) for window in known)
        if cut and cut[-1][1] == is_known:
            cut[-1] = (Window(piece.start, cut[-1][0].end), is_known)
        else:
            cut.append((piece, is_known))
    return cut


def _covers(outer: Window, inner: Window) -> bool:
    return (
        outer.start is None or (inner.start is not None and outer.start <= inner.start)
    ) and (outer.end is None or (inner.end is not None and inner.end <= outer.end))


# --- Which days of network calls grew -----------------------------------------------


class DayReading(t.NamedTuple):
    """What the last complete reading of a day found.

    ``total`` is the API's own; ``rows`` of them lay in start_date to end_date and not
    in the future of the run, the latest at ``last``.
    """

    total: int
    rows: int
    last: datetime

    @classmethod
    def read(cls, written: object) -> DayReading | None:
        """Read a reading from a state, None where it is none."""
        if not isinstance(written, list) or len(written) != len(cls._fields):
            return None
        last = parse_instant(written[2])
        if last is None or not all(type(number) is int for number in written[:2]):
            return None
        return cls(written[0], written[1], last)

    def write(self) -> list[t.Any]:
        """Write a reading for a state."""
        return [self.total, self.rows, format_instant(self.last)]
