"""The check says what the API does, whatever that is, and nothing of what it holds."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import subprocess
import sys
import time
import typing as t
from datetime import UTC, datetime, timedelta

import pytest
from singer_sdk.exceptions import FatalAPIError

from tap_bugspulse.check import LOST, UNTOLD, Check, page, report
from tests.pipeline.children import environment
from tests.running import PRIMARY_KEYS, expected, sync, tap_class
from tests.sandbox import Options, Sandbox, generate_once

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.running import Row
    from tests.sandbox import Request

ROWS = "data [], total 0, pages 0"
SETTINGS: dict[str, t.Any] = {"requests_per_minute": 60_000}
LONG = 6  # letters; shorter values are words of many texts
# Words of the tap's own that are also values of rows.
OWN = {"crashed", "sessions", "events"}


def found_in(sandbox: Sandbox, now: datetime, *, provokes: bool = False) -> Row:
    """Return what the check finds, as --json prints it; it asks no more than it may."""
    tap = tap_class(now)(config={**SETTINGS, "api_url": sandbox.url, "api_key": sandbox.api_key})
    found = report(Check(tap, provokes=provokes))
    assert len(sandbox.requests) == found["requests"]
    assert provokes or found["requests"] <= 40
    return found


@contextlib.contextmanager
def serving(
    now: datetime, sessions: int = 70, days: float = 20, seed: int = 126, **options: t.Any
) -> Iterator[Sandbox]:
    """Serve a project with some options."""
    project = generate_once(seed=seed, sessions=sessions, days=days, until=now - timedelta(hours=1))
    with Sandbox(project, Options(requests_per_minute=None, **options)) as running:
        yield running


def truth(options: Mapping[str, t.Any]) -> dict[str, str]:
    """Return what the API does with some options, by question; others are as without any."""

    def of(name: str) -> t.Any:
        return options.get(name, getattr(Options(), name))

    yes_no = {True: "yes", False: "no"}
    order = {"arbitrary": "not by"}.get(of("order"), f"{of('order')} first by")
    ignored = {
        "none": "yes",
        "both": "no, from and to ignored",
        "from-alone": "no, from without a to ignored",
    }.get(of("ignored"), f"no, {of('ignored')} ignored")
    zone = of("utc_offset_hours")
    is_lowered = of("max_limit") < 70
    field = "endedAt, or soon after it" if of("dates_only") else of("filter_on")
    # Where nothing is filtered, that of all rows is right.
    total = {"page-total", "unfiltered"} if of("ignored") != "both" else {"page-total"}
    is_paged = of("repeat_page") or of("counts") in {"one-page", "default-limit"}
    is_paged = is_paged or (of("counts") == "asked-limit" and is_lowered)
    return {
        "order_of_sessions": f"{order} startedAt",
        "order_of_network": f"{order} timestamp",
        "dates_are_honoured": ignored,
        "times_are_accepted": yes_no[not of("dates_only")],
        "filter_field": "startedAt" if of("filter_on") == "startedAt" else field,
        "time_zone": f"UTC{zone:+g}" if zone else "UTC",
        "to_includes_its_day": yes_no[of("to_means") == "end"],
        "to_includes_its_instant": yes_no[of("to_means") != "before"],
        "largest_limit": str(of("max_limit")),
        "page_is_honoured": yes_no[not of("repeat_page")],
        "page_and_limit_are_echoed_as_used": yes_no[of("echo") == "used"],
        "total_is_true": yes_no[of("counts") not in total],
        "pages_is_true": yes_no[not of("omit_pages") and not is_paged],
        "listings_are_capped": yes_no[of("row_cap") is not None],
        "events_are_paged": yes_no[of("events_paging") == "pages"],
        "events_echo_the_limit": yes_no[
            of("echo") == "asked" or (of("events_paging") != "all" and not is_lowered)
        ],
        "event_ids_repeat": "yes",
        "values_of_another_type": "no",
        "answers_are_compressed": "no",
    }


def assert_true(found: Row, options: Mapping[str, t.Any]) -> None:
    """Check that each answer is the truth, or says why it could not be told."""
    for name, right in truth(options).items():
        answer, note = found["api"][name]["answer"], found["api"][name]["note"]
        assert answer == right or (answer == UNTOLD and note), (name, answer, note, right)


def cases(*options: Mapping[str, t.Any], quick: int) -> pytest.MarkDecorator:
    """Give a test some options; all but so many of them take long."""
    return pytest.mark.parametrize(
        "options",
        [
            pytest.param(one, marks=() if number < quick else pytest.mark.long, id=named(one))
            for number, one in enumerate(options)
        ],
    )


def named(options: Mapping[str, t.Any]) -> str:
    """Return the name of a test with some options."""
    return " ".join(f"{name}={value}" for name, value in options.items()) or "none"


READINGS = {
    "order": ("newest", "arbitrary", "oldest"),
    "to_means": ("before", "midnight", "end"),
    "dates_only": (False, True),
    "utc_offset_hours": (0, 5.5, -8),
    "filter_on": ("startedAt", "endedAt", "received"),
}
DATES = [dict(zip(READINGS, one, strict=True)) for one in itertools.product(*READINGS.values())]


@cases({"order": "arbitrary", "to_means": "end", "utc_offset_hours": -8}, *DATES, quick=1)
def test_what_dates_mean_is_found_in_every_reading(
    now: datetime, options: dict[str, t.Any]
) -> None:
    """The order, the field, the time zone and what `to` includes are those that are set."""
    with serving(now, **options) as sandbox:
        found = found_in(sandbox, now)
    assert_true(found, options)
    told = {name for name, one in found["api"].items() if one["answer"] != UNTOLD}
    assert {"order_of_sessions", "dates_are_honoured", "times_are_accepted"} <= told
    if options.get("filter_on") != "received":
        assert "to_includes_its_day" in told


SINGLE: dict[str, tuple[t.Any, ...]] = {
    "events_paging": ("first", "all", "pages"),
    "unknown_session": ("empty", "404"),
    "max_limit": (20, 1000),
    "omit_pages": (True, False),
    "repeat_page": (True, False),
    "ignored": ("from", "to", "both", "from-alone", "none"),
    "row_cap": (30, None),
    "past_end": ("404", "400", "empty"),
    "counts": ("page-total", "one-page", "default-limit", "asked-limit", "unfiltered", "right"),
    "echo": ("asked", "page-one-too-high", "used"),
    "empty_as": ("null", "204", "floats", "list"),
}
# Those beside which each other question can still be answered.
TOLD = {
    "events_paging": "events_are_paged events_echo_the_limit",
    "max_limit": "largest_limit",
    "omit_pages": "pages_is_true",
    "repeat_page": "page_is_honoured",
    "ignored": "dates_are_honoured",
    "counts": "total_is_true pages_is_true",
}
ONE_BY_ONE = [{name: value} for name, values in SINGLE.items() for value in values]


def mixed(number: int) -> dict[str, t.Any]:
    """Return options of all kinds, by chance; those that leave no row to look at are left out."""
    draw = random.Random(number)
    options = {name: draw.choice(values) for name, values in (SINGLE | READINGS).items()}
    return options | {"repeat_page": False, "row_cap": None}


@cases(*ONE_BY_ONE, quick=1)
def test_each_option_is_found(now: datetime, options: dict[str, t.Any]) -> None:
    """What one option changes is told, and nothing else is told otherwise."""
    with serving(now, **options) as sandbox:
        found = found_in(sandbox, now)
    assert_true(found, options)
    for name in options:
        for question in TOLD.get(name, "").split():
            assert found["api"][question]["answer"] == truth(options)[question]


@cases(*map(mixed, range(80)), quick=0)
def test_options_are_found_beside_others(now: datetime, options: dict[str, t.Any]) -> None:
    """Whatever comes together, each answer is the truth or says why there is none."""
    with serving(now, **options) as sandbox:
        found = found_in(sandbox, now)
    assert_true(found, options)


# --- What is told of a key, and what it ends with


class Ended(t.NamedTuple):
    """The check as a person runs it, after its end."""

    code: int
    text: str
    log: str


def run(url: str, key: str, folder: Path, *arguments: str) -> Ended:
    """Run the command with settings in the environment."""
    settings = {
        "TAP_BUGSPULSE_API_URL": url,
        "TAP_BUGSPULSE_API_KEY": key,
        "TAP_BUGSPULSE_REQUESTS_PER_MINUTE": "60000",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tap_bugspulse.check", "--config=ENV", *arguments],
        env=environment(folder / "home", settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def values(row: object) -> Iterator[str]:
    """Yield all texts and numbers that a row holds, at any depth."""
    if isinstance(row, dict):
        row = list(row.values())
    if isinstance(row, list):
        for one in row:
            yield from values(one)
    elif row is not None and not isinstance(row, bool):
        yield str(row)


@pytest.mark.parametrize("arguments", [(), ("--json",)], ids=["text", "json"])
def test_nothing_of_what_the_api_holds_is_told(
    sandbox: Sandbox, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """No value of a row, no id, no address and no key is in what a user would paste."""
    sandbox.options.misfits = True
    done = run(sandbox.url, sandbox.api_key, tmp_path, *arguments)
    assert done.code == 0
    held = [row for stream in PRIMARY_KEYS for row in expected(sandbox.project, stream).values()]
    secret = {one for row in held for one in values(row) if len(one) >= LONG} - OWN
    assert len(secret) > 1000
    told = done.text + done.log
    assert [one for one in secret if one in told] == []
    for one in (sandbox.api_key, sandbox.url, "127.0.0.1", "http"):
        assert one not in told


def test_a_user_learns_what_there_is_and_what_it_costs(sandbox: Sandbox, now: datetime) -> None:
    """Rows, the oldest and newest session and the requests of a first load are the true ones."""
    found, project = found_in(sandbox, now), sandbox.project
    assert found["usable"]
    assert found["refused"] == {}
    assert found["rows"] == {
        "sessions": len(project.sessions),
        "network": len(project.network),
        "crashes": len(project.crashes),
        "events": sum(map(len, project.events.values())),
    }
    starts = sorted(row["startedAt"][:10] for row in project.sessions.values())
    assert (found["oldest_session"], found["newest_session"]) == (starts[0], starts[-1])
    assert found["sessions_a_day"] == pytest.approx(70 / 20, abs=1.5)
    for kind, cost in found["load"].items():
        if kind != "hourly":
            sandbox.reset()
            sync(sandbox, now, events_for=kind)
            assert cost["requests"] == pytest.approx(len(sandbox.requests), abs=4)
    assert found["settings"] == {}


def test_settings_follow_from_what_there_is(now: datetime) -> None:
    """A first load that takes hours is given a time limit."""
    with serving(now, sessions=4000) as sandbox:
        found = found_in(sandbox, now)
        assert found["load"]["all"]["minutes"] < 1
        tap = tap_class(now)(config={"api_url": sandbox.url, "api_key": sandbox.api_key})
        slow = report(Check(tap))
    assert slow["settings"] == {"TAP_BUGSPULSE_MAX_RUNTIME_MINUTES": "50"}
    assert "export TAP_BUGSPULSE_MAX_RUNTIME_MINUTES='50'" in page(slow)


@pytest.mark.parametrize("sessions", [0, 1])
def test_a_project_with_next_to_nothing_has_a_page(now: datetime, sessions: int) -> None:
    """Each question has an answer or a reason where there are no rows, or one."""
    with serving(now, sessions=sessions) as sandbox:
        found = found_in(sandbox, now)
    assert found["usable"]
    assert found["refused"] == {}
    assert found["rows"]["sessions"] == sessions
    assert_true(found, {})
    open_ = [one for one in found["api"].values() if one["answer"] == UNTOLD]
    assert len(open_) > 5
    assert all(one["note"] for one in open_)
    assert all(f"{name.replace('_', ' ')} " in page(found) for name in found["api"])


def test_a_key_without_events_can_be_used(sandbox: Sandbox, now: datetime) -> None:
    """The endpoint is named with its status, and the setting that leaves it out."""
    sandbox.options.script = lambda request: "403" if request.path == "/events" else None
    found = found_in(sandbox, now)
    assert found["usable"]
    assert found["refused"] == {"events": "403 Forbidden for /events"}
    assert found["settings"] == {"TAP_BUGSPULSE__SELECT": '["*.*", "!events.*"]'}
    assert re.search("events +not readable: 403", page(found))
    assert found["api"]["events_are_paged"]["note"] == "403 Forbidden for /events"


def test_a_key_that_may_read_nothing_is_of_no_use(sandbox: Sandbox, now: datetime) -> None:
    """Where each endpoint refuses, each is named."""
    sandbox.options.script = lambda _: "403"
    found = found_in(sandbox, now)
    assert not found["usable"]
    assert {*found["refused"]} == {*PRIMARY_KEYS}


def test_an_api_that_ignores_dates_has_a_page(sandbox: Sandbox, tmp_path: Path) -> None:
    """It can be used, and the page says at what cost."""
    sandbox.options.ignored = "both"
    done = run(sandbox.url, sandbox.api_key, tmp_path)
    assert done.code == 0
    assert "dates are honoured                  no, from and to ignored: the tap" in done.text


def test_a_wrong_key_ends_with_one_line(sandbox: Sandbox, tmp_path: Path) -> None:
    """One request is enough, and the line says what to do."""
    done = run(sandbox.url, "bp_other", tmp_path)
    assert done.code == 1
    assert done.text.startswith("Not usable: 401 Unauthorized for /sessions: the API does not")
    assert done.text.count("\n") == 1
    assert "Traceback" not in done.log
    assert len(sandbox.requests) == 1
    as_json = run(sandbox.url, "bp_other", tmp_path, "--json")
    assert as_json.code == 1
    assert json.loads(as_json.text)["usable"] is False


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:9", "the host does not answer: check api_url and the network"),
        ("https://bugspulse.invalid", "the host's name is not known: check api_url"),
    ],
)
def test_a_dead_host_ends_within_seconds(tmp_path: Path, url: str, why: str) -> None:
    """Nothing is tried again, and the line says what it is."""
    began = time.monotonic()
    done = run(url, "bp_key", tmp_path)
    assert done.code == 1
    assert done.text == f"Not usable: {why}\n"
    assert time.monotonic() - began < 20


def test_wrong_settings_are_told_as_the_tap_does(tmp_path: Path) -> None:
    """A setting that breaks its rule ends the check before its first request."""
    done = run("ftp://somewhere", "bp_key", tmp_path)
    assert done.code == 1
    assert "api_url must be an https URL" in done.log
    assert "Traceback" not in done.log


@pytest.mark.parametrize(
    ("retry_after", "told"),
    [
        ("seconds", "Retry-After, a number"),
        ("date", "Retry-After, a date"),
        ("reset", "RateLimit-Reset, a number"),
        ("x-reset", "X-RateLimit-Reset, a number"),
        ("none", "nothing"),
    ],
)
def test_what_a_429_carries_is_found_where_one_is_asked_for(
    sandbox: Sandbox, retry_after: t.Any, told: str
) -> None:
    """The limit is exceeded at the end, and only with --provoke-429."""
    now = datetime.now(UTC)  # that of the sandbox
    sandbox.options.requests_per_minute = 60
    sandbox.options.retry_after = retry_after
    assert found_in(sandbox, now)["api"]["a_429_carries"]["answer"] == UNTOLD
    sandbox.reset()
    found = found_in(sandbox, now, provokes=True)
    assert found["api"]["a_429_carries"]["answer"] == told


def test_an_error_now_and_then_costs_one_answer(sandbox: Sandbox, now: datetime) -> None:
    """A request that fails is tried once more; one that fails again leaves its question open."""

    def fails(request: Request) -> str | None:
        return "503" if request.query.get("sessionId") == "sess_0_unknown" else None

    sandbox.options.script = fails
    found = found_in(sandbox, now)
    assert found["usable"]
    assert found["api"]["events_are_paged"]["answer"] == "no"
    sandbox.reset()
    sandbox.options.script = lambda request: "503" if request.number == 1 else None
    assert found_in(sandbox, now)["usable"]


@pytest.mark.parametrize(
    "option", [{"events_paging": "first"}, {"repeat_page": True}, {"row_cap": 30}]
)
def test_what_the_tap_does_not_handle_is_called_out(
    now: datetime, option: dict[str, t.Any]
) -> None:
    """A reading in which rows would be lost stands out."""
    with serving(now, **option) as sandbox:
        found = found_in(sandbox, now)
    assert [one for one in found["api"].values() if one["note"].startswith(LOST)]
    assert LOST in page(found)


def test_what_rows_hold_beyond_the_reference_is_named(sandbox: Sandbox, now: datetime) -> None:
    """Fields have their names, values and dates only their number and form."""

    def changed(envelope: dict[str, t.Any]) -> dict[str, t.Any]:
        rows = [{**row, "plan": "gold", "my secret": 1} for row in envelope["data"]]
        for row in rows[:1]:
            row["startedAt"] = row.get("startedAt", "").replace(".000Z", "+00:00")
            row["status"] = "act"
            row["duration"] = "long"
        return {**envelope, "data": rows}

    sandbox.options.envelope = changed
    found = found_in(sandbox, now)["api"]
    names = found["fields_not_in_the_reference"]["answer"].split(", ")
    assert {"sessions.plan", "events.plan", "others"} <= {*names}
    assert found["values_that_are_not_listed"]["answer"] == "crashes.status, sessions.status"
    assert "sessions.duration" in found["values_of_another_type"]["answer"]
    assert "YYYY-MM-DDThh:mm:ss.sssZ" in found["forms_of_dates"]["answer"]


def test_a_start_date_makes_a_load_shorter(sandbox: Sandbox, now: datetime) -> None:
    """The first load is that of the settings, with the sessions from that day on."""
    config = {"api_url": sandbox.url, "api_key": sandbox.api_key, "start_date": "2026-02-20"}
    cost = report(Check(tap_class(now)(config={**SETTINGS, **config})))["load"]["all"]["requests"]
    sandbox.reset()
    sync(sandbox, now, start_date="2026-02-20")
    assert cost == pytest.approx(len(sandbox.requests), abs=6)
    assert cost < 60 < found_in_all(sandbox, now)


def found_in_all(sandbox: Sandbox, now: datetime) -> int:
    """Return the requests of a first load of everything."""
    sandbox.reset()
    return int(found_in(sandbox, now)["load"]["all"]["requests"])


@pytest.mark.parametrize("order", ["newest", "arbitrary"])
def test_a_busy_project_is_checked_within_the_same_requests(now: datetime, order: str) -> None:
    """With hundreds of sessions a day, the requests suffice, and what dates mean is found."""
    options: dict[str, t.Any] = {"order": order, "to_means": "end", "utc_offset_hours": -3}
    with serving(now, sessions=3000, days=8, **options) as sandbox:
        found = found_in(sandbox, now)
    assert_true(found, options)
    assert found["rows"]["sessions"] == 3000
    assert found["sessions_a_day"] == pytest.approx(375, rel=0.1)
    for question in ("time_zone", "to_includes_its_day", "filter_field"):
        assert found["api"][question]["answer"] == truth(options)[question]
    assert not [one for one in found["api"].values() if "used up" in one["note"]]


def test_a_key_that_is_used_elsewhere_waits_for_its_turn(sandbox: Sandbox, now: datetime) -> None:
    """A 429 that asks for a second is waited for, one that asks for an hour ends the check."""
    sandbox.options.requests_per_minute, sandbox.options.minute = 60, 1.0
    sandbox.spend(60)
    assert found_in(sandbox, now)["usable"]
    sandbox.options.minute = 3600.0
    sandbox.spend(60)
    with pytest.raises(FatalAPIError, match="429 Too Many Requests for /sessions"):
        found_in(sandbox, now)


def test_an_endpoint_that_is_broken_is_told_beside_the_others(
    sandbox: Sandbox, now: datetime
) -> None:
    """Where one endpoint fails again and again, the others are looked at."""
    sandbox.options.script = lambda one: "500" if one.path == "/crashes" else None
    found = found_in(sandbox, now)
    assert found["usable"]
    assert found["refused"] == {"crashes": "500 Internal Server Error for /crashes"}
    assert found["api"]["filter_field"]["answer"] == "startedAt"
