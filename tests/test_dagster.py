"""The example for Dagster, run by a real one: what its schedule asks for."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.pipeline.children import CHECKOUT, answer_of, pipe, start
from tests.pipeline.meltano import MeltanoProject
from tests.pipeline.truth import assert_same, change, events_asked, held, tap_settings
from tests.pipeline.warehouse import emptied
from tests.sandbox import Options, Sandbox, generate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.pipeline.warehouse import Snowflake
    from tests.sandbox import Request

SECONDS = 120
EXAMPLE = CHECKOUT / "examples" / "dagster"

pytestmark = [pytest.mark.long, pytest.mark.sources]


@contextlib.contextmanager
def ticking(
    meltano: MeltanoProject, home: Path, log: Path, settings: Mapping[str, str]
) -> Iterator[Dagster]:
    """Run Dagster, with what it keeps in a folder, its log and the settings of the plugins."""
    python = CHECKOUT / ".venv-dagster" / "bin" / "python"
    assert python.exists(), "Dagster is not set up: sh scripts/setup.sh dagster"
    home.mkdir()
    shutil.copyfile(EXAMPLE / "dagster.yaml", home / "dagster.yaml")
    own = {
        "DAGSTER_HOME": str(home),
        "MELTANO_PROJECT_ROOT": str(meltano.directory),
        "MELTANO_AUTO_INSTALL": "false",
        "PATH": f"{meltano.meltano.parent}:{os.environ['PATH']}",
    }
    command = [str(python), "-m", "tests.pipeline.ticks"]
    with (
        log.open("w") as errors,
        start(command, meltano.home, {**settings, **own}, errors) as process,
    ):
        try:
            yield Dagster(process, log)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class Dagster(NamedTuple):
    """A Dagster whose schedule comes when a test says so."""

    process: subprocess.Popen[str]
    log: Path

    def due(self) -> None:
        """Have the time come."""
        asking = pipe(self.process.stdin)
        asking.write("\n")
        asking.flush()

    def tick(self) -> dict[str, Any]:
        """Have the time come, and return how the run ended."""
        self.due()
        answer = answer_of(self.process, SECONDS)
        assert answer, self.log.read_text("utf-8")
        return answer

    def loaded(self) -> dict[str, int]:
        """Have it come for a run that succeeds, and return how many rows each table got."""
        answer = self.tick()
        assert answer["success"], self.log.read_text("utf-8")
        rows: dict[str, int] = answer["rows"]
        return rows


def test_dagster_materializes_the_four_tables(
    tmp_path: Path, emulated_snowflake: Snowflake
) -> None:
    """Each tick loads what is new; one that fails says why, one that is stopped ends all."""
    meltano = MeltanoProject(tmp_path / "project")
    home, log = tmp_path / "dagster", tmp_path / "log"
    project = generate(4, 30, 3, datetime.now(UTC), crash_groups=3)
    with (
        emptied(emulated_snowflake) as snowflake,
        Sandbox(project, Options(("bp_secret_key",), requests_per_minute=None)) as sandbox,
        ticking(meltano, home, log, snowflake.settings | tap_settings(sandbox)) as dagster,
    ):
        first = held(project)
        assert dagster.loaded() == {name: len(rows) for name, rows in first.items()}
        assert_same(snowflake.rows(first), first)

        changed = change(project)
        sandbox.reset()
        assert dagster.loaded()["sessions"] == len(changed)
        assert sorted(events_asked(sandbox)) == sorted(changed)
        second = held(project)
        assert_same(snowflake.rows(second), second)

        sandbox.options.api_keys = ("bp_another_key",)
        ended = dagster.tick()
        assert not ended["success"]
        (why,) = ended["failures"]
        assert why.startswith("401 Unauthorized for /")
        assert why in log.read_text("utf-8")

        sandbox.options.api_keys = ("bp_secret_key",)
        asked, go_on = threading.Event(), threading.Event()

        def hold(_: Request) -> None:
            asked.set()
            go_on.wait(SECONDS)

        sandbox.options.hold = hold
        dagster.due()
        assert asked.wait(SECONDS), log.read_text("utf-8")
        # What Dagster sends to a run that is terminated, or has taken too long.
        dagster.process.send_signal(signal.SIGINT)
        pipe(dagster.process.stdin).close()
        try:
            dagster.process.wait(SECONDS)
        finally:
            go_on.set()
        # Of the group, Meltano and the plugins are gone as well.
        with pytest.raises(ProcessLookupError):
            os.killpg(dagster.process.pid, 0)
    written = [log, *(path for path in home.rglob("*") if path.is_file())]
    assert len(written) > 1
    assert [path for path in written if b"bp_secret_key" in path.read_bytes()] == []
