"""Run this tap and the stock tap of the bench through the same mishaps.

    python scripts/compare.py

prints the table of docs/comparison.md; it takes two minutes, one of them the limit's.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import typing as t
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.running import Output, counted
from tests.sandbox import Options, Project, Sandbox, generate

if t.TYPE_CHECKING:
    Row = dict[str, t.Any]

ROOT = Path(__file__).resolve().parent.parent
NOW = datetime.now(UTC)
TAPS = {"Stock SDK tap": "benchmarks.stock_tap", "tap-bugspulse": "tap_bugspulse"}
KILLED_AT = 150
UNLIMITED = Options(requests_per_minute=None)


def run(
    module: str, sandbox: Sandbox, state: Row | None = None, *, kill_at: int | None = None
) -> tuple[int, Output]:
    """Run a tap as a process; kill it once so many events were asked for."""
    sandbox.reset()
    config: Row = {"api_url": sandbox.url, "api_key": sandbox.api_key}
    if module == TAPS["tap-bugspulse"] and sandbox.options.requests_per_minute is None:
        config["requests_per_minute"] = 1_000_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "state.json").write_text(json.dumps(state or {}))
        command = [sys.executable, "-m", module, "--config", str(folder / "config.json")]
        if state:
            command += ["--state", str(folder / "state.json")]
        with (folder / "out").open("wb") as out:
            process = subprocess.Popen(  # noqa: S603 - one of the two taps
                command, stdout=out, stderr=subprocess.DEVNULL, cwd=ROOT
            )
            while kill_at and counted(sandbox)["/events"] < kill_at:
                time.sleep(0.001)
            if kill_at:
                process.send_signal(signal.SIGKILL)
            code = process.wait()
        return code, Output.read((folder / "out").read_text())


def made_up(sessions: int) -> Project:
    """Return a project of 30 days that is the same for both taps."""
    until = NOW - timedelta(hours=2)
    return generate(seed=3, sessions=sessions, days=30, until=until, lying_clocks=False)


def measure(module: str) -> list[str]:
    """Return the cells of a tap, from top to bottom."""
    project = made_up(400)
    with Sandbox(project, UNLIMITED) as sandbox:
        _, first = run(module, sandbox)
        cells = [f"{counted(sandbox).total()}"]
        run(module, sandbox, first.state)
        cells.append(f"{counted(sandbox)['/events']}")
        days = [(NOW - timedelta(days=n)).isoformat() for n in (4, 2)]
        grown = next(
            key
            for key, row in project.sessions.items()
            if row["status"] == "completed" and days[0] < row["startedAt"] < days[1]
        )
        project.grow(grown)
        _, second = run(module, sandbox, first.state)
        there = {
            key[1]
            for output in (first, second)
            for key in output.table("events")
            if key[0] == grown
        }
        new = [event["id"] for event in project.events[grown][-3:]]
        cells.append(f"{len(there & set(new))}")
        _, killed = run(module, sandbox, kill_at=KILLED_AT)
        run(module, sandbox, killed.state)
        cells.append(f"{counted(sandbox)['/events']}")
    with Sandbox(made_up(120), Options(requests_per_minute=60)) as sandbox:
        code, _ = run(module, sandbox)
        asked = len(sandbox.requests)
        refused = sum(request.status == 429 for request in sandbox.requests)  # noqa: PLR2004 - as HTTP has it
        end = f"ends with an error after {asked} requests" if code else "done"
        cells.append(f"{end}, {refused} refused")
    return cells


def main() -> None:
    """Print the numbers of both taps."""
    for tap, module in TAPS.items():
        print(tap, *measure(module), sep=" | ", flush=True)  # noqa: T201 - for people


if __name__ == "__main__":
    main()
