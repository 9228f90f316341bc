"""The dbt package in `transform/`: the same true tables in three databases."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.pipeline.children import serving
from tests.pipeline.marts import FUNNEL, crashes_daily, marts
from tests.pipeline.transform import (
    SCHEMA,
    Dbt,
    DuckDb,
    Postgres,
    Snowflake,
    Warehouse,
    by_key,
    documented,
    tables,
)
from tests.pipeline.truth import Rows, held
from tests.running import Output, Row, sync
from tests.sandbox import Options, Project, Sandbox, generate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.pipeline.connector import Connector

pytestmark = pytest.mark.dbt

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Tables = dict[str, dict[tuple[Any, ...], Row]]


@pytest.fixture
def dbt(tmp_path: Path) -> Iterator[Dbt]:
    """One process of dbt."""
    with Dbt(tmp_path / "dbt") as started:
        yield started


@pytest.fixture
def warehouses(tmp_path: Path, connector: Connector, dbt: Dbt) -> Iterator[list[Warehouse]]:
    """Three databases with nothing in them, which dbt knows."""
    kept = ("--database-dir", str(tmp_path / "databases"))
    with (
        serving("tests.pipeline.postgres", home=tmp_path / "home") as postgres,
        serving("tests.pipeline.snowflake", *kept, home=tmp_path / "home") as snowflake,
    ):
        three: list[Warehouse] = [
            DuckDb(tmp_path / "duckdb"),
            Postgres(postgres["dsn"], tmp_path / "postgres"),
            Snowflake(snowflake["port"], connector, tmp_path / "snowflake"),
        ]
        for warehouse in three:
            dbt.add(warehouse.name, warehouse.output())
        yield three


def load(warehouses: list[Warehouse], output: Output, folder: Path) -> None:
    """Load what a run of the tap wrote into each database."""
    file = folder / "messages.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in output.messages), "utf-8")
    for warehouse in warehouses:
        warehouse.load(file)


def build(
    dbt: Dbt, warehouses: list[Warehouse], folder: Path, *arguments: str
) -> dict[str, dict[str, Any]]:
    """Have dbt build all tables in each database, the second time what is new."""
    variables = {
        "bugspulse_files": str(folder / "duckdb" / "output"),
        "bugspulse_funnel": list(FUNNEL),
        # The loads of these tests are seconds apart, so that any overlap would cover them.
        "bugspulse_overlap_hours": 0,
    }
    command = arguments or ("build",)
    answers = {}
    for warehouse in warehouses:
        answer = dbt.run(warehouse.name, *command, variables=variables)
        assert answer["success"], (warehouse.name, answer["problems"])
        assert answer["problems"] == [], warehouse.name
        answers[warehouse.name] = answer
    return answers


def yesterday(warehouse: Warehouse) -> None:
    """Have all that the history of crashes has kept been kept a day earlier."""
    warehouse.query(
        f"update {SCHEMA}.bugspulse__crash_history "  # noqa: S608 - own names
        "set dbt_valid_from = dbt_valid_from - interval '1 day'"
    )


AN_OLD_DAY = "2026-02-15"


def marked(warehouse: Warehouse) -> dict[str, int]:
    """Return how many rows of each incremental table `mark` has marked."""
    names = [name for name, one in documented().items() if "loaded_at" in one["columns"]]
    counts = warehouse.query(
        *(
            f"select count(*) from {SCHEMA}.bugspulse__{name} "  # noqa: S608 - own names
            "where loaded_at = '2000-01-01'"
            for name in names
        )
    )
    return {name: count for name, [[count]] in zip(names, counts, strict=True)}


def mark(warehouse: Warehouse) -> dict[str, int]:
    """Mark the rows of a day on which nothing changes, so that it shows when they are built."""
    for name in marked(warehouse):
        warehouse.query(
            f"update {SCHEMA}.bugspulse__{name} "  # noqa: S608 - own names
            f"set loaded_at = '2000-01-01' where day = '{AN_OLD_DAY}'"
        )
    return marked(warehouse)


def expected(loads: list[Rows]) -> Tables:
    """Return what the tables should hold after some loads, the last of which has it all."""
    found = marts(loads[-1]) | {"crashes_daily": crashes_daily(loads)}
    return {name: by_key(name, rows) for name, rows in found.items()}


def assert_true(warehouse: Warehouse, truth: Tables) -> Tables:
    """Check that each table of a database holds what it should, and return them."""
    assert set(truth) == set(documented())
    found = tables(warehouse, list(truth))
    # Days of the history are those of the tests; what counts is which load it was.
    history = found["crashes_daily"].values()
    days = sorted({row["day"] for row in history})
    found["crashes_daily"] = by_key(
        "crashes_daily", ({**row, "day": days.index(row["day"])} for row in history)
    )
    for name, rows in truth.items():
        assert found[name].keys() == rows.keys(), (warehouse.name, name)
        for key, row in rows.items():
            assert found[name][key] == row, (warehouse.name, name)
    return found


def change(project: Project) -> None:
    """Have happen what happens between two runs: late, new, grown, ended and crashed."""
    sessions = sorted(project.sessions.values(), key=lambda row: str(row["startedAt"]))
    recent = [row["id"] for row in sessions if row["startedAt"] < project.now.isoformat()][-6:]
    project.grow(recent[-1])
    for crashed in recent[-4:-1]:
        project.crash(crashed)
    project.end(project.new_session(project.now - timedelta(days=3)))
    project.new_session(project.now, active=True)
    project.new_network(project.now - timedelta(days=2))
    # What is triaged has the same counts as before.
    (group, *_) = sorted(project.crashes)
    project.crashes[group]["status"] = "ignored"
    project.changed("sessions", "crashes")


def test_all_tables_are_true_and_equal_after_each_build(
    dbt: Dbt, warehouses: list[Warehouse], tmp_path: Path
) -> None:
    """What is late or changed arrives, on three databases, as in a full rebuild."""
    project = generate(seed=1, sessions=300, days=20, until=NOW)
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        first = sync(sandbox, NOW)
        loads = [held(project)]
        load(warehouses, first, tmp_path)
        build(dbt, warehouses, tmp_path)
        for warehouse in warehouses:
            assert_true(warehouse, expected(loads))
            yesterday(warehouse)
        old = {warehouse.name: mark(warehouse) for warehouse in warehouses}
        for counts in old.values():
            assert min(counts.values()) > 0

        change(project)
        second = sync(sandbox, project.now, state=first.state)
        loads.append(held(project))
        load(warehouses, second, tmp_path)
    build(dbt, warehouses, tmp_path)
    truth = expected(loads)
    for warehouse in warehouses:
        assert_true(warehouse, truth)
        # The files of target-jsonl have no time of load, so DuckDB builds all anew.
        built_again = warehouse.name == "duckdb"
        assert marked(warehouse) == {
            name: 0 if built_again else count for name, count in old[warehouse.name].items()
        }

    build(dbt, warehouses, tmp_path, "run", "--full-refresh")
    for warehouse in warehouses:
        assert_true(warehouse, truth)
        assert not any(marked(warehouse).values())


def test_apps_are_kept_apart_and_events_may_be_missing(
    dbt: Dbt, warehouses: list[Warehouse], tmp_path: Path
) -> None:
    """Two apps with the same ids share tables; events are those of crashed sessions."""
    loads: list[Rows] = []
    for name in ("bazaar", "shop"):
        project = generate(seed=2, sessions=100, days=12, until=NOW)
        with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
            output = sync(sandbox, NOW, project=name, events_for="crashed")
        load(warehouses, output, tmp_path)
        build(dbt, warehouses, tmp_path, "build", "--exclude-resource-type", "test")
        rows = held(project, name)
        crashed = {row["id"] for row in rows["sessions"] if row["hasCrash"]}
        rows["events"] = [row for row in rows["events"] if row["sessionId"] in crashed]
        before = loads[-1] if loads else {stream: [] for stream in rows}
        loads.append({stream: before[stream] + rows[stream] for stream in rows})
        assert 0 < len(crashed) < len(rows["sessions"])
        for warehouse in warehouses:
            assert_true(warehouse, expected(loads))
            yesterday(warehouse)
