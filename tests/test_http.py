"""Pacing, waiting, retries, errors, and a key that stays where it belongs."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
import typing as t
from collections import Counter
from datetime import datetime

import pytest

from tests import forks
from tests.conftest import LARGER, NOW, sweep
from tests.running import KEPT, PRIMARY_KEYS, assert_whole, counted, expected, select, sync
from tests.sandbox import Options, Request, Sandbox, generate
from tests.tap_process import clock

Counting = t.Literal["fixed", "sliding", "bucket"]
Telling = t.Literal["seconds", "date", "reset", "x-reset", "none"]


def refused(sandbox: Sandbox) -> int:
    """Return how many requests were answered with 429."""
    return [request.status for request in sandbox.requests].count(429)


# --- Pacing and waiting --------------------------------------------------------------


@pytest.mark.parametrize(
    ("counting", "minute", "theirs"),
    [
        # In a minute this short, what is late by a twentieth of it is so by the machine.
        ("sliding", 3.0, 2.85),
        *(pytest.param(one, 9.0, 9.0, marks=pytest.mark.long) for one in t.get_args(Counting)),
    ],
)
@LARGER
def test_the_limit_is_used_and_never_passed(
    sandbox: Sandbox, now: datetime, counting: Counting, minute: float, theirs: float
) -> None:
    """However the API counts, two minutes of 60 requests meet no 429 and waste little."""
    sandbox.options = Options(requests_per_minute=60, minute=theirs, counting=counting, jitter=0.01)
    limit: dict[str, t.Any] = {"requests_per_minute": 60, "minute": minute}
    began = time.monotonic()
    sync(sandbox, now, **limit, catalog=select(now, "sessions", "events"))
    took = time.monotonic() - began
    requests = len(sandbox.requests)
    assert 110 < requests <= 120
    assert refused(sandbox) == 0
    # The first 60 are free, and each later minute has 60; it may take a tenth longer
    # with a minute this short.
    assert took <= (requests - 60) / 60 * minute * 1.1 + minute


@LARGER
def test_requests_per_minute_leaves_room_for_others(sandbox: Sandbox, now: datetime) -> None:
    """With a lower pace than the API allows, others of the key get the rest."""
    sandbox.options = Options(requests_per_minute=60, minute=1.5, counting="sliding")
    sandbox.spend(30)
    listings = select(now, "sessions", "network", "crashes")
    sync(sandbox, now, minute=1.5, requests_per_minute=30, catalog=listings, page_size=8)
    assert 30 < len(sandbox.requests) <= 60
    assert refused(sandbox) == 0


@sweep("telling", ["seconds", "date", "reset", "x-reset", "none"], quick=[("date",)])
def test_a_full_minute_is_waited_out_as_told(
    sandbox: Sandbox, now: datetime, telling: Telling
) -> None:
    """When others use up the limit, the tap waits and then loads everything."""
    sandbox.options = Options(requests_per_minute=60, minute=2.0, retry_after=telling)
    sandbox.spend(60)
    # The date in a header is real time, whatever the tap's clock shows otherwise.
    output = sync(sandbox, now, minute=2.0, catalog=select(now, "crashes"), running_clock=True)
    assert output.table("crashes") == expected(sandbox.project, "crashes")
    # Seconds in a header are whole: one that is told too early is told once more.
    assert 1 <= refused(sandbox) <= 3


def test_a_refusal_alone_never_exhausts_patience(sandbox: Sandbox, now: datetime) -> None:
    """More answers 429 than a request has tries are waited out."""
    sandbox.options.script = lambda request: "429" if request.number <= 20 else None
    sandbox.options.minute = 0  # so that a 429 asks to wait no time at all
    output = sync(sandbox, now, minute=1.0, catalog=select(now, "crashes"))
    assert output.table("crashes") == expected(sandbox.project, "crashes")
    assert refused(sandbox) == 20


# --- Retries -------------------------------------------------------------------------

FAULTS = ["429", "500", "cut", "html", "not_json", "reset"]
MUCH_THE_SAME = ["408", "502", "503", "data_not_list", "drip", "no_data", "timeout"]


@sweep("fault", FAULTS + MUCH_THE_SAME, quick=[(one,) for one in FAULTS])
def test_a_passing_fault_costs_a_retry_and_no_row(
    sandbox: Sandbox, now: datetime, fault: str
) -> None:
    """One fault in each endpoint is tried again, and everything arrives once."""
    hit: set[str] = set()

    def script(request: Request) -> str | None:
        if request.path in hit:
            return None
        hit.add(request.path)
        return fault

    sandbox.options.script, sandbox.options.retry_after = script, "none"
    sandbox.options.hang_seconds, sandbox.options.drip_seconds = 2.0, 0.05
    # Whoever waits for a processor must not look like who does not answer.
    output = sync(sandbox, now, minute=0.1, request_timeout=1.0)
    assert_whole(sandbox.project, output)
    assert not any(map(output.repeated, PRIMARY_KEYS))
    assert hit == {"/crashes", "/events", "/network", "/sessions"}
    asked = Counter((request.path, *sorted(request.query.items())) for request in sandbox.requests)
    again = Counter(path for (path, *_), count in asked.items() for _ in range(1, count))
    # Events list the sessions of history once more.
    assert again == {"/crashes": 1, "/events": 1, "/network": 1, "/sessions": 2}


def test_a_page_that_repeats_for_ever_is_given_up(
    sandbox: Sandbox, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    """An API that answers one page again and again is asked four times and warned of."""
    sandbox.options.repeat_page = True
    output = sync(sandbox, now, page_size=2, catalog=select(now, "crashes"))
    assert len(output.rows("crashes")) == 2
    assert len(sandbox.requests) == 4
    assert "crashes: 2 rows arrived where the API counts " in caplog.text


# --- Errors a person can act on --------------------------------------------------------


def run_tap(
    url: str, environment: dict[str, str] | None = None, *, minute: float = 0.3, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run the tap as a process, with debug logs and a short minute."""
    path = {name: os.environ[name] for name in KEPT if name in os.environ}
    settings = {
        "TAP_BUGSPULSE_API_KEY": "bp_sandbox_key",
        "TAP_BUGSPULSE_API_URL": url,
        "TAP_BUGSPULSE_REQUESTS_PER_MINUTE": "100000",
        "TAP_BUGSPULSE_LOGLEVEL": "DEBUG",
    }
    env = path | settings | (environment or {})
    arguments = ("tests.tap_process", clock(NOW, minute), "--config=ENV")
    return forks.run(*arguments, env=env, fresh=fresh)


def assert_one_line(done: subprocess.CompletedProcess[str], *says: str, errors: int = 0) -> None:
    """Expect a failed run whose last line says what happened, after some errors."""
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert "CRITICAL" in last
    assert done.stderr.count("| CRITICAL |") == 1
    assert done.stderr.count("| ERROR ") == errors
    assert "unhandled" not in done.stderr
    for words in says:
        assert words in last
    assert "Traceback" not in done.stderr
    assert "bp_sandbox_key" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("401", "401 Unauthorized for /crashes"),
        ("403", "403 Forbidden for /crashes"),
        ("404", "404 Not Found for /crashes"),
        ("400", "400 Bad Request for /crashes"),
        ("301", "301 Moved Permanently for /crashes"),
        ("500", "gave up on /crashes after 8 failures"),
        pytest.param("html", "200 without the documented JSON body", marks=pytest.mark.long),
        ("reset", "the connection broke"),
    ],
)
def test_an_error_of_the_api_is_one_line(sandbox: Sandbox, fault: str, says: str) -> None:
    """What the API refuses is said with path, status and reason, never with the body."""
    sandbox.options.script = lambda _: fault
    done = run_tap(sandbox.url, minute=0.1)
    # The other streams are asked for, too, where the API answers, if only with an error.
    is_refused = fault not in {"401", "reset"}
    assert_one_line(done, says, errors=3 if is_refused else 0)
    assert "<html" not in done.stderr
    # One line for each retry, ours and not the SDK's own besides.
    retries = 7 if fault in {"500", "html", "reset"} else 0
    paths = {"/crashes", "/network", "/sessions"} if is_refused else {"/crashes"}
    assert counted(sandbox).keys() == paths
    assert counted(sandbox)["/crashes"] == 1 + retries
    assert done.stderr.count("trying again in ") == retries * len(paths)
    assert "Backing off" not in done.stderr


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://nowhere.invalid/export", "the host's name is not known: check api_url"),
        ("http://127.0.0.1:9/export", "the host does not answer: check api_url"),
    ],
)
def test_an_address_that_does_not_answer_is_one_line(url: str, says: str) -> None:
    """Wrong names and closed ports are tried again like any dead endpoint, then said."""
    assert_one_line(run_tap(url), "gave up on /crashes", says)


def test_answers_of_429_now_and_then_end_no_run(sandbox: Sandbox, now: datetime) -> None:
    """Only minutes of nothing but 429 do, not as many with other answers in between."""
    tries = itertools.count()

    def script(request: Request) -> str | None:
        return "429" if request.path == "/events" and next(tries) % 2 else None

    sandbox.options.script, sandbox.options.retry_after = script, "none"
    began = time.monotonic()
    output = sync(sandbox, now, minute=0.03, concurrency=1)
    assert time.monotonic() - began > 15 * 0.03
    assert_whole(sandbox.project, output)


def test_a_redirect_is_not_followed(sandbox: Sandbox, now: datetime) -> None:
    """The key goes to no other host, even when the API says so."""
    with Sandbox(generate(sessions=1, days=1), Options()) as other:
        sandbox.options.script = lambda _: "302"
        sandbox.options.redirect_to = other.url + "/crashes"
        with pytest.raises(Exception, match="302 Found for /crashes"):
            sync(sandbox, now)
        assert other.requests == []
    assert {request.status for request in sandbox.requests} == {302}


@LARGER
def test_the_key_is_in_no_log_of_a_whole_run(sandbox: Sandbox) -> None:
    """A run with debug logs, retries and a state keeps the key to itself."""
    sandbox.options.script = lambda request: None if request.number % 7 else "reset"
    done = run_tap(sandbox.url)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "METRIC" in done.stderr
    assert "bp_sandbox_key" not in done.stderr + done.stdout
    assert counted(sandbox)["/events"] > 100
