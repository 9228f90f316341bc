"""The sandbox is held against the API reference, and its data against itself."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import signal
import subprocess
import sys
import time
import typing as t
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from inspect import signature
from urllib.parse import urlsplit

import pytest

from tests.pipeline.children import CHECKOUT
from tests.sandbox import Options, Project, Request, Sandbox, generate, generate_once
from tests.sandbox.__main__ import main
from tests.sandbox.options import FAULTS
from tests.sandbox.server import Allowance

if t.TYPE_CHECKING:
    from collections.abc import Iterator

Row = dict[str, t.Any]
UNTIL = datetime(2026, 3, 1, tzinfo=UTC)
JSON = {"Content-Type": "application/json; charset=utf-8"}
HTML = {"Content-Type": "text/html"}

# The examples of the API reference.
SESSION, CRASH, EVENT, NETWORK = json.loads("""[
    {"id": "sess_1780000000_abc123", "userId": "usr_123", "status": "completed",
     "platform": "ios", "osVersion": "17.4", "appVersion": "2.4.1", "networkType": "wifi",
     "eventCount": 42, "hasCrash": false, "hasNetworkErrors": false, "duration": 183000,
     "startedAt": "2026-01-15T10:00:00.000Z", "endedAt": "2026-01-15T10:03:03.000Z"},
    {"id": "crash_xyz", "message": "TypeError: Cannot read properties of undefined",
     "status": "open", "isFatal": true, "handled": false, "occurrenceCount": 14,
     "affectedDevices": 9, "platform": "android", "appVersion": "2.4.1", "osVersion": "14",
     "firstSeenAt": "2026-01-10T08:00:00.000Z", "lastSeenAt": "2026-01-15T22:14:00.000Z"},
    {"id": "evt_001", "type": "navigate", "timestamp": "2026-01-15T10:00:01.000Z",
     "sequenceNumber": 0, "data": {"from": null, "to": "Home"}},
    {"id": "req_001", "sessionId": "sess_1780000000_abc123", "method": "POST",
     "url": "https://api.yourapp.com/checkout", "statusCode": 500, "duration": 1840,
     "error": "Internal Server Error", "timestamp": "2026-01-15T10:00:07.000Z"}
]""")
SAMPLES = {"/sessions": SESSION, "/crashes": CRASH, "/network": NETWORK}
TIMES = {"/sessions": "startedAt", "/crashes": "lastSeenAt", "/network": "timestamp"}
ENVELOPE = ("data", "total", "page", "limit", "pages")
# What has no value in some rows: no sign-in, no end yet, no answer, no error.
NULLABLE = {"userId", "duration", "endedAt", "statusCode", "error"}


class Answer(t.NamedTuple):
    """An answer's status, headers and body."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Client:
    """Talks to a sandbox over one connection that is kept alive."""

    sandbox: Sandbox
    options: t.Any

    def __init__(self, url: str, api_key: str) -> None:
        """Connect at the first request."""
        self.headers = {"Authorization": f"Bearer {api_key}"}
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)

    def get(self, target: str) -> Answer:
        """Get a path below `/export`."""
        self.connection.request("GET", "/export" + target, headers=self.headers)
        response = self.connection.getresponse()
        return Answer(response.status, response.headers, response.read())

    def json(self, target: str) -> Row:
        """Get an envelope."""
        return t.cast("Row", json.loads(self.get(target).body))

    def ids(self, path: str, query: str = "") -> list[str]:
        """The ids of the rows of one page of up to 1,000."""
        return [row["id"] for row in self.json(f"{path}?limit=1000&{query}")["data"]]

    def listing(self, path: str, query: str) -> list[Row]:
        """All rows, page by page."""
        pages = self.json(f"{path}?{query}")["pages"]
        envelopes = (self.json(f"{path}?{query}&page={page}") for page in range(1, pages + 1))
        return [row for envelope in envelopes for row in envelope["data"]]


@contextlib.contextmanager
def serving(project: Project, **options: t.Any) -> Iterator[Client]:
    """A client of a sandbox without a limit, unless its options say otherwise."""
    with Sandbox(project, Options(**{"requests_per_minute": None, **options})) as sandbox:
        client = Client(sandbox.url, sandbox.api_key)
        client.sandbox, client.options = sandbox, sandbox.options
        with contextlib.closing(client.connection):
            yield client


@pytest.fixture(scope="module")
def project() -> Project:
    """A project that tests only read."""
    return generate(seed=7, sessions=600, days=30, until=UNTIL)


@pytest.fixture
def own() -> Project:
    """A project that a test may change."""
    return generate_once(seed=3, sessions=150, days=10, until=UNTIL)


@pytest.fixture(scope="module")
def edges() -> Project:
    """Ten sessions and calls at the edges of days, two in another form; one has seven events."""
    project = generate(sessions=0)
    starts = (
        *("14T20:59:59.999Z", "14T21:00:00.000Z", "14T23:59:59.999Z", "15T02:00:00+02:00"),
        *("15T23:59:59.999Z", "16T00:00:00.000Z", "16T00:00:00.001Z", "16T23:59:59.999Z"),
        *("17T00:00:00Z", "18T12:00:00.000Z"),
    )
    for number, start in enumerate(f"2026-01-{start}" for start in starts):
        session = SESSION | {"id": f"sess_{number}", "startedAt": start, "endedAt": None}
        events = [EVENT | {"id": f"evt_{event}"} for event in range(0 if number else 7)]
        call = NETWORK | {"id": f"req_{number}", "timestamp": start}
        project.add(session, events, [call])
    return project


def numbers(rows: list[Row]) -> str:
    """Return the numbers of some rows of `edges`."""
    return "".join(row["id"][-1] for row in rows)


def some_session(project: Project, *, ended: bool) -> str:
    """Return a session without a crash that has events, and has ended or not."""
    return next(
        i
        for i, row in project.sessions.items()
        if bool(row["endedAt"]) == ended and row["eventCount"] and not row["hasCrash"]
    )


def like(sample: Row, row: Row) -> None:
    """Check that a row has the sample's keys, in its order, and its JSON types."""
    assert list(row) == list(sample)
    for name, value in row.items():
        if not (value is None and name in NULLABLE):
            assert type(value) is type(sample[name]), (name, value)


# ---- The reference, field by field


@pytest.mark.parametrize("path", SAMPLES)
@pytest.mark.parametrize("order", ["newest", "oldest", "arbitrary"])
def test_pages_hold_every_row_once(project: Project, path: str, order: str) -> None:
    """Pages put together are the whole, in their order, and look like the reference."""
    with serving(project, order=order) as client:
        first = client.json(path)
        rows = client.listing(path, "limit=97")
        assert rows == client.listing(path, "limit=1000")
    table = project.table(path[1:])
    assert len(rows) == len(table)
    assert {row["id"]: row for row in rows} == table
    for row in rows:
        like(SAMPLES[path], row)
    times = [row[TIMES[path]] for row in rows]
    assert (times == sorted(times)) == (order == "oldest")
    assert (times == sorted(times, reverse=True)) == (order == "newest")
    # A page has 100 rows where nothing is asked for.
    told = (rows[:100], len(table), 1, 100, math.ceil(len(table) / 100))
    assert list(first.items()) == list(zip(ENVELOPE, told, strict=True))


def test_only_what_the_reference_has(edges: Project) -> None:
    """Only four paths with a key as a bearer token work; a no leaves the connection."""
    with serving(edges, api_keys=("bp_one", "bp_two")) as client:
        assert client.sandbox.api_key == "bp_one"
        for path in ("", "/", "/users", "/sessions/", "/../sessions"):
            assert client.get(path).status == 404
        connection = client.connection.sock
        for authorization in ("Bearer bp_one", "bearer bp_two"):
            client.headers = {"Authorization": authorization}
            assert client.get("/crashes").status == 200
        for authorization in ("Bearer bp_no", "bp_one", "Bearer ", ""):
            client.headers = {"Authorization": authorization} if authorization else {}
            assert client.get("/crashes").status == 401
        assert client.connection.sock is connection
        asked = client.sandbox.requests[-6:]
    assert [request.key_ok for request in asked] == [True] * 2 + [False] * 4


# ---- What the reference leaves open, and what no reference would say

EVENTS_0 = "/events?sessionId=sess_0"
LATE: Row = {"late_sessions": {"sess_0"}}


@pytest.mark.parametrize(
    # The numbers of the rows, and what the envelope says: total, page, limit and pages.
    ("options", "target", "rows", "told"),
    [
        # A page past the end is empty, and a limit above what is allowed is lowered.
        ({}, "/sessions?page=99&limit=4", "", (10, 99, 4, 3)),
        ({}, "/sessions?limit=5000", "9876543210", (10, 1, 1000, 1)),
        ({"max_limit": 4}, "/sessions?limit=5000", "9876", (10, 1, 4, 3)),
        ({"omit_pages": True}, "/sessions?limit=4", "9876", (10, 1, 4)),
        # Each page holds page 1's rows and promises another.
        ({"repeat_page": True}, "/sessions?limit=4", "9876", (10, 1, 4, 3)),
        ({"repeat_page": True}, "/sessions?limit=4&page=9", "9876", (10, 9, 4, 10)),
        ({"row_cap": 7}, "/sessions?limit=3&page=3", "3", (7, 3, 3, 3)),
        ({"row_cap": 7}, "/sessions?limit=3&page=4", "", (7, 4, 3, 3)),
        ({"counts": "page-total"}, "/sessions?limit=4&page=3", "10", (2, 3, 4, 3)),
        ({"counts": "one-page"}, "/sessions?limit=4", "9876", (10, 1, 4, 1)),
        ({"counts": "one-page"}, "/sessions?to=2000-01-01", "", (0, 1, 100, 1)),
        ({"counts": "default-limit"}, "/sessions?limit=4", "9876", (10, 1, 4, 1)),
        ({"counts": "unfiltered"}, "/sessions?from=2100-01-01&limit=4", "", (10, 1, 4, 3)),
        ({"counts": "asked-limit", "max_limit": 3}, "/sessions?limit=6", "987", (10, 1, 3, 2)),
        ({"echo": "asked", "max_limit": 3}, "/sessions?limit=6", "987", (10, 1, 6, 4)),
        ({"echo": "page-one-too-high"}, "/sessions?limit=4", "9876", (10, 2, 4, 3)),
        # Events are one page, with their number as limit, unless paging is honoured.
        ({}, f"{EVENTS_0}&page=2&limit=3", "0123456", (7, 1, 7, 1)),
        ({"events_paging": "pages"}, f"{EVENTS_0}&page=2&limit=3", "345", (7, 2, 3, 3)),
        ({"events_paging": "first"}, f"{EVENTS_0}&page=2&limit=3", "012", (7, 1, 3, 1)),
        ({"unknown_session": "empty"}, "/events?sessionId=sess_no", "", (0, 1, 0, 1)),
        (LATE, EVENTS_0, "", (0, 1, 7, 1)),
        (LATE | {"late_events": "no-rows"}, EVENTS_0, "", (7, 1, 7, 1)),
        (LATE | {"late_events": "part"}, EVENTS_0, "012345", (6, 1, 7, 1)),
        ({"late_sessions": {"sess_1"}}, EVENTS_0, "0123456", (7, 1, 7, 1)),
    ],
    ids=str,
)
def test_listings_of_odd_servers(
    edges: Project, options: Row, target: str, rows: str, told: tuple[int, ...]
) -> None:
    """Each option counts, echoes, caps or pages as it says, and changes nothing else."""
    with serving(edges, **options) as client:
        envelope = client.json(target)
    envelope["data"] = numbers(envelope["data"])
    assert envelope == dict(zip(ENVELOPE, (rows, *told), strict=False))


@pytest.mark.parametrize(
    ("options", "target", "status", "reason"),
    [
        *(({}, f"/sessions?page={page}", 400, "page") for page in ("0", "-1", "x", "")),
        *(({}, f"/sessions?limit={limit}", 400, "limit") for limit in ("0", "1e3")),
        *(({}, f"/sessions?from={date}", 400, "from") for date in ("yesterday", "")),
        ({}, "/sessions?to=2026-02-30", 400, "to"),
        ({}, "/sessions?to=9999-12-31T23:59:59-14:00", 400, "to"),
        ({"dates_only": True}, "/sessions?from=2026-01-15T00:00:00Z", 400, "time of day"),
        ({"dates_only": True}, "/sessions?from=2026-01-15", 200, ""),
        ({"row_cap": 6, "beyond_cap": "400"}, "/sessions?limit=3&page=2", 200, '"total":10'),
        ({"row_cap": 6, "beyond_cap": "400"}, "/sessions?limit=3&page=3", 400, "beyond"),
        ({"past_end": "404"}, "/sessions?limit=4&page=3", 200, ""),
        ({"past_end": "404"}, "/sessions?limit=4&page=4", 404, "No such page"),
        ({"past_end": "400"}, "/sessions?limit=4&page=4", 400, "No such page"),
        ({"refuse_before": "2026-01-02T00:00:00.000Z"}, "/sessions?from=2026-01-01", 400, "from"),
        ({"refuse_before": "2026-01-02T00:00:00.000Z"}, "/sessions?from=2026-01-02", 200, ""),
        ({"refuse_before": "2026-01-02T00:00:00.000Z"}, "/sessions", 200, ""),
        ({"most_requests": 0}, "/sessions", 401, "key"),
        ({"most_requests": 1}, "/sessions", 200, ""),
        ({}, "/events", 400, "sessionId"),
        ({}, "/events?sessionId=sess_no", 404, "Session"),
        ({"broken_sessions": {"sess_0"}}, EVENTS_0, 500, "Error"),
        ({"broken_sessions": {"sess_0"}}, "/events?sessionId=sess_1", 200, ""),
        ({"vanished_sessions": {"sess_0"}}, EVENTS_0, 404, "Session"),
        ({"vanished_sessions": {"sess_0"}, "unknown_session": "empty"}, EVENTS_0, 404, "Session"),
        ({"vanished_sessions": {"sess_0"}}, "/sessions", 200, '"id":"sess_0"'),
        (LATE | {"late_events": "404"}, EVENTS_0, 404, "Session"),
        (LATE | {"late_events": "204"}, EVENTS_0, 204, ""),
    ],
    ids=str,
)
def test_refusals(edges: Project, options: Row, target: str, status: int, reason: str) -> None:
    """What makes no sense is refused with a reason, and what an option refuses; nothing else."""
    with serving(edges, **options) as client:
        answer = client.get(target)
    assert answer.status == status
    assert reason in answer.body.decode()


COUNTS = b'"total":0,"page":1,"limit":100,"pages":0}'
FLOATS = b'{"data":[],"total":0.0,"page":1.0,"limit":100.0,"pages":0.0}'
TOO_MANY = b'{"error": "Too many requests"}'
ASKED_FOR = b'{"error": "This fault was asked for"}'


@pytest.mark.parametrize(
    ("options", "status", "headers", "body"),
    [
        ({"empty_as": "list"}, 200, JSON, b'{"data":[],' + COUNTS),
        ({"empty_as": "null"}, 200, JSON, b'{"data":null,' + COUNTS),
        ({"empty_as": "floats"}, 200, JSON, FLOATS),
        ({"empty_as": "204"}, 204, {}, b""),
        ({"envelope": lambda _: {"a": 1}}, 200, JSON, b'{"a":1}'),
        ({"body": lambda body: body[:1] + b"\xff"}, 200, JSON, b"{\xff"),
        # Faults: a body that is no listing, or any status from 300.
        ({"faults": {"no_data": 1}}, 200, JSON, b"{" + COUNTS),
        ({"faults": {"data_not_list": 1}}, 200, JSON, b'{"data":{"rows":[]},' + COUNTS),
        ({"faults": {"row_not_object": 1}}, 200, JSON, b'{"data":["row"],' + COUNTS),
        ({"faults": {"not_json": 1}}, 200, JSON, b"{data: []," + COUNTS),
        ({"faults": {"html": 1}}, 200, HTML, b"<!doctype html>"),
        ({"faults": {"301": 1}}, 301, JSON | {"Location": "/export/sessions"}, ASKED_FOR),
        ({"faults": {"429": 1}}, 429, JSON | {"Retry-After": "1"}, TOO_MANY),
        *(({"faults": {str(code): 1}}, code, JSON, ASKED_FOR) for code in (403, 408, 500)),
        *(({"faults": {str(code): 1}}, code, HTML, b"<html>") for code in (502, 503)),
    ],
)
def test_other_bodies(edges: Project, options: Row, status: int, headers: Row, body: bytes) -> None:
    """A page without rows has many forms, and hooks and faults replace it."""
    with serving(edges, **options) as client:
        answer = client.get("/sessions?to=2000-01-01")
    names = {"Content-Type", "Location", "Retry-After"} & set(answer.headers)
    assert (answer.status, {name: answer.headers[name] for name in names}) == (status, headers)
    assert answer.body.startswith(body) if headers == HTML else answer.body == body


@pytest.mark.parametrize(
    ("options", "query", "rows"),
    [
        ({}, "", "9876543210"),
        ({}, "from=2026-01-15", "9876543"),
        ({}, "from=2026-01-16T02:00:00%2B02:00", "98765"),
        ({}, "from=2026-01-16T00:00:00.001Z", "9876"),
        # A date as `to` means before that day, at its midnight or at its end.
        ({}, "to=2026-01-16", "43210"),
        ({}, "to=2026-01-16T00:00:00Z", "43210"),
        ({}, "from=2026-01-15&to=2026-01-15", ""),
        ({"to_means": "midnight"}, "to=2026-01-16", "543210"),
        ({"to_means": "midnight"}, "to=2026-01-16T00:00:00Z", "543210"),
        ({"to_means": "midnight"}, "from=2026-01-15&to=2026-01-15", "3"),
        ({"to_means": "end"}, "to=2026-01-16", "76543210"),
        ({"to_means": "end"}, "to=2026-01-16T00:00:00Z", "543210"),
        ({"to_means": "end"}, "from=2026-01-15&to=2026-01-15", "43"),
        ({"to_means": "end"}, "from=2026-01-17&to=2026-01-15", ""),
        # A time zone three hours east of UTC.
        ({"utc_offset_hours": 3}, "from=2026-01-15&to=2026-01-16", "321"),
        ({"utc_offset_hours": 3}, "to=2026-01-15T00:00:00", "0"),
        ({"utc_offset_hours": 3}, "to=2026-01-15T00:00:00Z", "210"),
        ({"ignored": "from"}, "from=2100-01-01&to=2026-01-15", "210"),
        ({"ignored": "to"}, "from=2026-01-17&to=2000-01-01", "98"),
        ({"ignored": "both"}, "from=2100-01-01&to=2000-01-01", "9876543210"),
        ({"ignored": "from-alone"}, "from=2100-01-01", "9876543210"),
        ({"ignored": "from-alone"}, "from=2100-01-01&to=2101-01-01", ""),
    ],
    ids=str,
)
def test_from_and_to(edges: Project, options: Row, query: str, rows: str) -> None:
    """`from` is inclusive, and dates mean what is set, of sessions and of network calls."""
    with serving(edges, **options) as client:
        for path in ("/sessions", "/network"):
            assert numbers(client.json(f"{path}?{query}")["data"]) == rows


def test_filtering_on_other_fields(project: Project) -> None:
    """`from` and `to` look at the start, the end or the arrival of a row; never at crashes."""
    late = datetime(2026, 1, 20, tzinfo=UTC)
    three = generate(sessions=0)
    three.add(SESSION | {"id": "sess_late"}, [], [NETWORK], received=late)
    ends = {"id": "sess_long", "endedAt": "2026-01-18T00:00:00.000Z"}
    three.add(SESSION | ends, [], received=late - timedelta(days=5))
    three.add(SESSION | {"id": "sess_open", "endedAt": None}, [], received=late)
    with serving(three) as client:
        for client.options.filter_on, found in (
            ("startedAt", []),
            ("endedAt", ["sess_long"]),
            ("received", ["req_001", "sess_late", "sess_open"]),
        ):
            paths = ("/sessions", "/network")
            assert sorted(i for one in paths for i in client.ids(one, "from=2026-01-16")) == found
    with serving(project) as client:
        assert set(client.ids("/crashes", "from=2030-01-01&to=1990-01-01")) == set(project.crashes)


def test_ties_have_an_order_for_each_page(own: Project) -> None:
    """It is the same each time, so that some rows are on two pages and others on none."""
    for row in own.sessions.values():
        row["startedAt"] = SESSION["startedAt"]
    own.changed("sessions")
    with serving(own, ties="by-page") as client:
        first = client.listing("/sessions", "limit=30")
        assert first == client.listing("/sessions", "limit=30")
        assert 0 < len({row["id"] for row in first}) < len(first) == 150
        assert client.ids("/sessions") != [row["id"] for row in first]


def test_misfits(project: Project) -> None:
    """Most rows fit; others lack a field, have one more, or a value of another type."""
    session = max(project.events, key=lambda one: len(project.events[one]))
    with serving(project, misfits=True) as client:
        rows = client.listing("/sessions", "limit=1000")
        events = client.json(f"/events?sessionId={session}")["data"]
    odd = [row for row in rows if row != project.sessions[row["id"]]]
    assert len(odd) < len(rows) / 2
    assert {len(row) - len(SESSION) for row in odd} == {-1, 0, 1}
    assert all(row["startedAt"] == project.sessions[row["id"]]["startedAt"] for row in odd)
    assert {type(event["data"]) for event in events} == {dict, str, list}


# ---- The limit


@pytest.mark.parametrize(
    ("counting", "instants", "waits"),
    [
        # A window begins with the first request; the refused one does not count.
        ("fixed", [0, 1, 59, 59.5, 60, 61, 62], [0, 0, 0, 0.5, 0, 0, 0]),
        ("fixed", [10, 69, 69.5, 69.9, 70, 70, 70, 75], [0, 0, 0, 0.1, 0, 0, 0, 55]),
        ("sliding", [0, 10, 20, 59, 60, 61, 70, 71], [0, 0, 0, 1, 0, 9, 0, 9]),
        ("bucket", [0, 0, 0, 0, 20, 20, 50, *[200] * 4], [0, 0, 0, 20, 0, 20, 0, 0, 0, 0, 20]),
    ],
)
def test_counting(counting: t.Any, instants: list[float], waits: list[float]) -> None:
    """Three requests a minute: when each counting has room again."""
    options = Options(requests_per_minute=3, counting=counting)
    allowance = Allowance()
    assert [allowance.take(options, 1000 + at) for at in instants] == pytest.approx(waits)


def test_the_limit_over_http(edges: Project) -> None:
    """60 requests a minute and key, others of the same key included; then 429."""
    keys = ("bp_one", "bp_two")
    with serving(edges, requests_per_minute=60, minute=86_400, api_keys=keys) as client:
        client.sandbox.spend(58)
        client.get("/nonsense")
        assert [client.get("/crashes").status for _ in range(3)] == [200, 200, 429]
        client.headers = {"Authorization": "Bearer bp_two"}
        assert [client.get("/crashes").status for _ in range(61)] == [200] * 60 + [429]
        client.sandbox.reset()
        assert client.get("/crashes").status == 429
        assert [r.status for r in client.sandbox.requests] == [429]


def test_what_a_429_carries(edges: Project) -> None:
    """It tells how long to wait, never too short a time, in one of five ways."""
    with serving(edges, requests_per_minute=1, minute=500) as client:
        assert client.get("/crashes").status == 200
        found: dict[str, dict[str, str]] = {}
        before = time.time()
        for carried in ("seconds", "date", "reset", "x-reset", "none"):
            client.options.retry_after = carried
            answer = client.get("/crashes")
            names = {"Retry-After", "RateLimit-Reset", "X-RateLimit-Reset"} & set(answer.headers)
            found[carried] = {name: answer.headers[name] for name in names}
            assert answer.status == 429
    at = parsedate_to_datetime(found.pop("date")["Retry-After"]).timestamp()
    assert before + 499 < at < time.time() + 501
    assert abs(int(found.pop("x-reset")["X-RateLimit-Reset"]) - at) <= 1
    told = {"seconds": {"Retry-After": "500"}, "reset": {"RateLimit-Reset": "500"}, "none": {}}
    assert found == told


# ---- The data


def test_the_same_arguments_give_the_same_project() -> None:
    """A project and its copies follow from a seed, and each goes on by itself."""
    made: dict[str, t.Any] = {"seed": 1, "sessions": 50, "days": 5, "until": UNTIL}
    assert not generate(**made).sessions.keys() & generate(**made | {"seed": 8}).sessions.keys()
    first, copy, other = generate(**made), generate_once(**made), generate_once(**made)
    for _ in range(2):
        assert list(first.sessions) == list(copy.sessions)
        for name in vars(first).keys() - {"lock", "_world"}:
            assert vars(copy)[name] == vars(first)[name], name
        for each in (first, copy):
            each.crash(some_session(each, ended=True))
            assert each.new_session(UNTIL) not in other.sessions
    assert other.sessions == generate_once(**made).sessions
    assert copy.lock is not other.lock


def assert_adds_up(project: Project) -> None:
    """Check that sessions, events, calls and crash groups agree with each other."""
    for call in project.network.values():
        session = project.sessions[call["sessionId"]]
        assert session["startedAt"] <= call["timestamp"] <= (session["endedAt"] or "9")
        assert (call["error"] is None) == (call["statusCode"] == 200)
    failing = {call["sessionId"] for call in project.network.values() if call["error"]}
    found: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
    for session_id, row in project.sessions.items():
        events = project.events[session_id]
        for number, event in enumerate(events):
            like(EVENT, event)
            assert (event["sequenceNumber"], event["id"]) == (number, f"evt_{number + 1:03d}")
        times = [row["startedAt"], *(event["timestamp"] for event in events)]
        assert times == sorted(times)
        assert times[-1] <= (row["endedAt"] or "9")
        assert row["eventCount"] == len(events)
        assert row["hasNetworkErrors"] == (session_id in failing)
        assert (row["status"] == "active") == (row["endedAt"] is None) == (row["duration"] is None)
        if row["endedAt"]:
            start, end = map(datetime.fromisoformat, (row["startedAt"], row["endedAt"]))
            assert row["duration"] == (end - start) / timedelta(milliseconds=1)
        last = events[-1]["type"] if events else None
        assert (last in {"crash", "error"}) == row["hasCrash"]
        assert (last == "crash") == (row["status"] == "crashed")
        if row["hasCrash"]:
            group = (events[-1]["data"]["message"], row["platform"], row["appVersion"])
            found[group].append((times[-1], project.devices[session_id]))
    assert len(found) == len(project.crashes) > 0
    for crash in project.crashes.values():
        seen = found[crash["message"], crash["platform"], crash["appVersion"]]
        assert crash["occurrenceCount"] == len(seen)
        assert crash["affectedDevices"] == len({device for _, device in seen})
        assert (crash["firstSeenAt"], crash["lastSeenAt"]) == (min(seen)[0], max(seen)[0])
        assert crash["handled"] is not crash["isFatal"]


def test_odd_sessions(project: Project) -> None:
    """Some never end, some have no events, some arrive late, some clocks are wrong."""
    begun = {i: row["startedAt"] for i, row in project.sessions.items()}
    assert sum(start > "2026-03-01" for start in begun.values()) == 2
    assert sum(start < "2026-01-01" for start in begun.values()) == 2
    true = {i: start for i, start in begun.items() if "2026-01" < start < "2026-03-01"}
    late = (
        datetime.fromisoformat(project.received[i]) - datetime.fromisoformat(start)
        for i, start in true.items()
    )
    assert 8 < sum(one > timedelta(hours=2) for one in late) < 16
    assert any(true[i] < "2026-02-10" for i in true if not project.sessions[i]["endedAt"])
    assert sum(row["eventCount"] == 0 for row in project.sessions.values()) >= 24
    honest = generate(seed=7, sessions=600, until=UNTIL, lying_clocks=False)
    assert all("2026-01-30" <= r["startedAt"] < "2026-03-01" for r in honest.sessions.values())


@pytest.mark.parametrize("groups", [0, 1, 2500])
def test_an_exact_number_of_crash_groups(groups: int) -> None:
    """So many there are, also where fewer sessions crashed; those are older."""
    small = generate(seed=1, sessions=200, until=UNTIL, crash_groups=groups)
    keys = {(g["message"], g["platform"], g["appVersion"]) for g in small.crashes.values()}
    assert len(keys) == len(small.crashes) == groups
    for group in small.crashes.values():
        like(CRASH, group)
        assert 1 <= group["affectedDevices"] <= group["occurrenceCount"]
        assert group["firstSeenAt"] <= group["lastSeenAt"] <= "2026-03-01"
    crashed = sum(row["hasCrash"] for row in small.sessions.values())
    within = [g for g in small.crashes.values() if g["lastSeenAt"] >= "2026-01-30"]
    assert sum(g["occurrenceCount"] for g in within) == crashed


# ---- Data that changes


def test_a_project_adds_up_whatever_happens_to_it(own: Project) -> None:
    """Sessions that grow, end and crash agree with events, calls and crash groups."""
    assert_adds_up(own)
    active, ended = some_session(own, ended=False), some_session(own, ended=True)
    events, row = list(own.events[active]), dict(own.sessions[ended])
    own.grow(active, events=4)
    own.end(active)
    assert own.events[active][:-4] == events
    assert own.sessions[active]["endedAt"] > own.events[active][-1]["timestamp"]
    own.grow(ended, events=60)
    assert own.sessions[ended] == row | {"eventCount": row["eventCount"] + 60}
    before = sum(group["occurrenceCount"] for group in own.crashes.values())
    groups = [own.crash(one) for one in (some_session(own, ended=False), ended)]
    assert own.events[ended][-1]["data"]["message"] == own.crashes[groups[1]]["message"]
    assert sum(group["occurrenceCount"] for group in own.crashes.values()) == before + 2
    own.new_session(UNTIL, active=True)
    new = own.new_session(UNTIL - timedelta(days=3))
    assert own.sessions[new]["startedAt"] == "2026-02-26T00:00:00.000Z"
    assert own.sessions[new]["endedAt"] < "2026-03-01" <= own.received[new]
    assert_adds_up(own)
    call = own.network[own.new_network(UNTIL)]
    like(NETWORK, call)
    assert (call["timestamp"], call["error"]) == ("2026-03-01T00:00:00.000Z", None)


def test_a_hook_changes_rows_before_they_are_read(own: Project) -> None:
    """An answer has what a hook did, and none is built from the rows while a hook is at them."""
    is_free: list[bool] = []

    def add(_: Request, project: Project) -> None:
        # Ahead of all clocks that are wrong.
        new.append(project.new_session(project.now + timedelta(days=500)))
        with ThreadPoolExecutor(1) as another:
            is_free.append(another.submit(project.lock.acquire, blocking=False).result())

    new: list[str] = []
    with serving(own, on_request=add) as client:
        first, second = (client.json(f"/sessions?page={page}&limit=30") for page in (1, 2))
    assert is_free == [False, False]
    assert first["data"][0]["id"] == new[0]
    # What arrives between two pages pushes others to the next.
    assert (second["total"], second["data"][0]) == (152, first["data"][-1])


def test_a_server_whose_data_changes_by_itself(own: Project) -> None:
    """After every so many requests sessions come late, start and are purged."""
    before, groups = {i: row["startedAt"][:10] for i, row in own.sessions.items()}, {*own.crashes}
    with serving(own, late_every=5, new_every=10, purge_every=40) as client:
        for _ in range(39):
            client.get("/crashes")
        added = own.sessions.keys() - before.keys()
        assert len(added) == 7 + 3
        late = [i for i in added if own.sessions[i]["startedAt"] < "2026-02-28T22"]
        assert len(late) == 7
        client.get("/crashes")
    oldest = min(before.values())
    assert {before[i] for i in before.keys() - own.sessions.keys()} == {oldest}
    # Events and calls go with their time, crash groups stay.
    assert own.events.keys() == own.sessions.keys()
    assert min(call["timestamp"] for call in own.network.values())[:10] > oldest
    assert groups <= own.crashes.keys()


# ---- Faults


@pytest.mark.parametrize(
    ("fault", "error", "status"),
    [
        ("reset", ConnectionResetError, 0),
        ("cut", http.client.IncompleteRead, 200),
        ("timeout", http.client.RemoteDisconnected, 0),
    ],
)
def test_broken_connections(
    edges: Project, fault: str, error: type[Exception], status: int
) -> None:
    """A connection may be reset, cut in the body, or closed; what was asked for is known."""
    with serving(edges, faults={fault: 1}, hang_seconds=0.01) as client:
        with pytest.raises(error):
            client.get("/sessions?page=2")
        (request,) = client.sandbox.requests
    assert (request.path, request.query) == ("/sessions", {"page": "2"})
    assert (request.fault, request.status) == (fault, status)


def test_answers_that_take_their_time(edges: Project) -> None:
    """A body may drip byte by byte, whole in the end; answers take the time that is set."""
    with serving(edges, faults={"drip": 1}, drip_seconds=0.0001) as client:
        assert len(client.json("/sessions?limit=1")["data"]) == 1
        client.options.faults, client.options.latency, client.options.jitter = {}, 0.05, 0.01
        before = time.monotonic()
        client.get("/crashes")
        assert time.monotonic() - before >= 0.05


def test_faults_come_by_chance(edges: Project) -> None:
    """They come about as often as asked for, and in each run the same."""

    def statuses() -> list[int]:
        with serving(edges, faults={"500": 0.2, "404": 0.1}) as client:
            return [client.get("/crashes").status for _ in range(200)]

    first = statuses()
    assert first == statuses()
    assert 20 < first.count(500) < 60
    assert 5 < first.count(404) < 35


def test_a_script_decides(edges: Project) -> None:
    """A hook may choose the fault of one request; one that fails is not lost."""
    faults = {"2": "503", "4": "flood"}
    with (
        pytest.raises(ValueError, match="'flood' is no fault"),
        serving(edges, script=lambda request: faults.get(request.query["page"])) as client,
    ):
        answers = [client.get(f"/sessions?page={page}").status for page in (1, 2, 3, 4)]
    assert answers == [200, 503, 200, 500]
    for kind in ("resets", "200"):
        with pytest.raises(ValueError, match=f"'{kind}' is no fault"):
            Options(faults={kind: 0.5})


# ---- The command line


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, None])
def test_the_command_serves_until_it_is_stopped(end: signal.Signals | None) -> None:
    """It says when it is ready, takes options, and ends with 0."""
    arguments = [
        *("--sessions", "40", "--seed", "9", "--until", "2026-03-01"),
        *("--api-keys", "bp_a", "bp_b", "--max-limit", "7", "--until-stdin-closes"),
        *("--faults", "500=0", "503=0", "--requests-per-minute", "3"),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.sandbox", *arguments],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        ready = json.loads(process.stdout.readline())
        client = Client(ready["url"], ready["api_key"])
        page = client.json("/sessions?limit=1000")
        statuses = [client.get("/crashes").status for _ in range(3)]
        client.connection.close()
        if end:
            process.send_signal(end)
            process.wait(10)
        assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 0
    project = generate(seed=9, sessions=40, until=UNTIL)
    assert ready == {"ready": True, "url": ready["url"], "api_key": "bp_a", **project.counts}
    events = sum(map(len, project.events.values()))
    assert (ready["sessions"], ready["events"]) == (40, events)
    assert len(page["data"]) == page["limit"] == 7
    assert all(row == project.sessions[row["id"]] for row in page["data"])
    assert statuses == [200, 200, 429]


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """All behaviour but the hooks of tests can be had from the command line."""
    hooks = {"script", "on_request", "hold", "envelope", "body"}
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    names = {*vars(Options()), *signature(generate).parameters} - hooks
    options = [f"--{name.replace('_', '-')} " for name in names]
    assert [one for one in (*options, *FAULTS) if one not in text.replace(",", " ")] == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("--faults", "resets=1"), ("--until", "soon"), ("--order", "random"), ("--port", "")],
)
def test_wrong_arguments_are_refused(
    edges: Project, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says which option is wrong, or its port in use, and ends with 2."""
    with Sandbox(edges) as sandbox, pytest.raises(SystemExit, match="2"):
        main(["--sessions", "1", option, value or str(urlsplit(sandbox.url).port)])
    assert option in capsys.readouterr().err.splitlines()[-1]
