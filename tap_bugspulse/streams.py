"""The four streams of the Export API."""

from __future__ import annotations

import itertools
import typing as t
from base64 import b64decode, b64encode
from collections import deque
from datetime import date
from functools import cached_property

from typing_extensions import override

from tap_bugspulse.client import BugsPulseStream
from tap_bugspulse.columns import sent
from tap_bugspulse.incremental import MARK, IncrementalStream
from tap_bugspulse.replication import (
    DAY,
    MAX_AHEAD,
    NOTHING,
    Candidate,
    DayReading,
    Entry,
    Ledger,
    Sample,
    Span,
    Stretch,
    Window,
    candidate,
    fingerprint,
    has_events,
    is_wanted,
    midnight,
    parse_instant,
    read_stretch,
    session_key,
)

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from tap_bugspulse.columns import Row
    from tap_bugspulse.events import Events
    from tap_bugspulse.paging import Page
    from tap_bugspulse.tap import TapBugsPulse

UNKNOWN = Entry()
MAX_REMEMBERED = 100_000  # sessions that a listing keeps for the events


class Crashes(BugsPulseStream):
    """Crash groups: all of them in every run, since triage moves no date."""

    name = "crashes"
    path = "/crashes"
    primary_keys = ("id",)

    @override
    def get_records(self, context: t.Any) -> Iterator[Row]:
        return self.rows({})


class FirstPage(t.NamedTuple):
    """What the first page of a part of the forward days tells."""

    total: int
    is_whole: bool  # whether it is the only one
    newest: datetime | None  # of its rows, of those that move the mark


class Network(IncrementalStream):
    """Network calls, which never change but may come late."""

    name = "network"
    path = "/network"
    primary_keys = ("id",)
    replication_key = instant_column = "timestamp"
    box_share = 0.5  # so that sessions and events get their turn

    days: dict[date, DayReading]
    ahead: set[bytes]
    _pieces: list[Window]  # of the forward days
    _came: dict[Window, FirstPage]  # the pieces that have been looked at

    @override
    def begin(self) -> None:
        super().begin()
        self.days, self.ahead = {}, _read_keys(self.stream_state.get("ahead"))
        self._pieces, self._came = [], {}
        if self.plan.stretch is None:
            return
        written = self.stream_state.get("days")
        for name, reading in (written if isinstance(written, dict) else {}).items():
            day, known = parse_instant(name), DayReading.read(reading)
            if day is not None and known is not None and self._same_need(day):
                self.days[day.date()] = known
        # The newest day was read without an end: its total counted the rows that lie in
        # the future, too, and says nothing about the day alone.
        newest = max(self.days, default=self.today)
        if newest < self.today:
            self.days[newest] = self.days[newest]._replace(total=-1)

    def _same_need(self, day: datetime) -> bool:
        """Tell whether a reading of a day meant the rows that this run means."""
        written = self.stream_state.get("dates")
        if written == self._dates():
            return True
        if not isinstance(written, list) or len(written) != 2:  # noqa: PLR2004 - two dates
            return False
        before = Span(parse_instant(written[0]), parse_instant(written[1]))
        edges = (day - DAY, day + 2 * DAY)
        return all(span.holds(edge) for span in (before, self.tap.need) for edge in edges)

    def _dates(self) -> list[str | None]:
        return [self.tap.config.get(name) for name in ("start_date", "end_date")]

    def _tracked_from(self, newest: datetime) -> date:
        """Give the first day that is read on its own, so that its growth shows."""
        return (newest - self.tap.settings.lookback).date() - DAY

    @staticmethod
    def _tracked_to(newest: datetime) -> date:
        """Give the last day that may hold the newest row, in whatever time zone."""
        return newest.date() + DAY

    @property
    def _recent(self) -> date:
        """The first day that a run reads on its own, whatever it finds."""
        started, end = self.tap.run.started, self.tap.need.end
        return self._tracked_from(started if end is None else min(end, started))

    @override
    def forward_windows(self, days: Window) -> Iterator[tuple[Window, Iterator[Page]]]:
        self._pieces = list(self._cut_forward(days))
        to_ask = deque(self._pieces)
        bulk: Window | None = None
        ids: set[str] = set()  # met in it
        for piece in self._pieces:
            while to_ask and (self.tap.session.has_room or to_ask[0] == piece):
                self._ask_for_piece(to_ask.popleft())
            for window, pages in self.cut(piece, newest_first=False):
                yield window, pages
                if not self._is_one_day(piece):
                    bulk, ids = window, self.near
        if bulk is not None:
            yield from self._track(bulk, ids)

    def _ask_for_piece(self, piece: Window) -> None:
        """Ask for the first page of a piece; for all of a day that has grown or is new."""
        self.ask_for(
            piece,
            lambda page: self._is_one_day(piece) and not self._is_known(piece.start, page),
        )

    @override
    def has_come(self, window: Window, first: Page) -> None:
        if window not in self._pieces or window in self._came:
            return
        started, forward = self.tap.run.started, self.plan.forward
        history = self.plan.history_days(started)
        if forward is None or history is None:
            return
        instants = [parse_instant(sent(row, self.instant_column)) for row in first.rows]
        seen = [one for one in instants if one and one <= started and forward.holds(one)]
        is_whole = first.pages <= 1
        self._came[window] = FirstPage(first.total, is_whole, max(seen, default=None))
        if len(self._came) < len(self._pieces):
            return
        stretch, pages = self.plan.stretch, self._came.values()
        marks = [page.newest for page in pages if page.newest]
        newest = max([*marks, stretch.complete_to] if stretch else marks, default=None)
        # Further pages may have a newer row, but none of a later day than today.
        is_last = newest is not None and newest.date() == self.today
        if is_last or all(page.is_whole for page in pages):
            self._ask_for_history(history, newest)

    def _ask_for_history(self, days: Window, newest: datetime | None) -> None:
        """Ask ahead for what is cut from history first, by the newest row before it.

        While there is time: what is on its way is read, however late it is.
        """
        if self.tap.run.is_over(self.box_share):
            return
        *single, rest = self._cut_history(days, newest)
        forward = {piece.start for piece in self._came}
        for day in single:
            if day.start not in self.days and day.start not in forward:
                self.ask_for(day)
        self.ask_for_first(rest, newest_first=True, sample=self._sample())

    def _sample(self) -> Sample:
        """Give how dense the rows of the forward part are."""
        return Sample(
            sum(page.total for page in self._came.values()),
            sum(map(self._days_of, self._came)),
        )

    def _is_known(self, day: date | None, first: Page) -> bool:
        """Tell by the first page of a day whether it has the rows it had before."""
        known = None if day is None else self.days.get(day)
        return known is not None and first.is_counted and known.total == first.total

    def _cut_forward(self, days: Window) -> Iterator[Window]:
        """Cut the forward part, oldest first, into days read on their own and the rest."""
        stretch = self.plan.stretch
        known_to = self._tracked_to(stretch.complete_to) if stretch else date.min
        start, end = days.start, days.end or self.today + DAY
        while start is not None and start < end:
            if start <= known_to or start in self.days or start >= self._recent:
                stop = start + DAY
            else:
                stop = min(self._recent, end, *(day for day in self.days if day > start))
            yield Window(start, days.end if stop >= end else stop)
            start = stop

    def _is_one_day(self, piece: Window) -> bool:
        """Tell whether a piece is a day; the last one may have no end."""
        return self._days_of(piece) <= 1

    def _days_of(self, piece: Window) -> int:
        return ((piece.end or self.today + DAY) - (piece.start or date.min)).days

    def _cut_history(self, days: Window, newest: datetime | None) -> Iterator[Window]:
        """Cut history, newest first, into days read on their own and the rest."""
        end = days.end
        if newest and self.plan.moves_marks and end:
            first = max(self._tracked_from(newest), days.start or date.min)
            while end > first:
                end -= DAY
                yield Window(end, end + DAY)
        yield Window(days.start, end)

    @override
    def history_windows(self, days: Window) -> Iterator[tuple[Window, Iterator[Page]]]:
        stretch = self.marks.stretch
        newest = stretch.complete_to if stretch else None
        self._ask_for_history(days, newest)
        *single, rest = self._cut_history(days, newest)
        forward = self.near  # ids met in those of these days that were read before
        for day in single:
            self.near = self.near | forward
            if day.start not in self.days:
                yield from self.cut(day, newest_first=True)
        before, end = set[str](), rest.end
        for window, pages in self.cut(rest, newest_first=True, sample=self._sample()):
            yield window, pages
            if self.marks.stretch is None:
                before, end = self.near, window.end
                continue
            # The newest row may have come in the window before: a mark stays a day inside.
            yield from self._track(Window(window.start, end), before | self.near)
            before, end = set(), window.start

    def _track(
        self, bulk: Window, ids: set[str]
    ) -> Iterator[tuple[Window, Iterator[Page]]]:
        """Read again, on their own, the days of long windows that a lookback will ask for.

        Only where the newest row is older than the lookback: its days are not known
        before. Rows that the long windows have brought, ``ids``, are not emitted again.
        """
        stretch = self.marks.stretch
        if stretch is None or not self.plan.moves_marks:
            return
        day = max(self._tracked_from(stretch.complete_to), bulk.start or date.min)
        last = self._tracked_to(stretch.complete_to)
        last = min(last, (bulk.end or self.today) - DAY)
        while day <= last:
            self.near = ids
            if day not in self.days:
                yield from self.cut(Window(day, day + DAY), newest_first=False)
            day += DAY
        self.near = ids

    @override
    def _read(self, window: Window, pages: Iterator[Page]) -> Iterator[Row]:
        day = window.start
        if day is None or window.end not in {day + DAY, None} or self.ignores_state:
            yield from super()._read(window, pages)
            return
        first = next(pages)
        if not self._is_known(day, first):
            yield from self._read_day(window, day, itertools.chain([first], pages))

    def _read_day(
        self,
        window: Window,
        day: date,
        pages: Iterator[Page],
    ) -> Iterator[Row]:
        """Give the rows of a day that are new, and all where one must have come late."""
        known = self.days.get(day)
        now, met, old, count = self.tap.run.started, set(), [], 0
        last = midnight(day)
        for row in self.rows(window.query(), pages):
            instant = parse_instant(row["timestamp"])
            if not self.tap.need.holds(instant):
                continue
            self.marks.saw(instant)
            met.add(row["id"])
            is_ahead = instant is not None and instant > now
            if not is_ahead:
                count += 1
                last = last if instant is None else max(last, instant)
            if known is not None and (instant is None or instant <= known.last):
                old.append(row)
            elif self._is_new_ahead(row["id"], is_ahead=is_ahead) and not self.was_met(
                row, instant
            ):
                yield row
        # The newest day was read without an end. Where it ends before the latest row that
        # was counted, by the API's time zone, the number says nothing.
        is_shorter = known is not None and known.total < 0 and last < known.last
        if known is not None and (is_shorter or len(old) > known.rows):
            yield from (row for row in old if row["id"] not in self.near)
        else:
            met -= {row["id"] for row in old} - self.near  # met, but not emitted
        read = self.listing
        # Without a total that the rows agree with, the next run reads the day again.
        is_known = read.is_counted and read.is_complete()
        self.days[day] = DayReading(read.first_total if is_known else -1, count, last)
        self.near = met

    @override
    def is_news(self, row: Row, instant: datetime | None, window: Window) -> bool:
        is_ahead = instant is not None and instant > self.marks.now
        is_known = (is_ahead or self.ahead) and not self._is_new_ahead(
            row["id"], is_ahead=is_ahead
        )
        return (self.ignores_state or not is_known) and not self.was_met(row, instant)

    def _is_new_ahead(self, row_id: str, *, is_ahead: bool) -> bool:
        """Tell whether a row has not been met while it lay in the future."""
        key = session_key(row_id)
        if key in self.ahead:
            if not is_ahead:
                self.ahead.discard(key)  # from now on the day's reading counts it
            return False
        if is_ahead:
            if len(self.ahead) < MAX_AHEAD:
                self.ahead.add(key)
            else:
                self.tap.run.warn_once(
                    "network: more than 1,000 rows lie in the future of the run; those "
                    "beyond are emitted again in every run"
                )
        return True

    @override
    def more_state(self) -> dict[str, t.Any]:
        stretch = self.marks.stretch
        newest = stretch.complete_to if stretch else self.tap.run.started
        edge = self._tracked_from(newest)
        return {
            "dates": self._dates(),
            "days": {
                day.isoformat(): self.days[day].write()
                for day in sorted(self.days)
                # Between the newest row and the recent days, whatever comes is new, but
                # for rows that the API files under another instant than their own.
                if day >= edge
                and (
                    day <= self._tracked_to(newest)
                    or day >= self._recent
                    or self.days[day].total
                )
            },
            "ahead": b64encode(b"".join(sorted(self.ahead))).decode(),
        }


def _read_keys(written: object) -> set[bytes]:
    try:
        content = b64decode(written, validate=True) if isinstance(written, str) else b""
    except ValueError:
        return set()
    return {content[i : i + 5] for i in range(0, len(content), 5)}


class Listed(t.NamedTuple):
    """A window of sessions that this run has listed in full, kept for the events."""

    window: Window
    seen: list[datetime]  # the newest instant that is not in the future, if any
    candidates: list[Candidate]

    def saw(self, instant: datetime) -> None:
        """Note the instant of a session."""
        if not self.seen or instant > self.seen[0]:
            self.seen[:] = [instant]


class Sessions(IncrementalStream):
    """Sessions; the listing is emitted in full before their events are asked for."""

    name = "sessions"
    path = "/sessions"
    primary_keys = ("id",)
    replication_key = instant_column = "startedAt"

    ledger: Ledger

    def __init__(self, tap: TapBugsPulse) -> None:
        """Set up what one run knows of the sessions it lists."""
        super().__init__(tap)
        self.listed: list[Listed] = []
        self._remembered = 0
        self._remembers_from = date.min
        self._brings_news = True  # whether the listing has rows that are new or changed

    @cached_property
    def events(self) -> Events:
        """The child stream."""
        return t.cast("Events", self.child_streams[0])

    @cached_property
    def wants_events(self) -> bool:
        """Whether the catalog selects the child stream."""
        return self.events.selected

    @override
    def get_child_context(self, record: Row, context: t.Any) -> dict[str, str]:
        return {"sessionId": record["id"]}

    @override
    def get_records(self, context: t.Any) -> Iterator[Row]:
        self.ledger, unread = Ledger.unpack(self.stream_state.get("ledger"))
        if unread:
            self.logger.warning(
                "sessions: %d days of the ledger in the state are damaged: what is in "
                "the lookback is loaded again",
                unread,
            )
        if self.selected:
            yield from super().get_records(context)
        if self.wants_events:
            # All due sessions in one sync of the child: a sync for each would send the
            # schema and five lines of log every time.
            self._sync_children({})

    @override
    def _read(self, window: Window, pages: Iterator[Page]) -> Iterator[Row]:
        self.listed.append(Listed(window, [], []))
        self._brings_news = False
        self._remembers_from = (
            date.max if self.ignores_state else self._kept_from(self.marks.stretch)
        )
        yield from super()._read(window, pages)
        self._remembered += len(self.listed[-1].candidates)
        if self._remembered > MAX_REMEMBERED:
            self._remembered -= len(self.listed.pop().candidates)

    @override
    def is_news(self, row: Row, instant: datetime | None, window: Window) -> bool:
        row_id, listed = row["id"], self.listed[-1]
        day = window.day_of(instant, self.today)
        if (
            self.wants_events
            and self._remembered + len(listed.candidates) <= MAX_REMEMBERED
        ):
            self.remember(listed, row, instant, day)
        entry = self.ledger.get(row_id) or UNKNOWN
        # What may still change in a later run is remembered.
        remembers = day >= self._remembers_from or entry.row != NOTHING
        mark = fingerprint(row) if remembers else NOTHING
        if self.ignores_state:
            is_news = row_id not in self.near
        elif entry.row != NOTHING:
            is_news = entry.row != mark
        else:
            is_news = not self.was_met(row, instant)
        if is_news:
            self._brings_news = True
            if remembers:
                self.ledger.put(row_id, day, row=mark)
        return is_news

    @override
    def may_move_up(self, head: list[t.Any]) -> bool:
        # Where as many rows came as have gone, those that came are news.
        return self._brings_news and super().may_move_up(head)

    def _written_stretch(self) -> Stretch | None:
        started = self.tap.run.started
        return read_stretch(self.stream_state, MARK, started, self.tap.settings.lookback)[0]

    def _kept_from(self, stretch: Stretch | None) -> date:
        """Give the first day that a lookback may ask for, with a day for time zones."""
        if stretch is None:
            return date.min
        return (stretch.complete_to - self.tap.settings.lookback).date() - 2 * DAY

    def list_again(self, window: Window, pages: Iterator[Page]) -> Listed:
        """List sessions for their events only, without emitting them."""
        listed = Listed(window, [], [])
        self._brings_news = True
        for row in self.rows(window.query(), pages):
            instant = parse_instant(row["startedAt"])
            if self.tap.need.holds(instant):
                self.remember(listed, row, instant, window.day_of(instant, self.today))
        return listed

    def remember(
        self, listed: Listed, row: Row, instant: datetime | None, day: date
    ) -> None:
        """Keep a listed session for the events, if it is a candidate."""
        if instant is not None and instant <= self.tap.run.started:
            listed.saw(instant)
        found = self.candidate(row, instant, day)
        if found is not None:
            listed.candidates.append(found)

    def candidate(self, row: Row, instant: datetime | None, day: date) -> Candidate | None:
        """Give what decides about a session's events, None where there are none due."""
        if not has_events(row):
            return None
        found = candidate(row, instant, day)
        if not is_wanted(found, self.tap.settings.events_for):
            return None
        entry = self.ledger.get(found.id)
        if entry is not None and entry.events == found.mark:
            return None
        # A stream map that filters a session out spares its events, too.
        # A catalog may leave out the sessions, which then have no map.
        maps = self.tap.mapper.stream_maps.get(self.name)
        return found if not maps or maps[0].get_filter_result(row) else None

    @override
    def more_state(self) -> dict[str, t.Any]:
        self.prune()
        return {"ledger": self.ledger.pack()}

    def prune(self) -> None:
        """Forget the sessions that no later run asks for again."""
        fetched = self.events.stretch()
        start = self.tap.need.start
        emits = self.selected and not self.ignores_state
        emitted = self.marks.stretch if emits else self._written_stretch()
        # Of each value of events_for, for a run that goes back to it.
        lookbacks = [
            (self._kept_from(stretch), stretch.complete_to.date() + 2 * DAY)
            for stretch in self.events.stretches()
        ]
        emitted_from = self._kept_from(emitted) if emitted or emits else date.max

        def keep(day: date, entry: Entry) -> bool:
            if day >= emitted_from:
                return True
            if entry.events == NOTHING:
                return False
            if any(first <= day <= last for first, last in lookbacks):
                return True
            if start is not None and day + 2 * DAY < start.date():
                return False
            # Outside of what is complete, the ledger alone knows what is fetched.
            return fetched is None or not (
                fetched.holds(midnight(day - DAY))
                and fetched.holds(midnight(day + 2 * DAY))
            )

        self.ledger.prune(keep)
        if self.ledger.forget_ahead(self.today):
            self.tap.run.warn_once(
                "sessions: more than 1,000 lie in the future of the run; those beyond "
                "are loaded again in every run"
            )
