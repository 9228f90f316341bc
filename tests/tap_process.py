"""The real tap in a process of its own, by a clock that the test sets.

``python -m tests.tap_process CLOCK [ARGUMENTS]`` is the tap's command line; ``CLOCK`` is
JSON: ``now`` the instant it is, ``minute`` the seconds a minute takes, ``stopwatch`` the
path of a file whose size in bytes is the reading of the stopwatch, or null.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import sys
import typing as t
from datetime import datetime, timedelta
from pathlib import Path

from tap_bugspulse.http import Clock
from tests.forks import start
from tests.running import Output, Row, tap_class
from tests.sandbox import Project, Request, Sandbox

ENDS_WITHIN = 60.0  # seconds, far more than any of these processes takes


def clock(now: datetime, minute: float, stopwatch: Path | None = None) -> str:
    """Return the first argument of this program."""
    path = str(stopwatch) if stopwatch else None
    return json.dumps({"now": now.isoformat(), "minute": minute, "stopwatch": path})


def ticking(stopwatch: Path) -> t.Callable[[Request, Project], None]:
    """Return a sandbox's ``on_request`` that lets a second pass on a stopwatch."""
    stopwatch.touch()

    def tick(request: Request, project: Project) -> None:
        del request, project
        with stopwatch.open("ab") as seconds:
            seconds.write(b".")

    return tick


class TapProcess:
    """A tap that runs as a process; what it writes goes to files in a folder.

    Args:
        folder: Where its files are put; every process needs one of its own.
        sandbox: The API it talks to.
        now: What its clock says.
        state: The state, or the text of its file; None runs it without one.
        minute: Seconds that its minute takes.
        stopwatch: File whose size in bytes is the reading of its stopwatch.
        stdout: File descriptor that it writes its messages to instead of a file.
        fresh: Whether it is a Python from its very start, see `tests.forks`.
        catalog: The catalog; None runs it without one.
        environment: Variables that it sees besides those of whoever runs the tests.
        settings: Settings of the tap; pacing is off unless they say otherwise.
    """

    def __init__(  # noqa: PLR0913 - each is one fact of the process
        self,
        folder: Path,
        sandbox: Sandbox,
        now: datetime,
        state: Row | str | None = None,
        *,
        minute: float = 60.0,
        stopwatch: Path | None = None,
        stdout: int | None = None,
        fresh: bool = False,
        catalog: Row | None = None,
        environment: t.Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        """Write the files and start the process."""
        folder.mkdir(parents=True)
        self._written, self._errors = folder / "stdout", folder / "stderr"
        config = {
            "api_url": sandbox.url,
            "api_key": sandbox.api_key,
            "requests_per_minute": 1_000_000,
            **settings,
        }
        arguments = []
        files = {"config": config, "state": state, "catalog": catalog}
        for name, given in files.items():
            if given is not None:
                text = given if isinstance(given, str) else json.dumps(given)
                (folder / f"{name}.json").write_text(text)
                arguments += [f"--{name}", str(folder / f"{name}.json")]
        with self._written.open("wb") as out, self._errors.open("wb") as errors:
            self.process = start(
                "tests.tap_process",
                clock(now, minute, stopwatch),
                *arguments,
                # Settings of whoever runs the tests are none of the tap's.
                env={
                    name: value
                    for name, value in os.environ.items()
                    if not name.startswith(("TAP_BUGSPULSE_", "SINGER_SDK_"))
                }
                | dict(environment or {}),
                stdout=out.fileno() if stdout is None else stdout,
                stderr=errors.fileno(),
                fresh=fresh,
            )

    @property
    def written(self) -> str:
        """What it has written to stdout."""
        return self._written.read_text()

    @property
    def log(self) -> str:
        """What it has written to stderr."""
        return self._errors.read_text()

    @property
    def last(self) -> str:
        """The last line it has written to stderr."""
        return self.log.splitlines()[-1]

    def end(self) -> int:
        """Wait until the process has ended, without a traceback, and give its exit code.

        Raises:
            subprocess.TimeoutExpired: If it goes on for a minute; it is then killed.
        """
        try:
            code = self.process.wait(ENDS_WITHIN)
        finally:
            self.process.kill()
            self.process.wait()
        assert "Traceback" not in self.log, self.log
        return code

    def output(self) -> Output:
        """Return the messages it wrote; a last line that was cut is left out."""
        return Output.read(self.written)


class SignalAt:
    """Sends a signal to a tap when the sandbox gets one certain request.

    It is a sandbox's ``on_request``: the signal is on its way before the request is
    answered, so the moment is the same in every run of the test.
    """

    def __init__(self, signum: int, number: int, path: str | None = None) -> None:
        """Choose the signal and the request, counted from 1 among those for ``path``."""
        self._signum, self._number, self._path = signum, number, path
        self._count = 0
        self.sent = False
        self._meant = queue.SimpleQueue[TapProcess]()

    def aim(self, tap: TapProcess) -> None:
        """Say which process is meant; a request waits for that."""
        self._meant.put(tap)

    def __call__(self, request: Request, project: Project) -> None:
        """Count a request and send the signal if it is the one."""
        del project
        if self._path in {None, request.path}:
            self._count += 1
            if self._count == self._number:
                tap = self._meant.get(timeout=ENDS_WITHIN)
                self.sent = True
                tap.process.send_signal(self._signum)


class Starter:
    """Starts taps against one sandbox, each with files of its own."""

    def __init__(self, sandbox: Sandbox, folder: Path, now: datetime) -> None:
        self._sandbox, self._folder, self._now = sandbox, folder, now
        self._numbers = itertools.count(1)

    def __call__(
        self,
        state: Row | str | None = None,
        *,
        after: timedelta = timedelta(),
        at: SignalAt | None = None,
        **settings: t.Any,
    ) -> TapProcess:
        """Start one, so long after the first, that may get a signal; see `TapProcess`."""
        if at:
            self._sandbox.options.on_request = at
        folder = self._folder / f"tap {next(self._numbers)}"
        tap = TapProcess(folder, self._sandbox, self._now + after, state, **settings)
        if at:
            at.aim(tap)
        return tap


def main() -> None:
    """Run the tap's command line by the clock of the first argument."""
    given = json.loads(sys.argv.pop(1))
    now = datetime.fromisoformat(given["now"])
    tap = tap_class(now, given["minute"])
    if given["stopwatch"]:
        stopwatch = Path(given["stopwatch"])
        tap.clock = Clock(lambda: now, lambda: float(stopwatch.stat().st_size), given["minute"])
    tap.cli()


if __name__ == "__main__":
    main()
