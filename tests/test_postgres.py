"""`meltano run tap-bugspulse target-postgres`, into a real PostgreSQL.

The tests start one themselves. `TEST_POSTGRES_DSN=postgresql://user:password@host/database`
takes them to another, where they make a schema of their own and drop it in the end.
"""

from __future__ import annotations

import json
import os
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest
import yaml  # type: ignore[import-untyped] # it has no types
from psycopg import sql
from psycopg.rows import dict_row

from tests.documents import block_with
from tests.pipeline.children import serving
from tests.pipeline.meltano import MeltanoProject
from tests.pipeline.truth import KEYS, Rows, assert_same, change, events_asked, held, tap_settings
from tests.pipeline.warehouse import OBJECTS, TIMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.sandbox import Project, Sandbox

pytestmark = pytest.mark.pipeline

# A few days old: what changes is within the lookback.
DATA = {"seed": 2, "sessions": 60, "days": 5, "until": datetime.now(UTC), "crash_groups": 6}
METADATA = "_sdc_"
"""What the names of the columns begin with that `add_record_metadata` adds."""


class Postgres(NamedTuple):
    """A schema in a PostgreSQL server."""

    dsn: str
    schema: str

    @property
    def settings(self) -> dict[str, str]:
        """The settings of target-postgres."""
        return {
            # The target's own driver is named, as SQLAlchemy would take an older one.
            "TARGET_POSTGRES_SQLALCHEMY_URL": self.dsn.replace(
                "postgresql://", "postgresql+psycopg://", 1
            ),
            "TARGET_POSTGRES_DEFAULT_TARGET_SCHEMA": self.schema,
        }

    def query(self, statement: str, *values: object) -> list[dict[str, Any]]:
        """Run a statement of these tests in the schema."""
        options = f"-c search_path={self.schema}"
        with psycopg.connect(self.dsn, options=options, row_factory=dict_row) as connection:
            return connection.execute(statement, values).fetchall()

    def rows(self) -> Rows:
        """Read all tables, in the API's names and forms."""
        found = {stream: self.query(f"select * from {stream}") for stream in KEYS}  # noqa: S608 - own name
        return {
            stream: [
                {name: plain(row[name]) for name in row if not name.startswith(METADATA)}
                for row in rows
            ]
            for stream, rows in found.items()
        }


def plain(value: object) -> object:
    """Return a value of Postgres as the API has it."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds") + "Z"
    return value


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[Postgres]:
    """A schema that nobody else has, in a server of its own unless one is named."""
    schema = f"bugspulse_test_{uuid.uuid4().hex[:8]}"
    if dsn := os.environ.get("TEST_POSTGRES_DSN"):
        yield Postgres(dsn, schema)
        with psycopg.connect(dsn) as connection:
            drop = sql.SQL("drop schema if exists {} cascade")
            connection.execute(drop.format(sql.Identifier(schema)))
    else:
        with serving("tests.pipeline.postgres", home=tmp_path / "home") as server:
            yield Postgres(server["dsn"], schema)


@pytest.fixture
def load(sandbox: Sandbox, postgres: Postgres, tmp_path: Path) -> Callable[..., int]:
    """Load what the sandbox holds with more settings, and return the exit code."""
    meltano = MeltanoProject(tmp_path / "project")

    def run(**settings: str) -> int:
        given = tap_settings(sandbox) | postgres.settings | settings
        return meltano.run("tap-bugspulse", "target-postgres", settings=given)

    return run


def test_postgres_holds_what_bugspulse_holds_after_each_run(
    sandbox: Sandbox, postgres: Postgres, load: Callable[..., int]
) -> None:
    """Two runs leave each row once, with latest values; the second loads what changed."""
    project = sandbox.project
    assert load() == 0
    first = held(project)
    assert_same(postgres.rows(), first)
    assert_types(postgres)
    (batched,) = postgres.query(
        "select max(_sdc_batched_at) as last from (select _sdc_batched_at from sessions"
        " union all select _sdc_batched_at from events)"
    )

    changed = change(project)
    # A field that the reference does not have.
    grown = min(changed)
    extra = {"experiment": {"name": "checkout", "arm": "b"}}
    project.sessions[grown] |= extra
    project.changed("sessions")
    sandbox.reset()
    assert load() == 0
    second = held(project)
    for row in second["sessions"]:
        if row["id"] == grown:
            del row["experiment"]
            row["_extra"] = extra
    assert second["sessions"] != first["sessions"]
    assert_same(postgres.rows(), second)
    assert sorted(events_asked(sandbox)) == sorted(changed)

    # The others were not even written again.
    for statement in (
        "select distinct id as key from sessions where _sdc_batched_at > %s",
        'select distinct "sessionId" as key from events where _sdc_batched_at > %s',
    ):
        assert {row["key"] for row in postgres.query(statement, batched["last"])} == changed
    # JSON's own operators reach into what is nested.
    found = postgres.query("select id from sessions where _extra->'experiment'->>'arm' = 'b'")
    assert [row["id"] for row in found] == [grown]


def test_text_with_a_null_character_loads(
    sandbox: Sandbox, postgres: Postgres, load: Callable[..., int]
) -> None:
    """U+0000, which Postgres cannot store, is U+FFFD in a text and in the data of events."""
    event = first_event(sandbox.project)
    call = next(iter(sandbox.project.network.values()))
    event["data"], call["error"] = {"text": "a\0b"}, "\0"
    sandbox.project.changed("network", "events")
    assert load() == 0
    event["data"], call["error"] = {"text": "a\ufffdb"}, "\ufffd"
    assert_same(postgres.rows(), held(sandbox.project))


def test_a_null_character_deep_in_an_object_loads_with_the_map(
    sandbox: Sandbox, postgres: Postgres, load: Callable[..., int]
) -> None:
    """Without the map of docs/targets.md such an event fails the load; with it, it loads."""
    event, rest = first_event(sandbox.project), {"half": 0.5, "big": 10**17}
    event["data"] = {"deep": {"more": ["c\0", {"key\0": "d\0\0"}]}} | rest
    sandbox.project.changed("events")
    assert load() == 1
    block = block_with("stream_maps", "docs/targets.md")
    (loader,) = yaml.safe_load(block.text)["plugins"]["loaders"]
    assert load(TARGET_POSTGRES_STREAM_MAPS=json.dumps(loader["config"]["stream_maps"])) == 0
    event["data"] = {"deep": {"more": ["c\ufffd", {"key\ufffd": "d\ufffd\ufffd"}]}} | rest
    assert_same(postgres.rows(), held(sandbox.project))
    assert_types(postgres)


def first_event(project: Project) -> dict[str, Any]:
    """Return an event of a project, to be changed."""
    return next(events[0] for events in project.events.values() if events)


def assert_types(postgres: Postgres) -> None:
    """Check that keys are primary keys, objects JSONB, and times without a zone, as UTC."""
    keys = postgres.query(
        "select table_name, array_agg(column_name::text order by ordinal_position) as names"
        " from information_schema.key_column_usage where table_schema = %s group by 1",
        postgres.schema,
    )
    assert {row["table_name"]: tuple(row["names"]) for row in keys} == KEYS
    columns = postgres.query(
        "select table_name || '.' || column_name as name, data_type"
        " from information_schema.columns where table_schema = %s",
        postgres.schema,
    )
    types = {row["name"]: row["data_type"] for row in columns}
    own = {name: kind for name, kind in types.items() if f".{METADATA}" not in name}
    for kind, names in (("jsonb", OBJECTS), ("timestamp without time zone", TIMES)):
        assert {name for name in own if own[name] == kind} == names
    assert own["sessions.eventCount"] == "bigint"
    assert own["sessions.hasCrash"] == "boolean"
    # Who queries it needs not guess what a column is.
    assert len(types) > len(own)
