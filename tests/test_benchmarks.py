"""The bench compares two taps that do the same, against a server that counts right."""

from __future__ import annotations

import json
import typing as t
import urllib.error
import urllib.request

import pytest

from benchmarks.bench import COMMANDS, OURS, STOCK, Bench, main, serving
from tests.running import PRIMARY_KEYS, Output

if t.TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.bench import Server

LISTINGS = ("sessions", "crashes", "network")


def listed(server: Server, query: str) -> dict[str, t.Any]:
    """Ask the bench's server for a page."""
    with urllib.request.urlopen(f"{server.url}/{query}") as answer:  # noqa: S310 - http
        assert answer.headers["Content-Type"] == "application/json"
        return t.cast("dict[str, t.Any]", json.load(answer))


@pytest.mark.long
def test_both_taps_emit_the_same_rows(tmp_path: Path) -> None:
    """The stock tap and ours give the same rows of every stream, each of them once."""
    bench = Bench(tmp_path)
    found: dict[str, Output] = {}
    with serving(sessions=12, events=3, network=30) as server:
        assert server.rows["sessions"] == 12
        assert server.rows["events"] == 36
        assert server.rows["network"] == 30
        for tap in COMMANDS:
            run = bench.sync(tap, server, tuple(PRIMARY_KEYS))
            found[tap] = Output.read((tmp_path / "messages.jsonl").read_text())
            assert run.rows == sum(server.rows.values())
            assert run.requests >= 12 + len(LISTINGS)
            assert run.refused == 0
            assert run.cpu > 0
            assert run.peak_mb > 1
    for stream in PRIMARY_KEYS:
        rows = [{**row, "_extra": None} for row in found[STOCK].rows(stream)]
        assert len(rows) == server.rows[stream]
        assert found[OURS].repeated(stream) == []
        key = PRIMARY_KEYS[stream]
        assert found[OURS].table(stream) == {tuple(r[k] for k in key): r for r in rows}


def test_the_server_counts_windows_pages_and_the_limit() -> None:
    """Windows that touch hold every row once, and the request too many gets a 429."""
    with serving(sessions=30, network=90, requests_per_minute=6) as server:
        first = listed(server, "network?limit=50")
        second = listed(server, "network?limit=50&page=2")
        assert (first["total"], first["pages"], first["limit"]) == (90, 2, 50)
        rows = first["data"] + second["data"]
        instants = [row["timestamp"] for row in rows]
        assert instants == sorted(instants, reverse=True)
        assert len({row["id"] for row in rows}) == 90
        day = instants[45][:10]
        before = listed(server, f"network?limit=1000&to={day}")
        after = listed(server, f"network?limit=1000&from={day}")
        assert after["data"] + before["data"] == rows
        assert before["total"] + after["total"] == 90
        assert all(row["timestamp"] < day for row in before["data"])
        empty = listed(server, "network?from=9000-01-01")
        assert (empty["data"], empty["total"], empty["pages"]) == ([], 0, 0)
        listed(server, "sessions")
        with pytest.raises(urllib.error.HTTPError) as refused:
            listed(server, "sessions")
        assert refused.value.code == 429
        assert 0 < int(refused.value.headers["Retry-After"]) <= 60
        refused.value.close()
        assert server.counts()["requests"] == {"network": 5, "sessions": 1, "429": 1}
        assert server.counts()["requests"] == {}


@pytest.mark.long
def test_the_bench_prints_a_table_with_both_taps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A part prints its machine, and a table with a line for each tap."""
    sizes = ["--repeat", "1", "--sessions", "9", "--network", "20"]
    main(["--only", "cpu", "limit", "--skip", "limit", *sizes])
    printed = capsys.readouterr().out
    assert printed.startswith("Measured on: ")
    assert "singer-sdk" in printed
    assert "### 9 sessions and 20 network calls" in printed
    lines = [line.split(" | ") for line in printed.splitlines() if line.startswith("|")]
    assert [line[0].strip("| ") for line in lines] == ["tap", "---", *COMMANDS]
    assert {len(line) for line in lines} == {8}
