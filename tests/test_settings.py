"""What settings may be, and what is said of those that may not."""

from __future__ import annotations

import re
import typing as t
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from singer_sdk.exceptions import ConfigValidationError

from tap_bugspulse.client import BugsPulseStream
from tap_bugspulse.replication import Span
from tap_bugspulse.settings import CONFIG_SCHEMA, Settings
from tap_bugspulse.tap import TapBugsPulse

# What a setting must be, and values that are not.
RULES: dict[str, tuple[str, tuple[object, ...]]] = {
    "api_url": (
        "an https URL, or http on loopback, without a user name or password, query or fragment",
        (
            *("https://api.example:port", "ftp://example.com", 5, "http://api.example"),
            *("http://127.0.0.1.example", "http://localhost.example", "//a", "https:///x"),
            *("https://me:secret@api.example", "http://me:secret@api.example"),
            *("https://me:se/secret@api.example", "https://api.example/?key=secret"),
        ),
    ),
    "api_key": ("a text without spaces (it begins with bp_", ("bp secret", "bp_secret\n")),
    "start_date": ("a date or date-time", (Decimal("1.5"), "yesterday")),
    "end_date": ("a date or date-time", ("1800-01-01",)),
    "lookback_days": ("a whole number from 0 to 36500", (-1,)),
    "requests_per_minute": ("a whole number of 1 or more", ("0",)),
    "events_for": ("one of all, errors, crashed", ("some",)),
    "user_agent": ("a printable text", ("two\nlines",)),
    "project": ("a printable text", (5,)),
    "page_size": ("a whole number from 1 to 1000", (True, [], 0, 5000, Decimal("0.5"), 10**400)),
    "request_timeout": (
        "a number above 0, 86400 at most",
        ("1e10", "soon", "nan", "inf", Decimal("1e400")),
    ),
    "max_runtime_minutes": ("a number above 0", ("null", "0")),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (_, values) in RULES.items() for value in values]
)
def test_a_wrong_setting_is_named_and_a_password_is_not(name: str, value: object) -> None:
    """One problem comes of one wrong value, which it has unless that holds a secret."""
    with pytest.raises(ConfigValidationError) as caught:
        Settings.from_config({"api_key": "bp_x", name: value})
    (problem,) = caught.value.errors
    given = float(value) if isinstance(value, Decimal) else value
    assert problem.startswith(f"{name} must be {RULES[name][0]}")
    assert problem.endswith(f", not {'what is set' if 'secret' in str(value) else repr(given)}")


def test_settings_may_be_text_and_empty_text_is_not_set() -> None:
    """What is set comes in its type, what is not with its default."""
    given = {"page_size": "1e2", "request_timeout": Decimal("7.5"), "events_for": "errors"}
    empty = dict.fromkeys(CONFIG_SCHEMA["properties"], "")
    dates = {"start_date": "2026-01-01", "end_date": "2026-01-02T12:00:00+02:00"}
    found = Settings.from_config(empty | {"api_key": "bp_x"} | given | dates)
    assert (found.page_size, found.request_timeout, found.events_for) == (100, 7.5, "errors")
    assert found.requested == Span(
        datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, 10, tzinfo=UTC)
    )
    assert found.lookback == timedelta(days=7)
    for name, setting in CONFIG_SCHEMA["properties"].items():
        if name not in given:
            assert getattr(found, name) == setting.get("default", getattr(found, name))
    assert (found.max_runtime_minutes, found.project, found.user_agent) == (None, None, None)


@pytest.mark.parametrize(
    ("given", "sent"), [({}, r"tap-bugspulse/\d+\.\d+\.\d+"), ({"user_agent": "me"}, "me")]
)
def test_a_request_says_who_sends_it(given: dict[str, str], sent: str) -> None:
    """Its User-Agent is the tap and its version, or what is set."""
    tap = TapBugsPulse(config={"api_key": "bp_x", **given})
    stream = t.cast("BugsPulseStream", tap.streams["crashes"])
    request = stream.build_prepared_request(method="GET", url=stream.get_url(None))
    assert re.fullmatch(sent, str(request.headers["User-Agent"]))


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("https://api.example", "https://api.example/export"),
        ("https://api.example/", "https://api.example/export"),
        ("https://api.example/a/", "https://api.example/a"),
        ("http://[::1]:8000/export", "http://[::1]:8000/export"),
        ("http://localhost:8000", "http://localhost:8000/export"),
        ("https://[fe80::1]/@team", "https://[fe80::1]/@team"),
    ],
)
def test_an_address_has_a_path_and_no_slash_at_its_end(given: str, used: str) -> None:
    """A bare host is that of the API's own path."""
    assert Settings.from_config({"api_key": "bp_x", "api_url": given}).api_url == used


def test_all_that_is_wrong_is_said_at_once() -> None:
    """Two wrong settings, dates the wrong way round and a missing key make four problems."""
    dates = {"start_date": "2026-01-01", "end_date": "2025-01-01"}
    with pytest.raises(ConfigValidationError) as caught:
        Settings.from_config({"page_size": 0, "lookback_days": -1, **dates})
    names = [problem.split()[0] for problem in caught.value.errors]
    assert sorted(names) == ["api_key", "end_date", "lookback_days", "page_size"]
    assert "end_date must be after start_date (2026-01-01), not '2025-01-01'" in str(caught.value)


def test_a_config_file_that_cannot_be_read_is_named_and_not_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Broken JSON and a missing file end the run with 1, in one line each."""
    command = TapBugsPulse.get_singer_command()
    broken = tmp_path / "broken.json"
    broken.write_text('{"api_key": "bp_secret"')
    for path in (broken, tmp_path / "none.json"):
        caplog.clear()
        arguments = ["--config", "ENV", "--config", str(path)]
        with pytest.raises(SystemExit) as ended:
            command.make_context("tap", arguments)
        assert ended.value.code == 1
        (line,) = caplog.messages
        assert f"the file given with --config ENV {path} cannot be read" in line
        assert "secret" not in line
