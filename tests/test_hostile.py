"""Whole runs against APIs that count, page, filter and refuse in ways nobody expects.

Each run may ask for so many pages and no more: one that asks for ever is refused after
them, and fails its test.
"""

from __future__ import annotations

import json
import re
import typing as t
from collections import Counter
from datetime import datetime, timedelta

import pytest

from tests.conftest import sweep
from tests.loads import Load, assert_done, with_events
from tests.running import PRIMARY_KEYS, assert_whole, expected
from tests.sandbox import Options, Sandbox, generate_once

if t.TYPE_CHECKING:
    from pathlib import Path

    from tests.running import Row
    from tests.sandbox import Project, Request

HOUR = timedelta(hours=1)
# Its clocks are right, so that no call lies in the future.
DATA = {"sessions": 60, "lying_clocks": False}


def same_instants(project: Project, instants: int) -> None:
    """Move the calls of a project to a few instants of the days they are in."""
    step = timedelta(days=1) / instants
    for row in project.network.values():
        at = datetime.fromisoformat(row["timestamp"])
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
        rounded = midnight + (at - midnight) // step * step
        row["timestamp"] = f"{rounded:%Y-%m-%dT%H:%M:%S}.000Z"
    project.changed("network")


# --- How far an API counts ----------------------------------------------------------------


@pytest.mark.parametrize("sandbox", [{"sessions": 150}], indirect=True)
@sweep("beyond", ["empty", "400"], quick=[("empty",)])
def test_a_listing_that_ends_at_a_round_number_loses_nothing(
    sandbox: Sandbox, load: Load, beyond: t.Literal["empty", "400"]
) -> None:
    """Windows have fewer rows than the ten pages that the API counts and serves."""
    sandbox.options.row_cap, sandbox.options.beyond_cap = 100, beyond
    assert len(sandbox.project.network) > 200
    run = load(page_size=10)
    assert_done(run)
    assert_whole(sandbox.project, run.output)
    assert run.output.repeated("network") == []
    assert run.warnings == []  # no day alone has as many


def test_a_day_that_ends_at_a_round_number_is_told(
    sandbox: Sandbox, load: Load, now: datetime
) -> None:
    """A day of exactly as many rows as an API may count has more of them, perhaps."""
    project = sandbox.project
    day = (now - timedelta(days=9)).replace(hour=1)
    for minute in range(130):
        project.new_network(day + timedelta(minutes=minute))
    sandbox.options.row_cap = 100
    run = load(page_size=10)
    assert run.code == 0
    told = [line for line in run.warnings if "network" in line and f"{day:%Y-%m-%d}" in line]
    assert len(told) == 1
    assert re.search(r"\b100\b", told[0])
    rows, loaded = expected(project, "network"), run.output.table("network")
    missing = [rows[key]["timestamp"][:10] for key in rows.keys() - loaded.keys()]
    assert set(missing) == {f"{day:%Y-%m-%d}"}  # nothing else can be had


def test_history_is_read_in_windows_where_the_api_does_not_count(
    sandbox: Sandbox, load: Load
) -> None:
    """The number of pages tells how large they are, so that each moves the bookmark."""
    sandbox.options.envelope = lambda one: {key: one[key] for key in one if key != "total"}
    run = load(page_size=5)
    assert_done(run)
    assert_whole(sandbox.project, run.output)
    starts = {
        state["bookmarks"].get("network", {}).get("complete_from") for state in run.output.states
    }
    assert len(starts) > 3, starts


# --- Dates that are ignored ---------------------------------------------------------------


@sweep("ignored", ["both", "from", "to"], quick=[("both",), ("from",)])
def test_dates_that_are_ignored_are_noticed(
    sandbox: Sandbox, load: Load, ignored: t.Literal["both", "from", "to"]
) -> None:
    """All rows are read once as a whole, which one warning says, and then those that are new."""
    sandbox.options.ignored = ignored
    run = load(page_size=5)
    assert run.code == 0, run.log[-1]
    assert_whole(sandbox.project, run.output)
    assert run.output.repeated("sessions") == run.output.repeated("network") == []
    told = [one for one in run.warnings if re.search(r"\b(from|to)\b", one)]
    assert 1 <= len(told) <= 2, run.warnings  # one, or one for each stream
    probes = Counter(one.path for one in run.requests if one.query.get("to") == "1901-01-02")
    assert max(probes.values()) <= 2, probes
    sandbox.project.new_network(datetime.fromisoformat("2026-03-02T09:00:00Z"))
    second = load(run.output.state, after=timedelta(days=1), page_size=5)
    assert_whole(sandbox.project, run.output, second.output)
    # No more of the others than those in the lookback.
    assert min(row["timestamp"] for row in second.output.rows("network")) >= "2026-02-21"


def test_an_earlier_start_date_counts_where_dates_are_ignored(sandbox: Sandbox, load: Load) -> None:
    """What lies before the date of the run before is loaded, although it comes in one listing."""
    sandbox.options.ignored = "both"
    first = load(page_size=5, start_date="2026-02-27")
    second = load(first.output.state, after=HOUR, page_size=5)
    assert 0 < len(first.output.rows("sessions")) < len(sandbox.project.sessions)
    assert second.code == 0, second.log[-1]
    assert_whole(sandbox.project, first.output, second.output)


def test_a_first_date_that_counts_only_with_a_last_brings_no_row_twice(
    sandbox: Sandbox, load: Load
) -> None:
    """A run of the next day emits the new call and none of the month before it."""
    sandbox.options.ignored = "from-alone"
    first = load(page_size=5)
    assert_done(first)
    assert_whole(sandbox.project, first.output)
    new = sandbox.project.new_network(datetime.fromisoformat("2026-03-02T09:00:00Z"))
    second = load(first.output.state, after=timedelta(days=1), page_size=5, most=100)
    assert_done(second)
    assert [row["id"] for row in second.output.rows("network")] == [new]
    assert_whole(sandbox.project, first.output, second.output)


def test_dates_that_are_refused_are_named(sandbox: Sandbox, load: Load) -> None:
    """A start date before what the API keeps is an error that says what was asked for."""
    sandbox.options.refuse_before = "2026-02-09T00:00:00.000Z"
    run = load(start_date="2026-01-05", most=100)
    assert run.code == 1
    refused = [one for one in run.requests if one.status == 400]
    last = run.log[-1]
    assert "400 Bad Request for /" in last
    assert any(one.path in last and one.query["from"] in last for one in refused), last
    assert run.output.table("crashes") == expected(sandbox.project, "crashes")


# --- What an API counts -------------------------------------------------------------------


@sweep(
    "counts page_size",
    ["default-limit", "unfiltered"],
    [5, 300],
    quick=[("default-limit", 300), ("unfiltered", 5)],
)
def test_pages_of_another_size_or_of_all_rows_are_not_believed(
    sandbox: Sandbox, load: Load, counts: t.Literal["default-limit", "unfiltered"], page_size: int
) -> None:
    """A listing ends when all of its rows are there, or at an empty page."""
    for minute in range(60):  # one day has more than a page of 100 or five
        at = datetime.fromisoformat("2026-02-20T08:00:00Z") + timedelta(minutes=minute)
        sandbox.project.new_network(at)
    sandbox.options.counts = counts
    run = load(page_size=page_size, most=800)
    assert run.code == 0, run.log[-1]
    assert_whole(sandbox.project, run.output)


def test_a_total_of_one_page_is_not_that_of_all(sandbox: Sandbox, load: Load) -> None:
    """Where `total` counts the rows of the page, the number of pages is followed each time."""
    sandbox.options.counts = "page-total"
    sandbox.options.events_paging = "pages"
    first = load(page_size=5)
    assert first.code == 0, first.log[-1]
    assert_whole(sandbox.project, first.output)
    days = Counter(one["timestamp"][:10] for one in sandbox.project.network.values())
    day = max(one for one in days if days[one] > 5 and one < "2026-03-01")
    sandbox.project.new_network(datetime.fromisoformat(f"{day}T00:30:00Z"))
    second = load(first.output.state, after=HOUR, page_size=5)
    assert_whole(sandbox.project, first.output, second.output)


@sweep("omit_pages", [False, True], quick=[(True,)])
def test_a_limit_that_is_lowered_in_silence_loses_nothing(
    sandbox: Sandbox, load: Load, *, omit_pages: bool
) -> None:
    """The next page is asked for until all rows are there, whatever `limit` says."""
    options = sandbox.options
    options.max_limit, options.echo, options.omit_pages = 3, "asked", omit_pages
    options.counts, options.events_paging = "asked-limit", "pages"
    assert len(sandbox.project.crashes) > options.max_limit
    run = load(most=1000)
    assert_done(run)
    assert_whole(sandbox.project, run.output)


def test_a_page_number_one_too_high_is_not_believed(sandbox: Sandbox, load: Load) -> None:
    """Pages are counted from what was asked for."""
    sandbox.options.echo = "page-one-too-high"
    run = load(page_size=5)
    assert_done(run)
    assert_whole(sandbox.project, run.output)


@pytest.mark.parametrize("sandbox", [{"sessions": 0}], indirect=True)
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


# --- Rows that move while they are read ---------------------------------------------------


def test_ties_that_each_page_orders_anew_lose_nothing(sandbox: Sandbox, load: Load) -> None:
    """A listing that stays short is read with pages of another size."""
    same_instants(sandbox.project, 2)
    sandbox.options.ties = "by-page"
    run = load(page_size=5)
    assert run.code == 0, run.log[-1]
    assert_whole(sandbox.project, run.output)


def test_ties_that_stay_short_are_not_complete(sandbox: Sandbox, load: Load, now: datetime) -> None:
    """Of 90 calls of one instant all are loaded, or the run says that it is incomplete."""
    for _ in range(90):
        sandbox.project.new_network(now - timedelta(days=9))
    sandbox.options.ties = "by-page"
    run = load(page_size=5)
    assert run.code == 0, run.log[-1]
    missing = expected(sandbox.project, "network").keys() - run.output.table("network").keys()
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
    project, is_done = sandbox.project, False
    sandbox.options.past_end, sandbox.options.order = status, "oldest"

    def shrink(request: Request, project: Project) -> None:
        nonlocal is_done
        if request.path != f"/{stream}" or request.query["page"] != "2" or is_done:
            return
        is_done = True
        low, high = request.query.get("from", ""), request.query.get("to", "~")
        table = project.table(stream)
        window = sorted(one for one in table if low <= project.when(stream, one) < high)
        for one in window[3:]:  # page 1 is left
            del table[one]
            project.events.pop(one, None)
        project.changed(stream)

    sandbox.options.on_request = shrink
    run = load(page_size=5, concurrency=1)
    assert is_done
    assert run.code == 0, run.log[-1]
    assert f"/{stream}" in {one.path for one in run.requests if one.status == int(status)}
    for one in PRIMARY_KEYS:
        assert expected(project, one).items() <= run.output.table(one).items()


def test_sessions_that_retention_deletes_are_no_broken_endpoint(
    sandbox: Sandbox, load: Load
) -> None:
    """25 sessions go after they were listed; the events of all others are loaded."""
    project, is_done = sandbox.project, False

    def delete(request: Request, project: Project) -> None:
        nonlocal is_done
        if request.path != "/events" or is_done:
            return
        is_done = True
        table = project.sessions
        for one in sorted(table, key=lambda one: project.when("sessions", one))[:25]:
            del table[one]
            del project.events[one]
        project.changed("sessions")

    sandbox.options.on_request = delete
    first = load()
    assert is_done
    assert first.code == 0, first.log[-1]
    assert first.output.table("events") == expected(project, "events")
    second = load(first.output.state, after=HOUR, most=100)
    assert second.code == 0, second.log[-1]
    assert not set(second.sessions) - set(project.sessions)


# --- Events that come short ---------------------------------------------------------------

LATE = ["zero", "no-rows", "204", "part", "404"]


def test_events_beyond_the_only_page_are_asked_for(sandbox: Sandbox, load: Load) -> None:
    """A session has more than 50 events, and /events says `pages` 1: the total decides."""
    project = sandbox.project
    project.grow(with_events(project)[0], 50)
    sandbox.options.events_paging, sandbox.options.counts = "pages", "one-page"
    run = load(page_size=20)
    assert_done(run)
    assert_whole(sandbox.project, run.output)


def test_events_that_never_come_are_told_and_tried_again(sandbox: Sandbox, load: Load) -> None:
    """Only page 1 comes: it is said, asked for in the next run, and then believed."""
    project = sandbox.project
    long = with_events(project)[0]
    project.grow(long, 50)
    least = max(len(rows) for one, rows in project.events.items() if one != long)
    sandbox.options.events_paging = "first"
    first = load(page_size=least)
    assert first.code == 0, first.log[-1]
    assert len([line for line in first.warnings if "events" in line]) == 1
    assert len([row for row in first.output.rows("events") if row["sessionId"] == long]) == least
    second = load(first.output.state, after=HOUR, page_size=least, most=100)
    assert set(second.sessions) == {long}
    third = load(second.output.state, after=2 * HOUR, page_size=least, most=100)
    assert third.sessions == {}


@sweep("late_events", LATE, quick=[("zero",), ("404",)])
def test_events_that_come_an_hour_late_are_loaded(
    sandbox: Sandbox, load: Load, late_events: t.Literal["zero", "no-rows", "204", "part", "404"]
) -> None:
    """Their sessions, whose rows do not change, are asked for once more in the next run."""
    whole = with_events(sandbox.project)
    late = {whole[1], whole[-2]}  # within the lookback, and in history
    sandbox.options.late_sessions, sandbox.options.late_events = late, late_events
    first = load()
    assert first.code == 0, first.log[-1]
    rows = expected(sandbox.project, "events")
    others = {key for key in rows if key[0] not in late}
    assert others <= first.output.table("events").keys()
    sandbox.options.late_sessions = set()
    second = load(first.output.state, after=HOUR, most=100)
    assert_done(second)
    assert second.sessions == Counter(late)
    assert_whole(sandbox.project, first.output, second.output)
    third = load(second.output.state, after=2 * HOUR, most=100)
    assert third.sessions == {}


@sweep("late_events", LATE, quick=[("part",)])
def test_events_that_never_come_are_believed_the_second_time(
    sandbox: Sandbox, load: Load, late_events: t.Literal["zero", "no-rows", "204", "part", "404"]
) -> None:
    """The same answer in two runs is the truth: the third does not ask."""
    late = {with_events(sandbox.project)[1]}
    sandbox.options.late_sessions, sandbox.options.late_events = late, late_events
    first = load()
    second = load(first.output.state, after=HOUR, most=100)
    third = load(second.output.state, after=2 * HOUR, most=100)
    assert (first.code, second.code, third.code) == (0, 0, 0)
    assert set(second.sessions) == late
    assert max(second.sessions.values()) <= 3  # a page without the rows it counts may be a glitch
    assert third.sessions == {}


def test_a_count_that_most_sessions_disagree_with_is_no_count_of_events(
    sandbox: Sandbox, load: Load
) -> None:
    """One warning says that `eventCount` counts something else, and all are believed."""
    for row in sandbox.project.sessions.values():
        row["eventCount"] += 3
    first = load()
    assert first.code == 0, first.log[-1]
    assert first.output.table("events") == expected(sandbox.project, "events")
    assert len([line for line in first.warnings if "eventCount" in line]) == 1, first.warnings
    second = load(first.output.state, after=HOUR, most=100)
    # Those without any are asked for once more, as where events come late.
    assert second.code == 0
    assert not any(sandbox.project.events[one] for one in second.sessions)
    third = load(second.output.state, after=2 * HOUR, most=100)
    assert third.sessions == {}


@pytest.mark.long
def test_more_short_sessions_than_are_remembered_are_told(now: datetime, tmp_path: Path) -> None:
    """The state stays small, and what it leaves out is loaded later, or said."""
    project = generate_once(
        seed=3,
        sessions=2300,
        days=2,
        until=now - HOUR,
        lying_clocks=False,
        events_per_session=2,
        network_per_session=0,
    )
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        load = Load(sandbox, tmp_path, now)
        late = with_events(project, 1)[:1050]
        sandbox.options.late_sessions = set(late)
        first = load(most=2600)
        assert first.code == 0, first.log[-1]
        sandbox.options.late_sessions = set()
        second = load(first.output.state, after=HOUR, most=1200)
        assert second.code == 0, second.log[-1]
    assert len(json.dumps(first.output.state)) < 150_000
    assert sum(second.sessions[one] for one in late) >= 900
    loaded = first.output.table("events").keys() | second.output.table("events").keys()
    missing = expected(project, "events").keys() - loaded
    assert not missing or [one for one in first.warnings if "events" in one], len(missing)


# --- Rows that are odd from first to last -------------------------------------------------


def test_thousands_of_unknown_fields_are_one_warning(sandbox: Sandbox, load: Load) -> None:
    """It has a few of the names, and how many there are."""
    rows = list(sandbox.project.sessions.values())
    names = [f"screen_{number}_seconds" for number in range(50 * len(rows))]
    for number, row in enumerate(rows):
        row.update(dict.fromkeys(names[50 * number : 50 * number + 50], 1))
    assert len(names) == 3000
    run = load()
    assert_done(run)
    assert len(run.output.rows("sessions")) == len(rows)
    assert all(len(row["_extra"]) == 50 for row in run.output.rows("sessions"))
    told = [line for line in run.warnings if "_seconds" in line]
    assert len(told) == 1, len(told)
    assert re.search("3,?000|2,?99[0-9]", told[0])  # all, or all but those it names
    assert len(told[0]) < 500


def test_a_stream_whose_instants_cannot_be_read_says_so(sandbox: Sandbox, load: Load) -> None:
    """All rows are loaded, and one warning says that the stream cannot be incremental."""
    calls = set(sandbox.project.network)

    def unreadable(envelope: Row) -> Row:
        rows = envelope["data"]
        if rows and "url" in rows[0]:
            envelope["data"] = [{**row, "timestamp": f"at {row['timestamp']}"} for row in rows]
        return envelope

    sandbox.options.envelope = unreadable
    run = load()
    assert_done(run)
    assert {row["id"] for row in run.output.rows("network")} == calls
    assert all(row["timestamp"] is None for row in run.output.rows("network"))
    told = [line for line in run.warnings if "network" in line and "incremental" in line]
    assert len(told) == 1, run.warnings
    assert "timestamp" in told[0]
