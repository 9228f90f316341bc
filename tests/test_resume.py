"""Stopped runs of the real tap, in processes of their own, and what the next run does."""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import typing as t
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from tap_bugspulse.settings import CONCURRENCY
from tests.conftest import NOW, sweep, tiered, with_project
from tests.running import (
    PRIMARY_KEYS,
    Output,
    Row,
    assert_whole,
    counted,
    events_asked,
    expected,
    sync,
    wait_until,
)
from tests.sandbox import Options, Project, Request, Sandbox, generate, generate_once
from tests.tap_process import SignalAt, Starter, TapProcess, ticking

LOOKBACK = timedelta(days=7)
FORWARD_FROM = "2026-02-21"  # the lookback of NOW, and a day for time zones
PAGES_PER_WINDOW = 10
MOST_EVENTS_AGAIN = 100
# Each is a request that only finds out how many rows a window has.
PROBES = 4
# A run takes some 300 requests for its events, 150 for the rest.
MEDIUM: Row = {"seed": 3, "sessions": 320, "days": 60, "events_per_session": 3}
OF_MEDIUM = with_project(**MEDIUM)


def serve(project: Project) -> Sandbox:
    """Serve a project without a rate limit."""
    return Sandbox(project, Options(requests_per_minute=None))


def together(outputs: Iterable[Output]) -> Output:
    """Return what several runs wrote one after the other."""
    return Output([message for output in outputs for message in output.messages])


def history_asked(requests: Iterable[Request]) -> Counter[str]:
    """Count the requests for rows before the lookback, by path."""
    return Counter(
        request.path
        for request in requests
        if request.path in {"/sessions", "/network"}
        and request.query.get("from", "") < FORWARD_FROM
    )


# --- SIGKILL -------------------------------------------------------------------------

Kills = list[tuple[str | None, int]]  # after so many requests for a path, or for any
IN_EACH_PART: Kills = [
    ("/network", 5),  # in the forward part, before the first STATE
    ("/network", 15),  # in the forward part, after some
    ("/network", 80),  # in history
    ("/sessions", 7),  # in the forward part
    ("/sessions", 45),  # in history
    ("/events", 20),  # in the forward part, before the first STATE
    ("/events", 160),  # in history
    ("/events", 130),  # in history that an earlier run has listed
]


def at_random(seed: int) -> Kills:
    """Return four kills at random requests."""
    rng = random.Random(f"kills {seed}")
    most = {"/network": 60, "/sessions": 60, "/events": 150, None: 250}
    return [(path, rng.randint(1, most[path])) for path in rng.choices(list(most), k=4)]


@OF_MEDIUM
@pytest.mark.parametrize(
    ("kills", "least", "page_size"),
    [
        pytest.param(IN_EACH_PART, 8, 5, id="in each part"),
        pytest.param([("/events", 150)] * 3, 2, 1000, id="the same again"),
        pytest.param(at_random(1), 1, 5, id="random 1", marks=pytest.mark.long),
        pytest.param(at_random(2), 1, 5, id="random 2", marks=pytest.mark.long),
    ],
)
def test_a_killed_load_is_carried_on(
    start: Starter, sandbox: Sandbox, kills: Kills, least: int, page_size: int
) -> None:
    """Killed again and again, a load ends whole and asks for little again."""
    sync(sandbox, NOW, page_size=page_size)
    floor = history_asked(sandbox.requests)
    runs: list[list[Request]] = []
    outputs: list[Output] = []
    killed = 0
    for path, number in [*kills, (None, 1_000_000)]:
        sandbox.reset()
        at, before = SignalAt(signal.SIGKILL, number, path), sandbox.connections
        tap = start(together(outputs).state or None, at=at, page_size=page_size)
        assert tap.end() == (-signal.SIGKILL if at.sent else 0), tap.log
        # What a killed run has sent counts with it, not with the next one.
        wait_until(partial(is_down_to, sandbox, before))
        killed += at.sent
        outputs.append(tap.output())
        runs.append(list(sandbox.requests))
    assert killed >= least
    assert_whole(sandbox.project, *outputs)
    for number, run in enumerate(runs):
        asked = events_asked(run)
        later = {one for other in runs[number + 1 :] for one in events_asked(other)}
        assert len(asked) == len(set(asked))
        assert len(later.intersection(asked)) <= MOST_EVENTS_AGAIN
    every = history_asked(request for run in runs for request in run)
    again = killed * (PAGES_PER_WINDOW + PROBES)
    assert every["/network"] <= floor["/network"] + again
    # Events list their window again, too, which here is all of the sessions' history.
    assert every["/sessions"] <= floor["/sessions"] + again + killed * floor["/sessions"]


def is_down_to(sandbox: Sandbox, connections: int) -> bool:
    """Return whether a sandbox has no more connections open than that."""
    return sandbox.connections <= connections


@pytest.mark.long
@with_project(seed=5, sessions=40_000, days=365, events_per_session=2, network_per_session=0.1)
def test_a_killed_year_has_its_newest_events(start: Starter, sandbox: Sandbox) -> None:
    """Of 40,000 sessions all are there after 150 events requests, which are the newest."""
    project = sandbox.project
    due = [row for row in project.sessions.values() if row["eventCount"] or not row["endedAt"]]
    due.sort(key=lambda row: row["startedAt"], reverse=True)
    newest = [row["id"] for row in due]
    outputs: list[Output] = []
    asked: set[str] = set()
    for _ in range(2):
        sandbox.reset()
        tap = start(together(outputs).state or None, at=SignalAt(signal.SIGKILL, 151, "/events"))
        assert tap.end() == -signal.SIGKILL, tap.log
        outputs.append(tap.output())
        wait_until(partial(is_down_to, sandbox, 0))
        requested = events_asked(sandbox.requests)
        assert 151 <= len(requested) <= 151 + CONCURRENCY
        assert len(asked.intersection(requested)) <= MOST_EVENTS_AGAIN
        # The killed run had others on their way, which may overtake each other.
        asked.update(requested)
        assert asked <= set(newest[: len(asked) + CONCURRENCY])
    first, second = outputs
    for stream in ("sessions", "crashes", "network"):
        assert first.table(stream) == expected(project, stream)
    written = {key[0] for key in first.table("events")}
    assert 150 - MOST_EVENTS_AGAIN <= len(written) <= 150 + CONCURRENCY
    assert written == set(newest[: len(written)])  # rows come in their order
    events = expected(project, "events")
    assert first.table("events") == {key: events[key] for key in events if key[0] in written}
    assert second.rows("sessions") == []
    # Calls of a clock that is ahead come again until their time has come.
    assert all(row["timestamp"] > "2026-03-01T12" for row in second.rows("network"))
    # The lookback, and the one window whose events come next.
    assert counted(sandbox)["/sessions"] <= 1 + 5 + PROBES


# --- SIGTERM and SIGINT --------------------------------------------------------------

SIGNALS = pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
HANGS = 600.0  # seconds, far beyond the time that a process is given to end


def assert_ended_by(tap: TapProcess, signum: int, written: str | None = None) -> Output:
    """Hold what a run that ended by a signal wrote against what it must."""
    assert tap.end() == 128 + signum, tap.log
    messages = assert_whole_lines(tap.written if written is None else written)
    assert messages[-1]["type"] == "STATE"
    assert tap.last.endswith(f"Stopped by {signal.Signals(signum).name}")
    return Output(messages)


def assert_whole_lines(written: str) -> list[Row]:
    """Return the messages of a run whose last line has to be whole, too."""
    assert written.endswith("\n")
    return [json.loads(line) for line in written.splitlines()]


@OF_MEDIUM
@pytest.mark.parametrize(
    ("signum", "path", "number"),
    [
        (signal.SIGTERM, "/crashes", 1),
        pytest.param(signal.SIGTERM, "/sessions", 7, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, "/sessions", 35, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, "/events", 20, marks=pytest.mark.long),
        (signal.SIGINT, "/events", 230),
    ],
)
def test_a_signal_while_an_answer_hangs_ends_the_run(
    start: Starter, sandbox: Sandbox, signum: int, path: str, number: int
) -> None:
    """An answer that does not come holds up no signal, in any part of a run."""
    sandbox.options.hang_seconds = HANGS
    at = SignalAt(signum, number, path)
    met: list[Request] = []  # in the order in which they met the signal

    def script(request: Request) -> str | None:
        met.append(request)
        return "timeout" if at.sent else None

    sandbox.options.script = script
    stopped = assert_ended_by(start(at=at, page_size=5), signum)
    # It ended before the answer would have come; others were on their way.
    assert met[-1].status == 0
    assert number <= counted(sandbox)[path] <= number + CONCURRENCY
    sandbox.options.on_request = sandbox.options.script = None
    assert_whole(sandbox.project, stopped, sync(sandbox, NOW, stopped.state, page_size=5))


@SIGNALS
def test_a_signal_before_the_state_is_read_writes_none(
    tmp_path: Path, sandbox: Sandbox, signum: int
) -> None:
    """A run that does not know its state yet leaves the one that is saved alone."""
    config = {"api_key": "bp_x", "api_url": sandbox.url}
    arguments: list[str] = []
    for name, given in (("config", config), ("state", sync(sandbox, NOW).state)):
        (tmp_path / name).write_text(json.dumps(given))
        arguments += [f"--{name}", str(tmp_path / name)]
    sandbox.reset()
    program = (
        "import os, sys; from tap_bugspulse.tap import TapBugsPulse\n"
        "class Tap(TapBugsPulse):\n"
        "    def load_state(self, state):\n"
        f"        os.kill(os.getpid(), {int(signum)})\n"
        "        super().load_state(state)\n"
        "Tap.cli()"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (128 + signum, "")
    assert "Stopped by SIG" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sandbox.requests == []


@pytest.mark.parametrize("has_state", [True, False])
@SIGNALS
def test_a_signal_at_once_keeps_the_state(
    start: Starter, sandbox: Sandbox, signum: int, *, has_state: bool
) -> None:
    """Stopped while the first answer is to come, a run ends with the state it began with."""
    state = sync(sandbox, NOW).state if has_state else {"bookmarks": {}}
    assert bool(state["bookmarks"]) == has_state
    sandbox.reset()
    sandbox.options.latency = HANGS
    tap = start(state if has_state else None, at=SignalAt(signum, 1), fresh=has_state)
    written = assert_ended_by(tap, signum).state.get("bookmarks", {})
    assert filled(written) == filled(state["bookmarks"])
    assert [request.status for request in sandbox.requests] == [0]


def filled(bookmarks: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return bookmarks without what is empty, which may be left out."""
    inner = {name: {k: v for k, v in one.items() if v} for name, one in bookmarks.items()}
    return {name: one for name, one in inner.items() if one}


@SIGNALS
@pytest.mark.parametrize("fault", ["429", "500"])
def test_a_signal_while_a_failure_is_waited_out_ends_the_run(
    start: Starter, sandbox: Sandbox, signum: int, fault: str
) -> None:
    """Ten minutes that a 429 tells to wait, or a wait before a retry, are cut short."""
    sandbox.options.minute = 60 * HANGS  # a 429 tells a sixtieth of it
    events = itertools.count(1)

    def script(request: Request) -> str | None:
        return fault if request.path == "/events" and next(events) == 30 else None

    sandbox.options.script = script
    # Waits before retries begin with two sixtieths of a minute.
    tap = start(minute=30 * HANGS)
    # Who is first in turn says so: the request that failed, or one that a 429 holds up.
    wait_until(lambda: re.search(r"(trying again in|waiting) (599|600) s", tap.log))
    tap.process.send_signal(signum)
    stopped = assert_ended_by(tap, signum)
    # The one that came as the 30th may have been asked for later than others of its time.
    assert 30 <= len(events_asked(sandbox.requests)) <= 30 + 2 * CONCURRENCY
    sandbox.options.script = None
    assert_whole(sandbox.project, stopped, sync(sandbox, NOW, stopped.state))


@SIGNALS
def test_a_signal_while_the_pace_makes_it_wait_ends_the_run(
    start: Starter, sandbox: Sandbox, signum: int
) -> None:
    """With one request a minute, the second is never sent."""
    tap = start(minute=HANGS, requests_per_minute=1)
    # What follows is the request that has to wait.
    wait_until(lambda: '"stream":"network"' in tap.written)
    tap.process.send_signal(signum)
    stopped = assert_ended_by(tap, signum)
    assert counted(sandbox) == {"/crashes": 1}
    assert stopped.table("crashes") == expected(sandbox.project, "crashes")


@OF_MEDIUM
@sweep(
    "signum unbuffered", [signal.SIGTERM, signal.SIGINT], ["", "1"], quick=[(signal.SIGTERM, "")]
)
def test_a_signal_while_the_target_is_slow_cuts_no_line(
    start: Starter, sandbox: Sandbox, signum: int, unbuffered: str
) -> None:
    """A line that waits for room in the pipe is written to its end, a STATE after it."""
    read, write = os.pipe()
    tap = start(stdout=write, fresh=True, environment={"PYTHONUNBUFFERED": unbuffered})
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        # More than a pipe holds: now there is always a line that waits.
        written = pipe.read(200_000)
        tap.process.send_signal(signum)
        # `timeout` sends one to the process and one to its group; at once they may be one.
        time.sleep(0.2)
        tap.process.send_signal(signum)
        written += pipe.read()
    stopped = assert_ended_by(tap, signum, written.decode())
    assert_whole(sandbox.project, stopped, sync(sandbox, NOW, stopped.state))


# --- From any STATE ------------------------------------------------------------------


@with_project(seed=4, sessions=122, days=40, events_per_session=3)
@sweep("every", [1, 6], quick=[(6,)])
def test_resuming_from_any_state_of_a_run_loses_nothing(sandbox: Sandbox, every: int) -> None:
    """With the rows before any STATE and a resumed run a day later, all is there."""
    messages = sync(sandbox, NOW, page_size=5).messages
    for hours in (-20, -2, 30, 70):  # new, new, late, late
        sandbox.project.new_session(NOW - timedelta(hours=hours))
        sandbox.project.new_network(NOW - timedelta(hours=hours))
    places = [i for i, message in enumerate(messages) if message["type"] == "STATE"]
    assert len(places) > 15
    for place in places[::every]:
        before = Output(messages[: place + 1])
        after = sync(sandbox, NOW + timedelta(days=1), before.state)
        assert_whole(sandbox.project, before, after)
        assert len(after.asked) == len(set(after.asked))


# --- The time limit ------------------------------------------------------------------

LIMIT = 3  # minutes


@with_project(seed=2, sessions=700, days=90, events_per_session=2, network_per_session=1)
def test_a_short_time_limit_leaves_every_run_current(
    tmp_path: Path, start: Starter, sandbox: Sandbox
) -> None:
    """In each run what is new is loaded at once, and no events are fetched twice."""
    project, stopwatch, now = sandbox.project, tmp_path / "stopwatch", NOW
    outputs: list[Output] = []
    summaries: list[str] = []
    asked: Counter[tuple[str, object]] = Counter()
    sandbox.options.on_request = ticking(stopwatch)
    limited: Row = {"stopwatch": stopwatch, "page_size": 100, "max_runtime_minutes": LIMIT}
    while not summaries or "status=incomplete" in summaries[-1]:
        assert len(summaries) < 20
        sandbox.reset()
        tap = start(together(outputs).state or None, after=now - NOW, **limited)
        assert tap.end() == 0, tap.log
        outputs.append(tap.output())
        summaries.append(tap.last)
        # The request that was under way, a window of ten pages, what is new.
        assert len(sandbox.requests) <= LIMIT * 60 + PAGES_PER_WINDOW + PROBES
        for session in events_asked(sandbox.requests):
            asked[session, project.sessions[session]["eventCount"]] += 1
        assert_current(together(outputs), project, now)
        now += timedelta(hours=1)
        project.new_session(now - timedelta(minutes=30))
        project.new_session(now - timedelta(hours=30))  # late
        project.new_network(now - timedelta(minutes=20))
        project.crash(project.new_session(now - timedelta(minutes=40)))
    outputs.append(sync(sandbox, now, outputs[-1].state, page_size=100))
    assert len(summaries) >= 4
    assert all("summary status=incomplete" in line for line in summaries[:-1])
    assert "summary status=complete" in summaries[-1]
    assert "events_left=0 eta_minutes=0" in summaries[-1]
    left = [int(line.split("events_left=")[1].split()[0]) for line in summaries]
    assert all(before > after for before, after in itertools.pairwise(left)), left
    assert set(asked.values()) == {1}
    assert_whole(project, *outputs)


def assert_current(written: Output, project: Project, now: datetime) -> None:
    """Hold what is new and what the lookback covers against the project."""
    assert written.table("crashes") == expected(project, "crashes")
    since = (now - LOOKBACK).isoformat()
    for stream, column in (("sessions", "startedAt"), ("network", "timestamp")):
        table = written.table(stream)
        for key, row in expected(project, stream).items():
            if row[column] >= since:
                assert table.get(key) == row


# --- Crashes -------------------------------------------------------------------------


def assert_failed(tap: TapProcess, says: str, written: str | None = None) -> Output:
    """Hold a run that failed against what a person is to see of it."""
    assert tap.end() == 1
    assert tap.log.count("| CRITICAL |") == 1
    assert "CRITICAL" in tap.last
    assert says in tap.last
    return Output.read(tap.written if written is None else written)


def assert_carried_on(project: Project, failed: Output) -> None:
    """Expect of the run after one that failed that it ends whole and asks for little again."""
    with serve(project) as sandbox:
        resumed = sync(sandbox, NOW, failed.state, page_size=5)
    assert_whole(project, failed, resumed)
    assert resumed.state["bookmarks"]["events"]["set_aside"] == {}
    again = {key[0] for key in failed.table("events")}.intersection(resumed.asked)
    assert len(again) <= MOST_EVENTS_AGAIN


@pytest.mark.parametrize(
    ("path", "number", "fault", "says"),
    tiered(
        [
            # The next sessions are listed while events are fetched: whichever fails first.
            ("/events", 250, None, "after 8 failures"),
            ("/events", 250, "401", "401 Unauthorized for /events"),
            ("/network", 60, None, "gave up on /network after 8 failures"),
            ("/sessions", 40, None, "gave up on /sessions after 8 failures"),
            ("/network", 60, "410", "410 Gone for /network"),
            ("/sessions", 7, "403", "403 Forbidden for /sessions"),
            ("/sessions", 40, "401", "401 Unauthorized for /sessions"),
        ],
        quick=2,
    ),
)
def test_an_api_that_fails_or_goes_away_is_one_line_and_the_load_goes_on(
    tmp_path: Path, path: str, number: int, fault: str | None, says: str
) -> None:
    """In the middle of a run it refuses, or is not there any more; the next run carries on."""
    project = generate_once(**MEDIUM, until=NOW - timedelta(hours=1))
    requests, reached = itertools.count(1), threading.Event()

    def script(request: Request) -> str | None:
        if request.path != path or next(requests) != number:
            return None
        reached.set()
        if fault is None:
            sandbox.closing.wait(HANGS)
        return fault

    with serve(project) as sandbox:
        sandbox.options.script = script
        tap = TapProcess(tmp_path / "tap", sandbox, NOW, page_size=5, minute=0.06)
        assert reached.wait(60)
        if fault:
            tap.end()
    failed = assert_failed(tap, says)
    assert_whole_lines(tap.written)
    assert ("does not answer" in tap.last) == (fault is None)
    assert_carried_on(project, failed)


@OF_MEDIUM
def test_a_target_that_goes_away_can_be_resumed(start: Starter, sandbox: Sandbox) -> None:
    """A pipe that nobody reads any more ends the run in one line; what was read counts."""
    read, write = os.pipe()
    # Its end, where Python flushes what is left, is that of a Python of its own.
    tap = start(page_size=5, stdout=write, fresh=True)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        written = pipe.read(200_000).decode()
    read_of_it = assert_failed(tap, "the target has closed its input", written)
    assert not re.search(r"unhandled|\| ERROR ", tap.log)  # which are the SDK's words for it
    assert_carried_on(sandbox.project, read_of_it)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full device")
def test_a_full_disk_is_one_line(start: Starter) -> None:
    """Messages that cannot be written end the run."""
    with Path("/dev/full").open("wb") as full:
        assert_failed(start(stdout=full.fileno(), fresh=True), "No space left on device")


# --- States that were lost, edited or damaged ------------------------------------------

MARK = "replication_key_value"
FUTURE, AHEAD = "2031-01-01T00:00:00.000Z", "2026-03-02T13:00:00.000Z"
ALL = {"sessions", "network", "events"}
EACH = " ".join(PRIMARY_KEYS)
GONE = "is missing"


def edited(state: Row, paths: str, value: object) -> Row:
    """Return a copy of a state with a value at some paths below ``bookmarks``, or at itself."""
    state = copy.deepcopy(state)
    for path in paths.split():
        *above, last = (path if path == "bookmarks" else f"bookmarks/{path}").split("/")
        place = state
        for key in above:
            place = place[key]
        if value is GONE:
            del place[last]
        else:
            place[last] = value(place.get(last)) if callable(value) else value
    return state


def of_another_tap(bookmark: Row | None) -> Row:
    """Add what the SDK's own partitions and progress markers look like, and garbage."""
    return (bookmark or {}) | {
        "partitions": [{"context": {"sessionId": "sess_1"}, MARK: "x"}, None, 5],
        "progress_markers": {"Note": 5, MARK: ["x"]},
        "starting_replication_value": {"x": 1},
        "replication_key_signpost": "never",
    }


FINGERPRINTS = "sessions/fingerprints events/fingerprints"
# What is null, empty or missing is none: the streams whose history is then read again.
NONE: list[tuple[str, object, set[str]]] = [
    ("bookmarks", GONE, ALL),
    (EACH, {}, ALL),
    (EACH, of_another_tap, set()),
    ("network", None, {"network"}),
    ("sessions", GONE, {"sessions"}),
    (f"network/{MARK}", None, {"network"}),
    (f"sessions/{MARK} sessions/complete_from", GONE, {"sessions"}),
    (f"network/{MARK} network/complete_from", GONE, {"network"}),
    ("network/days", None, set()),
    (FINGERPRINTS, GONE, set()),
    ("events/complete/all", None, {"events"}),
    ("events/complete/all/complete_to", GONE, {"events"}),
    ("events/set_aside", None, set()),
    ("users", {MARK: "2026-03-01", "partitions": []}, set()),
    # Of a machine whose clock was ahead for less than a day: it counts up to now.
    (f"sessions/{MARK} network/{MARK} events/complete/all/complete_to", AHEAD, set()),
]
# What cannot be read stops the run: the words that the last line has of it.
STOPS: list[tuple[str, object, str]] = [
    ("bookmarks", [{"sessions": {}}], "bookmarks"),
    ("network", [{MARK: "2026-03-01"}], "network"),
    ("events", "2026-03-01", "events"),
    (f"sessions/{MARK}", "yesterday", f"sessions {MARK} yesterday"),
    (f"network/{MARK}", 1772366400, f"network {MARK}"),
    (f"sessions/{MARK}", FUTURE, f"sessions {MARK} {FUTURE} 2026-03-01T13:00:00.000Z"),
    (f"network/{MARK}", "2026-03-02T13:00:00.001Z", f"network {MARK} 2026-03-02T13:00:00.001Z"),
    ("sessions/complete_from", GONE, "sessions complete_from"),
    ("sessions/complete_from", None, "sessions complete_from"),
    ("network/complete_from", "begin", "network complete_from begin"),
    (
        "network/complete_from",
        "2026-03-01T12:00:00.001Z",  # after the mark
        "network complete_from 2026-03-01T12:00:00.001Z",
    ),
    ("events/complete", ["all"], "events complete"),
    ("events/complete/all/complete_to", FUTURE, f"events all complete_to {FUTURE}"),
    ("events/complete/all/complete_from", GONE, "events all complete_from"),
    ("events/fingerprints/2026-02-28", "%%%%", "events fingerprints"),
    ("events/fingerprints/2026-02-28", "AAAAAAAAAAAA", "events fingerprints 2026-02-28"),
    ("sessions/fingerprints/x", "AAAA", "sessions fingerprints"),
    ("network/days/2026-02-28", [1, 2], "network days"),
    ("events/set_aside", {"s": 5}, "events set_aside"),
    ("events/short", {"s": "5"}, "events short"),
    ("events/project", 5, "events project"),
]


class Loaded(t.NamedTuple):
    """A project that was loaded in full, and what changed in it since."""

    project: Project
    first: Output
    before: set[str]  # the rows of sessions and network that came late, before the lookback


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """A small project, loaded; since then rows came that are new, late and too late."""
    ends = NOW - timedelta(hours=1)
    project = generate(seed=7, sessions=60, days=20, until=ends, lying_clocks=False)
    with serve(project) as sandbox:
        first = sync(sandbox, NOW)
    before = set()
    for age in (timedelta(minutes=5), timedelta(days=3), timedelta(days=15)):
        session, call = project.new_session(NOW - age), project.new_network(NOW - age)
        if age > LOOKBACK:
            before = {session, call}
    before |= {i for i, row in project.network.items() if row["sessionId"] in before}
    return Loaded(project, first, before)


@pytest.mark.parametrize(("paths", "value", "anew"), NONE)
def test_what_is_null_empty_or_missing_in_a_state_is_none(
    loaded: Loaded, paths: str, value: object, anew: set[str]
) -> None:
    """What a state does not say to be complete is read again, and nothing is left out."""
    later = NOW + timedelta(hours=1)
    with serve(loaded.project) as sandbox:
        second = sync(sandbox, later, edited(loaded.first.state, paths, value))
        third = sync(sandbox, later, second.state)
    assert third.asked == []
    assert second.state["bookmarks"]["sessions"][MARK] == "2026-03-01T13:00:00.000Z"
    written = together([loaded.first, second])
    assert written.table("crashes") == expected(loaded.project, "crashes")
    for stream in ALL:
        rows = expected(loaded.project, stream)
        if stream not in anew:
            rows = {key: rows[key] for key in rows if key[0] not in loaded.before}
        assert written.table(stream) == rows, stream
        # Fingerprints and counts that are left keep no row back; events are fetched already.
        assert second.table(stream) == rows or stream not in anew - {"events"}, stream
        assert third.rows(stream) == [], stream


@pytest.mark.parametrize(("paths", "value", "words"), STOPS)
def test_what_cannot_be_read_in_a_state_stops_the_run(
    tmp_path: Path, loaded: Loaded, paths: str, value: object, words: str
) -> None:
    """One line names the key and says what to do; nothing is asked for or written."""
    state = edited(loaded.first.state, paths, value)
    with serve(loaded.project) as sandbox:
        assert_refused(Starter(sandbox, tmp_path, NOW), state, *words.split())
        assert sandbox.requests == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        *((one, "--state") for one in ("[{}]", '"state"', "5", "true", "\x00\x01")),
        *((one, "--state") for one in ('{"bookmarks": {"sessions": {"fin', '{"bookmarks": NaN}')),
        ('{"x": "\\ud800"}', "--state"),
        *((one, "no bookmarks") for one in ('{"x": 1}', '{"type": "STATE"}', '{"bookmarks": []}')),
        ('{"bookmarks": {"users": {"replication_key_value": "2026-03-01"}}}', "no bookmarks"),
    ],
)
def test_a_state_file_without_a_state_stops_the_run(
    start: Starter, sandbox: Sandbox, text: str, says: str
) -> None:
    """A file that was torn or mixed up is no reason to load everything again unasked."""
    assert_refused(start, text, says)
    assert sandbox.requests == []


def assert_refused(start: Starter, state: Row | str, *words: str) -> None:
    """Run the tap with a state that it has to refuse in a line with some words."""
    tap = start(state, after=timedelta(hours=1))
    assert_failed(tap, "state")
    assert [word for word in words if word not in tap.last] == [], tap.last
    assert re.search("restore|run without|Take that day out", tap.last), tap.last
    assert tap.written == ""


@pytest.mark.parametrize(
    ("wrap", "is_state"),
    [
        (lambda state: {"type": "STATE", "value": state}, True),
        (lambda state: {"singer_state": state}, True),
        (lambda state: {"completed": {"singer_state": state}}, True),
        (lambda state: state["bookmarks"], True),
        (lambda _: {}, False),
        (lambda _: None, False),
    ],
    ids=["message", "singer_state", "completed", "bookmarks alone", "empty", "null"],
)
def test_a_state_is_understood_as_meltano_prints_it(
    tmp_path: Path, loaded: Loaded, wrap: Callable[[Row], Row], *, is_state: bool
) -> None:
    """A STATE message, or what `meltano state get` prints, is a state; nothing is none."""
    with serve(loaded.project) as sandbox:
        start = Starter(sandbox, tmp_path, NOW + timedelta(hours=1))
        tap = start(json.dumps(wrap(loaded.first.state)))
        assert tap.end() == 0, tap.log
    if is_state:
        assert len(tap.output().rows("sessions")) == 2  # that are new or came late
    else:
        assert_whole(loaded.project, tap.output())


@with_project(seed=7, sessions=60)
def test_a_bookmark_set_by_hand_is_complete_before_it(start: Starter, sandbox: Sandbox) -> None:
    """With nothing but replication_key_value, only what is after it is loaded."""
    by_hand = "2026-02-25T00:00:00Z"
    state = {"bookmarks": {stream: {MARK: by_hand} for stream in ("sessions", "network")}}
    tap = start(state, lookback_days=0)
    assert tap.end() == 0
    assert "| WARNING" not in tap.log
    written = tap.output()
    for stream, column in (("sessions", "startedAt"), ("network", "timestamp")):
        table = written.table(stream)
        # Days are asked for whole, and one more for time zones.
        for key, row in expected(sandbox.project, stream).items():
            assert row[column] < by_hand or table[key] == row
            assert row[column] >= "2026-02-24" or key not in table
        assert written.states[0]["bookmarks"][stream]["complete_from"] == "beginning"
    assert written.table("events") == expected(sandbox.project, "events")
