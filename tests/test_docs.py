"""README and code say the same."""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

from tap_bugspulse.settings import CONFIG_SCHEMA
from tests.running import PRIMARY_KEYS, select, sync

if t.TYPE_CHECKING:
    from datetime import datetime

    from tests.sandbox import Sandbox

README = (Path(__file__).parent.parent / "README.md").read_text()


def table(heading: str) -> list[list[str]]:
    """Give the cells of the first table below a heading, without its head."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_settings_table_is_the_settings() -> None:
    """README lists every setting in order with its default."""
    rows = table("Settings")
    assert [row[0].strip("`") for row in rows] == list(CONFIG_SCHEMA["properties"])
    for name, default, _ in rows:
        setting = CONFIG_SCHEMA["properties"][name.strip("`")]
        if "default" in setting:
            assert default.strip("`") == str(setting["default"])


def test_the_streams_table_is_the_catalog(now: datetime) -> None:
    """README lists every stream with its primary key and replication."""
    rows = {row[0].strip("`"): row for row in table("Streams")}
    streams = select(now, *PRIMARY_KEYS)["streams"]
    assert set(rows) == {stream["stream"] for stream in streams}
    for stream in streams:
        _, keys, replication, _ = rows[stream["stream"]]
        assert tuple(re.findall("`(.*?)`", keys)) == tuple(stream["key_properties"])
        if stream["replication_method"] == "INCREMENTAL":
            assert replication == f"incremental on `{stream['replication_key']}`"


def test_the_example_state_has_the_keys_of_a_real_one(
    sandbox: Sandbox, now: datetime
) -> None:
    """The state in README has the bookmarks and keys that a run writes."""
    example = json.loads(README.split("```json\n", 1)[1].split("```", 1)[0])
    state = sync(sandbox, now, start_date="2026-01-01").state
    assert state["bookmarks"].keys() == example["bookmarks"].keys()
    for stream, bookmark in state["bookmarks"].items():
        assert bookmark.keys() == example["bookmarks"][stream].keys()
