"""The dbt package in `transform/`: the same true tables in three databases."""

from __future__ import annotations

import re
import shlex
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import NOW, with_project
from tests.documents import blocks, table, text
from tests.pipeline.children import serving
from tests.pipeline.marts import FUNNEL, crashes_daily, marts, metrics
from tests.pipeline.meltano import MeltanoProject
from tests.pipeline.page import statements
from tests.pipeline.transform import (
    SCHEMA,
    TRANSFORM,
    Dbt,
    DuckDb,
    Postgres,
    Snowflake,
    Warehouse,
    by_key,
    documented,
    tables,
)
from tests.pipeline.truth import Rows, change, held, tap_settings
from tests.pipeline.warehouse import emptied, emulated
from tests.running import Output, Row, sync
from tests.sandbox import Options, Sandbox, generate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.pipeline.connector import Connector
    from tests.pipeline.warehouse import Snowflake as Account

pytestmark = pytest.mark.dbt

Tables = dict[str, dict[tuple[Any, ...], Row]]


@pytest.fixture
def dbt(tmp_path: Path) -> Iterator[Dbt]:
    """One process of dbt."""
    with Dbt(tmp_path / "dbt") as started:
        yield started


@pytest.fixture
def warehouses(tmp_path: Path, connector: Connector, dbt: Dbt) -> Iterator[list[Warehouse]]:
    """Three databases with nothing in them, which dbt knows."""
    with (
        serving("tests.pipeline.postgres", home=tmp_path / "home") as postgres,
        emulated(tmp_path, connector) as snowflake,
    ):
        three: list[Warehouse] = [
            DuckDb(tmp_path / "duckdb"),
            Postgres(postgres["dsn"], tmp_path / "postgres"),
            Snowflake(snowflake, tmp_path / "snowflake"),
        ]
        for warehouse in three:
            dbt.add(warehouse.name, warehouse.output())
        yield three


def load(warehouses: list[Warehouse], output: Output) -> None:
    """Load what a run of the tap wrote into each database."""
    for warehouse in warehouses:
        warehouse.load(output)


def build(
    dbt: Dbt, warehouses: list[Warehouse], folder: Path, *arguments: str
) -> list[dict[str, str]]:
    """Have dbt build all tables in each database; return the status of each node."""
    variables = {
        "bugspulse_files": str(folder / "duckdb" / "output"),
        "bugspulse_funnel": list(FUNNEL),
        # The loads of these tests are seconds apart, so that any overlap would cover them.
        "bugspulse_overlap_hours": 0,
        "bugspulse_metrics": True,
    }
    answers = [dbt.run(one.name, *arguments, variables=variables) for one in warehouses]
    for answer in answers:
        assert answer["success"], answer["problems"]
        assert answer["problems"] + answer["warnings"] == []
    return [answer["results"] for answer in answers]


def update(warehouse: Warehouse, table_name: str, values: str) -> None:
    """Change rows of a table of the package."""
    warehouse.query(f"update {SCHEMA}.bugspulse__{table_name} set {values}")  # noqa: S608 - own names


A_DAY_EARLIER = "dbt_valid_from = dbt_valid_from - interval '1 day'"
MARK = "loaded_at = '2000-01-01'"
# A day on which nothing changes, so that it shows when its rows are built.
AN_OLD_DAY = "2026-02-15"
INCREMENTAL = [name for name, one in documented().items() if "loaded_at" in one["columns"]]
WITHOUT_TESTS = ("build", "--exclude-resource-type", "test")
README = "transform/README.md"
QUERY_OF_README = next(
    shlex.split(line)[2:] for line in text(README).splitlines() if line.startswith("mf query ")
)


def marked(warehouse: Warehouse) -> list[int]:
    """Return how many rows of each incremental table have the mark."""
    counts = warehouse.query(
        *(
            f"select count(*) from {SCHEMA}.bugspulse__{name} where {MARK}"  # noqa: S608 - own names
            for name in INCREMENTAL
        )
    )
    return [count for [[count]] in counts]


def expected(loads: list[Rows]) -> Tables:
    """Return what the tables should hold after some loads, the last of which has it all."""
    found = marts(loads[-1]) | {"crashes_daily": crashes_daily(loads)}
    return {name: by_key(name, rows) for name, rows in found.items()}


def assert_true(warehouse: Warehouse, truth: Tables) -> None:
    """Check that each table of a database holds what it should."""
    assert set(truth) == set(documented())
    found = tables(warehouse, list(truth))
    # Days of the history are those of the tests; what counts is which load it was.
    history = found["crashes_daily"].values()
    days = sorted({row["day"] for row in history})
    found["crashes_daily"] = by_key(
        "crashes_daily", ({**row, "day": days.index(row["day"])} for row in history)
    )
    for name, rows in truth.items():
        assert found[name] == rows, (warehouse.name, name)


def assert_metrics(dbt: Dbt, target: str, rows: Rows) -> None:
    """Check what MetricFlow says of a database for each day and each week."""
    truth = {grain: metrics(rows, grain) for grain in ("day", "week")}
    names = truth["day"][0].keys() - {"metric_time__day"}
    described = " ".join(row[0] for row in table(README, "Metrics"))
    assert set(re.findall(r"`(\w+)`", described)) == names
    options = ["--metrics", ",".join(names), "--group-by"]
    example, *answers = dbt.query(
        target, QUERY_OF_README, *([*options, f"metric_time__{grain}"] for grain in truth)
    )
    assert example
    for (grain, expected_rows), answer in zip(truth.items(), answers, strict=True):
        time = f"metric_time__{grain}"
        assert len(answer) == len(expected_rows)
        found = {row.pop(time)[:10]: row for row in answer}
        for expected_row in expected_rows:
            values = found[expected_row.pop(time)]
            assert {name: float(value) if value else None for name, value in values.items()} == (
                pytest.approx(expected_row)
            ), (target, grain)


@with_project(seed=1, sessions=300, days=20, until=NOW)
def test_all_tables_are_true_and_equal_after_each_build(
    sandbox: Sandbox, dbt: Dbt, warehouses: list[Warehouse], tmp_path: Path
) -> None:
    """What is late or changed arrives, on three databases, as in a full rebuild."""
    project, first = sandbox.project, sync(sandbox, NOW)
    loads = [held(project)]
    load(warehouses, first)
    build(dbt, warehouses, tmp_path, "build")
    for warehouse in warehouses:
        assert_true(warehouse, expected(loads))
        update(warehouse, "crash_history", A_DAY_EARLIER)
        for name in INCREMENTAL:
            update(warehouse, name, f"{MARK} where day = '{AN_OLD_DAY}'")
    old = [marked(warehouse) for warehouse in warehouses]
    assert all(map(all, old))

    change(project)
    # What is late, what goes on, and what is triaged, with the same counts as before.
    project.new_session(project.now - timedelta(days=3))
    project.new_network(project.now - timedelta(days=2))
    project.new_session(project.now, active=True)
    project.crashes[min(project.crashes)]["status"] = "ignored"
    project.changed("crashes")
    second = sync(sandbox, project.now, state=first.state)
    loads.append(held(project))
    load(warehouses, second)
    # That keys are unique is checked below.
    build(dbt, warehouses, tmp_path, *WITHOUT_TESTS)
    truth = expected(loads)
    questions = [
        block.text.replace("bugspulse__", f"{SCHEMA}.bugspulse__").rstrip().rstrip(";")
        for block in blocks(README)
        if block.text.startswith("-- tables\n")
    ]
    reports, answers = (
        [warehouse.query(*some) for warehouse in warehouses]
        for some in (statements(SCHEMA), questions)
    )
    assert all(reports[0])
    assert sum(map(bool, answers[0])) > 5
    assert (reports[1:], answers[1:]) == (reports[:-1], answers[:-1])
    for warehouse in warehouses:
        assert_true(warehouse, truth)
        assert_metrics(dbt, warehouse.name, loads[-1])
    # The files of target-jsonl have no time of load, so DuckDB builds all anew.
    assert [marked(warehouse) for warehouse in warehouses] == [[0] * len(INCREMENTAL), *old[1:]]
    fresh = build(dbt, warehouses[1:], tmp_path, "source", "freshness")
    assert [set(one.values()) for one in fresh] == [{"pass"}, {"pass"}]

    build(dbt, warehouses, tmp_path, "run", "--full-refresh")
    for warehouse in warehouses:
        assert_true(warehouse, truth)
        assert not any(marked(warehouse))


def test_apps_are_kept_apart_and_events_may_be_missing(
    dbt: Dbt, warehouses: list[Warehouse], tmp_path: Path
) -> None:
    """Two apps with the same ids share tables; events are those of crashed sessions.

    In Postgres the rows have no time of load, so that all is built in each run.
    """
    postgres = warehouses[1]
    assert isinstance(postgres, Postgres)
    postgres.settings |= {"add_record_metadata": False, "activate_version": False}
    loads: list[Rows] = []
    for name in ("bazaar", "shop"):
        project = generate(seed=2, sessions=100, days=12, until=NOW)
        with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
            output = sync(sandbox, NOW, project=name, events_for="crashed")
        load(warehouses, output)
        build(dbt, warehouses, tmp_path, *WITHOUT_TESTS)
        rows = held(project, name)
        crashed = {row["id"] for row in rows["sessions"] if row["hasCrash"]}
        rows["events"] = [row for row in rows["events"] if row["sessionId"] in crashed]
        before = loads[-1] if loads else {stream: [] for stream in rows}
        loads.append({stream: before[stream] + rows[stream] for stream in rows})
        assert 0 < len(crashed) < len(rows["sessions"])
        for warehouse in warehouses:
            assert_true(warehouse, expected(loads))
            update(warehouse, "crash_history", A_DAY_EARLIER)


URLS = {
    "https://a.example/v2/orders/17": "https://a.example/v2/orders/:id",
    "https://a.example/v2/orders/17/": "https://a.example/v2/orders/:id/",
    "https://a.example/orders/1/2/3?at=/4/5": "https://a.example/orders/:id/:id/:id",
    "https://a.example/f/0a1b2c3d-0a1b-4a1b-8a1b-0a1b2c3d4e5f#top": "https://a.example/f/:id",
    "https://a.example/2fa/v2/decade": "https://a.example/2fa/v2/decade",
    "https://a.example": "https://a.example",
}
STEPS = ("Home", "50% off", "a|b", "it's_fine!")
JOURNEYS = {
    "in order": [*STEPS],
    "with others between": ["x", "Home", "y", "50% off", "Home", "a|b", "it's_fine!", "x"],
    "another letter for the _": ["Home", "50% off", "a|b", "it's-fine!"],
    "not in order": ["50% off", "Home", "a|b", "it's_fine!"],
    "something for the %": ["Home", "50 percent off", "a|b", "it's_fine!"],
    "part of a name": ["Homes", "50% off", "a|b", "it's_fine!"],
}
AT = "2026-02-01T00:00:00.000Z"


def odd_rows(schemas: dict[str, Row]) -> Output:
    """Return messages of rows that have only what they must, names with any character."""
    rows: dict[str, list[Row]] = {
        "sessions": [{"id": name, "startedAt": AT} for name in JOURNEYS],
        "network": [
            # Whatever has neither status nor error has failed.
            {"id": str(number), "sessionId": "in order", "url": url, "duration": 1, "timestamp": AT}
            for number, url in enumerate(URLS)
        ],
        "events": [
            {"sessionId": session, "id": str(number), "type": "navigate", "timestamp": AT}
            | {"sequenceNumber": number, "data": {"from": None, "to": screen}}
            for session, screens in JOURNEYS.items()
            # More than nine, so that 10 comes after 9; and not loaded in order.
            for number, screen in reversed(list(enumerate(["Start"] * 8 + screens)))
        ],
    }
    # What has no time at all, and belongs to no session.
    rows["sessions"].append({"id": "no time"})
    rows["events"].append({"sessionId": "gone", "id": "1"})
    rows["network"].append({"id": "bare"})
    output = Output()
    for stream, some in rows.items():
        empty = dict.fromkeys(schemas[stream]["schema"]["properties"])
        kind = {"type": "RECORD", "stream": stream, "time_extracted": AT}
        output.messages += [schemas[stream], *(kind | {"record": empty | row} for row in some)]
    return output


def test_odd_rows_and_missing_tables(
    sandbox: Sandbox, dbt: Dbt, warehouses: list[Warehouse], tmp_path: Path
) -> None:
    """Any screen and path is counted, nothing fails for what is null or never came."""
    run = sync(sandbox, NOW)
    schemas = {one["stream"]: one for one in run.messages if one["type"] == "SCHEMA"}
    # A column that somebody has not selected.
    del schemas["sessions"]["schema"]["properties"]["networkType"]
    load(warehouses, odd_rows(schemas))
    files = str(tmp_path / "duckdb" / "output")
    variables = {"bugspulse_funnel": STEPS, "bugspulse_files": files}
    for warehouse in warehouses:
        answer = dbt.run(warehouse.name, "build", variables=variables)
        assert answer["success"], answer["problems"]
        # One event belongs to no session, and there is no table of crashes.
        (problem,) = answer["problems"]
        assert problem.startswith("belongs_to_stg_bugspulse__events")
        (missing,) = (one for one in answer["warnings"] if "made of it is empty" in one)
        assert "crashes" in missing

        found = tables(warehouse, [*documented()])
        assert found["crashes"] == found["crashes_daily"] == {}
        assert {key[3] for key in found["endpoints_daily"]} == set(URLS.values())
        assert {row["failed_percent"] for row in found["endpoints_daily"].values()} == {100}
        reached = {row["screen"]: row["sessions"] for row in found["funnel_daily"].values()}
        assert reached == dict(zip(STEPS, (5, 3, 3, 2), strict=True))
        (versions,) = found["app_versions_daily"].values()
        assert versions["app_version"] == versions["platform"] == "unknown"
        assert versions["sessions"] == versions["sessions_without_user"] == len(JOURNEYS)
        assert versions["crash_free_users_percent"] is None
        assert found["sessions"]["", "no time"]["day"] is None
        assert len(found["sessions"]) == len(JOURNEYS) + 1
        assert ("", "gone", 1) in found["session_timeline"]
        (columns,) = warehouse.query(
            "select lower(table_name), lower(column_name) from information_schema.columns "
            "where lower(table_name) like 'bugspulse@_@_%' escape '@'"
        )
        assert sorted(row for row in columns if row[0] != "bugspulse__crash_history") == sorted(
            [f"bugspulse__{name}", column]
            for name, one in documented().items()
            for column in one["columns"]
        )


RUNS = {
    "snowflake": ("bugspulse-to-snowflake-tables",),
    "duckdb": ("tap-bugspulse", "target-jsonl", "dbt-bugspulse:build"),
}


@with_project(seed=5, sessions=60, days=5, until=NOW, crash_groups=6)
@pytest.mark.parametrize("target", RUNS)
def test_one_run_of_meltano_loads_and_builds(
    target: str, sandbox: Sandbox, emulated_snowflake: Account, dbt: Dbt, tmp_path: Path
) -> None:
    """The job loads, then builds; DuckDB needs nothing but its name."""
    meltano = MeltanoProject(tmp_path / "project")
    (meltano.directory / "transform").symlink_to(TRANSFORM)
    with emptied(emulated_snowflake):
        warehouse: Warehouse = DuckDb(meltano.directory)
        settings = {"DBT_BUGSPULSE_TARGET": "duckdb", "DBT_BUGSPULSE_SCHEMA": SCHEMA}
        if target == "snowflake":
            warehouse = Snowflake(emulated_snowflake, tmp_path)
            # Only the emulated one needs a profile of its own, which says where it listens.
            dbt.add("snowflake", warehouse.output())
            profiles = {"DBT_BUGSPULSE_PROFILES_DIR": str(tmp_path / "dbt")}
            settings = emulated_snowflake.settings | profiles
        assert meltano.run(*RUNS[target], settings=tap_settings(sandbox) | settings) == 0

        truth = marts(held(sandbox.project), funnel=())
        found = tables(warehouse, [*truth])
    assert found == {name: by_key(name, rows) for name, rows in truth.items()}
    assert found["session_timeline"]
    assert not (TRANSFORM / "target").exists()
    assert not (TRANSFORM / "logs").exists()
