"""The check says what the API does, whatever that is, and nothing of what it holds."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
import typing as t
from datetime import UTC, datetime
from pathlib import Path

import pytest
from singer_sdk.exceptions import FatalAPIError

from tap_bugspulse.check import LOST, Check, page, report
from tests.conftest import NOW, tiered, with_project
from tests.pipeline.children import environment
from tests.running import PRIMARY_KEYS, expected, sync, tap_class
from tests.sandbox import Options, Sandbox

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.running import Row

long = pytest.mark.long
UNTOLD = "could not tell"
CHECK = str(Path(sys.executable).with_name("tap-bugspulse-check"))
LONG = 6  # letters; shorter values are words of many texts
# Words of the tap's own that are also values of rows.
OWN = {"crashed", "sessions", "events"}


def found_in(
    sandbox: Sandbox, now: datetime = NOW, *, provokes: bool = False, **settings: object
) -> Row:
    """Return what the check finds, as --json prints it; it asks no more than it may."""
    config = {"requests_per_minute": 60_000, "api_url": sandbox.url, "api_key": sandbox.api_key}
    sandbox.reset()
    found = report(Check(tap_class(now)(config={**config, **settings}), provokes=provokes))
    assert len(sandbox.requests) == found["requests"]
    assert provokes or found["requests"] <= 40
    return found


def truth(options: Mapping[str, t.Any]) -> dict[str, str]:
    """Return what the API does with some options, by question; others are as without any."""
    of = {**vars(Options()), **options}
    yes_no = {True: "yes", False: "no"}
    order = {"arbitrary": "not by"}.get(of["order"], f"{of['order']} first by")
    ignored = {"both": "from and to", "from-alone": "from without a to"}
    honoured = f"no, {ignored.get(of['ignored'], of['ignored'])} ignored"
    zone, is_lowered = of["utc_offset_hours"], of["max_limit"] < 70
    # Where nothing is filtered, that of all rows is right.
    total = {"page-total", "unfiltered"} if of["ignored"] != "both" else {"page-total"}
    is_paged = of["repeat_page"] or of["counts"] in {"one-page", "default-limit"}
    is_paged = is_paged or (of["counts"] == "asked-limit" and is_lowered)
    echoes = of["echo"] == "asked" or (of["events_paging"] != "all" and not is_lowered)
    return {
        "order_of_sessions": f"{order} startedAt",
        "order_of_network": f"{order} timestamp",
        "dates_are_honoured": "yes" if of["ignored"] == "none" else honoured,
        "times_are_accepted": yes_no[not of["dates_only"]],
        "filter_field": of["filter_on"],
        "time_zone": f"UTC{zone:+g}" if zone else "UTC",
        "to_includes_its_day": yes_no[of["to_means"] == "end"],
        "largest_limit": str(of["max_limit"]),
        "page_is_honoured": yes_no[not of["repeat_page"]],
        "total_is_true": yes_no[of["counts"] not in total],
        "pages_is_true": yes_no[not of["omit_pages"] and not is_paged],
        "listings_are_capped": yes_no[of["row_cap"] is not None],
        "events_are_paged": yes_no[of["events_paging"] == "pages"],
        "events_echo_the_limit": yes_no[echoes],
        "event_ids_repeat": "yes",
        "values_of_another_type": "no",
        "forms_of_dates": "0000-00-00T00:00:00.000Z",
        "answers_are_compressed": "no",
    }


def assert_true(found: Row, options: Mapping[str, t.Any], told: str = "") -> None:
    """Check that each answer is the truth, or says why it could not be told, but for some."""
    for name, right in truth(options).items():
        one = found["api"].get(name, {"answer": UNTOLD, "note": "none of its kind is told"})
        is_open = one["answer"] == UNTOLD and one["note"] and name not in told.split()
        assert one["answer"] == right or is_open, (name, one, right)
    assert all(one["note"] for one in found["api"].values() if one["answer"] == UNTOLD)


READINGS = {
    "order": ("newest", "arbitrary", "oldest"),
    "to_means": ("before", "midnight", "end"),
    "dates_only": (False, True),
    "utc_offset_hours": (0, 5.5, -8),
    "filter_on": ("startedAt", "endedAt", "received"),
}
# What one option changes, and the questions that can still be answered then.
SINGLE: dict[str, tuple[str, tuple[t.Any, ...]]] = {
    "events_paging": ("events_are_paged events_echo_the_limit", ("first", "all", "pages")),
    "unknown_session": ("", ("empty", "404")),
    "max_limit": ("largest_limit", (20, 1000)),
    "omit_pages": ("pages_is_true", (True, False)),
    "repeat_page": ("page_is_honoured", (True, False)),
    "ignored": ("dates_are_honoured", ("from", "to", "both", "from-alone", "none")),
    "row_cap": ("", (30, None)),
    "past_end": ("", ("404", "400", "empty")),
    "counts": (
        "total_is_true pages_is_true",
        ("page-total", "one-page", "default-limit", "asked-limit", "unfiltered", "right"),
    ),
    "echo": ("", ("asked", "page-one-too-high", "used")),
    "empty_as": ("", ("null", "204", "floats", "list")),
}
LOSING = ({"events_paging": "first"}, {"repeat_page": True}, {"row_cap": 30})


def combinations() -> list[tuple[dict[str, t.Any], str]]:
    """Return options, each of one kind alone and of all kinds by chance; what must be told."""
    one_by_one = [
        ({name: value}, told) for name, (told, values) in SINGLE.items() for value in values
    ]
    dates = [
        dict(zip(READINGS, values, strict=True)) for values in itertools.product(*READINGS.values())
    ]
    told = "order_of_sessions dates_are_honoured times_are_accepted"
    values = READINGS | {name: values for name, (_, values) in SINGLE.items()}
    by_chance = [
        {name: draw.choice(some) for name, some in values.items()}
        # Those that leave no row to look at are left out.
        | {"repeat_page": False, "row_cap": None}
        for draw in map(random.Random, range(80))
    ]
    return [
        ({"order": "arbitrary", "to_means": "end", "utc_offset_hours": -8}, told),
        *one_by_one,
        *((one, told + " to_includes_its_day" * (one["filter_on"] != "received")) for one in dates),
        *((one, "") for one in by_chance),
    ]


@pytest.mark.parametrize(("options", "told"), tiered(combinations(), quick=2))
def test_each_answer_is_the_truth(sandbox: Sandbox, options: dict[str, t.Any], told: str) -> None:
    """Whatever comes together, each answer is right or says why it is open; loss stands out."""
    sandbox.options = Options(requests_per_minute=None, **options)
    found = found_in(sandbox)
    assert_true(found, options, told)
    if len(options) == 1:
        assert (LOST in page(found)) == (options in LOSING)


# --- What is told of a key, and what it ends with


def run(url: str, key: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command, as a person does, with settings in the environment."""
    settings = {"API_URL": url, "API_KEY": key, "REQUESTS_PER_MINUTE": "60000"}
    variables = {f"TAP_BUGSPULSE_{name}": value for name, value in settings.items()}
    return subprocess.run(
        [CHECK, "--config=ENV", *arguments],
        env=environment(folder / "home", variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def values(row: object) -> Iterator[str]:
    """Yield all texts and numbers that a row holds, at any depth."""
    if isinstance(row, dict):
        row = list(row.values())
    if isinstance(row, list):
        for one in row:
            yield from values(one)
    elif row is not None and not isinstance(row, bool):
        yield str(row)


@long
@pytest.mark.parametrize("arguments", [(), ("--json",)], ids=["text", "json"])
def test_nothing_of_what_the_api_holds_is_told(
    sandbox: Sandbox, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """No value of a row, no id, no address and no key is in what a user would paste."""
    sandbox.options.misfits = True
    done = run(sandbox.url, sandbox.api_key, tmp_path, *arguments)
    assert done.returncode == 0
    held = [row for stream in PRIMARY_KEYS for row in expected(sandbox.project, stream).values()]
    secret = {one for row in held for one in values(row) if len(one) >= LONG} - OWN
    assert len(secret) > 1000
    told = done.stdout + done.stderr
    secret |= {sandbox.api_key, sandbox.url, "127.0.0.1", "http"}
    assert [one for one in secret if one in told] == []


@long
def test_a_user_learns_what_there_is_and_what_it_costs(sandbox: Sandbox) -> None:
    """Rows, the oldest and newest session and the requests of a first load are the true ones."""
    found, project = found_in(sandbox), sandbox.project
    assert found["refused"] == {}
    assert found["rows"] == project.counts
    starts = sorted(row["startedAt"][:10] for row in project.sessions.values())
    assert (found["oldest_session"], found["newest_session"]) == (starts[0], starts[-1])
    assert found["sessions_a_day"] == pytest.approx(70 / 20, abs=1.5)
    for kind, cost in found["load"].items():
        if kind != "hourly":
            sandbox.reset()
            sync(sandbox, NOW, events_for=kind)
            assert cost["requests"] == pytest.approx(len(sandbox.requests), abs=4)
    assert found["settings"] == {}


@long
@with_project(sessions=4000)
def test_settings_follow_from_what_there_is(sandbox: Sandbox) -> None:
    """A first load that takes hours is given a time limit."""
    found, slow = found_in(sandbox), found_in(sandbox, requests_per_minute=60)
    assert found["load"]["all"]["minutes"] < 1
    assert slow["settings"] == {"TAP_BUGSPULSE_MAX_RUNTIME_MINUTES": "50"}
    assert "export TAP_BUGSPULSE_MAX_RUNTIME_MINUTES='50'" in page(slow)


@pytest.mark.parametrize("sandbox", [{"sessions": 0}, {"sessions": 1}], indirect=True)
def test_a_project_with_next_to_nothing_has_a_page(sandbox: Sandbox) -> None:
    """Each kind of question has an answer or a reason where there are no rows, or one."""
    found, sessions = found_in(sandbox), len(sandbox.project.sessions)
    assert found["refused"] == {}
    assert found["rows"]["sessions"] == sessions
    assert (found["oldest_session"] == "none") == (sessions == 0)
    assert_true(found, {})
    assert found["api"]["counts"] == {"answer": UNTOLD, "note": "fewer than 6 sessions"}
    assert all(f"  {name.replace('_', ' ')} " in page(found) for name in found["api"])


@pytest.mark.parametrize(
    ("name", "fault", "why"),
    [
        ("events", "403", "403 Forbidden for /events"),
        pytest.param("crashes", "500", "500 Internal Server Error for /crashes", marks=long),
    ],
)
def test_a_key_without_an_endpoint_can_be_used(
    sandbox: Sandbox, name: str, fault: str, why: str
) -> None:
    """The endpoint is named with its status, and the setting that leaves it out."""
    sandbox.options.script = lambda request: fault if request.path == f"/{name}" else None
    found = found_in(sandbox)
    assert found["refused"] == {name: why}
    assert found["settings"] == {"TAP_BUGSPULSE__SELECT": f'["*.*", "!{name}.*"]'}
    assert f"  {name:<16}not readable: {why}" in page(found)
    assert (found["api"].get("events", {}).get("note") == why) == (name == "events")
    assert found["api"]["filter_field"]["answer"] == "startedAt"


@long
def test_a_key_that_may_read_no_sessions_is_of_no_use(sandbox: Sandbox, tmp_path: Path) -> None:
    """Where the sessions are refused, nothing else is asked."""
    sandbox.options.script = lambda _: "403"
    done = run(sandbox.url, sandbox.api_key, tmp_path, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"usable": False, "why": "403 Forbidden for /sessions"}
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize(
    ("url", "says"),
    tiered(
        [
            ("", "Not usable: 401 Unauthorized for /sessions: the API does not know this api_key"),
            ("http://127.0.0.1:9", "Not usable: the host does not answer: check api_url and the"),
            (
                "https://bugspulse.invalid",
                "Not usable: the host's name is not known: check api_url",
            ),
            ("ftp://somewhere", "api_url must be an https URL"),
        ],
        quick=2,
    ),
)
def test_a_wrong_setting_ends_with_one_line(
    sandbox: Sandbox, tmp_path: Path, url: str, says: str
) -> None:
    """One request is enough, nothing is waited for, and the line says what to do."""
    began = time.monotonic()
    done = run(url or sandbox.url, "bp_other", tmp_path)
    assert time.monotonic() - began < 20
    assert done.returncode == 1
    (line,) = (done.stdout or done.stderr).splitlines()
    assert line.startswith(says)
    assert "Traceback" not in done.stderr
    assert len(sandbox.requests) == (not url)


@long
@pytest.mark.parametrize(
    ("retry_after", "told"),
    [
        ("seconds", "Retry-After 00"),
        ("date", "Retry-After "),
        ("reset", "RateLimit-Reset 00"),
        ("x-reset", "X-RateLimit-Reset 0000000000"),
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
    found = found_in(sandbox, now, provokes=True, requests_per_minute=60)
    assert found["api"]["a_429_carries"]["answer"].startswith(told)


@long
def test_an_error_now_and_then_costs_one_answer(sandbox: Sandbox) -> None:
    """A request that fails is tried once more; one that fails again leaves its question open."""
    sandbox.options.script = lambda request: "503" if request.number == 1 else None
    assert found_in(sandbox)["api"]["largest_limit"]["answer"] == "1000"
    sandbox.options.script = lambda one: "503" if one.query.get("page") == "2" else None
    found = found_in(sandbox)
    assert found["api"]["counts"]["note"].startswith("503")


@long
def test_what_rows_hold_beyond_the_reference_is_named(sandbox: Sandbox) -> None:
    """Fields have their names, values and dates only their number and form."""
    odd = {"startedAt": "2026-02-20T10:00:00+00:00", "status": "act", "duration": "long"}

    def changed(envelope: dict[str, t.Any]) -> dict[str, t.Any]:
        rows = [{**row, "plan": "gold", "my secret": 1} for row in envelope["data"]]
        return {**envelope, "data": [one | odd for one in rows[:1]] + rows[1:]}

    sandbox.options.envelope = changed
    found = found_in(sandbox)["api"]
    told = {name: one["answer"].split(", ") for name, one in found.items()}
    assert {"sessions.plan", "events.plan", "others"} <= {*told["fields_not_in_the_reference"]}
    assert told["values_that_are_not_listed"] == ["crashes.status", "sessions.status"]
    assert "sessions.duration" in told["values_of_another_type"]
    zeros = "0000-00-00T00:00:00"
    assert told["forms_of_dates"] == [f"{zeros}+00:00", f"{zeros}.000Z"]


@long
def test_a_start_date_makes_a_load_shorter(sandbox: Sandbox) -> None:
    """The first load is that of the settings, with the sessions from that day on."""
    whole = found_in(sandbox)["load"]["all"]["requests"]
    cost = found_in(sandbox, start_date="2026-02-20")["load"]["all"]["requests"]
    sandbox.reset()
    sync(sandbox, NOW, start_date="2026-02-20")
    assert cost == pytest.approx(len(sandbox.requests), abs=6)
    assert cost < 60 < whole


@long
@with_project(sessions=3000, days=8)
@pytest.mark.parametrize("order", ["newest", "arbitrary"])
def test_a_busy_project_is_checked_within_the_same_requests(sandbox: Sandbox, order: str) -> None:
    """With hundreds of sessions a day, the requests suffice, and what dates mean is found."""
    options: dict[str, t.Any] = {"order": order, "to_means": "end", "utc_offset_hours": -3}
    sandbox.options = Options(requests_per_minute=None, **options)
    found = found_in(sandbox)
    assert_true(found, options, "time_zone to_includes_its_day filter_field")
    assert found["rows"]["sessions"] == 3000
    assert found["sessions_a_day"] == pytest.approx(375, rel=0.1)
    assert not [one for one in found["api"].values() if "used up" in one["note"]]


@long
@with_project(sessions=5000, days=2)
def test_thousands_of_sessions_a_day_leave_dates_open(sandbox: Sandbox) -> None:
    """Where some days would take too many requests, the reason stands in their place."""
    found = found_in(sandbox)
    assert_true(found, {}, "dates_are_honoured times_are_accepted")
    assert found["api"]["dates"]["note"] == "more than 2 pages of sessions in some days"


@long
def test_a_key_that_is_used_elsewhere_waits_for_its_turn(sandbox: Sandbox) -> None:
    """A 429 that asks for a second is waited for, one that asks for an hour ends the check."""
    sandbox.options.requests_per_minute, sandbox.options.minute = 60, 1.0
    sandbox.spend(60)
    assert found_in(sandbox)["rows"]["sessions"] == 70
    sandbox.options.minute = 3600.0
    sandbox.spend(60)
    with pytest.raises(FatalAPIError, match="429 Too Many Requests for /sessions"):
        found_in(sandbox)
