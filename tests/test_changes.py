"""Rows that change, come late or vanish, while a run reads and between runs."""

from __future__ import annotations

import re
import typing as t
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from tests.conftest import NOW, sweep, with_project
from tests.loads import Load, assert_done
from tests.running import Row, Runs, assert_whole, counted, expected, select, sync
from tests.sandbox import Project, Request, Sandbox

Order = t.Literal["newest", "oldest", "arbitrary"]
ORDERS = pytest.mark.parametrize("order", t.get_args(Order))
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MIDNIGHT = NOW.replace(hour=0)
# Calls of one day of the lookback.
OF_THAT_DAY = tuple(MIDNIGHT - 3 * DAY + hour * HOUR for hour in (0, 1, 3, 5, 13, 21))


def at_start(project: Project, session: str) -> datetime:
    """Return the instant at which a session began."""
    return datetime.fromisoformat(project.when("sessions", session))


# --- While pages are read --------------------------------------------------------------


@ORDERS
def test_growth_while_pages_are_read_asks_for_nothing_twice(sandbox: Sandbox, order: Order) -> None:
    """Sessions that come while the pages are read cost no second listing."""
    sandbox.options.order = order
    only = select(NOW, "sessions")
    sync(sandbox, NOW, page_size=20, catalog=only)
    settled = counted(sandbox)["/sessions"]
    before = set(sandbox.project.sessions)
    came: list[str] = []

    def grow(request: Request, project: Project) -> None:
        if request.query["page"] == "2":
            came.append(project.new_session(NOW - HOUR / 2))

    sandbox.reset()
    sandbox.options.on_request = grow
    output = sync(sandbox, NOW, page_size=20, catalog=only, concurrency=1)
    assert came
    assert before <= set(output.ids("sessions"))
    assert counted(sandbox)["/sessions"] <= settled + 1  # the page that growth adds


@ORDERS
@pytest.mark.parametrize("stream", ["sessions", "network", "crashes"])
def test_no_row_is_lost_while_others_are_deleted(
    sandbox: Sandbox, order: Order, stream: str
) -> None:
    """Rows that are there all the time arrive though others vanish between pages."""
    sandbox.options.order = order
    deleted: list[object] = []

    def delete(request: Request, project: Project) -> None:
        if request.query["page"] in {"2", "3"}:
            rows = project.table(stream)
            # From either end, so that the pages that follow shift in every order.
            deleted.extend(rows.pop(one) for one in (next(iter(rows)), next(reversed(rows))))
            project.changed(stream)

    sandbox.options.on_request = delete
    output = sync(sandbox, NOW, page_size=3, catalog=select(NOW, stream))
    assert deleted
    assert expected(sandbox.project, stream).items() <= output.table(stream).items()
    assert output.repeated(stream) == []


@pytest.mark.parametrize("stream", ["sessions", "network"])
@pytest.mark.parametrize("many", [1, 3, 7])
@pytest.mark.parametrize("at_page", ["2", "3"])
def test_no_row_is_lost_when_as_many_come_as_go(
    sandbox: Sandbox, stream: str, many: int, at_page: str
) -> None:
    """The oldest rows go and as many new ones come: the total alone would not show it."""
    sandbox.options.order = "oldest"
    project = sandbox.project
    table, when = project.table(stream), partial(project.when, stream)
    add = project.new_session if stream == "sessions" else project.new_network
    gone: list[str] = []

    def turn_over(request: Request, _: Project) -> None:
        if gone or request.query["page"] != at_page or "to" not in request.query:
            return
        start = request.query.get("from", "")
        end = datetime.fromisoformat(f"{request.query['to']}T00:00:00Z")
        gone.extend(sorted((one for one in table if when(one) >= start), key=when)[:many])
        for one in gone:
            del table[one]
        # Within the window that is being read, after all of its rows.
        for minutes in range(many):
            add(end - timedelta(minutes=many - minutes))
        project.changed(stream)

    sandbox.options.on_request = turn_over
    output = sync(sandbox, NOW, page_size=3, catalog=select(NOW, stream))
    assert gone
    assert expected(project, stream).items() <= output.table(stream).items()
    assert output.repeated(stream) == []


def test_no_event_is_lost_while_others_are_deleted(sandbox: Sandbox) -> None:
    """Events over several pages are listed again when they shift."""
    sandbox.options.events_paging = "pages"
    session, events = max(sandbox.project.events.items(), key=lambda entry: len(entry[1]))
    count = len(events)
    assert count > 10

    def delete(request: Request, project: Project) -> None:
        asked = (request.query.get("sessionId"), request.query["page"])
        if asked == (session, "2") and len(events) == count:
            del events[0]
            project.changed()

    sandbox.options.on_request = delete
    output = sync(sandbox, NOW, page_size=5)
    assert len(events) == count - 1
    assert expected(sandbox.project, "events").items() <= output.table("events").items()


def test_no_row_is_lost_where_one_comes_before_one_goes(sandbox: Sandbox) -> None:
    """The API counts as many rows in the end as at first, and more in between."""
    rows = sandbox.project.crashes
    oldest, *_, newest = sorted(rows, key=lambda one: rows[one]["lastSeenAt"])

    def change(request: Request, project: Project) -> None:
        if request.query["page"] == "2" and "new" not in rows:
            rows["new"] = {**rows[oldest], "id": "new", "lastSeenAt": "2026-01-01T00:00:00.000Z"}
        elif request.query["page"] == "3":
            rows.pop(newest, None)
        project.changed("crashes")

    assert len(rows) > 4
    sandbox.options.on_request = change
    output = sync(sandbox, NOW, page_size=2, catalog=select(NOW, "crashes"))
    assert newest not in rows
    assert expected(sandbox.project, "crashes").items() <= output.table("crashes").items()


def test_a_listing_that_stays_short_is_told(sandbox: Sandbox, load: Load) -> None:
    """Where the API counts more rows than it gives, a warning has both numbers."""

    def shrink(request: Request, project: Project) -> None:
        if request.query["page"] == "2":
            del project.sessions[next(iter(project.sessions))]
            project.changed("sessions")

    sandbox.options.on_request = shrink
    run = load(page_size=5, catalog=select(NOW, "sessions"))
    assert re.search(r"\b\d+ rows arrived where the API counts \d+ in ", run.warnings[0])
    assert run.line_of("sessions").endswith("listings short of the API's total")
    assert not run.is_complete
    first_pages = [one.query["page"] for one in run.requests].count("1")
    # Three listings, and a few to cut windows.
    assert first_pages <= 3 * len(run.warnings) + 4


def test_rows_that_share_a_key_are_told(sandbox: Sandbox, load: Load) -> None:
    """Two events of one session with the same id: the first is loaded, and it is said."""
    events = next(one for one in sandbox.project.events.values() if len(one) > 2)
    events[1]["id"] = events[0]["id"]
    sandbox.project.changed()
    run = load()
    del events[1]
    assert_whole(sandbox.project, run.output)
    (told,) = run.warnings
    came = len(events)
    assert f"events: {came} rows arrived where the API counts {came + 1} in" in told


# --- Between runs ----------------------------------------------------------------------


def test_only_what_changed_is_loaded_again(sandbox: Sandbox) -> None:
    """Sessions that grew, ended, crashed, are new or came late, and no others."""
    project, run = sandbox.project, Runs(sandbox, NOW)
    run()
    recent = [one for one in project.sessions if NOW - 5 * DAY < at_start(project, one) < NOW]
    active = next(one for one in recent if project.sessions[one]["status"] == "active")
    grown, crashed, *_ = (one for one in recent if project.sessions[one]["status"] == "completed")
    project.grow(grown)
    project.crash(crashed)
    project.end(active)
    new = [project.new_session(NOW - ago) for ago in (timedelta(minutes=5), 6 * DAY)]
    second = run(1)
    assert sorted(second.ids("sessions")) == sorted([grown, crashed, active, *new])
    assert sorted(second.asked) == sorted(second.ids("sessions"))
    assert_whole(project, *run.outputs)


def test_late_network_calls_are_found_by_their_number(sandbox: Sandbox) -> None:
    """A call that comes late is loaded, and unchanged days take a request each."""
    run = Runs(sandbox, NOW, "network", page_size=3)
    run()
    late, day = sandbox.project.new_network(NOW - 3 * DAY), f"{NOW - 3 * DAY:%F}"
    sandbox.reset()
    second = run(1)
    assert late in second.ids("network")
    assert {row["timestamp"][:10] for row in second.rows("network")} == {day}
    assert second.repeated("network") == []
    queries = [one.query for one in sandbox.requests if one.query["from"] != day]
    # Those of the lookback, one more for time zones, and today.
    days = {f"{NOW - ago * DAY:%F}" for ago in range(9)} - {day}
    assert sorted(one["from"] for one in queries) == sorted(days)
    assert {one["page"] for one in queries} == {"1"}


@pytest.mark.parametrize("to_means", ["before", "midnight", "end"])
@pytest.mark.parametrize("offset", [0.0, 5.5, -8, -12, 14])
def test_late_calls_come_once_whatever_a_day_is(
    sandbox: Sandbox, to_means: t.Any, offset: float
) -> None:
    """Where days overlap, or are of another time zone, also after the day has turned."""
    sandbox.options.to_means, sandbox.options.utc_offset_hours = to_means, offset
    project, evening = sandbox.project, NOW.replace(hour=23, minute=30)
    run = Runs(sandbox, evening, "network")
    for call in range(1, 25):
        project.new_network(evening - timedelta(minutes=25 * call))
    run()
    instants = [NOW.replace(hour=hour) - 3 * DAY for hour in (0, 7, 23)]
    instants += [evening - timedelta(hours=16, minutes=minute) for minute in range(3)]
    late = {project.new_network(instant) for instant in instants}
    for hours in (9, 9, 10, 30, 30):
        output = run(hours)
        assert late <= set(output.ids("network"))
        assert late or output.rows("network") == []
        assert output.repeated("network") == []
        late = set()


@with_project(seed=0, sessions=1, days=1, until=NOW)
def test_calls_of_a_project_gone_quiet_come_once_more_at_most(sandbox: Sandbox) -> None:
    """The newest calls may lie in the next day of the API's time zone: that is read once more."""
    sandbox.options.utc_offset_hours = 14
    call = sandbox.project.new_network(NOW - HOUR)
    run = Runs(sandbox, NOW, lookback_days=0)
    assert run().ids("network") == [call]
    assert set(run(60).ids("network")) <= {call}
    assert [run(hours).rows("network") for hours in (61, 100)] == [[], []]
    assert [output.rows("sessions") for output in run.outputs[1:]] == [[]] * 3


@with_project(seed=3, sessions=200, lying_clocks=False)
@sweep("quiet page_size", [9, 15, 40], [2, 5, 1000], quick=[(9, 1000), (15, 2), (40, 5)])
def test_calls_before_a_long_silence_come_once(
    sandbox: Sandbox, quiet: int, page_size: int
) -> None:
    """A project that is silent for longer than the lookback is not loaded again."""
    run = Runs(sandbox, NOW + quiet * DAY, "network", page_size=page_size)
    first = run()
    assert first.table("network") == expected(sandbox.project, "network")
    assert first.repeated("network") == []
    assert run(1).rows("network") == []


@with_project(seed=3, sessions=30, days=12)
@pytest.mark.parametrize(
    ("offset", "filter_on", "started"),
    [(5.5, "startedAt", 20), (14, "startedAt", 12), (0, "endedAt", 23)],
)
def test_a_session_that_is_emitted_has_its_events_whatever_a_day_is(
    sandbox: Sandbox, offset: float, filter_on: t.Literal["startedAt", "endedAt"], started: int
) -> None:
    """Also if it came late and the API lists it on the day after the one that it began on."""
    sandbox.options.utc_offset_hours, sandbox.options.filter_on = offset, filter_on
    project, run = sandbox.project, Runs(sandbox, NOW)
    run()
    day = MIDNIGHT - 9 * DAY  # before the first that is asked for
    late = project.new_session(day + timedelta(hours=started, minutes=59))
    project.sessions[late]["endedAt"] = f"{day + DAY:%F}T00:10:00.000Z"
    output = run(1)
    assert output.ids("sessions") == [late]
    events = [row["id"] for row in output.rows("events") if row["sessionId"] == late]
    assert events == [row["id"] for row in project.events[late]]
    assert events


@ORDERS
@with_project(seed=3, sessions=60, days=25)
def test_history_without_dates_emits_no_session_twice(sandbox: Sandbox, order: Order) -> None:
    """What the forward part has just emitted comes again in a listing of all rows."""
    sandbox.options.ignored, sandbox.options.order = "to", order
    run = Runs(sandbox, NOW, lookback_days=1, page_size=3)
    run(start_date=f"{NOW - 14 * DAY:%F}")
    new = {sandbox.project.new_session(NOW + timedelta(minutes=one)) for one in range(4)}
    output = run(1)
    assert set(output.ids("sessions")) >= new
    assert output.repeated("sessions") == output.repeated("events") == []


@with_project(seed=0, sessions=0, days=1, until=NOW)
def test_late_rows_filed_by_their_receipt_come_once(sandbox: Sandbox) -> None:
    """What is of long ago and the API files under the day it came is loaded, but not again."""
    sandbox.options.filter_on = "received"
    project, run = sandbox.project, Runs(sandbox, NOW)
    call = project.new_network(NOW - 361 * HOUR)
    assert run().ids("network") == [call]
    for hours in (300, 300, 400):
        output = run(hours)
        assert output.rows("network") == []
    assert len(output.state["bookmarks"]["network"]["days"]) <= 10  # those of the lookback
    project.now = NOW + 400 * HOUR
    session = project.new_session(NOW - 90 * HOUR)
    other = project.new_network(NOW - 90 * HOUR)
    output = run(401)
    assert output.ids("sessions") == [session]
    assert other in output.ids("network")
    assert output.table("events") == expected(project, "events")


def test_a_call_without_a_readable_time_does_not_come_again(sandbox: Sandbox) -> None:
    """It counts as loaded with its day, and a new call of that day comes alone."""
    odd = sandbox.project.new_network(NOW - 2 * HOUR)

    def unreadable(envelope: Row) -> Row:
        rows = envelope["data"]
        rows = [{**row, "timestamp": "soon"} if row["id"] == odd else row for row in rows]
        return {**envelope, "data": rows}

    sandbox.options.envelope = unreadable
    run = Runs(sandbox, NOW, "network")
    assert run().table("network")[odd,]["timestamp"] is None
    new = sandbox.project.new_network(NOW + HOUR / 2)
    assert run(1).ids("network") == [new]


def ends_of(state: Row) -> set[str]:
    """Return the instants up to which a state says that streams are complete."""
    marks = state["bookmarks"]
    ends = {marks[stream]["replication_key_value"] for stream in ("sessions", "network")}
    return ends | {marks["events"]["complete"]["all"]["complete_to"]}


def test_a_run_is_complete_to_its_start_or_to_just_before_end_date(sandbox: Sandbox) -> None:
    """Not to its newest row; what is at end_date or after it is loaded once, by the next run."""
    end, run = NOW - 10 * DAY, Runs(sandbox, NOW)
    left = {sandbox.project.new_session(end), sandbox.project.new_network(end)}
    first, second = run(end_date=end.isoformat()), run()
    assert not left.intersection(first.ids("sessions") + first.ids("network"))
    assert ends_of(first.state) == {"2026-02-19T11:59:59.999Z"}
    assert ends_of(second.state) == {"2026-03-01T12:00:00.000Z"}
    assert_whole(sandbox.project, first, second)
    for stream in ("sessions", "network", "events"):
        assert not first.table(stream).keys() & second.table(stream)


@pytest.mark.parametrize("days", [1, 2, 3, 30, 3000])
def test_a_start_date_in_the_future_loads_nothing_before_it(sandbox: Sandbox, days: int) -> None:
    """A run before start_date is no error, and its state serves the run after it."""
    start = NOW + days * DAY
    run = Runs(sandbox, NOW, start_date=(since := start.isoformat()))
    rows = expected(sandbox.project, "sessions")
    ahead = {key: row for key, row in rows.items() if row["startedAt"] >= since}
    assert run().table("sessions") == ahead
    new = sandbox.project.new_session(start)
    second = run(24 * days + 1)
    assert second.ids("sessions") == [new]
    assert {row["sessionId"] for row in second.rows("events")} == {new}


@pytest.mark.parametrize("alone", [False, True])
def test_clocks_that_are_ahead_move_no_bookmark(sandbox: Sandbox, *, alone: bool) -> None:
    """A session in the future is loaded once, a call in each run; neither delays others."""
    project, run = sandbox.project, Runs(sandbox, NOW)
    if alone:
        project.purge(NOW + DAY)
    project.new_session(NOW + 300 * DAY)
    project.new_network(NOW + 300 * DAY)
    first = run()
    assert ends_of(first.state) == {"2026-03-01T12:00:00.000Z"}
    new = project.new_session(NOW + timedelta(minutes=5))
    project.new_network(NOW + timedelta(minutes=6))
    second, third = run(1), run(1)
    assert_whole(project, first, second)
    assert second.ids("sessions") == [new]
    assert third.rows("sessions") == third.rows("events") == []
    is_ahead = {one for one in project.network if project.when("network", one) > "2026-03-02"}
    others = project.network.keys() - first.ids("network")
    assert set(second.ids("network")) == others | is_ahead
    assert set(third.ids("network")) == is_ahead


def test_a_call_of_the_future_comes_until_its_time_has_come(sandbox: Sandbox) -> None:
    """A call that a clock had put days ahead is loaded by the run that gets there, too."""
    call = sandbox.project.new_network(NOW + 151 * HOUR)
    run = Runs(sandbox, NOW, lookback_days=1)
    run()
    ids = [run(hours).ids("network") for hours in (1, 300, 300, 400)]
    assert ids == [[call], [call], [], []]


class Late(t.NamedTuple):
    """Calls that come late after a first run, and the runs after that: hours later, dates."""

    late: list[datetime]
    runs: list[tuple[int, Row]]
    calls: tuple[datetime, ...] = OF_THAT_DAY  # that were there before
    option: tuple[str, object] = ("to_means", "before")
    end: str | None = None  # the first run's end_date


START, LATER = {"start_date": "2026-02-26T12:00:00Z"}, {"start_date": "2026-02-27T12:00:00Z"}
TODAY, END = {"start_date": "2026-03-01"}, {"end_date": "2026-02-26T12:00:00Z"}
MORNING, EVENING = [MIDNIGHT - 68.5 * HOUR], [MIDNIGHT - 57.5 * HOUR]
TWO = [MIDNIGHT - 84 * HOUR, MIDNIGHT - 58 * HOUR]
LATE = {
    "two days list one of midnight": Late(TWO, [(1, {}), (1, {})], option=("to_means", "midnight")),
    "counts of other dates": Late(TWO, [(1, START), (1, START)], option=("to_means", "midnight")),
    "before a start_date": Late(MORNING, [(1, START), (2, {}), (3, {})]),
    "after a start_date": Late(EVENING, [(1, START), (2, {}), (3, {})]),
    "before an end_date": Late(MORNING, [(1, END), (2, {}), (3, {})]),
    "after an end_date": Late(EVENING, [(1, END), (2, {}), (3, {})]),
    "as many as a start_date leaves out": Late(
        [NOW - ago * HOUR for ago in (4, 5, 6)],
        [(1, LATER), (2, LATER)],
        (*[NOW - 7 * DAY] * 3, NOW - 3 * HOUR, NOW - 2 * HOUR),
        ("filter_on", "received"),
    ),
    "as many as lay in the future": Late(
        [NOW + 3 * HOUR, NOW + 4 * HOUR], [(24, {}), (24, {})], (NOW + 300 * DAY, NOW + 301 * DAY)
    ),
    # The API's days begin before UTC's: an end_date of today asks for two of them.
    "of the last day asked for": Late(
        [MIDNIGHT - HOUR],
        [(24, {}), (24, {})],
        (MIDNIGHT - 4 * HOUR, MIDNIGHT - 3 * HOUR, NOW - HOUR),
        ("utc_offset_hours", 14),
        NOW.isoformat(),
    ),
    "after the bookmark, which such a run leaves": Late(
        [NOW + HOUR / 2], [(1, TODAY), (1, TODAY), (2, {})], ()
    ),
}


@with_project(seed=1, sessions=3, days=1, until=NOW - 20 * DAY)
@pytest.mark.parametrize("case", LATE.values(), ids=LATE)
def test_a_late_call_hides_behind_no_other(sandbox: Sandbox, case: Late) -> None:
    """It is found though others are counted, or left out by the dates of a run, and comes once."""
    project, run = sandbox.project, Runs(sandbox, NOW, "network")
    setattr(sandbox.options, *case.option)
    project.now = NOW - HOUR
    for instant in case.calls:
        project.new_network(instant)
    run(end_date=case.end)
    project.now = NOW + HOUR / 2
    late = [project.new_network(instant) for instant in case.late]
    came = [run(hours, **dates).ids("network") for hours, dates in case.runs]
    start = case.runs[-1][1].get("start_date", "")
    due = [one for one in late if project.when("network", one) >= start]
    assert [sum(ids.count(one) for ids in came) for one in due] == [1] * len(due)
    # Calls of the future come again until their time has come.
    assert [one for one in came[-1] if project.when("network", one) < "2026-03-03"] == []


EARLY = datetime(1970, 3, 1, 12, tzinfo=UTC)


@with_project(seed=1, sessions=20, until=EARLY - HOUR)
def test_a_lookback_to_before_1970_brings_no_call_twice(sandbox: Sandbox) -> None:
    """Each of its days is counted, those after 1970 as well as those before."""
    run = Runs(sandbox, EARLY, "network", lookback_days=90)
    sandbox.project.new_network(EARLY - HOUR)
    assert run().table("network") == expected(sandbox.project, "network")
    assert run(1).rows("network") == []


# --- Which events are fetched ------------------------------------------------------------


def add_session(project: Project, session: str, started: datetime, **fields: object) -> None:
    """Add a session with one event that is nothing special, but for some fields."""
    draft = project.sessions.pop(project.new_session(started))
    del project.events[draft["id"]]
    usual = {"hasCrash": False, "hasNetworkErrors": False, "status": "completed", "eventCount": 1}
    event = {"id": "evt_1", "type": "tap", "timestamp": draft["startedAt"]}
    project.add({**draft, **usual, **fields, "id": session}, [event])


HAPPENED: dict[str, dict[str, object]] = {
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


@with_project(sessions=0)
@pytest.mark.parametrize(
    ("events_for", "asked"),
    [
        ("all", ["active", "crash", "crashed", "network", "null", "plain", "unknown"]),
        ("errors", ["crash", "crashed", "network"]),
        ("crashed", ["crash", "crashed"]),
    ],
)
def test_events_are_fetched_by_what_happened_in_a_session(
    sandbox: Sandbox, events_for: str, asked: list[str]
) -> None:
    """A crash is an error, which the status may say alone; some sessions have no events."""
    for session, fields in HAPPENED.items():
        add_session(sandbox.project, session, NOW - 2 * HOUR, **fields)
    run = Runs(sandbox, NOW, events_for=events_for)
    assert sorted(run().asked) == asked
    assert run().asked == []


CHANGED = {"eventCount": 99, "status": "active", "endedAt": None, "hasCrash": True, "userId": "x"}


@pytest.mark.parametrize(("field", "value"), CHANGED.items())
def test_events_are_fetched_again_where_their_session_has_changed(
    sandbox: Sandbox, field: str, value: object
) -> None:
    """Four columns show that; where another has changed, only the session is loaded."""
    project, run = sandbox.project, Runs(sandbox, NOW)
    session = next(
        one
        for one, row in project.sessions.items()
        if at_start(project, one) > NOW - 5 * DAY and row["status"] == "completed"
    )
    run()
    project.sessions[session][field] = value
    project.changed("sessions")
    output = run()
    assert output.ids("sessions") == [session]
    assert output.asked == ([] if field == "userId" else [session])


def test_two_sessions_are_never_taken_for_one(sandbox: Sandbox) -> None:
    """Sessions whose ids have a shorter hash in common both get their events."""
    project, one, other = sandbox.project, "sess_225263", "sess_1188289"
    run = Runs(sandbox, NOW)
    add_session(project, one, NOW - 2 * HOUR)
    run()
    add_session(project, other, NOW - 2 * HOUR)
    run()
    project.grow(one)
    run()
    run()
    later = run.outputs[1:]
    assert [output.ids("sessions") for output in later] == [[other], [one], []]
    assert [output.asked for output in later] == [[other], [one], []]
    # And where both are in one run.
    assert sync(sandbox, NOW).table("events").keys() == expected(project, "events").keys()


@pytest.mark.parametrize("lists_sessions", [True, False])
def test_events_can_be_loaded_alone(sandbox: Sandbox, *, lists_sessions: bool) -> None:
    """With sessions deselected, or in no catalog, events are complete; the next run asks none."""
    alone = select(NOW, "events")
    if not lists_sessions:
        alone["streams"] = [one for one in alone["streams"] if one["stream"] == "events"]
    run = Runs(sandbox, NOW, catalog=alone)
    first = run()
    assert first.rows("sessions") == []
    assert first.table("events") == expected(sandbox.project, "events")
    assert run().asked == []


@with_project(seed=3, sessions=80)
def test_a_session_that_two_windows_list_is_asked_for_its_events_once(sandbox: Sandbox) -> None:
    """Where `to` includes its day, the lookback and history both list that day's sessions."""
    sandbox.options.to_means = "end"
    output = sync(sandbox, NOW)
    assert f"{NOW - 8 * DAY:%F}" in {f"{at_start(sandbox.project, one):%F}" for one in output.asked}
    assert len(output.asked) == len(set(output.asked))
    assert output.table("events") == expected(sandbox.project, "events")


# Runs that load few events, or none.
FEW_EVENTS: dict[str, Row] = {
    "crashed": {"events_for": "crashed"},
    "deselected": {"catalog": select(NOW, "crashes", "network", "sessions")},
    "taken away": {"stream_maps": {"events": None}},
}


@pytest.mark.parametrize("few", FEW_EVENTS)
def test_events_that_were_left_out_are_fetched_when_they_are_wanted(
    sandbox: Sandbox, few: str
) -> None:
    """Widening events_for, or selecting events, asks for no more than what is not there yet."""
    project, run = sandbox.project, Runs(sandbox, NOW)
    first, second, third = run(**FEW_EVENTS[few]), run(), run(events_for="errors")
    crashed = {one for one, row in project.sessions.items() if row["hasCrash"]}
    assert set(first.asked) == (crashed if few == "crashed" else set())
    assert second.rows("sessions") == []
    assert first.table("events") | second.table("events") == expected(project, "events")
    again = set(first.asked).intersection(second.asked)
    assert all(at_start(project, one) < NOW - 8 * DAY for one in again)
    assert third.asked == []
    assert third.rows("events") == []


@pytest.mark.parametrize("days", [1, 8, 20])
@pytest.mark.parametrize("few", FEW_EVENTS)
def test_events_left_out_for_a_while_do_not_start_over(
    sandbox: Sandbox, days: int, few: str
) -> None:
    """Only the sessions that the runs with few events, or none, left out are asked for."""
    project, run, later = sandbox.project, Runs(sandbox, NOW), 24 * days
    run()
    new = {project.new_session(NOW + hour * HOUR) for hour in (1, 3, 5, 20)}
    project.crash(min(new))
    crashed = {one for one in new if project.sessions[one]["hasCrash"] and few == "crashed"}
    narrow = FEW_EVENTS[few]
    second, third, fourth = run(later, **narrow), run(later), run(later, **narrow)
    assert sorted(second.asked) == sorted(crashed)
    # The narrower run has some already.
    assert new - crashed <= set(third.asked) <= new
    assert len(third.asked) == len(set(third.asked))
    assert fourth.asked == []
    assert_whole(project, *run.outputs)


@with_project(seed=3, sessions=2000, days=1, until=NOW, events_per_session=2)
def test_more_sessions_than_the_limit_serves_are_told(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Both numbers stand in the warning, and the settings that help."""
    # One request a minute serves 1,440 sessions a day; the run has a time limit.
    limited: Row = {"requests_per_minute": 1, "max_runtime_minutes": 0.0001}
    sync(sandbox, NOW, None, select(NOW, "sessions", "events"), minute=0.001, **limited)
    (told,) = [one for one in caplog.messages if "new sessions a day need events" in one]
    for words in ("1 requests a minute serve 1,440", "events_for", "project and key"):
        assert words in told


# --- Events that the API does not give ---------------------------------------------------


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("vanished_sessions", "knows none of 10 sessions"),
        ("broken_sessions", "fails for too many sessions"),
    ],
)
def test_ten_sessions_in_a_row_without_events_are_an_error(
    sandbox: Sandbox, option: str, says: str
) -> None:
    """The API is to blame, not the sessions: the run ends, and none of them counts as done."""
    run = Runs(sandbox, NOW, minute=0.01)
    run(catalog=select(NOW, "sessions"))
    setattr(sandbox.options, option, set(sandbox.project.sessions))
    with pytest.raises(Exception, match=says):
        run()
    setattr(sandbox.options, option, set())
    assert run().table("events") == expected(sandbox.project, "events")


def test_few_sessions_that_all_vanish_are_asked_for_again(sandbox: Sandbox) -> None:
    """When no session at all is known, the endpoint is to blame, not the sessions."""
    run = Runs(sandbox, NOW)
    run()
    new = {sandbox.project.new_session(NOW + timedelta(minutes=5 + one)) for one in range(3)}
    sandbox.options.vanished_sessions = set(sandbox.project.sessions)
    run(1)
    sandbox.options.vanished_sessions = set()
    output = run(1)
    assert sorted(output.asked) == sorted(new)
    assert {row["sessionId"] for row in output.rows("events")} == new


@with_project(seed=1, sessions=30)
def test_a_404_for_a_session_set_aside_is_not_believed_while_it_is_listed(sandbox: Sandbox) -> None:
    """Also where it is listed by an end days after its start, and nothing new is read."""
    sandbox.options.filter_on = "endedAt"
    project, only = sandbox.project, select(NOW, "sessions", "events")
    rows = [row for row in project.sessions.values() if row["eventCount"] and row["endedAt"]]
    row = next(row for row in rows if row["startedAt"] < "2026-02-15")
    ended = datetime.fromisoformat(row["startedAt"]) + 5 * DAY
    row["endedAt"] = ended.isoformat().replace("+00:00", "Z")
    state = sync(sandbox, NOW, catalog=only, start_date="2026-02-26").state
    state["bookmarks"]["events"]["set_aside"] = {row["id"]: "it failed"}
    sandbox.options.vanished_sessions = {row["id"]}
    state = sync(sandbox, NOW, state, only, end_date="2026-02-24").state
    assert list(state["bookmarks"]["events"]["short"]) == [row["id"]]


@pytest.mark.parametrize("fault", ["500", "400", "403", "409", "410", "413", "422", "499"])
def test_a_session_that_always_fails_is_set_aside(sandbox: Sandbox, load: Load, fault: str) -> None:
    """It is named, tried once in each later run, and fetched when it works again."""
    broken = [one for one, events in sandbox.project.events.items() if events][3]
    sandbox.options.script = lambda one: fault if one.query.get("sessionId") == broken else None
    first = load()
    assert broken not in {key[0] for key in first.output.table("events")}
    assert [one for one in first.warnings if f"session {broken} is set aside" in one]
    second = load(first.output.state)
    assert second.sessions == {broken: 1}
    for run in (first, second):
        assert list(run.output.state["bookmarks"]["events"]["set_aside"]) == [broken]
        assert run.line_of("events").endswith(f"set aside: {broken}")
    sandbox.options.script = None
    third = load(second.output.state)
    assert_done(third)
    assert third.sessions == {broken: 1}
    assert third.output.state["bookmarks"]["events"]["set_aside"] == {}
    assert third.line_of("events").endswith("row counts match the API")
    assert_whole(sandbox.project, first.output, third.output)


def test_a_session_that_failed_and_has_no_events_is_asked_for_once_more(sandbox: Sandbox) -> None:
    """It is older than the lookback, so nothing else would bring its events, or ask without end."""
    project, run = sandbox.project, Runs(sandbox, NOW, minute=0.01)
    broken = next(
        one
        for one, row in project.sessions.items()
        if at_start(project, one) < NOW - 12 * DAY and row["eventCount"]
    )
    sandbox.options.broken_sessions = {broken}
    first = run()
    sandbox.options.broken_sessions = set()
    whole, project.events[broken] = project.events[broken], []
    project.changed("events")
    second, _, fourth = run(), run(), run()
    assert fourth.asked == []  # the same answer twice is believed
    project.events[broken] = whole
    project.changed("events")
    last = sync(sandbox, NOW, second.state)
    assert first.table("events") | last.table("events") == expected(project, "events")


def test_a_session_that_grows_while_it_is_set_aside_is_fetched_whole(sandbox: Sandbox) -> None:
    """It grew between the runs, and once more after it was listed: nothing is missed."""
    project, run = sandbox.project, Runs(sandbox, NOW, minute=0.01)
    broken = next(one for one in project.sessions if at_start(project, one) > NOW - 5 * DAY)
    sandbox.options.broken_sessions = {broken}
    run()
    project.grow(broken)
    sandbox.options.broken_sessions = set()

    def grow(request: Request, project: Project) -> None:
        if request.path == "/events":
            sandbox.options.on_request = None
            project.grow(broken)

    sandbox.options.on_request = grow
    second, third = run(), run()
    assert second.ids("sessions") == [broken]
    # Listed before it grew: it may have been fetched without its last events.
    assert second.asked == third.asked == [broken]
    assert_whole(project, *run.outputs)
    assert run().asked == []
