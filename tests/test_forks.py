"""Forks that tests run the tap in: as a fresh process does, and gone with the tests."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests import forks
from tests.conftest import NOW, sweep
from tests.pipeline.meltano import MeltanoProject
from tests.running import KEPT, wait_until
from tests.tap_process import TapProcess, clock

if t.TYPE_CHECKING:
    from tests.sandbox import Sandbox

pytestmark = pytest.mark.skipif(not forks.CAN_FORK, reason="nothing is forked there")
LEFT = """
import os, sys
from tests import forks
writing = os.open(os.devnull, os.O_WRONLY)
settings = {"env": os.environ, "stdout": writing, "stderr": writing}
tap = forks.start("tests.tap_process", sys.argv[1], "--config=ENV", **settings)
print(tap.pid, flush=True)
sys.stdin.read()
"""


def settings(sandbox: Sandbox) -> dict[str, str]:
    """Return what a tap needs, and what a fork must not have of whoever runs the tests."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | {
        "TAP_BUGSPULSE_API_KEY": sandbox.api_key,
        "TAP_BUGSPULSE_API_URL": sandbox.url,
        "TAP_BUGSPULSE_REQUESTS_PER_MINUTE": "1000000",
    }


@sweep("argument", ["--discover", "--config=ENV", "--nonsense"], quick=[("--config=ENV",)])
def test_a_fork_does_what_a_fresh_process_does(sandbox: Sandbox, argument: str) -> None:
    """Exit code, messages and the number of lines of the log are the same."""
    found = []
    for fresh in (False, True):
        arguments = ("tests.tap_process", clock(NOW, 60.0), argument)
        done = forks.run(*arguments, env=settings(sandbox), fresh=fresh)
        written = re.sub('"time_extracted":"[^"]*"', "", done.stdout).splitlines()
        found.append((done.returncode, written, len(done.stderr.splitlines())))
    assert found[0] == found[1]
    assert found[0][2] > 0


@pytest.mark.pipeline
@pytest.mark.parametrize(
    "arguments",
    [["config", "list", "target-jsonl"], ["run", "tap-bugspulse", "target-nowhere"]],
    ids=lambda arguments: arguments[0],
)
def test_a_fork_of_meltano_does_what_a_fresh_one_does(tmp_path: Path, arguments: list[str]) -> None:
    """Exit code and output are the same but for instants, and the system database is."""
    found = []
    for fresh in (False, True):
        meltano = MeltanoProject(tmp_path / f"fresh {fresh}", fresh=fresh)
        with (tmp_path / f"{fresh}.log").open("w+", encoding="utf-8") as output:
            code = meltano.call(*arguments, settings={"TARGET_JSONL_X": "y"}, output=output)
            output.seek(0)
            lines = [re.sub(r"^\d\S+Z", "NOW", line) for line in output]
        database = meltano.directory / ".meltano" / "meltano.db"
        with contextlib.closing(sqlite3.connect(database)) as connection:
            tables = connection.execute("select sql from sqlite_master").fetchall()
        found.append((code, lines, tables))
    fork, fresh_one = found
    assert fork == fresh_one
    assert len(fork[1]) > 1


def test_a_fork_has_a_group_files_and_a_directory_of_its_own(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """It has nothing open of another, and a signal to its group reaches no other."""
    sandbox.options.latency = 600.0
    one, other = taps = [TapProcess(tmp_path / name, sandbox, NOW) for name in "ab"]
    try:
        # Each sends one and waits for its answer: both have become what they are to be.
        wait_until(lambda: len(sandbox.requests) == len(taps))
        for name, tap in zip("ab", taps, strict=True):
            open_files = Path(f"/proc/{tap.process.pid}/fd")
            names = {int(one.name): str(one.readlink()) for one in open_files.iterdir()}
            files = [os.devnull, *(str(tmp_path / name / one) for one in ("stdout", "stderr"))]
            assert [names[number] for number in range(3)] == files
        os.killpg(one.process.pid, signal.SIGKILL)
        assert one.process.wait(60) == -signal.SIGKILL
        assert is_running(other.process.pid)
    finally:
        other.process.kill()
        assert other.process.wait() == -signal.SIGKILL


def test_a_fork_ends_when_its_tests_are_killed(sandbox: Sandbox) -> None:
    """Nothing goes on when the process that started it is gone."""
    sandbox.options.latency = 600.0
    with subprocess.Popen(
        [sys.executable, "-c", LEFT, clock(NOW, 60.0)],
        cwd=forks.ROOT,
        env=settings(sandbox),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as tests:
        try:
            assert tests.stdout
            pid = int(tests.stdout.readline())
            wait_until(lambda: sandbox.requests)
            os.kill(pid, 0)
        finally:
            tests.kill()
    # A zombie goes when it is waited for by init, which not every container has.
    wait_until(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    """Return whether a process goes on."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
