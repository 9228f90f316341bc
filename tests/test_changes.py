"""Rows that change, come late or vanish, while a run reads and between runs."""

from __future__ import annotations

import logging
import typing as t
from datetime import datetime, timedelta

import pytest

from tests.conftest import sweep
from tests.running import PRIMARY_KEYS, Output, counted, expected, select, sync
from tests.sandbox import Options, Sandbox, generate

if t.TYPE_CHECKING:
    from tests.sandbox import Project, Request

Order = t.Literal["newest", "oldest", "arbitrary"]
Reading = t.Literal["before", "midnight", "end"]
ORDERS: list[Order] = ["newest", "oldest", "arbitrary"]


def asked_for_events(sandbox: Sandbox) -> list[str]:
    """Return the sessions whose events were asked for, in order."""
    return [request.query["sessionId"] for request in sandbox.requests if request.path == "/events"]


# --- While pages are read --------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_growth_while_pages_are_read_asks_for_nothing_twice(
    sandbox: Sandbox, now: datetime, order: Order
) -> None:
    """Sessions that come while the pages are read cost no second listing."""
    settled = counted_run(sandbox, now, order)
    before = set(sandbox.project.sessions)
    count = 0

    def grow(request: Request, project: Project) -> None:
        nonlocal count
        if request.path == "/sessions" and request.query["page"] == "2":
            count += 1
            project.new_session(now - timedelta(minutes=30))

    sandbox.options.on_request = grow
    output = sync(sandbox, now, page_size=20, catalog=select(now, "sessions"), concurrency=1)
    assert count > 0
    assert before <= {key[0] for key in output.table("sessions")}
    assert counted(sandbox)["/sessions"] <= settled + 1  # the page that growth adds


def counted_run(sandbox: Sandbox, now: datetime, order: Order) -> int:
    """Set the order and count the requests of a run in which nothing changes."""
    sandbox.options.order = order
    sync(sandbox, now, page_size=20, catalog=select(now, "sessions"))
    requests = counted(sandbox)["/sessions"]
    sandbox.reset()
    return requests


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("stream", ["sessions", "network", "crashes"])
def test_no_row_is_lost_while_others_are_deleted(
    sandbox: Sandbox, now: datetime, order: Order, stream: str
) -> None:
    """Rows that are there all the time arrive though others vanish between pages."""
    sandbox.options.order = order
    deleted = 0

    def delete(request: Request, project: Project) -> None:
        nonlocal deleted
        if request.path == f"/{stream}" and int(request.query["page"]) in {2, 3}:
            rows = project.table(stream)
            # From either end, so that the pages that follow shift in every order.
            for row_id in (next(iter(rows)), next(reversed(rows))):
                del rows[row_id]
                deleted += 1
            project.changed(stream)

    sandbox.options.on_request = delete
    output = sync(sandbox, now, page_size=3, catalog=select(now, stream))
    assert deleted > 0
    assert expected(sandbox.project, stream).items() <= output.table(stream).items()
    assert output.repeated(stream) == []


@pytest.mark.parametrize("stream", ["sessions", "network"])
@pytest.mark.parametrize("many", [1, 3, 7])
@pytest.mark.parametrize("at_page", [2, 3])
def test_no_row_is_lost_when_as_many_come_as_go(
    sandbox: Sandbox, now: datetime, stream: str, many: int, at_page: int
) -> None:
    """The oldest rows go and as many new ones come: the total alone would not show it."""
    sandbox.options.order = "oldest"
    project, column = sandbox.project, {"sessions": "startedAt", "network": "timestamp"}
    table = project.table(stream)
    add: t.Callable[[datetime], str] = project.new_network
    if stream == "sessions":
        add = project.new_session
    turned_over = 0

    def turn_over(request: Request, _: Project) -> None:
        nonlocal turned_over
        if turned_over or request.path != f"/{stream}" or "to" not in request.query:
            return
        if request.query["page"] == str(at_page):
            start = request.query.get("from", "")
            rows = sorted(table, key=lambda row_id: table[row_id][column[stream]])
            oldest = [row_id for row_id in rows if table[row_id][column[stream]] >= start]
            for row_id in oldest[:many]:
                del table[row_id]
            # Within the window that is being read, after all of its rows.
            end = datetime.fromisoformat(request.query["to"] + "T00:00:00Z")
            for minutes in range(many):
                add(end - timedelta(minutes=many - minutes))
            project.changed(stream)
            turned_over = len(oldest)

    sandbox.options.on_request = turn_over
    output = sync(sandbox, now, page_size=3, catalog=select(now, stream))
    assert turned_over > 0
    assert expected(project, stream).items() <= output.table(stream).items()
    assert output.repeated(stream) == []


def test_no_event_is_lost_while_others_are_deleted(sandbox: Sandbox, now: datetime) -> None:
    """Events over several pages are listed again when they shift."""
    sandbox.options.events_paging = "pages"
    session_id, events = max(sandbox.project.events.items(), key=lambda entry: len(entry[1]))

    def delete(request: Request, project: Project) -> None:
        asked = (request.query.get("sessionId"), request.query["page"])
        if asked == (session_id, "2") and len(events) == count:
            del events[0]
            project.changed()

    count = len(events)
    assert count > 10
    sandbox.options.on_request = delete
    output = sync(sandbox, now, page_size=5)
    assert len(events) == count - 1
    assert expected(sandbox.project, "events").items() <= output.table("events").items()


def test_no_row_is_lost_where_one_comes_before_one_goes(sandbox: Sandbox, now: datetime) -> None:
    """The API counts as many rows in the end as at first, and more in between."""
    rows = sandbox.project.crashes
    ordered = sorted(rows, key=lambda one: rows[one]["lastSeenAt"])
    oldest = rows[ordered[0]]

    def change(request: Request, project: Project) -> None:
        if request.path == "/crashes" and request.query["page"] == "2" and "new" not in rows:
            rows["new"] = {**oldest, "id": "new", "lastSeenAt": "2026-01-01T00:00:00.000Z"}
        elif request.path == "/crashes" and request.query["page"] == "3":
            rows.pop(ordered[-1], None)
        project.changed("crashes")

    assert len(rows) > 4
    sandbox.options.on_request = change
    output = sync(sandbox, now, page_size=2, catalog=select(now, "crashes"))
    assert expected(sandbox.project, "crashes").items() <= output.table("crashes").items()


def test_a_listing_that_stays_short_is_told(
    sandbox: Sandbox, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the API counts more rows than it gives, a warning has both numbers."""

    def shrink(request: Request, project: Project) -> None:
        if request.path == "/sessions" and request.query["page"] == "2":
            del project.sessions[next(iter(project.sessions))]
            project.changed("sessions")

    sandbox.options.on_request = shrink
    sync(sandbox, now, page_size=5, catalog=select(now, "sessions"))
    warnings = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert any("rows arrived where the API counts" in warning for warning in warnings)
    first_pages = [one.query["page"] for one in sandbox.requests].count("1")
    assert first_pages <= 3 * len(warnings) + 4  # three listings, and a few to cut windows


def test_rows_that_share_a_key_are_told(
    sandbox: Sandbox, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    """Two events of one session with the same id: the first is loaded, and it is said."""
    session_id, events = next(
        (one, events) for one, events in sandbox.project.events.items() if len(events) > 2
    )
    events[1]["id"] = events[0]["id"]
    sandbox.project.changed()
    output = sync(sandbox, now)
    ids = [row["id"] for row in output.rows("events") if row["sessionId"] == session_id]
    assert ids == [event["id"] for event in events if event is not events[1]]
    came, counted = len(ids), len(events)
    assert f"events: {came} rows arrived where the API counts {counted} in" in caplog.text


# --- Between runs ----------------------------------------------------------------------


def test_only_what_changed_is_loaded_again(sandbox: Sandbox, now: datetime) -> None:
    """Sessions that grew, ended, crashed, are new or came late, and no others."""
    project = sandbox.project
    first = sync(sandbox, now)
    recent = [
        session_id
        for session_id, row in project.sessions.items()
        if now - timedelta(days=5) < datetime.fromisoformat(row["startedAt"]) < now
    ]
    active = [one for one in recent if project.sessions[one]["status"] == "active"]
    finished = [one for one in recent if project.sessions[one]["status"] == "completed"]
    changed = {finished[0], finished[1], active[0]}
    project.grow(finished[0])
    project.crash(finished[1])
    project.end(active[0])
    changed.add(project.new_session(now - timedelta(minutes=5)))
    changed.add(project.new_session(now - timedelta(days=6)))
    sandbox.reset()
    second = sync(sandbox, now + timedelta(hours=1), first.state)
    assert {key[0] for key in second.table("sessions")} == changed
    assert second.repeated("sessions") == []
    assert set(asked_for_events(sandbox)) == changed
    assert len(asked_for_events(sandbox)) == len(changed)
    for stream in PRIMARY_KEYS:
        together = first.table(stream) | second.table(stream)
        assert together == expected(project, stream)


def test_late_network_calls_are_found_by_their_number(sandbox: Sandbox, now: datetime) -> None:
    """A call that comes late is loaded, and unchanged days take a request each."""
    first = sync(sandbox, now, catalog=select(now, "network"), page_size=3)
    late = sandbox.project.new_network(now - timedelta(days=3))
    sandbox.reset()
    second = sync(sandbox, now, first.state, catalog=select(now, "network"), page_size=3)
    day = (now - timedelta(days=3)).date().isoformat()
    assert (late,) in second.table("network")
    assert {row["timestamp"][:10] for row in second.rows("network")} == {day}
    assert second.repeated("network") == []
    unchanged = {
        request.query["from"]: request.query["page"]
        for request in sandbox.requests
        if request.query["from"] != day
    }
    mark = first.state["bookmarks"]["network"]["replication_key_value"]
    edge = datetime.fromisoformat(mark) - timedelta(days=7 + 1)  # a day for time zones
    assert len(unchanged) == (now.date() - edge.date()).days  # today, too, less the day
    assert set(unchanged.values()) == {"1"}


def test_new_network_calls_come_without_the_old_ones(sandbox: Sandbox, now: datetime) -> None:
    """A day that only goes on is loaded from where it was."""
    first = sync(sandbox, now, catalog=select(now, "network"))
    new = sandbox.project.new_network(now + timedelta(minutes=1))
    second = sync(sandbox, now + timedelta(hours=1), first.state, catalog=select(now, "network"))
    assert set(second.table("network")) == {(new,)}


@pytest.mark.parametrize("to_means", ["before", "midnight", "end"])
@pytest.mark.parametrize("hours", [0.0, 5.5, -12.0])
def test_a_late_call_comes_once_whatever_a_day_is(
    sandbox: Sandbox, now: datetime, to_means: Reading, hours: float
) -> None:
    """Days that overlap, or of another time zone, bring a late call once, and then none."""
    sandbox.options.to_means = to_means
    sandbox.options.utc_offset_hours = hours
    only = select(now, "network")
    first = sync(sandbox, now, catalog=only)
    day = (now - timedelta(days=3)).replace(hour=0)
    late = {sandbox.project.new_network(day + timedelta(hours=hour)) for hour in (0, 7, 23)}
    second = sync(sandbox, now, first.state, catalog=only)
    assert late <= {key[0] for key in second.table("network")}
    assert second.repeated("network") == []
    third = sync(sandbox, now, second.state, catalog=only)
    assert third.rows("network") == []


def test_calls_of_a_project_gone_quiet_come_once(now: datetime) -> None:
    """The newest calls may lie in the next day of the API's time zone: they are known."""
    project = generate(seed=0, sessions=1, days=1, until=now)
    with Sandbox(project, Options(requests_per_minute=None, utc_offset_hours=5.5)) as sandbox:
        state = sync(sandbox, now, lookback_days=0).state
        for hours in (60, 61, 100):
            later = now + timedelta(hours=hours)
            output = sync(sandbox, later, state, lookback_days=0)
            assert output.rows("network") == output.rows("sessions") == []
            state = output.state


@sweep("quiet page_size", [9, 15, 40], [2, 5, 1000], quick=[(9, 1000), (15, 2), (40, 5)])
def test_calls_before_a_long_silence_come_once(now: datetime, quiet: int, page_size: int) -> None:
    """A project that is silent for longer than the lookback is not loaded again."""
    ends = now - timedelta(days=quiet, hours=1)
    project = generate(seed=3, sessions=200, days=20, until=ends, lying_clocks=False)
    only = select(now, "network")
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        first = sync(sandbox, now, None, only, page_size=page_size)
        later = now + timedelta(hours=1)
        second = sync(sandbox, later, first.state, only, page_size=page_size)
    assert first.table("network") == expected(project, "network")
    assert first.repeated("network") == []
    assert second.rows("network") == []


@pytest.mark.parametrize("to_means", ["before", "midnight", "end"])
def test_an_earlier_start_date_of_the_same_day_emits_no_call_twice(
    sandbox: Sandbox, now: datetime, to_means: Reading
) -> None:
    """Days before it that the forward part has read are not read as history again."""
    sandbox.options.to_means = to_means
    only = select(now, "network")
    _, call = (sandbox.project.new_network(now - timedelta(hours=n)) for n in (20, 1))
    start = (now - timedelta(hours=2)).isoformat()
    first = sync(sandbox, now, catalog=only, start_date=start)
    second = sync(sandbox, now, first.state, catalog=only)
    assert second.repeated("network") == []
    assert (call,) in first.table("network")
    assert first.table("network") | second.table("network") == expected(sandbox.project, "network")


def test_a_changed_session_that_two_windows_list_comes_once(now: datetime) -> None:
    """Where `to` includes its day, and other windows are cut than in the run before."""
    project = generate(seed=0, sessions=50, days=1, until=now - timedelta(hours=1))
    with Sandbox(project, Options(requests_per_minute=None, to_means="end")) as sandbox:
        state = sync(sandbox, now, page_size=20).state
        project.now = now
        changed = max(project.sessions, key=lambda one: project.sessions[one]["startedAt"])
        project.grow(changed)
        second = sync(sandbox, now, state, page_size=5)
    assert [row["id"] for row in second.rows("sessions")] == [changed]


@pytest.mark.parametrize(
    ("hours", "of", "started"), [(5.5, "startedAt", 20), (14, "startedAt", 12), (0, "endedAt", 23)]
)
def test_a_session_that_is_emitted_has_its_events_whatever_a_day_is(
    now: datetime, hours: float, of: t.Literal["startedAt", "endedAt"], started: int
) -> None:
    """Also if it came late and the API lists it on the day after the one that it began on."""
    project = generate(seed=3, sessions=30, days=12, until=now - timedelta(hours=1))
    options = Options(requests_per_minute=None, utc_offset_hours=hours, filter_on=of)
    with Sandbox(project, options) as sandbox:
        state = sync(sandbox, now).state
        day = (now - timedelta(days=9)).replace(hour=0)  # before the first that is asked for
        late = project.new_session(day + timedelta(hours=started, minutes=59))
        project.sessions[late]["endedAt"] = f"{day + timedelta(days=1, minutes=10):%FT%T.000Z}"
        output = sync(sandbox, now + timedelta(hours=1), state)
    assert [row["id"] for row in output.rows("sessions")] == [late]
    events = [row["id"] for row in output.rows("events") if row["sessionId"] == late]
    assert events == [row["id"] for row in project.events[late]]
    assert events


@pytest.mark.parametrize("order", ["newest", "oldest", "arbitrary"])
def test_history_that_finds_dates_ignored_emits_no_session_twice(
    now: datetime, order: t.Literal["newest", "oldest", "arbitrary"]
) -> None:
    """What the forward part has just emitted comes again in a listing of all rows."""
    project = generate(seed=3, sessions=60, days=25, until=now - timedelta(hours=1))
    since = f"{now - timedelta(days=14):%F}"
    with Sandbox(project, Options(requests_per_minute=None, ignored="to", order=order)) as sandbox:
        settings: dict[str, t.Any] = {"lookback_days": 1, "page_size": 3}
        state = sync(sandbox, now, start_date=since, **settings).state
        new = {project.new_session(now + timedelta(minutes=one)) for one in range(4)}
        output = sync(sandbox, now + timedelta(hours=1), state, **settings)
    assert {row["id"] for row in output.rows("sessions")} >= new
    assert output.repeated("sessions") == output.repeated("events") == []


def test_late_rows_filed_by_their_receipt_come_once(now: datetime) -> None:
    """What is of long ago and the API files under the day it came is loaded, but not again."""
    project = generate(seed=0, sessions=0, days=1, until=now)
    with Sandbox(project, Options(requests_per_minute=None, filter_on="received")) as sandbox:
        project.now = now
        call = project.new_network(now - timedelta(hours=361))
        first = sync(sandbox, now)
        assert {key[0] for key in first.table("network")} == {call}
        state = first.state
        for hours in (300, 300, 400):
            output = sync(sandbox, now + timedelta(hours=hours), state)
            assert output.rows("network") == []
            state = output.state
        assert len(state["bookmarks"]["network"]["days"]) <= 10  # those of the lookback
        project.now = now + timedelta(hours=400)
        session = project.new_session(now - timedelta(hours=90))
        other = project.new_network(now - timedelta(hours=90))
        output = sync(sandbox, now + timedelta(hours=401), state)
        assert [row["id"] for row in output.rows("sessions")] == [session]
        assert (other,) in output.table("network")
        assert output.table("events") == expected(project, "events")


def test_a_call_without_a_readable_time_does_not_come_again(
    sandbox: Sandbox, now: datetime
) -> None:
    """It counts as loaded with its day, and a new call of that day comes alone."""
    odd = sandbox.project.new_network(now - timedelta(hours=2))

    def unreadable(envelope: dict[str, t.Any]) -> dict[str, t.Any]:
        rows = envelope["data"]
        envelope["data"] = [
            {**row, "timestamp": "soon"} if row["id"] == odd else row for row in rows
        ]
        return envelope

    sandbox.options.envelope = unreadable
    only = select(now, "network")
    first = sync(sandbox, now, catalog=only)
    assert first.table("network")[odd,]["timestamp"] is None
    new = sandbox.project.new_network(now + timedelta(minutes=30))
    second = sync(sandbox, now + timedelta(hours=1), first.state, only)
    assert [row["id"] for row in second.rows("network")] == [new]


@pytest.mark.parametrize("stream", ["sessions", "network"])
def test_rows_come_again_where_their_bookmark_is_taken_out_of_the_state(
    sandbox: Sandbox, now: datetime, stream: str
) -> None:
    """Fingerprints and numbers of days that are left there keep none of them back."""
    only = select(now, stream)
    state = sync(sandbox, now, catalog=only).state
    for key in ("replication_key_value", "complete_from"):
        del state["bookmarks"][stream][key]
    again = sync(sandbox, now, state, only)
    assert again.table(stream) == expected(sandbox.project, stream)


def test_a_completed_run_is_complete_to_its_start(sandbox: Sandbox, now: datetime) -> None:
    """Not to the newest row, which a project gone quiet may have had weeks ago."""
    state = sync(sandbox, now + timedelta(days=30)).state["bookmarks"]
    start = "2026-03-31T12:00:00.000Z"
    assert state["sessions"]["replication_key_value"] == start
    assert state["network"]["replication_key_value"] == start
    assert state["events"]["complete"]["all"]["complete_to"] == start


def test_a_run_with_an_end_date_is_complete_to_just_before_it(
    sandbox: Sandbox, now: datetime
) -> None:
    """What is at end_date or after it is left to the next run, which loads it once."""
    project = sandbox.project
    end = now - timedelta(days=10)
    project.new_session(end)
    project.new_network(end)
    first = sync(sandbox, now, end_date=end.isoformat())
    state = first.state["bookmarks"]
    just_before = "2026-02-19T11:59:59.999Z"
    assert state["sessions"]["replication_key_value"] == just_before
    assert state["network"]["replication_key_value"] == just_before
    assert state["events"]["complete"]["all"]["complete_to"] == just_before
    second = sync(sandbox, now, first.state)
    for stream in PRIMARY_KEYS:
        both = first.table(stream) | second.table(stream)
        assert both == expected(project, stream)
        assert stream == "crashes" or not first.table(stream).keys() & second.table(stream)


@pytest.mark.parametrize("days", [1, 2, 3, 30, 3000])
def test_a_start_date_in_the_future_loads_nothing_before_it(
    sandbox: Sandbox, now: datetime, days: int
) -> None:
    """A run before start_date is no error, and its state serves the run after it."""
    start = now + timedelta(days=days)
    first = sync(sandbox, now, start_date=start.isoformat())
    ahead = {
        key: row
        for key, row in expected(sandbox.project, "sessions").items()
        if row["startedAt"] >= start.isoformat()
    }
    assert first.table("sessions") == ahead
    new = sandbox.project.new_session(start)
    later = start + timedelta(hours=1)
    second = sync(sandbox, later, first.state, start_date=start.isoformat())
    assert {row["id"] for row in second.rows("sessions")} == {new}
    assert {row["sessionId"] for row in second.rows("events")} == {new}


def test_clocks_that_are_ahead_move_no_bookmark(sandbox: Sandbox, now: datetime) -> None:
    """A session in the future is loaded once, a call in each run; neither delays others."""
    project = sandbox.project
    project.new_session(now + timedelta(days=300))
    ahead = {
        row_id
        for row_id in (*project.network, project.new_network(now + timedelta(days=300)))
        if project.when("network", row_id) > "2026-03-02"
    }
    first = sync(sandbox, now)
    new = {project.new_session(now + timedelta(minutes=5))}
    calls = {row_id for row_id in project.network if (row_id,) not in first.table("network")}
    calls.add(project.new_network(now + timedelta(minutes=6)))
    for stream in ("sessions", "network"):
        mark = first.state["bookmarks"][stream]["replication_key_value"]
        assert mark == "2026-03-01T12:00:00.000Z"
    second = sync(sandbox, now + timedelta(hours=1), first.state)
    assert {key[0] for key in second.table("sessions")} == new
    assert {key[0] for key in second.table("network")} == calls | ahead
    third = sync(sandbox, now + timedelta(hours=1), second.state)
    assert third.rows("sessions") == third.rows("events") == []
    assert {key[0] for key in third.table("network")} == ahead


def test_a_call_of_the_future_comes_until_its_time_has_come(
    sandbox: Sandbox, now: datetime
) -> None:
    """A call that a clock had put days ahead is loaded by the run that gets there, too."""
    call = sandbox.project.new_network(now + timedelta(hours=151))
    state = sync(sandbox, now, lookback_days=1).state
    for hours, ids in ((1, [call]), (300, [call]), (300, []), (400, [])):
        output = sync(sandbox, now + timedelta(hours=hours), state, lookback_days=1)
        assert [row["id"] for row in output.rows("network")] == ids
        state = output.state


# --- Which events are fetched ------------------------------------------------------------


@pytest.mark.parametrize(
    ("events_for", "asked"),
    [
        ("all", {"plain", "crash", "crashed", "network", "null", "active", "unknown"}),
        ("errors", {"crash", "crashed", "network"}),
        ("crashed", {"crash", "crashed"}),
    ],
)
def test_events_are_fetched_by_what_happened_in_a_session(
    now: datetime, events_for: str, asked: set[str]
) -> None:
    """A crash is an error, which the status may say alone; some sessions have no events."""
    changed: dict[str, dict[str, object]] = {
        "plain": {},
        "crash": {"hasCrash": True},
        "crashed": {"status": "crashed"},
        "network": {"hasNetworkErrors": True},
        "null": {"hasCrash": None, "hasNetworkErrors": None},
        "active": {"status": "active", "endedAt": None, "eventCount": 0},
        "unknown": {"eventCount": None},
        "none": {"eventCount": 0},
        "crashed at once": {"eventCount": 0, "status": "crashed", "hasCrash": True},
    }
    project = generate(seed=1, sessions=0, days=1, until=now)
    for name, fields in changed.items():
        draft = project.sessions.pop(project.new_session(now - timedelta(hours=2)))
        usual = {"hasCrash": False, "hasNetworkErrors": False, "status": "completed"}
        events = [{"id": "evt_1", "type": "tap", "timestamp": draft["startedAt"]}]
        project.add({**draft, "eventCount": 1, **usual, **fields, "id": name}, events)
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        state = sync(sandbox, now, events_for=events_for).state
        assert sorted(asked_for_events(sandbox)) == sorted(asked)
        sandbox.reset()
        sync(sandbox, now, state, events_for=events_for)
        assert asked_for_events(sandbox) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eventCount", 99),
        ("status", "active"),
        ("endedAt", None),
        ("hasCrash", True),
        ("userId", "another"),
    ],
)
def test_events_are_fetched_again_where_their_session_has_changed(
    sandbox: Sandbox, now: datetime, field: str, value: object
) -> None:
    """Four columns show that; where another has changed, only the session is loaded."""
    project = sandbox.project
    recent = (now - timedelta(days=5)).isoformat()
    session = next(
        one
        for one, row in project.sessions.items()
        if row["startedAt"] > recent and row["status"] == "completed" and row["eventCount"]
    )
    state = sync(sandbox, now).state
    project.sessions[session][field] = value
    project.changed("sessions")
    sandbox.reset()
    output = sync(sandbox, now, state)
    assert [row["id"] for row in output.rows("sessions")] == [session]
    assert asked_for_events(sandbox) == ([] if field == "userId" else [session])


def test_two_sessions_are_never_taken_for_one(sandbox: Sandbox, now: datetime) -> None:
    """Sessions whose ids have a shorter hash in common both get their events."""
    project, one, other = sandbox.project, "sess_225263", "sess_1188289"
    start = (now - timedelta(hours=2)).isoformat()
    event = {"id": "evt_1", "type": "tap"}

    def add(name: str) -> None:
        usual = project.new_session(now - timedelta(hours=2))
        del project.events[usual]
        fields = {"id": name, "status": "completed", "eventCount": 1}
        project.add({**project.sessions.pop(usual), **fields}, [{**event, "timestamp": start}])

    add(one)
    state = sync(sandbox, now).state
    add(other)
    outputs = [sync(sandbox, now, state)]
    project.grow(one)
    outputs.append(sync(sandbox, now, outputs[-1].state))
    outputs.append(sync(sandbox, now, outputs[-1].state))
    loaded = [[row["id"] for row in output.rows("sessions")] for output in outputs]
    assert loaded == [[other], [one], []]
    fetched = [{row["sessionId"] for row in output.rows("events")} for output in outputs]
    assert fetched == [{other}, {one}, set()]
    # And where both are in one run.
    assert sync(sandbox, now).table("events").keys() == expected(project, "events").keys()


def test_events_can_be_loaded_alone_and_incrementally(sandbox: Sandbox, now: datetime) -> None:
    """With sessions deselected, events are complete and the next run asks for none."""
    alone = select(now, "events")
    first = sync(sandbox, now, catalog=alone)
    assert first.rows("sessions") == []
    assert first.table("events") == expected(sandbox.project, "events")
    sandbox.reset()
    sync(sandbox, now, first.state, catalog=alone)
    assert asked_for_events(sandbox) == []


def test_events_selected_later_are_fetched_for_all_sessions(
    sandbox: Sandbox, now: datetime
) -> None:
    """What was left out while events were deselected is fetched afterwards."""
    first = sync(sandbox, now, catalog=select(now, "sessions"))
    second = sync(sandbox, now, first.state)
    assert second.rows("sessions") == []
    assert second.table("events") == expected(sandbox.project, "events")


def test_a_session_that_two_windows_list_is_asked_for_its_events_once(now: datetime) -> None:
    """Where `to` includes its day, the lookback and history both list that day's sessions."""
    project = generate(seed=3, sessions=80, days=20, until=now - timedelta(hours=1))
    with Sandbox(project, Options(requests_per_minute=None, to_means="end")) as sandbox:
        output = sync(sandbox, now)
        asked = asked_for_events(sandbox)
    assert "2026-02-21" in {project.sessions[one]["startedAt"][:10] for one in asked}
    assert len(asked) == len(set(asked))
    assert output.table("events") == expected(project, "events")


def test_widening_events_for_fetches_what_was_left_out(sandbox: Sandbox, now: datetime) -> None:
    """From crashed to all, only the sessions that did not crash are asked for."""
    first = sync(sandbox, now, events_for="crashed")
    crashed = set(asked_for_events(sandbox))
    assert crashed == {
        session_id for session_id, row in sandbox.project.sessions.items() if row["hasCrash"]
    }
    sandbox.reset()
    second = sync(sandbox, now, first.state, events_for="all")
    assert second.rows("sessions") == []
    together = first.table("events") | second.table("events")
    assert together == expected(sandbox.project, "events")
    recent = (now - timedelta(days=8)).isoformat()
    again = crashed.intersection(asked_for_events(sandbox))
    assert all(sandbox.project.sessions[one]["startedAt"] < recent for one in again)
    sandbox.reset()
    third = sync(sandbox, now, second.state, events_for="errors")
    assert asked_for_events(sandbox) == []
    assert third.rows("events") == []


@pytest.mark.parametrize("days", [1, 20])
def test_narrowing_events_for_and_going_back_does_not_start_over(
    sandbox: Sandbox, now: datetime, days: int
) -> None:
    """Only the sessions that the narrower runs left out are asked for."""
    project = sandbox.project
    outputs = [sync(sandbox, now)]
    later = now + timedelta(days=days)
    new = {project.new_session(now + timedelta(hours=hour)) for hour in (1, 3, 5, 20)}
    project.crash(min(new))
    crashed = {one for one in new if project.sessions[one]["hasCrash"]}
    nothing: set[str] = set()
    for events_for, least, most in (
        ("crashed", crashed, crashed),
        ("all", new - crashed, new),  # the narrower run has some already
        ("crashed", nothing, nothing),
    ):
        sandbox.reset()
        state = outputs[-1].state
        outputs.append(sync(sandbox, later, state, events_for=events_for))
        asked = asked_for_events(sandbox)
        assert least <= set(asked) <= most
        assert len(asked) == len(set(asked))
    messages = [message for output in outputs for message in output.messages]
    assert Output(messages).table("events") == expected(project, "events")


def test_a_filter_on_sessions_spares_their_events(sandbox: Sandbox, now: datetime) -> None:
    """Events of sessions that a stream map filters out are not asked for."""
    output = sync(sandbox, now, stream_maps={"sessions": {"__filter__": "platform == 'ios'"}})
    ios = {
        session_id
        for session_id, row in sandbox.project.sessions.items()
        if row["platform"] == "ios"
    }
    assert {key[0] for key in output.table("sessions")} == ios
    assert set(asked_for_events(sandbox)) <= ios
    assert {row["sessionId"] for row in output.rows("events")} == {
        one for one in ios if sandbox.project.events[one]
    }


def test_a_session_that_vanished_does_not_hold_others_up(sandbox: Sandbox, now: datetime) -> None:
    """A 404 for one session that is listed is asked for once more, and then passed over."""
    gone = next(one for one, events in sandbox.project.events.items() if events)
    sandbox.options.vanished_sessions = {gone}
    first = sync(sandbox, now)
    table = expected(sandbox.project, "events")
    assert first.table("events") == {key: table[key] for key in table if key[0] != gone}
    sandbox.reset()
    second = sync(sandbox, now, first.state)
    assert asked_for_events(sandbox) == [gone]
    assert second.rows("events") == []
    sandbox.reset()
    sync(sandbox, now, second.state)
    assert asked_for_events(sandbox) == []


def test_a_404_for_a_session_set_aside_is_not_believed_while_it_is_listed(now: datetime) -> None:
    """Also where it is listed by an end days after its start, and nothing new is read."""
    project = generate(seed=1, sessions=30, days=20, until=now - timedelta(hours=1))
    rows = [row for row in project.sessions.values() if row["eventCount"] and row["endedAt"]]
    row = next(row for row in rows if row["startedAt"] < "2026-02-15")
    ended = datetime.fromisoformat(row["startedAt"]) + timedelta(days=5)
    row["endedAt"] = ended.isoformat().replace("+00:00", "Z")
    only = select(now, "sessions", "events")
    with Sandbox(project, Options(requests_per_minute=None, filter_on="endedAt")) as sandbox:
        state = sync(sandbox, now, catalog=only, start_date="2026-02-26").state
        state["bookmarks"]["events"]["set_aside"] = {row["id"]: "it failed"}
        sandbox.options.vanished_sessions = {row["id"]}
        state = sync(sandbox, now, state, only, end_date="2026-02-24").state
    assert list(state["bookmarks"]["events"]["short"]) == [row["id"]]


def test_ten_vanished_sessions_in_a_row_are_an_error(sandbox: Sandbox, now: datetime) -> None:
    """When no session is known any more the run ends, and none counts as done."""
    first = sync(sandbox, now, catalog=select(now, "sessions"))
    every = set(sandbox.project.sessions)
    sandbox.options.vanished_sessions = every
    with pytest.raises(Exception, match="knows none of 10 sessions"):
        sync(sandbox, now, first.state)
    sandbox.options.vanished_sessions = set()
    second = sync(sandbox, now, first.state)
    assert second.table("events") == expected(sandbox.project, "events")


@pytest.mark.parametrize("fault", ["500", "400", "403", "410", "413", "422", "499"])
def test_a_session_that_always_fails_is_set_aside(
    sandbox: Sandbox, now: datetime, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """It is named, tried once in each later run, and fetched when it works again."""
    project = sandbox.project
    broken = [one for one, events in project.events.items() if events][3]
    sandbox.options.script = lambda request: (
        fault if request.query.get("sessionId") == broken else None
    )
    first = sync(sandbox, now, minute=0.01)
    assert list(first.state["bookmarks"]["events"]["set_aside"]) == [broken]
    assert broken not in {key[0] for key in first.table("events")}
    assert f"session {broken} is set aside" in caplog.text
    sandbox.reset()
    second = sync(sandbox, now, first.state, minute=0.01)
    assert asked_for_events(sandbox) == [broken]
    assert list(second.state["bookmarks"]["events"]["set_aside"]) == [broken]
    sandbox.options.script = None
    sandbox.reset()
    third = sync(sandbox, now, second.state, minute=0.01)
    assert asked_for_events(sandbox) == [broken]
    assert third.state["bookmarks"]["events"]["set_aside"] == {}
    together = first.table("events") | third.table("events")
    assert together == expected(project, "events")


def test_a_session_that_failed_and_then_has_no_events_is_asked_for_once_more(
    sandbox: Sandbox, now: datetime
) -> None:
    """It is older than the lookback, so nothing else would bring its events, or ask without end."""
    project = sandbox.project
    old = (now - timedelta(days=12)).isoformat()
    broken = next(
        one for one, row in project.sessions.items() if row["startedAt"] < old and row["eventCount"]
    )
    sandbox.options.broken_sessions = {broken}
    first = sync(sandbox, now, minute=0.01)
    sandbox.options.broken_sessions = set()
    whole, project.events[broken] = project.events[broken], []
    project.changed("events")
    second = sync(sandbox, now, first.state)
    again = sync(sandbox, now, second.state)
    sandbox.reset()
    sync(sandbox, now, again.state)
    assert asked_for_events(sandbox) == []  # the same answer twice is believed
    project.events[broken] = whole
    project.changed("events")
    third = sync(sandbox, now, second.state)
    assert first.table("events") | third.table("events") == expected(project, "events")


def test_a_session_that_grows_while_it_is_set_aside_is_fetched_whole(
    sandbox: Sandbox, now: datetime
) -> None:
    """It grew between the runs, and once more after it was listed: nothing is missed."""
    project = sandbox.project
    recent = (now - timedelta(days=5)).isoformat()
    broken = next(one for one, row in project.sessions.items() if row["startedAt"] > recent)
    sandbox.options.broken_sessions = {broken}
    first = sync(sandbox, now, minute=0.01)
    project.grow(broken)
    sandbox.options.broken_sessions = set()
    sandbox.reset()
    grown = False

    def grow(request: Request, project: Project) -> None:
        nonlocal grown
        if request.path == "/events" and not grown:
            grown = True
            project.grow(broken)

    sandbox.options.on_request = grow
    second = sync(sandbox, now, first.state)
    assert asked_for_events(sandbox) == [broken]
    assert {key[0] for key in second.table("sessions")} == {broken}
    sandbox.reset()
    third = sync(sandbox, now, second.state)
    # Listed before it grew: it may have been fetched without its last events.
    assert asked_for_events(sandbox) == [broken]
    together = first.table("events") | second.table("events") | third.table("events")
    assert together == expected(project, "events")
    sandbox.reset()
    sync(sandbox, now, third.state)
    assert asked_for_events(sandbox) == []


def test_more_sessions_than_the_limit_serves_are_told(
    now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    """Both numbers stand in the warning, and the settings that help."""
    project = generate(seed=3, sessions=2000, days=1, until=now, events_per_session=2)
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        # One request a minute serves 1,440 sessions a day; the run has a time limit.
        sync(
            sandbox,
            now,
            minute=0.001,
            requests_per_minute=1,
            max_runtime_minutes=0.0001,
            catalog=select(now, "sessions", "events"),
        )
    told = [one for one in caplog.messages if "new sessions a day need events" in one]
    assert len(told) == 1
    for words in ("1 requests a minute serve 1,440", "events_for", "project and key"):
        assert words in told[0]


def test_too_many_failing_sessions_are_an_error(sandbox: Sandbox, now: datetime) -> None:
    """When the events of ten sessions in a row fail, the API is to blame."""
    sandbox.options.broken_sessions = set(sandbox.project.sessions)
    with pytest.raises(Exception, match="fails for too many sessions"):
        sync(sandbox, now, minute=0.01)


@pytest.mark.parametrize("dates", [{}, {"start_date": "2026-02-26T12:00:00Z"}])
def test_a_late_call_hides_behind_no_other(now: datetime, dates: dict[str, t.Any]) -> None:
    """Not behind one of midnight that two days list, nor behind a count of other dates."""
    project = generate(seed=1, sessions=3, days=1, until=now - timedelta(days=20))
    for hour in (0, 1, 3, 5, 13, 21):
        project.new_network(datetime.fromisoformat(f"2026-02-26T{hour:02}:00:00+00:00"))
    only = select(now, "network")
    with Sandbox(project, Options(requests_per_minute=None, to_means="midnight")) as sandbox:
        state = sync(sandbox, now, catalog=only).state
        project.new_network(datetime.fromisoformat("2026-02-25T12:00:00+00:00"))
        late = project.new_network(datetime.fromisoformat("2026-02-26T14:00:00+00:00"))
        output = sync(sandbox, now + timedelta(hours=1), state, only, **dates)
    assert (late,) in output.table("network")


@pytest.mark.parametrize(
    "dates", [{"start_date": "2026-02-26T12:00:00Z"}, {"end_date": "2026-02-26T12:00:00Z"}]
)
@pytest.mark.parametrize("hour", [3, 14])
def test_a_late_call_is_found_after_a_run_of_other_dates(
    now: datetime, dates: dict[str, t.Any], hour: int
) -> None:
    """Those dates leave out a part of its day; the next run without them has it."""
    project = generate(seed=1, sessions=3, days=1, until=now - timedelta(days=20))
    for early in (0, 1, 2, 5, 13, 21):
        project.new_network(datetime.fromisoformat(f"2026-02-26T{early:02}:00:00+00:00"))
    only = select(now, "network")
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        first = sync(sandbox, now, catalog=only)
        late = project.new_network(datetime.fromisoformat(f"2026-02-26T{hour:02}:30:00+00:00"))
        second = sync(sandbox, now + timedelta(hours=1), first.state, only, **dates)
        third = sync(sandbox, now + timedelta(hours=2), second.state, only)
        fourth = sync(sandbox, now + timedelta(hours=3), third.state, only)
    loaded = {row["id"] for output in (second, third) for row in output.rows("network")}
    assert late in loaded
    assert fourth.rows("network") == []


def test_a_later_start_date_brings_no_call_twice(now: datetime) -> None:
    """Calls that came after the bookmark, which such a run leaves, count as loaded."""
    project = generate(seed=1, sessions=3, days=1, until=now - timedelta(hours=1))
    only = select(now, "network")
    start = now.replace(hour=0).isoformat()
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        first = sync(sandbox, now, catalog=only)
        new = project.new_network(now + timedelta(minutes=30))
        second = sync(sandbox, now + timedelta(hours=1), first.state, only, start_date=start)
        third = sync(sandbox, now + timedelta(hours=1), second.state, only, start_date=start)
        fourth = sync(sandbox, now + timedelta(hours=2), third.state, only)
    assert [row["id"] for row in second.rows("network")] == [new]
    assert third.rows("network") == fourth.rows("network") == []


def test_a_call_that_comes_late_hides_behind_none_that_dates_leave_out(now: datetime) -> None:
    """Three came a week late, a later start_date leaves out three: one of today is found."""
    project = generate(seed=1, sessions=3, days=1, until=now - timedelta(days=20))
    only = select(now, "network")
    start = (now - timedelta(days=2)).isoformat()
    hour = timedelta(hours=1)
    with Sandbox(project, Options(requests_per_minute=None, filter_on="received")) as sandbox:
        project.now = now - hour
        for ago in (*[timedelta(weeks=1)] * 3, 3 * hour, 2 * hour):
            project.new_network(now - ago)
        first = sync(sandbox, now, catalog=only)
        project.now = now + hour / 2
        late = [project.new_network(now - ago) for ago in (4 * hour, 5 * hour, 6 * hour)]
        second = sync(sandbox, now + hour, first.state, only, start_date=start)
        third = sync(sandbox, now + 2 * hour, second.state, only, start_date=start)
    assert set(late) <= {row["id"] for row in second.rows("network")}
    assert third.rows("network") == []


def test_a_late_call_hides_behind_none_of_the_last_day_asked_for(now: datetime) -> None:
    """Where the API's days begin before UTC's, an end_date of today asks for two of them."""
    project = generate(seed=1, sessions=3, days=1, until=now - timedelta(days=20))
    hour, midnight, only = timedelta(hours=1), now.replace(hour=0), select(now, "network")
    with Sandbox(project, Options(requests_per_minute=None, utc_offset_hours=14)) as sandbox:
        for at in (midnight - 4 * hour, midnight - 3 * hour, now - hour):
            project.new_network(at)
        first = sync(sandbox, now, catalog=only, end_date=now.isoformat())
        late = project.new_network(midnight - hour)
        second = sync(sandbox, now + timedelta(days=1), first.state, only)
    assert (late,) in second.table("network")


def test_a_lookback_to_before_1970_brings_no_call_twice() -> None:
    """Each of its days is counted, those after 1970 as well as those before."""
    now = datetime.fromisoformat("1970-03-01T12:00:00+00:00")
    project = generate(seed=1, sessions=20, days=20, until=now - timedelta(hours=1))
    project.new_network(now - timedelta(hours=1))
    only = select(now, "network")
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        first = sync(sandbox, now, catalog=only, lookback_days=90)
        second = sync(sandbox, now + timedelta(hours=1), first.state, only, lookback_days=90)
    assert first.table("network") == expected(project, "network")
    assert second.rows("network") == []
