"""Whole runs with odd settings, catalogs, states and logs, and against odd rows and faults."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import typing as t
from collections import Counter
from datetime import timedelta

import pytest

from tests import forks
from tests.conftest import tiered
from tests.loads import Load, assert_done, with_events
from tests.running import KEPT, PRIMARY_KEYS, Output, assert_whole, counted, expected, select
from tests.sandbox import Options, Sandbox, generate_once
from tests.tap_process import clock

if t.TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from tests.running import Row
    from tests.sandbox import Request

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MINUTE = 0.02  # seconds that a minute of the tap takes
# Its clocks are right, so that no call lies in the future.
DATA = {"sessions": 40, "crash_groups": 4, "lying_clocks": False}
MATCH = "row counts match the API"

# --- Logs and output ----------------------------------------------------------------------


def log_config(folder: Path, **more: object) -> dict[str, str]:
    """Write the log configuration that Meltano gives a tap, with more; return its variable."""
    console = {
        "class": "logging.StreamHandler",
        "formatter": "singer_formatter",
        "stream": "ext://sys.stderr",
    }
    config: Row = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"singer_formatter": {"()": "singer_sdk.logging.StructuredFormatter"}},
        "handlers": {"console": console},
        "root": {"handlers": ["console"], "level": "INFO"},
    }
    for name, entries in more.items():
        config[name] = config.get(name, {}) | entries
    path = folder / "logging.json"
    path.write_text(json.dumps(config))
    return {"SINGER_SDK_LOG_CONFIG": str(path)}


def test_metrics_go_where_a_log_configuration_sends_them(tmp_path: Path, load: Load) -> None:
    """A file gets the SDK's metrics of each stream when it is told to at INFO."""
    metrics = tmp_path / "metrics.log"
    environment = log_config(
        tmp_path,
        handlers={"metrics": {"class": "logging.FileHandler", "filename": str(metrics)}},
        loggers={
            "singer_sdk.metrics": {"level": "INFO", "handlers": ["metrics"], "propagate": False}
        },
    )
    run = load(environment=environment)
    assert run.code == 0, run.log[-1]
    lines = metrics.read_text().splitlines()
    for stream in PRIMARY_KEYS:
        assert [line for line in lines if "METRIC" in line and f'"{stream}"' in line], stream
    assert not [line for line in run.log if "METRIC" in line]


def test_a_level_for_metrics_is_enough(tmp_path: Path, load: Load) -> None:
    """Where a log configuration names the logger at INFO, its lines go where all others do."""
    run = load(environment=log_config(tmp_path, loggers={"singer_sdk.metrics": {"level": "INFO"}}))
    assert run.code == 0, run.log[-1]
    assert [line for line in run.log if "METRIC" in line]


def test_metrics_stay_out_of_the_log_of_meltano(tmp_path: Path, load: Load) -> None:
    """Its own configuration has a console and no word about metrics: there are none."""
    run = load(environment=log_config(tmp_path))
    assert_done(run)
    assert not [line for line in run.log if "METRIC" in line or "metric_" in line]


def test_an_output_that_was_never_open_is_one_line(
    tmp_path: Path, sandbox: Sandbox, now: datetime
) -> None:
    """Started with `>&-`, the tap says so before it asks for anything."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"api_key": sandbox.api_key, "api_url": sandbox.url}))
    program = [sys.executable, "-m", "tests.tap_process", clock(now, MINUTE)]
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *program, "--config", str(config)],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        cwd=forks.ROOT,
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert "CRITICAL" in line
    assert "the output is closed" in line
    assert sandbox.requests == []


def stop_at(
    words: str, signum: int, folder: Path, sandbox: Sandbox, now: datetime
) -> tuple[int, list[str], Output]:
    """Send a signal the moment a line with some words is read; return what comes after it."""
    config = folder / "config.json"
    pace = {"requests_per_minute": 1_000_000}
    config.write_text(json.dumps({"api_key": sandbox.api_key, "api_url": sandbox.url} | pace))
    reading, writing = os.pipe()
    with (folder / "stdout").open("wb") as out:
        process = forks.start(
            "tests.tap_process",
            clock(now, MINUTE),
            "--config",
            str(config),
            env={name: os.environ[name] for name in KEPT if name in os.environ},
            stdout=out.fileno(),
            stderr=writing,
            fresh=True,
        )
    os.close(writing)
    rest: list[str] = []
    too_late = threading.Timer(60, process.kill)
    too_late.start()
    with os.fdopen(reading) as log:
        for line in log:
            if words in line:
                process.send_signal(signum)
                rest = list(log)
    code = process.wait(60)
    too_late.cancel()
    return code, rest, Output.read((folder / "stdout").read_text())


SIGNALS = pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])


@pytest.mark.long
@SIGNALS
def test_a_signal_after_the_summary_finds_a_run_that_is_done(
    tmp_path: Path, sandbox: Sandbox, now: datetime, signum: int
) -> None:
    """The run ends well and says nothing more, or as stopped and says that; six times."""
    for _ in range(6):
        code, rest, output = stop_at("summary status=", signum, tmp_path, sandbox, now)
        assert (code, len(rest)) in {(0, 0), (128 + signum, 1)}, "".join(rest)
        assert_whole(sandbox.project, output)
        assert output.messages[-1]["type"] == "STATE"


@pytest.mark.long
@SIGNALS
def test_a_signal_while_a_line_is_logged_ends_the_run(
    tmp_path: Path, sandbox: Sandbox, now: datetime, signum: int
) -> None:
    """The log is being written when it comes: the run is stopped and says so; four times."""
    is_over = threading.Event()

    def hold(request: Request) -> None:
        if request.path == "/events":
            is_over.wait(3)

    sandbox.options.hold = hold
    try:
        for _ in range(4):
            code, rest, output = stop_at("need events", signum, tmp_path, sandbox, now)
            assert (code, len(rest)) == (128 + signum, 1), "".join(rest)
            assert "Stopped by SIG" in rest[0]
            assert output.messages[-1]["type"] == "STATE"
    finally:
        is_over.set()


# --- Catalogs, keys and dates -------------------------------------------------------------


def test_a_catalog_without_a_stream_is_told(load: Load, sandbox: Sandbox) -> None:
    """It loads nothing, and one warning says so."""
    run = load(catalog={"streams": []})
    assert run.code == 0, run.log[-1]
    (told,) = run.warnings
    assert "the catalog has no stream" in told
    assert sandbox.requests == []
    assert run.output.messages == [] or run.output.rows("sessions") == []


@pytest.mark.parametrize(("stream", "key"), [("crashes", "lastSeenAt"), ("events", "timestamp")])
def test_a_stream_that_cannot_be_incremental_is_loaded_as_usual(
    sandbox: Sandbox, load: Load, now: datetime, stream: str, key: str
) -> None:
    """A catalog that asks for it brings one warning, all rows, and a second run like any."""
    catalog = select(now, *PRIMARY_KEYS)
    (entry,) = (one for one in catalog["streams"] if one["stream"] == stream)
    entry |= {"replication_method": "INCREMENTAL", "replication_key": key}
    first = load(catalog=catalog)
    assert_done(first)
    assert_whole(sandbox.project, first.output)
    (told,) = first.warnings
    assert f"{stream} cannot be INCREMENTAL" in told
    second = load(first.output.state, after=HOUR, catalog=catalog)
    assert_done(second)
    assert second.output.table("crashes") == expected(sandbox.project, "crashes")
    assert [second.output.rows(one) for one in ("events", "network", "sessions")] == [[], [], []]
    assert second.sessions == {}


def test_a_key_in_an_environment_that_is_not_read_ends_the_command(sandbox: Sandbox) -> None:
    """Without --config=ENV the last line says what is missing, with nothing of the key."""
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment |= {"TAP_BUGSPULSE_API_KEY": "bp_secret", "TAP_BUGSPULSE_API_URL": sandbox.url}
    done = forks.run(
        "tests.tap_process",
        '{"now": "2026-03-01", "minute": 1, "stopwatch": null}',
        env=environment,
    )
    assert done.returncode == 1
    assert "--config=ENV" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "bp_secret" not in done.stderr
    assert sandbox.requests == []


def test_a_later_start_date_for_one_run_loses_nothing_that_comes_late(
    sandbox: Sandbox, load: Load, now: datetime
) -> None:
    """What came before that date is loaded by the next run without it, and nothing twice."""
    project = sandbox.project
    first = load()
    late = [project.new_session(now - days * DAY) for days in (6, 4, 1)]
    calls = [project.new_network(now - days * DAY - HOUR) for days in (6, 4, 1)]
    second = load(first.output.state, after=HOUR, start_date=f"{now - 2 * DAY:%Y-%m-%d}")
    late += [project.new_session(now - days * DAY + HOUR) for days in (5, 1)]
    calls += [project.new_network(now - days * DAY - 2 * HOUR) for days in (5, 1)]
    third = load(second.output.state, after=2 * HOUR)
    runs = (first, second, third)
    assert [run.code for run in runs] == [0, 0, 0]
    assert_whole(sandbox.project, *(run.output for run in runs))
    assert [run.output.repeated(one) for run in runs for one in PRIMARY_KEYS] == [[]] * 12
    for stream in ("sessions", "events"):
        keys = [key for run in runs for key in run.output.table(stream)]
        assert len(keys) == len(set(keys)), stream
    # Of a day that a call came late for, the calls come again: nothing tells which it is.
    days = {project.network[one]["timestamp"][:10] for one in calls}
    for before, run in itertools.pairwise(runs):
        again = before.output.table("network").keys() & run.output.table("network").keys()
        assert {project.network[one]["timestamp"][:10] for (one,) in again} <= days
    asked = second.sessions + third.sessions
    assert asked == Counter(one for one in late if project.events[one])
    # A look at each day of the lookback, its ends for time zones included.
    for run in (second, third):
        paths = Counter(one.path for one in run.requests)
        assert paths["/network"] <= 10, paths
        assert paths["/sessions"] == 1, paths
        assert paths["/crashes"] == 1


# --- Endpoints that fail ------------------------------------------------------------------


REFUSED = {
    "402": "402 Payment Required",
    "403": "403 Forbidden",
    "404": "404 Not Found",
    "410": "410 Gone",
}


@pytest.mark.parametrize(
    ("stream", "fault"),
    tiered(
        [
            ("sessions", "403"),
            ("network", "404"),
            ("events", "402"),
            ("events", "500"),
            ("network", "html"),
            ("crashes", "402"),
            ("events", "410"),
            ("crashes", "500"),
            ("sessions", "500"),
            ("network", "500"),
            ("crashes", "html"),
            ("sessions", "html"),
            ("events", "html"),
        ],
        quick=5,
    ),
)
def test_an_endpoint_that_always_fails_keeps_no_other_stream_back(
    sandbox: Sandbox, load: Load, stream: str, fault: str
) -> None:
    """The run ends with 1, and its last line names the endpoint and the way out."""
    sandbox.options.script = lambda one: fault if one.path == f"/{stream}" else None
    run = load()
    assert run.code == 1
    # Events take their sessions from /sessions.
    missing = {stream} | ({"events"} if stream == "sessions" else set())
    for one in PRIMARY_KEYS:
        rows = {} if one in missing else expected(sandbox.project, one)
        assert run.output.table(one) == rows, one
    says = f"{REFUSED[fault]} for /{stream}" if fault in REFUSED else f"/{stream}"
    assert says in run.log[-1]
    if stream != "events" or fault in REFUSED:  # ten sessions that fail end the run at once
        assert f"deselect {stream} to leave it out" in run.log[-1]
        assert run.log[-1].count("deselect") == 1  # events are not asked for without sessions
        assert "summary status=incomplete" in run.log[-2]
        assert MATCH not in run.line_of(stream)
    sandbox.options.script = None
    second = load(run.output.state, after=HOUR)
    assert_done(second)
    assert_whole(sandbox.project, run.output, second.output)


def test_a_host_that_takes_requests_and_answers_none_ends_the_run(
    sandbox: Sandbox, load: Load
) -> None:
    """After the tries of one stream the others are not asked for."""
    sandbox.options.script = lambda _: "timeout"
    run = load(request_timeout=0.1, minute=0.2)
    assert run.code == 1
    assert "gave up on /crashes" in run.log[-1]
    assert counted(sandbox).keys() == {"/crashes"}
    assert run.output.rows("crashes") == []


# --- What the lines of the summary say ----------------------------------------------------


def test_a_session_that_comes_short_is_in_the_line(sandbox: Sandbox, load: Load) -> None:
    """The line of events counts it instead of a match, and the run is not complete."""
    sandbox.options.late_sessions = {with_events(sandbox.project)[1]}
    sandbox.options.late_events = "part"
    run = load()
    assert run.code == 0
    assert run.line_of("events").endswith("1 sessions short of events")
    assert run.line_of("sessions").endswith(MATCH)
    assert not run.is_complete
    second = load(run.output.state, after=HOUR)  # the same answer twice is the truth
    assert_done(second)
    for stream in PRIMARY_KEYS:
        assert second.line_of(stream).endswith(MATCH)
    third = load(second.output.state, after=HOUR)
    assert third.line_of("events").endswith("nothing was asked for")


def test_a_session_that_is_set_aside_is_in_the_line(sandbox: Sandbox, load: Load) -> None:
    """The line of events names it instead of a match, in this run and the next."""
    refused = with_events(sandbox.project)[1]
    sandbox.options.script = lambda one: "409" if one.query.get("sessionId") == refused else None
    run = load()
    for _ in range(2):
        assert run.code == 0
        assert run.line_of("events").endswith(f"set aside: {refused}")
        run = load(run.output.state, after=HOUR)
    sandbox.options.script = None
    run = load(run.output.state, after=HOUR)
    assert_done(run)
    assert run.line_of("events").endswith(MATCH)


def test_a_session_that_is_deleted_after_it_was_listed_is_told(
    sandbox: Sandbox, load: Load
) -> None:
    """Its events did not come: no match is claimed, and the log has its name."""
    gone = with_events(sandbox.project)[1]

    def delete(request: Request, project: t.Any) -> None:
        if request.query.get("sessionId") == gone and gone in project.sessions:
            del project.sessions[gone]
            del project.events[gone]
            project.changed("sessions")

    sandbox.options.on_request = delete
    run = load()
    assert run.code == 0
    assert [line for line in run.log if gone in line and "not known" in line]
    assert "short" not in run.line_of("events")
    assert "set aside" not in run.line_of("events")
    assert MATCH not in run.line_of("events")
    second = load(run.output.state, after=HOUR)
    assert_done(second)
    assert second.sessions == {}


def test_a_listing_short_of_its_total_is_in_the_line(sandbox: Sandbox, load: Load) -> None:
    """Only its own stream is without a match."""

    def two_more(envelope: Row) -> Row:
        if envelope["data"] and "occurrenceCount" in envelope["data"][0]:
            envelope["total"] += 2
        return envelope

    sandbox.options.envelope = two_more
    run = load()
    assert run.code == 0
    assert run.line_of("crashes").endswith("1 listings short of the API's total")
    assert not run.is_complete
    for stream in ("events", "network", "sessions"):
        assert run.line_of(stream).endswith(MATCH)


# --- Values that no column holds ----------------------------------------------------------

DEEP = b'{"a":' * 400 + b"7" + b"}" * 400


def levels(value: object) -> int:
    """Return how many objects lie around a 7, those in a text included."""
    count = 0
    while value != 7:
        if isinstance(value, str):
            value = json.loads(value)
        else:
            assert isinstance(value, dict)
            (value,) = value.values()
            count += 1
    return count


def raw(literals: dict[str, bytes]) -> Callable[[bytes], bytes]:
    """Return what puts literals into a body in the place of texts like `@name@`."""

    def spoil(body: bytes) -> bytes:
        for name, literal in literals.items():
            body = body.replace(b'"@%s@"' % name.encode(), literal)
        # Inside of a text, and before all.
        body = body.replace(b"@byte@", b"\xff")
        return (b"\xef\xbb\xbf" + body) if b"@mark@" in body else body

    return spoil


def test_a_project_with_one_of_each_odd_value_is_loaded(sandbox: Sandbox, load: Load) -> None:
    """What a column cannot hold is null there and raw in `_extra`; all else is unharmed."""
    project = sandbox.project
    whole = with_events(project, 3)
    rows = [project.sessions[one] for one in whole]
    calls = list(project.network.values())
    event = project.events[whole[0]][0]
    crash = next(iter(project.crashes.values()))
    # Place, column, what the API sends, what the column and `_extra` have then.
    odd: list[tuple[str, Row, str, bytes, object, object]] = [
        ("sessions", rows[0], "duration", b"18446744073709551615", None, 18446744073709551615),
        ("sessions", rows[1], "duration", b"1e300", None, 1e300),
        ("sessions", rows[2], "duration", b"3e3", 3000, None),
        ("sessions", rows[3], "duration", b"NaN", None, None),
        ("sessions", rows[0], "hasCrash", b"0", False, None),
        ("sessions", rows[1], "hasCrash", b"1", True, None),
        ("crashes", crash, "occurrenceCount", b"9223372036854775808", None, 2**63),
        ("network", calls[0], "duration", b"NaN", None, None),
        ("network", calls[1], "duration", b"1e400", None, None),
        ("network", calls[2], "duration", b"-9223372036854775809", None, -(2**63) - 1),
        ("network", calls[3], "sessionId", b"4711", "4711", None),
        ("network", calls[4], "method", b'"@byte@GET"', "\ufffdGET", None),
        ("network", calls[5], "method", b'"@mark@GET"', "@mark@GET", None),
        ("events", event, "sequenceNumber", b"1e300", None, 1e300),
    ]
    for row, text in zip(
        rows[4:8],
        [
            "2026-W47-5T10:00:00Z",
            "2026-11-20T10Z",
            "2026-11-20T10:00:00,123Z",
            "2026-11-20x10:00:00Z",
        ],
        strict=True,
    ):
        odd.append(("sessions", row, "endedAt", json.dumps(text).encode(), None, text))
    valid = "2026-11-20T10:00:00.000Z"
    odd.append(("sessions", rows[8], "endedAt", b'"2026-11-20t10:00:00z"', valid, None))
    usual = {stream: expected(project, stream) for stream in PRIMARY_KEYS}
    literals: dict[str, bytes] = {"deep": DEEP}
    for number, (_, row, column, literal, _, _) in enumerate(odd):
        literals[f"odd{number}"] = literal
        row[column] = f"@odd{number}@"
    event["data"] = "@deep@"
    project.sessions[whole[9]]["nested"] = "@deep@"
    sandbox.options.body = raw(literals)

    run = load()

    assert_done(run)
    deep_event = (whole[0], event["id"])
    changed: dict[str, set[tuple[str, ...]]] = {one: set() for one in PRIMARY_KEYS}
    changed["events"].add(deep_event)
    changed["sessions"].add((whole[9],))
    for stream, row, column, _, value, extra in odd:
        key = deep_event if stream == "events" else (row["id"],)
        changed[stream].add(key)
        loaded = run.output.table(stream)[key]
        assert (loaded[column], type(loaded[column])) == (value, type(value)), (column, loaded)
        assert (loaded["_extra"] or {}).get(column) == extra, (column, loaded)
    for stream, rows_of in usual.items():
        table = run.output.table(stream)
        assert table.keys() == rows_of.keys()
        others = rows_of.keys() - changed[stream]
        assert {key: table[key] for key in others} == {key: rows_of[key] for key in others}
        assert run.output.repeated(stream) == []
        told = [one for one in run.warnings if stream in one and "did not fit" in one]
        assert len(told) == 1, (stream, told)
    assert levels(run.output.table("events")[deep_event]["data"]) == 400
    assert levels(run.output.table("sessions")[(whole[9],)]["_extra"]["nested"]) == 400
    second = load(run.output.state, after=HOUR)
    assert_done(second)
    assert [second.output.rows(one) for one in ("sessions", "network", "events")] == [[], [], []]


# --- Everything at once -------------------------------------------------------------------

FAULTS = {
    "408": 0.01,
    "429": 0.003,  # each stops all requests for a minute
    "500": 0.013,
    "502": 0.01,
    "503": 0.014,
    "reset": 0.01,
    "cut": 0.01,
    "html": 0.006,
    "not_json": 0.006,
    "no_data": 0.005,
    "data_not_list": 0.005,
    "row_not_object": 0.005,
    "timeout": 0.0015,  # and these a while each
    "drip": 0.0015,
}


@pytest.mark.long
@pytest.mark.parametrize("refused", ["crashes", "network"])
def test_a_soak_of_all_faults_leaves_only_what_is_refused(
    now: datetime, tmp_path: Path, refused: str
) -> None:
    """2,000 requests, a tenth of them faulty, lose nothing but what is refused or short."""
    project = generate_once(
        seed=5, sessions=1900, days=30, until=now - HOUR, events_per_session=3, lying_clocks=False
    )
    whole = with_events(project)
    by_status = dict(zip(["400", "409", "422"], whole[3 :: len(whole) // 3], strict=True))
    statuses = {session: status for status, session in by_status.items()}
    short = {whole[10], whole[-10]}

    def script(request: Request) -> str | None:
        if request.path == f"/{refused}":
            return "403"
        return statuses.get(request.query.get("sessionId", ""))

    options = Options(
        requests_per_minute=None,
        faults=FAULTS,
        retry_after="none",
        hang_seconds=2.0,
        drip_seconds=0.01,
        script=script,
        late_sessions=short,
        late_events="part",
    )
    with Sandbox(project, options) as sandbox:
        load = Load(sandbox, tmp_path, now)
        first = load(minute=0.5, request_timeout=0.4, most=10_000)
        assert len(first.requests) >= 2000
        hit = {one.fault for one in first.requests if one.fault} - {*statuses.values(), "403"}
        assert hit == FAULTS.keys()
        assert first.code == 1
        assert f"403 Forbidden for /{refused}" in first.log[-1]
        assert f"deselect {refused} to leave it out" in first.log[-1]
        for session, status in statuses.items():
            (told,) = (one for one in first.warnings if f"session {session} is set aside" in one)
            assert status in told
        line = first.line_of("events")
        assert "2 sessions short of events" in line
        assert f"set aside: {', '.join(sorted(statuses))}" in line
        state = first.output.state["bookmarks"]["events"]
        assert (state["set_aside"].keys(), state["short"].keys()) == (statuses.keys(), short)
        last_events = {(one, project.events[one][-1]["id"]) for one in short}
        for stream in PRIMARY_KEYS:
            rows = {} if stream == refused else expected(project, stream)
            rows = {
                key: row
                for key, row in rows.items()
                if stream != "events" or (key[0] not in statuses and key not in last_events)
            }
            assert first.output.table(stream) == rows, stream
            assert first.output.repeated(stream) == []

        options.faults, options.script, options.late_sessions = {}, None, set()
        new = {project.new_session(now + minutes * HOUR / 60) for minutes in (5, 10, 15)}
        second = load(first.output.state, after=2 * HOUR)
        assert_done(second)
        assert_whole(sandbox.project, first.output, second.output)
        due = {one for one in new if project.events[one]}
        assert second.sessions == Counter({*statuses, *short} | due)
        assert {row["id"] for row in second.output.rows("sessions")} == new
        for stream in PRIMARY_KEYS:
            assert second.output.repeated(stream) == []
        assert not re.search(r"short|set aside", second.line_of("events"))
