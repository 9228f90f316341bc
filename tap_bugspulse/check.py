"""A check of the API: what a key may read, what a load costs, what the reference leaves open.

It tells nothing of any row but counts, forms and names of fields.
"""

from __future__ import annotations

import json
import math
import re
import sys
import typing as t
from bisect import bisect_left
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime, timedelta
from functools import cached_property

import click
import msgspec
import requests
from singer_sdk.exceptions import FatalAPIError, RetriableAPIError

from tap_bugspulse.http import RefusedError, reason
from tap_bugspulse.pages import Page, Row, page_of
from tap_bugspulse.replication import DAY, format_instant, midnight, parse_instant
from tap_bugspulse.run import duration
from tap_bugspulse.settings import EVENTS_FOR
from tap_bugspulse.tap import TapBugsPulse, end_on_signals, errors_as_one_line

MAX_REQUESTS, MAX_PROVOKING = 40, 70
MAX_FAILED, MAX_PAUSE = 2, 61.0  # requests without an answer; seconds that a 429 asks to wait
LIMIT, MAX_PAGES, MAX_DATES = 1000, 5, 6  # rows of a page; what is read to learn what dates mean
ENOUGH = 6  # rows that hardly stand in an order by chance
HOURLY = 50  # minutes of a run that leave room before the next
SECOND, HALF_HOUR = timedelta(seconds=1), timedelta(minutes=30)
COLUMNS = ("startedAt", "endedAt")
TWICE = {"limit": str(2 * LIMIT)}
RESETS = ("Retry-After", "RateLimit-Reset", "X-RateLimit-Reset")
NEVER = {"from": "2999-01-01", "to": "2999-01-02"}
EMPTY = {"from": NEVER, "from alone": {"from": NEVER["from"]}, "to": {"to": "1970-01-02"}}
FAR = {"to": NEVER["to"]}
UNTOLD, ANOTHER = "could not tell", "neither startedAt nor endedAt"
TIMES = {"sessions": "startedAt", "network": "timestamp", "crashes": "lastSeenAt"}
LISTED = {
    "sessions.status": {"active", "completed", "crashed"},
    "crashes.status": {"open", "acknowledged", "resolved", "ignored"},
}
INSTANT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?")

Query = t.Mapping[str, str]


class Untold(Exception):  # noqa: N818 - no error, but why a question stays open
    """The answers do not tell."""


class Finding(t.NamedTuple):
    """What the API does; ``is_handled`` is whether the tap loads everything all the same."""

    answer: str
    note: str = ""
    is_handled: bool = True


class Answer(t.NamedTuple):
    """One response, or why there is none; ``size`` counts all its rows."""

    page: Page
    ids: tuple[str, ...] = ()
    size: int = 0
    body: t.Mapping[str, t.Any] = {}
    error: str = ""

    def of_empty(self) -> str:
        """Return what it is that has no rows: an error, no body, or an envelope."""
        if self.error or self.size:
            return self.error[:3] or "rows"
        numbers = [f"{one} {self.body.get(one, 'missing')}" for one in ("total", "pages")]
        data = json.dumps(self.body.get("data"))
        return ", ".join([f"data {data}", *numbers]) if self.body else "204 without a body"


def start(session: Row) -> datetime:
    """Return when a session started; False where it does not say so is checked first."""
    return t.cast("datetime", parse_instant(session.startedAt))


class Api:
    """Asks the API by the tap's own client; each question once."""

    def __init__(self, tap: TapBugsPulse, *, provokes: bool = False) -> None:
        self.run, self.streams = tap.run, t.cast("dict[str, t.Any]", tap.streams)
        self.provokes = provokes
        self.sent = self.failed = 0
        self.headers: set[str] = set()
        self.answers: dict[tuple[t.Any, ...], Answer] = {}

    def ask(self, name: str, query: Query, number: int = 1, *, may_fail: bool = False) -> Answer:
        """Return the answer to a query, or raise Untold if it is an error."""
        key = (name, number, *sorted(query.items()))
        if key not in self.answers:
            self.answers[key] = self._send(name, {"limit": str(LIMIT), **query}, number)
        if self.answers[key].error and not may_fail:
            raise Untold(self.answers[key].error)
        return self.answers[key]

    def _send(self, name: str, query: Query, number: int) -> Answer:
        stream, why = self.streams[name], f"the {MAX_REQUESTS} requests of a check are used up"
        for _ in range(min(2, MAX_REQUESTS - self.sent)):
            self.sent += 1
            try:
                response = stream.take(stream.fetch(query, number, retries=False))
            except RefusedError as error:
                return Answer(Page([]), error=str(error))
            except (RetriableAPIError, requests.RequestException) as error:
                why, pause = reason(error), self.run.http.pacer.paused_for()
                self.failed += 1
                is_first = not self.answers and not isinstance(error, RetriableAPIError)
                if is_first or pause > MAX_PAUSE or self.failed > MAX_FAILED:
                    raise FatalAPIError(why) from None
            else:
                self.headers.update(one.lower() for one in response.headers)
                body, page = None, page_of(response)
                with suppress(msgspec.DecodeError, UnicodeDecodeError):
                    body = msgspec.json.decode(response.content)
                ids = tuple(row.id for row in page.rows)
                size = len(ids) + page.without_key
                return Answer(page, ids, size, body if isinstance(body, dict) else {})
        return Answer(Page([]), error=why)

    # --- What there is

    @cached_property
    def first(self) -> Answer:
        """The first page of all sessions."""
        return self.ask("sessions", {}, may_fail=True)

    @property
    def total(self) -> int:
        """The number of sessions."""
        return self.count(self.first)

    def count(self, answer: Answer) -> int:
        """Return how many rows a listing has, by its first page."""
        page, size = answer.page, answer.size
        if page.total == size and (page.pages or 1) > 1:  # it is that of the page
            return size * (page.pages or 1)
        return size if size < self.first.size else page.rows_in_all

    def all_of(self, query: Query) -> dict[str, Row]:
        """Return the sessions of a listing, or raise Untold if there are many."""
        first = self.ask("sessions", query)
        if (pages := math.ceil(self.count(first) / max(1, first.size))) > MAX_PAGES:
            raise Untold(f"more than {MAX_PAGES} pages of sessions in a week")
        answers = [self.ask("sessions", query, number + 1) for number in range(pages)]
        return {row.id: row for answer in answers for row in answer.page.rows if start(row)}

    @cached_property
    def seen(self) -> list[Row]:
        """The sessions of the first page and of the last, oldest first."""
        pages = math.ceil(self.total / max(1, self.first.size))
        last = self.ask("sessions", {}, max(1, pages), may_fail=True)
        rows = {row.id: row for row in (*self.first.page.rows, *last.page.rows) if start(row)}
        return sorted(rows.values(), key=start)

    @cached_property
    def newest(self) -> datetime:
        """The start of the newest session that is not in the future."""
        now = self.run.started
        return max((start(row) for row in self.seen if start(row) <= now), default=now)

    @cached_property
    def per_day(self) -> float:
        """Sessions a day in the week before the newest one."""
        begin = midnight(self.newest.date() - 7 * DAY)
        inside = [start(row) for row in self.seen if begin <= start(row) <= self.newest]
        if self.total > len(self.seen) and self.honours("from"):
            count = self.count(self.ask("sessions", self.since(begin.date())))
            return count / ((self.newest - begin) / DAY)
        return len(inside) / max(1.0, (self.newest - min(inside)) / DAY) if inside else 0.0

    def honours(self, name: str) -> bool:
        """Return whether dates that no session has bring none."""
        answer = self.ask("sessions", EMPTY[name], may_fail=True)
        return not answer.error and not answer.size and self.total > 0

    def since(self, day: date) -> dict[str, str]:
        """Return the query for what is from a day on."""
        return {"from": day.isoformat(), **({} if self.honours("from alone") else FAR)}

    def rows(self) -> dict[str, int | None]:
        """Return the number of rows of each endpoint, None where it cannot be read."""
        asked = {name: self.ask(name, {}, may_fail=True) for name in TIMES}
        found = {name: None if one.error else self.count(one) for name, one in asked.items()}
        events = sum(row.eventCount or 0 for row in self.seen) * self.total
        return {**found, "events": round(events / len(self.seen)) if self.seen else 0}

    def refused(self) -> dict[str, str]:
        """Return the endpoints of which nothing could be read, and why."""
        answers = [(key[0], one.error) for key, one in self.answers.items()]
        read = {name for name, error in answers if not error}
        return {name: error for name, error in answers if name not in read}

    def costs(self) -> dict[str, int]:
        """Return the requests of a first load for each events_for, and of an hourly run."""
        settings, rows = self.run.settings, {k: n or 0 for k, n in self.rows().items()}
        if settings.start_date and self.honours("from"):
            query = self.since(settings.start_date.date() - DAY)
            for name in ("sessions", "network"):
                rows[name] = self.count(self.ask(name, query, may_fail=True))
        days = settings.lookback_days + 2
        listed = sum(math.ceil(rows[name] / settings.page_size) or 1 for name in TIMES) + days
        due = [row for row in self.seen if row.eventCount != 0]
        counts = {
            "all": len(due),
            "errors": sum(1 for row in due if row.hasCrash or row.hasNetworkErrors),
            "crashed": sum(1 for row in due if row.hasCrash),
        }
        part = {kind: counts[kind] / max(1, len(self.seen)) for kind in EVENTS_FOR}
        first = {kind: listed + math.ceil(one * rows["sessions"]) for kind, one in part.items()}
        pages = math.ceil(max(self.per_day * days, 1) / settings.page_size)
        pages += days + (math.ceil(rows["crashes"] / settings.page_size) or 1)
        return {**first, "hourly": pages + math.ceil(part[settings.events_for] * self.per_day / 24)}


class Questions(Api):
    """What the reference leaves open: each public method is a question, in this order."""

    def order_of_sessions(self) -> Finding:
        """Order of sessions."""
        return self._order("sessions")

    def order_of_network(self) -> Finding:
        """Order of network calls."""
        return self._order("network")

    def order_of_crashes(self) -> Finding:
        """Order of crashes."""
        return self._order("crashes")

    def _order(self, name: str) -> Finding:
        rows = self.ask(name, {}).page.rows
        instants = [one for row in rows if (one := parse_instant(getattr(row, TIMES[name])))]
        rises = [b > a for a, b in zip(instants, instants[1:], strict=False) if a != b]
        if len(rises) < ENOUGH - 1:
            raise Untold(f"fewer than {ENOUGH} rows")
        if sum(rises) in {0, len(rises)}:
            return Finding(f"{'oldest' if rises[0] else 'newest'} first by {TIMES[name]}")
        falls = f"{100 - 100 * sum(rises) / len(rises):.0f}% of neighbours are newest first"
        return Finding(f"not by {TIMES[name]}", falls)

    def _need(self, rows: int = ENOUGH) -> None:
        if self.total < rows:
            raise Untold(self.first.error or f"fewer than {rows} sessions")

    def from_is_honoured(self) -> Finding | bool | str:
        """From is honoured."""
        self._need(1)
        if not self.honours("from"):
            return Finding("no", "the tap lists all rows in each run")
        return self.honours("from alone") or "only with a to"

    def to_is_honoured(self) -> Finding | bool:
        """To is honoured."""
        self._need(1)
        return self.honours("to") or Finding("no", "the tap lists all rows in each run")

    # --- What dates mean

    @cached_property
    def _base(self) -> dict[str, str]:
        """The dates of a listing of some hundred sessions, no dates if there are few."""
        self._need(1)
        if not (self.honours("from") and self.honours("to")):
            raise Untold("from or to is ignored")
        if self.total <= self.first.size:
            return {} if self.honours("from alone") else FAR
        days = min(60, max(6, math.ceil(LIMIT / 2 / max(1.0, self.per_day))))
        first, last = (self.newest.date() - number * DAY for number in (days, 1))
        return {"from": first.isoformat(), "to": last.isoformat()}

    @cached_property
    def _known(self) -> dict[str, Row]:
        return self.all_of(self._base)

    @cached_property
    def _days(self) -> list[date]:
        """The days around which all sessions are known."""
        low = date.fromisoformat(self._base.get("from", "1970-01-01")) + 2 * DAY
        high = date.fromisoformat(self._base.get("to", NEVER["to"])) - 2 * DAY
        starts = {start(row).date() + n * DAY for row in self._known.values() for n in (0, 1)}
        return [day for day in sorted(starts) if low <= day <= high][-200:]

    def _is_in(self, row: Row, low: datetime, high: datetime) -> bool:
        query = {"from": format_instant(low), "to": format_instant(high)}
        return row.id in self.all_of({**self._base, **query})

    @cached_property
    def _ended(self) -> tuple[Row, datetime, datetime]:
        """A session that has ended, in the middle of those that are known."""
        times = [(row, start(row), parse_instant(row.endedAt)) for row in self._known.values()]
        ended = [(row, a, b) for row, a, b in times if b and b - a > 2 * SECOND]
        if not ended:
            raise Untold("no session that has ended")
        return sorted(ended, key=lambda one: one[1])[len(ended) // 2]

    def times_are_accepted(self) -> Finding | bool:
        """From and to take a time of day."""
        row, begin, _ = self._ended
        query = {"from": format_instant(begin - 2 * SECOND), "to": format_instant(begin - SECOND)}
        if self.ask("sessions", {**self._base, **query}, may_fail=True).error:
            return False
        evening = midnight(begin.date() + DAY) - SECOND
        if self._is_in(row, begin - 2 * SECOND, begin - SECOND) or self._is_in(
            row, evening, self.run.started + DAY
        ):
            return Finding("yes", "but the time of day seems to be ignored")
        return True

    @cached_property
    def _column(self) -> str:
        """The field that instants filter on, empty where only dates can tell."""
        if self.times_are_accepted() is not True:
            return ""
        row, begin, end = self._ended
        middle = begin + (end - begin) / 2
        if self._is_in(row, begin - SECOND, middle):
            return "startedAt"
        return "endedAt" if self._is_in(row, middle, end + SECOND / 100) else ANOTHER

    @cached_property
    def _zones(self) -> list[tuple[str, float]]:
        """The columns, and when in the UTC day their days can begin, that explain what comes."""
        columns = [self._column] if self._column in COLUMNS else [*COLUMNS]
        times = {
            column: sorted(
                (instant, row.id)
                for row in self._known.values()
                if (instant := parse_instant(getattr(row, column)))
            )
            for column in columns
        }

        def place(one: tuple[str, float], day: date) -> int:
            return bisect_left(times[one[0]], (midnight(day) + one[1] * HALF_HOUR, ""))

        alive = [(column, float(number)) for column in columns for number in range(-28, 28)]
        asked: dict[date, set[str]] = {}

        def left(day: date) -> int:
            """Return how many may be left when a day is asked for; UTC is the likeliest."""
            places = Counter((one[0], place(one, day)) for one in alive)
            return max(
                [places[one[0], place(one, day)] for one in alive if not one[1]] or places.values()
            )

        while len(alive) > 1 and len(asked) < MAX_DATES:
            day = min((one for one in self._days if one not in asked), key=left, default=None)
            if day is None or left(day) == len(alive):
                break
            asked[day] = {*self.all_of({**self._base, "from": day.isoformat()})}
            alive = [
                one
                for one in alive
                if {id_ for _, id_ in times[one[0]][place(one, day) :]}
                == asked[day] & {id_ for _, id_ in times[one[0]]}
            ]
        return alive

    def filter_field(self) -> str:
        """Field that from and to filter sessions on."""
        if self._column:
            return self._column
        columns = {column for column, _ in self._zones}
        if len(columns) > 1:
            raise Untold("by dates alone, without a session that runs past midnight")
        return columns.pop() if columns else ANOTHER

    def time_zone(self) -> str:
        """Time zone of dates in from and to."""
        if self._column == ANOTHER:
            raise Untold("the field is not among those of a session")
        zones = [f"UTC{-n / 2:+g}" if n else "UTC" for n in sorted({n for _, n in self._zones})]
        if len(zones) > 1:
            raise Untold(f"from {zones[-1]} to {zones[0]}: too few sessions")
        if not zones:
            raise Untold("no zone explains what comes")
        return zones[0]

    def to_includes_its_day(self) -> bool:
        """A date as to includes that day."""
        zones = self._zones if self._column != ANOTHER else []
        column = zones[0][0] if zones else "startedAt"
        shifts = [number * HALF_HOUR for _, number in zones] or [timedelta()]
        rows: dict[date, set[str]] = {day: set() for day in self._days}
        for row in self._known.values():
            instant = parse_instant(getattr(row, column))
            for day in (start(row).date() + n * DAY for n in (-1, 0, 1) if instant):
                after = t.cast("datetime", instant) - midnight(day)
                if day in rows and max(shifts) <= after < min(shifts) + DAY - HALF_HOUR:
                    rows[day].add(row.id)
        day = max(rows, key=lambda one: len(rows[one]), default=None)
        if day is None or not rows[day]:
            raise Untold("too few sessions")
        hits = len(rows[day] & {*self.all_of({**self._base, "to": day.isoformat()})})
        if 0 < hits <= len(rows[day]) / 2:
            raise Untold("it includes some of it")
        return hits > 0

    def to_includes_its_instant(self) -> bool:
        """An instant as to includes itself."""
        if self._column not in COLUMNS:
            raise Untold("no instant of a field is known to be compared")
        row, begin, end = self._ended
        last = begin if self._column == "startedAt" else end
        return self._is_in(row, last - SECOND, last)

    # --- Pages and counts

    def _small(self, number: int = 1) -> Answer:
        self._need()
        return self.ask("sessions", {"limit": str(min(10, self.total // 3))}, number)

    def largest_limit(self) -> Finding:
        """Largest limit."""
        self._need(1)
        larger = self.ask("sessions", TWICE)
        if self.total > larger.size:
            return Finding(str(larger.size))
        if (larger.page.limit or 2 * LIMIT) >= 2 * LIMIT:
            raise Untold("all sessions fit on a page")
        return Finding(str(larger.page.limit), "as it is echoed")

    def page_is_honoured(self) -> Finding | bool:
        """Page is honoured."""
        is_same = {*self._small().ids} & {*self._small(2).ids}
        return (
            Finding("no", "only first pages can be loaded", is_handled=False) if is_same else True
        )

    def echo_is_true(self) -> Finding | bool:
        """Page and limit are echoed as used."""
        asked = [(self._small(n), n, min(10, self.total // 3)) for n in (1, 2)]
        wrong = set()
        for one, number, limit in [*asked, (self.ask("sessions", TWICE), 1, 2 * LIMIT)]:
            most = one.size if one.size < self.total else limit
            is_wrong = {
                "page": one.body.get("page") != number,
                "limit": not one.size <= (one.page.limit or 0) <= most,
            }
            wrong |= {name for name in is_wrong if is_wrong[name]}
        return Finding("no", f"not {' and '.join(sorted(wrong))}") if wrong else True

    def total_is_true(self) -> Finding | bool:
        """Total is present and true."""
        few, never = self._small(), self.ask("sessions", NEVER)
        wrong = {
            "it is missing": self.first.page.total is None,
            "it is that of the page": few.page.total == few.size,
            "it counts all rows, whatever the dates": not never.size and never.page.total,
            "it differs from page to page": few.page.total != self.first.page.total,
        }
        return next((Finding("no", why) for why, is_wrong in wrong.items() if is_wrong), True)

    def pages_is_true(self) -> Finding | bool:
        """Pages is present and true."""
        if self.first.page.pages is None:
            return Finding("no", "it is missing")
        for one in (self._small(), self.first, self.ask("sessions", TWICE)):
            if one.page.pages != math.ceil(self.total / one.size):
                return Finding("no", "it is that of another page size")
        return True

    def listings_are_capped(self) -> Finding | bool:
        """A listing ends before its last row."""
        self._need()
        pages = math.ceil(self.total / self.first.size)
        is_cut = bool(self.ask("sessions", {}, pages, may_fail=True).error)
        if not is_cut and self._days:
            day = start(self.seen[len(self.seen) // 2]).date()
            parts = ({"to": day.isoformat()}, self.since(day + 2 * DAY))
            is_cut = sum(self.count(self.ask("sessions", one)) for one in parts) > self.total
        note = f"at {self.total:,}; what lies beyond is not loaded"
        return Finding("yes", note, self.total >= 10 * LIMIT) if is_cut else False

    def answers_without_rows(self) -> str:
        """Answers without rows."""
        small = (
            math.ceil(self.total / max(1, self._small().size)) + 1 if self.total >= ENOUGH else 2
        )
        beyond = self.ask(
            "sessions", {"limit": str(min(10, self.total // 3))}, small, may_fail=True
        )
        unknown = self.ask("events", {"sessionId": "sess_0_unknown"}, may_fail=True)
        never = self.ask("sessions", NEVER, may_fail=True)
        return "; ".join(
            f"{what}: {one.of_empty()}"
            for what, one in (("dates", never), ("page", beyond), ("session", unknown))
        )

    # --- Events

    @cached_property
    def _journeys(self) -> list[tuple[Row, Answer]]:
        """The events of the two sessions that have most of them."""
        rows = sorted(self.seen, key=lambda row: (bool(row.endedAt), row.eventCount or 0))[:-3:-1]
        asked = [(row, self.ask("events", {"sessionId": row.id}, may_fail=True)) for row in rows]
        read = [one for one in asked if one[1].size]
        if not read:
            raise Untold((asked and asked[0][1].error) or "no session with events")
        return read

    def events_are_paged(self) -> Finding | bool:
        """/events honours limit and page."""
        row, whole = self._journeys[0]
        one, two = (self.ask("events", {"sessionId": row.id, "limit": "2"}, n) for n in (1, 2))
        if whole.size <= 2:
            raise Untold("too few events")
        if one.size > 2:
            return Finding("no", "all events come at once")
        if two.size and not {*one.ids} & {*two.ids}:
            return True
        return Finding("limit, not page", "only first pages can be loaded", is_handled=False)

    def limit_of_events_is_echoed(self) -> Finding | bool:
        """Limit that /events echoes is the one asked for."""
        whole = self._journeys[0][1]
        is_count = whole.page.limit == whole.size != LIMIT
        return (
            Finding("no", "it is the number of events") if is_count else whole.page.limit == LIMIT
        )

    def event_count_is_true(self) -> bool:
        """The field eventCount is the number of events."""
        return all(row.eventCount == one.size for row, one in self._journeys if row.endedAt)

    def event_ids_repeat(self) -> bool:
        """Ids of events repeat across sessions."""
        if len(self._journeys) == 1:
            raise Untold("no other session with events")
        (_, one), (_, other) = self._journeys
        return bool({*one.ids} & {*other.ids})

    # --- Rows

    def _raw(self) -> t.Iterator[tuple[str, dict[str, t.Any]]]:
        for (name, *_), answer in self.answers.items():
            for row in answer.body.get("data") or ():
                if isinstance(row, dict):
                    yield name, row

    def rows_lack_ids(self) -> Finding | bool:
        """Rows without an id, or with one twice on a page."""
        bad = sum(one.size - len({*one.ids}) for one in self.answers.values())
        return Finding("yes", f"{bad} rows", is_handled=False) if bad else False

    def unknown_fields(self) -> str | bool:
        """Fields that are not in the reference."""
        return _names(
            f"{key[0]}.{one}" for key, a in self.answers.items() for one in a.page.unknown
        )

    def other_types(self) -> str | bool:
        """Values of another type than in the reference."""
        return _names(
            f"{key[0]}.{one}" for key, a in self.answers.items() for one in a.page.misfits
        )

    def new_values(self) -> str | bool:
        """Values that the reference does not list."""
        found: dict[str, set[str]] = {name: set() for name in LISTED}
        for name, row in self._raw():
            if f"{name}.status" in found and row.get("status"):
                found[f"{name}.status"].add(str(row["status"]))
        new = {name: len(values - LISTED[name]) for name, values in found.items()}
        return ", ".join(f"{count} of {name}" for name, count in new.items() if count) or False

    def forms_of_dates(self) -> str:
        """Forms of dates."""
        forms = set()
        for _, row in self._raw():
            for name in ("startedAt", "endedAt", "timestamp", "firstSeenAt", "lastSeenAt"):
                if row.get(name):
                    match = INSTANT.fullmatch(str(row[name]))
                    zone = match and {None: "", "Z": "Z"}.get(match[2], "+hh:mm")
                    digits = match and re.sub(r"\d", "s", match[1] or "")
                    forms.add(f"YYYY-MM-DDThh:mm:ss{digits}{zone}" if match else "another")
        if not forms:
            raise Untold("no rows")
        return ", ".join(sorted(forms))

    # --- Transport

    def headers_of_the_limit(self) -> str | bool:
        """Headers that tell of the rate limit."""
        return ", ".join(
            sorted(one for one in self.headers if "ratelimit" in one or "retry" in one)
        )

    def answers_are_compressed(self) -> bool:
        """Answers are compressed."""
        return "content-encoding" in self.headers

    def a_429_carries(self) -> str:
        """What a 429 carries."""
        if not self.provokes:
            raise Untold("--provoke-429 asks for one")
        stream = self.streams["crashes"]
        stream.run = replace(self.run, config={**self.run.config, "requests_per_minute": 60_000})
        for _ in range(MAX_PROVOKING):
            self.sent += 1
            try:
                stream.take(stream.fetch({"limit": "1"}, retries=False))
            except RetriableAPIError as error:
                given = error.response.headers if error.response is not None else {}
                found = [one for one in RESETS if one in given]
                is_number = found and given[found[0]].strip().isdigit()
                return (
                    f"{found[0]}, {'a number' if is_number else 'a date'}" if found else "nothing"
                )
        raise Untold(f"{MAX_PROVOKING} requests in a row were answered")

    def look(self) -> dict[str, Finding]:
        """Return what is found out of each question."""
        found: dict[str, Finding] = {}
        for name, question in vars(Questions).items():
            if not name.startswith("_") and name != "look":
                try:
                    answer = question(self)
                except Untold as why:
                    answer = Finding(UNTOLD, str(why))
                words = (
                    {True: "yes", False: "no"}.get(answer, answer)
                    if not isinstance(answer, Finding)
                    else answer
                )
                found[name] = words if isinstance(words, Finding) else Finding(words)
        return found


def _names(names: t.Iterable[str]) -> str | bool:
    """Return names of fields; those that may be no names are counted."""
    found = {one if re.fullmatch(r"\w+\.[A-Za-z_]\w{0,39}", one) else "others" for one in names}
    return ", ".join(sorted(found)) or False


def report(check: Questions) -> dict[str, t.Any]:
    """Return all that is found, as --json prints it."""
    seconds = check.run.clock.seconds
    began = seconds()
    api = {name: one._asdict() for name, one in check.look().items()}
    costs, refused, seen = check.costs(), check.refused(), check.seen
    settings = {}
    if check.run.minutes_for(costs[check.run.settings.events_for]) > HOURLY:
        settings["TAP_BUGSPULSE_MAX_RUNTIME_MINUTES"] = str(HOURLY)
    if check.run.minutes_for(costs["hourly"]) > HOURLY:
        settings["TAP_BUGSPULSE_EVENTS_FOR"] = "crashed"
    if refused:
        settings["TAP_BUGSPULSE__SELECT"] = json.dumps(["*.*", *(f"!{one}.*" for one in refused)])
    return {
        "usable": len(refused) < len(check.streams),
        "requests": check.sent,
        "seconds": round(seconds() - began, 1),
        "rows": {name: rows for name, rows in check.rows().items() if name not in refused},
        "refused": refused,
        "oldest_session": start(seen[0]).date().isoformat() if seen else None,
        "newest_session": check.newest.date().isoformat() if seen else None,
        "sessions_a_day": round(check.per_day, 1),
        "requests_of": costs,
        "minutes_of": {name: check.run.minutes_for(one) for name, one in costs.items()},
        "settings": settings,
        "api": api,
    }


def page(found: dict[str, t.Any]) -> str:
    """Return what is found, for a person."""
    if "api" not in found:
        return f"Not usable: {found['why']}"
    lines = [f"{found['requests']} requests, {found['seconds']:.0f} s", "", "What there is"]
    lines += [f"  {name:<16}{rows:>9,} rows" for name, rows in found["rows"].items()]
    lines += [f"  {name:<16}not readable: {why}" for name, why in found["refused"].items()]
    for name in ("oldest_session", "newest_session", "sessions_a_day"):
        lines.append(f"  {name.replace('_', ' '):<16}{found[name] or 'none':>9}")
    lines += ["", "What a load costs"]
    for name, cost in found["requests_of"].items():
        what = "an hourly run" if name == "hourly" else f"a first load, events_for {name}"
        lines.append(f"  {what:<34}{cost:>9,} requests, {duration(found['minutes_of'][name])}")
    settings = [f"  export {name}='{value}'" for name, value in found["settings"].items()]
    lines += ["", "Settings that follow", *(settings or ["  none"]), "", "What the API does"]
    for name, one in found["api"].items():
        title = getattr(Questions, name).__doc__.rstrip(".")
        note = f": {one['note']}" if one["note"] else ""
        bad = "" if one["is_handled"] else ". The tap does not handle this"
        lines.append(f"  {title:<46}{one['answer']}{note}{bad}")
    return "\n".join(lines)


@click.command()
@click.option("--config", multiple=True, callback=TapBugsPulse.cb_config, help="A file, or ENV.")
@click.option("--json", "as_json", is_flag=True, help="Print the same for machines.")
@click.option("--provoke-429", "provokes", is_flag=True, help="Also exceed the rate limit.")
def main(config: t.Any, *, as_json: bool, provokes: bool) -> None:
    """Ask the API what this key may read, what a load costs, and how the API behaves."""
    with errors_as_one_line(TapBugsPulse.logger):
        end_on_signals(TapBugsPulse.logger)
        tap = TapBugsPulse(config=config.config, parse_env_config=config.parse_env)
        try:
            found = report(Questions(tap, provokes=provokes))
        except FatalAPIError as error:
            found = {"usable": False, "why": str(error)}
        click.echo(json.dumps(found, indent=2) if as_json else page(found))
        sys.exit(not found["usable"])


if __name__ == "__main__":
    main()
