"""What a person sees when a run fails or is stopped, and what its state then holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import typing as t

import pytest

from tests.running import Output, expected, select, sync, wait_until
from tests.tap_process import SignalAt, TapProcess
from tests.test_corporate import listening
from tests.test_http import assert_one_line, run_tap

if t.TYPE_CHECKING:
    import socket
    from datetime import datetime
    from pathlib import Path

    from tests.sandbox import Sandbox

SIGNALS = pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
PAGE = b'{"data":[],"total":0,"page":1,"limit":1000,"pages":0}'


def ok(body: bytes) -> bytes:
    """Give a whole answer."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


# --- The log of a failing run --------------------------------------------------------


def test_a_closed_output_is_one_line(
    tmp_path: Path, sandbox: Sandbox, now: datetime
) -> None:
    """A target that has gone is told in one line, without the SDK's words for it."""
    reading, writing = os.pipe()
    os.close(reading)
    # Its end, where Python flushes what is left, is that of a Python of its own.
    tap = TapProcess(tmp_path / "tap", sandbox, now, stdout=writing, fresh=True)
    os.close(writing)
    assert tap.end() == 1
    assert tap.log.count("| CRITICAL |") == 1
    assert "the target has closed its input" in tap.log.splitlines()[-1]
    assert "unhandled" not in tap.log
    assert "Traceback" not in tap.log
    assert "| ERROR " not in tap.log


def test_a_header_that_cannot_be_sent_is_one_line(sandbox: Sandbox) -> None:
    """Letters that no header can hold end the run at once."""
    done = run_tap(sandbox.url, {"TAP_BUGSPULSE_USER_AGENT": "\u65e5\u672c"})
    assert_one_line(done, "user_agent")
    assert sandbox.requests == []


# --- A state is never replaced by a poorer one ---------------------------------------


@SIGNALS
def test_a_signal_at_once_keeps_the_state(
    tmp_path: Path, sandbox: Sandbox, now: datetime, signum: int
) -> None:
    """Stopped at its first request, a run ends with the marks it was started with."""
    state = sync(sandbox, now).state
    assert set(state["bookmarks"]) == {"crashes", "events", "network", "sessions"}
    sandbox.options.latency = 600.0
    sandbox.options.on_request = at = SignalAt(signum, 1)
    tap = TapProcess(tmp_path / "tap", sandbox, now, json.dumps(state), fresh=True)
    at.aim(tap)
    assert tap.end() == 128 + signum
    # A stream without any marks may be left out.
    written = tap.output().state["bookmarks"]
    assert written == {name: marks for name, marks in state["bookmarks"].items() if marks}


@SIGNALS
def test_a_signal_before_the_state_is_read_writes_none(
    tmp_path: Path, sandbox: Sandbox, now: datetime, signum: int
) -> None:
    """A run that does not know its state yet leaves the one that is saved alone."""
    state = tmp_path / "state.json"
    state.write_text(json.dumps(sync(sandbox, now).state))
    sandbox.reset()
    program = (
        "import os, sys; from tap_bugspulse.tap import TapBugsPulse\n"
        "class Tap(TapBugsPulse):\n"
        "    def load_state(self, state):\n"
        f"        os.kill(os.getpid(), {int(signum)})\n"
        "        super().load_state(state)\n"
        "Tap.cli()"
    )
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"api_key": "bp_x", "api_url": sandbox.url}))
    done = subprocess.run(
        [sys.executable, "-c", program, "--config", config, "--state", state],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 128 + signum
    assert done.stdout == ""
    assert "Stopped by SIG" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sandbox.requests == []


# --- Answers that never end ----------------------------------------------------------


def test_headers_that_drip_are_an_answer_too_late(now: datetime, tmp_path: Path) -> None:
    """A header that grows byte by byte is given up and asked for again."""
    connections: list[float] = []
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        connections.append(time.monotonic())
        with connection:
            try:
                while connection.recv(1 << 16):
                    if len(connections) > 1:
                        connection.sendall(ok(PAGE))
                        continue
                    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                    while not stop.wait(0.1):
                        connection.sendall(b"a")
            except OSError:
                stop.set()  # the tap has hung up

    with listening(serve) as port:
        tap = TapProcess(
            tmp_path / "tap",
            t.cast("Sandbox", Address(f"http://127.0.0.1:{port}/export")),
            now,
            json.dumps({}),
            minute=0.5,
            request_timeout=0.5,
        )
        assert tap.end() == 0, tap.log
    wait_until(stop.is_set)
    assert tap.log.count("trying again in ") == 1
    assert "crashes: trying again in 0 s after no answer in time" in tap.log


class Address:
    """An address and a key, which is all that a tap needs to know of a sandbox."""

    api_key = "bp_sandbox_key"

    def __init__(self, url: str) -> None:
        """Keep the address."""
        self.url = url


# --- What a 429 may tell -------------------------------------------------------------


def refuse(headers: str, times: int) -> t.Callable[[socket.socket], None]:
    """Serve an answer 429 with headers some times, then empty pages."""
    left = times

    def serve(connection: socket.socket) -> None:
        nonlocal left
        lines = f"HTTP/1.1 429 Slow down\r\nContent-Length: 0\r\n{headers}\r\n\r\n"
        with connection:
            while connection.recv(1 << 16):
                left -= 1
                connection.sendall(lines.encode() if left >= 0 else ok(PAGE))

    return serve


@pytest.mark.parametrize(
    ("headers", "waits"),
    [
        ("Retry-After: 1", ["1", "1", "1"]),
        # Not a number of seconds: as if nothing were told, a minute (of 0.6 s).
        ("Retry-After: nan", ["1", "1", "1"]),
        ("Retry-After: soon", ["1", "1", "1"]),
        # No wait, once; refused again, ever longer ones (all under half a second here).
        ("Retry-After: -5", ["0", "0", "0"]),
        ("Retry-After: Sun, 01 Mar 2020 00:00:00 GMT", ["0", "0", "0"]),
        # The tap's clock stands at 2026-03-01T12:00Z; seconds or milliseconds since 1970.
        ("X-RateLimit-Reset: 1772366401", ["1", "1", "1"]),
        ("X-RateLimit-Reset: 1772366401000", ["1", "1", "1"]),
    ],
)
def test_odd_words_about_waiting_are_survived(
    tmp_path: Path, now: datetime, headers: str, waits: list[str]
) -> None:
    """Whatever a 429 carries, there is a sane wait and then another try."""
    with listening(refuse(headers, times=3)) as port:
        address = t.cast("Sandbox", Address(f"http://127.0.0.1:{port}/export"))
        tap = TapProcess(tmp_path / "tap", address, now, minute=0.6)
        assert tap.end() == 0, tap.log
    words = "trying again in "
    told = [line.split(words)[1] for line in tap.log.splitlines() if words in line]
    assert told == [f"{wait} s after 429 Slow down for /crashes" for wait in waits]


def test_no_wait_is_not_told_for_ever(tmp_path: Path, now: datetime) -> None:
    """A 429 that always says to come at once is asked ever more seldom."""
    with listening(refuse("Retry-After: 0", times=4)) as port:
        address = t.cast("Sandbox", Address(f"http://127.0.0.1:{port}/export"))
        tap = TapProcess(tmp_path / "tap", address, now, minute=30.0)
        assert tap.end() == 0, tap.log
    words = "trying again in "
    told = [line.split(words)[1] for line in tap.log.splitlines() if words in line]
    assert [line.split(" ")[0] for line in told] == ["0", "1", "2", "4"]


@pytest.mark.parametrize("told", ["86401", "1e300"])
def test_a_wait_of_more_than_a_day_is_one_line(told: str) -> None:
    """A run does not sleep for days: it ends and says why."""
    with listening(refuse(f"Retry-After: {told}", times=9)) as port:
        done = run_tap(f"http://127.0.0.1:{port}/export")
    assert_one_line(done, "429 Slow down for /crashes", "to wait for more than a day")


# --- The real minute -----------------------------------------------------------------

LIMIT = 60
MANY = 126


@pytest.mark.slow
def test_a_real_minute_is_kept(sandbox: Sandbox, now: datetime) -> None:
    """126 requests at 60 in any 60 seconds: no 429, and hardly slower than allowed."""
    sandbox.options.requests_per_minute = LIMIT
    sandbox.options.counting = "sliding"
    sandbox.options.jitter = 0.02
    output = sync(
        sandbox,
        now,
        requests_per_minute=LIMIT,
        page_size=1,
        catalog=select(now, "sessions"),
    )
    assert output.table("sessions") == expected(sandbox.project, "sessions")
    requests = sandbox.requests
    took = requests[MANY - 1].at - requests[0].at
    floor = 60.0 * ((MANY - 1) // LIMIT)
    print(f"{len(requests)} requests, {MANY} in {took:.1f} s, floor {floor:.0f} s")
    assert [one.status for one in requests].count(429) == 0
    assert floor <= took <= 1.05 * floor


@pytest.mark.slow
def test_another_user_of_the_key_is_survived(sandbox: Sandbox, now: datetime) -> None:
    """A 429 that tells nothing is waited out for a real minute, and nothing is lost."""
    sandbox.options.requests_per_minute = LIMIT
    sandbox.options.counting = "sliding"
    sandbox.options.retry_after = "none"
    sandbox.spend(LIMIT)
    began = time.monotonic()
    output: Output = sync(
        sandbox, now, requests_per_minute=LIMIT, catalog=select(now, "crashes")
    )
    took = time.monotonic() - began
    print(f"{len(sandbox.requests)} requests in {took:.1f} s")
    assert output.table("crashes") == expected(sandbox.project, "crashes")
    assert [one.status for one in sandbox.requests] == [429, 200]
    assert took >= 60.0
