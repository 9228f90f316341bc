"""The sandbox is held against the API reference, and its data against itself."""

import contextlib
import csv
import http.client
import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
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
from tests.sandbox.world import MESSAGES

Row = dict[str, Any]
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
ENVELOPE = ["data", "total", "page", "limit", "pages"]
# What has no value in some rows: no sign-in, no end yet, no answer, no error.
NULLABLE = {"userId", "duration", "endedAt", "statusCode", "error"}


class Answer(NamedTuple):
    """An answer's status, headers and body."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Row:
        """The body as an object."""
        decoded = json.loads(self.body)
        assert isinstance(decoded, dict)
        return decoded


class Client:
    """Talks to a sandbox over one connection that is kept alive."""

    def __init__(self, sandbox: Sandbox) -> None:
        """Connect at the first request."""
        address = urlsplit(sandbox.url)
        assert address.hostname
        self.base = address.path
        self.authorization = f"Bearer {sandbox.api_key}"
        self.connection = http.client.HTTPConnection(address.hostname, address.port)

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
def serving(project: Project, options: Options | None = None) -> Iterator[Client]:
    """A client of a sandbox without a limit, unless its options say otherwise."""
    options = options or Options(requests_per_minute=None)
    with Sandbox(project, options) as sandbox:
        client = Client(sandbox)
        with contextlib.closing(client.connection):
            yield client


def unlimited(**options: Any) -> Options:
    """Options without a limit."""
    return Options(requests_per_minute=None, **options)


def empty() -> Project:
    """A project without rows."""
    return generate(sessions=0)


def with_starts(*starts: str) -> Project:
    """A project with a session and a network row at each of these instants."""
    project = empty()
    for number, start in enumerate(starts):
        row = SESSION | {"id": f"sess_{number}", "startedAt": start, "endedAt": None}
        call = NETWORK | {"id": f"req_{number}", "timestamp": start}
        project.add(row, [], [call])
    return project


@pytest.fixture(scope="module")
def project() -> Project:
    """A project that tests only read."""
    return generate(seed=7, sessions=1500, days=30, until=UNTIL)


@pytest.fixture
def own() -> Project:
    """A project that a test may change."""
    return generate(seed=3, sessions=150, days=10, until=UNTIL)


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


# ---- The reference, field by field


def like(sample: Row, row: Row) -> None:
    """Check that a row has the sample's keys, in its order, and its JSON types."""
    assert list(row) == list(sample)
    for name, value in row.items():
        if not (value is None and name in NULLABLE):
            assert type(value) is type(sample[name]), (name, value)


@pytest.mark.parametrize(
    ("path", "sample"), [("/sessions", SESSION), ("/crashes", CRASH), ("/network", NETWORK)]
)
def test_rows_look_like_the_reference(project: Project, path: str, sample: Row) -> None:
    """Every row of a listing has the keys and types of the reference's example."""
    with serving(project) as client:
        rows = client.listing(path, 1000)
    assert len(rows) == len(project.table(path[1:]))
    for row in rows:
        like(sample, row)


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
        if rows:
            assert rows[0]["data"] == EVENTS[0]["data"]


@pytest.mark.parametrize("path", ["/sessions", "/crashes", "/network"])
def test_envelope_defaults(project: Project, path: str) -> None:
    """A page has 100 rows where nothing is asked for, and counts pages accordingly."""
    with serving(project) as client:
        answer = client.get(path)
    envelope = answer.json
    total = len(project.table(path[1:]))
    assert answer.headers["Content-Type"].startswith("application/json")
    assert list(envelope) == ENVELOPE
    assert len(envelope["data"]) == min(100, total)
    pages = math.ceil(total / 100)
    assert envelope | {"data": 0} == {
        "data": 0,
        "total": total,
        "page": 1,
        "limit": 100,
        "pages": pages,
    }


def test_values_are_those_that_the_reference_lists(project: Project) -> None:
    """Statuses are the ones of the reference, and all of them occur."""
    assert {r["status"] for r in project.sessions.values()} == {
        "active",
        "completed",
        "crashed",
    }
    assert {r["status"] for r in project.crashes.values()} == {
        "open",
        "acknowledged",
        "resolved",
        "ignored",
    }


def test_ids_have_the_prefixes_of_the_reference(project: Project) -> None:
    """Ids look like those of the reference; a session's holds its start in seconds."""
    for row in project.sessions.values():
        prefix, seconds, suffix = row["id"].split("_")
        assert (prefix, len(suffix)) == ("sess", 6)
        assert int(seconds) == int(instant(row["startedAt"]).timestamp())
        assert row["userId"] is None or row["userId"].startswith("usr_")
    assert all(i.startswith("crash_") for i in project.crashes)
    assert all(i.startswith("req_") for i in project.network)


# ---- HTTP


def test_keys(project: Project) -> None:
    """Only the keys given are accepted, as a bearer token."""
    with Sandbox(project, Options(api_keys=("bp_one", "bp_two"))) as sandbox:
        client = Client(sandbox)
        answers = {}
        for header in (
            "Bearer bp_one",
            "bearer bp_two",
            "Bearer bp_no",
            "bp_one",
            "Bearer ",
            "",
        ):
            client.authorization = header
            answers[header] = client.get("/crashes").status
        client.connection.close()
    assert list(answers.values()) == [200, 200, 401, 401, 401, 401]
    assert [r.key_ok for r in sandbox.requests] == [True, True] + [False] * 4
    assert sandbox.api_key == "bp_one"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "", 404),
        ("GET", "/", 404),
        ("GET", "/users", 404),
        ("GET", "/sessions/", 404),
        ("GET", "/../sessions", 404),
        ("POST", "/sessions", 405),
        ("DELETE", "/sessions", 405),
        ("HEAD", "/sessions", 405),
    ],
)
def test_other_paths_and_methods(
    project: Project, method: str, path: str, status: int
) -> None:
    """Only GET and the four paths exist, and the connection stays usable after a no."""
    with serving(project) as client:
        assert client.send(method, path).status == status
        connected = client.connection.sock
        assert client.get("/crashes").status == 200
        assert client.connection.sock is connected


@pytest.mark.parametrize(
    "query",
    [
        {"page": 0},
        {"page": -1},
        {"page": "x"},
        {"page": ""},
        {"limit": 0},
        {"limit": "1e3"},
        {"format": "xml"},
        {"from": "yesterday"},
        {"to": "2026-02-30"},
        {"from": ""},
        {"to": "9999-12-31T23:59:59-14:00"},
    ],
)
def test_bad_parameters(project: Project, query: Row) -> None:
    """A parameter that makes no sense is a 400 with a reason."""
    with serving(project) as client:
        answer = client.get("/sessions", **query)
    assert answer.status == 400
    assert next(iter(query)) in answer.json["error"]


@pytest.mark.parametrize("path", ["/sessions", "/crashes", "/network"])
@pytest.mark.parametrize("order", ["newest", "oldest", "arbitrary"])
def test_pages_hold_every_row_once(project: Project, path: str, order: str) -> None:
    """Whatever the order, pages of any size put together are the whole, in that order."""
    with serving(project, unlimited(order=order)) as client:
        rows = client.listing(path, 97)
        assert rows == client.listing(path, 1000)
    table = project.table(path[1:])
    assert len(rows) == len(table)
    assert {row["id"]: row for row in rows} == table
    field = {"/sessions": "startedAt", "/crashes": "lastSeenAt", "/network": "timestamp"}
    times = [row[field[path]] for row in rows]
    assert (times == sorted(times)) == (order == "oldest")
    assert (times == sorted(times, reverse=True)) == (order == "newest")


def test_a_page_past_the_end_is_empty(own: Project) -> None:
    """It still tells the true total."""
    with serving(own) as client:
        envelope = client.get("/sessions", page=99, limit=1000).json
    expected = {"data": [], "total": 150, "page": 99, "limit": 1000, "pages": 1}
    assert envelope == expected


def test_too_large_a_limit_is_lowered_and_echoed(project: Project) -> None:
    """The reference allows 1,000; the server may allow less."""
    with serving(project, options := unlimited()) as client:
        first = client.get("/sessions", limit=5000).json
        options.max_limit = 40
        second = client.get("/sessions", limit=5000).json
    assert (first["limit"], len(first["data"]), first["pages"]) == (1000, 1000, 2)
    assert (second["limit"], len(second["data"]), second["pages"]) == (40, 40, 38)


def test_pages_left_out_and_of_nothing() -> None:
    """`pages` may be missing; for no rows it is 0 unless set otherwise."""
    with serving(empty(), options := unlimited()) as client:
        assert client.get("/sessions").json["pages"] == 0
        options.empty_pages = 1
        assert client.get("/sessions").json["pages"] == 1
        options.omit_pages = True
        assert list(client.get("/sessions").json) == ENVELOPE[:-1]


def test_a_page_that_repeats_for_ever(own: Project) -> None:
    """Each page holds page 1's rows and promises another."""
    with serving(own, unlimited(repeat_page=True)) as client:
        pages = [client.get("/sessions", page=n, limit=60).json for n in (1, 2, 3, 4, 9)]
    assert [p["page"] for p in pages] == [1, 2, 3, 4, 9]
    assert [p["pages"] for p in pages] == [3, 3, 4, 5, 10]
    newest = sorted(own.sessions.values(), key=lambda row: row["startedAt"])[:-61:-1]
    assert all(page["data"] == newest for page in pages)


@pytest.mark.parametrize("path", ["/sessions", "/crashes", "/network", "/events"])
def test_csv_is_a_file_download(own: Project, path: str) -> None:
    """CSV has the rows of the JSON page, objects as JSON and null as nothing."""
    session_id = active_session(own)
    query = {"sessionId": session_id} if path == "/events" else {"limit": 7}
    with serving(own, options := unlimited()) as client:
        rows = client.get(path, **query).json["data"]
        answer = client.get(path, format="csv", **query)
        options.csv_rows = "all"
        everything = client.get(path, format="csv", **query)
        total = client.get(path, **query).json["total"]
    assert answer.headers["Content-Type"].startswith("text/csv")
    file = f'attachment; filename="{path[1:]}.csv"'
    assert answer.headers["Content-Disposition"] == file
    lines = list(csv.DictReader(io.StringIO(answer.body.decode(), newline="")))
    assert [list(line) for line in lines] == [list(row) for row in rows]
    for line, row in zip(lines, rows, strict=True):
        for name, value in row.items():
            if isinstance(value, dict | bool):
                assert json.loads(line[name]) == value
            else:
                assert line[name] == ("" if value is None else str(value))
    assert len(list(csv.reader(io.StringIO(everything.body.decode())))) == total + 1


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


@pytest.mark.parametrize("path", ["/sessions", "/network"])
@pytest.mark.parametrize(
    ("to_means", "query", "expected"),
    [
        ("before", {"from": "2026-01-15"}, "123456"),
        ("before", {"to": "2026-01-16"}, "012"),
        ("midnight", {"to": "2026-01-16"}, "0123"),
        ("end", {"to": "2026-01-16"}, "012345"),
        ("before", {"from": "2026-01-15", "to": "2026-01-15"}, ""),
        ("midnight", {"from": "2026-01-15", "to": "2026-01-15"}, "1"),
        ("end", {"from": "2026-01-15", "to": "2026-01-15"}, "12"),
        ("end", {"from": "2026-01-17", "to": "2026-01-15"}, ""),
        ("before", {"to": "2026-01-16T00:00:00Z"}, "012"),
        ("midnight", {"to": "2026-01-16T00:00:00Z"}, "0123"),
        ("end", {"to": "2026-01-16T00:00:00Z"}, "0123"),
        ("before", {"from": "2026-01-16T02:00:00+02:00"}, "3456"),
        ("before", {"from": "2026-01-16T00:00:00.001Z"}, "456"),
        ("before", {}, "0123456"),
    ],
)
def test_from_and_to(path: str, to_means: str, query: Row, expected: str) -> None:
    """`from` is inclusive; a date as `to` has the meaning that is set."""
    with serving(
        with_starts(*DAY_EDGES), unlimited(to_means=to_means, order="oldest")
    ) as client:
        found = client.ids(path, **query)
    assert "".join(i[-1] for i in found) == expected


def test_windows_next_to_each_other() -> None:
    """Each pair of dates has its own rows and total, asked for in any order."""
    with serving(with_starts(*DAY_EDGES), unlimited(order="oldest")) as client:
        for _ in range(2):
            assert client.ids("/sessions", from_="2026-01-15", to="2026-01-16") == [
                "sess_1",
                "sess_2",
            ]
            assert len(client.ids("/sessions", from_="2026-01-15", to="2026-01-17")) == 5
            assert client.ids("/sessions", from_="2026-01-17") == ["sess_6"]


def test_crashes_ignore_from_and_to(project: Project) -> None:
    """The reference gives them no dates."""
    with serving(project) as client:
        answer = client.get("/crashes", from_="2030-01-01", to="1990-01-01")
    assert answer.json["total"] == len(project.crashes)


def test_dates_in_another_time_zone() -> None:
    """A date begins at midnight of the zone that is set."""
    starts = ("2026-01-14T20:59:59.999Z", "2026-01-14T21:00:00.000Z")
    with serving(with_starts(*starts), unlimited(utc_offset_hours=3)) as client:
        assert client.ids("/sessions", from_="2026-01-15") == ["sess_1"]
        assert client.ids("/sessions", to="2026-01-15") == ["sess_0"]
        assert client.ids("/sessions", from_="2026-01-15T00:00:00") == ["sess_1"]
        assert client.ids("/sessions", from_="2026-01-15T00:00:00Z") == []


def test_dates_only() -> None:
    """A server that takes no time of day says so."""
    with serving(with_starts(*DAY_EDGES), unlimited(dates_only=True)) as client:
        assert client.get("/sessions", from_="2026-01-15").status == 200
        assert client.get("/sessions", from_="2026-01-15T00:00:00Z").status == 400


def test_filtering_on_other_fields() -> None:
    """`from` and `to` may look at the end or the arrival of a row."""
    project = empty()
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
    assert list(every) == ENVELOPE
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
        assert client.get("/events", sessionId=fine).status == 200
        assert client.get("/events", sessionId=broken).status == 500
        assert client.get("/events", sessionId=vanished).status == 404
        assert client.get("/events", sessionId="sess_no").status == 404
        options.unknown_session = "empty"
        assert client.get("/events", sessionId="sess_no").json["total"] == 0
        assert client.get("/events", sessionId=vanished).status == 404
        assert {broken, vanished} <= set(client.ids("/sessions"))


def test_event_ids() -> None:
    """Event ids start again in each session, or are unique in the project."""
    per_session = generate(seed=2, sessions=40)
    unique = generate(seed=2, sessions=40, event_ids="global")
    ids = [row["id"] for rows in unique.events.values() for row in rows]
    assert len(ids) == len(set(ids)) > 100
    for session_id, rows in per_session.events.items():
        others = [row | {"id": ""} for row in unique.events[session_id]]
        assert [row | {"id": ""} for row in rows] == others


def test_misfits(project: Project) -> None:
    """Some rows do not fit the reference, in the same way each time, and keep their key."""
    seen: Counter[str] = Counter()
    with serving(project, unlimited(misfits=True)) as client:
        for path, time_field, sample in (
            ("/sessions", "startedAt", SESSION),
            ("/network", "timestamp", NETWORK),
        ):
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
    kinds = {
        "unknown field",
        "missing field",
        "wrong type",
        "data is text",
        "data is a list",
    }
    assert set(+seen) == {"whole"} | kinds
    assert seen["whole"] > sum(seen[k] for k in kinds)


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
def test_counting(counting: str, instants: list[float], waits: list[float]) -> None:
    """Three requests a minute: when each counting has room again."""
    options = Options(requests_per_minute=3, counting=counting)  # type: ignore[arg-type] # a parameter is text to mypy
    allowance = Allowance()
    told = [allowance.take(options, 1000 + at) for at in instants]
    assert told == pytest.approx(waits)


@pytest.mark.parametrize("counting", ["fixed", "sliding", "bucket"])
def test_the_limit_over_http(own: Project, counting: str) -> None:
    """60 requests a minute and key, others of the same key included; then 429."""
    keys = ("bp_one", "bp_two")
    options = Options(counting=counting, minute=86_400, api_keys=keys)  # type: ignore[arg-type] # a parameter is text to mypy
    with serving(own, options) as client:
        assert [client.get("/crashes").status for _ in range(62)] == [200] * 60 + [429] * 2
        client.authorization = "Bearer bp_two"
        assert client.get("/crashes").status == 200
    with Sandbox(own, options) as sandbox:
        client = Client(sandbox)
        sandbox.spend(58)
        client.get("/nonsense")
        assert [client.get("/crashes").status for _ in range(3)] == [200, 200, 429]
        sandbox.reset()
        assert client.get("/crashes").status == 429
        assert [r.status for r in sandbox.requests] == [429]
        client.connection.close()


def test_a_refused_request_may_come_again_after_the_told_time(own: Project) -> None:
    """A minute may be scaled, and ends."""
    with serving(own, Options(requests_per_minute=1, minute=0.2)) as client:
        deadline = time.monotonic() + 10
        statuses = [client.get("/crashes").status]
        while statuses.count(200) < 3 and time.monotonic() < deadline:
            statuses.append(client.get("/crashes").status)
    assert statuses.count(200) == 3
    assert 429 in statuses


@pytest.mark.parametrize("carried", ["seconds", "date", "reset", "x-reset", "none"])
def test_what_a_429_carries(own: Project, carried: str) -> None:
    """It tells how long to wait, never too short a time, in one of five ways."""
    options = Options(requests_per_minute=1, minute=500, retry_after=carried)  # type: ignore[arg-type] # a parameter is text to mypy
    before = time.time()
    with serving(own, options) as client:
        assert client.get("/crashes").status == 200
        answer = client.get("/crashes")
    assert answer.status == 429
    names = {"Retry-After", "RateLimit-Reset", "X-RateLimit-Reset"} & set(answer.headers)
    free = before + 500
    match carried:
        case "seconds":
            assert names == {"Retry-After"}
            assert 0 < int(answer.headers["Retry-After"]) <= 500
        case "date":
            assert names == {"Retry-After"}
            moment = parsedate_to_datetime(answer.headers["Retry-After"]).timestamp()
            assert free <= moment <= time.time() + 501
        case "reset":
            assert names == {"RateLimit-Reset"}
            assert 0 < int(answer.headers["RateLimit-Reset"]) <= 500
        case "x-reset":
            assert names == {"X-RateLimit-Reset"}
            moment = int(answer.headers["X-RateLimit-Reset"])
            assert free <= moment <= time.time() + 501
        case "none":
            assert names == set()


# ---- The data


def test_the_same_arguments_give_the_same_project(project: Project) -> None:
    """A project follows from its seed, and so do its changes."""
    again = generate(seed=7, sessions=1500, days=30, until=UNTIL)
    other = generate(seed=8, sessions=1500, days=30, until=UNTIL)
    small, twin = (generate(seed=1, sessions=50) for _ in range(2))
    for each in (small, twin):
        each.grow(active_session(each))
        each.crash(ended_session(each))
        each.new_session(UNTIL)
        each.new_network(UNTIL)
    for one, two in ((project, again), (small, twin)):
        assert list(one.sessions) == list(two.sessions)
        assert (one.sessions, one.crashes) == (two.sessions, two.crashes)
        assert (one.network, one.events) == (two.network, two.events)
    assert not set(project.sessions) & set(other.sessions)


def test_a_copy_of_a_project_is_the_same_and_goes_its_own_way() -> None:
    """Copies change as the project itself would, and none of them by another's change."""
    made: dict[str, Any] = {"seed": 1, "sessions": 50, "days": 5, "until": UNTIL}
    whole, *copies = generate(**made), generate_once(**made), generate_once(**made)
    untouched = generate_once(**made)
    for each in (whole, *copies):
        with each.lock:
            each.grow(active_session(each))
            each.crash(ended_session(each))
            each.new_session(UNTIL)
            each.new_network(UNTIL)
    for copy in copies:
        for name, value in vars(whole).items():
            if name not in {"lock", "_world"}:
                assert vars(copy)[name] == value, name
    assert len({id(each.lock) for each in (whole, untouched, *copies)}) == 4
    first = generate(**made)
    assert (untouched.sessions, untouched.events) == (first.sessions, first.events)
    assert untouched.sessions != whole.sessions
    assert untouched.new_session(UNTIL) == first.new_session(UNTIL)


def test_events_add_up(project: Project) -> None:
    """Counts, durations and ends agree with the events."""
    for session_id, row in project.sessions.items():
        rows = project.events[session_id]
        times = [row["startedAt"], *(e["timestamp"] for e in rows)]
        assert row["eventCount"] == len(rows)
        assert times == sorted(times)
        if row["endedAt"] is None:
            assert (row["status"], row["duration"]) == ("active", None)
            continue
        assert row["status"] != "active"
        lasted = instant(row["endedAt"]) - instant(row["startedAt"])
        assert row["duration"] == lasted / timedelta(milliseconds=1) >= 0
        assert times[-1] <= row["endedAt"]
        if rows:
            assert (rows[-1]["type"] in {"crash", "error"}) == row["hasCrash"]
            assert (rows[-1]["type"] == "crash") == (row["status"] == "crashed")
    assert project.events.keys() == project.sessions.keys()


def test_journeys_make_sense(project: Project) -> None:
    """One leaves the screen that one is on, and taps what is on it."""
    kinds: Counter[str] = Counter()
    for rows in project.events.values():
        screen = None
        for row in rows:
            kinds[row["type"]] += 1
            if row["type"] == "navigate":
                assert row["data"]["from"] == screen
                screen = row["data"]["to"]
            elif row["type"] == "tap":
                assert row["data"]["screen"] == screen
    assert set(kinds) == {"navigate", "tap", "custom", "crash", "error"}
    assert min(kinds["navigate"], kinds["tap"], kinds["custom"]) > 1000


def test_crash_groups_add_up_over_the_sessions(project: Project) -> None:
    """Occurrences, devices and dates of a group are those of the sessions that crashed."""
    found: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
    for session_id, row in project.sessions.items():
        if row["hasCrash"]:
            last = project.events[session_id][-1]
            key = (last["data"]["message"], row["platform"], row["appVersion"])
            found[key].append((project.devices[session_id], last["timestamp"]))
    assert len(found) == len(project.crashes) > 10
    for group in project.crashes.values():
        crashes = found[group["message"], group["platform"], group["appVersion"]]
        assert group["occurrenceCount"] == len(crashes)
        assert group["affectedDevices"] == len({device for device, _ in crashes})
        assert group["firstSeenAt"] == min(at for _, at in crashes)
        assert group["lastSeenAt"] == max(at for _, at in crashes)
        assert group["handled"] is not group["isFatal"]
        assert group["isFatal"] == dict(MESSAGES)[group["message"]]


def test_network_rows_add_up(project: Project) -> None:
    """Calls lie inside their session, which knows whether one failed."""
    failing = set()
    for row in project.network.values():
        session = project.sessions[row["sessionId"]]
        assert session["startedAt"] <= row["timestamp"]
        assert row["timestamp"] <= (session["endedAt"] or "9")
        if row["statusCode"] is None or row["statusCode"] >= 400:
            assert row["error"]
            failing.add(row["sessionId"])
        else:
            assert row["error"] is None
    errors = {i for i, row in project.sessions.items() if row["hasNetworkErrors"]}
    assert errors == failing != set()
    assert 1.2 < len(project.network) / len(project.sessions) < 1.8


def test_one_endpoint_is_slow(project: Project) -> None:
    """A report of the slowest endpoints has something to show."""
    durations = defaultdict(list)
    for row in project.network.values():
        if row["statusCode"] == 200:
            durations[urlsplit(row["url"]).path].append(row["duration"])
    usual = {path: sorted(d)[len(d) // 2] for path, d in durations.items() if len(d) > 30}
    slowest, second = sorted(usual, key=lambda path: -usual[path])[:2]
    assert slowest == "/v2/recommendations"
    assert usual[slowest] > 1.5 * usual[second]


def test_people_versions_and_hours(project: Project) -> None:
    """Users come back and update, one version crashes most, nights are quiet."""
    sessions = project.sessions.values()
    users = Counter(row["userId"] for row in sessions)
    anonymous = users.pop(None)
    assert 0.02 < anonymous / len(sessions) < 0.4
    assert max(users.values()) > 4 * sum(users.values()) / len(users)
    versions = Counter(row["appVersion"] for row in sessions)
    crashes = Counter(row["appVersion"] for row in sessions if row["hasCrash"])
    rates = sorted(crashes[v] / n for v, n in versions.items())
    assert len(versions) == 4
    assert rates[-1] > 2 * rates[-2]
    hours = Counter(instant(row["startedAt"]).hour for row in sessions)
    assert sum(hours[h] for h in range(9, 22)) > 5 * sum(hours[h] for h in range(6))
    platforms = {row["platform"] for row in sessions}
    assert platforms == {"ios", "android", "macos", "windows"}


def test_versions_are_adopted_over_time(project: Project) -> None:
    """Users update one by one, and never go back."""
    versions: dict[str, dict[str, str]] = defaultdict(dict)
    of_a_day = defaultdict(set)
    for row in project.sessions.values():
        if row["userId"] and "2026-01" < row["startedAt"] < "2026-03-01":
            versions[row["userId"]][row["startedAt"]] = row["appVersion"]
            of_a_day[row["startedAt"][:10]].add(row["appVersion"])
    for used in versions.values():
        in_order = [used[at] for at in sorted(used)]
        assert in_order == sorted(in_order)
    assert max(map(len, of_a_day.values())) > 2
    assert len(set.union(*of_a_day.values())) == 4


def test_odd_sessions(project: Project) -> None:
    """Some never end, some have no events, some arrive late, some clocks lie."""
    starts = {i: row["startedAt"] for i, row in project.sessions.items()}
    assert sum(start > "2026-03-01" for start in starts.values()) == 5
    assert sum(start < "2026-01-01" for start in starts.values()) == 5
    true = [i for i, start in starts.items() if "2026-01" < start < "2026-03-01"]
    arrived = [project.received[i] for i in project.sessions]
    assert arrived == sorted(arrived)
    assert all("2026-01" < at <= "2026-03-01T00:00:00.000Z" for at in arrived)
    late = [
        i
        for i in true
        if instant(project.received[i]) - instant(starts[i]) > timedelta(hours=2)
    ]
    assert 20 < len(late) < 40
    stuck = [i for i in true if not project.sessions[i]["endedAt"]]
    assert any(starts[i] < "2026-02-10" for i in stuck)
    assert sum(row["eventCount"] == 0 for row in project.sessions.values()) >= 60
    honest = generate(seed=7, sessions=600, until=UNTIL, lying_clocks=False)
    assert all(
        "2026-01-30" <= r["startedAt"] < "2026-03-01" for r in honest.sessions.values()
    )


def test_the_last_sessions_are_still_active() -> None:
    """At the end of the data some sessions are under way, none is in the future."""
    evening = datetime(2026, 2, 28, 20, tzinfo=UTC)
    busy = generate(
        sessions=3000, days=0.5, until=evening, network_per_session=5, lying_clocks=False
    )
    begun = [r for r in busy.sessions.values() if r["startedAt"] > "2026-02-28T19:59"]
    assert {"active"} <= {row["status"] for row in begun}
    stamps = [e["timestamp"] for rows in busy.events.values() for e in rows]
    stamps += [row["timestamp"] for row in busy.network.values()]
    assert max(stamps) <= "2026-02-28T20:00:00.000Z"


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


def test_sizes() -> None:
    """The averages are those asked for; none means none."""
    full = generate(seed=5, sessions=2000, events_per_session=20, network_per_session=3)
    events = sum(map(len, full.events.values())) / 2000
    assert 17 < events < 22
    assert 2.6 < len(full.network) / 2000 < 3.4
    bare = generate(seed=5, sessions=300, events_per_session=0, network_per_session=0)
    assert not bare.network
    assert not any(bare.events.values())
    assert any(row["hasCrash"] for row in bare.sessions.values())


# ---- Data that changes


def test_growing(own: Project) -> None:
    """An active session gets later events; an ended one gets them before its end."""
    session_id, before = active_session(own), len(own.events)
    old = [dict(row) for row in own.events[session_id]]
    with serving(own) as client:
        client.get("/sessions", limit=1000)
        own.grow(session_id, events=4)
        rows = client.get("/events", sessionId=session_id).json["data"]
        listed = {r["id"]: r for r in client.get("/sessions", limit=1000).json["data"]}
    assert rows[: len(old)] == old
    assert len(rows) == len(old) + 4 == listed[session_id]["eventCount"]
    assert [r["sequenceNumber"] for r in rows] == list(range(len(rows)))
    assert rows[len(old)]["timestamp"] > old[-1]["timestamp"]
    assert listed[session_id]["status"] == "active"
    ended = ended_session(own)
    row = dict(own.sessions[ended])
    own.grow(ended, events=60)
    assert own.sessions[ended] == row | {"eventCount": row["eventCount"] + 60}
    assert own.events[ended][-1]["timestamp"] <= row["endedAt"]
    assert len(own.events) == before


def test_ending(own: Project) -> None:
    """A session ends after its last event, once."""
    session_id = active_session(own)
    own.end(session_id)
    row = dict(own.sessions[session_id])
    assert row["status"] == "completed"
    assert row["endedAt"] > own.events[session_id][-1]["timestamp"]
    lasted = instant(row["endedAt"]) - instant(row["startedAt"])
    assert row["duration"] == lasted / timedelta(milliseconds=1)
    own.end(session_id, status="crashed")
    assert own.sessions[session_id] == row | {"status": "crashed"}


def test_crashing(own: Project) -> None:
    """A crash shows in the session, in its events and in a group, new or known."""
    occurrences = sum(g["occurrenceCount"] for g in own.crashes.values())
    for session_id in (active_session(own), ended_session(own)):
        group = own.crashes[own.crash(session_id)]
        row, last = own.sessions[session_id], own.events[session_id][-1]
        assert (row["status"], row["hasCrash"]) == ("crashed", True)
        assert row["eventCount"] == len(own.events[session_id])
        assert (last["type"], last["data"]["message"]) == ("crash", group["message"])
        assert (row["platform"], row["appVersion"]) == (
            group["platform"],
            group["appVersion"],
        )
        assert last["timestamp"] <= row["endedAt"]
        assert group["firstSeenAt"] <= last["timestamp"] <= group["lastSeenAt"]
    assert sum(g["occurrenceCount"] for g in own.crashes.values()) == occurrences + 2


def test_adding(own: Project) -> None:
    """Rows may be added as they are, also in the middle of what was listed."""
    with serving(own, unlimited(order="oldest")) as client:
        assert client.ids("/sessions")[0] != SESSION["id"]
        own.add(SESSION | {"startedAt": "2011-01-01T00:00:00.000Z"}, EVENTS, [NETWORK])
        assert client.ids("/sessions")[0] == SESSION["id"]
        events = client.get("/events", sessionId=SESSION["id"]).json
        assert NETWORK["id"] in client.ids("/network")
    assert events == {"data": EVENTS, "total": 2, "page": 1, "limit": 2, "pages": 1}


def test_making_up_more(own: Project) -> None:
    """New sessions and network rows are believable and arrive last."""
    began = UNTIL - timedelta(days=3)
    session_id = own.new_session(began)
    row = own.sessions[session_id]
    like(SESSION, row)
    assert list(own.sessions)[-1] == session_id
    assert row["startedAt"] == "2026-02-26T00:00:00.000Z"
    assert row["eventCount"] == len(own.events[session_id]) > 0
    assert row["endedAt"]
    assert own.received[session_id] == "2026-03-01T00:00:00.000Z"
    running = own.new_session(UNTIL, active=True)
    assert own.sessions[running]["status"] == "active"
    assert own.now > UNTIL
    call = own.network[own.new_network(began)]
    like(NETWORK, call)
    assert call["timestamp"] == row["startedAt"]
    assert call["sessionId"] in own.sessions
    assert call["statusCode"] == 200


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


def test_direct_edits(own: Project) -> None:
    """Whoever edits the tables says so, and the next page shows it."""
    with serving(own) as client:
        gone = client.ids("/sessions")[0]
        del own.sessions[gone]
        own.changed("sessions")
        assert gone not in client.ids("/sessions")


def test_odd_times_are_served_all_the_same() -> None:
    """A row whose time is missing or in another form is filed where it belongs."""
    project = with_starts("2026-01-15T00:00:00Z", "2026-01-15T02:00:00+02:00", "soon")
    project.sessions["sess_2"]["startedAt"] = None
    with serving(project, unlimited(order="oldest")) as client:
        assert client.ids("/sessions", to="2026-02-01") == ["sess_0", "sess_1"]
        assert client.ids("/sessions", from_="2026-02-01") == ["sess_2"]


@pytest.mark.parametrize(("order", "twice", "missed"), [("newest", 5, 0), ("oldest", 0, 0)])
def test_pages_drift_while_sessions_arrive(
    own: Project, order: str, twice: int, missed: int
) -> None:
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
    assert len(before - set(ids)) == missed


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
    assert purged
    oldest = min(row["startedAt"] for row in before.values())[:10]
    assert all(before[i]["startedAt"][:10] == oldest for i in purged)


def test_reading_while_others_write(own: Project) -> None:
    """Pages stay whole while several threads change the project."""
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for kind in ("grow", "late", "new"):
                own.step(kind)

    writers = [threading.Thread(target=change) for _ in range(2)]
    with serving(own) as client:
        for writer in writers:
            writer.start()
        try:
            for _ in range(30):
                envelope = client.get("/sessions", limit=50).json
                assert len(envelope["data"]) == 50
                assert envelope["pages"] == math.ceil(envelope["total"] / 50)
        finally:
            stop.set()
            for writer in writers:
                writer.join()


# ---- Faults


@pytest.mark.parametrize("kind", ["301", "403", "408", "429", "500", "502", "503"])
def test_statuses_as_faults(own: Project, kind: str) -> None:
    """Any status from 300 can be asked for."""
    with serving(own, unlimited(faults={kind: 1})) as client:
        answer = client.get("/sessions")
    assert answer.status == int(kind)
    assert ("Retry-After" in answer.headers) == (kind == "429")
    assert answer.headers["Location"] == ("/export/sessions" if kind == "301" else None)
    html = kind in {"502", "503"}
    assert answer.headers["Content-Type"].startswith(
        "text/html" if html else "application/json"
    )


@pytest.mark.parametrize("kind", ["html", "not_json"])
def test_bodies_that_are_no_json(own: Project, kind: str) -> None:
    """A 200 may hold anything."""
    with serving(own, unlimited(faults={kind: 1})) as client:
        answer = client.get("/sessions")
    assert answer.status == 200
    html = answer.headers["Content-Type"].startswith("text/html")
    assert html == (kind == "html")
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.body)


@pytest.mark.parametrize("kind", ["no_data", "data_not_list", "row_not_object"])
def test_envelopes_that_are_none(own: Project, kind: str) -> None:
    """The envelope may lack its data, or hold something else in its place."""
    with serving(own, unlimited(faults={kind: 1})) as client:
        envelope = client.get("/sessions", limit=5).json
    assert envelope["total"] == 150
    if kind == "no_data":
        assert "data" not in envelope
    elif kind == "data_not_list":
        assert isinstance(envelope["data"], dict)
    else:
        assert [type(row) for row in envelope["data"]] == [dict] * 5 + [str]


def test_broken_connections(own: Project) -> None:
    """A connection may be reset, cut in the body, or closed without an answer."""
    options = unlimited(hang_seconds=0.01)
    with Sandbox(own, options) as sandbox:
        client = Client(sandbox)
        for kind, error in (
            ("reset", ConnectionResetError),
            ("cut", http.client.IncompleteRead),
            ("timeout", http.client.RemoteDisconnected),
        ):
            options.faults = {kind: 1}
            with pytest.raises(error):
                client.get("/sessions")
            client.connection.close()
        options.faults = {}
        assert client.get("/sessions").status == 200
        client.connection.close()
    statuses = [(r.fault, r.status) for r in sandbox.requests]
    assert statuses == [("reset", 0), ("cut", 200), ("timeout", 0), (None, 200)]


def test_a_body_that_drips(own: Project) -> None:
    """It comes byte by byte, and whole in the end."""
    options = unlimited(faults={"drip": 1}, drip_seconds=0.0001)
    with serving(own, options) as client:
        assert len(client.get("/sessions", limit=1).json["data"]) == 1


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
    """A hook may choose the fault of just one request."""

    def script(request: Request) -> str | None:
        return "503" if request.query.get("page") == "2" else None

    with serving(own, unlimited(script=script)) as client:
        answers = [client.get("/sessions", page=n).status for n in (1, 2, 3)]
    assert answers == [200, 503, 200]


def test_an_error_in_a_hook_is_not_lost(own: Project) -> None:
    """It is raised when the sandbox is left."""

    def script(_: Request) -> str | None:
        return "flood"

    with pytest.raises(ValueError, match="'flood' is no fault"):  # noqa: SIM117 - the answer comes first
        with serving(own, unlimited(script=script)) as client:
            assert client.get("/sessions").status == 500


def test_unknown_faults_are_refused() -> None:
    """A misspelt fault would test nothing."""
    with pytest.raises(ValueError, match="'resets' is no fault"):
        Options(faults={"resets": 0.5})
    with pytest.raises(ValueError, match="'200' is no fault"):
        Options(faults={"200": 0.5})


def test_latency(own: Project) -> None:
    """Answers take at least the time set."""
    with serving(own, unlimited(latency=0.05, jitter=0.01)) as client:
        before = time.monotonic()
        client.get("/crashes")
        assert time.monotonic() - before >= 0.05


def test_requests_are_recorded(own: Project) -> None:
    """Tests can count what was asked for."""
    before = time.monotonic()
    with Sandbox(own) as sandbox:
        client = Client(sandbox)
        client.get("/sessions", page=2, from_="2026-01-01")
        client.get("/nothing")
        client.connection.close()
        after = time.monotonic()
        first, second = sandbox.requests
        sandbox.reset()
        assert sandbox.requests == []
    assert before <= first.at <= second.at <= after
    assert (first.path, first.status, first.key_ok) == ("/sessions", 200, True)
    assert first.query == {"page": "2", "from": "2026-01-01"}
    assert (second.path, second.status) == ("/nothing", 404)


def test_closing_cuts_what_is_in_progress(own: Project) -> None:
    """A request that would hang for an hour does not hold up the end."""
    received = threading.Event()
    options = unlimited(
        faults={"timeout": 1}, hang_seconds=3600, on_request=lambda *_: received.set()
    )
    outcome: list[BaseException] = []

    def ask(client: Client) -> None:
        try:
            client.get("/sessions")
        except (http.client.HTTPException, OSError) as error:
            outcome.append(error)

    with Sandbox(own, options) as sandbox:
        client = Client(sandbox)
        assert sandbox.url.startswith("http://127.0.0.1:")
        asking = threading.Thread(target=ask, args=(client,))
        asking.start()
        assert received.wait(10)
    asking.join(10)
    client.connection.close()
    assert not asking.is_alive()
    assert len(outcome) == 1
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


def ask(ready: Row, path: str) -> Answer:
    """One request to a sandbox in another process."""
    address = urlsplit(ready["url"])
    assert address.hostname
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    with contextlib.closing(connection):
        headers = {"Authorization": f"Bearer {ready['api_key']}"}
        connection.request("GET", address.path + path, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())


def test_the_command_serves_until_it_is_stopped(tmp_path: Path) -> None:
    """It says when it is ready, takes options, logs requests, and ends with 0."""
    log = tmp_path / "requests.jsonl"
    arguments = [
        *("--sessions", "40", "--seed", "9", "--until", "2026-03-01"),
        *("--api-keys", "bp_a", "bp_b", "--max-limit", "7"),
        *("--faults", "500=0", "503=0", "--requests-per-minute", "3"),
    ]
    with command(*arguments, "--log", str(log)) as (process, ready):
        page = ask(ready, "/sessions?limit=1000").json
        statuses = [ask(ready, f"/crashes?page={n}").status for n in (1, 2, 3)]
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
        assert ask(ready, "/sessions").json["total"] == 5
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(10) == 0


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """All behaviour but the hooks of tests can be had from the command line."""
    hooks = {"on_request", "hold", "envelope"}
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name in Options.__dataclass_fields__.keys() - {"script", *hooks}:
        assert f"--{name.replace('_', '-')}" in text
    for fault in FAULTS:
        assert fault in text


def test_a_port_in_use_is_refused(own: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says so in one line and ends with 2."""
    with Sandbox(own) as sandbox:
        port = str(urlsplit(sandbox.url).port)
        with pytest.raises(SystemExit) as ended:
            main(["--sessions", "1", "--port", port])
    assert ended.value.code == 2
    assert f"--port {port}: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments", [["--faults", "resets=1"], ["--until", "soon"], ["--order", "random"]]
)
def test_wrong_arguments_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says which option is wrong and ends with 2."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert arguments[1].split("=")[0] in last or arguments[0] in last
