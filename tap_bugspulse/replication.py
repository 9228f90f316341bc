"""What is complete and what to read next: plain data in, plain data out.

Instants are aware datetimes in UTC, days are UTC dates. The API does not say which time zone its
dates mean: what is asked for reaches a day further than what is requested, and a bookmark stays a
day inside what was asked for.
"""

from __future__ import annotations

import math
import typing as t
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from hashlib import blake2b

import msgspec
from singer_sdk.exceptions import ConfigurationError

DAY = timedelta(days=1)
BEGINNING = "beginning"  # how a state writes a range without a lower bound
FIRST_GUESS = 10  # days of a window where nothing is known of their rows
EPOCH = date(1970, 1, 1)  # where clocks begin that were never set
JUST_BEFORE = timedelta(milliseconds=1)  # the precision of the API's instants
# An instant outside of these comes from a clock that was never set.
FIRST, AFTER = (datetime(year, 1, 1, tzinfo=UTC) for year in (1900, 9000))
MAX_AHEAD = 1000  # sessions in the future of the run that are remembered
KEY, FINGERPRINT = 8, 12  # bytes for a session's id, and for all that is known of it
LONG_AGO = datetime.min.replace(tzinfo=UTC)  # no bound, and
FAR_AWAY = datetime.max.replace(tzinfo=UTC)
Instant = t.Annotated[datetime, msgspec.Meta(tz=True)]
_encode = msgspec.json.Encoder(order="sorted").encode


def parse_instant(text: t.Any) -> datetime | None:
    """Return a date or date-time as an aware instant in UTC, None if it is neither."""
    try:
        instant = datetime.fromisoformat(text)
        instant = (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):  # the first of what is no text
        return None
    return instant if FIRST <= instant < AFTER else None


def format_instant(instant: datetime) -> str:
    """Return an instant the way the API writes it, ``2026-01-15T10:00:00.000Z``."""
    digits = "microseconds" if instant.microsecond % 1000 else "milliseconds"
    return instant.isoformat(timespec=digits).replace("+00:00", "Z")


def midnight(day: date) -> datetime:
    """Return the first instant of a day."""
    return datetime.combine(day, time(), UTC)


@dataclass(frozen=True, slots=True)
class Span:
    """The instants from ``start`` up to, not including, ``end``."""

    start: datetime = LONG_AGO
    end: datetime = FAR_AWAY

    def holds(self, instant: datetime | None) -> bool:
        """Return whether an instant lies in the span; an unknown one does."""
        return instant is None or self.start <= instant < self.end

    def joined(self, other: Span) -> Span:
        """Return both as one where they touch or overlap, else the one that is newer."""
        first, last = sorted((self, other), key=lambda one: one.start)
        if last.start > first.end:
            return max(self, other, key=lambda one: one.end)
        return Span(first.start, max(first.end, last.end))

    def write(self, key: str) -> dict[str, str]:
        """Return what is complete as keys of a bookmark, its end under ``key``."""
        begins = format_instant(self.start) if self.start > LONG_AGO else BEGINNING
        return {key: format_instant(self.end), "complete_from": begins}


@dataclass(frozen=True, slots=True)
class Window:
    """Whole days asked for in one listing, ``[start, end)``; min and max are no bounds."""

    start: date = date.min
    end: date = date.max

    def __bool__(self) -> bool:
        return self.start < self.end

    @classmethod
    def around(cls, span: Span, now: datetime) -> Window:
        """Return the days to ask for so that a span is complete in every time zone."""
        start = span.start.date() - DAY if span.start > LONG_AGO else date.min
        last = (span.end - datetime.resolution).date()
        return cls(start, last + 2 * DAY if span.end <= now else date.max)

    def wider(self) -> Window:
        """Return the window with another day at each of its bounds."""
        start, end = max(self.start, date.min + DAY), min(self.end, date.max - DAY)
        return Window(start - DAY, end + DAY)

    def query(self) -> dict[str, str]:
        """Return the query parameters that ask for the window's rows."""
        bounds = {"from": self.start, "to": self.end}
        return {name: f"{day}" for name, day in bounds.items() if date.min < day < date.max}

    def holds(self, day: date) -> bool:
        """Return whether a day lies in the window."""
        return self.start <= day < self.end

    def day_of(self, instant: datetime | None, today: date) -> date:
        """Return the day a row is filed under: its own, or the window's last.

        A row may lie outside of its window, by a day in another time zone; or by more, where the
        dates filter on another of its instants.
        """
        if instant is not None and self.wider().holds(day := instant.date()):
            return day
        return self.end - DAY if self.end < date.max else max(today, self.start)

    def size(self, today: date) -> int:
        """Return the number of days up to ``today``, from 1970 on where there is no start."""
        start = self.start if self.start > date.min else EPOCH
        return max(1, (min(self.end, today + DAY) - start).days)


NOTHING = Window(date.min, date.min)


class StateError(ConfigurationError):
    """A state holds something that cannot be read; the message names it."""

    def __init__(self, key: str, whose: str, why: object) -> None:
        super().__init__(
            f"the state cannot be read: {key} of {whose}: {str(why)[:100]}. Correct it (or the "
            "clock), restore an earlier state, or run without a state to load everything again"
        )


class DayReading(msgspec.Struct, array_like=True, frozen=True):
    """What the last reading of a day of network calls found.

    ``total`` is the API's own, -1 where it says nothing of what was loaded; ``rows`` of them
    were loaded and not in the future, from ``start`` to ``last``.
    """

    total: int
    rows: int
    last: Instant
    start: Instant = LONG_AGO

    def holds(self, instant: datetime | None) -> bool:
        """Return whether a row was counted, if it was there; one of an unknown instant was."""
        return instant is None or self.start <= instant <= self.last


class Bookmark(msgspec.Struct, omit_defaults=True):
    """A bookmark of a state: the SDK's two keys, and the tap's own.

    ``complete`` has a range for each ``events_for``. A session is in ``fingerprints`` by the
    day it is filed under, a day of network calls in ``days``. ``set_aside`` has sessions whose
    events failed and why, ``short`` how many events came of others, and how many their row says.
    """

    replication_key: str | None = None
    replication_key_value: str | None = None
    complete_from: str | None = None
    complete_to: str | None = None
    complete: dict[str, Bookmark] = {}
    fingerprints: dict[date, bytes] = {}
    days: dict[date, DayReading] = {}
    set_aside: dict[str, str] = {}
    short: dict[str, tuple[int, int]] = {}
    project: str | None = None

    @classmethod
    def read(cls, written: t.Any, whose: str = "") -> Bookmark:
        """Return a bookmark without what is null, or raise StateError if it cannot be read."""
        try:
            found = msgspec.convert(_without_nulls(written) or {}, cls)
        except ValueError as error:
            raise StateError("bookmark", whose, error) from None
        for day, text in found.fingerprints.items():
            if len(text) % FINGERPRINT:
                raise StateError("fingerprints", whose, f"{day} has {len(text)} bytes")
        return found

    def range(self, whose: str = "", now: datetime | None = None) -> Span | None:
        """Return what is complete up to ``now``, None if nothing is, or raise StateError."""
        key = "complete_to" if self.complete_to else "replication_key_value"
        if not (end := getattr(self, key)):
            return None
        to, start = parse_instant(end), parse_instant(self.complete_from)
        if to is None:
            raise StateError(key, whose, repr(end))
        if now and to > now + DAY:
            clock = f"{end}, but by the clock of this machine it is {format_instant(now)}"
            raise StateError(key, whose, clock)
        if self.complete_from != BEGINNING and (start is None or start > to):
            raise StateError("complete_from", whose, repr(self.complete_from))
        return Span(start or LONG_AGO, min(to, now or to))


def _without_nulls(written: t.Any) -> t.Any:
    if not isinstance(written, dict):
        return written
    return {key: _without_nulls(one) for key, one in written.items() if one is not None}


def fingerprint(value: object) -> bytes:
    """Return four bytes that tell a value, anything JSON can write, from others."""
    return blake2b(_encode(value), digest_size=FINGERPRINT - KEY).digest()


def _key(session: str) -> bytes:
    return blake2b(session.encode(), digest_size=KEY).digest()


class Ledger:
    """A fingerprint for each session that may still change, and the day it is filed under."""

    def __init__(self, days: t.Mapping[date, bytes] | None = None) -> None:
        self._entries = {
            text[i : i + KEY]: (day, text[i + KEY : i + FINGERPRINT])
            for day, text in (days or {}).items()
            for i in range(0, len(text), FINGERPRINT)
        }

    def get(self, session: str) -> bytes | None:
        """Return the fingerprint of a session."""
        return self._entries.get(_key(session), (None, None))[1]

    def put(self, session: str, day: date, mark: bytes) -> None:
        """Note the fingerprint of a session filed under a day, and under no other."""
        self._entries[_key(session)] = (day, mark)

    def pack(self) -> dict[date, bytearray]:
        """Return the ledger for a bookmark."""
        days: dict[date, bytearray] = {}
        for key, (day, mark) in self._entries.items():
            days.setdefault(day, bytearray()).extend(key + mark)
        return dict(sorted(days.items()))

    def prune(self, keep: t.Callable[[date], bool], today: date) -> int:
        """Forget the days that are not to be kept; return how much of the future, too."""
        self._entries = {key: one for key, one in self._entries.items() if keep(one[0])}
        ahead = sorted((day, key) for key, (day, _) in self._entries.items() if day > today + DAY)
        for _, key in ahead[MAX_AHEAD:]:
            del self._entries[key]
        return len(ahead[MAX_AHEAD:])


@dataclass(slots=True)
class Plan:
    """What a run reads: ``forward`` oldest first, then ``history`` newest first.

    ``known`` is what the state says is complete, ``complete`` what is while the run reads. That
    ends at ``target`` in the end; the forward part reads all that it lacks from ``begins`` on.
    """

    forward: Window
    history: Window
    known: Span | None
    requested: Span
    begins: datetime
    target: datetime
    complete: Span | None
    moves_bookmark: bool = True

    def was_read(self, instant: datetime | None) -> bool:
        """Return whether a row met in history lies where history overlaps what is known.

        Only there: one further inside may be filed under an earlier day, by another of its
        instants, and was then never read.
        """
        if not (instant and self.known):
            return False
        return self.known.holds(instant) and instant < midnight(self.history.end + 2 * DAY)

    def is_before_lookback(self, instant: datetime | None) -> bool:
        """Return whether an instant is complete and lies before what is read again."""
        if not (instant and self.known):
            return False
        return self.known.start <= instant < midnight(self.forward.start)

    def forward_done(self, window: Window) -> None:
        """Move the end of the range over a completed window."""
        to = min(self.target, midnight(window.end - DAY))
        if to >= self.begins:
            read = Span(self.begins, to)
            self.complete = self.complete.joined(read) if self.complete else read

    def history_done(self, window: Window) -> None:
        """Move the start of the range back over a completed window."""
        if self.complete and self.moves_bookmark:
            start = midnight(window.start + DAY) if window.start > date.min else LONG_AGO
            start = min(max(start, self.requested.start), self.complete.start)
            self.complete = replace(self.complete, start=start)


def make_plan(known: Span | None, requested: Span, lookback: timedelta, now: datetime) -> Plan:
    """Return what a run that starts ``now`` reads: requested less known, plus lookback."""
    start, target = requested.start, min(now, requested.end - JUST_BEFORE)
    if known is None or start > known.end:
        known, edge = None, max(start, midnight(target.date()) - lookback)
        begins = edge
    elif requested.end < known.start:
        whole = Window.around(requested, now)
        return Plan(NOTHING, whole, known, requested, start, target, known, moves_bookmark=False)
    else:
        edge = max(start, known.end - lookback)
        begins = min(edge, known.start)
        if start > max(known.start, target - lookback):
            # What start_date keeps from being read again is for the lookback of the next run.
            target = known.end
    forward = history = NOTHING
    if requested.end > edge:
        forward = Window.around(Span(edge, requested.end), now)
    if start < begins:
        history = Window.around(Span(start, begins), now)
        if forward:  # from where it begins on, all is read
            history = replace(history, end=min(history.end, forward.start))
        begins = begins if history else start
    return Plan(forward, history, known, requested, begins, target, known)


class Cutter:
    """Cuts days into windows of fewer than ``limit`` rows by the API's own totals.

    Ask for the first page of what :meth:`propose` returns, and call :meth:`fits` with its total.
    A single day is read however many rows it has.
    """

    def __init__(
        self, days: Window, limit: int, today: date, *, newest_first: bool, per_day: float = 0.0
    ) -> None:
        self.rest = days
        self.rows_left = 0  # in ``rest``, once it was found too large
        self._limit, self._today, self._newest_first = limit, today, newest_first
        self._per_day = per_day  # rows, the latest windows above all; 0 is not known
        self._days = self._days_of_a_window() if per_day else FIRST_GUESS

    def propose(self) -> Window:
        """Return the next window to ask for, an empty one when nothing is left."""
        rest = self.rest
        if not rest or self.rows_left < self._limit or self._days >= rest.size(self._today):
            return rest
        step = timedelta(days=self._days)
        if self._newest_first:
            return Window(min(rest.end, self._today + DAY) - step, rest.end)
        return Window(rest.start, rest.start + step)

    def fits(self, rows: int) -> bool:
        """Return whether the proposed window is to be read; if not, propose a smaller one next."""
        rest, window = self.rest, self.propose()
        size = window.size(self._today)
        if window.start > date.min:  # the years since 1970 tell nothing of how dense rows are
            per_day = max(1, rows) / size
            self._per_day = (self._per_day + per_day) / 2 if self._per_day else per_day
            self._days = self._days_of_a_window()
        if rows >= self._limit and size > 1:
            if window == rest:
                self.rows_left = rows
            self._days = min(size - 1, self._days)
            return False
        older, newer = Window(rest.start, window.start), Window(window.end, rest.end)
        self.rest = older if self._newest_first else newer
        self.rows_left = max(self.rows_left - rows, 0)
        return True

    def _days_of_a_window(self) -> int:
        """Return days that hold less than a window's rows, those that fill their pages best."""
        per_page = self._per_day * 10 / self._limit  # pages that a day fills
        most = max(1, min(4000, int(9 / per_page)))
        return max(
            range(math.ceil(0.7 * most), most + 1),
            # Some rows more than are expected may come.
            key=lambda days: days * per_page / math.ceil(days * per_page * 1.02 + 0.02),
        )
