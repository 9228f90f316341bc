"""The example for Airflow, run by a real one: `airflow dags test` and `airflow tasks test`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from tests.pipeline.children import CHECKOUT, environment, run_group
from tests.pipeline.meltano import MeltanoProject
from tests.pipeline.truth import assert_same, held
from tests.pipeline.warehouse import emulated
from tests.test_schedules import PROJECTS, sandbox_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.pipeline.connector import Connector
    from tests.sandbox import Request

AIRFLOW = CHECKOUT / ".venv-airflow" / "bin" / "airflow"
SECONDS = 300
INSTANT = "2026-11-01T00:17:00+00:00"
PACE = {"TAP_BUGSPULSE_REQUESTS_PER_MINUTE": "60000"}

# The second mark has it begin among the first: it takes half a minute.
pytestmark = [pytest.mark.airflow, pytest.mark.long]


def test_airflow_loads_each_project_by_a_task_of_its_own(
    tmp_path: Path, connector: Connector
) -> None:
    """Two mapped tasks that load at the same instant each bring all rows of their project."""
    # A name with a dash, which a variable cannot have.
    projects = tmp_path / "projects.meltano.yml"
    renamed = PROJECTS.read_text("utf-8").replace("courier", "my-app").replace("COURIER", "MY_APP")
    projects.write_text(renamed, "utf-8")
    meltano = MeltanoProject(tmp_path / "project", include=projects)
    sandboxes = {name: sandbox_of(name, seed) for seed, name in enumerate(("shop", "my-app"))}
    assert AIRFLOW.exists(), "Airflow is not set up: sh scripts/setup.sh airflow"
    with emulated(tmp_path, connector) as snowflake, sandboxes["shop"], sandboxes["my-app"]:
        env = environment(tmp_path / "airflow", snowflake.settings)
        env |= {
            "AIRFLOW_HOME": str(tmp_path / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(CHECKOUT / "examples" / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AIRFLOW_VAR_BUGSPULSE_PROJECTS": json.dumps(list(sandboxes)),
            "PATH": f"{meltano.meltano.parent}:{AIRFLOW.parent}:{env['PATH']}",
            "MELTANO_PROJECT_ROOT": str(meltano.directory),
            "MELTANO_AUTO_INSTALL": "false",
            "PYTHONDONTWRITEBYTECODE": "1",
        } | PACE
        for name, sandbox in sandboxes.items():
            env[f"AIRFLOW_CONN_BUGSPULSE_{name.upper()}"] = json.dumps(
                {"conn_type": "generic", "host": sandbox.url, "password": sandbox.api_key}
            )

        # The first load makes Meltano's database and all tables, as the example says.
        first = {
            "TAP_BUGSPULSE__SHOP_API_URL": sandboxes["shop"].url,
            "TAP_BUGSPULSE__SHOP_API_KEY": sandboxes["shop"].api_key,
        } | PACE
        blocks = ("--state-id-suffix=first", "tap-bugspulse--shop", "target-snowflake")
        assert meltano.run(*blocks, settings=snowflake.settings | first) == 0
        output = airflow(tmp_path, env, ("db", "migrate"))
        # This would run the tasks one after the other; a scheduler starts them together.
        run = ("dags", "test", "bugspulse", INSTANT, "--mark-success-pattern", "load")
        output += airflow(tmp_path, env, run)
        together = threading.Barrier(len(sandboxes))
        for sandbox in sandboxes.values():
            sandbox.options.hold = first_only(together)
        task = ("tasks", "test", "bugspulse", "load", INSTANT, "--map-index")
        output += airflow(tmp_path, env, (*task, "0"), (*task, "1"))
        shop, other = (held(sandbox.project, name) for name, sandbox in sandboxes.items())
        expected = {stream: rows + other[stream] for stream, rows in shop.items()}
        assert_same(snowflake.rows(expected), expected)
    # Airflow hides passwords of connections where they are printed.
    assert not any(sandbox.api_key in output for sandbox in sandboxes.values())


def first_only(together: threading.Barrier) -> Callable[[Request], None]:
    """Return what has the first request of a sandbox wait for those of the others."""
    first = threading.Lock()

    def wait(_: Request) -> None:
        if first.acquire(blocking=False):
            together.wait(SECONDS)

    return wait


def airflow(folder: Path, env: Mapping[str, str], *commands: tuple[str, ...]) -> str:
    """Run commands of Airflow at the same time, and return what they said."""
    logs = [folder / f"{number}.log" for number in range(len(commands))]
    with contextlib.ExitStack() as stack:
        running = [
            subprocess.Popen(
                [AIRFLOW, *command],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for command, log in zip(commands, logs, strict=True)
        ]
        codes = [run_group(one, "airflow", seconds=SECONDS) for one in running]
    said = "".join(log.read_text("utf-8") for log in logs)
    assert codes == [0] * len(commands), said
    return said
