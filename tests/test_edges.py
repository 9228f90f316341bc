"""What an API, a clock or a catalog may do that nobody expects."""

from __future__ import annotations

import itertools
import typing as t
from datetime import date, datetime, timedelta

import pytest
import requests
from singer_sdk.exceptions import RetriableAPIError

from tap_bugspulse.client import Page
from tap_bugspulse.replication import Cutter, Window
from tests.running import PRIMARY_KEYS, counted, expected, select, sync

if t.TYPE_CHECKING:
    from tests.sandbox import Sandbox


def events_asked(sandbox: Sandbox) -> list[str]:
    """Give the sessions whose events were asked for, in order."""
    return [one.query["sessionId"] for one in sandbox.requests if one.path == "/events"]


def answer(body: str) -> requests.Response:
    """Give an answer with a body."""
    response = requests.Response()
    response.status_code = 200
    response._content = body.encode()  # noqa: SLF001 - there is no other way to make one
    return response


# --- Envelopes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("envelope", "pages"),
    [
        ('{"data": [{}, {}], "total": 5, "page": 1, "limit": 2, "pages": 3}', 3),
        ('{"data": [{}, {}], "total": 5, "page": 1, "limit": 2}', 3),
        ('{"data": [{}, {}], "total": 5, "page": 1, "limit": 2, "pages": "3"}', 3),
        ('{"data": [{}, {}], "total": 5, "page": 1, "limit": 2, "pages": 1}', 3),
        ('{"data": [{}, {}], "page": 1, "limit": 2, "pages": 3}', 3),
        ('{"data": [{}, {}, {}], "total": 3, "page": 1, "limit": 42, "pages": 1}', 1),
        ('{"data": [], "total": 0, "page": 1, "limit": 100, "pages": 0}', 0),
    ],
)
def test_the_number_of_pages_is_never_taken_too_small(envelope: str, pages: int) -> None:
    """Pages come from the envelope, or from total and limit where these say more."""
    assert Page.decode(answer(envelope)).pages == pages


def test_an_envelope_that_counts_nothing_is_refused() -> None:
    """Without pages and total, there is no telling whether a page is the last."""
    with pytest.raises(RetriableAPIError, match="without the documented JSON body"):
        Page.decode(answer('{"data": [{}], "page": 1, "limit": 1}'))


def test_text_that_was_cut_inside_a_character_is_kept() -> None:
    """Half a surrogate pair becomes a question mark instead of stopping the stream."""
    page = Page.decode(answer('{"data": [{"id": "1", "message": "\\ud83d"}], "total": 1}'))
    assert page.rows == [{"id": "1", "message": "?"}]


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


def test_calls_whose_time_has_come_are_forgotten(sandbox: Sandbox, now: datetime) -> None:
    """What the state remembers of the future shrinks as it becomes the past."""
    project = sandbox.project
    for hours in range(5):
        project.new_network(now + timedelta(hours=30 + hours))
    only = select(now, "network")
    first = sync(sandbox, now, catalog=only)
    later = now + timedelta(days=3)
    project.new_network(later - timedelta(hours=36))
    second = sync(sandbox, later, first.state, catalog=only)
    assert first.state["bookmarks"]["network"]["ahead"] != ""
    assert second.state["bookmarks"]["network"]["ahead"] == ""
    third = sync(sandbox, later, second.state, catalog=only)
    assert third.rows("network") == []
    assert first.table("network") | second.table("network") == expected(project, "network")


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
        assert third.rows(stream) == []


def test_windows_near_the_beginning_of_time_come_to_an_end() -> None:
    """Dense rows around 1970 are cut into days, and every day is proposed once."""
    cutter = Cutter(
        Window(date(1969, 12, 31), date(1970, 3, 1)), 5, date(2026, 3, 1), newest_first=True
    )
    days: list[Window] = []
    for _ in range(500):
        window = cutter.propose()
        if window is None:
            break
        assert window.start is not None
        assert window.end is not None
        if cutter.fits(10 * (window.end - window.start).days):
            days.append(window)
    assert cutter.propose() is None
    assert days[0].end == date(1970, 3, 1)
    assert days[-1].start == date(1969, 12, 31)
    assert all(later.start == one.end for later, one in itertools.pairwise(days))


# --- Catalogs, projects and selections ---------------------------------------------------


def test_a_project_goes_on_with_its_own_state(sandbox: Sandbox, now: datetime) -> None:
    """A second run with the same project has nothing to do."""
    first = sync(sandbox, now, project="ios-app")
    sandbox.reset()
    second = sync(sandbox, now, first.state, project="ios-app")
    assert second.rows("sessions") == second.rows("events") == second.rows("network") == []
    assert events_asked(sandbox) == []


def test_a_catalog_older_than_the_project_is_refused(
    sandbox: Sandbox, now: datetime
) -> None:
    """Two projects must not share rows because a catalog keeps the old key."""
    with pytest.raises(Exception, match="the catalog knows no column project"):
        sync(sandbox, now, catalog=select(now, *PRIMARY_KEYS), project="ios-app")


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
        assert new <= set(events_asked(sandbox))
        assert len(events_asked(sandbox)) <= len(new)
        project.purge(now + timedelta(days=1))
        for session in new:
            project.sessions.pop(session, None)
        project.changed()


@pytest.mark.parametrize("mark", ["yesterday", "", "2026-13-45", 5, None, [], {}])
def test_a_mark_that_is_no_date_reads_everything_again(
    sandbox: Sandbox, now: datetime, mark: object
) -> None:
    """Also with a start_date, which the SDK would compare the mark with."""
    state = sync(sandbox, now).state
    for stream in ("sessions", "network"):
        state["bookmarks"][stream]["replication_key_value"] = mark
    output = sync(sandbox, now, state, start_date="2020-01-01")
    for stream in ("sessions", "network"):
        assert output.state["bookmarks"][stream]["complete_from"].startswith("2020-01-01")


def test_few_sessions_that_all_vanish_are_asked_for_again(
    sandbox: Sandbox, now: datetime
) -> None:
    """When no session at all is known, the endpoint is to blame, not the sessions."""
    state = sync(sandbox, now).state
    later = now + timedelta(hours=1)
    new = {sandbox.project.new_session(now + timedelta(minutes=5 + i)) for i in range(3)}
    sandbox.options.vanished_sessions = set(sandbox.project.sessions)
    state = sync(sandbox, later, state).state
    sandbox.options.vanished_sessions = set()
    sandbox.reset()
    output = sync(sandbox, later, state)
    assert set(events_asked(sandbox)) == new
    assert {row["sessionId"] for row in output.rows("events")} == new


def test_a_time_box_that_is_too_small_still_gets_on(
    sandbox: Sandbox, now: datetime
) -> None:
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
