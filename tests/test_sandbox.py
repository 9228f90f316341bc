"""The sandbox is held against the API reference, and its data against itself."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import typing as t
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from tests.sandbox import (
    FAULTS,
    Options,
    Project,
    Request,
    Sandbox,
    generate,
    generate_once,
    misfit,
)
from tests.sandbox.__main__ import main
from tests.sandbox.server import Allowance

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    Counting = t.Literal["fixed", "sliding", "bucket"]
    Told = t.Literal["seconds", "date", "reset", "x-reset", "none"]

Row = dict[str, t.Any]
ROOT = Path(__file__).parents[1]
UNTIL = datetime(2026, 3, 1, tzinfo=UTC)

# The examples of the API reference.
SESSION = {
    "id": "sess_1780000000_abc123",
    "userId": "usr_123",
    "status": "completed",
    "platform": "ios",
    "osVersion": "17.4",
    "appVersion": "2.4.1",
    "networkType": "wifi",
    "eventCount": 42,
    "hasCrash": False,
    "hasNetworkErrors": False,
    "duration": 183000,
    "startedAt": "2026-01-15T10:00:00.000Z",
    "endedAt": "2026-01-15T10:03:03.000Z",
}
CRASH = {
    "id": "crash_xyz",
    "message": "TypeError: Cannot read properties of undefined",
    "status": "open",
    "isFatal": True,
    "handled": False,
    "occurrenceCount": 14,
    "affectedDevices": 9,
    "platform": "android",
    "appVersion": "2.4.1",
    "osVersion": "14",
    "firstSeenAt": "2026-01-10T08:00:00.000Z",
    "lastSeenAt": "2026-01-15T22:14:00.000Z",
}
EVENTS = [
    {
        "id": "evt_001",
        "type": "navigate",
        "timestamp": "2026-01-15T10:00:01.000Z",
        "sequenceNumber": 0,
        "data": {"from": None, "to": "Home"},
    },
    {
        "id": "evt_002",
        "type": "custom",
        "timestamp": "2026-01-15T10:00:05.000Z",
        "sequenceNumber": 1,
        "data": {"name": "button_press", "properties": {"screen": "home"}},
    },
]
NETWORK = {
    "id": "req_001",
    "sessionId": "sess_1780000000_abc123",
    "method": "POST",
    "url": "https://api.yourapp.com/checkout",
    "statusCode": 500,
    "duration": 1840,
    "error": "Internal Server Error",
    "timestamp": "2026-01-15T10:00:07.000Z",
}
SAMPLES = {"/sessions": SESSION, "/crashes": CRASH, "/network": NETWORK}
TIMES = {"/sessions": "startedAt", "/crashes": "lastSeenAt", "/network": "timestamp"}
ENVELOPE = ["data", "total", "page", "limit", "pages"]
# What has no value in some rows: no sign-in, no end yet, no answer, no error.
NULLABLE = {"userId", "duration", "endedAt", "statusCode", "error"}


class Answer(t.NamedTuple):
    """An answer's status, headers and body."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Row:
        """The body as an object."""
        return t.cast("Row", json.loads(self.body))


class Client:
    """Talks to a sandbox over one connection that is kept alive."""

    def __init__(self, url: str, api_key: str) -> None:
        """Connect at the first request."""
        address = urlsplit(url)
        assert address.hostname
        self.base = address.path
        self.authorization = f"Bearer {api_key}"
        self.connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)

    def get(self, path: str, **query: object) -> Answer:
        """Get a path below `/export`; `from_` stands for `from`."""
        return self.send("GET", path, **query)

    def send(self, method: str, path: str, **query: object) -> Answer:
        """Send a request of any method."""
        target = self.base + path
        if query:
            target += "?" + urlencode({k.rstrip("_"): v for k, v in query.items()})
        headers = {"Authorization": self.authorization} if self.authorization else {}
        self.connection.request(method, target, headers=headers)
        response = self.connection.getresponse()
        return Answer(response.status, response.headers, response.read())

    def ids(self, path: str, **query: object) -> list[str]:
        """The ids of the rows of one page of up to 1,000."""
        return [row["id"] for row in self.get(path, limit=1000, **query).json["data"]]

    def listing(self, path: str, limit: int, **query: object) -> list[Row]:
        """All rows, page by page."""
        rows: list[Row] = []
        page = pages = 0
        while page == 0 or page < pages:
            page += 1
            envelope = self.get(path, page=page, limit=limit, **query).json
            rows += envelope["data"]
            pages = envelope["pages"]
        return rows


@contextlib.contextmanager
def connected(sandbox: Sandbox) -> Iterator[Client]:
    """A client of a sandbox that runs."""
    client = Client(sandbox.url, sandbox.api_key)
    with contextlib.closing(client.connection):
        yield client


@contextlib.contextmanager
def serving(project: Project, options: Options | None = None) -> Iterator[Client]:
    """A client of a sandbox without a limit, unless its options say otherwise."""
    with Sandbox(project, options or unlimited()) as sandbox, connected(sandbox) as client:
        yield client


def unlimited(**options: t.Any) -> Options:
    """Options without a limit."""
    return Options(requests_per_minute=None, **options)


def with_starts(*starts: str) -> Project:
    """A project with a session and a network row at each of these instants."""
    project = generate(sessions=0)
    for number, start in enumerate(starts):
        row = SESSION | {"id": f"sess_{number}", "startedAt": start, "endedAt": None}
        call = NETWORK | {"id": f"req_{number}", "timestamp": start}
        project.add(row, [], [call])
    return project


@pytest.fixture(scope="module")
def project() -> Project:
    """A project that tests only read."""
    return generate(seed=7, sessions=600, days=30, until=UNTIL)


@pytest.fixture
def own() -> Project:
    """A project that a test may change."""
    return generate_once(seed=3, sessions=150, days=10, until=UNTIL)


def instant(text: str) -> datetime:
    """An instant of a row."""
    return datetime.fromisoformat(text)


def active_session(project: Project) -> str:
    """A session without an end that has events."""
    return next(
        i for i, row in project.sessions.items() if not row["endedAt"] and row["eventCount"]
    )


def ended_session(project: Project) -> str:
    """A session that ended without a crash and has events."""
    return next(
        i
        for i, row in project.sessions.items()
        if row["endedAt"] and row["eventCount"] and not row["hasCrash"]
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
    with serving(project, unlimited(order=order)) as client:
        answer = client.get(path)
        rows = client.listing(path, 97)
        assert rows == client.listing(path, 1000)
    table = project.table(path[1:])
    assert len(rows) == len(table)
    assert {row["id"]: row for row in rows} == table
    for row in rows:
        like(SAMPLES[path], row)
    times = [row[TIMES[path]] for row in rows]
    assert (times == sorted(times)) == (order == "oldest")
    assert (times == sorted(times, reverse=True)) == (order == "newest")
    # A page has 100 rows where nothing is asked for.
    assert answer.headers["Content-Type"].startswith("application/json")
    assert list(answer.json) == ENVELOPE
    assert answer.json == {
        "data": rows[:100],
        "total": len(table),
        "page": 1,
        "limit": 100,
        "pages": math.ceil(len(table) / 100),
    }


def test_events_look_like_the_reference(project: Project) -> None:
    """Events have the example's keys, ids and shapes of data, in sequence order."""
    for session_id in list(project.sessions)[:60]:
        rows = project.events[session_id]
        for number, row in enumerate(rows):
            like(EVENTS[0], row)
            assert row["sequenceNumber"] == number
            assert row["id"] == f"evt_{number + 1:03d}"
            if row["type"] == "navigate":
                assert list(row["data"]) == ["from", "to"]
            elif row["type"] == "custom":
                assert list(row["data"]) == ["name", "properties"]
                assert isinstance(row["data"]["properties"], dict)


# ---- HTTP


def test_keys(project: Project) -> None:
    """Only the keys given are accepted, as a bearer token."""
    headers = {
        "Bearer bp_one": 200,
        "bearer bp_two": 200,
        "Bearer bp_no": 401,
        "bp_one": 401,
        "Bearer ": 401,
        "": 401,
    }
    answers = {}
    options = Options(api_keys=("bp_one", "bp_two"))
    with Sandbox(project, options) as sandbox, connected(sandbox) as client:
        for client.authorization in headers:
            answers[client.authorization] = client.get("/crashes").status
    assert answers == headers
    assert [r.key_ok for r in sandbox.requests] == [True, True] + [False] * 4
    assert sandbox.api_key == "bp_one"


def test_other_paths_and_methods(project: Project) -> None:
    """Only GET and the four paths exist, and the connection stays usable after a no."""
    with serving(project) as client:
        for path in ("", "/", "/users", "/sessions/", "/../sessions"):
            assert client.get(path).status == 404
        for method in ("POST", "DELETE", "HEAD"):
            assert client.send(method, "/sessions").status == 405
        before = client.connection.sock
        assert client.get("/crashes").status == 200
        assert client.connection.sock is before


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("page", [0, -1, "x", ""]),
        ("limit", [0, "1e3"]),
        ("from", ["yesterday", ""]),
        ("to", ["2026-02-30", "9999-12-31T23:59:59-14:00"]),
    ],
)
def test_bad_parameters(project: Project, name: str, values: list[object]) -> None:
    """A parameter that makes no sense is a 400 with a reason."""
    with serving(project) as client:
        for value in values:
            answer = client.get("/sessions", **{name: value})
            assert answer.status == 400, value
            assert name in answer.json["error"]


@pytest.mark.parametrize(
    ("options", "query", "rows", "told"),
    [
        # A page past the end is empty, and a limit above what is allowed is lowered.
        ({}, {"page": 99, "limit": 1000}, 0, {"page": 99, "limit": 1000, "pages": 1}),
        ({}, {"limit": 5000}, 150, {"page": 1, "limit": 1000, "pages": 1}),
        ({"max_limit": 40}, {"limit": 5000}, 40, {"page": 1, "limit": 40, "pages": 4}),
        ({"omit_pages": True}, {"limit": 60}, 60, {"page": 1, "limit": 60}),
        # Each page holds page 1's rows and promises another.
        ({"repeat_page": True}, {"limit": 60}, 60, {"page": 1, "limit": 60, "pages": 3}),
        (
            {"repeat_page": True},
            {"limit": 60, "page": 9},
            60,
            {"page": 9, "limit": 60, "pages": 10},
        ),
    ],
)
def test_odd_envelopes(own: Project, options: Row, query: Row, rows: int, told: Row) -> None:
    """The true total is told with whatever page, limit and pages the options make."""
    newest = sorted(own.sessions.values(), key=lambda row: row["startedAt"])[::-1]
    with serving(own, unlimited(**options)) as client:
        envelope = client.get("/sessions", **query).json
    assert envelope == {"data": newest[:rows], "total": 150} | told


# ---- What no reference would say


@pytest.mark.parametrize(
    ("options", "query", "rows", "told"),
    [
        ({"row_cap": 100}, {"limit": 30, "page": 4}, 10, {"total": 100, "pages": 4}),
        ({"row_cap": 100}, {"limit": 30, "page": 5}, 0, {"total": 100, "pages": 4}),
        ({"counts": "page-total"}, {"limit": 60, "page": 3}, 30, {"total": 30, "pages": 3}),
        ({"counts": "one-page"}, {"limit": 60}, 60, {"total": 150, "pages": 1}),
        ({"counts": "default-limit"}, {"limit": 10}, 10, {"total": 150, "pages": 2}),
        ({"counts": "unfiltered"}, {"from": "2100-01-01"}, 0, {"total": 150, "pages": 2}),
        (
            {"counts": "asked-limit", "echo": "asked", "max_limit": 40},
            {"limit": 75},
            40,
            {"total": 150, "pages": 2, "limit": 75},
        ),
        ({"echo": "page-one-too-high"}, {"limit": 60}, 60, {"page": 2, "pages": 3}),
        ({"ignored": "from"}, {"from": "2100-01-01"}, 100, {"total": 150}),
        ({"ignored": "to"}, {"to": "2000-01-01"}, 100, {"total": 150}),
        ({"ignored": "both"}, {"from": "2100-01-01", "to": "2100-01-01"}, 100, {"total": 150}),
        ({"ignored": "from-alone"}, {"from": "2100-01-01"}, 100, {"total": 150}),
        ({"ignored": "from-alone"}, {"from": "2100-01-01", "to": "2101-01-01"}, 0, {"total": 0}),
    ],
)
def test_listings_of_odd_servers(
    own: Project, options: Row, query: Row, rows: int, told: Row
) -> None:
    """Each option counts, echoes, caps or filters as it says, and changes nothing else."""
    with serving(own, unlimited(**options)) as client:
        envelope = client.get("/sessions", **query).json
    assert len(envelope["data"]) == rows
    assert told.items() <= envelope.items()


@pytest.mark.parametrize(
    ("options", "query", "status"),
    [
        ({"row_cap": 100, "beyond_cap": "400"}, {"limit": 50, "page": 2}, 200),
        ({"row_cap": 100, "beyond_cap": "400"}, {"limit": 50, "page": 3}, 400),
        ({"past_end": "404"}, {"limit": 50, "page": 3}, 200),
        ({"past_end": "404"}, {"limit": 50, "page": 4}, 404),
        ({"past_end": "400"}, {"limit": 50, "page": 4}, 400),
        ({"refuse_before": "2026-01-02T00:00:00.000Z"}, {"from": "2026-01-01"}, 400),
        ({"refuse_before": "2026-01-02T00:00:00.000Z"}, {"from": "2026-01-02"}, 200),
        ({"refuse_before": "2026-01-02T00:00:00.000Z"}, {}, 200),
        ({"most_requests": 0}, {}, 401),
        ({"most_requests": 1}, {}, 200),
    ],
)
def test_refusals_of_odd_servers(own: Project, options: Row, query: Row, status: int) -> None:
    """Each option refuses what it says, and nothing beside it."""
    with serving(own, unlimited(**options)) as client:
        assert client.get("/sessions", **query).status == status


def test_an_empty_page_has_many_forms() -> None:
    """Data is a list, null, or not there; numbers may be fractions, and `pages` 0 or 1."""
    with serving(generate(sessions=0), options := unlimited()) as client:
        assert client.get("/sessions").json["data"] == []
        assert client.get("/sessions").json["pages"] == 0
        options.empty_pages = 1
        assert client.get("/sessions").json["pages"] == 1
        options.empty_as = "null"
        assert client.get("/sessions").json["data"] is None
        options.empty_as = "floats"
        assert b'"total":0.0' in client.get("/sessions").body
        options.empty_as = "204"
        answer = client.get("/sessions")
        assert (answer.status, answer.body) == (204, b"")


def test_ties_have_an_order_for_each_page(own: Project) -> None:
    """It is the same each time, so that some rows are on two pages and others on none."""
    for row in own.sessions.values():
        row["startedAt"] = SESSION["startedAt"]
    own.changed("sessions")
    with serving(own, unlimited(ties="by-page")) as client:
        first = client.listing("/sessions", 30)
        assert first == client.listing("/sessions", 30)
        assert 0 < len({row["id"] for row in first}) < len(first) == 150
        assert client.ids("/sessions") != [row["id"] for row in first]


def test_events_that_are_late(own: Project) -> None:
    """They are not there in five ways; those of other sessions are."""
    late, other = [one for one, events in own.events.items() if len(events) > 2][:2]
    number = len(own.events[late])
    with serving(own, options := unlimited(late_sessions={late})) as client:
        for how, rows, total in (("zero", 0, 0), ("no-rows", 0, number), ("part", -1, number - 1)):
            options.late_events = t.cast("t.Any", how)
            envelope = client.get("/events", sessionId=late).json
            assert envelope["data"] == (own.events[late][:rows] if rows else [])
            assert envelope["total"] == total
        for status in (204, 404):
            options.late_events = t.cast("t.Any", str(status))
            assert client.get("/events", sessionId=late).status == status
        assert client.get("/events", sessionId=other).json["data"] == own.events[other]
        options.events_paging = "first"
        envelope = client.get("/events", sessionId=other, limit=2, page=2).json
        assert envelope["data"] == own.events[other][:2]
        assert (envelope["total"], envelope["pages"]) == (len(own.events[other]), 1)


def test_a_body_may_be_any_bytes(own: Project) -> None:
    """What a hook returns is sent as it is, with its own length."""
    with serving(own, unlimited(body=lambda body: b"\xef\xbb\xbf" + body[:1] + b"\xff")) as client:
        answer = client.get("/sessions", limit=1)
    assert answer.body == b"\xef\xbb\xbf{\xff"


# ---- What the reference leaves open

DAY_EDGES = (
    "2026-01-14T23:59:59.999Z",
    "2026-01-15T00:00:00.000Z",
    "2026-01-15T23:59:59.999Z",
    "2026-01-16T00:00:00.000Z",
    "2026-01-16T00:00:00.001Z",
    "2026-01-16T23:59:59.999Z",
    "2026-01-17T00:00:00.000Z",
)


@pytest.mark.parametrize(
    ("to_means", "windows"),
    [
        (
            "before",
            {
                ("", ""): "0123456",
                ("2026-01-15", ""): "123456",
                ("", "2026-01-16"): "012",
                ("2026-01-15", "2026-01-15"): "",
                ("", "2026-01-16T00:00:00Z"): "012",
                ("2026-01-16T02:00:00+02:00", ""): "3456",
                ("2026-01-16T00:00:00.001Z", ""): "456",
            },
        ),
        (
            "midnight",
            {
                ("", "2026-01-16"): "0123",
                ("2026-01-15", "2026-01-15"): "1",
                ("", "2026-01-16T00:00:00Z"): "0123",
            },
        ),
        (
            "end",
            {
                ("", "2026-01-16"): "012345",
                ("2026-01-15", "2026-01-15"): "12",
                ("2026-01-17", "2026-01-15"): "",
                ("", "2026-01-16T00:00:00Z"): "0123",
            },
        ),
    ],
)
def test_from_and_to(to_means: str, windows: dict[tuple[str, str], str]) -> None:
    """`from` is inclusive; a date as `to` has the meaning that is set."""
    options = unlimited(to_means=to_means, order="oldest")
    with serving(with_starts(*DAY_EDGES), options) as client:
        for path in ("/sessions", "/network"):
            for window, expected in windows.items():
                bounds = zip(("from", "to"), window, strict=True)
                found = client.ids(path, **{name: at for name, at in bounds if at})
                assert "".join(one[-1] for one in found) == expected, window


def test_dates_of_other_kinds(project: Project) -> None:
    """Dates may be of another zone, the only ones that are taken, or of no meaning."""
    starts = ("2026-01-14T20:59:59.999Z", "2026-01-14T21:00:00.000Z")
    with serving(with_starts(*starts), options := unlimited()) as client:
        options.utc_offset_hours = 3
        assert client.ids("/sessions", from_="2026-01-15") == ["sess_1"]
        assert client.ids("/sessions", to="2026-01-15") == ["sess_0"]
        assert client.ids("/sessions", from_="2026-01-15T00:00:00") == ["sess_1"]
        assert client.ids("/sessions", from_="2026-01-15T00:00:00Z") == []
        options.dates_only = True
        assert client.get("/sessions", from_="2026-01-15").status == 200
        assert client.get("/sessions", from_="2026-01-15T00:00:00Z").status == 400
    with serving(project) as client:
        answer = client.get("/crashes", from_="2030-01-01", to="1990-01-01")
    assert answer.json["total"] == len(project.crashes)


def test_filtering_on_other_fields() -> None:
    """`from` and `to` may look at the end or the arrival of a row."""
    project = generate(sessions=0)
    late = datetime(2026, 1, 20, tzinfo=UTC)
    project.add(SESSION | {"id": "sess_late"}, [], [NETWORK], received=late)
    ends = {"id": "sess_long", "endedAt": "2026-01-18T00:00:00.000Z"}
    project.add(SESSION | ends, [], received=late - timedelta(days=5))
    project.add(SESSION | {"id": "sess_open", "endedAt": None}, [], received=late)
    found = {}
    with serving(project, options := unlimited()) as client:
        for field in ("startedAt", "endedAt", "received"):
            options.filter_on = field
            found[field] = sorted(client.ids("/sessions", from_="2026-01-16"))
            found[field] += client.ids("/network", from_="2026-01-16")
    assert found == {
        "startedAt": [],
        "endedAt": ["sess_long"],
        "received": ["sess_late", "sess_open", "req_001"],
    }


def test_events_in_one_page_or_several(project: Project) -> None:
    """`/events` answers everything, with the total as limit, or honours page and limit."""
    session_id, rows = max(project.events.items(), key=lambda item: len(item[1]))
    total = len(rows)
    with serving(project, options := unlimited()) as client:
        every = client.get("/events", sessionId=session_id, page=2, limit=3).json
        options.events_paging = "pages"
        page = client.get("/events", sessionId=session_id, page=2, limit=3).json
        assert client.listing("/events", 10, sessionId=session_id) == rows
    assert every == {"data": rows, "total": total, "page": 1, "limit": total, "pages": 1}
    assert page == {
        "data": rows[3:6],
        "total": total,
        "page": 2,
        "limit": 3,
        "pages": math.ceil(total / 3),
    }


def test_events_of_sessions_that_are_not_there(own: Project) -> None:
    """No id is a 400, an unknown one a 404 or nothing, a broken one a 500."""
    broken, vanished, fine = list(own.sessions)[:3]
    options = unlimited(broken_sessions={broken}, vanished_sessions={vanished})
    with serving(own, options) as client:
        assert client.get("/events").status == 400
        asked = {fine: 200, broken: 500, vanished: 404, "sess_no": 404}
        for session_id, status in asked.items():
            assert client.get("/events", sessionId=session_id).status == status
        options.unknown_session = "empty"
        assert client.get("/events", sessionId="sess_no").json["total"] == 0
        assert client.get("/events", sessionId=vanished).status == 404
        assert {broken, vanished} <= set(client.ids("/sessions"))


def test_misfits(project: Project) -> None:
    """Some rows do not fit the reference, in the same way each time, and keep their key."""
    seen: Counter[str] = Counter()
    with serving(project, unlimited(misfits=True)) as client:
        for path in ("/sessions", "/network"):
            sample, time_field = SAMPLES[path], TIMES[path]
            for row in client.listing(path, 1000):
                true = project.table(path[1:])[row["id"]]
                assert row == misfit(path[1:], true)
                assert row[time_field] == true[time_field]
                seen["whole"] += row == true
                seen["unknown field"] += bool(row.keys() - sample.keys())
                seen["missing field"] += bool(sample.keys() - row.keys())
                kept = row.keys() & sample.keys() - NULLABLE
                seen["wrong type"] += any(type(row[k]) is not type(sample[k]) for k in kept)
        for session_id in list(project.sessions)[:80]:
            rows = client.get("/events", sessionId=session_id).json["data"]
            true_rows = project.events[session_id]
            assert rows == [misfit("events", row, session_id) for row in true_rows]
            seen["data is text"] += any(isinstance(r["data"], str) for r in rows)
            seen["data is a list"] += any(isinstance(r["data"], list) for r in rows)
    whole = seen.pop("whole")
    assert len(seen) == 5
    assert whole > seen.total() > 0
    assert all(seen.values())


# ---- The limit


@pytest.mark.parametrize(
    ("counting", "instants", "waits"),
    [
        # A window begins with the first request; the refused one does not count.
        ("fixed", [0, 1, 59, 59.5, 60, 61, 62], [0, 0, 0, 0.5, 0, 0, 0]),
        ("fixed", [10, 69, 69.5, 69.9, 70, 70, 70, 75], [0, 0, 0, 0.1, 0, 0, 0, 55]),
        ("sliding", [0, 10, 20, 59, 60, 61, 70, 71], [0, 0, 0, 1, 0, 9, 0, 9]),
        (
            "bucket",
            [0, 0, 0, 0, 20, 20, 50, 200, 200, 200, 200],
            [0, 0, 0, 20, 0, 20, 0, 0, 0, 0, 20],
        ),
    ],
)
def test_counting(counting: Counting, instants: list[float], waits: list[float]) -> None:
    """Three requests a minute: when each counting has room again."""
    options = Options(requests_per_minute=3, counting=counting)
    allowance = Allowance()
    told = [allowance.take(options, 1000 + at) for at in instants]
    assert told == pytest.approx(waits)


@pytest.mark.parametrize("counting", ["fixed", "sliding", "bucket"])
def test_the_limit_over_http(own: Project, counting: Counting) -> None:
    """60 requests a minute and key, others of the same key included; then 429."""
    keys = ("bp_one", "bp_two")
    options = Options(counting=counting, minute=86_400, api_keys=keys)
    with Sandbox(own, options) as sandbox, connected(sandbox) as client:
        sandbox.spend(58)
        client.get("/nonsense")
        assert [client.get("/crashes").status for _ in range(3)] == [200, 200, 429]
        client.authorization = "Bearer bp_two"
        assert [client.get("/crashes").status for _ in range(61)] == [200] * 60 + [429]
        sandbox.reset()
        assert client.get("/crashes").status == 429
        assert [r.status for r in sandbox.requests] == [429]


@pytest.mark.parametrize(
    ("carried", "name"),
    [
        ("seconds", "Retry-After"),
        ("date", "Retry-After"),
        ("reset", "RateLimit-Reset"),
        ("x-reset", "X-RateLimit-Reset"),
        ("none", None),
    ],
)
def test_what_a_429_carries(own: Project, carried: Told, name: str | None) -> None:
    """It tells how long to wait, never too short a time, in one of five ways."""
    options = Options(requests_per_minute=1, minute=500, retry_after=carried)
    before = time.time()
    with serving(own, options) as client:
        assert client.get("/crashes").status == 200
        answer = client.get("/crashes")
    assert answer.status == 429
    names = {"Retry-After", "RateLimit-Reset", "X-RateLimit-Reset"} & set(answer.headers)
    assert names == ({name} if name else set())
    if name:
        told = answer.headers[name]
        if carried in {"seconds", "reset"}:
            assert 0 < int(told) <= 500
        else:
            moment = parsedate_to_datetime(told).timestamp() if "," in told else int(told)
            assert before + 500 <= moment <= time.time() + 501


# ---- The data


def test_the_same_arguments_give_the_same_project(project: Project) -> None:
    """A project, its copies and their changes follow from a seed, each by itself."""
    again = generate(seed=7, sessions=600, days=30, until=UNTIL)
    assert not set(project.sessions) & set(generate(seed=8, sessions=600).sessions)
    made: dict[str, t.Any] = {"seed": 1, "sessions": 50, "days": 5, "until": UNTIL}
    whole, *copies = generate(**made), generate_once(**made), generate_once(**made)
    untouched = generate_once(**made)
    for each in (whole, *copies):
        with each.lock:
            each.grow(active_session(each))
            each.crash(ended_session(each))
            each.new_session(UNTIL)
            each.new_network(UNTIL)
    for one, two in ((project, again), *((whole, copy) for copy in copies)):
        assert list(one.sessions) == list(two.sessions)
        for name, value in vars(one).items():
            if name not in {"lock", "_world"}:
                assert vars(two)[name] == value, name
    assert len({id(each.lock) for each in (whole, untouched, *copies)}) == 4
    first = generate(**made)
    assert (untouched.sessions, untouched.events) == (first.sessions, first.events)
    assert untouched.sessions != whole.sessions
    assert untouched.new_session(UNTIL) == first.new_session(UNTIL)


def assert_adds_up(project: Project) -> None:
    """Check that sessions, events, calls and crash groups agree with each other."""
    failing = set()
    for row in project.network.values():
        session = project.sessions[row["sessionId"]]
        assert session["startedAt"] <= row["timestamp"] <= (session["endedAt"] or "9")
        failed = row["statusCode"] is None or row["statusCode"] >= 400
        assert bool(row["error"]) == failed
        failing |= {row["sessionId"]} if failed else set()
    errors = {i for i, row in project.sessions.items() if row["hasNetworkErrors"]}
    assert errors == failing != set()
    assert project.events.keys() == project.sessions.keys()
    found: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
    for session_id, row in project.sessions.items():
        rows = project.events[session_id]
        times = [row["startedAt"], *(e["timestamp"] for e in rows)]
        assert [e["sequenceNumber"] for e in rows] == list(range(row["eventCount"]))
        assert times == sorted(times)
        if row["endedAt"] is None:
            assert (row["status"], row["duration"]) == ("active", None)
            continue
        lasted = instant(row["endedAt"]) - instant(row["startedAt"])
        assert row["duration"] == lasted / timedelta(milliseconds=1) >= 0
        assert times[-1] <= row["endedAt"]
        kind = rows[-1]["type"] if rows else None
        assert (kind in {"crash", "error"}) == row["hasCrash"]
        assert (kind == "crash") == (row["status"] == "crashed")
        if row["hasCrash"]:
            key = (rows[-1]["data"]["message"], row["platform"], row["appVersion"])
            found[key].append((project.devices[session_id], times[-1]))
    assert len(found) == len(project.crashes) > 0
    for group in project.crashes.values():
        crashes = found[group["message"], group["platform"], group["appVersion"]]
        assert group["occurrenceCount"] == len(crashes)
        assert group["affectedDevices"] == len({device for device, _ in crashes})
        assert group["firstSeenAt"] == min(at for _, at in crashes)
        assert group["lastSeenAt"] == max(at for _, at in crashes)
        assert group["handled"] is not group["isFatal"]


def test_odd_sessions(project: Project) -> None:
    """Some never end, some have no events, some arrive late, some clocks lie."""
    starts = {i: row["startedAt"] for i, row in project.sessions.items()}
    assert sum(start > "2026-03-01" for start in starts.values()) == 2
    assert sum(start < "2026-01-01" for start in starts.values()) == 2
    true = [i for i, start in starts.items() if "2026-01" < start < "2026-03-01"]
    arrived = [project.received[i] for i in project.sessions]
    assert arrived == sorted(arrived)
    late = [
        i for i in true if instant(project.received[i]) - instant(starts[i]) > timedelta(hours=2)
    ]
    assert 8 < len(late) < 16
    stuck = [i for i in true if not project.sessions[i]["endedAt"]]
    assert any(starts[i] < "2026-02-10" for i in stuck)
    assert sum(row["eventCount"] == 0 for row in project.sessions.values()) >= 24
    honest = generate(seed=7, sessions=600, until=UNTIL, lying_clocks=False)
    assert all("2026-01-30" <= r["startedAt"] < "2026-03-01" for r in honest.sessions.values())


@pytest.mark.parametrize("groups", [0, 1, 2500])
def test_an_exact_number_of_crash_groups(groups: int) -> None:
    """So many there are, also where fewer sessions crashed; those are older."""
    small = generate(seed=1, sessions=200, until=UNTIL, crash_groups=groups)
    assert len(small.crashes) == groups
    keys = {(g["message"], g["platform"], g["appVersion"]) for g in small.crashes.values()}
    assert len(keys) == groups
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
    active, ended = active_session(own), ended_session(own)
    events, row = list(own.events[active]), dict(own.sessions[ended])
    own.grow(active, events=4)
    assert own.events[active][:-4] == events
    own.grow(ended, events=60)
    assert own.sessions[ended] == row | {"eventCount": row["eventCount"] + 60}
    assert_adds_up(own)

    own.end(active)
    assert own.sessions[active]["status"] == "completed"
    assert own.sessions[active]["endedAt"] > own.events[active][-1]["timestamp"]
    own.new_session(UNTIL - timedelta(days=3))
    own.new_session(UNTIL, active=True)
    assert_adds_up(own)

    occurrences = sum(g["occurrenceCount"] for g in own.crashes.values())
    for session_id in (active_session(own), ended):
        group = own.crashes[own.crash(session_id)]
        assert own.sessions[session_id]["status"] == "crashed"
        assert own.events[session_id][-1]["data"]["message"] == group["message"]
    assert sum(g["occurrenceCount"] for g in own.crashes.values()) == occurrences + 2
    assert_adds_up(own)


def test_adding(own: Project) -> None:
    """Rows may be added as they are, made up anew, or deleted: the next page shows it."""
    early = SESSION | {"startedAt": "2011-01-01T00:00:00.000Z"}
    with serving(own, unlimited(order="oldest")) as client:
        assert client.ids("/sessions")[0] != SESSION["id"]
        own.add(early, EVENTS, [NETWORK])
        assert client.ids("/sessions")[0] == SESSION["id"]
        events = client.get("/events", sessionId=SESSION["id"]).json
        assert NETWORK["id"] in client.ids("/network")
        del own.sessions[str(SESSION["id"])]
        own.changed("sessions")
        assert SESSION["id"] not in client.ids("/sessions")
    assert events == {"data": EVENTS, "total": 2, "page": 1, "limit": 2, "pages": 1}
    began = UNTIL - timedelta(days=3)
    session_id = own.new_session(began)
    row = own.sessions[session_id]
    like(SESSION, row)
    assert row["startedAt"] == "2026-02-26T00:00:00.000Z"
    assert row["eventCount"] == len(own.events[session_id]) > 0
    assert row["endedAt"]
    assert own.received[session_id] == "2026-03-01T00:00:00.000Z"
    running = own.new_session(UNTIL, active=True)
    assert own.sessions[running]["status"] == "active"
    call = own.network[own.new_network(began)]
    like(NETWORK, call)
    assert call["timestamp"] == row["startedAt"]
    assert call["sessionId"] in own.sessions


def test_purging(own: Project) -> None:
    """Retention deletes old sessions with their events, and old network rows."""
    limit = "2026-02-24T00:00:00.000Z"
    old = {i for i, row in own.sessions.items() if row["startedAt"] < limit}
    calls = {i for i, row in own.network.items() if row["timestamp"] < limit}
    crashes, kept = dict(own.crashes), set(own.sessions) - old
    with serving(own) as client:
        client.ids("/sessions")
        assert own.purge(instant(limit)) == len(old) + len(calls) > 0
        assert set(client.ids("/sessions")) == kept == set(own.events)
        assert set(client.ids("/network")) == set(own.network)
        assert client.get("/events", sessionId=next(iter(old))).status == 404
    assert not calls & set(own.network)
    assert own.crashes == crashes


def test_odd_times_are_served_all_the_same() -> None:
    """A row whose time is missing or in another form is filed where it belongs."""
    project = with_starts("2026-01-15T00:00:00Z", "2026-01-15T02:00:00+02:00", "soon")
    project.sessions["sess_2"]["startedAt"] = None
    with serving(project, unlimited(order="oldest")) as client:
        assert client.ids("/sessions", to="2026-02-01") == ["sess_0", "sess_1"]
        assert client.ids("/sessions", from_="2026-02-01") == ["sess_2"]


@pytest.mark.parametrize(("order", "twice"), [("newest", 5), ("oldest", 0)])
def test_pages_drift_while_sessions_arrive(own: Project, order: str, twice: int) -> None:
    """Rows inserted while one pages push others over the edge, as on a real server."""
    before = set(own.sessions)

    def arrive(_: Request, project: Project) -> None:
        # Ahead of all clocks that lie.
        project.new_session(project.now + timedelta(days=500))

    options = unlimited(order=order, on_request=arrive)
    with serving(own, options) as client:
        pages = [client.get("/sessions", page=n, limit=30).json for n in range(1, 7)]
    ids = [row["id"] for page in pages for row in page["data"]]
    assert [page["total"] for page in pages] == [151, 152, 153, 154, 155, 156]
    assert len(ids) - len(set(ids)) == twice
    assert before <= set(ids)


def test_pages_drift_while_old_rows_are_purged() -> None:
    """With the oldest first, a purge between two pages hides rows that exist throughout."""
    project = with_starts(*(f"2026-01-{day:02d}T00:00:00.000Z" for day in range(1, 31)))

    def purge(request: Request, project: Project) -> None:
        if request.query["page"] == "2":
            project.purge(datetime(2026, 1, 5, tzinfo=UTC))

    options = unlimited(order="oldest", on_request=purge)
    with serving(project, options) as client:
        first, second = (client.get("/sessions", page=n, limit=10).json for n in (1, 2))
    assert (first["total"], second["total"]) == (30, 26)
    assert second["data"][0]["id"] == "sess_14"


def test_a_hook_may_edit_rows_while_others_are_read(own: Project) -> None:
    """No answer is built from the rows while a hook is at them."""
    free: list[bool] = []

    def try_lock(project: Project) -> None:
        free.append(project.lock.acquire(blocking=False))
        if free[-1]:
            project.lock.release()

    def edit(_: Request, project: Project) -> None:
        with ThreadPoolExecutor(1) as another:
            another.submit(try_lock, project)

    with serving(own, unlimited(on_request=edit)) as client:
        assert client.get("/sessions").status == 200
    assert free == [False]


def test_a_server_whose_data_changes_by_itself(own: Project) -> None:
    """After every so many requests sessions grow, come late, start and are purged."""
    options = unlimited(grow_every=1, late_every=5, new_every=10, purge_every=40)
    before = {i: dict(row) for i, row in own.sessions.items()}
    with serving(own, options) as client:
        for _ in range(39):
            client.get("/crashes")
        added = [i for i in own.sessions if i not in before]
        changed = [i for i, row in before.items() if row != own.sessions[i]]
        client.get("/crashes")
        purged = set(before) - set(own.sessions)
    assert len(added) == 7 + 3
    assert changed
    assert all(before[i]["endedAt"] is None for i in changed)
    oldest = min(row["startedAt"] for row in before.values())[:10]
    assert {before[i]["startedAt"][:10] for i in purged} == {oldest}


# ---- Faults


def test_statuses_as_faults(own: Project) -> None:
    """Any status from 300 can be asked for, with the headers and the body it has."""
    with serving(own, options := unlimited()) as client:
        for status in (301, 403, 408, 429, 500, 502, 503):
            options.faults = {str(status): 1}
            answer = client.get("/sessions")
            assert answer.status == status
            assert ("Retry-After" in answer.headers) == (status == 429)
            location = "/export/sessions" if status == 301 else None
            assert answer.headers["Location"] == location
            kind = "text/html" if status in {502, 503} else "application/json"
            assert answer.headers["Content-Type"].startswith(kind)


def test_bodies_that_are_no_listing(own: Project) -> None:
    """A 200 may hold anything: HTML, no JSON, an envelope without data or with other."""
    found = {}
    with serving(own, options := unlimited()) as client:
        for kind in ("html", "not_json", "no_data", "data_not_list", "row_not_object"):
            options.faults = {kind: 1}
            found[kind] = client.get("/sessions", limit=5)
    assert {answer.status for answer in found.values()} == {200}
    for kind in ("html", "not_json"):
        answer = found.pop(kind)
        html = answer.headers["Content-Type"].startswith("text/html")
        assert html == (kind == "html")
        with pytest.raises(json.JSONDecodeError):
            json.loads(answer.body)
    assert {answer.json["total"] for answer in found.values()} == {150}
    assert "data" not in found["no_data"].json
    assert isinstance(found["data_not_list"].json["data"], dict)
    rows = found["row_not_object"].json["data"]
    assert [type(row) for row in rows] == [dict] * 5 + [str]


def test_broken_connections(own: Project) -> None:
    """A connection may be reset, cut in the body, or closed; what was asked for is known."""
    before = time.monotonic()
    options = unlimited(hang_seconds=0.01)
    with Sandbox(own, options) as sandbox, connected(sandbox) as client:
        for kind, error in (
            ("reset", ConnectionResetError),
            ("cut", http.client.IncompleteRead),
            ("timeout", http.client.RemoteDisconnected),
        ):
            options.faults = {kind: 1}
            with pytest.raises(error):
                client.get("/sessions", page=2)
            client.connection.close()
        options.faults = {}
        assert client.get("/sessions", page=2).status == 200
    requests = sandbox.requests
    statuses = [(r.fault, r.status) for r in requests]
    assert statuses == [("reset", 0), ("cut", 200), ("timeout", 0), (None, 200)]
    assert [(r.path, r.query) for r in requests] == [("/sessions", {"page": "2"})] * 4
    times = [before, *(r.at for r in requests), time.monotonic()]
    assert times == sorted(times)


def test_answers_that_take_their_time(own: Project) -> None:
    """A body may drip byte by byte, whole in the end; answers take the time that is set."""
    options = unlimited(faults={"drip": 1}, drip_seconds=0.0001)
    with serving(own, options) as client:
        assert len(client.get("/sessions", limit=1).json["data"]) == 1
        options.faults, options.latency, options.jitter = {}, 0.05, 0.01
        before = time.monotonic()
        client.get("/crashes")
        assert time.monotonic() - before >= 0.05


def test_faults_follow_from_their_seed(own: Project) -> None:
    """The same seed gives the same faults, about as often as asked for."""

    def statuses(seed: int) -> list[int]:
        options = unlimited(faults={"500": 0.2, "404": 0.1}, fault_seed=seed)
        with serving(own, options) as client:
            return [client.get("/crashes").status for _ in range(200)]

    first = statuses(4)
    assert first == statuses(4) != statuses(5)
    assert 20 < first.count(500) < 60
    assert 5 < first.count(404) < 35


def test_a_script_decides(own: Project) -> None:
    """A hook may choose the fault of one request; one that fails is not lost."""

    def script(request: Request) -> str | None:
        return {"2": "503", "4": "flood"}.get(request.query["page"])

    with (
        pytest.raises(ValueError, match="'flood' is no fault"),
        serving(own, unlimited(script=script)) as client,
    ):
        answers = [client.get("/sessions", page=n).status for n in (1, 2, 3, 4)]
    assert answers == [200, 503, 200, 500]
    for kind in ("resets", "200"):
        with pytest.raises(ValueError, match=f"'{kind}' is no fault"):
            Options(faults={kind: 0.5})


def test_closing_cuts_what_is_in_progress(own: Project) -> None:
    """A request that would hang for an hour does not hold up the end."""
    received = threading.Event()
    options = unlimited(
        faults={"timeout": 1}, hang_seconds=3600, on_request=lambda *_: received.set()
    )
    with ThreadPoolExecutor(1) as another:
        with Sandbox(own, options) as sandbox:
            client = Client(sandbox.url, sandbox.api_key)
            asking = another.submit(client.get, "/sessions")
            assert received.wait(10)
        assert isinstance(asking.exception(10), http.client.HTTPException | OSError)
    client.connection.close()
    with pytest.raises(ConnectionRefusedError):
        client.get("/sessions")


# ---- The command line


@contextlib.contextmanager
def command(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Row]]:
    """A sandbox in a process of its own, and its ready line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.sandbox", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def test_the_command_serves_until_it_is_stopped(tmp_path: Path) -> None:
    """It says when it is ready, takes options, logs requests, and ends with 0."""
    log = tmp_path / "requests.jsonl"
    arguments = [
        *("--sessions", "40", "--seed", "9", "--until", "2026-03-01"),
        *("--api-keys", "bp_a", "bp_b", "--max-limit", "7"),
        *("--faults", "500=0", "503=0", "--requests-per-minute", "3"),
    ]
    with command(*arguments, "--log", str(log)) as (process, ready):
        client = Client(ready["url"], ready["api_key"])
        page = client.get("/sessions", limit=1000).json
        statuses = [client.get("/crashes").status for _ in range(3)]
        client.connection.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stdout
        assert process.stderr
        assert process.stdout.read() == process.stderr.read() == ""
    project = generate(seed=9, sessions=40, until=UNTIL)
    assert ready == {
        "ready": True,
        "url": ready["url"],
        "api_key": "bp_a",
        "sessions": 40,
        "crashes": len(project.crashes),
        "network": len(project.network),
        "events": sum(map(len, project.events.values())),
    }
    assert page["limit"] == 7
    assert all(row == project.sessions[row["id"]] for row in page["data"])
    assert statuses == [200, 200, 429]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/sessions", 200),
        ("/crashes", 200),
        ("/crashes", 200),
        ("/crashes", 429),
    ]
    assert lines[0]["query"] == {"limit": "1000"}
    assert "bp_" not in log.read_text()


def test_the_command_ends_with_its_input_or_on_interrupt() -> None:
    """A parent that is gone takes it along; Ctrl-C ends it with 0 too."""
    with command("--sessions", "5", "--until-stdin-closes") as (process, _):
        assert process.stdin
        process.stdin.close()
        assert process.wait(10) == 0
    with command("--sessions", "5", "--requests-per-minute", "none") as (process, ready):
        client = Client(ready["url"], ready["api_key"])
        assert client.get("/sessions").json["total"] == 5
        client.connection.close()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(10) == 0


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """All behaviour but the hooks of tests can be had from the command line."""
    hooks = {"script", "on_request", "hold", "envelope", "body"}
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name in Options.__dataclass_fields__.keys() - hooks:
        assert f"--{name.replace('_', '-')}" in text
    for fault in FAULTS:
        assert fault in text


@pytest.mark.parametrize(
    "arguments",
    [["--faults", "resets=1"], ["--until", "soon"], ["--order", "random"], ["--port", ""]],
)
def test_wrong_arguments_are_refused(
    own: Project, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says which option is wrong, or its port in use, and ends with 2."""
    with Sandbox(own) as sandbox:
        if arguments[0] == "--port":
            arguments = ["--port", str(urlsplit(sandbox.url).port)]
        with pytest.raises(SystemExit) as ended:
            main(["--sessions", "1", *arguments])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert arguments[1].split("=")[0] in last or arguments[0] in last
