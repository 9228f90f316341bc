"""`meltano run` into JSON lines and CSV files, and what DuckDB reads from them."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import duckdb
import pytest

from tests.pipeline.children import CHECKOUT
from tests.pipeline.meltano import MeltanoProject
from tests.pipeline.truth import KEYS, Rows, assert_same, change, held, tap_settings
from tests.pipeline.warehouse import TIMES
from tests.sandbox import Options, Sandbox, generate

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.pipeline

LATEST = CHECKOUT / "examples" / "duckdb" / "latest.sql"
NUMBERS = {"eventCount", "duration", "occurrenceCount", "affectedDevices"}
NUMBERS |= {"sequenceNumber", "statusCode"}
EXTRA = {"experiment": {"arm": "ü", "share": 0.5}}


def test_files_hold_every_row_and_a_second_run_adds_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON lines grow, CSV files are one to a run, and DuckDB finds the latest rows."""
    meltano = MeltanoProject(tmp_path / "project")
    output = meltano.directory / "output"
    project = generate(1, 60, 5, datetime.now(UTC), crash_groups=6)
    # What is hard to write: a field that the reference does not have, fractions, quotes.
    session, *_ = project.sessions
    project.sessions[session] |= EXTRA
    full = next(events for events in project.events.values() if events)
    full[0]["data"] = {"price": 12.5, "note": 'a "b",\n ü; \\', "none": None}
    run = ("tap-bugspulse", "target-jsonl", "tap-bugspulse", "target-csv")

    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        assert meltano.run(*run, settings=tap_settings(sandbox)) == 0
        first = truth(held(project))
        assert_same(json_lines(output), first)
        assert_same(csv_rows(output), first)

        changed = change(project)
        assert meltano.run(*run, settings=tap_settings(sandbox)) == 0
        second = truth(held(project))

    latest = {
        "sessions": [row for row in second["sessions"] if row["id"] in changed],
        "events": [row for row in second["events"] if row["sessionId"] in changed],
        "crashes": second["crashes"],
    }
    for read in (json_lines, csv_rows):
        rows = read(output)
        for stream, again in latest.items():
            added = rows[stream][len(first[stream]) :]
            assert_same({stream: added}, {stream: again})
        assert len(rows["network"]) == len(second["network"])

    monkeypatch.chdir(meltano.directory)
    assert_same(by_duckdb(), second)


def truth(rows: Rows) -> Rows:
    """Return rows with what the tap makes of the field that is not in the reference."""
    for row in rows["sessions"]:
        if "experiment" in row:
            row["_extra"] = {"experiment": row.pop("experiment")}
    return rows


def json_lines(output: Path) -> Rows:
    """Read all that target-jsonl has written."""
    texts = {stream: (output / f"{stream}.jsonl").read_text("utf-8") for stream in KEYS}
    return {stream: list(map(json.loads, text.splitlines())) for stream, text in texts.items()}


def csv_rows(output: Path) -> Rows:
    """Read all that target-csv has written, its text in the API's forms."""
    rows: Rows = {stream: [] for stream in KEYS}
    for stream in KEYS:
        for path in sorted(output.glob(f"{stream}-*.csv")):
            with path.open(encoding="utf-8", newline="") as file:
                rows[stream] += [
                    {name: plain(name, text) for name, text in row.items()}
                    for row in csv.DictReader(file)
                ]
    return rows


def plain(name: str, text: str) -> object:
    """Return a text of a CSV file as the API has it."""
    if not text:
        return None
    if name in {"data", "_extra"}:
        return json.loads(text)
    if any(column.endswith(f".{name}") for column in TIMES):
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
    if text in {"True", "False"}:
        return text == "True"
    if name in NUMBERS:
        return int(text)
    return text


def by_duckdb() -> Rows:
    """Read the latest rows as the example does, having compared its two ways."""
    database = duckdb.connect()
    database.execute(LATEST.read_text("utf-8"))
    rows = {
        stream: [
            json.loads(line)
            for (line,) in database.execute(
                f"from latest('output/{stream}*.jsonl', {[f'$.{key}' for key in keys]})"
            ).fetchall()
        ]
        for stream, keys in KEYS.items()
    }
    for stream in ("sessions", "events"):
        found = database.execute(f"from {stream}")
        names = [column[0] for column in found.description]
        columns = [
            {name: of_duckdb(name, value) for name, value in zip(names, row, strict=True)}
            for row in found.fetchall()
        ]
        assert set(names) >= set(rows[stream][0]) - {"_extra"}
        expected = [
            {name: value for name, value in row.items() if name in names} for row in rows[stream]
        ]
        assert_same({stream: columns}, {stream: expected})
    return rows


def of_duckdb(name: str, value: object) -> object:
    """Return a value of a column as the API has it."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds") + "Z"
    return json.loads(value) if name in {"data", "_extra"} and isinstance(value, str) else value
