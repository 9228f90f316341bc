"""What the check asks the API: each question once, by the tap's own client."""

from __future__ import annotations

import json
import math
import typing as t
from bisect import bisect_left
from collections import Counter
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cached_property, reduce
from itertools import accumulate, product
from operator import xor

import msgspec
from requests import RequestException
from singer_sdk.exceptions import FatalAPIError, RetriableAPIError

from tap_bugspulse.http import RefusedError, reason
from tap_bugspulse.pages import Page, Row, page_of
from tap_bugspulse.replication import AFTER, DAY, LONG_AGO, format_instant, midnight, parse_instant
from tap_bugspulse.settings import EVENTS_FOR
from tap_bugspulse.tap import TapBugsPulse

MAX_REQUESTS, MAX_DATES, MAX_PAGES = 40, 8, 2  # those for dates, of these pages each
MAX_FAILED, UNANSWERED = 6, 3  # bad answers; one that does not come counts for some
MAX_PAUSE = 61.0  # seconds that a 429 may ask to wait
LIMIT, ENOUGH = 1000, 6  # rows of a page; rows that hardly stand in an order by chance
HALF_HOUR, SECOND = timedelta(minutes=30), timedelta(seconds=1)
NEVER, BEFORE = {"from": "2999-01-01", "to": "2999-01-02"}, {"to": "1970-01-02"}
UNKNOWN = {"sessionId": "sess_0_unknown"}
FAR = {"to": NEVER["to"]}
TIMES = {"sessions": "startedAt", "network": "timestamp", "crashes": "lastSeenAt"}
FIELDS = ("startedAt", "endedAt")

Query = t.Mapping[str, str]


class Untold(Exception):  # noqa: N818 - no error, but why a question stays open
    """The answers do not tell."""


class Answer(t.NamedTuple):
    """One response, or why there is none."""

    page: Page
    ids: tuple[str, ...] = ()
    size: int = 0  # with the rows that have no id
    body: t.Mapping[str, t.Any] = {}
    error: str = ""

    @property
    def raw(self) -> list[dict[str, t.Any]]:
        """The rows as they came."""
        return [row for row in self.body.get("data") or () if isinstance(row, dict)]

    @property
    def form(self) -> str:
        """What an answer without rows looks like."""
        if self.error or self.size:
            return self.error[:3] or "rows"
        names = ("data", "total", "pages")
        parts = [f"{one} {json.dumps(self.body[one])}" for one in names if one in self.body]
        return ", ".join(parts) or "no body"


class Reading(t.NamedTuple):
    """What dates in a query may mean: a time zone, whether ``to`` has its day, its instant."""

    field: str
    zone: int  # half hours from UTC to the first instant of a day
    has_day: bool
    has_instant: bool

    def bound(self, query: Query, name: str) -> datetime | None:
        """Return the first instant that ``from`` includes, or that ``to`` does not."""
        if name not in query:
            return None
        instant = t.cast("datetime", parse_instant(query[name]))
        if "T" not in query[name]:
            instant += self.zone * HALF_HOUR + self.has_day * (name == "to") * DAY
        return instant + (name == "to" and self.has_instant) * SECOND / 1000


class Probe:
    """Asks the API by the tap's own client, each question once, and keeps the answers."""

    def __init__(self, tap: TapBugsPulse, *, provokes: bool = False) -> None:
        self.run, self.streams = tap.run, t.cast("dict[str, t.Any]", tap.streams)
        self.provokes, self.takes_times = provokes, False
        self.sent = self.failed = 0
        self.headers: set[str] = set()
        self.answers: dict[tuple[t.Any, ...], Answer] = {}

    def ask(self, name: str, query: Query, number: int = 1, *, strict: bool = True) -> Answer:
        """Return a page; a strict question raises Untold where it is refused."""
        key = (name, number, *sorted(query.items()))
        if key not in self.answers:
            self.answers[key] = self._send(name, {"limit": str(LIMIT), **query}, number)
        if strict and self.answers[key].error:
            raise Untold(self.answers[key].error)
        return self.answers[key]

    def _send(self, name: str, query: Query, number: int) -> Answer:
        stream, why = self.streams[name], f"the {MAX_REQUESTS} requests of a check are used up"
        for _ in range(min(2, MAX_REQUESTS - self.sent)):
            self.sent += 1
            try:
                response = stream.take(stream.fetch(query, number, retries=False))
            except RefusedError as error:
                # Without the dates, which may be those of a row.
                return Answer(Page([]), error=str(error).partition(" from ")[0])
            except (RetriableAPIError, RequestException) as error:
                why, pause = reason(error), self.run.http.pacer.paused_for()
                is_lost = isinstance(error, RequestException)
                self.failed += UNANSWERED if is_lost else 1
                is_dead = is_lost and not self.answers
                if is_dead or pause > MAX_PAUSE or self.failed > MAX_FAILED:
                    raise FatalAPIError(why) from None
            else:
                self.headers.update(one.lower() for one in response.headers)
                body, page = None, page_of(response)
                with suppress(msgspec.DecodeError, UnicodeDecodeError):
                    body = msgspec.json.decode(response.content)
                ids = tuple(row.id for row in page.rows)
                body = body if isinstance(body, dict) else {}
                return Answer(page, ids, len(ids) + page.without_key, body)
        return Answer(Page([]), error=why)

    # --- What there is

    @cached_property
    def first(self) -> Answer:
        """The first page of all sessions."""
        return self.ask("sessions", {}, strict=False)

    @property
    def total(self) -> int:
        """The number of sessions."""
        return self.count("sessions", {})

    def count(self, name: str, query: Query) -> int:
        """Return how many rows a listing has, 0 where it is refused."""
        first = self.ask(name, query, strict=False)
        page, size, pages = first.page, first.size, first.page.pages or 1
        if pages > 1 and page.total == size >= (page.limit or 0):  # it is that of the page
            return (pages - 1) * size + self.ask(name, query, pages, strict=False).size
        return size if size < self.first.size else page.rows_in_all

    def all_of(self, query: Query) -> dict[str, Row]:
        """Return the sessions of a listing, or raise Untold if there are too many."""
        first = self.ask("sessions", query)
        count = self.count("sessions", query)
        if (pages := math.ceil(count / max(1, first.size))) > MAX_PAGES:
            raise Untold(f"more than {MAX_PAGES} pages of sessions in some days")
        answers = [self.ask("sessions", query, number + 1) for number in range(pages)]
        return {row.id: row for one in answers for row in one.page.rows if row.startedAt}

    def small(self, number: int = 1) -> Answer:
        """Return a page of few sessions, or raise Untold if there are not enough."""
        if self.total < ENOUGH:
            raise Untold(self.first.error or f"fewer than {ENOUGH} sessions")
        return self.ask("sessions", {"limit": str(min(10, self.total // 3))}, number, strict=False)

    @cached_property
    def seen(self) -> list[Row]:
        """The sessions of the first page and of the last."""
        pages = math.ceil(self.total / max(1, self.first.size))
        last = self.ask("sessions", {}, max(1, pages), strict=False)
        return [*{one.id: one for page in (self.first, last) for one in page.page.rows}.values()]

    @cached_property
    def starts(self) -> list[datetime]:
        """When these started, those in the future left out."""
        instants = (parse_instant(row.startedAt) for row in self.seen)
        return sorted(one for one in instants if one and one <= self.run.started)

    @cached_property
    def per_day(self) -> float:
        """Sessions a day in the week before the newest."""
        newest = self.starts[-1] if self.starts else self.run.started
        begin = midnight(newest.date() - 7 * DAY)
        inside = [one for one in self.starts if one >= begin]
        is_filtered = self.ignored not in {"from", "from and to"}
        if self.total > len(self.seen) and is_filtered:
            return self.count("sessions", self.since(begin)) / ((newest - begin) / DAY)
        return len(inside) / max(1.0, (newest - inside[0]) / DAY) if inside else 0.0

    @cached_property
    def ignored(self) -> str:
        """Which of the dates in a query make no difference."""
        asked = {"from": NEVER, "to": BEFORE, "from without a to": {"from": NEVER["from"]}}
        sizes = {n: self.ask("sessions", one, strict=False).size for n, one in asked.items()}
        is_both = sizes["from"] and sizes["to"]
        return "from and to" if is_both else next((one for one, n in sizes.items() if n), "")

    def since(self, instant: datetime) -> Query:
        """Return the query for all from a day on."""
        far = FAR if self.ignored == "from without a to" else {}
        return {"from": instant.date().isoformat(), **far}

    def rows(self) -> dict[str, int]:
        """Return the number of rows of each endpoint that can be read."""
        rows = {n: self.count(n, {}) for n in TIMES if not self.ask(n, {}, strict=False).error}
        events = sum(row.eventCount or 0 for row in self.seen) * self.total
        return {**rows, "events": round(events / max(1, len(self.seen)))}

    def costs(self) -> dict[str, int]:
        """Return the requests of a first load for each events_for, and of an hourly run."""
        settings, rows = self.run.settings, dict.fromkeys(TIMES, 0) | self.rows()
        if settings.start_date and not self.ignored:
            query = self.since(settings.start_date - DAY)
            rows |= {name: self.count(name, query) for name in ("sessions", "network")}
        days, size = settings.lookback_days + 2, settings.page_size
        pages = {name: math.ceil(rows[name] / size) or 1 for name in TIMES}
        due = [row for row in self.seen if row.eventCount != 0]
        is_due = {
            "all": [True for _ in due],
            "errors": [row.hasCrash or row.hasNetworkErrors for row in due],
            "crashed": [row.hasCrash for row in due],
        }
        part = {kind: sum(map(bool, is_due[kind])) / max(1, len(self.seen)) for kind in EVENTS_FOR}
        cost = {
            k: sum(pages.values()) + days + math.ceil(n * rows["sessions"]) for k, n in part.items()
        }
        hourly = math.ceil(self.per_day * days / size) + days + pages["crashes"]
        return {**cost, "hourly": hourly + math.ceil(part[settings.events_for] * self.per_day / 24)}

    @cached_property
    def base(self) -> dict[str, str]:
        """The dates of a listing of some hundred sessions; none if there are few in all."""
        if self.total <= self.first.size:
            return FAR if self.ignored else {}
        days = min(60, max(3, LIMIT / 2 / max(1.0, self.per_day)))
        first, last = (self.starts[-1] - number * DAY for number in (days, 1))
        return {"from": first.date().isoformat(), "to": last.date().isoformat()}

    def ended(self) -> dict[str, tuple[datetime, datetime]]:
        """Return when the sessions of that listing began and ended, if they did."""
        found = {
            id_: (start, end)
            for id_, row in self.all_of(self.base).items()
            if (start := parse_instant(row.startedAt)) and (end := parse_instant(row.endedAt))
        }
        if not found:
            raise Untold("no session that has ended")
        return found

    def queries(self, start: datetime, end: datetime) -> list[dict[str, str]]:
        """Return queries with times of day, about one session, if the API takes them."""
        before, middle, near = start - SECOND, start + (end - start) / 2, SECOND / 100
        spans = ((before, middle), (before, start), (middle, end), (middle, end + near))
        queries = [{"from": format_instant(a), "to": format_instant(b)} for a, b in spans]
        self.takes_times = not self.ask("sessions", queries[0], strict=False).error
        return queries if self.takes_times else []

    def readings(self) -> list[Reading]:
        """Return what dates may mean, by what comes for those that tell most."""
        ended = self.ended()
        times = {f: sorted((one[n], i) for i, one in ended.items()) for n, f in enumerate(FIELDS)}
        # Sets of sessions are compared by a number that is made of all their ids.
        marks: dict[str, list[int]] = {
            f: [0, *accumulate((hash(id_) for _, id_ in times[f]), xor)] for f in FIELDS
        }

        def predicted(one: Reading, query: Query) -> int:
            places = (one.bound(query, "from") or LONG_AGO, one.bound(query, "to") or AFTER)
            low, high = (bisect_left(times[one.field], (instant, "")) for instant in places)
            return marks[one.field][low] ^ marks[one.field][max(low, high)]

        def left(query: Query) -> int:
            return max(Counter(predicted(one, query) for one in alive).values(), default=0)

        def fitting(query: Query) -> list[Reading]:
            came = self.all_of({**self.base, **query}).keys() & ended.keys()
            return [
                one for one in alive if predicted(one, query) == reduce(xor, map(hash, came), 0)
            ]

        exact = self.queries(*max(ended.values(), key=lambda one: one[1] - one[0]))
        days = {(one + n * DAY).date().isoformat() for one, _ in ended.values() for n in (0, 1)}
        queries = exact + [{n: one} for one in sorted(days)[-60:] for n in ("from", "to")]
        yes_no = (False, True)
        alive = [Reading(*one) for one in product(FIELDS, range(-28, 29), yes_no, yes_no)]
        for _ in range(MAX_DATES):
            query = min(queries, key=left)
            if left(query) == len(alive):
                break
            alive = fitting(query)
        # Something soon after the end looks much like it.
        return fitting(exact[-1]) if exact else alive
