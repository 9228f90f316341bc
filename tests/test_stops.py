"""What a `meltano run` leaves behind that is stopped: docs/schedule.md says it by target.

The tap writes a state after each hundred sessions of events, but Meltano keeps one when
the target has confirmed it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tap_bugspulse.settings import CONCURRENCY
from tests.forks import Process
from tests.pipeline.children import end_group, serving
from tests.pipeline.meltano import MeltanoProject
from tests.pipeline.truth import events_asked, tap_settings
from tests.pipeline.warehouse import Snowflake
from tests.running import wait_until
from tests.sandbox import Options, Request, Sandbox, generate_once

pytestmark = [pytest.mark.pipeline, pytest.mark.sources]

TARGETS = ("target-jsonl", "target-csv", "target-postgres", "target-snowflake")
SECONDS = 120
# How many sessions' events have been asked for when a run is stopped; and, at one a second,
# when it is stopped after more than five minutes.
REACHED, LATER = 150, 385
# How a run is stopped, and the exit codes of Meltano.
STOPS: list[tuple[Callable[[int, int], None], int, set[int]]] = [
    (os.killpg, signal.SIGINT, {1, 130}),  # as a terminal does: Meltano, tap and target
    (os.kill, signal.SIGTERM, {143}),  # as an orchestrator does: Meltano, which tells the others
    (os.killpg, signal.SIGTERM, {143}),  # as systemd and Airflow do
    (os.killpg, signal.SIGKILL, {-signal.SIGKILL}),  # nobody has the time to do anything
]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A project with the events of nearly 300 sessions to ask for."""
    project = generate_once(seed=4, sessions=300, days=6)
    with Sandbox(project, Options(requests_per_minute=None)) as running:
        yield running


@contextlib.contextmanager
def settings_of(
    target: str, request: pytest.FixtureRequest, folder: Path
) -> Iterator[dict[str, str]]:
    """Yield the settings that take a target to where it loads, empty."""
    if target == "target-postgres":
        with serving("tests.pipeline.postgres", home=folder / "postgres") as server:
            dsn = server["dsn"].replace("postgresql://", "postgresql+psycopg://", 1)
            yield {"TARGET_POSTGRES_SQLALCHEMY_URL": dsn}
    elif target == "target-snowflake":
        snowflake: Snowflake = request.getfixturevalue("emulated_snowflake")
        yield snowflake.settings
        snowflake.query(f"drop schema if exists {snowflake.schema} cascade")
    else:
        yield {}


def state_of(meltano: MeltanoProject, target: str) -> dict[str, Any]:
    """Return the state that Meltano has kept, `{}` where it has none."""
    file = meltano.directory / "state.json"
    command = ("--log-level", "error", "state", "get", f"dev:tap-bugspulse-to-{target}")
    with file.open("w") as output:
        assert meltano.call(*command, settings={}, output=output) == 0
    state: dict[str, Any] = json.loads(file.read_text().splitlines()[-1])
    return state


def stop(run: Process, sandbox: Sandbox, tell: Callable[[int, int], None], signum: int) -> int:
    """Stop a run while it waits for events, and return its exit code."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(request: Request) -> None:
        if request.path == "/events" and has_asked(sandbox, REACHED):
            reached.set()
            go_on.wait(SECONDS)

    sandbox.options.hold = hold
    try:
        assert reached.wait(SECONDS)
        tell(run.pid, signum)
        return run.wait(SECONDS)
    finally:
        sandbox.options.hold = None
        go_on.set()
        end_group(run)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_kept_of_a_run_that_ends_within_five_minutes(
    target: str, sandbox: Sandbox, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A time limit, and an error of the tap, keep what was loaded; a signal keeps nothing."""
    meltano = MeltanoProject(tmp_path / "project")
    # After a kill Meltano takes the run for one that still goes on.
    run = ("--force", "tap-bugspulse", target)
    with settings_of(target, request, tmp_path) as where:
        settings = tap_settings(sandbox) | where
        for tell, signum, codes in STOPS:
            started = meltano.start("run", *run, settings=settings)
            assert stop(started, sandbox, tell, signum) in codes
        assert state_of(meltano, target) == {}
        stopped = {*events_asked(sandbox)}

        sandbox.reset()
        limit = {"TAP_BUGSPULSE_MAX_RUNTIME_MINUTES": "0.000001"}
        assert meltano.run(*run, settings=settings | limit) == 0
        limited = {*events_asked(sandbox)}
        # Nothing was kept, so what the others had asked for is asked for again.
        assert limited
        assert limited <= stopped

        sandbox.reset()
        sandbox.options.script = lambda one: (
            "401" if one.path == "/events" and has_asked(sandbox, REACHED) else None
        )
        assert meltano.run(*run, settings=settings) == 1
        refused = {one.query["sessionId"] for one in sandbox.requests if one.status == 401}
        loaded = {*events_asked(sandbox)} - refused
        assert limited & loaded == set()

        sandbox.options.script = None
        sandbox.reset()
        assert meltano.run(*run, settings=settings) == 0
        last = {*events_asked(sandbox)}
        # Answers that were on their way when the tap ended.
        assert len(last & loaded) <= CONCURRENCY
        assert len(loaded) > REACHED // 2
        assert last >= refused
        assert limited & last == set()


@pytest.mark.slow
def test_what_is_kept_of_a_run_that_is_killed_later(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """After five minutes a target of the SDK confirms, and that stays; target-jsonl does not."""
    with contextlib.ExitStack() as stack:
        going = {}
        for target in TARGETS:
            folder = tmp_path / target
            sandbox = stack.enter_context(Sandbox(generate_once(seed=4, sessions=450, days=6)))
            settings = tap_settings(sandbox) | stack.enter_context(
                settings_of(target, request, folder)
            )
            del settings["TAP_BUGSPULSE_REQUESTS_PER_MINUTE"]
            meltano = MeltanoProject(folder / "project")
            run = meltano.start("run", "tap-bugspulse", target, settings=settings)
            stack.callback(end_group, run)
            going[target] = (sandbox, settings, meltano, run)
        for sandbox, *_ in going.values():
            wait_until(partial(has_asked, sandbox, LATER), 2 * LATER)
        for *_, run in going.values():
            assert run.poll() is None
            os.killpg(run.pid, signal.SIGKILL)
            run.wait(SECONDS)
        for target, (sandbox, settings, meltano, _) in going.items():
            first = {*events_asked(sandbox)}
            sandbox.reset()
            sandbox.options.requests_per_minute = None
            blocks = ("--force", "tap-bugspulse", target)
            assert meltano.run(*blocks, settings=settings | tap_settings(sandbox)) == 0
            again = len(first & {*events_asked(sandbox)})
            if target == "target-jsonl":
                assert again == len(first)
            else:
                # At most the minutes since the target confirmed, and the minute before that,
                # for which the tap had not written a state yet.
                assert again < len(first) / 2, target


def has_asked(sandbox: Sandbox, sessions: int) -> bool:
    """Return whether a sandbox has been asked for the events of so many sessions."""
    return len(events_asked(sandbox)) >= sessions
