"""Asking ahead: the same rows and requests, and never more at once than set."""

from __future__ import annotations

import json
import threading
import time
import typing as t
from datetime import timedelta

import pytest
from singer_sdk.exceptions import SingerSDKError

from tap_bugspulse.client import BugsPulseStream
from tap_bugspulse.replication import FAR
from tests.conftest import NOW, sweep, with_project
from tests.running import (
    PRIMARY_KEYS,
    Row,
    Runs,
    assert_whole,
    events_asked,
    expected,
    select,
    sync,
    tap_class,
)
from tests.sandbox import Project, Request, Sandbox
from tests.tap_process import Starter

MANY = 8
DAY = timedelta(days=1)
DATA = {"seed": 3, "sessions": 80, "days": 10}
LARGE = {"sessions": 300, "days": 40}


@pytest.fixture
def slow(sandbox: Sandbox) -> Sandbox:
    """A project whose answers take a while, some longer than others."""
    sandbox.options.latency, sandbox.options.jitter = 0.005, 0.02
    return sandbox


def asked(sandbox: Sandbox) -> list[tuple[tuple[str, str], ...]]:
    """Return what was asked for, in an order of its own."""
    return sorted((("path", one.path), *sorted(one.query.items())) for one in sandbox.requests)


def on_their_way(sandbox: Sandbox) -> int:
    """Return how many requests have no answer yet."""
    return sum(one.status == 0 for one in list(sandbox.requests))


def test_rows_and_requests_are_the_same_as_one_at_a_time(slow: Sandbox) -> None:
    """Asking ahead changes no message but STATE, and no request but its moment."""
    one = sync(slow, NOW, concurrency=1, page_size=10)
    in_turn = asked(slow)
    slow.reset()
    many = sync(slow, NOW, concurrency=MANY, page_size=10)
    assert_whole(slow.project, one)
    for stream in PRIMARY_KEYS:
        assert many.rows(stream) == one.rows(stream)
    assert many.state == one.state
    assert asked(slow) == in_turn
    assert len(in_turn) > 100


@with_project(sessions=20, days=5)
@sweep("concurrency fault", [1, MANY], ["drip", "timeout"], quick=[(1, "drip"), (MANY, "timeout")])
def test_answers_that_never_end_keep_none_from_being_sent(
    sandbox: Sandbox, start: Starter, concurrency: int, fault: str
) -> None:
    """As many as may be on their way at once are given up, and others sent."""
    left = [*range(concurrency)]

    def script(request: Request) -> str | None:
        return fault if request.path == "/events" and left and left.pop() >= 0 else None

    sandbox.options.script, sandbox.options.drip_seconds = script, 0.1
    tap = start(minute=0.5, concurrency=concurrency, request_timeout=0.3)
    assert tap.end() == 0, tap.log
    assert_whole(sandbox.project, tap.output())
    assert not left


# Days of several pages, which are read while other days are asked for.
@with_project(sessions=180, days=9, until=NOW)
@sweep("concurrency", [1, MANY], quick=[(MANY,)])
def test_no_more_are_on_their_way_than_set(sandbox: Sandbox, concurrency: int) -> None:
    """As many requests as set are on their way at once, and never one more."""
    sandbox.options.latency = sandbox.options.jitter = 0.05
    counts: list[int] = []
    sandbox.options.on_request = lambda *_: counts.append(on_their_way(sandbox))
    only = select(NOW, "sessions", "network")
    sync(sandbox, NOW, catalog=only, concurrency=concurrency, page_size=10)
    assert max(counts) == concurrency


@with_project(sessions=1, days=1)
def test_no_more_are_on_their_way_than_set_after_a_pause(sandbox: Sandbox) -> None:
    """Those that wait for longer than an answer may take are not sent all at once."""
    sandbox.options.latency = 0.1
    sandbox.options.minute = 60 * 1.0  # a 429 asks for a sixtieth of it
    counts: list[int] = []

    def script(_: Request) -> str | None:
        counts.append(on_their_way(sandbox))
        return "429" if len(sandbox.requests) == 1 else None

    sandbox.options.script = script
    config = {"api_url": sandbox.url, "api_key": sandbox.api_key, "concurrency": 2}
    tap = tap_class(NOW)(config={**config, "request_timeout": 0.45})
    crashes = t.cast("BugsPulseStream", tap.streams["crashes"])
    for call in [crashes.fetch({}) for _ in range(MANY)]:
        crashes.take(call)
    assert len(counts) == MANY + 1
    assert max(counts) == 2


# Where a time limit gives requests up, others wait for their turn.
@pytest.mark.parametrize(
    "settings",
    [{}, {"requests_per_minute": 1, "minute": 0.1, "max_runtime_minutes": 0.015}],
    ids=["to its end", "until time is up"],
)
def test_a_run_leaves_no_thread_behind(slow: Sandbox, settings: Row) -> None:
    """What has asked ahead ends with the run, also where the tap is used as a library."""
    before = set(threading.enumerate())
    sync(slow, NOW, catalog=select(NOW, "events"), concurrency=MANY, **settings)
    own = [one for one in threading.enumerate() if one not in before and "_work" in one.name]
    for one in own:
        one.join(10)
    assert not any(one.is_alive() for one in own)


def test_all_wait_when_one_is_told_to(slow: Sandbox) -> None:
    """While an answer 429 is waited out, nobody else asks for anything."""
    told, sent_before = 2.0, 1.0
    slow.options.minute = 60 * told
    refused: list[float] = []

    def script(request: Request) -> str | None:
        if request.path == "/events" and len(slow.requests) > 40 and not refused:
            refused.append(request.at)
            return "429"
        return None

    slow.options.script = script
    output = sync(slow, NOW, concurrency=MANY)
    assert output.table("events") == expected(slow.project, "events")
    late = [one.at - refused[0] for one in slow.requests if one.at > refused[0]]
    assert [at for at in late if sent_before < at < told] == []
    assert len([at for at in late if at < told]) < 2 * MANY
    assert len([at for at in late if at > told]) > MANY


@with_project(seed=8, sessions=80, days=6)
@sweep(
    "order change",
    ["newest", "oldest", "arbitrary"],
    ["late_every", "new_every", "purge_every"],
    quick=[("newest", "new_every"), ("arbitrary", "late_every")],
)
def test_pages_that_are_answered_out_of_turn_lose_nothing(
    sandbox: Sandbox, order: t.Literal["newest", "oldest", "arbitrary"], change: str
) -> None:
    """Rows that are there all the time arrive, though pages overtake each other."""
    before = {name: set(sandbox.project.table(name)) for name in ("sessions", "network")}
    sandbox.options.order, sandbox.options.jitter = order, 0.03
    setattr(sandbox.options, change, 25 if change == "purge_every" else 3)
    only = select(NOW, "sessions", "network")
    output = sync(sandbox, NOW, catalog=only, page_size=5, concurrency=MANY)
    for stream, known in before.items():
        stayed = known & set(sandbox.project.table(stream))
        assert len(stayed) > 20
        assert stayed <= set(output.ids(stream))
        assert output.repeated(stream) == []


def test_an_error_ends_the_run_though_others_hang(sandbox: Sandbox, start: Starter) -> None:
    """Answers that never come hold up no end, and nothing more is asked for."""
    order = sync(sandbox, NOW, concurrency=1, catalog=select(NOW, "events")).asked
    sandbox.reset()
    sandbox.options.hang_seconds = 600.0

    def script(request: Request) -> str | None:
        if request.path != "/events":
            return None
        place = order.index(request.query["sessionId"])
        return None if place < 20 else "401" if place == 20 else "timeout"

    sandbox.options.script = script
    tap = start(concurrency=MANY, fresh=True)
    assert tap.end() == 1
    assert "401 Unauthorized for /events" in tap.last
    assert 20 < len(events_asked(sandbox.requests)) <= 20 + MANY
    assert json.loads(tap.written.splitlines()[-1])["type"] in {"RECORD", "STATE"}


@with_project(sessions=90, days=20)
def test_pages_to_which_rows_still_come_are_asked_for_one_by_one(sandbox: Sandbox) -> None:
    """Without an end that counts, each page is asked for when the one before it has come."""
    sandbox.options.ignored, sandbox.options.latency = "from-alone", 0.02
    counts: list[int] = []
    pages: set[str] = set()

    def count(request: Request, _: Project) -> None:
        if request.query.get("to", f"{FAR}") == f"{FAR}" and request.path == "/sessions":
            counts.append(on_their_way(sandbox))
            pages.add(request.query["page"])

    sandbox.options.on_request = count
    output = sync(sandbox, NOW, catalog=select(NOW, "sessions"), page_size=10)
    assert output.table("sessions") == expected(sandbox.project, "sessions")
    assert "3" in pages
    assert max(counts) == 1


@with_project(sessions=300, days=20, events_per_session=0, lying_clocks=False)
@sweep("concurrency", [1, MANY, 32], quick=[(MANY,)])
def test_no_day_is_asked_for_with_and_without_an_end(sandbox: Sandbox, concurrency: int) -> None:
    """Where history reaches into today, today is read once, in the forward part."""
    run = Runs(sandbox, NOW, "network")
    run(-24, start_date=f"{NOW - timedelta(days=1, hours=6):%FT%TZ}")
    sandbox.reset()
    run(concurrency=concurrency)
    today = f"{NOW:%F}"
    queries = [one.query for one in sandbox.requests if one.query.get("from") == today]
    assert {query["to"] for query in queries} == {f"{FAR}"}


@with_project(**LARGE)
@pytest.mark.parametrize("concurrency", [1, 32])
def test_no_more_is_asked_for_when_time_is_up(sandbox: Sandbox, concurrency: int) -> None:
    """A limit that is over before history begins leaves it one window, asked ahead or not."""
    run = Runs(sandbox, NOW, "network")
    run(start_date=f"{NOW - 2 * DAY:%FT%TZ}")
    sandbox.reset()
    run(concurrency=concurrency, max_runtime_minutes=1e-9)
    starts = [one.query.get("from") for one in sandbox.requests]
    assert len(set(starts)) == len(starts)
    assert len(starts) == 10  # the days of the lookback, and what is before them


@with_project(**LARGE)
def test_a_time_limit_counts_where_the_state_is_left_as_it_is(sandbox: Sandbox) -> None:
    """Rows before what is complete, which move no bookmark, are not read for ever."""
    run, until = Runs(sandbox, NOW, "sessions"), f"{NOW - 10 * DAY:%F}"
    first = run(start_date=f"{NOW - 2 * DAY:%FT%TZ}")
    output = run(max_runtime_minutes=1e-9, page_size=3, end_date=until)
    old = sum(row["startedAt"] < until for row in sandbox.project.sessions.values())
    assert len(output.rows("sessions")) < old
    assert output.state == first.state


def test_a_refusal_for_more_than_a_day_ends_the_run(slow: Sandbox, start: Starter) -> None:
    """A request that was sent ahead and told to wait for days holds nothing up."""
    slow.options.minute = 60 * 200_000.0  # a 429 tells a sixtieth of it
    events: list[Request] = []

    def script(request: Request) -> str | None:
        if request.path != "/events":
            return None
        events.append(request)
        return {1: "500", 3: "429"}.get(len(events))

    slow.options.script = script
    tap = start(minute=6.0, concurrency=MANY)
    assert tap.end() == 1
    assert "the API asks to wait for more than a day" in tap.last
    assert len(events) <= 3 * MANY


def test_what_nobody_waits_for_any_more_is_not_sent(sandbox: Sandbox) -> None:
    """Where a stream is refused, the requests it had in turn take no part of the rate limit."""

    def script(request: Request) -> str | None:
        is_day = request.query.get("to", f"{FAR}") != f"{FAR}"
        return "403" if request.path == "/network" and is_day else None

    sandbox.options.script = script
    settings: Row = {"requests_per_minute": 4, "events_for": "crashed", "minute": 2.0}
    with pytest.raises(SingerSDKError, match="403 Forbidden for /network"):
        sync(sandbox, NOW, catalog=select(NOW, "network", "sessions"), **settings)
    paths = [one.path for one in sandbox.requests]
    # The newest day and three others are in the first two seconds, more of them later.
    assert paths[:4] == ["/network"] * 4
    assert set(paths[4:]) == {"/sessions"}


def test_failures_of_one_moment_cost_one_wait(slow: Sandbox) -> None:
    """Answers that failed while the first one was waited out are asked for at once."""
    failed: list[Request] = []

    def script(request: Request) -> str | None:
        if request.path != "/events" or len(failed) == MANY:
            return None
        failed.append(request)
        return "503"

    slow.options.script = script
    began = time.monotonic()
    output = sync(slow, NOW, minute=30.0, concurrency=MANY)
    assert output.table("events") == expected(slow.project, "events")
    assert len(failed) == MANY
    # Two sixtieths of a minute are waited after a first failure: far less than one for each.
    assert time.monotonic() - began < MANY * 30 / 60 * 2
