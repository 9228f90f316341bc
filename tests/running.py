"""Running the real tap against a sandbox, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import io
import json
import time
import typing as t
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tap_bugspulse.http import Clock
from tap_bugspulse.tap import TapBugsPulse
from tests.sandbox import Project, Request, Sandbox

Row = dict[str, t.Any]
# Variables that a process under test has of the one that runs the tests.
KEPT = ("PATH", "HOME", "COVERAGE_PROCESS_CONFIG")
PRIMARY_KEYS = {
    "sessions": ("id",),
    "crashes": ("id",),
    "network": ("id",),
    "events": ("sessionId", "id"),
}


def tap_class(now: datetime, minute: float = 60.0) -> type[TapBugsPulse]:
    """Return the tap with a clock that says ``now`` and a minute of some seconds."""

    class TapAtAnInstant(TapBugsPulse):
        clock = Clock(lambda: now, minute=minute)

    return TapAtAnInstant


@dataclass
class Output:
    """What a run of the tap wrote: its messages, in order.

    ``asked`` are the sessions whose events it asked for, in order, where `sync` ran it.
    """

    messages: list[Row] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, text: str) -> Output:
        """Read the lines of a run; a last line that was cut is left out."""
        lines = text.split("\n")[:-1]
        return cls([json.loads(line) for line in lines])

    def rows(self, stream: str) -> list[Row]:
        """Return a stream's records in the order they were emitted."""
        return [
            message["record"]
            for message in self.messages
            if message["type"] == "RECORD" and message["stream"] == stream
        ]

    def ids(self, stream: str) -> list[str]:
        """Return the ids of a stream's records in the order they were emitted."""
        return [row["id"] for row in self.rows(stream)]

    def table(self, stream: str) -> dict[tuple[str, ...], Row]:
        """Return the latest record for each primary key, as an upsert leaves them."""
        keys = PRIMARY_KEYS[stream]
        return {tuple(row[key] for key in keys): row for row in self.rows(stream)}

    def repeated(self, stream: str) -> list[tuple[str, ...]]:
        """Return the primary keys that were emitted more than once."""
        keys = PRIMARY_KEYS[stream]
        count = Counter(tuple(row[key] for key in keys) for row in self.rows(stream))
        return [key for key, times in count.items() if times > 1]

    @property
    def states(self) -> list[Row]:
        """All states, in order."""
        return [message["value"] for message in self.messages if message["type"] == "STATE"]

    @property
    def state(self) -> Row:
        """The last state."""
        return self.states[-1] if self.states else {}


def sync(  # noqa: PLR0913 - what a run depends on, all with defaults but two
    sandbox: Sandbox,
    now: datetime,
    state: Row | None = None,
    catalog: Row | None = None,
    *,
    minute: float = 60.0,
    running_clock: bool = False,
    **settings: object,
) -> Output:
    """Run the tap to its end in this process and give what it wrote.

    Settings are those of the tap; pacing is off unless they say otherwise. The clock
    stands still at ``now``, or is the real one.
    """
    written, earlier = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), len(sandbox.requests)
    config = {
        "api_url": sandbox.url,
        "api_key": sandbox.api_key,
        "requests_per_minute": 1_000_000,
        **settings,
    }
    with contextlib.redirect_stdout(t.cast("t.TextIO", written)):
        kind = tap_class(now, minute)
        if running_clock:
            kind.clock = Clock(minute=minute)
        tap = kind(
            config=config, state=json.loads(json.dumps(state)) if state else None, catalog=catalog
        )
        tap.sync_all()
    written.seek(0)
    output = Output.read(written.read())
    output.asked = events_asked(sandbox.requests[earlier:])
    return output


class Runs:
    """Runs of the tap in this process, each with the state of the one before.

    Args:
        sandbox: The API they talk to.
        now: When the first one is.
        streams: Those that they select; without any, there is no catalog.
        settings: What all runs have, as `sync` takes it.
    """

    def __init__(self, sandbox: Sandbox, now: datetime, *streams: str, **settings: t.Any) -> None:
        self._sandbox, self._now = sandbox, now
        self._settings = settings | ({"catalog": select(now, *streams)} if streams else {})
        self.outputs: list[Output] = []

    def __call__(self, hours: float = 0, **settings: t.Any) -> Output:
        """Run it so many hours after the first time, with settings that this run alone has."""
        state = self.outputs[-1].state if self.outputs else None
        at = self._now + timedelta(hours=hours)
        self.outputs.append(sync(self._sandbox, at, state, **self._settings | settings))
        return self.outputs[-1]


def select(now: datetime, *streams: str, without: t.Collection[str] = ()) -> Row:
    """Return a catalog that selects only some streams, without some columns."""
    catalog = tap_class(now)(config={"api_key": "bp_x"}).catalog_dict
    for stream in catalog["streams"]:
        for entry in stream["metadata"]:
            name = ".".join([stream["stream"], *entry["breadcrumb"][1:]])
            if not entry["breadcrumb"]:
                entry["metadata"]["selected"] = name in streams
            elif name in without:
                entry["metadata"]["selected"] = False
    return catalog


def expected(project: Project, stream: str, name: str | None = None) -> dict[tuple[str, ...], Row]:
    """Return what a warehouse should hold of a project that has no misfits."""
    if stream == "events":
        rows: list[t.Mapping[str, t.Any]] = [
            {"sessionId": session, **event}
            for session, events in project.events.items()
            for event in events
        ]
    else:
        rows = list(project.table(stream).values())
    extra = {"_extra": None} | ({"project": name} if name else {})
    keys = PRIMARY_KEYS[stream]
    return {tuple(row[key] for key in keys): {**row, **extra} for row in rows}


def assert_whole(project: Project, *outputs: Output) -> None:
    """Expect of some runs, one after the other, all rows of a project and no other."""
    written = Output([message for output in outputs for message in output.messages])
    for stream in PRIMARY_KEYS:
        loaded, rows = written.table(stream), expected(project, stream)
        missing, others = rows.keys() - loaded.keys(), loaded.keys() - rows.keys()
        assert (stream, len(missing), len(others)) == (stream, 0, 0)
        assert loaded == rows, stream


def counted(sandbox: Sandbox) -> Counter[str]:
    """Return how many requests a sandbox has had, by path."""
    return Counter(request.path for request in sandbox.requests)


def events_asked(requests: t.Iterable[Request]) -> list[str]:
    """Return the sessions whose events were asked for, in order."""
    return [one.query["sessionId"] for one in requests if one.path == "/events"]


def wait_until(condition: t.Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for a condition, and fail when it does not come about in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)
