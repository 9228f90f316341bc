"""Whole runs with odd settings, catalogs, states and logs, and against odd rows and faults."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path

import pytest

from tests import forks
from tests.conftest import NOW, sweep, with_project
from tests.loads import Load, assert_done, with_events
from tests.running import PRIMARY_KEYS, Row, Runs, assert_whole, expected, select
from tests.sandbox import Request, Sandbox
from tests.tap_process import Starter, clock

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MINUTE = 0.02  # seconds that a minute of the tap takes
# Its clocks are right, so that no call lies in the future.
DATA = {"sessions": 40, "crash_groups": 4, "lying_clocks": False}

# --- Logs and output ----------------------------------------------------------------------


CONSOLE = {
    "class": "logging.StreamHandler",
    "formatter": "singer_formatter",
    "stream": "ext://sys.stderr",
}
# What Meltano gives a tap.
LOGGING: Row = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"singer_formatter": {"()": "singer_sdk.logging.StructuredFormatter"}},
    "root": {"handlers": ["console"], "level": "INFO"},
}
AT_INFO: Row = {"singer_sdk.metrics": {"level": "INFO"}}
TO_FILE = {"level": "INFO", "handlers": ["metrics"], "propagate": False}


@pytest.mark.parametrize(
    ("loggers", "in_file", "in_log"),
    [
        ({}, False, False),  # as Meltano's own
        (AT_INFO, False, True),
        ({"singer_sdk.metrics": TO_FILE}, True, False),
    ],
    ids=["not named", "at INFO", "to a file"],
)
def test_metrics_go_where_a_log_configuration_sends_them(
    tmp_path: Path, load: Load, loggers: Row, *, in_file: bool, in_log: bool
) -> None:
    """Lines of each stream are written where their logger is named at INFO, and nowhere else."""
    metrics, config = tmp_path / "metrics.log", tmp_path / "logging.json"
    to_file = {"class": "logging.FileHandler", "filename": str(metrics)}
    handlers = {"console": CONSOLE, "metrics": to_file}
    config.write_text(json.dumps(LOGGING | {"handlers": handlers, "loggers": loggers}))
    run = load(environment={"SINGER_SDK_LOG_CONFIG": str(config)})
    assert_done(run)
    for lines, is_wanted in ((metrics.read_text().splitlines(), in_file), (run.log, in_log)):
        told = [line for line in lines if "METRIC" in line or "metric_" in line]
        named = {stream for stream in PRIMARY_KEYS for line in told if f'"{stream}"' in line}
        assert (told != [], named) == (is_wanted, set(PRIMARY_KEYS) if is_wanted else set())


def test_an_output_that_was_never_open_is_one_line(tmp_path: Path, sandbox: Sandbox) -> None:
    """Started with `>&-`, the tap says so before it asks for anything."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"api_key": sandbox.api_key, "api_url": sandbox.url}))
    program = [sys.executable, "-m", "tests.tap_process", clock(NOW, MINUTE)]
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


@pytest.mark.long
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("words", "times"), [("summary status=", 6), ("need events", 4)])
def test_a_signal_while_a_line_is_logged_ends_the_run(
    start: Starter, sandbox: Sandbox, signum: int, words: str, times: int
) -> None:
    """It is stopped and says so in one line, or after its summary ends well and says no more."""
    is_over, is_done = threading.Event(), words == "summary status="

    def hold(request: Request) -> None:
        if request.path == "/events" and not is_done:
            is_over.wait(3)

    sandbox.options.hold = hold
    for _ in range(times):
        tap = start(minute=MINUTE, fresh=True)
        while words not in tap.log:  # at once, since a run that is done ends soon
            assert tap.process.poll() is None, tap.log
        tap.process.send_signal(signum)
        code, output = tap.end(), tap.output()
        rest = tap.log.partition(words)[2].splitlines()[1:]
        is_stopped = (code, len(rest)) == (128 + signum, 1) and "Stopped by SIG" in rest[0]
        assert is_stopped or (is_done and (code, rest) == (0, [])), tap.log
        assert output.messages[-1]["type"] == "STATE"
        if is_done:
            assert_whole(sandbox.project, output)
    is_over.set()


# --- Catalogs, keys and dates -------------------------------------------------------------


@pytest.mark.parametrize("catalog", [{"streams": []}, select(NOW)], ids=["empty", "deselected"])
def test_a_catalog_without_a_stream_is_told(load: Load, sandbox: Sandbox, catalog: Row) -> None:
    """It loads nothing, and one warning says so."""
    run = load(catalog=catalog)
    (told,) = run.warnings
    assert "the catalog selects no stream" in told
    assert sandbox.requests == []
    assert run.output.rows("sessions") == []


@pytest.mark.parametrize(("stream", "key"), [("crashes", "lastSeenAt"), ("events", "timestamp")])
def test_a_stream_that_cannot_be_incremental_is_loaded_as_usual(
    sandbox: Sandbox, load: Load, stream: str, key: str
) -> None:
    """A catalog that asks for it brings one warning, all rows, and a second run like any."""
    catalog = select(NOW, *PRIMARY_KEYS)
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


def test_a_later_start_date_for_one_run_loses_nothing(sandbox: Sandbox) -> None:
    """What came before that date is loaded by the next run without it, and nothing twice."""
    project, run = sandbox.project, Runs(sandbox, NOW)
    run()
    late = [project.new_session(NOW - days * DAY) for days in (6, 4, 1)]
    calls = [project.new_network(NOW - days * DAY - HOUR) for days in (6, 4, 1)]
    run(1, start_date=f"{NOW - 2 * DAY:%F}")
    late += [project.new_session(NOW - days * DAY + HOUR) for days in (5, 1)]
    calls += [project.new_network(NOW - days * DAY - 2 * HOUR) for days in (5, 1)]
    run(2)
    assert_whole(project, *run.outputs)
    asked = [one for output in run.outputs[1:] for one in output.asked]
    assert sorted(asked) == sorted(one for one in late if project.events[one])
    for stream in PRIMARY_KEYS:
        assert [output.repeated(stream) for output in run.outputs] == [[]] * 3
    for stream in ("sessions", "events"):
        keys = [key for output in run.outputs for key in output.table(stream)]
        assert len(keys) == len(set(keys)), stream
    # Of a day that a call came late for, the calls come again: nothing tells which it is.
    days = {project.when("network", one)[:10] for one in calls}
    for before, output in itertools.pairwise(run.outputs):
        again = set(before.ids("network")).intersection(output.ids("network"))
        assert {project.when("network", one)[:10] for one in again} <= days


# --- Endpoints that fail ------------------------------------------------------------------


@sweep(
    "stream fault",
    PRIMARY_KEYS,
    ["402", "403", "404", "410", "500", "html"],
    quick=[
        ("sessions", "403"),
        ("network", "404"),
        ("events", "402"),
        ("events", "500"),
        ("network", "html"),
    ],
)
def test_an_endpoint_that_always_fails_keeps_no_other_stream_back(
    sandbox: Sandbox, load: Load, stream: str, fault: str
) -> None:
    """The run ends with 1, and its last line names the endpoint and the way out."""
    sandbox.options.script = lambda one: fault if one.path == f"/{stream}" else None
    run = load(code=1)
    # Events take their sessions from /sessions.
    missing = {stream} | ({"events"} if stream == "sessions" else set())
    for one in PRIMARY_KEYS:
        rows = {} if one in missing else expected(sandbox.project, one)
        assert run.output.table(one) == rows, one
    # Ten sessions that fail, or that are not known, end the run at once.
    at_once = stream == "events" and fault in {"404", "500", "html"}
    is_refused = fault.startswith("4") and not at_once
    refusal = f"{fault} {HTTPStatus(int(fault)).phrase} for " if is_refused else ""
    assert f"{refusal}/{stream}" in run.log[-1]
    if not at_once:
        assert f"deselect {stream} to leave it out" in run.log[-1]
        assert run.log[-1].count("deselect") == 1  # events are not asked for without sessions
        assert "summary status=incomplete" in run.log[-2]
        assert not run.line_of(stream).endswith("row counts match the API")
    sandbox.options.script = None
    second = load(run.output.state, after=HOUR)
    assert_done(second)
    assert_whole(sandbox.project, run.output, second.output)


# --- Values that no column holds ----------------------------------------------------------

# Stream, column, what the API sends, and what the column and `_extra` have then.
ODD: list[tuple[str, str, bytes, object, object]] = [
    ("sessions", "duration", b"18446744073709551615", None, 18446744073709551615),
    ("sessions", "duration", b"NaN", None, None),
    ("sessions", "hasCrash", b"1", True, None),
    ("sessions", "endedAt", b'"2026-W47-5T10:00:00Z"', None, "2026-W47-5T10:00:00Z"),
    ("sessions", "endedAt", b'"2026-11-20t10:00:00z"', "2026-11-20T10:00:00.000Z", None),
    ("crashes", "occurrenceCount", b"9223372036854775808", None, 2**63),
    ("network", "duration", b"-9223372036854775809", None, -(2**63) - 1),
    ("network", "duration", b"1e400", None, None),
    ("network", "sessionId", b"4711", "4711", None),
    ("network", "method", b'"\xffGET"', "\ufffdGET", None),
    ("events", "sequenceNumber", b"1e300", None, 1e300),
]
DEEP = b'{"a":' * 400 + b"7" + b"}" * 400


def test_a_project_with_one_of_each_odd_value_is_loaded(sandbox: Sandbox, load: Load) -> None:
    """What a column cannot hold is null there and raw in `_extra`; all else is unharmed."""
    project = sandbox.project
    usual = {stream: expected(project, stream) for stream in PRIMARY_KEYS}
    session = with_events(project)[0]
    rows = {one: iter(project.table(one).values()) for one in ("sessions", "crashes", "network")}
    rows["events"] = iter(project.events[session])
    odd = [(next(rows[stream]), number) for number, (stream, *_) in enumerate(ODD)]
    for row, number in odd:
        row[ODD[number][1]] = f"@{number}@"
    event, other = odd[-1][0], next(rows["sessions"])
    event["data"] = other["nested"] = "@deep@"

    def spoil(body: bytes) -> bytes:
        for number, (_, _, literal, _, _) in enumerate(ODD):
            body = body.replace(b'"@%d@"' % number, literal)
        return b"\xef\xbb\xbf" + body.replace(b'"@deep@"', DEEP)

    sandbox.options.body = spoil
    run = load()
    assert_done(run)
    tables = {stream: run.output.table(stream) for stream in PRIMARY_KEYS}
    deep_event = tables["events"].pop((session, event["id"]))
    for deep in (deep_event["data"], tables["sessions"].pop((other["id"],))["_extra"]["nested"]):
        assert json.dumps(deep).count("a") == 400
    for row, number in odd:
        stream, column, _, value, extra = ODD[number]
        loaded = deep_event if stream == "events" else tables[stream].pop((row["id"],))
        assert (loaded[column], type(loaded[column])) == (value, type(value)), (column, loaded)
        assert (loaded["_extra"] or {}).get(column) == extra, (column, loaded)
    for stream, others in tables.items():
        assert others.items() <= usual[stream].items()
        assert sorted(run.output.ids(stream)) == sorted(key[-1] for key in usual[stream])
        assert len([one for one in run.warnings if stream in one and "did not fit" in one]) == 1
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
@with_project(
    seed=5, sessions=1900, days=30, events_per_session=3, lying_clocks=False, crash_groups=None
)
@pytest.mark.parametrize("refused", ["crashes", "network"])
def test_a_soak_of_all_faults_leaves_only_what_is_refused(
    sandbox: Sandbox, load: Load, refused: str
) -> None:
    """2,000 requests, a tenth of them faulty, lose nothing but what is refused or short."""
    project, options = sandbox.project, sandbox.options
    whole = with_events(project)
    statuses = dict(zip(whole[3 :: len(whole) // 3], ["400", "409", "422"], strict=True))
    short = {whole[10], whole[-10]}

    def script(request: Request) -> str | None:
        if request.path == f"/{refused}":
            return "403"
        return statuses.get(request.query.get("sessionId", ""))

    options.faults, options.script, options.retry_after = FAULTS, script, "none"
    options.hang_seconds, options.drip_seconds = 2.0, 0.01
    options.late_sessions, options.late_events = short, "part"
    first = load(code=1, minute=0.5, request_timeout=0.4, most=10_000)
    assert len(first.requests) >= 2000
    hit = {one.fault for one in first.requests if one.fault} - {*statuses.values(), "403"}
    assert hit == FAULTS.keys()
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
        for key in [*rows] if stream == "events" else ():
            if key[0] in statuses or key in last_events:
                del rows[key]
        assert first.output.table(stream) == rows, stream
        assert first.output.repeated(stream) == []

    options.faults, options.script, options.late_sessions = {}, None, set()
    new = {project.new_session(NOW + minutes * HOUR / 60) for minutes in (5, 10, 15)}
    second = load(first.output.state, after=2 * HOUR)
    assert_done(second)
    assert_whole(project, first.output, second.output)
    due = {one for one in new if project.events[one]}
    assert second.sessions == Counter({*statuses, *short} | due)
    assert set(second.output.ids("sessions")) == new
    assert [second.output.repeated(stream) for stream in PRIMARY_KEYS] == [[]] * 4
    assert not re.search(r"short|set aside", second.line_of("events"))
