"""README and code say the same."""

from __future__ import annotations

import json
import re
import typing as t
from datetime import timedelta

import pytest
import yaml  # type: ignore[import-untyped] # it has no types

from tap_bugspulse.settings import CONFIG_SCHEMA
from tests.documents import DOCUMENTS, blocks, table, text
from tests.messages import messages
from tests.running import PRIMARY_KEYS, select, sync
from tests.test_release import script

if t.TYPE_CHECKING:
    from datetime import datetime

    from tests.sandbox import Sandbox

pytestmark = pytest.mark.sources

SHORTEST = 20  # letters of a part of a message that tell it from others


def test_the_settings_table_is_the_settings() -> None:
    """README lists every setting in order with its default."""
    rows = table("README.md", "Settings")
    assert [row[0].strip("`") for row in rows] == list(CONFIG_SCHEMA["properties"])
    for name, default, _ in rows:
        setting = CONFIG_SCHEMA["properties"][name.strip("`")]
        if "default" in setting:
            assert default.strip("`") == str(setting["default"])


def test_the_streams_table_is_the_catalog(now: datetime) -> None:
    """README lists every stream with its primary key and replication."""
    rows = {row[0].strip("`"): row for row in table("README.md", "Streams")}
    streams = select(now, *PRIMARY_KEYS)["streams"]
    assert set(rows) == {stream["stream"] for stream in streams}
    for stream in streams:
        _, keys, replication, _ = rows[stream["stream"]]
        assert tuple(re.findall("`(.*?)`", keys)) == tuple(stream["key_properties"])
        if stream["replication_method"] == "INCREMENTAL":
            assert replication == f"incremental on `{stream['replication_key']}`"
        else:
            whole = {"crashes": "full table, every run", "events": "with their session, "}
            assert replication.startswith(whole[stream["stream"]])


def test_the_example_state_has_the_keys_of_a_real_one(sandbox: Sandbox, now: datetime) -> None:
    """The state in replication.md has the bookmarks and keys that a run writes."""
    (example,) = (one for one in blocks("docs/replication.md") if one.language == "json")
    bookmarks = json.loads(example.text)["bookmarks"]
    state = sync(sandbox, now, start_date="2026-01-01").state
    assert state["bookmarks"].keys() == bookmarks.keys()
    for stream, bookmark in state["bookmarks"].items():
        assert bookmark.keys() == bookmarks[stream].keys()


def test_the_readme_is_read_in_five_minutes() -> None:
    """README has 150 lines at most; what goes further stands in docs/."""
    assert len(text("README.md").splitlines()) <= 150


def test_the_pages_of_docs_stay_short() -> None:
    """README and docs/ have 1,290 lines at most: what is added has something else cut."""
    pages = [one for one in DOCUMENTS if one.startswith(("README", "docs/"))]
    assert sum(len(text(one).splitlines()) for one in pages) <= 1290


def test_a_day_of_calls_has_the_values_that_the_page_names(sandbox: Sandbox, now: datetime) -> None:
    """`days` of a state has four values, the last of them the start_date."""
    (row,) = (row for row in table("docs/replication.md", "The state") if row[0] == "`days`")
    assert "the `start_date` of that reading" in row[1]
    start = f"{(now - timedelta(days=2)).date()}T12:00:00Z"
    days = sync(sandbox, now).state["bookmarks"]["network"]["days"]
    assert {start for *_, start in days.values()} == {"0001-01-01T00:00:00Z"}
    days = sync(sandbox, now, start_date=start).state["bookmarks"]["network"]["days"]
    assert {instant for *_, instant in days.values()} == {start}
    assert {len(values) for values in days.values()} == {4}


# --- Messages -------------------------------------------------------------------------


def explained() -> list[str]:
    """Return the messages that docs/repair.md explains, `…` for each value."""
    section = text("docs/repair.md").split("\n## Messages\n")[1]
    cells = [line.split("|")[1] for line in section.splitlines() if line[:3] == "| `"]
    return [one for cell in cells for one in re.findall("`(.*?)`", cell)]


def test_each_message_that_is_explained_exists() -> None:
    """No line of the troubleshooting tables is about a message the tap cannot print."""
    source = messages()
    long = [one for one in source if len(one) > SHORTEST]
    for message in explained():
        begins = message.rstrip("…")
        assert any(begins in one for one in source) or any(one in message for one in long), message


def test_each_message_is_explained() -> None:
    """Each warning and error that the source can print has a line with its cause and its fix."""
    known = {one.rstrip("…") for one in explained()}
    assert len(known) > 40
    for message in messages():
        assert any(message in one or one in message for one in known), message


# --- Targets --------------------------------------------------------------------------


def test_the_tables_of_targets_are_those_of_meltano_yml() -> None:
    """Each loader has a row that says what is kept, and one with its package and version."""
    loaders = yaml.safe_load(text("meltano.yml"))["plugins"]["loaders"]
    kept = [row[0].strip("`") for row in table("docs/schedule.md", "What is kept")]
    assert sorted(kept) == sorted(one["name"] for one in loaders)
    rows = table("docs/targets.md", "With meltano.yml")
    packages = [f"{row[0].strip('`')}=={row[1]}" for row in rows]
    assert sorted(packages) == sorted(one["pip_url"].split()[0] for one in loaders)
    for package, row in zip(packages, rows, strict=True):
        (loader,) = (one for one in loaders if one["pip_url"].split()[0] == package)
        config = loader.get("config", {}) | loader.get("env", {})
        settings = re.findall(r"`(\w+)(?:: |=)(\w+)`", row[2])
        assert settings or loader["name"] == "target-csv"
        for name, value in settings:
            assert str(config[name]).lower() == value.lower()


# --- Cost -----------------------------------------------------------------------------


def test_the_tables_of_cost_are_computed() -> None:
    """Hours, ceiling and credits follow from the counts that the page gives."""
    cost = script("cost")
    page = "docs/cost.md"
    cells = table(page, "Requests without events")
    numbers = [[int(cell.replace(",", "")) for cell in row] for row in cells]
    found = {row[0]: cost.Counted(*row[1:]) for row in numbers}
    assert list(found) == list(cost.SIZES)
    assert cells == cost.measured_table(found)
    assert table(page, "First load of 30 days") == cost.time_table(found, hourly=False)
    assert table(page, "Hourly run") == cost.time_table(found, hourly=True)
    assert table(page, "The ceiling") == cost.ceiling_table(found)
    assert table(page, "Waking an XS warehouse") == cost.snowflake_table()


def test_the_counts_of_cost_are_measured() -> None:
    """A project makes as many requests as the page says."""
    cost = script("cost")
    cells = {row[0]: row for row in table("docs/cost.md", "Requests without events")}
    for size in cost.FEW:
        assert cost.measured_table({size: cost.measure(size)}) == [cells[f"{size:,}"]]


# --- Tables ---------------------------------------------------------------------------


def test_the_page_of_tables_is_made_from_the_schemas(now: datetime) -> None:
    """docs/tables.md is what its script writes, with the keys of the catalog."""
    tables = script("tables")
    assert text("docs/tables.md") == tables.page()
    assert tables.KEYS == PRIMARY_KEYS
    for stream in select(now, *PRIMARY_KEYS)["streams"]:
        name, columns = stream["stream"], stream["schema"]["properties"]
        assert [row[0].strip("`") for row in table("docs/tables.md", name)] == [*columns]
        assert tables.KEYS[name] == tuple(stream["key_properties"])
