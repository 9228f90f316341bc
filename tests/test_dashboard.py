"""The dashboard of examples/streamlit, run by Streamlit's own test of apps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import NOW
from tests.pipeline.children import CHECKOUT, environment
from tests.pipeline.marts import FUNNEL, marts, stored
from tests.pipeline.meltano import NO_PLATFORM_DETECTION
from tests.pipeline.page import share
from tests.pipeline.transform import SCHEMA, Dbt, Snowflake
from tests.pipeline.truth import held
from tests.pipeline.warehouse import emulated
from tests.running import sync
from tests.sandbox import generate
from tests.test_release import succeed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.pipeline.connector import Connector
    from tests.sandbox import Sandbox

pytestmark = pytest.mark.streamlit

DATA = {"seed": 3, "sessions": 80, "days": 10, "until": NOW}
FIRST = "2026-01-31"
"""The first of the thirty days that are shown unless others are chosen."""


def shown(
    choices: list[dict[str, Any]], folder: Path, settings: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return what the dashboard shows after each choice."""
    python = CHECKOUT / ".venv-streamlit" / "bin" / "python"
    assert python.exists(), "Streamlit is not set up: sh scripts/setup.sh streamlit"
    program = (python, "-m", "tests.pipeline.dashboard", json.dumps(choices))
    said = succeed(*program, env=environment(folder / "home", settings))
    answers: list[dict[str, Any]] = json.loads(said.splitlines()[-1])
    assert [one["errors"] for one in answers] == [[]] * len(choices)
    # Streamlit prints what stands alone in a line of code.
    assert [one["texts"] for one in answers] == [[]] * len(choices)
    return answers


def test_filters_and_one_session(tmp_path: Path) -> None:
    """Numbers are those of the tables, of what is chosen; a session shows its moments."""
    tables = marts(held(generate(seed=1, sessions=300, days=20, until=NOW)))
    stored(tables, tmp_path).close()
    sessions = [row for row in tables["sessions"] if FIRST <= row["day"] <= "2026-03-01"]
    version = max(row["app_version"] for row in sessions if row["has_crash"])
    of_version = [row for row in sessions if row["app_version"] == version]
    few = [row for row in of_version if row["platform"] in {"ios", "android"}]
    narrow = {"Version": [version], "Platform": ["ios", "android"]}
    chosen = max(few, key=lambda row: str(row["started_at"]))["session_id"]
    settings = {"BUGSPULSE_DUCKDB": str(tmp_path / "tables.duckdb"), "BUGSPULSE_SCHEMA": "main"}
    whole, some, one = shown(
        [{}, narrow, {"Crashed sessions only": False, "Session": chosen}], tmp_path, settings
    )

    for answer, rows in ((whole, sessions), (some, few)):
        crashed, count = sum(row["has_crash"] for row in rows), len(rows)
        users = {row["user_id"] for row in rows} - {None}
        calls = sum(row["calls"] for row in rows)
        failed = sum(row["failed_calls"] for row in rows)
        metrics = answer["metrics"]
        assert metrics["Sessions"][0] == str(count)
        assert metrics["Crash-free"] == [share(count - crashed, count), f"{crashed} crashed"]
        assert metrics["Named users"][0] == str(len(users))
        assert metrics["Calls failed"] == [share(failed, calls), f"of {calls} calls"]
    assert {row["app_version"] for row in some["tables"][0]} == {version}
    assert {row["app_version"] for row in some["tables"][1]} <= {version}
    moments = [row for row in tables["session_timeline"] if row["session_id"] == chosen]
    assert [row["what"] for row in one["tables"][3]] == [row["what"] for row in moments]
    assert len(moments) > 1


def test_snowflake_shows_the_same_as_duckdb(
    connector: Connector, sandbox: Sandbox, tmp_path: Path
) -> None:
    """The app asks Snowflake through the connection of its secrets, with the same answers."""
    with emulated(tmp_path / "server", connector) as server, Dbt(tmp_path / "dbt") as dbt:
        snowflake = Snowflake(server, tmp_path)
        snowflake.load(sync(sandbox, NOW))
        dbt.add("snowflake", snowflake.output())
        built = dbt.run("snowflake", "build", variables={"bugspulse_funnel": list(FUNNEL)})
        assert built["success"], built["problems"]

        secrets = tmp_path / "home" / ".streamlit" / "secrets.toml"
        secrets.parent.mkdir(parents=True)
        lines = [
            f"{name} = {json.dumps(value)}"
            for name, value in snowflake.output().items()
            if name not in {"type", "threads", "warehouse"}
        ]
        secrets.write_text("\n".join(["[connections.snowflake]", *lines]) + "\n", "utf-8")
        settings = NO_PLATFORM_DETECTION | {"BUGSPULSE_SCHEMA": SCHEMA}
        (of_snowflake,) = shown([{}], tmp_path, settings)

    stored(marts(held(sandbox.project)), tmp_path).close()
    settings = {"BUGSPULSE_DUCKDB": str(tmp_path / "tables.duckdb"), "BUGSPULSE_SCHEMA": "main"}
    (of_duckdb,) = shown([{}], tmp_path, settings)
    for part in ("metrics", "choices", "tables"):
        assert of_snowflake[part] == of_duckdb[part]
