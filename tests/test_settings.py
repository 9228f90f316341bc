"""What settings may be, and what is said of those that may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tap_bugspulse.settings import Settings, SettingsError
from tap_bugspulse.tap import TapBugsPulse

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("api_url", "https://api.example:port", "api_url must be an https URL"),
        ("api_url", 5, "api_url must be an https URL"),
        ("api_url", "http://api.example", "or http on loopback"),
        ("api_url", "https://me:secret@api.example", "without a user name or password"),
        ("user_agent", "two\nlines", "user_agent must be a printable text"),
        ("project", 5, "project must be a printable text"),
        ("page_size", True, "page_size must be a whole number from 1 to 1000"),
        ("page_size", [], "page_size must be a whole number from 1 to 1000"),
        ("request_timeout", "nan", "request_timeout must be a number above 0"),
    ],
)
def test_a_wrong_setting_is_named_and_a_password_is_not(
    name: str, value: object, says: str
) -> None:
    """One problem comes of one wrong value, and it holds no secret."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_config({"api_key": "bp_x", name: value})
    (problem,) = caught.value.problems
    assert says in problem
    assert "secret" not in problem


def test_all_that_is_wrong_is_said_at_once() -> None:
    """Two wrong settings and a missing key make three problems."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_config({"page_size": 0, "lookback_days": -1})
    names = [problem.split()[0] for problem in caught.value.problems]
    assert sorted(names) == ["api_key", "lookback_days", "page_size"]


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
        assert line.endswith(f": {path}")
        assert "secret" not in line
