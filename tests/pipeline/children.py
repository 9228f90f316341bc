"""Programs that tests and the demo start: what they may see, and how they end.

A person who runs these has settings for real accounts: `TARGET_SNOWFLAKE_*`,
`SNOWFLAKE_*`, `MELTANO_*`, proxies, files in the home directory. No child gets any of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.forks import Process

CHECKOUT = Path(__file__).resolve().parents[2]
"""The checkout that this file belongs to."""

ALLOWED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR")
"""What a child sees of the environment of the person who runs it; nothing else."""

STOP_SECONDS = 10
"""How long a child has to end by itself before it is killed."""


class ChildError(Exception):
    """A child did not start, or took longer than it may."""


def environment(home: Path, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what a child may see: `ALLOWED`, a home of its own that is made, and `settings`."""
    home.mkdir(parents=True, exist_ok=True)
    # Proxies come from system settings as well; nothing here may go through one.
    own = {"HOME": str(home), "NO_PROXY": "127.0.0.1,localhost"}
    return {**allowed(), **own, **(settings or {})}


def allowed() -> dict[str, str]:
    """Return what a child sees of the environment of the person who runs it."""
    return {name: os.environ[name] for name in ALLOWED if name in os.environ}


@contextlib.contextmanager
def serving(module: str, *arguments: str, home: Path) -> Iterator[dict[str, Any]]:
    """Run a server of the checkout while the block runs, and yield what it printed.

    `module` takes `--until-stdin-closes`, so it ends also when this process is killed, and
    prints a line of JSON when it is ready, within a minute.

    Raises:
        ChildError: It ended, or printed nothing in time.
    """
    command = [sys.executable, "-m", module, *arguments, "--until-stdin-closes"]
    with start(command, home) as child:
        try:
            ready = answer_of(child, 60)
            if ready is None:
                msg = f"{module} did not start within a minute"
                raise ChildError(msg)
            yield ready
        finally:
            stop(child)


def start(
    command: Sequence[str],
    home: Path,
    settings: Mapping[str, str] | None = None,
    errors: IO[str] | None = None,
) -> subprocess.Popen[str]:
    """Start a child in the checkout, with pipes for its input and output.

    What it writes to standard error goes to `errors`, or to the terminal. Ctrl-C reaches a
    whole group, and it has its own: it is stopped by closing its input.
    """
    return subprocess.Popen(
        command,
        cwd=CHECKOUT,
        env=environment(home, settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    )


def answer_of(child: subprocess.Popen[str], seconds: float) -> dict[str, Any] | None:
    """Read a line of JSON of a child; kill it when none comes, and return None."""
    timer = threading.Timer(seconds, child.kill)
    timer.start()
    try:
        line = pipe(child.stdout).readline()
    finally:
        timer.cancel()
    answer: dict[str, Any] | None = json.loads(line) if line else None
    return answer


def stop(child: subprocess.Popen[str]) -> None:
    """Close the input of a server and wait for its end; kill it when it takes too long."""
    # A server that is gone already has closed the other end.
    with contextlib.suppress(BrokenPipeError):
        pipe(child.stdin).close()
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()


def pipe(stream: IO[str] | None) -> IO[str]:
    """Narrow the type of a stream that was opened as a pipe."""
    if stream is None:
        msg = "no pipe was asked for"
        raise ValueError(msg)
    return stream


class Answering:
    """A child that answers lines of JSON, from the first question to leaving `with`.

    Its start takes a second or more, so that many questions are asked of one.
    """

    def __init__(
        self, python: Path, module: str, *, home: Path, settings: Mapping[str, str]
    ) -> None:
        """Start nothing yet; `home` stands for the child's home directory."""
        self._command = [str(python), "-m", module]
        self._home, self._settings = home, settings
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Be ready for questions."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the child."""
        if self._child:
            with self._child as child:
                stop(child)
            self._child = None

    def answer(self, question: object, seconds: float) -> dict[str, Any]:
        """Send the child a line, having started it where needed, and return its answer.

        Raises:
            ChildError: It gave no answer in time.
        """
        if not self._child:
            self._child = start(self._command, self._home, self._settings)
        line = pipe(self._child.stdin)
        line.write(json.dumps(question) + "\n")
        line.flush()
        answer = answer_of(self._child, seconds)
        if answer is None:
            self.__exit__()
            msg = f"{self._command[-1]} did not answer within {seconds:g} seconds"
            raise ChildError(msg)
        return answer


def run_group(child: Process, name: str, *, seconds: float) -> int:
    """Wait for the end of a child that leads a group, and leave nothing of it behind.

    Return its exit code, 128 + n where signal n ended it.

    Raises:
        ChildError: It took longer than it may; `name` is what it is called there.
    """
    try:
        code = child.wait(seconds)
    except subprocess.TimeoutExpired:
        msg = f"{name} took longer than {seconds:g} seconds"
        raise ChildError(msg) from None
    finally:
        end_group(child)
    return 128 - code if code < 0 else code


def end_group(child: Process) -> None:
    """End a child and everything in its group, first politely."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_SECONDS)
    # The group is empty where everything ended in time.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
