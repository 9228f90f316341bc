"""A check of the API: what a key may read, what loads cost, what the reference leaves open.

It asks at most 40 times and says nothing of any row: counts, forms and names of fields only.
"""

from __future__ import annotations

import json
import math
import re
import sys
import typing as t
from bisect import bisect_left, bisect_right
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from http import HTTPStatus

import click
import msgspec
import requests
from singer_sdk.exceptions import FatalAPIError, RetriableAPIError

from tap_bugspulse.http import RefusedError, reason
from tap_bugspulse.pages import Page, Row, page_of
from tap_bugspulse.replication import DAY, format_instant, midnight, parse_instant
from tap_bugspulse.run import duration
from tap_bugspulse.settings import EVENTS_FOR, NAME
from tap_bugspulse.tap import TapBugsPulse, end_on_signals, errors_as_one_line

MAX_REQUESTS, MAX_REFUSED = 40, 70
LIMIT = 1000  # "max 1,000"
MAX_PAUSE = 61.0  # seconds; a key in use elsewhere is free again after a minute
MAX_FAILED = 2  # requests that nobody answers rightly, or the first
ENOUGH = 6  # rows that hardly stand in an order by chance
MAX_PAGES, MAX_DATES = 5, 6  # that are asked for to learn what a date means
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
NEVER = {"from": "2999-01-01", "to": "2999-01-02"}
COLUMNS = ("startedAt", "endedAt")
OTHER = "neither startedAt nor endedAt"
WIDEST = timedelta(hours=14)  # of a time zone
HOURLY = 50
UNTOLD = "could not tell"
TIMES = {"sessions": "startedAt", "network": "timestamp", "crashes": "lastSeenAt"}
LISTED = {
    "sessions": {"status": {"active", "completed", "crashed"}},
    "crashes": {"status": {"open", "acknowledged", "resolved", "ignored"}},
}
QUESTIONS = {
    "order_sessions": "order of sessions",
    "order_network": "order of network calls",
    "order_crashes": "order of crashes",
    "from_honoured": "from is honoured",
    "to_honoured": "to is honoured",
    "times_accepted": "from and to take a time of day",
    "filter_field": "field that from and to filter sessions on",
    "time_zone": "time zone of dates in from and to",
    "to_includes_day": "a date as to includes that day",
    "to_includes_instant": "an instant as to includes itself",
    "largest_limit": "largest limit",
    "page_honoured": "page is honoured",
    "echo_true": "page and limit are echoed as used",
    "total_true": "total is present and true",
    "pages_true": "pages is present and true",
    "cap": "a listing ends before its last row",
    "past_end": "what a page past the last one is",
    "empty_page": "what a page without rows holds",
    "events_paged": "/events honours limit and page",
    "events_limit": "limit that /events echoes is the one asked for",
    "unknown_session": "what /events says of an unknown session",
    "event_count": "eventCount is the number of events",
    "event_ids_repeat": "ids of events repeat across sessions",
    "rows_without_id": "rows without an id, or with one twice",
    "unknown_fields": "fields that are not in the reference",
    "missing_fields": "fields of the reference that never come",
    "new_values": "values that the reference does not list",
    "other_types": "values of another type",
    "date_forms": "forms of dates",
    "limit_headers": "headers that tell of the rate limit",
    "refusal": "what a 429 carries",
    "compressed": "answers are compressed",
}


class Finding(t.NamedTuple):
    """What the API does: yes, no or a value; ``is_handled`` is whether the tap copes with it."""

    answer: str
    note: str = ""
    is_handled: bool = True


@dataclass
class Answer:
    """One response, or why there is none."""

    page: Page = field(default_factory=lambda: Page([]))
    body: t.Mapping[str, t.Any] = field(default_factory=dict)
    status: int = 0
    error: str = ""

    @property
    def ids(self) -> list[str]:
        """The ids of its rows."""
        return [row.id for row in self.page.rows]

    @property
    def size(self) -> int:
        """The number of its rows."""
        return len(self.page.rows) + self.page.without_key


def at(row: Row, column: str) -> datetime | None:
    """Return an instant of a row."""
    return parse_instant(getattr(row, column))


def rows_of(page: Page, size: int) -> int:
    """Return how many rows a listing has; its total may be that of the page alone."""
    is_of_page = page.total == size and (page.pages or 1) > 1
    return size * (page.pages or 1) if is_of_page else page.rows_in_all


def start(session: Row) -> datetime:
    """Return when a session started; those that do not say it are left out before."""
    return t.cast("datetime", at(session, "startedAt"))


def share(some: int, of: int) -> str:
    """Return a part in percent."""
    return f"{100 * some / max(1, of):.0f}%"


class Check:
    """Asks the API by the tap's own client, and keeps what it finds."""

    def __init__(self, tap: TapBugsPulse) -> None:
        self.run, self.streams = tap.run, t.cast("dict[str, t.Any]", tap.streams)
        self.now = self.run.started
        self.sent = self.failed = 0
        self.headers: Counter[str] = Counter()
        self.found: dict[str, Finding] = {}
        self._answers: dict[t.Any, Answer] = {}

    def say(self, question: str, answer: object, note: str = "", *, handled: bool = True) -> None:
        """Keep what was found; True and False are yes and no, None could not be told."""
        words = {True: "yes", False: "no", None: UNTOLD}
        text = words[answer] if answer is None or isinstance(answer, bool) else str(answer)
        self.found[question] = Finding(text, note, handled)

    def ask(self, stream: str, query: t.Mapping[str, str], number: int = 1) -> Answer:
        """Return the answer to a query; each is sent once. Raises FatalAPIError without any."""
        key = (stream, number, *sorted(query.items()))
        if key not in self._answers:
            self._answers[key] = self._send(stream, {"limit": str(LIMIT), **query}, number)
        return self._answers[key]

    def _send(self, name: str, query: t.Mapping[str, str], number: int) -> Answer:
        stream, pacer, why = self.streams[name], self.run.http.pacer, ""
        for _ in range(2):
            if self.sent >= MAX_REQUESTS:
                return Answer(error=f"the {MAX_REQUESTS} requests of a check are used up")
            self.sent += 1
            try:
                response = stream.take(stream.fetch(query, number, retries=False))
            except RefusedError as error:
                return Answer(error=str(error), status=int(str(error)[:3]))
            except (RetriableAPIError, requests.RequestException) as error:
                why = reason(error)
                if isinstance(error, requests.RequestException) or pacer.paused_for() > MAX_PAUSE:
                    break
            else:
                return self._read(response)
        self.failed += 1
        if not self._answers or self.failed > MAX_FAILED or pacer.paused_for() > MAX_PAUSE:
            raise FatalAPIError(why)
        return Answer(error=why)

    def _read(self, response: requests.Response) -> Answer:
        self.headers.update(one.lower() for one in response.headers)
        body: t.Any = None
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            body = msgspec.json.decode(response.content or b"{}")
        body = body if isinstance(body, dict) else {}
        return Answer(page_of(response), body, response.status_code)

    # --- What there is

    @cached_property
    def sessions(self) -> Answer:
        """The first page of all sessions."""
        return self.ask("sessions", {})

    def count(self, answer: Answer) -> int:
        """Return how many rows a listing has, by its first page."""
        page, size = answer.page, answer.size
        is_whole = size < (self.sessions.size if self.sessions.size < self.total else LIMIT)
        return size if is_whole else rows_of(page, size)

    @property
    def total(self) -> int:
        """The number of sessions, as the API counts them."""
        return rows_of(self.sessions.page, self.sessions.size)

    @cached_property
    def last(self) -> Answer:
        """The last page of all sessions, which may be the first."""
        return self.ask("sessions", {}, max(1, math.ceil(self.total / max(1, self.sessions.size))))

    @cached_property
    def seen(self) -> list[Row]:
        """The sessions of the first and the last page, oldest first, whose start can be read."""
        rows = {row.id: row for one in (self.sessions, self.last) for row in one.page.rows}
        return sorted((one for one in rows.values() if start(one)), key=start)

    @cached_property
    def newest(self) -> datetime:
        """The start of the newest session that is not in the future."""
        return max((one for row in self.seen if (one := start(row)) <= self.now), default=self.now)

    @cached_property
    def per_day(self) -> float:
        """Sessions a day, over the week before the newest one."""
        begin = midnight(self.newest.date() - 7 * DAY)
        days = (self.newest - max(begin, start(self.seen[0]) if self.seen else begin)) / DAY
        count = sum(1 for row in self.seen if begin <= start(row) <= self.newest)
        if self.total > len(self.seen) and self.honours("from"):
            days = (self.newest - begin) / DAY
            count = self.count(self.ask("sessions", self.since(begin.date())))
        return count / max(1.0, days)

    def since(self, day: date) -> dict[str, str]:
        """Return the query for sessions from a day on."""
        far = {} if self.honours("from-alone") else {"to": NEVER["to"]}
        return {"from": day.isoformat(), **far}

    def honours(self, name: str) -> bool:
        """Return whether sessions are filtered by ``from``, also without ``to``, or by ``to``."""
        query = {
            "from": NEVER,
            "from-alone": {"from": NEVER["from"]},
            "to": {"to": "1970-01-02"},
        }[name]
        answer = self.ask("sessions", query)
        return not answer.error and answer.size == 0 < self.total

    @cached_property
    def is_filtered(self) -> bool:
        """Whether dates make a difference, so that their meaning can be told."""
        return self.honours("from") and self.honours("to")

    def refused(self) -> dict[str, str]:
        """Return the endpoints that the key may not read, and why."""
        asked: dict[str, list[Answer]] = {name: [] for name in self.streams}
        for key, answer in self._answers.items():
            asked[key[0]].append(answer)
        return {
            name: answers[0].error
            for name, answers in asked.items()
            if answers and all(one.error for one in answers)
        }

    def costs(self) -> dict[str, int]:
        """Return the requests of a first load for each events_for, and of an hourly run."""
        settings, rows = self.run.settings, self.seen
        counts = {name: self.rows(name) or 0 for name in TIMES}
        if settings.start_date and self.honours("from"):
            day = settings.start_date.date() - DAY
            for name in ("sessions", "network"):
                counts[name] = self.count(self.ask(name, self.since(day)))
        pages = {one: max(1, math.ceil(n / settings.page_size)) for one, n in counts.items()}
        days = settings.lookback_days + 2
        due = [row for row in rows if row.eventCount != 0]
        kinds = {
            "all": due,
            "errors": [row for row in due if row.hasCrash or row.hasNetworkErrors],
            "crashed": [row for row in due if row.hasCrash],
        }
        part = {kind: len(kinds[kind]) / max(1, len(rows)) for kind in EVENTS_FOR}
        listed = sum(pages.values()) + days
        costs = {k: listed + math.ceil(one * counts["sessions"]) for k, one in part.items()}
        recent = math.ceil(self.per_day * days / settings.page_size)
        costs["hourly"] = recent + days + pages["crashes"]
        costs["hourly"] += math.ceil(part[settings.events_for] * self.per_day / 24)
        return costs

    def rows(self, name: str) -> int | None:
        """Return the number of rows of an endpoint, None where it may not be read."""
        if name == "events":
            known = [row.eventCount for row in self.seen if row.eventCount is not None]
            return round(sum(known) * self.total / max(1, len(known)))
        answer = self.ask(name, {})
        return None if answer.error else self.count(answer)

    # --- What the reference leaves open

    def look(self) -> None:
        """Find out what can be found out, and say why the rest could not be."""
        for looker in (
            self._order,
            self._filters,
            self._dates,
            self._limits,
            self._totals,
            self._cap,
            self._events,
            self._rows,
            self._transport,
        ):
            looker()

    def _order(self) -> None:
        for name, column in TIMES.items():
            instants = [one for row in self.ask(name, {}).page.rows if (one := at(row, column))]
            steps = [b > a for a, b in zip(instants, instants[1:], strict=False) if a != b]
            rising, question = sum(steps), f"order_{name}"
            if len(steps) < ENOUGH - 1:
                self.say(question, None, f"fewer than {ENOUGH} rows")
            elif rising in {0, len(steps)}:
                self.say(question, f"{'oldest' if rising else 'newest'} first by {column}")
            else:
                falling = share(len(steps) - rising, len(steps))
                self.say(question, f"not by {column}", f"{falling} of neighbours are newest first")

    def _filters(self) -> None:
        if not self.total:
            for name in ("from", "to"):
                self.say(f"{name}_honoured", None, "no sessions")
            return
        note = "the tap lists all rows in each run"
        for name in ("from", "to"):
            honoured = self.honours(name)
            self.say(f"{name}_honoured", honoured, "" if honoured else note)
        if self.honours("from") and self.honours("to") and not self.honours("from-alone"):
            self.say("from_honoured", "only with a to")

    @cached_property
    def base(self) -> dict[str, str]:
        """The dates of a listing of at most 5,000 sessions, or none if there are so few."""
        if self.total <= self.sessions.size:
            return {} if self.honours("from-alone") else {"to": NEVER["to"]}
        days = min(60, max(6, math.ceil(LIMIT / 2 / max(1.0, self.per_day))))
        first, last = (self.newest.date() - n * DAY for n in (days, 1))
        return {"from": first.isoformat(), "to": last.isoformat()}

    @cached_property
    def known(self) -> list[Row]:
        """All sessions of that listing whose start can be read, none if there are too many."""
        first = self.ask("sessions", self.base)
        pages = math.ceil(self.count(first) / max(1, first.size))
        if pages > MAX_PAGES:
            return []
        answers = [self.ask("sessions", self.base, n + 1) for n in range(pages)]
        return [row for one in answers for row in one.page.rows if start(row)]

    def ids(self, query: t.Mapping[str, str]) -> set[str] | None:
        """Return the sessions that a query within the base brings, None if it is refused."""
        query = {**self.base, **query}
        first = self.ask("sessions", query)
        if first.error:
            return None
        pages = math.ceil(self.count(first) / max(1, first.size))
        answers = [self.ask("sessions", query, n + 1) for n in range(min(pages, MAX_PAGES))]
        return {one for answer in (first, *answers) for one in answer.ids}

    def _dates(self) -> None:
        questions = ("times_accepted", "filter_field", "time_zone", "to_includes_day")
        why = "" if self.known else f"more than {MAX_PAGES} pages of sessions in a week"
        why = why if self.is_filtered else "from or to is ignored"
        why = why if self.total else "no sessions"
        for question in (*questions, "to_includes_instant"):
            self.say(question, None, why)
        if not why:
            column = self._times()
            self._zone(column)

    def _times(self) -> str:
        """Look for the field that is filtered on, by instants; return it, empty if unknown."""
        ended = [
            (a, b, row)
            for row in self.known
            if (a := start(row)) and (b := at(row, "endedAt")) and b - a > 2 * SECOND
        ]
        if not ended:
            why = "no session that has ended"
            self.say("times_accepted", None, why)
            self.say("filter_field", None, why)
            return ""
        begin, end, row = sorted(ended, key=lambda one: one[0])[len(ended) // 2]
        middle = begin + (end - begin) / 2

        def is_in(low: datetime, high: datetime) -> bool | None:
            found = self.ids({"from": format_instant(low), "to": format_instant(high)})
            return None if found is None else row.id in found

        inside = is_in(begin - SECOND, middle)
        if inside is None:
            self.say("times_accepted", False)
            return ""
        evening = midnight(begin.date() + DAY) - SECOND
        if is_in(begin - 2 * SECOND, begin - SECOND) or is_in(evening, self.now + DAY):
            self.say("times_accepted", True, "but the time of day seems to be ignored")
            return ""
        self.say("times_accepted", True)
        if inside:
            column, last = "startedAt", begin
        elif is_in(middle, end + SECOND / 100):
            column, last = "endedAt", end
        else:
            self.say("filter_field", OTHER, "such as the time of arrival")
            return OTHER
        self.say("filter_field", column)
        self.say("to_includes_instant", is_in(last - SECOND, last))
        return column

    def _edges(self, column: str, asked: t.Mapping[date, set[str]]) -> tuple[timedelta, timedelta]:
        """Return between which times of the UTC day the days of the API can begin."""
        low, high = -WIDEST, WIDEST
        for row in self.known:
            for day, inside in asked.items():
                if instant := at(row, column):
                    after = instant - midnight(day)
                    high = min(high, after) if row.id in inside else high
                    low = low if row.id in inside else max(low, after)
        return low, high

    def _days(self) -> list[date]:
        """Return the days whose sessions are all known."""
        days = sorted({start(row).date() + n * DAY for row in self.known for n in (0, 1)})
        first, last = (self.base.get(name) for name in ("from", "to"))
        low = date.fromisoformat(first) + 2 * DAY if first else days[0]
        high = date.fromisoformat(last or NEVER["to"]) - 2 * DAY
        return [one for one in days if low <= one <= high][-400:]

    def _zone(self, column: str) -> None:
        """Find where the days of the API begin, and whether a date as ``to`` includes its day."""
        columns = [column] if column in COLUMNS else [*COLUMNS]
        asked: dict[date, set[str]] = {}
        low, high = -WIDEST, WIDEST
        while len(asked) < MAX_DATES and low < high:
            instants = sorted(filter(None, (at(row, columns[0]) for row in self.known)))
            choices = {day: _piece(instants, midnight(day), low, high) for day in self._days()}
            choices = {day: one for day, one in choices.items() if day not in asked}
            day = min(choices, key=choices.__getitem__, default=None)
            if day is None or choices[day] >= high - low or len(_zones(low, high)) == 1:
                break
            asked[day] = self.ids({"from": day.isoformat()}) or set()
            fits = [one for one in columns if self._edges(one, asked) < self._edges(one, asked)[::-1]]
            columns = fits or columns
            low, high = self._edges(columns[0], asked)
        is_clear = low < high and column != OTHER
        zones = _zones(low, high) if is_clear else []
        if not column:
            is_one = is_clear and len(columns) == 1
            self.say("filter_field", columns[0] if is_one else None, "" if is_one else "by dates alone")
        note = f"from {zones[0]} to {zones[-1]}: too few sessions" if zones else "the days differ"
        self.say("time_zone", zones[0] if len(zones) == 1 else None, "" if len(zones) == 1 else note)
        low, high = (low, high) if is_clear else (timedelta(), timedelta())
        self._to(columns[0], low, high)

    def _to(self, column: str, low: timedelta, high: timedelta) -> None:
        rows = {
            day: [
                row.id
                for row in self.known
                if (one := at(row, column)) and high <= one - midnight(day) < low + DAY
            ]
            for day in self._days()
        }
        day = max(rows, key=lambda one: len(rows[one]), default=None)
        if day is None or not rows[day]:
            self.say("to_includes_day", None, "too few sessions")
            return
        inside = self.ids({"to": day.isoformat()}) or set()
        hits = len(inside & {*rows[day]})
        is_all = hits > len(rows[day]) / 2
        self.say("to_includes_day", is_all if hits in {0, len(rows[day])} or is_all else None)

    def _limits(self) -> None:
        larger = self.ask("sessions", {"limit": str(2 * LIMIT)})
        few = max(1, min(10, self.total // 3))
        first, second, beyond = (
            self.ask("sessions", {"limit": str(few)}, n)
            for n in (1, 2, math.ceil(self.total / few) + 1)
        )
        echo = larger.page.limit
        if larger.error:
            self.say("largest_limit", None, f"{2 * LIMIT} is refused")
        elif self.total > larger.size:
            self.say("largest_limit", larger.size)
        elif echo is not None and echo < 2 * LIMIT:
            self.say("largest_limit", echo, "as it is echoed")
        else:
            self.say("largest_limit", None, "all sessions fit on a page")
        if self.total < ENOUGH or first.error or second.error:
            for question in ("page_honoured", "past_end"):
                self.say(question, None, f"fewer than {ENOUGH} sessions")
        else:
            is_paged = not {*first.ids} & {*second.ids}
            note = "" if is_paged else "rows beyond the first page cannot be loaded"
            self.say("page_honoured", is_paged, note, handled=is_paged)
            self.say("past_end", beyond.status if beyond.error else _shape(beyond))
        wrong = {
            name
            for answer, number, limit in ((first, 1, few), (second, 2, few), (larger, 1, 2 * LIMIT))
            for name, least, most in (
                ("page", number, number),
                ("limit", answer.size, answer.size if self.total > answer.size else limit),
            )
            if not answer.error and name in answer.body
            if not least <= (_number(answer.body[name]) or 0) <= most
        }
        self.say("echo_true", not wrong if self.total else None, ", ".join(sorted(wrong)))
        empty = self.ask("sessions", NEVER)
        is_empty = not empty.error and not empty.size
        self.say("empty_page", _shape(empty) if is_empty else None, "" if is_empty else "none came")

    def _totals(self) -> None:
        few = self.ask("sessions", {"limit": str(max(1, min(10, self.total // 3)))})
        never, whole = self.ask("sessions", NEVER).page, self.sessions
        if self.total < ENOUGH:
            self.say("total_true", None, f"fewer than {ENOUGH} sessions")
            self.say("pages_true", None, f"fewer than {ENOUGH} sessions")
            return
        wrong = ""
        if whole.page.total is None:
            wrong = "it is missing"
        elif few.page.total == few.size < self.total:
            wrong = "it is that of the page"
        elif not never.rows and never.total:
            wrong = "it counts all rows, whatever the dates"
        elif whole.page.total != few.page.total:
            wrong = "it differs from page to page"
        self.say("total_true", not wrong, wrong)
        wrong = "it is missing" if whole.page.pages is None else ""
        for answer in (few, whole, self.ask("sessions", {"limit": str(2 * LIMIT)})):
            right = math.ceil(self.total / max(1, answer.size))
            if not wrong and not answer.error and answer.page.pages != right:
                wrong = "it is that of another page size"
        self.say("pages_true", not wrong, wrong)

    def _cap(self) -> None:
        total, note = self.total, "rows beyond it are not loaded unless a day has fewer"
        if self.last.error:
            self.say("cap", True, note, handled=False)
            return
        days = self._days() if self.is_filtered and self.known else []
        if total < ENOUGH or not days:
            self.say("cap", None, "too few sessions, or from and to say nothing")
            return
        day = start(self.seen[len(self.seen) // 2]).date()
        parts = ({"to": day.isoformat()}, self.since(day + 2 * DAY))
        is_cut = sum(self.count(self.ask("sessions", one)) for one in parts) > total
        is_handled = not is_cut or total >= 10 * LIMIT
        self.say("cap", is_cut, note if is_cut else f"not within {total:,}", handled=is_handled)

    def _events(self) -> None:
        counted = [row for row in self.seen if row.eventCount and row.eventCount <= LIMIT]
        best = sorted(counted, key=lambda row: (row.endedAt is not None, row.eventCount))[:-3:-1]
        answers = [(row, self.ask("events", {"sessionId": row.id})) for row in best]
        read = [(row, one) for row, one in answers if not one.error]
        names = ("events_paged", "events_limit", "event_count", "event_ids_repeat")
        for name in (*names, "unknown_session"):
            self.say(name, None, next((one.error for _, one in answers), "no session with events"))
        if not read:
            return
        row, whole = read[0]
        one, two = (self.ask("events", {"sessionId": row.id, "limit": "2"}, n) for n in (1, 2))
        if whole.size <= 2:
            self.say("events_paged", None, "too few events")
        elif one.size > 2:
            self.say("events_paged", False, "all events come at once")
        elif two.size and not {*one.ids} & {*two.ids}:
            self.say("events_paged", True)
        else:
            note = "events of a session beyond its first page cannot be loaded"
            self.say("events_paged", "limit alone", note, handled=False)
        echo = whole.page.limit
        is_total = echo == whole.size != LIMIT
        self.say("events_limit", echo == LIMIT, "it is the number of events" if is_total else "")
        unknown = self.ask("events", {"sessionId": "sess_0_unknown"})
        self.say("unknown_session", unknown.status if unknown.error else _shape(unknown))
        ended = [(row, one) for row, one in read if row.endedAt]
        if ended:
            self.say("event_count", all(row.eventCount == one.size for row, one in ended))
        if len(read) > 1:
            self.say("event_ids_repeat", bool({*whole.ids} & {*read[1][1].ids}))
        else:
            self.say("event_ids_repeat", None, "no other session with events")

    def _rows(self) -> None:
        unknown: set[str] = set()
        missing: set[str] = set()
        others: Counter[str] = Counter()
        values: Counter[str] = Counter()
        forms: Counter[str] = Counter()
        bad = 0
        for name, stream in self.streams.items():
            answers = [one for key, one in self._answers.items() if key[0] == name]
            raw = [row for one in answers for row in one.body.get("data") or () if isinstance(row, dict)]
            columns = stream.schema_file["properties"]
            known = {one for one in columns if not (name == "events" and one == "sessionId")}
            for answer in answers:
                unknown |= {f"{name}.{one}" for one in answer.page.unknown}
                others.update({f"{name}.{one}": n for one, n in answer.page.misfits.items()})
                bad += answer.page.without_key + len(answer.ids) - len(set(answer.ids))
            if len(raw) >= ENOUGH:
                missing |= {f"{name}.{one}" for one in known - {"_extra"} - set().union(*raw)}
            for column, listed in LISTED.get(name, {}).items():
                new = {str(row[column]) for row in raw if row.get(column)} - listed
                values.update({f"{name}.{column}": len(new)} if new else {})
            dates = [one for one in known if columns[one].get("format") == "date-time"]
            forms.update(_form(row[one]) for row in raw for one in dates if row.get(one))
        self.say("rows_without_id", bad or False, handled=not bad)
        self.say("unknown_fields", _names(unknown), "kept in _extra" if unknown else "")
        self.say("missing_fields", _names(missing))
        self.say("new_values", ", ".join(f"{n} in {one}" for one, n in values.items()) or False)
        self.say("other_types", _names(others), "kept in _extra" if others else "")
        self.say("date_forms", ", ".join(sorted(forms)) or None, "" if forms else "no rows")

    def _transport(self) -> None:
        names = sorted(one for one in self.headers if "ratelimit" in one.replace("-", "") or "retry" in one)
        self.say("limit_headers", ", ".join(names) or False)
        self.say("compressed", "content-encoding" in self.headers)
        self.say("refusal", None, "--provoke-429 asks for one")


def _number(value: object) -> float | None:
    with suppress(TypeError, ValueError):
        return float(t.cast("float", value))
    return None


def _piece(
    instants: list[datetime], day: datetime, low: timedelta, high: timedelta
) -> timedelta:
    """Return how much is open of where a day begins once it is asked for.

    The next instants before and after it tell: those around midnight as long as that is open.
    """
    inner = instants[bisect_right(instants, day + low) : bisect_left(instants, day + high)]
    marks = [low, *(one - day for one in inner), high]
    pieces = list(zip(marks, marks[1:], strict=False))
    zero = [b - a for a, b in pieces if a < timedelta() <= b]
    return max(zero or [b - a for a, b in pieces])


def _zones(low: timedelta, high: timedelta) -> list[str]:
    """Return the time zones, of half hours, whose midnight lies in a part of the UTC day."""
    halves = [n * HOUR / 2 for n in range(-28, 29)]
    east = [-one for one in halves if low < one <= high][::-1]
    return [f"UTC{one / HOUR:+g}" if one else "UTC" for one in east]


def _shape(answer: Answer) -> str:
    """Return what a page without rows holds."""
    if answer.size:
        return "rows"
    if answer.status == HTTPStatus.NO_CONTENT:
        return "204 without a body"
    kept = {one: answer.body[one] for one in ("total", "pages") if one in answer.body}
    data = json.dumps(answer.body.get("data"))
    return ", ".join([f"data {data}", *(f"{name} {_word(one)}" for name, one in kept.items())])


def _word(value: object) -> str:
    return str(value) if _number(value) is not None else type(value).__name__


def _form(text: object) -> str:
    """Return the form of an instant, without its digits."""
    match = re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?", str(text))
    if not match:
        return "other"
    zone = {None: "", "Z": "Z"}.get(match[2], "+hh:mm")
    return "YYYY-MM-DDThh:mm:ss" + re.sub(r"\d", "s", match[1] or "") + zone


def _names(names: t.Iterable[str]) -> str | bool:
    """Return names of fields; those that may be no names are counted."""
    plain = sorted(one for one in names if re.fullmatch(r"\w+\.[A-Za-z_]\w{0,39}", one))
    strange = len([*names]) - len(plain)
    more = [f"{strange} with other characters"] if strange else []
    return ", ".join([*plain[:20], *more]) or False


# --- The page


def report(check: Check) -> dict[str, t.Any]:
    """Return all that a check finds, as it is printed with --json."""
    began = check.run.clock.seconds()
    check.look()
    rows = {name: check.rows(name) for name in ("sessions", "crashes", "network", "events")}
    refused = check.refused()
    usable = len(refused) < len(rows)
    costs, run, seen = check.costs(), check.run, check.seen
    minutes = {name: round(run.minutes_for(one), 1) for name, one in costs.items()}
    settings = {}
    if minutes["all"] > HOURLY:
        settings["max_runtime_minutes"] = str(HOURLY)
    return {
        "usable": usable,
        "requests": check.sent,
        "seconds": round(run.clock.seconds() - began, 1),
        "rows": rows,
        "refused": refused,
        "oldest_session": start(seen[0]).date().isoformat() if seen else None,
        "newest_session": check.newest.date().isoformat() if seen else None,
        "sessions_in_the_future": sum(1 for row in seen if start(row) > check.now),
        "sessions_a_day": round(check.per_day, 1),
        "cost_in_requests": costs,
        "cost_in_minutes": minutes,
        "settings": settings,
        "api": {
            name: {"answer": one.answer, "note": one.note, "is_handled": one.is_handled}
            for name, one in check.found.items()
        },
    }


def page(found: dict[str, t.Any]) -> str:
    """Return what a check finds, for a person."""
    lines = [
        f"{NAME} check: the key works. {found['requests']} requests, {found['seconds']:.0f} s",
        "",
        "What is there",
    ]
    for name, rows in found["rows"].items():
        what = "refused" if name in found["refused"] or rows is None else f"{rows:,}"
        lines.append(f"  {name:<28}{what}")
    for name in ("oldest_session", "newest_session", "sessions_in_the_future", "sessions_a_day"):
        lines.append(f"  {name.replace('_', ' '):<28}{found[name] if found[name] is not None else 'none'}")
    lines += ["", "What a load costs"]
    for name, cost in found["cost_in_requests"].items():
        what = "an hourly run" if name == "hourly" else f"first load, events_for {name}"
        lines.append(f"  {what:<34}{cost:>9,} requests, about {duration(found['cost_in_minutes'][name])}")
    if found["refused"]:
        lines += ["", "What the key may not read"]
        lines += [f"  {name}: {why}" for name, why in found["refused"].items()]
    lines += ["", "Settings that follow"]
    lines += [f"  {one}" for one in found["settings"] or ["none: the defaults do"]]
    lines += ["", "What the API does where its reference says nothing"]
    for name, one in found["api"].items():
        note = f" ({one['note']})" if one["note"] and one["answer"] != UNTOLD else ""
        note = f": {one['note']}" if one["answer"] == UNTOLD else note
        bad = "" if one["is_handled"] else ". THE TAP DOES NOT HANDLE THIS: please open an issue"
        lines.append(f"  {QUESTIONS[name]:<46}{one['answer']}{note}{bad}")
    return "\n".join(lines)


def run(is_json: bool, config: t.Any, provoke_429: bool = False) -> None:
    logger = TapBugsPulse.logger
    with errors_as_one_line(logger):
        end_on_signals(logger)
        tap = TapBugsPulse(config=config.config, parse_env_config=config.parse_env)
        try:
            found = report(Check(tap))
        except FatalAPIError as error:
            found = {"usable": False, "why": str(error)}
        if is_json:
            print(json.dumps(found, indent=2))
        else:
            print(page(found) if "api" in found else f"not usable: {found['why']}")
        sys.exit(0 if found["usable"] else 1)


@click.command()
@click.option("--config", multiple=True, callback=TapBugsPulse.cb_config)
@click.option("--json", "is_json", is_flag=True)
def main(config, is_json):
    run(is_json, config)


if __name__ == "__main__":
    main()
