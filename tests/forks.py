"""Python programs as processes of their own, without the second that a start takes.

Most of that second imports the SDK, or Meltano. So each process of pytest has a server for
each of the two, ``python -m tests.forks MODULE…``, that has imported these modules and run
none of them, and a `Fork` is a fork of this server: a process with a pid, a group, files,
directory, environment and signals of its own, which goes on, and ends, as the program does
that it is told to run. What a Python does before it imports the tap or Meltano, and that it
does, is for tests that ask for a fresh one.

A server ends when pytest does, however that ends, and with it every fork and its group.
"""

from __future__ import annotations

import contextlib
import functools
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
SIZE = struct.Struct("!Q")  # of a request
NUMBER = struct.Struct("!i")  # a pid, or an exit code


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
        request = json.dumps(given).encode()
        connection = _server(kind)[1]
        self._told, told = os.pipe()
        try:
            socket.send_fds(connection, [SIZE.pack(len(request))], [stdout, stderr, told])
        finally:
            os.close(told)
        connection.sendall(request)
        self.returncode: int | None = None
        self.pid = self._number()

    def _number(self) -> int:
        """Read what the server tells next of this process."""
        (number,) = NUMBER.unpack(os.read(self._told, NUMBER.size))
        return int(number)

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended and give its exit code, negative for a signal.

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

    Args:
        module: The module.
        arguments: Its arguments.
        env: All that it sees of the environment.
        stdout: File descriptor of its output.
        stderr: File descriptor of its log.
        fresh: Whether it is a Python from its very start, not a fork of one.
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
    """Run ``python -m MODULE ARGUMENT…`` to its end, see `start`, and give what it wrote.

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


_servers: list[tuple[subprocess.Popen[bytes], socket.socket]] = []


@functools.cache
def _server(kind: Kind) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the server of a kind for this process, once."""
    ours, its = socket.socketpair()
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
    _servers.append((server, ours))
    return server, ours


def stop() -> None:
    """Stop the servers, and what is left of their forks."""
    while _servers:
        server, connection = _servers.pop()
        connection.close()
        server.wait()
    _server.cache_clear()


# --- The server ----------------------------------------------------------------------


class Server:
    """Forks itself for each request on its standard input, and tells how each fork ends."""

    def __init__(self) -> None:
        """Take over standard input."""
        self._client = socket.socket(fileno=sys.stdin.fileno())
        self._running: dict[int, int] = {}  # by pid, where its end is told
        self._woken, waking = socket.socketpair()
        self._waking = waking
        for end in (self._woken, waking):
            end.settimeout(0)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waking.fileno())

    def serve(self) -> dict[str, t.Any] | None:
        """Serve until the input ends.

        Returns:
            In each fork its request, in the server itself None.
        """
        while True:
            ready, _, _ = select.select([self._client, self._woken], [], [])
            if self._woken in ready:
                self._woken.recv(4096)
                self._tell_of_ends()
            if self._client in ready:
                head, given, _, _ = socket.recv_fds(self._client, SIZE.size, 3)
                if not head:
                    break
                (size,) = SIZE.unpack(head)
                request = json.loads(self._client.recv(size, socket.MSG_WAITALL))
                if (pid := os.fork()) == 0:
                    self._become(request, *given)
                    return t.cast("dict[str, t.Any]", request)
                # Whichever of the two comes to it first.
                with contextlib.suppress(PermissionError, ProcessLookupError):
                    os.setpgid(pid, pid)
                out, errors, told = given
                os.close(out)
                os.close(errors)
                self._running[pid] = told
                os.write(told, NUMBER.pack(pid))
        for pid in self._running:
            os.killpg(pid, signal.SIGKILL)
        return None

    def _tell_of_ends(self) -> None:
        """Tell the client of each fork that has ended, and of how."""
        for pid in list(self._running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                told = self._running.pop(pid)
                # Nobody may ask any more.
                with contextlib.suppress(BrokenPipeError):
                    os.write(told, NUMBER.pack(os.waitstatus_to_exitcode(status)))
                os.close(told)

    def _become(self, request: dict[str, t.Any], out: int, errors: int, told: int) -> None:
        """Leave all that is the server's, and take what the request gives."""
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._client.detach()
        self._woken.close()
        self._waking.close()
        for other in (*self._running.values(), told):
            os.close(other)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, descriptor in enumerate((nothing, out, errors)):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])


def main() -> None:
    """Serve; a fork runs its program instead, as if it had been started with it."""
    # Whatever they import that a tap or Meltano imports later, and none of it is run.
    for module in sys.argv[1:]:
        importlib.import_module(module)
    # A fork neither looks through what was imported nor copies it, not at its end either.
    gc.collect()
    gc.freeze()
    request = Server().serve()
    if request:
        sys.argv = [request["program"], *request["arguments"]]
        if request["is_path"]:
            sys.path[0] = str(Path(request["program"]).parent)
            runpy.run_path(request["program"], run_name="__main__")
        else:
            runpy.run_module(request["program"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
