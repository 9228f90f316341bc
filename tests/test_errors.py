"""What a person sees when a run fails or is stopped, and what its state then holds."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import typing as t

import pytest

from tests.conftest import tiered
from tests.running import PRIMARY_KEYS, Output, expected, select, sync, wait_until
from tests.tap_process import SignalAt, TapProcess
from tests.test_corporate import listening
from tests.test_http import assert_one_line, run_tap

if t.TYPE_CHECKING:
    import socket
    from datetime import datetime
    from pathlib import Path

    from tests.sandbox import Sandbox

SIGNALS = pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
PAGE = b'{"data":[],"total":0,"page":1,"limit":1000,"pages":0}'


def ok(body: bytes) -> bytes:
    """Return a whole answer."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


# --- The log of a failing run --------------------------------------------------------


def test_a_closed_output_is_one_line(tmp_path: Path, sandbox: Sandbox, now: datetime) -> None:
    """A target that has gone is named in one line, without the SDK's words for it."""
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
    """Stopped at its first request, a run ends with the state it was started with."""
    state = sync(sandbox, now).state
    assert set(state["bookmarks"]) == {"crashes", "events", "network", "sessions"}
    sandbox.options.latency = 600.0
    sandbox.options.on_request = at = SignalAt(signum, 1)
    tap = TapProcess(tmp_path / "tap", sandbox, now, json.dumps(state), fresh=True)
    at.aim(tap)
    assert tap.end() == 128 + signum
    # A stream without a bookmark may be left out.
    written = tap.output().state["bookmarks"]
    assert written == {name: one for name, one in state["bookmarks"].items() if one}


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
    ("headers", "wait"),
    [
        pytest.param("Retry-After: 1", 1, marks=pytest.mark.long),
        # Not a number of seconds: as if nothing were asked for, a minute (of 0.6 s).
        pytest.param("Retry-After: nan", 1, marks=pytest.mark.long),
        ("Retry-After: soon", 1),
        # None at all: a sixtieth of a minute.
        ("Retry-After: -5", 0),
        ("Retry-After: Sun, 01 Mar 2020 00:00:00 GMT", 0),
        # The tap's clock stands at 2026-03-01T12:00Z; seconds or milliseconds since 1970.
        pytest.param("X-RateLimit-Reset: 1772366401", 1, marks=pytest.mark.long),
        ("X-RateLimit-Reset: 1772366401000", 1),
    ],
)
def test_odd_words_about_waiting_are_survived(
    tmp_path: Path, now: datetime, headers: str, wait: int
) -> None:
    """Whatever a 429 carries, there is a sane wait and then another try."""
    with listening(refuse(headers, times=2)) as port:
        address = t.cast("Sandbox", Address(f"http://127.0.0.1:{port}/export"))
        tap = TapProcess(tmp_path / "tap", address, now, minute=0.6)
        assert tap.end() == 0, tap.log
    words = "trying again in "
    told = [line.split(words)[1] for line in tap.log.splitlines() if words in line]
    assert told == 2 * [f"{wait} s after 429 Slow down for /crashes"]


def test_a_429_that_asks_for_no_wait_gets_one(tmp_path: Path, now: datetime) -> None:
    """A 429 that says to come back at once is asked again a second later, every time."""
    with listening(refuse("Retry-After: 0", times=2)) as port:
        address = t.cast("Sandbox", Address(f"http://127.0.0.1:{port}/export"))
        began = time.monotonic()
        tap = TapProcess(tmp_path / "tap", address, now)
        assert tap.end() == 0, tap.log
    assert time.monotonic() - began >= 2.0
    assert tap.log.count("trying again in 1 s after 429 Slow down") == 2


@pytest.mark.parametrize("seconds", ["86401", "1e300"])
def test_a_wait_of_more_than_a_day_is_one_line(seconds: str) -> None:
    """A run does not sleep for days: it ends and says why."""
    with listening(refuse(f"Retry-After: {seconds}", times=9)) as port:
        done = run_tap(f"http://127.0.0.1:{port}/export")
    assert_one_line(done, "429 Slow down", "to wait for more than a day")


def test_nothing_but_429_ends_the_run(tmp_path: Path, now: datetime) -> None:
    """After 15 minutes of nothing but 429 the last line asks who else uses the key."""
    with listening(refuse("Retry-After: 0", times=1_000_000)) as port:
        address = t.cast("Sandbox", Address(f"http://127.0.0.1:{port}/export"))
        tap = TapProcess(tmp_path / "tap", address, now, minute=0.06)
        assert tap.end() == 1
    last = tap.log.splitlines()[-1]
    assert "429 Slow down: nothing else for 1 s. Is the key used elsewhere?" in last
    assert "Traceback" not in tap.log


def test_a_time_limit_ends_a_wait_that_the_api_asks_for(
    tmp_path: Path, sandbox: Sandbox, now: datetime
) -> None:
    """A 429 that asks for an hour holds no run for longer than its limit; all is kept."""
    asked = itertools.count(1)
    sandbox.options.minute = 60 * 3600.0  # a 429 asks for a sixtieth of it
    sandbox.options.script = lambda request: (
        "429" if request.path == "/events" and next(asked) > 20 else None
    )
    tap = TapProcess(tmp_path / "tap", sandbox, now, max_runtime_minutes=0.05, concurrency=4)
    assert tap.end() == 0, tap.log
    assert re.search(r"waiting 3[56]\d\d s, as the 429 response asked", tap.log)
    assert "summary status=incomplete" in tap.log.splitlines()[-1]
    first = tap.output()
    fetched = {row["sessionId"] for row in first.rows("events")}
    assert 10 <= len(fetched) <= 20
    sandbox.options.script = None
    sandbox.reset()
    second = sync(sandbox, now, first.state)
    again = {one.query["sessionId"] for one in sandbox.requests if one.path == "/events"}
    assert not fetched & again
    for stream in PRIMARY_KEYS:
        both = first.table(stream) | second.table(stream)
        assert both == expected(sandbox.project, stream)


# --- An endpoint that is refused -----------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "status"),
    tiered(
        [
            ("network", "404 Not Found"),
            ("sessions", "403 Forbidden"),
            ("events", "402 Payment Required"),
            ("events", "410 Gone"),
            ("crashes", "402 Payment Required"),
        ],
        quick=3,
    ),
)
def test_a_refused_endpoint_stops_no_other_stream(
    tmp_path: Path, sandbox: Sandbox, now: datetime, stream: str, status: str
) -> None:
    """The run ends with 1; its last line names the stream that may be deselected."""
    path = f"/{stream}"
    sandbox.options.script = lambda request: status[:3] if request.path == path else None
    tap = TapProcess(tmp_path / "tap", sandbox, now)
    assert tap.end() == 1
    lines = tap.log.splitlines()
    assert f"{status} for {path}" in lines[-1]
    assert f"deselect {stream} to leave it out" in lines[-1]
    assert "summary status=incomplete" in lines[-2]
    assert "Traceback" not in tap.log
    # Events take their sessions from /sessions.
    missing = {stream} | ({"events"} if stream == "sessions" else set())
    first = tap.output()
    for one in PRIMARY_KEYS:
        rows = {} if one in missing else expected(sandbox.project, one)
        assert first.table(one) == rows
    sandbox.options.script = None
    second = sync(sandbox, now, first.state)
    for one in PRIMARY_KEYS:
        assert first.table(one) | second.table(one) == expected(sandbox.project, one)


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
        catalog=select(now, "sessions", "network"),
    )
    for stream in ("sessions", "network"):
        assert output.table(stream) == expected(sandbox.project, stream)
    requests = sandbox.requests
    took = requests[MANY - 1].at - requests[0].at
    floor = 60.0 * ((MANY - 1) // LIMIT)
    print(f"{len(requests)} requests, {MANY} in {took:.1f} s, floor {floor:.0f} s")
    assert [one.status for one in requests].count(429) == 0
    assert floor <= took <= 1.05 * floor


@pytest.mark.slow
def test_another_user_of_the_key_is_survived(sandbox: Sandbox, now: datetime) -> None:
    """A 429 that asks for no wait is waited out for a real minute, and nothing is lost."""
    sandbox.options.requests_per_minute = LIMIT
    sandbox.options.counting = "sliding"
    sandbox.options.retry_after = "none"
    sandbox.spend(LIMIT)
    began = time.monotonic()
    output: Output = sync(sandbox, now, requests_per_minute=LIMIT, catalog=select(now, "crashes"))
    took = time.monotonic() - began
    print(f"{len(sandbox.requests)} requests in {took:.1f} s")
    assert output.table("crashes") == expected(sandbox.project, "crashes")
    assert [one.status for one in sandbox.requests] == [429, 200]
    assert took >= 60.0
