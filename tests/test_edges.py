"""What an API, a clock or a catalog may do that nobody expects."""

from __future__ import annotations

import typing as t
from datetime import datetime, timedelta

import pytest

from tests.conftest import LARGER
from tests.loads import Load
from tests.running import PRIMARY_KEYS, Row, counted, events_asked, expected, select, sync
from tests.sandbox import Options, Sandbox, generate

if t.TYPE_CHECKING:
    from tests.sandbox import Project, Request


# --- Clocks ----------------------------------------------------------------------------


def test_a_clock_that_was_never_set_stops_nothing(sandbox: Sandbox, now: datetime) -> None:
    """The zero time of some languages, year 1, is no date and is kept in _extra."""
    project = sandbox.project
    odd = project.new_session(now - timedelta(hours=2))
    project.sessions[odd]["startedAt"] = "0001-01-01T00:00:00Z"
    project.changed("sessions")
    first = sync(sandbox, now)
    second = sync(sandbox, now, first.state)
    row = first.table("sessions")[odd,]
    assert row["startedAt"] is None
    assert row["_extra"] == {"startedAt": "0001-01-01T00:00:00Z"}
    assert second.rows("sessions") == second.rows("events") == []


def test_calls_of_the_future_hide_no_late_ones(sandbox: Sandbox, now: datetime) -> None:
    """As many late calls as lay in the future do not cancel out in a day's number."""
    project = sandbox.project
    for day in (300, 301):
        project.new_network(now + timedelta(days=day))
    only = select(now, "network")
    output = sync(sandbox, now, catalog=only)
    late = {project.new_network(now + timedelta(hours=hours)) for hours in (3, 4)}
    tomorrow = sync(sandbox, now + timedelta(days=1), output.state, catalog=only)
    assert late <= {key[0] for key in tomorrow.table("network")}


def test_rows_of_the_future_alone_are_emitted_once(sandbox: Sandbox, now: datetime) -> None:
    """A project that has only rows of the future has no mark yet, but a memory."""
    project = sandbox.project
    project.purge(now + timedelta(days=1))
    first = sync(sandbox, now)
    project.new_session(now + timedelta(hours=2))
    project.new_network(now + timedelta(hours=2))
    second = sync(sandbox, now, first.state)
    third = sync(sandbox, now, second.state)
    for stream in ("sessions", "network", "events"):
        assert second.table(stream) == expected(project, stream)
        # Calls of the future come again until their time has come.
        rows = third.rows(stream)
        assert stream == "network" or rows == []
        assert all(datetime.fromisoformat(row["timestamp"]) > now for row in rows)


# --- Catalogs, projects and selections ---------------------------------------------------


def test_a_project_goes_on_with_its_own_state(sandbox: Sandbox, now: datetime) -> None:
    """A second run with the same project has nothing to do."""
    first = sync(sandbox, now, project="ios-app")
    sandbox.reset()
    second = sync(sandbox, now, first.state, project="ios-app")
    assert second.rows("sessions") == second.rows("events") == second.rows("network") == []
    assert events_asked(sandbox.requests) == []


def test_a_catalog_may_be_older_than_a_column(sandbox: Sandbox, now: datetime) -> None:
    """The columns project and _extra are added, so that projects share no key and no row lacks."""
    catalog = select(now, *PRIMARY_KEYS)
    for stream in catalog["streams"]:
        del stream["schema"]["properties"]["_extra"]
        stream["metadata"] = [
            one for one in stream["metadata"] if "_extra" not in one["breadcrumb"]
        ]
    sandbox.options.misfits = True
    output = sync(sandbox, now, catalog=catalog, project="ios-app")
    for stream in PRIMARY_KEYS:
        message = next(one for one in output.messages if one.get("stream") == stream)
        assert {"project", "_extra"} <= message["schema"]["properties"].keys()
        assert message["key_properties"][0] == "project"
        assert {row["project"] for row in output.rows(stream)} == {"ios-app"}
    assert any(row["_extra"] for row in output.rows("sessions"))


def test_a_catalog_may_hold_only_the_events(sandbox: Sandbox, now: datetime) -> None:
    """Events are loaded even when the catalog leaves their sessions out."""
    catalog = select(now, "events")
    catalog["streams"] = [one for one in catalog["streams"] if one["stream"] == "events"]
    output = sync(sandbox, now, catalog=catalog)
    assert output.table("events") == expected(sandbox.project, "events")


def test_a_catalog_can_force_all_rows(sandbox: Sandbox, now: datetime) -> None:
    """FULL_TABLE emits every session and leaves the state no larger than it was."""
    catalog = select(now, "sessions")
    first = sync(sandbox, now, catalog=catalog)
    for stream in catalog["streams"]:
        stream["replication_method"] = "FULL_TABLE"
    second = sync(sandbox, now, first.state, catalog=catalog)
    assert second.table("sessions") == expected(sandbox.project, "sessions")
    assert second.repeated("sessions") == []
    assert second.state["bookmarks"]["sessions"] == first.state["bookmarks"]["sessions"]


# In this project neither of the new sessions crashes, by chance.
@LARGER
def test_what_was_deselected_for_a_while_is_not_fetched_again(
    sandbox: Sandbox, now: datetime
) -> None:
    """After a week without events, or with few of them, only the new ones are asked for."""
    project = sandbox.project
    for pause in ({"catalog": select(now, "sessions")}, {"events_for": "crashed"}):
        state = sync(sandbox, now).state
        later = now + timedelta(days=8)
        new = {project.new_session(later - timedelta(hours=hours)) for hours in (1, 100)}
        state = sync(sandbox, later, state, **t.cast("dict[str, t.Any]", pause)).state
        sandbox.reset()
        sync(sandbox, later, state)
        assert new <= set(events_asked(sandbox.requests))
        assert len(events_asked(sandbox.requests)) <= len(new)
        project.purge(now + timedelta(days=1))
        for session in new:
            project.sessions.pop(session, None)
        project.changed()


def test_few_sessions_that_all_vanish_are_asked_for_again(sandbox: Sandbox, now: datetime) -> None:
    """When no session at all is known, the endpoint is to blame, not the sessions."""
    state = sync(sandbox, now).state
    later = now + timedelta(hours=1)
    new = {sandbox.project.new_session(now + timedelta(minutes=5 + i)) for i in range(3)}
    sandbox.options.vanished_sessions = set(sandbox.project.sessions)
    state = sync(sandbox, later, state).state
    sandbox.options.vanished_sessions = set()
    sandbox.reset()
    output = sync(sandbox, later, state)
    assert set(events_asked(sandbox.requests)) == new
    assert {row["sessionId"] for row in output.rows("events")} == new


def test_a_time_box_that_is_too_small_still_gets_on(sandbox: Sandbox, now: datetime) -> None:
    """Run after run, even a box of no time at all comes to its end."""
    state: dict[str, t.Any] | None = None
    tables: dict[str, dict[tuple[str, ...], dict[str, t.Any]]] = {}
    for _ in range(300):
        sandbox.reset()
        output = sync(sandbox, now, state, max_runtime_minutes=0.000001)
        state = output.state
        for stream in PRIMARY_KEYS:
            tables.setdefault(stream, {}).update(output.table(stream))
        if "/events" not in counted(sandbox):
            break
    for stream in PRIMARY_KEYS:
        assert tables[stream] == expected(sandbox.project, stream)


@pytest.mark.parametrize("offset", [5.5, 14, -8])
def test_late_calls_are_found_in_days_of_any_time_zone(
    sandbox: Sandbox, now: datetime, offset: float
) -> None:
    """Calls that come late are loaded after the day has turned, wherever days begin."""
    sandbox.options.utc_offset_hours = offset
    project, only = sandbox.project, select(now, "network")
    evening = now.replace(hour=23, minute=30)
    for call in range(1, 25):
        project.new_network(evening - timedelta(minutes=25 * call))
    state = sync(sandbox, evening, catalog=only).state
    late = {project.new_network(evening - timedelta(hours=16, minutes=i)) for i in range(3)}
    loaded: set[str] = set()
    for hours in (9, 10, 30):
        output = sync(sandbox, evening + timedelta(hours=hours), state, catalog=only)
        state = output.state
        loaded |= {key[0] for key in output.table("network")}
    assert late <= loaded
    assert output.rows("network") == []


@pytest.mark.parametrize("to_means", ["before", "midnight", "end"])
def test_a_late_call_is_found_though_calls_of_the_day_before_are_gone(
    sandbox: Sandbox, now: datetime, to_means: t.Literal["before", "midnight", "end"]
) -> None:
    """What is met in the window before, but was not emitted there, is still news."""
    sandbox.options.to_means = to_means
    project, only = sandbox.project, select(now, "network")
    first = sync(sandbox, now, catalog=only)
    day = (now - timedelta(days=4)).replace(hour=0)
    of_day = [
        row_id
        for row_id, row in project.network.items()
        if row["timestamp"].startswith(f"{day:%Y-%m-%d}")
    ]
    with project.lock:
        for gone in of_day[:2]:
            del project.network[gone]
        project.changed("network")
    late = project.new_network(day + timedelta(days=1, hours=5))
    second = sync(sandbox, now + timedelta(hours=1), first.state, catalog=only)
    assert (late,) in second.table("network")


@pytest.mark.parametrize("total", [None, "{}", "{:05000}"])
def test_new_calls_are_found_where_the_api_does_not_count(
    sandbox: Sandbox, now: datetime, total: str | None
) -> None:
    """A day is read anew where its total is missing or absurd; text is a number."""

    def without(envelope: Row) -> Row:
        count = envelope.pop("total")
        return envelope | ({"total": total.format(count)} if total else {})

    sandbox.options.envelope = without
    project, only = sandbox.project, select(now, "network")
    first = sync(sandbox, now, catalog=only, page_size=5)
    assert first.table("network") == expected(project, "network")
    new = {project.new_network(now + timedelta(minutes=minute)) for minute in range(3)}
    new.add(project.new_network(now - timedelta(days=3)))
    second = sync(sandbox, now + timedelta(hours=1), first.state, catalog=only, page_size=5)
    assert new <= {key[0] for key in second.table("network")}


def test_an_answer_without_the_rows_it_counts_is_asked_for_again(
    sandbox: Sandbox, now: datetime
) -> None:
    """One page that counts rows and brings none is a glitch, not an empty day."""
    glitches = 0

    def empty(envelope: Row) -> Row:
        nonlocal glitches
        if envelope["total"] > 3 and glitches < 2 and "url" in envelope["data"][0]:
            glitches += 1
            envelope["data"] = []
        return envelope

    sandbox.options.envelope = empty
    output = sync(sandbox, now, catalog=select(now, "network"))
    assert glitches == 2
    assert output.table("network") == expected(sandbox.project, "network")


def test_the_newest_events_do_not_wait_for_time_to_list_older_sessions(now: datetime) -> None:
    """A box that ends before all sessions are listed leaves the events of the newest."""
    project = generate(seed=3, sessions=400, days=200, until=now - timedelta(hours=1))
    box: Row = {"page_size": 2, "max_runtime_minutes": 0.000001, "concurrency": 1}
    asked: list[str] = []
    state: Row | None = None
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        for _ in range(3):
            output = sync(sandbox, now, state, **box)
            state = output.state
            asked += [key[0] for key in dict.fromkeys(output.table("events"))]
            assert output.rows("events")
            assert state["bookmarks"]["sessions"]["complete_from"] != "beginning"
    sessions = list(dict.fromkeys(asked))
    newest = sorted(
        (row for row in project.sessions.values() if project.events[row["id"]]),
        key=lambda row: row["startedAt"],
        reverse=True,
    )
    assert sessions == [row["id"] for row in newest[:3]]


def test_a_session_without_an_id_is_never_asked_for(sandbox: Sandbox, now: datetime) -> None:
    """A state that has set one aside is damaged, and its events would have no key."""
    state = sync(sandbox, now).state
    state["bookmarks"]["events"]["set_aside"] = {"": None}
    sandbox.reset()
    output = sync(sandbox, now, state)
    assert events_asked(sandbox.requests) == []
    assert output.state["bookmarks"]["events"]["set_aside"] == {}


def test_events_get_on_though_a_session_is_set_aside_and_the_box_too_small(
    sandbox: Sandbox, now: datetime
) -> None:
    """A session that is tried again takes no time from those that are due."""
    whole = [one for one, events in sandbox.project.events.items() if len(events) > 1]
    sandbox.options.broken_sessions = {whole[0]}
    state = sync(sandbox, now, minute=0.02).state
    assert set(state["bookmarks"]["events"]["set_aside"]) == {whole[0]}
    new = {sandbox.project.new_session(now + timedelta(minutes=i)) for i in range(1, 4)}
    sandbox.reset()
    for _ in new:
        output = sync(
            sandbox, now + timedelta(hours=1), state, minute=0.02, max_runtime_minutes=1e-6
        )
        state = output.state
    assert set(events_asked(sandbox.requests)) == new


@pytest.mark.parametrize("stream", ["sessions", "network"])
def test_history_goes_on_though_no_time_is_left_for_it(now: datetime, stream: str) -> None:
    """Each run moves the mark back, also where windows are no longer than a day."""
    project = generate(seed=3, sessions=100, days=12, until=now - timedelta(hours=1))
    state, marks = None, ["now"]
    table: dict[tuple[str, ...], Row] = {}
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        while marks[-1] != "beginning":
            output = sync(
                sandbox,
                now,
                state,
                select(now, stream),
                page_size=1,
                lookback_days=1,
                max_runtime_minutes=1e-6,
            )
            state = output.state
            table |= output.table(stream)
            marks.append(state["bookmarks"][stream]["complete_from"])
            assert marks[-1] != marks[-2]
    assert len(marks) > 3
    assert table == expected(project, stream)


def test_a_session_whose_events_repeat_came_short(sandbox: Sandbox, now: datetime) -> None:
    """Pages of one session that lead nowhere do not keep the others back."""
    sandbox.options.events_paging = "pages"
    bad = max(sandbox.project.events, key=lambda one: len(sandbox.project.events[one]))

    def repeat(request: Request, project: Project) -> None:
        del project
        sandbox.options.repeat_page = request.query.get("sessionId") == bad

    sandbox.options.on_request = repeat
    output = sync(sandbox, now, page_size=5, concurrency=1)
    count = sandbox.project.sessions[bad]["eventCount"]
    assert output.state["bookmarks"]["events"]["short"] == {bad: [5, count]}
    events = expected(sandbox.project, "events")
    written = output.table("events")
    assert {key for key in events if key[0] != bad} <= set(written)


def test_what_was_fetched_before_an_error_is_not_fetched_again(
    sandbox: Sandbox, load: Load
) -> None:
    """A key that is rejected in the middle of the events costs no session another request."""
    order = list(load(concurrency=1).sessions)
    sandbox.options.script = lambda request: (
        "401" if request.query.get("sessionId") == order[40] else None
    )
    failed = load(concurrency=1)
    assert failed.code == 1
    assert "401 Unauthorized for /events" in failed.log[-1]
    sandbox.options.script = None
    assert set(load(failed.output.state).sessions) == set(order[40:])
