"""The parts of the bench: what is measured, and what is wanted of the numbers.

Each part is a generator of the lines that are printed. The taps take turns; the tables
have medians, but of requests the most that a run has sent.
"""

from __future__ import annotations

import math
import statistics
import sys
import typing as t
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime

from benchmarks.bench import API_KEY, COMMANDS, OURS, STOCK, TAPS, measure, serving
from tests.sandbox import Options, Sandbox, generate

if t.TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.bench import Bench, Run, Server

# What is wanted at the default sizes.
TIMES_STOCK = 4  # rows per CPU second
MORE_REQUESTS = 30  # than needed
SHARE_OF_STOCK = 0.1  # wall time of events
QUIET_REQUESTS = 14
GROWING_REQUESTS = 18
TO_FLOOR = {0.05: 1.05, 1.0: 1.1, 3.0: 1.2}  # wall time by latency, under the limit

PER_MINUTE = 60
OLD_DAYS = 10  # of the newest row of cpu's second project
SILENT_DAYS = 21  # of nothing_new's
EVENT_LATENCY = GROWING_LATENCY = 0.05
# So many rows that those which come with the requests wanted fill the last page.
GROWING_PAGES, GROWING_PAGE = 12, 20
GROWING_ROWS = GROWING_PAGES * GROWING_PAGE - GROWING_REQUESTS


def cpu(bench: Bench, given: argparse.Namespace) -> Iterator[str]:
    """Yield rows per CPU second, peak memory and requests where replies are large."""
    yield from _cpu(bench, given, tuple(COMMANDS), given.repeat)
    yield ""
    yield from _cpu(bench, given, TAPS, max(1, given.repeat - 1), OLD_DAYS)


def _cpu(
    bench: Bench, given: argparse.Namespace, taps: Sequence[str], repeat: int, days_silent: int = 0
) -> Iterator[str]:
    streams = ("sessions", "network")
    with serving(sessions=given.sessions, network=given.network, days_silent=days_silent) as server:
        runs = bench.in_turn(repeat, server, streams, taps)
    floor = sum(server.pages[stream] for stream in streams)
    old = f", the newest {days_silent} days old" if days_silent else ""
    yield (
        f"### {server.rows['sessions']:,} sessions and "
        f"{server.rows['network']:,} network calls{old}, no limit, no latency\n"
    )
    yield from _table(
        "tap",
        "rows per CPU second",
        "CPU s",
        "wall s",
        "peak MB",
        "requests",
        "floor",
        "server's CPU s",
    )
    for tap, of_tap in runs.items():
        yield _line(
            tap,
            f"{_median(of_tap, _speed):,.0f}",
            f"{_median(of_tap, lambda run: run.cpu):.1f}",
            f"{_median(of_tap, lambda run: run.wall):.1f}",
            f"{_median(of_tap, lambda run: run.peak_mb):.0f}",
            _largest(of_tap),
            f"{floor}",
            f"{_median(of_tap, lambda run: run.server_cpu):.1f}",
        )
    yield ""
    ratio = _median(runs[OURS], _speed) / _median(runs[STOCK], _speed)
    yield (
        f"Rows per CPU second: {ratio:.2f} times those of the stock SDK tap; "
        f"wanted: at least {TIMES_STOCK}."
    )
    yield (
        f"\nRequests: {_largest(runs[OURS])} for the {floor} needed; "
        f"wanted: at most {floor + MORE_REQUESTS}."
    )


def memory(bench: Bench, given: argparse.Namespace) -> Iterator[str]:
    """Yield the peak memory of ten times the rows."""
    yield (
        f"### Peak memory of {given.network_small:,} and "
        f"{10 * given.network_small:,} network calls\n"
    )
    yield from _table("tap", "MB of the few", "MB of the many", "many to few")
    peaks: dict[str, list[float]] = {tap: [] for tap in TAPS}
    for network in (given.network_small, 10 * given.network_small):
        with serving(sessions=given.network_small // 8, network=network) as server:
            runs = bench.in_turn(given.repeat, server, ("network",))
        for tap, of_tap in runs.items():
            peaks[tap].append(_median(of_tap, lambda run: run.peak_mb))
    for tap, (few, many) in peaks.items():
        yield _line(tap, f"{few:.1f}", f"{many:.1f}", f"{many / few:.3f}")


def events(bench: Bench, given: argparse.Namespace) -> Iterator[str]:
    """Yield the wall time where each request takes a moment and nothing is limited."""
    with serving(sessions=given.event_sessions, events=20, latency=EVENT_LATENCY) as server:
        streams = ("sessions", "events")
        runs = bench.in_turn(given.repeat, server, streams, settings=_concurrency(given))
    yield (
        f"### {server.rows['sessions']:,} sessions with 20 events each, "
        f"{EVENT_LATENCY * 1000:.0f} ms of latency, no limit\n"
    )
    floor = server.pages["sessions"] + server.rows["sessions"]
    yield from _table("tap", "wall s", "CPU s", "peak MB", "requests", "floor")
    for tap, of_tap in runs.items():
        yield _line(
            tap,
            f"{_median(of_tap, lambda run: run.wall):.1f}",
            f"{_median(of_tap, lambda run: run.cpu):.1f}",
            f"{_median(of_tap, lambda run: run.peak_mb):.0f}",
            _largest(of_tap),
            f"{floor}",
        )
    ours, stock = (_median(runs[tap], lambda run: run.wall) for tap in TAPS)
    yield (
        f"\nWall time: {ours / stock:.3f} of the stock SDK tap's; wanted: at most {SHARE_OF_STOCK}."
    )


def startup(bench: Bench, given: argparse.Namespace) -> Iterator[str]:
    """Yield the CPU time and wall time of what starts and ends."""
    commands = {
        "`python -c pass`": [sys.executable, "-c", "pass"],
        "`python -c 'import singer_sdk'`": [sys.executable, "-c", "import singer_sdk"],
    }
    for tap in TAPS:
        for option in ("--version", "--discover"):
            commands[f"{tap} `{option}`"] = [*COMMANDS[tap], option]
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(3 * given.repeat):
        for name, command in commands.items():
            runs[name].append(measure(command, bench.folder / "out"))
    yield "### Start-up\n"
    yield from _table("process", "CPU s", "wall s", "peak MB")
    for name, of_command in runs.items():
        yield _line(
            name,
            f"{_median(of_command, lambda run: run.cpu):.2f}",
            f"{_median(of_command, lambda run: run.wall):.2f}",
            f"{_median(of_command, lambda run: run.peak_mb):.0f}",
        )


def nothing_new(bench: Bench, given: argparse.Namespace) -> Iterator[str]:
    """Yield what a second run asks for and emits where nothing has happened since."""
    yield f"### {given.state_sessions:,} sessions, loaded again with the state\n"
    yield from _table(
        "newest row",
        "requests at first",
        "again",
        "wanted",
        "sessions again",
        "network",
        "events",
        "wanted",
        "crashes",
    )
    for days, newest in ((0, "new"), (SILENT_DAYS, f"{SILENT_DAYS} days old")):
        with serving(
            sessions=given.state_sessions,
            events=2,
            network=3 * given.state_sessions // 2,
            days_silent=days,
        ) as server:
            streams = tuple(server.rows)
            first = bench.sync(OURS, server, streams)
            again = bench.sync(OURS, server, streams, state=first.state)
        yield _line(
            newest,
            f"{first.requests}",
            f"{again.requests}",
            f"<= {QUIET_REQUESTS}",
            *(f"{again.emitted.get(name, 0)}" for name in ("sessions", "network", "events")),
            "0",
            f"{again.emitted.get('crashes', 0)}",
        )


def growing(bench: Bench, given: argparse.Namespace) -> Iterator[str]:
    """Yield the requests for a listing that gets a row with each of them."""
    yield (
        f"### {GROWING_ROWS} sessions on {GROWING_PAGES} pages of {GROWING_PAGE}, one more "
        "with each request\n"
    )
    yield from _table(
        "concurrency",
        "requests to /sessions",
        "for the window that grows",
        "wanted",
        "last page asked for",
        "rows",
    )
    for name, setting in (("1", {"concurrency": 1}), ("as set", _concurrency(given))):
        now = datetime.now(UTC)
        project = generate(sessions=GROWING_ROWS, days=0.02, until=now, lying_clocks=False)
        options = Options(
            (API_KEY,), requests_per_minute=None, latency=GROWING_LATENCY, new_every=1
        )
        with Sandbox(project, options) as sandbox:
            settings = {"page_size": GROWING_PAGE, **setting}
            run = bench.load(OURS, sandbox.url, ("sessions",), settings)
        if run.rows < GROWING_ROWS:
            sys.exit(f"{run.rows} rows were emitted, but {GROWING_ROWS} were there")
        queries = [one.query for one in sandbox.requests if one.path == "/sessions"]
        windows = Counter((query.get("from"), query.get("to")) for query in queries)
        yield _line(
            name,
            f"{len(queries)}",
            f"{max(windows.values())}",
            f"<= {GROWING_REQUESTS}",
            f"{max(int(query.get('page', 1)) for query in queries)}",
            f"{run.rows}",
        )


def limit(bench: Bench, given: argparse.Namespace) -> Iterator[str]:
    """Yield the wall time under the real limit, against what it allows at best."""
    servers, runs = _limited(bench, given)
    yield f"### Under {PER_MINUTE} requests a minute\n"
    yield from _table(
        "latency s",
        "requests",
        "needed",
        "wall s",
        "floor s",
        "wall to floor",
        "wanted",
        "429s",
        "wanted",
    )
    for (latency, wanted), server, of_latency in zip(TO_FLOOR.items(), servers, runs, strict=True):
        needed = server.pages["sessions"] + server.pages["network"]
        needed += server.rows["sessions"]
        # The first minute's requests are free, each further minute allows as many.
        floor = 60.0 * (math.ceil(needed / PER_MINUTE) - 1)
        yield _line(
            f"{latency:g}",
            f"{of_latency.requests}",
            f"{needed}",
            f"{of_latency.wall:.1f}",
            f"{floor:.0f}",
            f"{of_latency.wall / floor:.3f}" if floor else "-",
            f"<= {wanted:.2f}",
            f"{of_latency.refused}",
            "0",
        )


def _limited(bench: Bench, given: argparse.Namespace) -> tuple[list[Server], list[Run]]:
    """Run ours with each latency, all at once, since they do little but wait."""
    streams = ("sessions", "events", "network")
    settings = {"requests_per_minute": PER_MINUTE, **_concurrency(given)}

    def run(server: Server) -> Run:
        return bench.sync(OURS, server, streams, settings)

    with ExitStack() as stack, ThreadPoolExecutor(len(TO_FLOOR)) as threads:
        servers = [
            stack.enter_context(
                serving(
                    sessions=given.limit_sessions,
                    events=3,
                    network=given.limit_network,
                    latency=latency,
                    requests_per_minute=PER_MINUTE,
                )
            )
            for latency in TO_FLOOR
        ]
        return servers, list(threads.map(run, servers))


PARTS: dict[str, Callable[[Bench, argparse.Namespace], Iterator[str]]] = {
    "cpu": cpu,
    "memory": memory,
    "events": events,
    "startup": startup,
    "nothing_new": nothing_new,
    "growing": growing,
    "limit": limit,
}


def _concurrency(given: argparse.Namespace) -> dict[str, object]:
    return {} if given.concurrency is None else {"concurrency": given.concurrency}


def _speed(run: Run) -> float:
    """Return the rows per CPU second."""
    return run.rows / run.cpu


def _median(runs: Sequence[Run], number: Callable[[Run], float]) -> float:
    return statistics.median(map(number, runs))


def _largest(runs: Sequence[Run]) -> str:
    """Return the number of requests of the run that sent the most."""
    return str(max(run.requests for run in runs))


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _table(*heads: str) -> Iterator[str]:
    yield _line(*heads)
    yield _line("---", *("---:" for _ in heads[1:]))
