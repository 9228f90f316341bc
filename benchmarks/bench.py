"""Measures what the tap costs, next to a stock SDK tap, and prints it as Markdown.

``python -m benchmarks`` runs all parts, which takes about half an hour; most of it is
the part ``limit``, which waits for real minutes: ``--skip limit`` leaves it out. Each
run is a process of its own that writes its messages to a file; its CPU time and peak
memory are what the operating system counted. The taps take turns, the table has medians.
Ratios within one run can be compared; numbers of two machines cannot.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t
import urllib.request
from dataclasses import dataclass
from pathlib import Path

# Nothing large is imported here: on Linux the peak memory of a child counts from that
# of the process that started it.

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OURS, STOCK = "tap-bugspulse", "stock SDK tap"
COMMANDS = {
    OURS: [sys.executable, "-m", "tap_bugspulse"],
    STOCK: [sys.executable, "-m", "benchmarks.stock_tap"],
}
ROOT = Path(__file__).parent.parent
PAGE = 1000
PER_MINUTE = 60
UNLIMITED = 1_000_000
LATENCIES = (0.05, 1.0, 3.0)
PACKAGES = ("singer-sdk", "requests", "requests-ratelimiter", "msgspec", "simplejson")


@dataclass(frozen=True)
class Run:
    """What one process cost, and what the server saw of it."""

    wall: float
    cpu: float
    peak_mb: float
    rows: int = 0
    requests: int = 0
    refused: int = 0
    server_cpu: float = 0.0


class Server:
    """The bench's API, in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Wait until it is ready."""
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        line = process.stdout.readline()
        if not line:
            sys.exit("the bench's server did not start, see above")
        ready = json.loads(line)
        self._root = ready["url"]
        self.url = f"{self._root}/export"
        self.rows: dict[str, int] = ready["rows"]
        self.pages = {name: math.ceil(rows / PAGE) for name, rows in self.rows.items()}

    def counts(self) -> dict[str, t.Any]:
        """Give the requests since the last call, by endpoint, and all CPU seconds."""
        with urllib.request.urlopen(f"{self._root}/counts") as answer:  # noqa: S310 - http
            return t.cast("dict[str, t.Any]", json.load(answer))


@contextlib.contextmanager
def serving(**options: object) -> Iterator[Server]:
    """Serve a made-up project; the options are those of ``benchmarks.server``."""
    command = [sys.executable, "-m", "benchmarks.server"]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with subprocess.Popen(  # noqa: S603 - our own server
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        yield Server(process)
        # Leaving closes its standard input, and it ends.


def measure(command: Sequence[str], out: Path) -> Run:
    """Run a command to its end, its output to a file.

    Raises:
        SystemExit: If it fails.
    """
    errors = out.with_suffix(".log")
    # Settings of whoever runs the bench are none of the tap's.
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TAP_", "SINGER_SDK_"))
    }
    began = time.monotonic()
    with out.open("wb") as stdout, errors.open("wb") as stderr:
        process = subprocess.Popen(  # noqa: S603 - one of the two taps
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=ROOT,
            env=env,
        )
        _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = errors.read_text().strip().split("\n")[-1]
        sys.exit(f"{' '.join(command)} ended with {process.returncode}: {last}")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return Run(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / unit)


class Bench:
    """Runs the taps against servers and keeps their files in a folder."""

    def __init__(self, folder: Path) -> None:
        """Ask both taps for their catalogs, and ours for its settings."""
        self._folder = folder
        self._catalogs: dict[str, dict[str, t.Any]] = {}
        for tap in COMMANDS:
            self._catalogs[tap] = self._asked(tap, "--discover")
        about = self._asked(OURS, "--about", "--format", "json")
        self._settings = set(about["settings"]["properties"])

    def _asked(self, tap: str, *arguments: str) -> dict[str, t.Any]:
        out = self._folder / "out"
        measure([*COMMANDS[tap], *arguments], out)
        return t.cast("dict[str, t.Any]", json.loads(out.read_text()))

    def sync(
        self, tap: str, server: Server, streams: Sequence[str], **settings: object
    ) -> Run:
        """Run a tap without a state, and see that it emitted each row once.

        Args:
            tap: Which of the two.
            server: What it talks to.
            streams: Those that are selected.
            settings: More settings of ours, as far as it has them.

        Raises:
            SystemExit: If it fails or has other than the server's rows.
        """
        catalog = json.loads(json.dumps(self._catalogs[tap]))
        for stream in catalog["streams"]:
            for entry in stream["metadata"]:
                if not entry["breadcrumb"]:
                    entry["metadata"]["selected"] = stream["tap_stream_id"] in streams
        config: dict[str, object] = {"api_url": server.url, "api_key": "bp_bench"}
        if tap == OURS:
            known = {name: settings[name] for name in settings if name in self._settings}
            config |= {"requests_per_minute": UNLIMITED, **known}
        for name, content in (("config", config), ("catalog", catalog)):
            (self._folder / f"{name}.json").write_text(json.dumps(content))
        arguments = [
            f"--{name}={self._folder / name}.json" for name in ("config", "catalog")
        ]
        before = server.counts()["cpu_seconds"]
        out = self._folder / "messages.jsonl"
        run = measure([*COMMANDS[tap], *arguments], out)
        counts = server.counts()
        rows = _records(out)
        wanted = sum(server.rows[stream] for stream in streams)
        if rows != wanted:
            sys.exit(f"{tap} emitted {rows} rows, but there are {wanted}")
        requests = counts["requests"]
        refused = requests.pop("429", 0)
        return Run(
            run.wall,
            run.cpu,
            run.peak_mb,
            rows,
            sum(requests.values()),
            refused,
            counts["cpu_seconds"] - before,
        )

    # --- The parts -------------------------------------------------------------------

    def cpu(self, given: argparse.Namespace) -> Iterator[str]:
        """Rows per CPU second, peak memory and requests where replies are large."""
        with serving(sessions=given.sessions, network=given.network) as server:
            streams = ("sessions", "network")
            runs = self._in_turn(given.repeat, server, streams)
            floor = sum(server.pages[stream] for stream in streams)
            yield (
                f"### {server.rows['sessions']:,} sessions and "
                f"{server.rows['network']:,} network calls, no limit, no latency\n"
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
                f"{_median(of_tap, lambda run: run.rows / run.cpu):,.0f}",
                f"{_median(of_tap, lambda run: run.cpu):.1f}",
                f"{_median(of_tap, lambda run: run.wall):.1f}",
                f"{_median(of_tap, lambda run: run.peak_mb):.0f}",
                f"{of_tap[0].requests}",
                f"{floor}",
                f"{_median(of_tap, lambda run: run.server_cpu):.1f}",
            )
        ours, stock = (
            _median(runs[tap], lambda run: run.rows / run.cpu) for tap in (OURS, STOCK)
        )
        yield f"\nRows per CPU second: {ours / stock:.2f} times those of the stock SDK tap."

    def memory(self, given: argparse.Namespace) -> Iterator[str]:
        """Peak memory of ten times the rows."""
        yield (
            f"### Peak memory of {given.network_small:,} and "
            f"{10 * given.network_small:,} network calls\n"
        )
        yield from _table("tap", "MB of the few", "MB of the many", "many to few")
        peaks: dict[str, list[float]] = {tap: [] for tap in COMMANDS}
        for network in (given.network_small, 10 * given.network_small):
            with serving(sessions=given.network_small // 8, network=network) as server:
                runs = self._in_turn(given.repeat, server, ("network",))
            for tap, of_tap in runs.items():
                peaks[tap].append(_median(of_tap, lambda run: run.peak_mb))
        for tap, (few, many) in peaks.items():
            yield _line(tap, f"{few:.1f}", f"{many:.1f}", f"{many / few:.3f}")

    def events(self, given: argparse.Namespace) -> Iterator[str]:
        """Wall time where each request takes a moment and nothing is limited."""
        latency = 0.05
        settings = _concurrency(given)
        with serving(sessions=given.event_sessions, events=20, latency=latency) as server:
            streams = ("sessions", "events")
            runs = self._in_turn(given.repeat, server, streams, **settings)
            yield (
                f"### {server.rows['sessions']:,} sessions with 20 events each, "
                f"{latency * 1000:.0f} ms of latency, no limit\n"
            )
            floor = server.pages["sessions"] + server.rows["sessions"]
        yield from _table("tap", "wall s", "CPU s", "peak MB", "requests", "floor")
        for tap, of_tap in runs.items():
            yield _line(
                tap,
                f"{_median(of_tap, lambda run: run.wall):.1f}",
                f"{_median(of_tap, lambda run: run.cpu):.1f}",
                f"{_median(of_tap, lambda run: run.peak_mb):.0f}",
                f"{of_tap[0].requests}",
                f"{floor}",
            )
        ours, stock = (_median(runs[tap], lambda run: run.wall) for tap in (OURS, STOCK))
        yield f"\nWall time: {ours / stock:.3f} of the stock SDK tap's."

    def limit(self, given: argparse.Namespace) -> Iterator[str]:
        """Wall time under the real limit, against what it allows at best."""
        yield f"### Under {PER_MINUTE} requests a minute\n"
        yield from _table(
            "latency s", "requests", "needed", "wall s", "floor s", "wall to floor", "429s"
        )
        for latency in LATENCIES:
            with serving(
                sessions=given.limit_sessions,
                events=3,
                network=given.limit_network,
                latency=latency,
                requests_per_minute=PER_MINUTE,
            ) as server:
                run = self.sync(
                    OURS,
                    server,
                    ("sessions", "events", "network"),
                    requests_per_minute=PER_MINUTE,
                    **_concurrency(given),
                )
                needed = server.pages["sessions"] + server.pages["network"]
                needed += server.rows["sessions"]
            # The first minute's requests are free, each further minute allows as many.
            floor = 60.0 * (math.ceil(needed / PER_MINUTE) - 1)
            yield _line(
                f"{latency:g}",
                f"{run.requests}",
                f"{needed}",
                f"{run.wall:.1f}",
                f"{floor:.0f}",
                f"{run.wall / floor:.3f}" if floor else "-",
                f"{run.refused}",
            )

    def startup(self, given: argparse.Namespace) -> Iterator[str]:
        """CPU time and wall time of what starts and ends."""
        commands = {
            "`python -c pass`": [sys.executable, "-c", "pass"],
            "`python -c 'import singer_sdk'`": [sys.executable, "-c", "import singer_sdk"],
        }
        for tap, command in COMMANDS.items():
            for option in ("--version", "--discover"):
                commands[f"{tap} `{option}`"] = [*command, option]
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for _ in range(3 * given.repeat):
            for name, command in commands.items():
                runs[name].append(measure(command, self._folder / "out"))
        yield "### Start-up\n"
        yield from _table("process", "CPU s", "wall s", "peak MB")
        for name, of_command in runs.items():
            yield _line(
                name,
                f"{_median(of_command, lambda run: run.cpu):.2f}",
                f"{_median(of_command, lambda run: run.wall):.2f}",
                f"{_median(of_command, lambda run: run.peak_mb):.0f}",
            )

    def _in_turn(
        self, repeat: int, server: Server, streams: Sequence[str], **settings: object
    ) -> dict[str, list[Run]]:
        """Run both taps several times, one after the other, so that both see the same."""
        runs: dict[str, list[Run]] = {tap: [] for tap in COMMANDS}
        for _ in range(repeat):
            for tap, of_tap in runs.items():
                of_tap.append(self.sync(tap, server, streams, **settings))
        return runs


PARTS = {
    "cpu": Bench.cpu,
    "memory": Bench.memory,
    "events": Bench.events,
    "startup": Bench.startup,
    "limit": Bench.limit,
}


def _concurrency(given: argparse.Namespace) -> dict[str, object]:
    return {} if given.concurrency is None else {"concurrency": given.concurrency}


def _records(messages: Path) -> int:
    with messages.open("rb") as lines:
        return sum(line.startswith(b'{"type":"RECORD"') for line in lines)


def _median(runs: Sequence[Run], number: t.Callable[[Run], float]) -> float:
    return statistics.median(map(number, runs))


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _table(*heads: str) -> Iterator[str]:
    yield _line(*heads)
    yield _line("---", *("---:" for _ in heads[1:]))


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the tables are what the bench is for


def machine() -> str:
    """Say what the numbers come from; no name of a host or a folder."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return (
        f"{model}, {os.cpu_count()} cores; {platform.system()}; "
        f"{platform.python_implementation()} {platform.python_version()}; {versions}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for and print their tables as they are done."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--skip", nargs="+", choices=PARTS, default=[])
    parser.add_argument("--repeat", type=int, default=3, help="runs of each tap and part")
    parser.add_argument("--sessions", type=int, default=200_000, help="of cpu")
    parser.add_argument("--network", type=int, default=300_000, help="of cpu")
    parser.add_argument("--network-small", type=int, default=40_000, help="of memory")
    parser.add_argument("--event-sessions", type=int, default=2_000, help="of events")
    parser.add_argument("--limit-sessions", type=int, default=190, help="of limit")
    parser.add_argument("--limit-network", type=int, default=85_000, help="of limit")
    parser.add_argument(
        "--concurrency", type=int, help="the tap's setting, in events and limit"
    )
    given = parser.parse_args(arguments)
    _say(f"Measured on: {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for name in given.only:
            if name not in given.skip:
                _say("")
                for text in PARTS[name](bench, given):
                    _say(text)


if __name__ == "__main__":
    main()
