"""Whole runs against APIs that count, page, filter and refuse in ways nobody expects.

Each run may ask for so many pages and no more: one that asks for ever is refused after
them, and fails its test.
"""

from __future__ import annotations

import json
import re
import typing as t
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tests.conftest import NOW, sweep, with_project
from tests.loads import Load, assert_done, with_events
from tests.running import PRIMARY_KEYS, Row, assert_whole, expected
from tests.sandbox import Project, Request, Sandbox

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
# Its clocks are right, so that no call lies in the future.
DATA = {"sessions": 60, "lying_clocks": False}
MATCH = "row counts match the API"


# --- What an API counts -------------------------------------------------------------------

# What the API does, and rows a page.
ODD: dict[str, tuple[Row, int]] = {
    "ends at a round number": ({"row_cap": 100}, 10),
    "refuses what lies beyond it": ({"row_cap": 100, "beyond_cap": "400"}, 10),
    "counts pages of its default size": ({"counts": "default-limit"}, 300),
    "counts fewer pages": ({"counts": "default-limit"}, 5),
    "counts all rows of a table": ({"counts": "unfiltered"}, 5),
    "counts all rows in one page": ({"counts": "unfiltered"}, 300),
    "lowers the limit and leaves pages out": ({"max_limit": 7, "omit_pages": True}, 1000),
    "lowers the limit in silence": (
        {"max_limit": 3, "echo": "asked", "counts": "asked-limit", "events_paging": "pages"},
        1000,
    ),
    "lowers it without pages": (
        {"max_limit": 3, "echo": "asked", "counts": "asked-limit"}
        | {"omit_pages": True, "events_paging": "pages"},
        1000,
    ),
    "names the next page": ({"echo": "page-one-too-high"}, 5),
    "counts one page of events": ({"events_paging": "pages", "counts": "one-page"}, 20),
    "counts the rows of a page": ({"counts": "page-total", "events_paging": "pages"}, 5),
    "orders ties anew": ({"ties": "by-page"}, 5),
}


@pytest.mark.parametrize(("options", "page_size"), ODD.values(), ids=ODD)
def test_an_api_that_counts_oddly_loses_nothing(
    sandbox: Sandbox, load: Load, options: Row, page_size: int
) -> None:
    """Every row arrives once: windows are small, and pages are read until all rows have come."""
    project = sandbox.project
    project.grow(with_events(project)[0], 50)
    for row in project.network.values():  # many of one instant
        row["timestamp"] = f"{row['timestamp'][:11]}12:00:00.000Z"
    for minute in range(60):  # one day has more than a page
        project.new_network(datetime(2026, 2, 20, 8, minute, tzinfo=UTC))
    project.changed("network")
    assert len(project.network) > 100
    assert len(project.crashes) > 3
    vars(sandbox.options).update(options)
    run = load(page_size=page_size, most=600)
    assert_whole(project, run.output)
    assert run.output.repeated("network") == []
    # Fewer rows than all of the table are short of what such an API counts.
    assert run.is_complete == (run.warnings == []) == (options.get("counts") != "unfiltered")


def test_a_day_that_ends_at_a_round_number_is_told(sandbox: Sandbox, load: Load) -> None:
    """A day of exactly as many rows as an API may count has more of them, perhaps."""
    project, day = sandbox.project, (NOW - 9 * DAY).replace(hour=1)
    for minute in range(130):
        project.new_network(day + timedelta(minutes=minute))
    sandbox.options.row_cap = 100
    run = load(page_size=10)
    (told,) = (line for line in run.warnings if "network" in line and f"{day:%F}" in line)
    assert re.search(r"\b100\b", told)
    missing = project.network.keys() - run.output.ids("network")
    # Nothing else can be had.
    assert {project.when("network", one)[:10] for one in missing} == {f"{day:%F}"}


def test_a_round_number_of_rows_is_told_where_dates_are_ignored(
    sandbox: Sandbox, load: Load
) -> None:
    """No window is small enough then for an API that counts no further."""
    sandbox.options.ignored, sandbox.options.row_cap = "both", 50
    run = load(page_size=5)
    assert sum("counts exactly 50 rows on all days" in one for one in run.warnings) == 2


def test_history_is_read_in_windows_without_a_total(sandbox: Sandbox, load: Load) -> None:
    """The number of pages tells how large they are, so that each moves the bookmark."""
    sandbox.options.envelope = lambda one: {key: one[key] for key in one if key != "total"}
    run = load(page_size=5)
    assert_done(run)
    assert_whole(sandbox.project, run.output)
    marks = (state["bookmarks"].get("network", {}) for state in run.output.states)
    assert len({mark.get("complete_from") for mark in marks}) > 3


@with_project(sessions=0)
@pytest.mark.parametrize("empty_as", ["list", "null", "204", "floats"])
def test_an_empty_listing_may_look_like_anything(
    sandbox: Sandbox, load: Load, empty_as: t.Literal["list", "null", "204", "floats"]
) -> None:
    """A project without rows is loaded without another try."""
    sandbox.options.empty_as = empty_as
    run = load(most=30)
    assert_done(run)
    assert_whole(sandbox.project, run.output)
    assert not [line for line in run.log if "trying again" in line]


# --- Dates that are ignored ---------------------------------------------------------------


@sweep("ignored", ["both", "from", "to"], quick=[("both",), ("from",)])
def test_dates_that_are_ignored_are_noticed(
    sandbox: Sandbox, load: Load, ignored: t.Literal["both", "from", "to"]
) -> None:
    """All rows are read once as a whole, which one warning says, and then those that are new."""
    sandbox.options.ignored = ignored
    run = load(page_size=5)
    assert_whole(sandbox.project, run.output)
    assert run.output.repeated("sessions") == run.output.repeated("network") == []
    told = [one for one in run.warnings if re.search(r"\b(from|to)\b", one)]
    assert 1 <= len(told) <= 2, run.warnings  # one, or one for each stream
    probes = Counter(one.path for one in run.requests if one.query.get("to") == "1901-01-02")
    assert max(probes.values()) <= 2, probes
    sandbox.project.new_network(NOW + 21 * HOUR)
    second = load(run.output.state, after=DAY, page_size=5)
    assert_whole(sandbox.project, run.output, second.output)
    # No more of the others than those in the lookback.
    assert min(row["timestamp"] for row in second.output.rows("network")) >= "2026-02-21"


def test_an_earlier_start_date_counts_where_dates_are_ignored(sandbox: Sandbox, load: Load) -> None:
    """What lies before the date of the run before is loaded, although it comes in one listing."""
    sandbox.options.ignored = "both"
    first = load(page_size=5, start_date="2026-02-27")
    second = load(first.output.state, after=HOUR, page_size=5)
    assert 0 < len(first.output.rows("sessions")) < len(sandbox.project.sessions)
    assert_whole(sandbox.project, first.output, second.output)


@with_project(seed=7, sessions=400, days=12, lying_clocks=False)
@pytest.mark.parametrize("hours", [-12, -8, 9])
def test_events_of_all_days_come_where_dates_are_ignored(
    sandbox: Sandbox, load: Load, hours: int
) -> None:
    """The days of the API may begin at another hour than those that the tap goes by."""
    sandbox.options.ignored, sandbox.options.utc_offset_hours = "to", hours
    run = load(most=600)
    assert_done(run)
    assert_whole(sandbox.project, run.output)
    assert run.output.repeated("events") == []


def test_a_from_counts_that_needs_a_to(sandbox: Sandbox, load: Load) -> None:
    """A run of the next day emits new and late calls, and none of the month before it."""
    sandbox.options.ignored = "from-alone"
    for minutes in range(30, 42):
        sandbox.project.new_network(NOW - minutes * HOUR / 60)
    first = load(page_size=5)
    assert_done(first)
    assert_whole(sandbox.project, first.output)
    late = [sandbox.project.new_network(NOW - minutes * HOUR / 60) for minutes in (35, 36, 37)]
    late.append(sandbox.project.new_network(NOW + 21 * HOUR))
    second = load(first.output.state, after=DAY, page_size=5, most=100)
    assert_done(second)
    assert set(late) <= set(second.output.ids("network"))
    assert min(row["timestamp"] for row in second.output.rows("network")) >= "2026-02-28"
    assert_whole(sandbox.project, first.output, second.output)


def test_an_end_that_is_refused_is_left_out(sandbox: Sandbox, load: Load) -> None:
    """An API may take no dates in the future; the newest rows come all the same."""
    refused = f"{NOW + 2 * DAY:%F}"
    sandbox.options.script = lambda one: "400" if one.query.get("to", "") > refused else None
    run = load(page_size=5)
    assert_done(run)
    assert_whole(sandbox.project, run.output)
    refusals = Counter(one.path for one in run.requests if one.status == 400)
    assert refusals == {"/network": 1, "/sessions": 1}


def test_dates_that_are_refused_are_named(sandbox: Sandbox, load: Load) -> None:
    """A start date before what the API keeps is an error that says what was asked for."""
    sandbox.options.refuse_before = "2026-02-09T00:00:00.000Z"
    run = load(code=1, start_date="2026-01-05", most=100)
    refused = [one for one in run.requests if one.status == 400]
    last = run.log[-1]
    assert "400 Bad Request for /" in last
    assert any(one.path in last and one.query["from"] in last for one in refused), last
    assert run.output.table("crashes") == expected(sandbox.project, "crashes")


# --- Rows that move while they are read ---------------------------------------------------


def test_ties_that_stay_short_are_not_complete(sandbox: Sandbox, load: Load) -> None:
    """Of 90 calls of one instant all are loaded, or the run says that it is incomplete."""
    for _ in range(90):
        sandbox.project.new_network(NOW - 9 * DAY)
    sandbox.options.ties = "by-page"
    run = load(page_size=5)
    missing = sandbox.project.network.keys() - run.output.ids("network")
    assert run.is_complete == (not missing), f"{len(missing)} are missing"


@sweep(
    "stream status",
    ["network", "sessions"],
    ["404", "400"],
    quick=[("network", "404"), ("sessions", "400")],
)
def test_a_page_that_is_gone_ends_the_listing(
    sandbox: Sandbox, load: Load, stream: str, status: t.Literal["404", "400"]
) -> None:
    """Rows are deleted, the last page is refused, and every row that stays is loaded."""
    sandbox.options.past_end, sandbox.options.order = status, "oldest"

    def shrink(request: Request, project: Project) -> None:
        if request.path != f"/{stream}" or request.query["page"] != "2":
            return
        sandbox.options.on_request = None
        low, high = request.query.get("from", ""), request.query.get("to", "~")
        table = project.table(stream)
        window = sorted(one for one in table if low <= project.when(stream, one) < high)
        for one in window[3:]:  # page 1 is left
            del table[one]
            project.events.pop(one, None)
        project.changed(stream)

    sandbox.options.on_request = shrink
    run = load(page_size=5, concurrency=1)
    assert f"/{stream}" in {one.path for one in run.requests if one.status == int(status)}
    for one in PRIMARY_KEYS:
        assert expected(sandbox.project, one).items() <= run.output.table(one).items()


@pytest.mark.parametrize("many", [1, 25])
def test_sessions_that_are_gone_break_nothing(sandbox: Sandbox, load: Load, many: int) -> None:
    """They go after they were listed: the events of all others are loaded, and it is told."""
    sessions = sandbox.project.sessions
    oldest = sorted(with_events(sandbox.project), key=lambda one: sessions[one]["startedAt"])[:many]

    def delete(request: Request, project: Project) -> None:
        if request.path == "/events":
            sandbox.options.on_request = None
            for one in oldest:
                del sessions[one]
                del project.events[one]
            project.changed("sessions")

    sandbox.options.on_request = delete
    first = load()
    assert first.output.table("events") == expected(sandbox.project, "events")
    assert first.line_of("events").endswith(f"{many} sessions deleted since they were listed")
    for one in oldest:
        assert f"events: session {one} is not known to the API" in "\n".join(first.log)
    second = load(first.output.state, after=HOUR, most=100)
    assert_done(second)
    assert second.sessions == {}


# --- Events that come short ---------------------------------------------------------------


def test_events_that_never_come_are_told_and_tried_again(sandbox: Sandbox, load: Load) -> None:
    """Only page 1 comes: it is said, asked for in the next run, and then believed."""
    project = sandbox.project
    long = with_events(project)[0]
    project.grow(long, 50)
    rows = expected(project, "events")
    others = {key: rows[key] for key in rows if key[0] != long}
    least = max(len(project.events[one]) for one, _ in others)
    sandbox.options.events_paging = "first"
    first = load(page_size=least)
    assert len([line for line in first.warnings if "events" in line]) == 1
    assert others.items() <= first.output.table("events").items()
    assert len(first.output.rows("events")) == len(others) + least
    short = {long: [least, len(project.events[long])]}
    assert first.output.state["bookmarks"]["events"]["short"] == short
    second = load(first.output.state, after=HOUR, page_size=least, most=100)
    assert set(second.sessions) == {long}
    third = load(second.output.state, after=2 * HOUR, page_size=least, most=100)
    assert third.sessions == {}


@sweep(
    "late_events comes",
    ["zero", "no-rows", "204", "part", "404"],
    [True, False],
    quick=[("zero", True), ("404", True), ("part", False), ("404", False)],
)
def test_events_that_come_late_are_asked_for_in_the_next_run(
    sandbox: Sandbox,
    load: Load,
    late_events: t.Literal["zero", "no-rows", "204", "part", "404"],
    *,
    comes: bool,
) -> None:
    """Though no row of their sessions changes; the same answer twice is the truth."""
    whole = with_events(sandbox.project)
    late = {whole[1], whole[-2]}  # within the lookback, and in history
    sandbox.options.late_sessions, sandbox.options.late_events = late, late_events
    first = load()
    rows = expected(sandbox.project, "events")
    assert {key for key in rows if key[0] not in late} <= first.output.table("events").keys()
    if comes:
        sandbox.options.late_sessions = set()
    second = load(first.output.state, after=HOUR, most=100)
    third = load(second.output.state, after=2 * HOUR, most=100)
    assert first.line_of("events").endswith("2 sessions short of events")
    assert first.line_of("sessions").endswith(MATCH)
    assert not first.is_complete
    assert second.sessions.keys() == late
    assert third.sessions == {}
    assert_done(third)
    assert third.line_of("events").endswith("nothing was asked for")
    if comes:
        assert_done(second)
        assert_whole(sandbox.project, first.output, second.output)
    # A page without the rows it counts may be a glitch.
    most = 3 if late_events == "no-rows" and not comes else 1
    assert max(second.sessions.values()) <= most


def test_an_event_count_that_is_wrong_for_most_is_ignored(sandbox: Sandbox, load: Load) -> None:
    """One warning says that `eventCount` counts something else, and all are believed."""
    for row in sandbox.project.sessions.values():
        row["eventCount"] += 3
    first = load()
    assert first.output.table("events") == expected(sandbox.project, "events")
    assert len([line for line in first.warnings if "eventCount" in line]) == 1, first.warnings
    second = load(first.output.state, after=HOUR, most=100)
    # Those without any are asked for once more, as where events come late.
    assert not any(sandbox.project.events[one] for one in second.sessions)
    third = load(second.output.state, after=2 * HOUR, most=100)
    assert third.sessions == {}


@pytest.mark.long
@with_project(
    seed=3, sessions=2300, days=2, lying_clocks=False, events_per_session=2, network_per_session=0
)
def test_more_short_sessions_than_are_remembered_are_told(sandbox: Sandbox, load: Load) -> None:
    """The state stays small, and what it leaves out is loaded later, or said."""
    late = with_events(sandbox.project, 1)[:1050]
    sandbox.options.late_sessions = set(late)
    first = load(most=2600)
    sandbox.options.late_sessions = set()
    second = load(first.output.state, after=HOUR, most=1200)
    assert len(json.dumps(first.output.state)) < 150_000
    assert sum(second.sessions[one] for one in late) >= 900
    loaded = first.output.table("events").keys() | second.output.table("events").keys()
    missing = expected(sandbox.project, "events").keys() - loaded
    assert not missing or [one for one in first.warnings if "events" in one], len(missing)


# --- Rows that are odd from first to last -------------------------------------------------


def test_thousands_of_unknown_fields_are_one_warning(sandbox: Sandbox, load: Load) -> None:
    """It has a few of the names, and how many there are."""
    rows = list(sandbox.project.sessions.values())
    for number, row in enumerate(rows):
        row.update({f"screen_{50 * number + one}_seconds": 1 for one in range(50)})
    assert len(rows) == 60
    run = load()
    assert_done(run)
    assert [len(row["_extra"]) for row in run.output.rows("sessions")] == [50] * 60
    (told,) = (line for line in run.warnings if "_seconds" in line)
    assert re.search("3,?000|2,?99[0-9]", told)  # all, or all but those it names
    assert len(told) < 500


def test_a_stream_whose_instants_cannot_be_read_says_so(sandbox: Sandbox, load: Load) -> None:
    """All rows are loaded, and one warning says that the stream cannot be incremental."""

    def unreadable(envelope: Row) -> Row:
        rows = envelope["data"]
        if rows and "url" in rows[0]:
            rows = [{**row, "timestamp": f"at {row['timestamp']}"} for row in rows]
        return {**envelope, "data": rows}

    sandbox.options.envelope = unreadable
    run = load()
    assert_done(run)
    assert set(run.output.ids("network")) == sandbox.project.network.keys()
    assert all(row["timestamp"] is None for row in run.output.rows("network"))
    (told,) = (line for line in run.warnings if "network" in line and "incremental" in line)
    assert "timestamp" in told
