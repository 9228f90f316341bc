"""The Export API over HTTP, with everything its reference leaves open as an option."""

import contextlib
import json
import math
import random
import socket
import struct
import sys
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from threading import Condition, Event, Lock, Thread
from typing import Self
from urllib.parse import parse_qsl, urlsplit
from zlib import crc32

from tests.sandbox.options import Options, Request, check_fault
from tests.sandbox.project import TIME_FIELDS, Project
from tests.sandbox.world import Row, iso, millis

BASE_PATH = "/export"
ENDPOINTS = ("sessions", "crashes", "events", "network")
_BEGINNING, _END_OF_TIME = "", "~"  # sort before and after every ISO instant


def misfit(table: str, row: Row, session_id: str = "") -> Row:
    """The row as it is served with `misfits`: most are left alone.

    `table` is `sessions`, `crashes`, `events` (with their `session_id`) or `network`.
    """
    choice = crc32(f"{table}{session_id}{row.get('id')}".encode()) % 12
    number, text = {
        "sessions": ("duration", "networkType"),
        "crashes": ("affectedDevices", "osVersion"),
        "events": ("sequenceNumber", "type"),
        "network": ("statusCode", "method"),
    }[table]
    changes: dict[object, Row] = {
        0: {"experiment": {"name": "checkout", "arm": "b"}},
        1: {number: "abc"},
        3: {text: 7},
        (4, "sessions"): {"eventCount": None},
        (4, "events"): {"data": "low memory"},
        (5, "events"): {"data": ["low memory", 2]},
    }
    if choice == 2:
        return {name: value for name, value in row.items() if name != text}
    return row | changes.get(choice, {}) | changes.get((choice, table), {})


class Sandbox:
    """Serves a project on a free loopback port, from entering to leaving `with`.

    `requests` holds every request received, `options` may be changed while it runs. An
    exception in a hook or in the sandbox itself is answered with 500 and raised again
    when the `with` block is left.
    """

    def __init__(self, project: Project, options: Options | None = None, *, port: int = 0) -> None:
        """Bind the port (0: a free one)."""
        self.project = project
        self.options = options or Options()
        self.requests: list[Request] = []
        self.closing = Event()
        self._hooks = Lock()  # hooks count requests, which come at once
        self._lock = Lock()
        self._errors: list[Exception] = []
        self._random = random.Random(1)  # of faults and jitter
        self._allowances: dict[str, Allowance] = {}
        self._answered = 0
        self._tables: dict[str, _Table] = {}
        self._began = time.monotonic()
        self._server = _Server(self, port)
        self._thread = Thread(target=self._server.serve, name="sandbox", daemon=True)

    @property
    def url(self) -> str:
        """The base URL, what a tap takes as `api_url`."""
        return f"http://127.0.0.1:{self._server.server_port}{BASE_PATH}"

    @property
    def api_key(self) -> str:
        """The first key that is accepted."""
        return self.options.api_keys[0]

    @property
    def connections(self) -> int:
        """How many are open; one of a client that is gone is, until its requests are in."""
        # Those that nobody has accepted yet are, too: this one is the last of them.
        with self._connection() as last:
            last.shutdown(socket.SHUT_WR)
            last.recv(1)
        return self._server.connections

    def _connection(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._server.server_port))

    def __enter__(self) -> Self:
        """Start to serve."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stop at once, cutting requests in progress, and raise what went wrong."""
        self.closing.set()
        self._connection().close()  # which ends the wait for one
        self._thread.join()
        self._server.close_all()
        if self._errors and kind is None:
            raise self._errors[0]

    def reset(self) -> None:
        """Forget the requests; what they used of the allowance stays used."""
        with self._lock:
            self.requests.clear()

    def failed(self, error: Exception) -> None:
        """Keep an error of the sandbox itself until the `with` block is left."""
        self._errors.append(error)

    def spend(self, requests: int) -> None:
        """Use up that much of the first key's allowance, as another user of the key does."""
        with self._lock:
            allowance = self._allowances.setdefault(self.api_key, Allowance())
            for _ in range(requests):
                allowance.take(self.options, time.monotonic())

    def answer(self, target: str, authorization: str) -> "_Answer":
        """Answer a GET of `target`, path and query, and note the request."""
        parts = urlsplit(target)
        key = authorization[7:] if authorization[:7].lower() == "bearer " else ""
        request = Request(
            time.monotonic(),
            parts.path.removeprefix(BASE_PATH),
            dict(parse_qsl(parts.query, keep_blank_values=True)),
            key_ok=key in self.options.api_keys,
        )
        with self._lock:
            self.requests.append(request)
            request.number = len(self.requests)
        try:
            answer = self._answer(request, parts.path, key)
        except _Answer as instead:
            answer = instead
        except Exception as error:  # noqa: BLE001 - raised when the `with` block is left
            self.failed(error)
            answer = _error(500, f"the sandbox failed: {error!r}")
        request.fault = answer.fault
        request.status = 0 if answer.fault in {"timeout", "reset"} else answer.status
        return answer

    def _answer(self, request: Request, path: str, key: str) -> "_Answer":
        options = self.options
        endpoint = request.path.removeprefix("/")
        if endpoint not in ENDPOINTS or path != f"{BASE_PATH}/{endpoint}":
            raise _error(404, "No such endpoint")
        most = options.most_requests
        if not request.key_ok or (most is not None and request.number > most):
            headers = {"WWW-Authenticate": "Bearer"}
            raise _error(401, "Missing or invalid API key", headers)
        with self._lock:
            allowance = self._allowances.setdefault(key, Allowance())
            wait = allowance.take(options, request.at)
        if wait:
            raise self._too_many(wait)
        # Hooks edit rows, which other requests may be reading at the same time.
        with self._hooks, self.project.lock:
            if options.on_request:
                options.on_request(request, self.project)
            fault = options.script(request) if options.script else None
        with self._lock:
            fault = fault or self._draw_fault()
            delay = options.latency + options.jitter * self._random.random()
        self.closing.wait(delay)
        if options.hold:
            options.hold(request)
        if fault:
            check_fault(fault)
            if fault.isdigit() or fault == "html":
                return self._instead(fault, path)
        answer = self._listing(endpoint, request.query, fault)
        self._change()
        return answer

    def _instead(self, fault: str, path: str) -> "_Answer":
        """What a fault answers in the place of rows."""
        if fault == "html":
            page = b"<!doctype html><title>Please wait</title><p>Maintenance.</p>"
            return _Answer(200, page, {"Content-Type": "text/html"}, fault)
        if fault == "429":
            answer = self._too_many(self.options.minute / 60)
        else:
            location = {"Location": self.options.redirect_to or path}
            headers = location if fault.startswith("3") else None
            answer = _error(int(fault), "This fault was asked for", headers)
        answer.fault = fault
        return answer

    def _listing(self, endpoint: str, query: dict[str, str], fault: str | None) -> "_Answer":
        """A page of an endpoint."""
        options = self.options
        page, limit = _natural(query, "page", 1), _natural(query, "limit", 100)
        limit = min(limit, options.max_limit)
        with self.project.lock:
            rows = self._events(query) if endpoint == "events" else self._window(endpoint, query)
            rows = _reordered(rows, endpoint, page, limit) if options.ties == "by-page" else rows
            total = self._capped(len(rows), page, limit)
            pages = math.ceil(total / limit) if total else 0
            past = options.past_end
            if page > max(1, pages) and past != "empty" and not options.repeat_page:
                raise _error(int(past), "No such page")
            if endpoint == "events" and options.events_paging != "pages":
                limit = total if options.events_paging == "all" else limit
                page, pages = 1, 1
            first = 0 if options.repeat_page else (page - 1) * limit
            rows = rows[:total][first : first + limit]
            if query.get("sessionId") in options.late_sessions and endpoint == "events":
                rows, total = self._late(rows, total)
            if options.misfits:
                session_id = query.get("sessionId", "")
                rows = [misfit(endpoint, row, session_id) for row in rows]
            envelope: Row = {"data": rows, "total": total, "page": page, "limit": limit}
            envelope["pages"] = max(pages, page + 1) if options.repeat_page else pages
            self._spoil(envelope, endpoint, query)
            if options.envelope:
                envelope = options.envelope(envelope)
            answer = _json(envelope, fault)
            if options.body:
                answer.body = options.body(answer.body)
            return answer

    def _capped(self, total: int, page: int, limit: int) -> int:
        """The number of rows that count, with `row_cap`."""
        cap = self.options.row_cap
        if cap is None or self.options.beyond_cap == "empty":
            return total if cap is None else min(total, cap)
        if page * limit > cap:
            raise _error(400, f"page and limit reach beyond row {cap}")
        return total

    def _late(self, rows: list[Row], total: int) -> tuple[list[Row], int]:
        """What is there of events that are late, and their total."""
        how = self.options.late_events
        if how == "404":
            raise _error(404, "Session not found")
        if how == "204":
            raise _Answer(204, b"")
        rows = rows[:-1] if how == "part" else []
        return rows, total if how == "no-rows" else len(rows)

    def _spoil(self, envelope: Row, endpoint: str, query: dict[str, str]) -> None:
        """Let the envelope count, echo and be empty as the options say."""
        options, asked = self.options, _natural(query, "limit", 100)
        counted_by = {"default-limit": 100, "asked-limit": asked}.get(options.counts)
        if options.counts == "page-total":
            envelope["total"] = len(envelope["data"])
        elif options.counts == "one-page":
            envelope["pages"] = 1
        elif options.counts == "unfiltered" and endpoint != "events":
            envelope["total"] = len(self.project.table(endpoint))
            counted_by = envelope["limit"]
        if counted_by:
            envelope["pages"] = math.ceil(envelope["total"] / counted_by)
        if options.echo == "asked":
            envelope |= {"page": _natural(query, "page", 1), "limit": asked}
        elif options.echo == "page-one-too-high":
            envelope["page"] += 1
        if options.omit_pages:
            del envelope["pages"]
        if not envelope["data"]:
            self._empty(envelope)

    def _empty(self, envelope: Row) -> None:
        """Say in the form that is set that there are no rows."""
        if self.options.empty_as == "204":
            raise _Answer(204, b"")
        if self.options.empty_as == "null":
            envelope["data"] = None
        elif self.options.empty_as == "floats":
            envelope |= {name: float(envelope[name]) for name in envelope if name != "data"}

    def _events(self, query: dict[str, str]) -> list[Row]:
        options, project = self.options, self.project
        session_id = query.get("sessionId")
        if not session_id:
            raise _error(400, "sessionId is required")
        if session_id in options.broken_sessions:
            raise _error(500, "Internal Server Error")
        known = session_id in project.sessions or session_id in project.events
        gone = session_id in options.vanished_sessions
        if gone or not (known or options.unknown_session == "empty"):
            raise _error(404, "Session not found")
        return project.events.get(session_id, [])

    def _window(self, name: str, query: dict[str, str]) -> list[Row]:
        """All rows that `from` and `to` ask for, in order; kept until rows change."""
        options = self.options
        low, high = _BEGINNING, _END_OF_TIME
        if name != "crashes":
            if "from" in query and self._bound(query, "from") < options.refuse_before:
                raise _error(400, "from is before what is kept")
            gone = {"both": {"from", "to"}, "from-alone": set() if "to" in query else {"from"}}
            ignored = gone.get(options.ignored, {options.ignored})
            query = {part: text for part, text in query.items() if part not in ignored}
            low, high = self._bound(query, "from"), self._bound(query, "to")
        on = options.filter_on if name != "crashes" else None
        state = (self.project.revision[name], options.order, on)
        table = self._tables.get(name)
        if table is None or table.state != state:
            table = self._tables[name] = _Table(self.project, name, state)
        return table.window(low, high)

    def _bound(self, query: dict[str, str], name: str) -> str:
        """The first instant inside (`from`) or after (`to`) what a parameter asks for."""
        options = self.options
        text = query.get(name)
        if text is None:
            return _END_OF_TIME if name == "to" else _BEGINNING
        try:
            moment, is_date = datetime.fromisoformat(text), len(text) <= len("2026-01-15")
            if moment.tzinfo is None:
                zone = timezone(timedelta(hours=options.utc_offset_hours))
                moment = moment.replace(tzinfo=zone)
            if name == "to" and is_date and options.to_means == "end":
                moment += timedelta(days=1)
            elif name == "to" and options.to_means != "before":
                moment += timedelta(milliseconds=1)
            bound = iso(millis(moment))
        except (ValueError, OverflowError):
            raise _error(400, f"{name} must be an ISO 8601 date") from None
        if options.dates_only and not is_date:
            raise _error(400, f"{name} must be a date without a time of day")
        return bound

    def _too_many(self, wait: float) -> "_Answer":
        """A 429 that tells to wait at least that many seconds, as `retry_after` says."""
        seconds, instant = str(math.ceil(wait)), math.ceil(time.time() + wait)
        headers = {
            "seconds": {"Retry-After": seconds},
            "date": {"Retry-After": formatdate(instant, usegmt=True)},
            "reset": {"RateLimit-Reset": seconds},
            "x-reset": {"X-RateLimit-Reset": str(instant)},
            "none": {},
        }
        return _error(429, "Too many requests", headers[self.options.retry_after])

    def _draw_fault(self) -> str | None:
        if not self.options.faults:
            return None
        chance = self._random.random()
        for kind, probability in self.options.faults.items():
            chance -= probability
            if chance < 0:
                return kind
        return None

    def _change(self) -> None:
        """Let the project change by itself after every so many answers."""
        with self._lock:
            self._answered += 1
            answered = self._answered
        for kind in ("late", "purge", "new"):
            every: int = getattr(self.options, f"{kind}_every")
            if every and answered % every == 0:
                with self.project.lock:
                    passed = time.monotonic() - self._began
                    self._began += passed
                    self.project.now += timedelta(seconds=passed)
                    self.project.step(kind)


class _Table:
    """Rows of one table sorted once, and the windows of it that were asked for."""

    def __init__(self, project: Project, name: str, state: tuple[int, str, str | None]) -> None:
        self.state = state
        _, self._order, on = state
        rows = project.table(name)
        times = sorted((project.when(name, row_id), row_id) for row_id in rows)
        self._rows = [rows[row_id] for _, row_id in times]
        self._filter = [instant for instant, _ in times]
        if on == "received":
            self._filter = [project.received.get(row_id, at) for at, row_id in times]
        elif on == "endedAt" and name == "sessions":
            self._filter = [project.when(name, row_id, on) for _, row_id in times]
        self._is_sorted = on in {None, "startedAt"}
        self._windows: dict[tuple[str, str], list[Row]] = {}

    def window(self, low: str, high: str) -> list[Row]:
        """The rows from `low` to before `high`, in the order that is set."""
        if (low, high) in self._windows:
            return self._windows[low, high]
        if self._is_sorted:
            rows = self._rows[bisect_left(self._filter, low) : bisect_left(self._filter, high)]
        else:
            pairs = zip(self._rows, self._filter, strict=True)
            rows = [row for row, at in pairs if low <= at < high]
        if self._order == "newest":
            rows.reverse()
        elif self._order == "arbitrary":
            rows.sort(key=lambda row: (crc32(str(row["id"]).encode()), str(row["id"])))
        self._windows[low, high] = rows
        return rows


class Allowance:
    """What one key may still ask for, counted as the options say."""

    def __init__(self) -> None:
        """Nothing is taken yet."""
        self._taken: deque[float] = deque()
        self._tokens = math.inf  # a full bucket, whatever the limit will be
        self._filled_at = 0.0

    def take(self, options: Options, now: float) -> float:
        """Take one request: 0, or the seconds to wait where there is none to take."""
        limit, minute = options.requests_per_minute, options.minute
        if limit is None:
            return 0.0
        if options.counting == "bucket":
            gained = (now - self._filled_at) * limit / minute
            self._tokens = min(limit, self._tokens + gained)
            self._filled_at = now
            if self._tokens < 1:
                return (1 - self._tokens) * minute / limit
            self._tokens -= 1
            return 0.0
        taken = self._taken
        while taken and now - taken[0] >= minute:
            if options.counting == "fixed":
                taken.clear()
            else:
                taken.popleft()
        if len(taken) >= limit:
            return taken[0] + minute - now
        taken.append(now)
        return 0.0


@dataclass(eq=False)
class _Answer(Exception):  # noqa: N818 - an answer of the API, no error of ours
    """An answer; it is raised where it comes instead of rows."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    fault: str | None = None


_Connection = socket.socket | tuple[bytes, socket.socket]  # as socketserver has it


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, sandbox: Sandbox, port: int) -> None:
        self.sandbox = sandbox
        self._open: set[_Connection] = set()
        self._closed = Condition()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def connections(self) -> int:
        """How many are open."""
        with self._closed:
            return len(self._open)

    def serve(self) -> None:
        """Serve until the sandbox closes; looking for that at times would hold up its end."""
        while not self.sandbox.closing.is_set():
            self.handle_request()

    def server_bind(self) -> None:
        """Bind without the reverse look-up of http.server, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.socket.getsockname()

    def process_request(self, request: _Connection, client_address: object) -> None:
        with self._closed:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: _Connection) -> None:
        """Close without saying so first, so that the fault `reset` is just that."""
        with self._closed:
            self._open.discard(request)
            self.close_request(request)
            self._closed.notify_all()

    def handle_error(self, request: _Connection, client_address: object) -> None:
        """A client may go away; whatever else happens is the sandbox's own error."""
        del request, client_address
        error = sys.exc_info()[1]
        if isinstance(error, Exception) and not isinstance(error, ConnectionError):
            self.sandbox.failed(error)

    def close_all(self) -> None:
        """Close the port and every connection, and wait until their threads let go."""
        self.server_close()
        with self._closed:
            for connection in self._open:
                if isinstance(connection, socket.socket):
                    with contextlib.suppress(OSError):  # the client may be faster
                        connection.shutdown(socket.SHUT_RDWR)
            self._closed.wait_for(lambda: not self._open, timeout=5)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    # Nagle's algorithm and unbuffered small writes cost 40 ms a request.
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        answer = self.server.sandbox.answer(self.path, self.headers.get("Authorization", ""))
        self._send(answer)

    def _send(self, answer: _Answer) -> None:
        sandbox, options = self.server.sandbox, self.server.sandbox.options
        if answer.fault in {"timeout", "reset"}:
            self.close_connection = True
            if answer.fault == "timeout":
                sandbox.closing.wait(options.hang_seconds)
            else:
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if answer.fault == "cut":
            self.wfile.write(answer.body[: len(answer.body) // 2])
            self.close_connection = True
        elif answer.fault == "drip":
            for place in range(len(answer.body)):
                self.wfile.write(answer.body[place : place + 1])
                self.wfile.flush()
                if sandbox.closing.wait(options.drip_seconds):
                    break
        else:
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing: `Sandbox.requests` is the log."""


def _reordered(rows: list[Row], table: str, page: int, limit: int) -> list[Row]:
    """The rows with those of the same instant in an order of this page's own."""
    column = TIME_FIELDS.get(table, "timestamp")

    def place(row: Row) -> int:
        return crc32(f"{page} {limit} {row['id']}".encode())

    groups = groupby(rows, key=lambda row: row[column])
    return [row for _, group in groups for row in sorted(group, key=place)]


def _natural(query: dict[str, str], name: str, default: int) -> int:
    """A whole number from 1."""
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise _error(400, f"{name} must be a whole number from 1")
    return int(text)


def _json(envelope: Row, fault: str | None) -> _Answer:
    """The envelope as JSON, spoiled as the fault says."""
    if fault == "no_data":
        del envelope["data"]
    elif fault == "data_not_list":
        envelope["data"] = {"rows": envelope["data"]}
    elif fault == "row_not_object":
        envelope["data"] = [*envelope["data"], "row"]
    body = json.dumps(envelope, separators=(",", ":")).encode()
    if fault == "not_json":
        body = b"{data: " + body[8:]
    return _Answer(200, body, {"Content-Type": "application/json; charset=utf-8"}, fault)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> _Answer:
    """An error as JSON; 502 and 503 as the HTML page of a proxy."""
    kind, body = "application/json; charset=utf-8", json.dumps({"error": message})
    if status in {502, 503}:
        kind, body = "text/html", f"<html><h1>{status}</h1></html>"
    return _Answer(status, body.encode(), {"Content-Type": kind} | (headers or {}))
