"""Python programs as processes of their own, without the second that a start takes.

Most of that second imports the SDK, or Meltano. So each process of pytest has a server for
each of the two, ``python -m tests.forks MODULE…``, that has imported these modules and run
none of them, and a `Fork` is a fork of this server: a process with a pid, a group, files,
directory, environment and signals of its own, which goes on, and ends, as the program does
that it is told to run. What a Python does before it imports the tap or Meltano, and that it
does, is for tests that ask for a fresh one.

Each fork has a process beside it that waits for its end and tells of it; when nobody is
left to be told, as pytest has ended, however that was, it ends the fork and its group.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

if t.TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parent.parent
# A forked program may not use the system libraries of macOS, where it asks for proxies.
CAN_FORK = sys.platform == "linux"
NUMBER = struct.Struct("!i")  # a pid, or an exit code
LONGEST = 1 << 20  # bytes of a request, more than a socket takes


class Kind(t.NamedTuple):
    """What forks are forks of.

    Attributes:
        python: A Python, that of a virtual environment.
        modules: What it imports before it forks.
        env: All that it sees of the environment until it forks; None is what pytest sees.
    """

    python: str
    modules: tuple[str, ...]
    env: tuple[tuple[str, str], ...] | None = None


TAP = Kind(sys.executable, ("tests.running",))


# --- The client ----------------------------------------------------------------------


class Fork:
    """A process that leads a group of its own; it is used like a `Popen`.

    It runs a program as Python does that is given its path, or a module as ``python -m``
    does.
    """

    def __init__(  # noqa: PLR0913 - each is one fact of the process
        self,
        kind: Kind,
        program: str | Path,
        *arguments: str,
        env: Mapping[str, str],
        cwd: Path,
        stdout: int,
        stderr: int,
    ) -> None:
        """Start it; it has the two file descriptors, and reads nothing."""
        given = {
            "program": str(program),
            "is_path": isinstance(program, Path),
            "arguments": arguments,
            "env": dict(env),
            "cwd": str(cwd),
        }
        self._told, told = os.pipe()
        try:
            request = json.dumps(given).encode()
            socket.send_fds(_connection(kind), [request], [stdout, stderr, told])
        finally:
            os.close(told)
        self.returncode: int | None = None
        self.pid = self._number()

    def _number(self) -> int:
        """Read what is told next of this process."""
        (number,) = NUMBER.unpack(os.read(self._told, NUMBER.size))
        return int(number)

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended and return its exit code, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: If it goes on for longer than these seconds.
        """
        if self.returncode is None:
            told = select.poll()  # which takes any descriptor, select those below 1024
            told.register(self._told, select.POLLIN)
            if not told.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = self._number()
            os.close(self._told)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def kill(self) -> None:
        """End it, unless it has ended."""
        self.send_signal(signal.SIGKILL)


Process = Fork | subprocess.Popen[bytes]


def start(
    module: str,
    *arguments: str,
    env: Mapping[str, str],
    stdout: int,
    stderr: int,
    fresh: bool = False,
) -> Process:
    """Start ``python -m MODULE ARGUMENT…`` in the checkout.

    It sees no more of the environment than it is given. A fresh one is a Python from its
    very start, not a fork of one.
    """
    if CAN_FORK and not fresh:
        streams = {"stdout": stdout, "stderr": stderr}
        return Fork(TAP, module, *arguments, env=env, cwd=ROOT, **streams)
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        cwd=ROOT,
        env=env,
    )


def run(
    module: str, *arguments: str, env: Mapping[str, str], fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE ARGUMENT…`` to its end, see `start`, and return what it wrote.

    Raises:
        subprocess.TimeoutExpired: If it goes on for a minute; it is then killed.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        streams = {"stdout": out.fileno(), "stderr": errors.fileno()}
        process = start(module, *arguments, env=env, fresh=fresh, **streams)
        try:
            code = process.wait(60)
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess([module], code, out.read(), errors.read())


_servers: dict[Kind, tuple[subprocess.Popen[bytes], socket.socket]] = {}


def _connection(kind: Kind) -> socket.socket:
    """Return the connection to the server of a kind, which the first request starts."""
    if kind not in _servers:
        # A request is one message.
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            server = subprocess.Popen(
                [kind.python, "-m", "tests.forks", *kind.modules],
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                cwd=ROOT,
                env=None if kind.env is None else dict(kind.env),
                # Ctrl-C reaches a whole group; this server ends when its input does.
                start_new_session=True,
            )
        _servers[kind] = server, ours
    return _servers[kind][1]


def stop() -> None:
    """Stop the servers."""
    while _servers:
        _, (server, connection) = _servers.popitem()
        connection.close()
        server.wait()


# --- The server ----------------------------------------------------------------------


def serve() -> dict[str, t.Any] | None:
    """Fork for each request on standard input until that ends.

    Returns:
        In each fork its request, in the server itself None.
    """
    client = socket.socket(fileno=sys.stdin.fileno())
    # Nobody waits for those that wait for forks.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        text, given, _, _ = socket.recv_fds(client, LONGEST, 3)
        if not text:
            return None
        if os.fork() == 0:
            break
        for descriptor in given:
            os.close(descriptor)
    out, errors, told = given
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        os.close(out)
        os.close(errors)
        attend(pid, told)
    # Leave all that is the server's, and take what the request gives.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    client.detach()
    os.close(told)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, out, errors)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    request: dict[str, t.Any] = json.loads(text)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    return request


def attend(pid: int, told: int) -> t.NoReturn:
    """Write a fork's pid and its end; end it, and its group, when nobody may ask any more."""
    # Whichever of the two comes to it first.
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)
    with contextlib.suppress(BrokenPipeError):
        os.write(told, NUMBER.pack(pid))
        ended = os.pidfd_open(pid)
        waiting = select.poll()
        waiting.register(ended, select.POLLIN)
        waiting.register(told, 0)  # an error comes in any case
        if ended not in dict(waiting.poll()):
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.write(told, NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def main() -> None:
    """Serve; a fork runs its program instead, as if it had been started with it."""
    # Whatever they import that a tap or Meltano imports later, and none of it is run.
    for module in sys.argv[1:]:
        importlib.import_module(module)
    # A fork neither looks through what was imported nor copies it, not at its end either.
    gc.collect()
    gc.freeze()
    request = serve()
    if request:
        sys.argv = [request["program"], *request["arguments"]]
        if request["is_path"]:
            sys.path[0] = str(Path(request["program"]).parent)
            runpy.run_path(request["program"], run_name="__main__")
        else:
            runpy.run_module(request["program"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
