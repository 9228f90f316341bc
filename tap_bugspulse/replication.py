"""What is complete and what to read next: plain data in, plain data out.

Instants are aware datetimes in UTC, days are UTC dates. The API does not say in which time zone its
dates are. So a query reaches a day beyond the time that is requested, at both ends, and a bookmark
stays a day inside the days that were queried.
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
BEGINNING = "beginning"  # in a state, the start of a range without a lower bound
FIRST_WINDOW_DAYS = 10  # while nothing is known about the rows of a day
EPOCH = date(1970, 1, 1)  # what a device clock shows that was never set
FAR = date(2100, 1, 1)  # a day without any rows; no later one, as date types may end
JUST_BEFORE = timedelta(milliseconds=1)  # the precision of the API's instants
# Instants outside of these come from device clocks that are wrong.
EARLIEST, TOO_LATE = (datetime(year, 1, 1, tzinfo=UTC) for year in (1900, 9000))
MAX_AHEAD = 1000  # sessions with a date in the future whose fingerprints are kept
KEY_BYTES, FINGERPRINT_BYTES, ENTRY_BYTES = 8, 4, 12  # hash of a session's id, of its row; both
LONG_AGO = datetime.min.replace(tzinfo=UTC)  # no lower bound
FAR_AWAY = datetime.max.replace(tzinfo=UTC)  # no upper bound
Instant = t.Annotated[datetime, msgspec.Meta(tz=True)]
_encode = msgspec.json.Encoder(order="sorted").encode


def parse_instant(text: t.Any) -> datetime | None:
    """Return a date or date-time as an aware instant in UTC, None if it is not a plausible one."""
    try:
        instant = datetime.fromisoformat(text)
        instant = (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):  # the first if it is not a text
        return None
    return instant if EARLIEST <= instant < TOO_LATE else None


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
        """Return whether an instant lies in the span; True if it is unknown."""
        return instant is None or self.start <= instant < self.end

    def joined(self, other: Span) -> Span:
        """Return both as one span if they touch or overlap, else the newer one."""
        first, last = sorted((self, other), key=lambda one: one.start)
        if last.start > first.end:
            return max(self, other, key=lambda one: one.end)
        return Span(first.start, max(first.end, last.end))

    def write(self, key: str) -> dict[str, str]:
        """Return a complete range as keys of a bookmark, its end under ``key``."""
        start = format_instant(self.start) if self.start > LONG_AGO else BEGINNING
        return {key: format_instant(self.end), "complete_from": start}


@dataclass(frozen=True, slots=True)
class Window:
    """The whole days of one listing, ``[start, end)``; date.min and date.max mean no bound."""

    start: date = date.min
    end: date = date.max

    def __bool__(self) -> bool:
        return self.start < self.end

    @classmethod
    def around(cls, span: Span, now: datetime) -> Window:
        """Return the days to query for all rows of a span, in whichever time zone they are."""
        start = span.start.date() - DAY if span.start > LONG_AGO else date.min
        last = (span.end - datetime.resolution).date()
        return cls(start, last + 2 * DAY if span.end <= now else date.max)

    def wider(self) -> Window:
        """Return the window with one more day at each end."""
        start, end = max(self.start, date.min + DAY), min(self.end, date.max - DAY)
        return Window(start - DAY, end + DAY)

    def query(self) -> dict[str, str]:
        """Return the query parameters for the rows of the window.

        A ``from`` has a ``to``, if need be one far ahead: an API may ignore it without.
        """
        start = {"from": f"{self.start}"} if self.start > date.min else {}
        end = FAR if start and self.end == date.max else self.end
        return start | ({"to": f"{end}"} if end < date.max else {})

    def holds(self, day: date) -> bool:
        """Return whether a day lies in the window."""
        return self.start <= day < self.end

    def day_of(self, instant: datetime | None, today: date) -> date:
        """Return the day a row is filed under: its own, or the window's last.

        A row may lie outside its window: by a day because of the time zone, or by more if the API
        filters on another of its instants.
        """
        if instant is not None and self.wider().holds(day := instant.date()):
            return day
        return self.end - DAY if self.end < date.max else max(today, self.start)

    def size(self, today: date) -> int:
        """Return the number of days up to ``today``, at least 1; without a start, from 1970 on."""
        start = self.start if self.start > date.min else EPOCH
        return max(1, (min(self.end, today + DAY) - start).days)


NOTHING = Window(date.min, date.min)


class StateError(ConfigurationError):
    """A state holds something that cannot be read; the message says where."""

    def __init__(self, key: str, stream: str, why: object) -> None:
        super().__init__(
            f"the state cannot be read: {key} of {stream}: {str(why)[:100]}. Correct it (or the "
            "clock), restore an earlier state, or run without a state to load everything again"
        )


class DayReading(msgspec.Struct, array_like=True, frozen=True):
    """What the tap found when it last read a day of network calls.

    ``total`` is the API's count, -1 if it says nothing about what was loaded. ``rows`` calls were
    loaded that were not in the future: from ``start``, the start_date then, to ``last``.
    """

    total: int
    rows: int
    last: Instant
    start: Instant = LONG_AGO

    def holds(self, instant: datetime | None) -> bool:
        """Return whether ``rows`` counts a call of this instant, if the call was there then."""
        return instant is None or self.start <= instant <= self.last


class Bookmark(msgspec.Struct, omit_defaults=True):
    """A bookmark of a state: two keys of the SDK, and the tap's own.

    ``complete`` has a range for each ``events_for``, ``fingerprints`` the sessions of each day,
    ``days`` the network calls of each day. ``set_aside`` names sessions whose events failed, and
    why; ``short`` those with too few events: how many came, and how many the session's row counts.
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
    def read(cls, written: t.Any, stream: str = "") -> Bookmark:
        """Return a bookmark without its nulls, or raise StateError if it cannot be read."""
        try:
            found = msgspec.convert(_without_nulls(written) or {}, cls)
        except ValueError as error:
            raise StateError("bookmark", stream, error) from None
        for day, entries in found.fingerprints.items():
            if len(entries) % ENTRY_BYTES:
                raise StateError("fingerprints", stream, f"{day} has {len(entries)} bytes")
        return found

    def range(self, stream: str = "", now: datetime | None = None) -> Span | None:
        """Return the complete range up to ``now``, None if there is none, or raise StateError."""
        key = "complete_to" if self.complete_to else "replication_key_value"
        if not (end := getattr(self, key)):
            return None
        to, start = parse_instant(end), parse_instant(self.complete_from)
        if to is None:
            raise StateError(key, stream, repr(end))
        if now and to > now + DAY:
            clock = f"{end}, but by the clock of this machine it is {format_instant(now)}"
            raise StateError(key, stream, clock)
        if self.complete_from != BEGINNING and (start is None or start > to):
            raise StateError("complete_from", stream, repr(self.complete_from))
        return Span(start or LONG_AGO, min(to, now or to))


def _without_nulls(value: t.Any) -> t.Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(one) for key, one in value.items() if one is not None}


def fingerprint_of(value: object) -> bytes:
    """Return a short hash of a value, which may be anything that JSON can write."""
    return blake2b(_encode(value), digest_size=FINGERPRINT_BYTES).digest()


def _key(session: str) -> bytes:
    return blake2b(session.encode(), digest_size=KEY_BYTES).digest()


class Ledger:
    """The fingerprints of sessions that may still change, each with the day it is filed under."""

    def __init__(self, days: t.Mapping[date, bytes] | None = None) -> None:
        self._entries = {
            packed[i : i + KEY_BYTES]: (day, packed[i + KEY_BYTES : i + ENTRY_BYTES])
            for day, packed in (days or {}).items()
            for i in range(0, len(packed), ENTRY_BYTES)
        }

    def get(self, session: str) -> bytes | None:
        """Return the fingerprint of a session, None if it has none."""
        return self._entries.get(_key(session), (None, None))[1]

    def put(self, session: str, day: date, fingerprint: bytes) -> None:
        """Set the fingerprint of a session and the one day that it is filed under."""
        self._entries[_key(session)] = (day, fingerprint)

    def pack(self) -> dict[date, bytearray]:
        """Return the entries of each day, as a bookmark holds them."""
        days: dict[date, bytearray] = {}
        for key, (day, fingerprint) in self._entries.items():
            days.setdefault(day, bytearray()).extend(key + fingerprint)
        return dict(sorted(days.items()))

    def prune(self, keep: t.Callable[[date], bool], today: date) -> int:
        """Drop days not to keep, and future sessions over MAX_AHEAD; return how many of those."""
        self._entries = {key: one for key, one in self._entries.items() if keep(one[0])}
        ahead = sorted((day, key) for key, (day, _) in self._entries.items() if day > today + DAY)
        for _, key in ahead[MAX_AHEAD:]:
            del self._entries[key]
        return len(ahead[MAX_AHEAD:])


@dataclass(slots=True)
class Plan:
    """What a run reads: ``forward`` oldest first, then ``history`` newest first.

    ``known`` is the complete range of the state. ``complete`` grows from it while the run reads,
    up to ``target``: after the forward part, nothing from ``no_gap_from`` to there is missing.
    """

    forward: Window
    history: Window
    known: Span | None
    requested: Span
    no_gap_from: datetime
    target: datetime
    complete: Span | None
    moves_bookmark: bool = True

    def was_read(self, instant: datetime | None) -> bool:
        """Return whether a row of history was read before: where history overlaps ``known``.

        Not further inside: the API may file a row there under an earlier day, by another of its
        instants, and then no run has read it yet.
        """
        if not (instant and self.known):
            return False
        return self.known.holds(instant) and instant < midnight(self.history.end + 2 * DAY)

    def is_before_lookback(self, instant: datetime | None) -> bool:
        """Return whether an instant lies in ``known``, before the days that are read again."""
        if not (instant and self.known):
            return False
        return self.known.start <= instant < midnight(self.forward.start)

    def forward_done(self, window: Window) -> None:
        """Move the end of the range over a completed window."""
        to = min(self.target, midnight(window.end - DAY))
        if to >= self.no_gap_from:
            read = Span(self.no_gap_from, to)
            self.complete = self.complete.joined(read) if self.complete else read

    def history_done(self, window: Window) -> None:
        """Move the start of the range back over a completed window."""
        if self.complete and self.moves_bookmark:
            start = midnight(window.start + DAY) if window.start > date.min else LONG_AGO
            start = min(max(start, self.requested.start), self.complete.start)
            self.complete = replace(self.complete, start=start)


def make_plan(known: Span | None, requested: Span, lookback: timedelta, now: datetime) -> Plan:
    """Return what a run at ``now`` reads: all that is requested and not known, and the lookback."""
    start, target = requested.start, min(now, requested.end - JUST_BEFORE)
    if known is None or start > known.end:
        known, forward_from = None, max(start, midnight(target.date()) - lookback)
        no_gap_from = forward_from
    elif requested.end < known.start:
        whole = Window.around(requested, now)
        return Plan(NOTHING, whole, known, requested, start, target, known, moves_bookmark=False)
    else:
        forward_from = max(start, known.end - lookback)
        no_gap_from = min(forward_from, known.start)
        if start > max(known.start, target - lookback):
            # start_date cuts off some of the lookback. The end stays, so the next run reads that.
            target = known.end
    forward = history = NOTHING
    if requested.end > forward_from:
        forward = Window.around(Span(forward_from, requested.end), now)
    if start < no_gap_from:
        history = Window.around(Span(start, no_gap_from), now)
        if forward:  # it reads all rows from its start on
            history = replace(history, end=min(history.end, forward.start))
        no_gap_from = no_gap_from if history else start
    return Plan(forward, history, known, requested, no_gap_from, target, known)


class Cutter:
    """Cuts days into windows of fewer than ``limit`` rows, by the API's own totals.

    Request the first page of the window that :meth:`propose` returns, then call :meth:`fits` with
    its total. A window of a single day always fits.
    """

    def __init__(
        self, days: Window, limit: int, today: date, *, newest_first: bool, per_day: float = 0.0
    ) -> None:
        self.rest = days
        self.rows_left = 0  # in ``rest``, once that has turned out too large
        self._limit, self._today, self._newest_first = limit, today, newest_first
        self._per_day = per_day  # rows, mostly of the latest windows; 0: unknown
        self._days = self._days_of_a_window() if per_day else FIRST_WINDOW_DAYS

    def propose(self) -> Window:
        """Return the next window to request, an empty one when no day is left."""
        rest = self.rest
        if not rest or self.rows_left < self._limit or self._days >= rest.size(self._today):
            return rest
        step = timedelta(days=self._days)
        if self._newest_first:
            return Window(min(rest.end, self._today + DAY) - step, rest.end)
        return Window(rest.start, rest.start + step)

    def fits(self, rows: int) -> bool:
        """Return whether to read the proposed window; if not, a smaller one is proposed next."""
        rest, window = self.rest, self.propose()
        size = window.size(self._today)
        if window.start > date.min:  # the years since 1970 say nothing about rows per day
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
        """Return the number of days below the limit whose pages will be the fullest."""
        pages_per_day = self._per_day * 10 / self._limit  # the limit is that of ten pages
        most = max(1, min(4000, int(9 / pages_per_day)))
        return max(
            range(math.ceil(0.7 * most), most + 1),
            # A few more rows may come than expected.
            key=lambda days: days * pages_per_day / math.ceil(days * pages_per_day * 1.02 + 0.02),
        )
