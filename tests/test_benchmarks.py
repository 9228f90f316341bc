"""The bench compares programs that do the same, against a server that counts right."""

from __future__ import annotations

import json
import typing as t
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest

from benchmarks import parts
from benchmarks.__main__ import main
from benchmarks.bench import COMMANDS, LOOP, OURS, STOCK, TAPS, Bench, serving
from tests.running import PRIMARY_KEYS, Output

if t.TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.bench import Server

pytestmark = pytest.mark.sources

LISTINGS = ("sessions", "crashes", "network")


def listed(server: Server, query: str) -> dict[str, t.Any]:
    """Ask the bench's server for a page."""
    with urllib.request.urlopen(f"{server.url}/{query}") as answer:  # noqa: S310 - http
        assert answer.headers["Content-Type"] == "application/json"
        return t.cast("dict[str, t.Any]", json.load(answer))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """Run the bench on little; return the cells of the lines of its tables, but rules."""
    sizes = ["--sessions=9", "--network=20", "--state-sessions=9", "--repeat=1"]
    main([*arguments, *sizes, "--limit-sessions=3", "--limit-network=5"])
    out = capsys.readouterr().out
    assert out.startswith("Measured on: ")
    lines = [line.strip("| ") for line in out.splitlines() if line.startswith("|")]
    return [line.split(" | ") for line in lines if not line.startswith("---")]


@pytest.mark.long
def test_all_emit_the_same_rows(tmp_path: Path) -> None:
    """Ours, the stock tap and the loop give the same rows, each of them once."""
    bench = Bench(tmp_path)
    found: dict[str, Output] = {}
    with serving(sessions=12, events=3, network=30) as server:
        assert server.rows.items() >= {"sessions": 12, "events": 36, "network": 30}.items()
        messages = tmp_path / str(urlsplit(server.url).port) / "messages.jsonl"
        for tap in COMMANDS:
            streams = tuple(PRIMARY_KEYS) if tap in TAPS else LISTINGS
            run = bench.sync(tap, server, streams)
            found[tap] = Output.read(messages.read_text())
            counts = {name: server.rows[name] for name in streams}
            assert run.rows == sum(counts.values())
            assert {name: run.emitted[name] for name in streams} == counts
            assert run.requests >= len(LISTINGS) + (12 if tap in TAPS else 0)
            assert json.loads(run.state or "{}") == found[tap].state
            assert bool(run.state) == (tap in TAPS)
            assert run.refused == 0
            assert run.cpu > 0
            assert run.peak_mb > 1
    for stream, key in PRIMARY_KEYS.items():
        assert found[OURS].repeated(stream) == []
        for tap in (STOCK, LOOP) if stream in LISTINGS else (STOCK,):
            rows = [{**row, "_extra": None} for row in found[tap].rows(stream)]
            assert len(rows) == server.rows[stream]
            assert found[OURS].table(stream) == {tuple(r[k] for k in key): r for r in rows}


def test_the_newest_row_is_as_old_as_asked_for() -> None:
    """A project that has been silent for some days ends as long ago."""
    with serving(sessions=2000, network=3000, days_silent=10) as server:
        for listing, column in (("sessions", "startedAt"), ("network", "timestamp")):
            newest = listed(server, f"{listing}?limit=1")["data"][0][column]
            age = datetime.now(UTC) - datetime.fromisoformat(newest)
            assert timedelta(days=10) < age < timedelta(days=11)


def test_the_server_counts_windows_pages_and_the_limit() -> None:
    """Windows that touch hold every row once, and the request too many gets a 429."""
    with serving(sessions=30, network=90, requests_per_minute=6) as server:
        pages = [listed(server, f"network?limit=50&page={number}") for number in (1, 2)]
        assert (pages[0]["total"], pages[0]["pages"], pages[0]["limit"]) == (90, 2, 50)
        rows = pages[0]["data"] + pages[1]["data"]
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
def test_cpu_has_a_line_for_each_program(capsys: pytest.CaptureFixture[str]) -> None:
    """The loop is a ceiling for new rows; rows that are old have a table of their own."""
    cells = printed(capsys, "--only", "cpu", "limit", "--skip", "limit")
    assert [line[0] for line in cells] == ["tap", *COMMANDS, "tap", *TAPS]
    assert {len(line) for line in cells} == {8}


@pytest.mark.long
def test_a_second_run_is_given_the_state(capsys: pytest.CaptureFixture[str]) -> None:
    """It emits nothing again where nothing has happened since, lately or for long."""
    head, *lines = printed(capsys, "--only", "nothing_new")
    assert [line[0] for line in lines] == ["new", "21 days old"]
    for line in lines:
        assert len(line) == len(head)
        assert int(line[1]) >= 9
        assert 0 < int(line[2]) < int(line[1])
        assert line[4:7] == ["0", "0", "0"]


@pytest.mark.long
def test_a_listing_grows_while_it_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    """The requests for one window are counted, whose pages are as many as wanted."""
    head, *lines = printed(capsys, "--only", "growing")
    assert [line[0] for line in lines] == ["1", "as set"]
    for line in lines:
        assert len(line) == len(head)
        assert int(line[1]) >= int(line[2]) >= parts.GROWING_PAGES
        assert int(line[5]) >= parts.GROWING_ROWS


@pytest.mark.long
def test_runs_under_the_limit_take_place_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each latency has a server and a run of its own, and a line."""
    monkeypatch.setattr(parts, "TO_FLOOR", {0.01: 1.05, 0.02: 1.1})
    head, *lines = printed(capsys, "--only", "limit")
    assert [line[0] for line in lines] == ["0.01", "0.02"]
    for line in lines:
        assert len(line) == len(head)
        assert int(line[1]) >= int(line[2]) == 5
        assert line[7] == "0"
