"""How many requests a load takes, and how large its state is."""

from __future__ import annotations

import functools
import json
import typing as t
from datetime import datetime, timedelta

import pytest

from tests.conftest import with_project
from tests.running import Runs, assert_whole, counted, expected, select, sync
from tests.sandbox import Options, Sandbox, generate


@pytest.mark.parametrize(
    ("limit", "order", "to_means"),
    [
        pytest.param(1000, "newest", "before", marks=pytest.mark.long),
        pytest.param(100, "newest", "before", marks=pytest.mark.long),
        pytest.param(100, "oldest", "end", marks=pytest.mark.long),
        (100, "arbitrary", "midnight"),
    ],
)
def test_a_large_project_is_listed_near_the_floor(
    now: datetime, limit: int, order: t.Any, to_means: t.Any
) -> None:
    """30 + 45 + 3 pages take at most 42 + 60 + 3 requests, a second run at most 14.

    Where the newest does not come first, the first page of a window is looked at once more. One
    request asks whether there are calls in the lookback at all.

    With full pages these are 30,000 sessions, 45,000 network calls and 2,500 crash groups.
    """
    year = generate(
        seed=13,  # which has rows of the last day in every size
        sessions=30 * limit,
        days=200,
        until=now - timedelta(hours=1),
        events_per_session=2,
        network_per_session=1.5,
        crash_groups=limit * 5 // 2,
    )
    rows = {stream: len(year.table(stream)) for stream in ("sessions", "network")}
    assert rows["sessions"] == 30 * limit
    assert 42 * limit <= rows["network"] <= 48 * limit
    options = Options(requests_per_minute=None, order=order, to_means=to_means)
    with Sandbox(year, options) as sandbox:
        listings = select(now, "sessions", "network", "crashes")
        first = sync(sandbox, now, catalog=listings, page_size=limit)
        requests = counted(sandbox)
        for stream in ("sessions", "network", "crashes"):
            assert first.table(stream) == expected(year, stream)
            assert first.repeated(stream) == []
        assert requests["/sessions"] <= 42
        assert requests["/network"] <= (60 if order == "newest" else 67)
        assert requests["/crashes"] == 3
        sandbox.reset()
        second = sync(sandbox, now, first.state, catalog=listings, page_size=limit)
        assert counted(sandbox).total() <= (14 if order == "newest" else 15)
        assert second.rows("sessions") == []
        # Calls of the future come again until their time has come, and no others do.
        assert all(row["timestamp"] > f"{now:%F}T12" for row in second.rows("network"))


@pytest.mark.parametrize("days", [30, pytest.param(1000, marks=pytest.mark.long)])
def test_the_state_is_as_large_as_its_lookback(now: datetime, days: int) -> None:
    """10,000 sessions in the lookback take 180 kB at most, however long history is."""
    small = functools.partial(generate, events_per_session=1, network_per_session=0.01)
    project = small(31, 10_000, 7, now)
    older = small(32, days * 3, days - 7, now - timedelta(days=10))
    project.sessions |= older.sessions
    project.events |= older.events
    project.received |= older.received
    project.changed()
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        output = sync(sandbox, now, events_for="errors")  # fewer requests, as many entries
    assert len(output.table("sessions")) == 10_000 + days * 3
    sizes = [len(json.dumps(state, separators=(",", ":"))) for state in output.states]
    assert 100_000 < sizes[-1] <= 180_000
    assert max(sizes) <= 180_000


@with_project(sessions=150, days=6)
def test_sessions_beyond_what_is_kept_are_listed_again(sandbox: Sandbox, now: datetime) -> None:
    """Where the events of more sessions than 100 pages hold are due, none is left out."""
    sync(sandbox, now, page_size=1, catalog=select(now, "sessions"))
    listed = counted(sandbox)["/sessions"]
    sandbox.reset()
    output = sync(sandbox, now, page_size=1)
    assert_whole(sandbox.project, output)
    assert output.repeated("events") == output.repeated("sessions") == []
    assert listed + 100 < counted(sandbox)["/sessions"] < 2 * listed + 20


def test_a_project_without_calls_in_the_lookback_costs_one_request(
    sandbox: Sandbox, now: datetime
) -> None:
    """It is asked for all days at once, also where it had calls before, and new ones come."""
    run = Runs(sandbox, now, "network")
    for hours in (0, 480):
        run(hours)
    sandbox.reset()
    assert run(481).rows("network") == []
    assert counted(sandbox) == {"/network": 1}
    new = [sandbox.project.new_network(now + timedelta(hours=hours)) for hours in (400, 481)]
    assert run(482).ids("network") == new
