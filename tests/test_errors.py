"""What a person sees when a run fails or is stopped, and what its state then holds."""

from __future__ import annotations

import itertools
import re
import socket
import threading
import time
import typing as t
from datetime import datetime
from pathlib import Path

import pytest

from tests.running import assert_whole, expected, select, sync, wait_until
from tests.sandbox import Options, Request, Sandbox
from tests.tap_process import Starter
from tests.test_corporate import listening
from tests.test_http import assert_one_line, run_tap

PAGE = b'{"data":[],"total":0,"page":1,"limit":1000,"pages":0}'


def ok(body: bytes) -> bytes:
    """Return a whole answer."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def test_a_header_that_cannot_be_sent_is_one_line(sandbox: Sandbox) -> None:
    """Letters that no header can hold end the run at once."""
    done = run_tap(sandbox.url, {"TAP_BUGSPULSE_USER_AGENT": "\u65e5\u672c"})
    assert_one_line(done, "user_agent")
    assert sandbox.requests == []


# --- Answers that never end ----------------------------------------------------------


def test_headers_that_drip_are_an_answer_too_late() -> None:
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
        done = run_tap(at(port), {"TAP_BUGSPULSE_REQUEST_TIMEOUT": "0.5"}, minute=0.5)
    assert done.returncode == 0, done.stderr
    wait_until(stop.is_set)
    assert done.stderr.count("trying again in ") == 1
    assert "crashes: trying again in 0 s after no answer in time" in done.stderr


def at(port: int) -> str:
    """Return the address of an API on loopback."""
    return f"http://127.0.0.1:{port}/export"


# --- What a 429 may tell -------------------------------------------------------------


def refuse(headers: str, times: int) -> t.Callable[[socket.socket], None]:
    """Serve an answer 429 with headers some times, then empty pages."""
    refusal = f"HTTP/1.1 429 Slow down\r\nContent-Length: 0\r\n{headers}\r\n\r\n".encode()
    answers = itertools.chain(itertools.repeat(refusal, times), itertools.repeat(ok(PAGE)))

    def serve(connection: socket.socket) -> None:
        with connection:
            while connection.recv(1 << 16):
                connection.sendall(next(answers))

    return serve


@pytest.mark.parametrize(
    ("headers", "minute", "wait"),
    [
        # To come back at once: a sixtieth of a minute is waited, every time.
        ("Retry-After: 0", 36.0, 0.6),
        ("Retry-After: -5", 0.6, 0),
        ("Retry-After: Sun, 01 Mar 2020 00:00:00 GMT", 0.6, 0),
        pytest.param("Retry-After: 1", 0.6, 1, marks=pytest.mark.long),
        # Not a number of seconds: as if nothing were asked for, a minute.
        ("Retry-After: soon", 0.6, 0.6),
        pytest.param("Retry-After: nan", 0.6, 0.6, marks=pytest.mark.long),
        pytest.param(f"Retry-After: 1 Mar 1{20 * '0'} 0:00", 0.6, 0.6, marks=pytest.mark.long),
        # The tap's clock stands at 2026-03-01T12:00Z; seconds or milliseconds since 1970.
        pytest.param("X-RateLimit-Reset: 1772366401", 0.6, 1, marks=pytest.mark.long),
        ("X-RateLimit-Reset: 1772366400600", 0.6, 0.6),
    ],
)
def test_odd_words_about_waiting_are_survived(headers: str, minute: float, wait: float) -> None:
    """Whatever a 429 carries, there is a sane wait and then another try."""
    began = time.monotonic()
    with listening(refuse(headers, times=2)) as port:
        done = run_tap(at(port), minute=minute)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began >= 2 * wait
    told = re.findall("trying again in (.*)", done.stderr)
    assert told == 2 * [f"{wait:.0f} s after 429 Slow down for /crashes"]


@pytest.mark.parametrize("seconds", ["86401", "1e300"])
def test_a_wait_of_more_than_a_day_is_one_line(seconds: str) -> None:
    """A run does not sleep for days: it ends and says why."""
    with listening(refuse(f"Retry-After: {seconds}", times=9)) as port:
        done = run_tap(at(port))
    assert_one_line(done, "429 Slow down", "to wait for more than a day")


def test_nothing_but_429_ends_the_run() -> None:
    """After 15 minutes of nothing but 429 the last line asks who else uses the key."""
    with listening(refuse("Retry-After: 0", times=1_000_000)) as port:
        done = run_tap(at(port), minute=0.06)
    assert_one_line(done, "429 Slow down: nothing else for 1 s. Is the key used elsewhere?")


def test_a_time_limit_ends_a_wait_that_the_api_asks_for(
    tmp_path: Path, start: Starter, sandbox: Sandbox, now: datetime
) -> None:
    """A 429 that asks for an hour holds no run for longer than its limit; all is kept."""
    stopwatch = tmp_path / "stopwatch"
    stopwatch.touch()
    asked = itertools.count(1)

    def script(request: Request) -> str | None:
        if request.path != "/events" or next(asked) <= 20:
            return None
        stopwatch.write_bytes(60 * b".")  # a minute has passed
        return "429"

    sandbox.options.script, sandbox.options.minute = script, 60 * 3600.0  # it asks for a sixtieth
    tap = start(stopwatch=stopwatch, max_runtime_minutes=1, concurrency=4)
    assert tap.end() == 0, tap.log
    assert re.search(r"waiting 3[56]\d\d s, as the 429 response asked", tap.log)
    assert "summary status=incomplete" in tap.last
    first = tap.output()
    fetched = {row["sessionId"] for row in first.rows("events")}
    assert 10 <= len(fetched) <= 20
    sandbox.options.script = None
    second = sync(sandbox, now, first.state)
    assert not fetched.intersection(second.asked)
    assert_whole(sandbox.project, first, second)


def test_a_time_limit_ends_a_wait_between_two_tries(
    start: Starter, sandbox: Sandbox, now: datetime
) -> None:
    """A run whose limit is reached long after a failure does not wait for the next try."""
    sandbox.options.script = lambda _: "503"
    began = time.monotonic()
    only = select(now, "crashes")
    tap = start(catalog=only, minute=1800.0, max_runtime_minutes=0.01)
    assert tap.end() == 0, tap.log
    assert time.monotonic() - began < 30  # a first failure is waited out for a minute
    assert "crashes: trying again in 60 s after 503" in tap.log
    assert "summary status=incomplete" in tap.last


# --- The real minute -----------------------------------------------------------------

LIMIT = 60
MANY = 126


@pytest.mark.slow
def test_a_real_minute_is_kept(sandbox: Sandbox, now: datetime) -> None:
    """126 requests at 60 in any 60 seconds: no 429, and hardly slower than allowed."""
    sandbox.options = Options(requests_per_minute=LIMIT, counting="sliding", jitter=0.02)
    listings = select(now, "sessions", "network")
    output = sync(sandbox, now, requests_per_minute=LIMIT, page_size=1, catalog=listings)
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
    sandbox.options = Options(requests_per_minute=LIMIT, counting="sliding", retry_after="none")
    sandbox.spend(LIMIT)
    began = time.monotonic()
    output = sync(sandbox, now, requests_per_minute=LIMIT, catalog=select(now, "crashes"))
    took = time.monotonic() - began
    print(f"{len(sandbox.requests)} requests in {took:.1f} s")
    assert output.table("crashes") == expected(sandbox.project, "crashes")
    assert [one.status for one in sandbox.requests] == [429, 200]
    assert took >= 60.0
