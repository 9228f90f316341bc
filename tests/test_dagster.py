"""The example for Dagster, run by a real one: what its schedule asks for."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.pipeline.children import CHECKOUT, answer_of, environment, pipe, stop
from tests.pipeline.meltano import MeltanoProject
from tests.pipeline.truth import assert_same, change, events_asked, held, tap_settings
from tests.pipeline.warehouse import emptied
from tests.sandbox import Options, Sandbox, generate

if TYPE_CHECKING:
    from pathlib import Path

    from tests.pipeline.warehouse import Snowflake

SECONDS = 120
EXAMPLE = CHECKOUT / "examples" / "dagster"

pytestmark = [pytest.mark.long, pytest.mark.sources]


def test_dagster_materializes_the_four_tables(
    tmp_path: Path, emulated_snowflake: Snowflake
) -> None:
    """Each tick loads what is new; one that fails says why; the key is written nowhere."""
    meltano = MeltanoProject(tmp_path / "project")
    home = tmp_path / "dagster"
    home.mkdir()
    shutil.copyfile(EXAMPLE / "dagster.yaml", home / "dagster.yaml")
    project = generate(4, 30, 3, datetime.now(UTC), crash_groups=3)
    python = CHECKOUT / ".venv-dagster" / "bin" / "python"
    assert python.exists(), "Dagster is not set up: sh scripts/setup.sh dagster"
    log = tmp_path / "log"
    with (
        emptied(emulated_snowflake) as snowflake,
        Sandbox(project, Options(("bp_secret_key",), requests_per_minute=None)) as sandbox,
        log.open("w") as stderr,
    ):
        env = environment(tmp_path / "home", snowflake.settings | tap_settings(sandbox))
        env |= {
            "DAGSTER_HOME": str(home),
            "MELTANO_PROJECT_ROOT": str(meltano.directory),
            "MELTANO_AUTO_INSTALL": "false",
            "PATH": f"{meltano.meltano.parent}:{env['PATH']}",
        }
        with subprocess.Popen(
            [python, "-m", "tests.pipeline.ticks"],
            cwd=CHECKOUT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        ) as dagster:
            try:
                first = held(project)
                assert loaded(dagster, log) == {name: len(rows) for name, rows in first.items()}
                assert_same(snowflake.rows(first), first)

                changed = change(project)
                sandbox.reset()
                assert loaded(dagster, log)["sessions"] == len(changed)
                assert sorted(events_asked(sandbox)) == sorted(changed)
                second = held(project)
                assert_same(snowflake.rows(second), second)

                sandbox.options.api_keys = ("bp_another_key",)
                ended = tick(dagster, log)
                assert not ended["success"]
                (why,) = ended["failures"]
                assert why.startswith("401 Unauthorized for /")
                assert why in log.read_text("utf-8")
            finally:
                stop(dagster)
    written = [log, *(path for path in home.rglob("*") if path.is_file())]
    assert len(written) > 1
    assert [path for path in written if b"bp_secret_key" in path.read_bytes()] == []


def tick(dagster: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """Have the schedule's time come, and return how the run ended."""
    asking = pipe(dagster.stdin)
    asking.write("\n")
    asking.flush()
    answer = answer_of(dagster, SECONDS)
    assert answer, log.read_text("utf-8")
    return answer


def loaded(dagster: subprocess.Popen[str], log: Path) -> dict[str, int]:
    """Have it come for a run that succeeds, and return how many rows each table got."""
    answer = tick(dagster, log)
    assert answer["success"], log.read_text("utf-8")
    rows: dict[str, int] = answer["rows"]
    return rows
