"""Whole runs of the tap, each a process with its log and its requests."""

from __future__ import annotations

import typing as t
from collections import Counter
from datetime import timedelta

from tests.running import Output, Row, events_asked
from tests.sandbox import Project, Request, Sandbox
from tests.tap_process import Starter


class Run(t.NamedTuple):
    """A run of the tap that has ended."""

    output: Output
    log: list[str]
    requests: list[Request]

    @property
    def warnings(self) -> list[str]:
        """The warnings, each with the name of its logger."""
        return [line.split(" | ", 2)[2] for line in self.log if "| WARNING" in line]

    @property
    def is_complete(self) -> bool:
        """Whether the run says that it has loaded everything."""
        return "summary status=complete" in self.log[-1]

    @property
    def sessions(self) -> Counter[str]:
        """How often the events of each session were asked for."""
        return Counter(events_asked(self.requests))

    def line_of(self, stream: str) -> str:
        """Return the line of the log that counts what a stream did."""
        (line,) = (line for line in self.log if f" {stream}: rows " in line)
        return line


class Load:
    """Runs the tap against a sandbox; a run that asks for ever is refused in the end."""

    def __init__(self, sandbox: Sandbox, start: Starter) -> None:
        self._sandbox, self._start = sandbox, start

    def __call__(
        self,
        state: Row | None = None,
        *,
        code: int = 0,
        after: timedelta = timedelta(),
        most: int = 500,
        **settings: t.Any,
    ) -> Run:
        """Run it, so long after the first run, and expect an exit code and no more requests."""
        sandbox = self._sandbox
        sandbox.reset()
        sandbox.options.most_requests = most
        tap = self._start(state, after=after, **{"minute": 0.02, **settings})
        assert tap.end() == code, tap.log[-2000:]
        assert len(sandbox.requests) <= most, tap.log[-2000:]
        return Run(tap.output(), tap.log.splitlines(), list(sandbox.requests))


def assert_done(*runs: Run) -> None:
    """Expect runs to say that they are complete."""
    assert [run.log[-1] for run in runs if not run.is_complete] == []


def with_events(project: Project, least: int = 2) -> list[str]:
    """Return the sessions that have ended and have some events, newest first."""
    rows = project.sessions.values()
    found = [row for row in rows if row["endedAt"] and row["eventCount"] >= least]
    return [row["id"] for row in sorted(found, key=lambda row: row["startedAt"], reverse=True)]
