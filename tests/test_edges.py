"""What an API, a clock or a catalog may do that nobody expects."""

from __future__ import annotations

import typing as t
from datetime import timedelta

import pytest

from tests.conftest import NOW, with_project
from tests.loads import Load
from tests.running import PRIMARY_KEYS, Row, Runs, assert_whole, expected, select, sync
from tests.sandbox import Sandbox

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NO_TIME = 1e-6  # minutes, over before the first request


def test_a_clock_that_was_never_set_stops_nothing(sandbox: Sandbox) -> None:
    """The zero time of some languages, year 1, is no date and is kept in _extra."""
    odd = sandbox.project.new_session(NOW - 2 * HOUR)
    sandbox.project.sessions[odd]["startedAt"] = "0001-01-01T00:00:00Z"
    sandbox.project.changed("sessions")
    run = Runs(sandbox, NOW)
    row, second = run().table("sessions")[odd,], run()
    assert row["startedAt"] is None
    assert row["_extra"] == {"startedAt": "0001-01-01T00:00:00Z"}
    assert second.rows("sessions") == second.rows("events") == []


# --- Catalogs and projects ---------------------------------------------------------------


def test_a_catalog_may_be_older_than_a_column(sandbox: Sandbox) -> None:
    """The columns project and _extra are added, so that projects share no key and no row lacks."""
    catalog = select(NOW, *PRIMARY_KEYS)
    for stream in catalog["streams"]:
        del stream["schema"]["properties"]["_extra"]
        stream["metadata"] = [
            one for one in stream["metadata"] if "_extra" not in one["breadcrumb"]
        ]
    sandbox.options.misfits = True
    output = sync(sandbox, NOW, catalog=catalog, project="ios-app")
    for stream in PRIMARY_KEYS:
        message = next(one for one in output.messages if one.get("stream") == stream)
        assert {"project", "_extra"} <= message["schema"]["properties"].keys()
        assert message["key_properties"][0] == "project"
        assert {row["project"] for row in output.rows(stream)} == {"ios-app"}
    assert any(row["_extra"] for row in output.rows("sessions"))


def test_a_catalog_can_force_all_rows(sandbox: Sandbox) -> None:
    """FULL_TABLE emits every session and leaves the state no larger than it was."""
    run, every_row = Runs(sandbox, NOW, "sessions"), select(NOW, "sessions")
    for stream in every_row["streams"]:
        stream["replication_method"] = "FULL_TABLE"
    first, second = run(), run(catalog=every_row)
    assert second.table("sessions") == expected(sandbox.project, "sessions")
    assert second.repeated("sessions") == []
    assert second.state["bookmarks"]["sessions"] == first.state["bookmarks"]["sessions"]


# --- Days and what the API counts in them --------------------------------------------------


@pytest.mark.parametrize("to_means", ["before", "midnight", "end"])
def test_a_late_call_is_found_though_calls_of_the_day_before_are_gone(
    sandbox: Sandbox, to_means: t.Literal["before", "midnight", "end"]
) -> None:
    """What is met in the window before, but was not emitted there, is still news."""
    sandbox.options.to_means = to_means
    project, run = sandbox.project, Runs(sandbox, NOW, "network")
    run()
    day = (NOW - 4 * DAY).replace(hour=0)
    of_day = [one for one in project.network if project.when("network", one)[:10] == f"{day:%F}"]
    for gone in of_day[:2]:
        del project.network[gone]
    late = project.new_network(day + 29 * HOUR)
    assert late in run(1).ids("network")


@pytest.mark.parametrize("total", [None, "{}", "{:05000}", "of the page"])
def test_new_calls_are_found_without_a_right_total(sandbox: Sandbox, total: str | None) -> None:
    """A day is read anew where its total is missing or absurd; text is a number."""

    def without(envelope: Row) -> Row:
        count = envelope.pop("total")
        return envelope | ({"total": total.format(count)} if total else {})

    if total == "of the page":
        sandbox.options.counts = "page-total"
    else:
        sandbox.options.envelope = without
    project, run = sandbox.project, Runs(sandbox, NOW, "network", page_size=5)
    assert run().table("network") == expected(project, "network")
    new = {project.new_network(NOW + timedelta(minutes=minute)) for minute in range(3)}
    new.add(project.new_network(NOW - 3 * DAY))
    assert new <= set(run(1).ids("network"))


def test_an_answer_without_the_rows_it_counts_is_asked_for_again(sandbox: Sandbox) -> None:
    """One page that counts rows and brings none is a glitch, not an empty day."""
    glitches: list[Row] = []

    def empty(envelope: Row) -> Row:
        if envelope["total"] > 3 and len(glitches) < 2:
            glitches.append(envelope)
            return {**envelope, "data": []}
        return envelope

    sandbox.options.envelope = empty
    output = sync(sandbox, NOW, catalog=select(NOW, "network"))
    assert len(glitches) == 2
    assert output.table("network") == expected(sandbox.project, "network")


# --- A time limit that is too short ---------------------------------------------------------


def test_a_time_limit_that_is_too_short_makes_progress(sandbox: Sandbox) -> None:
    """Run after run, even a limit of no time at all comes to its end."""
    run = Runs(sandbox, NOW, max_runtime_minutes=NO_TIME)
    while run().asked:
        assert len(run.outputs) < 300
    assert_whole(sandbox.project, *run.outputs)


@with_project(seed=3, sessions=400, days=200)
def test_the_newest_events_do_not_wait_for_time_to_list_older_sessions(sandbox: Sandbox) -> None:
    """A limit that ends before all sessions are listed leaves the events of the newest."""
    run = Runs(sandbox, NOW, page_size=2, max_runtime_minutes=NO_TIME, concurrency=1)
    came: list[str] = []
    for output in (run(), run(), run()):
        assert output.rows("events")
        came += [row["sessionId"] for row in output.rows("events")]
        assert output.state["bookmarks"]["sessions"]["complete_from"] != "beginning"
    project = sandbox.project
    due = (one for one, events in project.events.items() if events)
    newest = sorted(due, key=lambda one: project.when("sessions", one), reverse=True)
    assert list(dict.fromkeys(came)) == newest[:3]


def test_a_session_that_is_set_aside_takes_no_time_from_others(sandbox: Sandbox) -> None:
    """One that is tried again does not keep a limit that is too short from making progress."""
    broken = next(one for one, events in sandbox.project.events.items() if len(events) > 1)
    sandbox.options.broken_sessions = {broken}
    run = Runs(sandbox, NOW, minute=0.02)
    assert set(run().state["bookmarks"]["events"]["set_aside"]) == {broken}
    new = {sandbox.project.new_session(NOW + timedelta(minutes=one)) for one in range(1, 4)}
    asked = [one for _ in new for one in run(1, max_runtime_minutes=NO_TIME).asked]
    assert set(asked) == new


@with_project(seed=3, sessions=100, days=12)
@pytest.mark.parametrize("stream", ["sessions", "network"])
def test_history_goes_on_though_no_time_is_left_for_it(sandbox: Sandbox, stream: str) -> None:
    """Each run moves the bookmark back, also where windows are no longer than a day."""
    limited: Row = {"page_size": 1, "lookback_days": 1, "max_runtime_minutes": NO_TIME}
    run, begins = Runs(sandbox, NOW, stream, **limited), ["now"]
    table: dict[tuple[str, ...], Row] = {}
    while begins[-1] != "beginning":
        output = run()
        table |= output.table(stream)
        begins.append(output.state["bookmarks"][stream]["complete_from"])
        assert begins[-1] != begins[-2]
    assert len(begins) > 3
    assert table == expected(sandbox.project, stream)


# --- Events of one session ------------------------------------------------------------------


def test_a_session_without_an_id_is_never_asked_for(sandbox: Sandbox) -> None:
    """A state that has set one aside is damaged, and its events would have no key."""
    state = sync(sandbox, NOW).state
    state["bookmarks"]["events"]["set_aside"] = {"": "500"}
    output = sync(sandbox, NOW, state)
    assert output.asked == []
    assert output.state["bookmarks"]["events"]["set_aside"] == {}


def test_what_came_before_an_error_is_not_fetched_again(sandbox: Sandbox, load: Load) -> None:
    """A key that is rejected in the middle of the events costs no session another request."""
    order = list(load(concurrency=1).sessions)
    rejected = order[40]
    sandbox.options.script = lambda one: "401" if one.query.get("sessionId") == rejected else None
    failed = load(code=1, concurrency=1)
    assert "401 Unauthorized for /events" in failed.log[-1]
    sandbox.options.script = None
    assert set(load(failed.output.state).sessions) == set(order[40:])
