"""An Export API that costs next to nothing: its answers are made before the first request.

``python -m benchmarks.server --sessions 2000`` makes up a project with the sandbox's
generator, writes each row as JSON once, prints one line of JSON when it is ready (url, now
and the number of rows), and serves until its standard input ends. A page is a slice of
those bytes between two lines of envelope, so the server's CPU does not stand in the way
of the tap's. ``GET /counts`` tells what was asked for since it was asked the last time.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import gc
import itertools
import json
import math
import sys
import time
import typing as t
from collections import Counter
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

import msgspec
from typing_extensions import override

from tests.sandbox import Options, Project, generate
from tests.sandbox.server import Allowance

if t.TYPE_CHECKING:
    from collections.abc import Iterable

    Query = dict[str, str]

BASE_PATH = "/export"
ENDPOINTS = ("sessions", "crashes", "network", "events")
MAX_LIMIT = 1000


class Listing:
    """The rows of one endpoint as one run of bytes, newest first."""

    def __init__(self, rows: Iterable[dict[str, t.Any]], instant: str) -> None:
        """Write the rows, ordered by the column that holds their instant."""
        ordered = sorted(rows, key=lambda row: str(row[instant]), reverse=True)
        self._instants = [str(row[instant]) for row in reversed(ordered)]
        written = [msgspec.json.encode(row) + b"," for row in ordered]
        self._offsets = [0, *itertools.accumulate(map(len, written))]
        self._bytes = memoryview(b"".join(written))

    def answer(self, query: Query) -> list[bytes | memoryview]:
        """Return the page that a query asks for, as the pieces of a body."""
        # Text is enough: "2026-01-15" sorts before every instant of that day.
        rows = len(self._instants)
        last = rows - bisect.bisect_left(self._instants, query.get("from", ""))
        first = rows - bisect.bisect_left(self._instants, query.get("to", "~"))
        total, limit = last - first, min(int(query.get("limit", "100")), MAX_LIMIT)
        page, pages = int(query.get("page", "1")), math.ceil((last - first) / limit)
        begin = min(first + (page - 1) * limit, last)
        end = min(begin + limit, last)
        piece = self._bytes[self._offsets[begin] : self._offsets[end] - (end > begin)]
        return [b'{"data":[', piece, _tail(total, page, limit, pages)]


def _tail(total: int, page: int, limit: int, pages: int) -> bytes:
    numbers = f'"total":{total},"page":{page},"limit":{limit},"pages":{pages}'
    return f"],{numbers}}}".encode()


class Server:
    """Answers requests, as late and as few a minute as it is told to."""

    def __init__(self, project: Project, latency: float, options: Options) -> None:
        """Write all rows as JSON."""
        self.latency = latency
        self._options = options
        self._allowance = Allowance()
        self._counts: Counter[str] = Counter()
        self._listings = {
            "sessions": Listing(project.sessions.values(), "startedAt"),
            "crashes": Listing(project.crashes.values(), "lastSeenAt"),
            "network": Listing(project.network.values(), "timestamp"),
        }
        # As in the reference, /events has one page with all events of a session.
        self._events = {
            session: msgspec.json.encode(
                {"data": rows, "total": (n := len(rows)), "page": 1, "limit": n, "pages": 1}
            )
            for session, rows in project.events.items()
        }

    def answer(self, target: str) -> tuple[float, list[bytes | memoryview]]:
        """Return the seconds that an answer to a GET is kept back, and its bytes."""
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query))
        if parts.path == "/counts":
            counts, self._counts = self._counts, Counter()
            used = {"requests": dict(counts), "cpu_seconds": time.process_time()}
            return 0.0, _reply("200 OK", [json.dumps(used).encode()])
        endpoint = parts.path.removeprefix(f"{BASE_PATH}/")
        wait = self._allowance.take(self._options, time.monotonic())
        if wait:
            self._counts["429"] += 1
            return 0.0, _reply(
                "429 Too Many Requests", [b"{}"], f"Retry-After: {math.ceil(wait)}\r\n"
            )
        self._counts[endpoint] += 1
        if endpoint == "events":
            body: list[bytes | memoryview] = [self._events[query["sessionId"]]]
        else:
            body = self._listings[endpoint].answer(query)
        return self.latency, _reply("200 OK", body)


def _reply(
    status: str, body: list[bytes | memoryview], headers: str = ""
) -> list[bytes | memoryview]:
    length = sum(map(len, body))
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n{headers}\r\n"
    )
    return [head.encode(), *body]


class Connection(asyncio.Protocol):
    """One connection, kept alive; its requests are answered one after the other."""

    def __init__(self, server: Server) -> None:
        """Begin with nothing received."""
        self._server = server
        self._received = b""
        self._transport: asyncio.Transport | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = t.cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, self._received = self._received.split(b"\r\n\r\n", 1)
            delay, pieces = self._server.answer(head.split(b" ", 2)[1].decode())
            if delay:
                asyncio.get_running_loop().call_later(delay, self._send, pieces)
            else:
                self._send(pieces)

    def _send(self, pieces: list[bytes | memoryview]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(pieces)


def make_up(sessions: int, events: int, network: int, days_silent: float = 0.0) -> Project:
    """Make up a year of so many sessions, events for each, and network calls.

    It ends a minute ago, or as many days before that as it has been silent.
    """
    # The generator knows averages only. A little more network calls, and the oldest are
    # left out; events are cut or filled up.
    average = network / sessions
    average += 5 * math.sqrt((average + average**2) / sessions)
    project = generate(
        seed=6,
        sessions=sessions,
        days=365,
        until=datetime.now(UTC) - timedelta(days=days_silent, minutes=1),
        events_per_session=events,
        network_per_session=average,
        lying_clocks=False,
    )
    for old in list(project.network)[: max(0, len(project.network) - network)]:
        del project.network[old]
    for session, rows in project.events.items() if events else ():
        del rows[events:]
        rows.extend(
            {
                "id": f"evt_{number + 1:03d}",
                "type": "tap",
                "timestamp": project.sessions[session]["startedAt"],
                "sequenceNumber": number,
                "data": {"target": "banner", "screen": "Home"},
            }
            for number in range(len(rows), events)
        )
        project.sessions[session]["eventCount"] = events
    return project


async def serve(server: Server, ready: dict[str, t.Any]) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    sys.stdout.write(json.dumps({"url": f"http://127.0.0.1:{port}", **ready}) + "\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)
    listening.close()


def main() -> None:
    """Make up a project and serve it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server")
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--events", type=int, default=0, help="of each session")
    parser.add_argument("--network", type=int, default=0, help="network calls in all")
    parser.add_argument("--days-silent", type=float, default=0.0, help="days since the newest row")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--requests-per-minute", type=int, help="default: no limit")
    parser.add_argument("--counting", choices=("fixed", "sliding", "bucket"), default="sliding")
    given = parser.parse_args()
    project = make_up(given.sessions, given.events, given.network, given.days_silent)
    options = Options(requests_per_minute=given.requests_per_minute, counting=given.counting)
    server = Server(project, given.latency, options)
    rows = project.counts
    del project
    gc.freeze()  # nothing of this is garbage, and looking through it takes time
    asyncio.run(serve(server, {"rows": rows}))


if __name__ == "__main__":
    main()
