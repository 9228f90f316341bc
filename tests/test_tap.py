"""The tap against the sandbox: everything it emits, its catalog, its command line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import typing as t
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

import pytest
from singer_sdk.exceptions import ConfigurationError
from singer_sdk.testing import get_tap_test_class
from typing_extensions import override

from tap_bugspulse.settings import CONFIG_SCHEMA
from tap_bugspulse.tap import TapBugsPulse
from tap_bugspulse.writer import WholeMessageWriter
from tests import forks
from tests.conftest import sweep
from tests.running import KEPT, PRIMARY_KEYS, Runs, assert_whole, counted, expected, select, sync
from tests.sandbox import Options, Sandbox, generate
from tests.test_http import assert_one_line

SNAPSHOT = Path(__file__).parent / "snapshots" / "catalog.json"
CONFIG = {"api_key": "bp_sandbox_key", "requests_per_minute": 1_000_000}


@pytest.fixture(scope="module")
def standard_sandbox() -> Iterator[Sandbox]:
    """The project that the SDK's own tests run against."""
    with Sandbox(generate(sessions=60, days=5), Options(requests_per_minute=None)) as running:
        CONFIG["api_url"] = running.url
        yield running


class TextWriter(WholeMessageWriter):
    """Writes text, which the runner of the SDK's tests captures, where the tap writes bytes."""

    @override
    def flush(self) -> None:
        with io.BytesIO() as written, contextlib.redirect_stdout(io.TextIOWrapper(written)):
            super().flush()
            text = written.getvalue().decode()
        sys.stdout.write(text)


# _extra is null where the API sends nothing new, and the suite warns of empty columns.
@pytest.mark.filterwarnings("ignore:No records were available to test")
@pytest.mark.usefixtures("standard_sandbox")
class TestStandard(
    get_tap_test_class(  # type: ignore[misc]  # its base is made by a function
        TapBugsPulse, config=CONFIG, parse_env_config=False, message_writer=TextWriter()
    )
):
    """The SDK's tests of any tap."""


@sweep(
    "order to_means events_paging",
    ["newest", "oldest", "arbitrary"],
    ["before", "midnight", "end"],
    ["all", "pages"],
    quick=[
        ("newest", "before", "all"),
        ("oldest", "end", "pages"),
        ("arbitrary", "midnight", "pages"),
    ],
)
def test_emits_every_row_of_every_stream_once(
    sandbox: Sandbox, now: datetime, order: t.Any, to_means: t.Any, events_paging: t.Any
) -> None:
    """All the sandbox holds arrives field by field and once, however the API reads."""
    sandbox.options.order, sandbox.options.to_means = order, to_means
    sandbox.options.events_paging = events_paging
    output = sync(sandbox, now, page_size=3)
    assert max(int(one.query["page"]) for one in sandbox.requests) >= 4
    assert_whole(sandbox.project, output)
    assert not any(map(output.repeated, PRIMARY_KEYS))


def test_asks_for_no_page_too_many(sandbox: Sandbox, now: datetime) -> None:
    """A listing of one page takes one request, and each session's events take one."""
    output = sync(sandbox, now, catalog=select(now, "crashes", "sessions", "events"))
    rows = output.rows("sessions")
    due = {row["id"] for row in rows if row["eventCount"] or row["status"] == "active"}
    assert len(due) < len(sandbox.project.sessions)
    # Sessions: the newest days, all before them, and these once more for their events.
    assert counted(sandbox) == {"/crashes": 1, "/sessions": 3, "/events": len(due)}
    assert {row["sessionId"] for row in output.rows("events")} <= due


@pytest.mark.parametrize("project", [None, "ios-app"])
def test_a_second_run_with_nothing_new_emits_only_crashes(
    sandbox: Sandbox, now: datetime, project: str | None
) -> None:
    """With the state of the first run, the second asks for no events."""
    run = Runs(sandbox, now, project=project)
    run()
    sandbox.reset()
    second = run()
    assert len(second.rows("crashes")) == len(sandbox.project.crashes)
    assert not any(second.rows(stream) for stream in ("sessions", "events", "network"))
    assert "/events" not in counted(sandbox)
    assert counted(sandbox).total() <= 14


def test_the_project_is_first_in_every_key(sandbox: Sandbox, now: datetime) -> None:
    """With project set, every row has the column and every table its key."""
    output = sync(sandbox, now, project="ios-app")
    schemas = {one["stream"]: one for one in output.messages if one["type"] == "SCHEMA"}
    for stream, keys in PRIMARY_KEYS.items():
        assert output.table(stream) == expected(sandbox.project, stream, "ios-app")
        assert tuple(schemas[stream]["key_properties"]) == ("project", *keys)
        assert schemas[stream]["schema"]["properties"]["project"]["type"] == "string"


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("ios-app", "android-app", "project is 'android-app'.*belongs to 'ios-app'"),
        ("ios-app", None, "project is not set.*belongs to 'ios-app'"),
        (None, "ios-app", "'ios-app'.*was made without a project"),
    ],
)
def test_a_state_of_another_project_is_refused(
    sandbox: Sandbox, now: datetime, before: str | None, after: str | None, says: str
) -> None:
    """A state that belongs to one project, or to none, does not serve another."""
    state = sync(sandbox, now, project=before).state
    with pytest.raises(ConfigurationError, match=says):
        sync(sandbox, now, state, project=after)


def test_the_catalog_is_the_one_users_have(now: datetime) -> None:
    """A change of the catalog shows itself; write the snapshot anew when it is meant."""
    catalog = json.dumps(select(now, *PRIMARY_KEYS), indent=2, sort_keys=True) + "\n"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.parent.mkdir(exist_ok=True)
        SNAPSHOT.write_text(catalog)
    assert catalog == SNAPSHOT.read_text()


def test_every_column_says_what_it_is(now: datetime) -> None:
    """Each property has a description, and only key columns are not nullable."""
    for stream in select(now, *PRIMARY_KEYS)["streams"]:
        for name, column in stream["schema"]["properties"].items():
            assert column["description"].endswith(".")
            assert ("null" in column["type"]) == (name not in stream["key_properties"])
            assert "enum" not in column


# --- The command line ----------------------------------------------------------------


def run_tap(
    *arguments: str, variables: Mapping[str, str] | None = None, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run the tap as a process with no other variables of its own than these."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return forks.run("tap_bugspulse", *arguments, env={**kept, **(variables or {})}, fresh=fresh)


def settings_for(sandbox: Sandbox) -> dict[str, t.Any]:
    """Return settings that load from a sandbox, unpaced."""
    return {"api_key": sandbox.api_key, "api_url": sandbox.url, "requests_per_minute": 1_000_000}


def run_with(
    sandbox: Sandbox, *arguments: str, **settings: str | None
) -> subprocess.CompletedProcess[str]:
    """Run the tap with settings in its environment; None leaves one out."""
    given = (settings_for(sandbox) | settings).items()
    variables = {f"TAP_BUGSPULSE_{n.upper()}": str(one) for n, one in given if one is not None}
    return run_tap("--config=ENV", *arguments, variables=variables)


def config_file(sandbox: Sandbox, folder: Path, **settings: object) -> str:
    """Write a file with settings and return its path."""
    file = folder / "config.json"
    file.write_text(json.dumps(settings_for(sandbox) | settings))
    return str(file)


def test_about_describes_every_setting() -> None:
    """--about names each setting with a title, a description and no value of its own."""
    about = json.loads(run_tap("--about", "--format", "json").stdout)
    settings = about["settings"]["properties"]
    for name in CONFIG_SCHEMA["properties"]:
        assert settings[name]["title"]
        assert settings[name]["description"].endswith(".")
    assert settings["api_key"]["secret"] is True
    assert not {"batch", "activate-version"} & {*about["capabilities"]}


def test_no_setting_brings_batches_or_versions(
    sandbox: Sandbox, now: datetime, tmp_path: Path
) -> None:
    """Stream maps are never bypassed, and no target deletes what a run did not send."""
    storage = {"encoding": {"format": "jsonl"}, "storage": {"root": tmp_path.as_uri()}}
    output = sync(sandbox, now, batch_config=storage, emit_activate_version_messages=True)
    assert {one["type"] for one in output.messages} == {"SCHEMA", "RECORD", "STATE"}


def test_discover_needs_no_settings() -> None:
    """--discover works before there is a key."""
    done = run_tap("--discover", fresh=True)
    assert done.returncode == 0
    assert {stream["stream"] for stream in json.loads(done.stdout)["streams"]} == set(PRIMARY_KEYS)


def test_test_tries_every_endpoint(sandbox: Sandbox) -> None:
    """--test asks each endpoint once and emits a row of each stream."""
    done = run_with(sandbox, "--test")
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    rows = [one["stream"] for one in messages if one["type"] == "RECORD"]
    assert sorted(rows) == sorted(PRIMARY_KEYS)
    # The sessions once more, for one whose events can be asked for.
    assert counted(sandbox) == {"/crashes": 1, "/network": 1, "/sessions": 2, "/events": 1}
    assert "the test succeeded; tap-bugspulse-check tells more" in done.stderr.splitlines()[-1]


def test_test_fails_where_an_endpoint_is_refused(sandbox: Sandbox) -> None:
    """--test ends with 1, and its last line names the endpoint."""
    sandbox.options.script = lambda one: "403" if one.path == "/network" else None
    assert_one_line(run_with(sandbox, "--test"), "403 Forbidden for /network")


KEYS = {
    None: "api_key is missing",
    "": "api_key is missing",
    "bp_wrong_key": "401 Unauthorized for /crashes",
    "bp wrong key": "api_key must be a text without spaces",
}


@sweep(
    "key arguments",
    KEYS,
    [(), ("--test",)],
    quick=[(key, ()) for key in KEYS] + [("bp_wrong_key", ("--test",))],
)
def test_a_wrong_key_is_one_clear_line(
    sandbox: Sandbox, key: str | None, arguments: tuple[str, ...]
) -> None:
    """A key that is missing or wrong ends the run with a line that says what to do."""
    done = run_with(sandbox, *arguments, api_key=key)
    assert_one_line(done, KEYS[key], "it begins with bp_")
    assert done.stdout == "" or key == "bp_wrong_key"
    assert not key or key not in done.stderr + done.stdout


def test_a_key_in_an_environment_that_is_not_read_ends_the_command(sandbox: Sandbox) -> None:
    """Who set the variable learns that the command was not told to read it."""
    variables = {"TAP_BUGSPULSE_API_KEY": sandbox.api_key, "TAP_BUGSPULSE_API_URL": sandbox.url}
    done = run_tap(variables=variables)
    assert_one_line(done, "TAP_BUGSPULSE_API_KEY, which is read with --config=ENV")
    assert sandbox.requests == []


@pytest.mark.parametrize("is_file", [True, False], ids=["file", "variables"])
def test_numbers_may_be_text_and_empty_text_is_nothing(
    sandbox: Sandbox, tmp_path: Path, *, is_file: bool
) -> None:
    """Variables give text for every setting, and may be nothing where the SDK reads no such."""
    empty = ("start_date", "project", "lookback_days", "stream_maps", "flattening_max_depth")
    numbers = {"max_runtime_minutes": 0.000001, "request_timeout": 7.5}
    if is_file:
        config = config_file(sandbox, tmp_path, **numbers, **dict.fromkeys(empty, ""))
        done = run_tap("--config", config)
    else:
        text = {name: f"{number:f}" for name, number in numbers.items()}
        done = run_with(sandbox, **text, **dict.fromkeys(empty, ""))
    assert done.returncode == 0, done.stderr
    assert "summary status=incomplete" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["type"] == "STATE"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("stream_maps", '{"sessions": salt', "stream_maps must be a JSON object"),
        ("stream_map_config", "salt", "stream_map_config must be a JSON object"),
        ("stream_map_config", '["salt"]', "stream_map_config must be a JSON object"),
        ("stream_map_config", ["salt"], "stream_map_config must be a JSON object"),
        ("stream_maps", {"sessions": 5}, "config['stream_maps']['sessions']"),
        ("api_key", ["salt"], "api_key must be a text"),
        ("api_key", {"salt": "bp"}, "api_key must be a text"),
        ("api_key", 123456789012, "api_key must be a text"),
        ("faker_config", "{salt}", "faker_config must be a JSON object"),
        ("flattening_max_key_length", "long", "config['flattening_max_key_length']"),
        ("page_size", "many", "page_size must be a whole number from 1 to 1000, not 'many'"),
    ],
)
def test_a_setting_that_cannot_be_read_is_one_line(
    sandbox: Sandbox, tmp_path: Path, name: str, value: object, says: str
) -> None:
    """A text comes as a variable, others in a file; what may be secret is not repeated."""
    if isinstance(value, str):
        done = run_with(sandbox, **{name: value})
    else:
        done = run_tap("--config", config_file(sandbox, tmp_path, **{name: value}))
    assert_one_line(done, says)
    assert not re.search("salt|123456789012", done.stderr)
    assert sandbox.requests == []


def warnings_of(log: str) -> list[str]:
    """Return what is warned of in a log."""
    return [line.split(" | ")[-1] for line in log.splitlines() if "| WARNING " in line]


def test_a_misspelt_setting_is_told(sandbox: Sandbox, tmp_path: Path) -> None:
    """A variable or a key of the file that is no setting is named, its value is not."""
    config = config_file(sandbox, tmp_path, lookback_day=987654, stream_maps={})
    wrong = {"TAP_BUGSPULSE_STARTDATE": "2026-02-03", "TAP_BUGSPULSE_XYZ": "987654"}
    done = run_tap("--config", config, variables=wrong)
    assert done.returncode == 0, done.stderr
    ignored = "unknown setting, ignored"
    assert sorted(warnings_of(done.stderr)) == [
        f"lookback_day: {ignored} (did you mean lookback_days?)",
        f"startdate: {ignored} (did you mean start_date?)",
        f"xyz: {ignored} (see --about)",
    ]
    assert not re.search("987654|2026-02-03", done.stderr)


def test_what_meltano_sets_is_not_warned_of(sandbox: Sandbox) -> None:
    """The names that Meltano 4.4.1 sets for a plugin, and settings of the SDK."""
    done = run_with(
        sandbox,
        loglevel="INFO",
        faker_config='{"seed": 3}',
        faker_config_seed="3",
        flattening_enabled="false",
        stream_maps='{"sessions": {"__filter__": "True"}}',
        stream_maps_sessions___filter__="True",
        _load_schema="tap_bugspulse",
        _log_parser="singer-sdk",
        _metadata_sessions_replication_method="INCREMENTAL",
        _select='["*.*"]',
    )
    assert done.returncode == 0, done.stderr
    assert warnings_of(done.stderr) == []


@pytest.mark.parametrize(
    "sandbox",
    [{"sessions": 200}, pytest.param({"sessions": 900}, marks=pytest.mark.long)],
    indirect=True,
)
def test_the_log_of_a_long_load_is_short(sandbox: Sandbox) -> None:
    """900 sessions make a page of log: what is ahead, a line a stream, a summary."""
    done = run_with(sandbox)
    lines = done.stderr.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) < 60
    for words in ("sessions need events: about", *(f"{one}: rows " for one in PRIMARY_KEYS)):
        assert any(words in line for line in lines)
    assert "summary status=complete" in lines[-1]
    assert "events_left=0 eta_minutes=0" in lines[-1]
