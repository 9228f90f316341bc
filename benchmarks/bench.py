"""Runs the taps that are compared, each as a process of its own, and counts.

A run writes its messages to a file; its CPU time and peak memory are what the operating
system counted. What is measured is in `benchmarks.parts`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
import typing as t
import urllib.request
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

# Nothing large is imported here: on Linux the peak memory of a child counts from that
# of the process that started it.

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

OURS, STOCK, LOOP = "tap-bugspulse", "stock SDK tap", "loop"
TAPS = (OURS, STOCK)
COMMANDS = {
    OURS: [sys.executable, "-m", "tap_bugspulse"],
    STOCK: [sys.executable, "-m", "benchmarks.stock_tap"],
    LOOP: [sys.executable, "-m", "benchmarks.loop"],
}
ROOT = Path(__file__).parent.parent
PAGE = 1000
API_KEY = "bp_bench"
UNLIMITED = 1_000_000
PACKAGES = ("singer-sdk", "requests", "msgspec", "simplejson")
RECORD = re.compile(rb'\{"type": ?"RECORD", ?"stream": ?"(\w+)"')
STATE = re.compile(rb'\{"type": ?"STATE"')


@dataclass(frozen=True)
class Run:
    """What one process cost, what it wrote, and what the server saw of it."""

    wall: float
    cpu: float
    peak_mb: float
    emitted: Mapping[str, int] = field(default_factory=dict)  # rows by stream
    state: str = ""  # the last one, as JSON
    asked: Mapping[str, int] = field(default_factory=dict)  # requests by endpoint
    refused: int = 0
    server_cpu: float = 0.0

    @property
    def rows(self) -> int:
        """The rows of all streams."""
        return sum(self.emitted.values())

    @property
    def requests(self) -> int:
        """The requests to all endpoints, without those that were refused."""
        return sum(self.asked.values())


class Server:
    """The bench's API, which counts what is asked of it."""

    def __init__(self, ready: dict[str, t.Any]) -> None:
        """Keep what it said when it was ready."""
        self._root = ready["url"]
        self.url = f"{self._root}/export"
        self.rows: dict[str, int] = ready["rows"]
        self.pages = {name: math.ceil(rows / PAGE) for name, rows in self.rows.items()}

    def counts(self) -> dict[str, t.Any]:
        """Return the requests since the last call, by endpoint, and all CPU seconds."""
        with urllib.request.urlopen(f"{self._root}/counts") as answer:  # noqa: S310 - http
            return t.cast("dict[str, t.Any]", json.load(answer))


@contextlib.contextmanager
def serving(**options: object) -> Iterator[Server]:
    """Run ``benchmarks.server`` in a process of its own, with options of its command line."""
    command = [sys.executable, "-m", "benchmarks.server"]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with subprocess.Popen(  # noqa: S603 - our own server
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        line = process.stdout.readline()
        if not line:
            sys.exit("the server did not start, see above")
        yield Server(json.loads(line))
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
        process = subprocess.Popen(  # noqa: S603 - what is compared
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=ROOT, env=env
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
        self.folder = folder
        self._catalogs: dict[str, dict[str, t.Any]] = {}
        for tap in TAPS:
            self._catalogs[tap] = self._said(tap, "--discover")
        about = self._said(OURS, "--about", "--format", "json")
        self._settings = set(about["settings"]["properties"])

    def _said(self, tap: str, *arguments: str) -> dict[str, t.Any]:
        out = self.folder / "out"
        measure([*COMMANDS[tap], *arguments], out)
        return t.cast("dict[str, t.Any]", json.loads(out.read_text()))

    def load(
        self,
        tap: str,
        url: str,
        streams: Sequence[str],
        settings: Mapping[str, object] | None = None,
        state: str = "",
    ) -> Run:
        """Run a tap to its end and count what it wrote.

        Args:
            tap: Which of them.
            url: Where its API is.
            streams: Those that are selected.
            settings: More settings of ours, as far as it has them.
            state: The last state of the run before, as JSON; none by default.

        Raises:
            SystemExit: If it fails.
        """
        # Runs against different servers may take place at the same time.
        folder = self.folder / str(urlsplit(url).port)
        folder.mkdir(exist_ok=True)
        out = folder / "messages.jsonl"
        arguments = [url, *streams]
        if tap in TAPS:
            files = {
                "config": self._config(tap, url, settings or {}),
                "catalog": self._catalog(tap, streams),
            }
            if state:
                files["state"] = json.loads(state)
            for name, content in files.items():
                (folder / f"{name}.json").write_text(json.dumps(content))
            arguments = [f"--{name}={folder / name}.json" for name in files]
        run = measure([*COMMANDS[tap], *arguments], out)
        emitted, last = _messages(out)
        return replace(run, emitted=emitted, state=last)

    def _config(self, tap: str, url: str, settings: Mapping[str, object]) -> dict[str, object]:
        config: dict[str, object] = {"api_url": url, "api_key": API_KEY}
        if tap == OURS:
            config["requests_per_minute"] = UNLIMITED
            config |= {name: settings[name] for name in settings if name in self._settings}
        return config

    def _catalog(self, tap: str, streams: Sequence[str]) -> dict[str, t.Any]:
        catalog: dict[str, t.Any] = json.loads(json.dumps(self._catalogs[tap]))
        for stream in catalog["streams"]:
            for entry in stream["metadata"]:
                if not entry["breadcrumb"]:
                    entry["metadata"]["selected"] = stream["tap_stream_id"] in streams
        return catalog

    def sync(
        self,
        tap: str,
        server: Server,
        streams: Sequence[str],
        settings: Mapping[str, object] | None = None,
        state: str = "",
    ) -> Run:
        """Do what `load` does and count what the server was asked.

        Raises:
            SystemExit: If it has no state and emits other than each row once.
        """
        before = server.counts()["cpu_seconds"]
        run = self.load(tap, server.url, streams, settings, state)
        counts = server.counts()
        wanted = sum(server.rows[stream] for stream in streams)
        if run.rows != wanted and not state:
            sys.exit(f"{tap} emitted {run.rows} rows, but there are {wanted}")
        asked = counts["requests"]
        refused = asked.pop("429", 0)
        used = counts["cpu_seconds"] - before
        return replace(run, asked=asked, refused=refused, server_cpu=used)

    def in_turn(
        self,
        repeat: int,
        server: Server,
        streams: Sequence[str],
        taps: Sequence[str] = TAPS,
        settings: Mapping[str, object] | None = None,
    ) -> dict[str, list[Run]]:
        """Run taps several times, one after the other, so that all see the same."""
        runs: dict[str, list[Run]] = {tap: [] for tap in taps}
        for _ in range(repeat):
            for tap, of_tap in runs.items():
                of_tap.append(self.sync(tap, server, streams, settings))
        return runs


def _messages(out: Path) -> tuple[dict[str, int], str]:
    """Return the number of records by stream, and the last state as JSON."""
    emitted: Counter[str] = Counter()
    last = b""
    with out.open("rb") as lines:
        for line in lines:
            if record := RECORD.match(line):
                emitted[record[1].decode()] += 1
            elif STATE.match(line):
                last = line
    return emitted, json.dumps(json.loads(last)["value"]) if last else ""


def machine() -> str:
    """Return what the numbers come from; no name of a host or a folder."""
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
