"""Asking ahead: the same rows and requests, and never more at once than set."""

from __future__ import annotations

import json
import math
import threading
import time
import typing as t
from datetime import timedelta

import pytest
from singer_sdk.exceptions import SingerSDKError

from tests.conftest import sweep
from tests.running import (
    PRIMARY_KEYS,
    Row,
    assert_whole,
    events_asked,
    expected,
    select,
    sync,
    tap_class,
)
from tests.sandbox import Options, Sandbox, generate
from tests.tap_process import TapProcess, ticking

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from tap_bugspulse.client import BugsPulseStream
    from tests.sandbox import Project, Request

MANY = 8


@pytest.fixture
def slow(now: datetime) -> Iterator[Sandbox]:
    """A project whose answers take a while, some longer than others."""
    project = generate(seed=3, sessions=80, days=10, until=now - timedelta(hours=1))
    options = Options(requests_per_minute=None, latency=0.005, jitter=0.02)
    with Sandbox(project, options) as running:
        yield running


def asked(sandbox: Sandbox) -> list[tuple[tuple[str, str], ...]]:
    """Return what was asked for, in an order of its own."""
    return sorted((("path", one.path), *sorted(one.query.items())) for one in sandbox.requests)


def test_rows_and_requests_are_the_same_as_one_at_a_time(slow: Sandbox, now: datetime) -> None:
    """Asking ahead changes no message but STATE, and no request but its moment."""
    one = sync(slow, now, concurrency=1, page_size=10)
    in_turn = asked(slow)
    slow.reset()
    many = sync(slow, now, concurrency=MANY, page_size=10)
    for stream in PRIMARY_KEYS:
        assert many.rows(stream) == one.rows(stream)
        assert one.table(stream) == expected(slow.project, stream)
    assert many.state == one.state
    assert asked(slow) == in_turn
    assert len(in_turn) > 100


@sweep("concurrency", [1, MANY], quick=[(1,)])
def test_answers_that_never_end_keep_none_from_being_sent(
    now: datetime, tmp_path: Path, concurrency: int
) -> None:
    """As many bodies that drip as may be on their way at once are given up, and others sent."""
    project = generate(seed=3, sessions=20, days=5, until=now - timedelta(hours=1))
    left = [*range(concurrency)]

    def script(request: Request) -> str | None:
        return "drip" if request.path == "/events" and left and left.pop() >= 0 else None

    options = Options(requests_per_minute=None, script=script, drip_seconds=0.1)
    with Sandbox(project, options) as running:
        tap = TapProcess(
            tmp_path / "tap", running, now, minute=0.5, concurrency=concurrency, request_timeout=0.3
        )
        assert tap.end() == 0, tap.log
    assert_whole(project, tap.output())
    assert not left


@sweep("concurrency", [1, MANY], quick=[(MANY,)])
def test_no_more_are_on_their_way_than_set(now: datetime, concurrency: int) -> None:
    """As many requests as set are on their way at once, and never one more."""
    # Days of several pages, which are read while other days are asked for.
    project = generate(seed=3, sessions=300, days=9, until=now)
    most = 0
    with Sandbox(project, Options(requests_per_minute=None, latency=0.05, jitter=0.05)) as slow:

        def count(request: Request, project: Project) -> None:
            nonlocal most
            del request, project
            most = max(most, sum(one.status == 0 for one in list(slow.requests)))

        slow.options.on_request = count
        only = select(now, "sessions", "network")
        sync(slow, now, catalog=only, concurrency=concurrency, page_size=10)
    assert most == concurrency


def test_no_more_are_on_their_way_than_set_after_a_pause(now: datetime) -> None:
    """Those that wait for longer than an answer may take are not sent all at once."""
    project, most = generate(seed=3, sessions=1, days=1, until=now), 0
    options = Options(requests_per_minute=None, latency=0.2)
    options.minute = 60 * 1.0  # a 429 asks for a sixtieth of it
    with Sandbox(project, options) as running:

        def script(_: Request) -> str | None:
            nonlocal most
            most = max(most, sum(one.status == 0 for one in list(running.requests)))
            return "429" if len(running.requests) == 1 else None

        options.script = script
        config = {"api_url": running.url, "api_key": running.api_key, "concurrency": 2}
        tap = tap_class(now)(config={**config, "request_timeout": 0.3})
        crashes = t.cast("BugsPulseStream", tap.streams["crashes"])
        for call in [crashes.fetch({}) for _ in range(MANY)]:
            crashes.take(call)
    assert len(running.requests) == MANY + 1
    assert most == 2


# Where a time limit gives requests up, others wait for their turn.
@pytest.mark.parametrize(
    "settings",
    [{}, {"requests_per_minute": 1, "minute": 0.1, "max_runtime_minutes": 0.015}],
    ids=["to its end", "until time is up"],
)
def test_a_run_leaves_no_thread_behind(slow: Sandbox, now: datetime, settings: Row) -> None:
    """What has asked ahead ends with the run, also where the tap is used as a library."""
    before = set(threading.enumerate())
    sync(slow, now, catalog=select(now, "events"), concurrency=MANY, **settings)
    own = [one for one in threading.enumerate() if one not in before and "_work" in one.name]
    for one in own:
        one.join(10)
    assert not any(one.is_alive() for one in own)


def test_all_wait_when_one_is_told_to(slow: Sandbox, now: datetime) -> None:
    """While an answer 429 is waited out, nobody else asks for anything."""
    told, on_their_way = 2.0, 1.0
    slow.options.minute = 60 * told
    refused: list[float] = []

    def script(request: Request) -> str | None:
        if request.path == "/events" and len(slow.requests) > 40 and not refused:
            refused.append(request.at)
            return "429"
        return None

    slow.options.script = script
    output = sync(slow, now, concurrency=MANY)
    assert output.table("events") == expected(slow.project, "events")
    late = [one.at - refused[0] for one in slow.requests if one.at > refused[0]]
    assert [at for at in late if on_their_way < at < told] == []
    assert len([at for at in late if at < told]) < 2 * MANY
    assert len([at for at in late if at > told]) > MANY


@sweep(
    "order change",
    ["newest", "oldest", "arbitrary"],
    ["late_every", "new_every", "purge_every"],
    quick=[("newest", "new_every"), ("arbitrary", "late_every")],
)
def test_pages_that_are_answered_out_of_turn_lose_nothing(
    now: datetime, order: t.Literal["newest", "oldest", "arbitrary"], change: str
) -> None:
    """Rows that are there all the time arrive, though pages overtake each other."""
    project = generate(seed=8, sessions=80, days=6, until=now - timedelta(hours=1))
    before = {name: set(project.table(name)) for name in ("sessions", "network")}
    options = Options(requests_per_minute=None, order=order, jitter=0.03)
    setattr(options, change, 25 if change == "purge_every" else 3)
    with Sandbox(project, options) as sandbox:
        output = sync(
            sandbox, now, catalog=select(now, "sessions", "network"), page_size=5, concurrency=MANY
        )
    for stream, known in before.items():
        stayed = known & set(project.table(stream))
        assert len(stayed) > 20
        assert stayed <= {key[0] for key in output.table(stream)}
        assert output.repeated(stream) == []


def test_an_error_ends_the_run_though_others_hang(
    slow: Sandbox, now: datetime, tmp_path: Path
) -> None:
    """Answers that never come hold up no end, and nothing more is asked for."""
    sync(slow, now, concurrency=1, catalog=select(now, "events"))
    order = events_asked(slow.requests)
    slow.reset()
    slow.options.hang_seconds = 600.0

    def script(request: Request) -> str | None:
        if request.path != "/events":
            return None
        place = order.index(request.query["sessionId"])
        return None if place < 20 else "401" if place == 20 else "timeout"

    slow.options.script = script
    tap = TapProcess(tmp_path / "tap", slow, now, concurrency=MANY, fresh=True)
    assert tap.end() == 1
    assert "401 Unauthorized for /events" in tap.log.splitlines()[-1]
    assert "Traceback" not in tap.log
    events = [one for one in slow.requests if one.path == "/events"]
    assert 20 < len(events) <= 20 + MANY
    lines = [json.loads(line) for line in tap.written.splitlines()]
    assert lines[-1]["type"] in {"RECORD", "STATE"}


def test_a_time_box_takes_what_is_on_its_way(slow: Sandbox, now: datetime, tmp_path: Path) -> None:
    """No session is asked for twice by runs that a small time box stops."""
    stopwatch = tmp_path / "stopwatch"
    slow.options.on_request = ticking(stopwatch)
    state, runs = None, 0
    tables: dict[tuple[str, ...], Row] = {}
    while True:
        tap = TapProcess(
            tmp_path / str(runs),
            slow,
            now,
            state,
            stopwatch=stopwatch,
            concurrency=MANY,
            max_runtime_minutes=0.75,
            request_timeout=86_400,
        )
        assert tap.end() == 0, tap.log
        runs += 1
        tables |= tap.output().table("events")
        state = json.dumps(tap.output().state)
        if "summary status=complete" in tap.log:
            break
        assert runs < math.ceil(len(slow.project.sessions) / MANY)
    assert runs > 2
    assert tables == expected(slow.project, "events")
    sessions = events_asked(slow.requests)
    assert sorted(sessions) == sorted(set(sessions))


def test_pages_to_which_rows_still_come_are_asked_for_one_by_one(now: datetime) -> None:
    """Also where the API takes a first date only with a last one, which is far ahead then."""
    project = generate(seed=3, sessions=90, days=20, until=now - timedelta(hours=1))
    options = Options(requests_per_minute=None, ignored="from-alone", latency=0.02)
    most = pages = 0
    with Sandbox(project, options) as slow:

        def count(request: Request, project: Project) -> None:
            nonlocal most, pages
            del project
            if request.query.get("to", "9") >= "2999" and request.path == "/sessions":
                most = max(most, sum(one.status == 0 for one in list(slow.requests)))
                pages = max(pages, int(request.query["page"]))

        slow.options.on_request = count
        output = sync(slow, now, catalog=select(now, "sessions"), page_size=10)
    assert output.table("sessions") == expected(project, "sessions")
    assert pages > 2
    assert most == 1


@sweep("concurrency", [1, MANY, 32], quick=[(MANY,)])
def test_no_day_is_asked_for_with_and_without_an_end(now: datetime, concurrency: int) -> None:
    """Where history reaches into today, today is read once, in the forward part."""
    ends = now - timedelta(hours=1)
    project = generate(
        seed=3, sessions=300, days=20, until=ends, events_per_session=0, lying_clocks=False
    )
    network = select(now, "network")
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        since = f"{now - timedelta(days=1, hours=6):%FT%TZ}"
        before = sync(sandbox, now - timedelta(days=1), None, network, start_date=since)
        sandbox.reset()
        sync(sandbox, now, before.state, network, concurrency=concurrency)
        queries = [one.query for one in sandbox.requests]
    today = f"{now:%F}"
    assert {"from": today, "page": "1", "limit": "1000"} in queries
    assert not any(query.get("from") == today and "to" in query for query in queries)


@pytest.mark.parametrize("concurrency", [1, 32])
def test_no_more_is_asked_for_when_time_is_up(now: datetime, concurrency: int) -> None:
    """A box that is over before history begins leaves it one window, asked ahead or not."""
    project = generate(seed=3, sessions=300, days=40, until=now - timedelta(hours=1))
    network = select(now, "network")
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        since = f"{now - timedelta(days=2):%FT%TZ}"
        state = sync(sandbox, now, None, network, start_date=since).state
        sandbox.reset()
        sync(sandbox, now, state, network, concurrency=concurrency, max_runtime_minutes=1e-9)
        queries = [one.query for one in sandbox.requests]
    assert len({query.get("from") for query in queries}) == len(queries)
    assert len(queries) == 10  # the days of the lookback, and what is before them


def test_a_time_limit_counts_where_the_state_is_left_as_it_is(now: datetime) -> None:
    """Rows before what is complete, which move no bookmark, are not read for ever."""
    project = generate(seed=3, sessions=300, days=40, until=now - timedelta(hours=1))
    sessions = select(now, "sessions")
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        since = f"{now - timedelta(days=2):%FT%TZ}"
        state = sync(sandbox, now, None, sessions, start_date=since).state
        sandbox.reset()
        limited: dict[str, t.Any] = {"max_runtime_minutes": 1e-9, "page_size": 3}
        until = f"{now - timedelta(days=10):%F}"
        output = sync(sandbox, now, state, sessions, end_date=until, **limited)
    old = sum(row["startedAt"] < until for row in project.sessions.values())
    assert len(output.rows("sessions")) < old
    assert output.state == state


def test_a_refusal_for_more_than_a_day_ends_the_run_whoever_meets_it(
    slow: Sandbox, now: datetime, tmp_path: Path
) -> None:
    """A request that was sent ahead and told to wait for days holds nothing up."""
    slow.options.minute = 60 * 200_000.0  # a 429 tells a sixtieth of it
    events = 0

    def script(request: Request) -> str | None:
        nonlocal events
        events += request.path == "/events"
        faults = {1: "500", 3: "429"}
        return faults.get(events) if request.path == "/events" else None

    slow.options.script = script
    tap = TapProcess(tmp_path / "tap", slow, now, minute=6.0, concurrency=MANY)
    assert tap.end() == 1
    assert "the API asks to wait for more than a day" in tap.log.splitlines()[-1]
    assert events <= 3 * MANY


def test_what_nobody_waits_for_any_more_is_not_sent(sandbox: Sandbox, now: datetime) -> None:
    """Where a stream is refused, the requests it had in turn take no part of the rate limit."""

    def script(request: Request) -> str | None:
        return "403" if request.path == "/network" and "to" in request.query else None

    sandbox.options.script = script
    tap = tap_class(now, minute=2.0)(
        config={"api_url": sandbox.url, "api_key": sandbox.api_key, "requests_per_minute": 4}
        | {"events_for": "crashed"},
        catalog=select(now, "network", "sessions"),
    )
    with pytest.raises(SingerSDKError, match="403 Forbidden for /network"):
        tap.sync_all()
    paths = [one.path for one in sandbox.requests]
    # The newest day and three others are in the first two seconds, more of them later.
    assert paths[:4] == ["/network"] * 4
    assert set(paths[4:]) == {"/sessions"}


def test_failures_of_one_moment_cost_one_wait(slow: Sandbox, now: datetime) -> None:
    """Answers that failed while the first one was waited out are asked for at once."""
    failed = 0

    def script(request: Request) -> str | None:
        nonlocal failed
        if request.path != "/events" or failed == MANY:
            return None
        failed += 1
        return "503"

    slow.options.script = script
    # Two sixtieths of a minute are waited after a first failure.
    minute = 60.0
    began = time.monotonic()
    output = sync(slow, now, minute=minute, concurrency=MANY)
    assert output.table("events") == expected(slow.project, "events")
    assert failed == MANY
    # Far less than a wait for each.
    assert time.monotonic() - began < MANY * minute / 60 * 2
