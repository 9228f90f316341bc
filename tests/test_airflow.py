"""The example for Airflow, run by a real one: `airflow dags test`."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.pipeline.children import CHECKOUT, environment
from tests.pipeline.meltano import MeltanoProject
from tests.pipeline.truth import assert_same, held
from tests.pipeline.warehouse import emulated
from tests.sandbox import Options, Sandbox, generate

if TYPE_CHECKING:
    from pathlib import Path

    from tests.pipeline.connector import Connector

SECONDS = 300
PROJECTS = CHECKOUT / "examples" / "several-projects" / "projects.meltano.yml"

pytestmark = pytest.mark.airflow


def test_airflow_loads_each_project_by_a_task_of_its_own(
    tmp_path: Path, connector: Connector
) -> None:
    """The DAG maps a task to each project; all rows arrive, each with its project."""
    meltano = MeltanoProject(tmp_path / "project", include=PROJECTS)
    # The first command makes the tables of Meltano's database, as the example says.
    assert meltano.call("state", "list", settings={}) == 0
    now = datetime.now(UTC)
    sandboxes = {
        name: Sandbox(
            generate(seed, 30, 3, now, crash_groups=3),
            Options((f"bp_{name}",), requests_per_minute=None),
        )
        for seed, name in enumerate(("shop", "courier"), start=4)
    }
    airflow = CHECKOUT / ".venv-airflow" / "bin" / "airflow"
    assert airflow.exists(), "Airflow is not set up: sh scripts/setup.sh airflow"
    with emulated(tmp_path, connector) as snowflake, sandboxes["shop"], sandboxes["courier"]:
        env = environment(tmp_path / "airflow", snowflake.settings)
        env |= {
            "AIRFLOW_HOME": str(tmp_path / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(CHECKOUT / "examples" / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AIRFLOW_VAR_BUGSPULSE_PROJECTS": json.dumps(list(sandboxes)),
            "PATH": f"{meltano.meltano.parent}:{airflow.parent}:{env['PATH']}",
            "MELTANO_PROJECT_ROOT": str(meltano.directory),
            "MELTANO_AUTO_INSTALL": "false",
            "TAP_BUGSPULSE_REQUESTS_PER_MINUTE": "60000",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        for name, sandbox in sandboxes.items():
            env[f"AIRFLOW_CONN_BUGSPULSE_{name.upper()}"] = json.dumps(
                {"conn_type": "generic", "host": sandbox.url, "password": sandbox.api_key}
            )

        for command in (("db", "migrate"), ("dags", "test", "bugspulse")):
            done = subprocess.run(
                [airflow, *command],
                cwd=tmp_path,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            output = done.stdout + done.stderr
            assert done.returncode == 0, output

        expected = held(sandboxes["shop"].project, "shop")
        for stream, rows in held(sandboxes["courier"].project, "courier").items():
            expected[stream] += rows
        assert_same(snowflake.rows(expected), expected)
    # Airflow hides passwords of connections where they are printed.
    assert not any(sandbox.api_key in output for sandbox in sandboxes.values())
