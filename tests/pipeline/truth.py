"""What a warehouse should hold: the rows of a sandbox's project, and how they change."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.running import PRIMARY_KEYS, expected

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.sandbox import Project, Sandbox

KEYS = PRIMARY_KEYS

Rows = dict[str, list[dict[str, Any]]]
"""Rows by stream, with the API's names and values."""


def tap_settings(sandbox: Sandbox) -> dict[str, str]:
    """Return the settings that take the tap to a sandbox, with no pacing to wait for."""
    return {
        "TAP_BUGSPULSE_API_URL": sandbox.url,
        "TAP_BUGSPULSE_API_KEY": sandbox.api_key,
        "TAP_BUGSPULSE_REQUESTS_PER_MINUTE": "60000",
    }


def held(project: Project, name: str | None = None) -> Rows:
    """Return all rows that the tap should load from a sandbox's project, by stream.

    Nothing in it may be a misfit; `name` is the setting `project`, where it is set.
    """
    return {stream: list(expected(project, stream, name).values()) for stream in KEYS}


def by_key(stream: str, rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Index rows by primary key, having checked that each is there once."""
    names = ("project", *KEYS[stream])
    keys = [tuple(row[name] for name in names if name in row) for row in rows]
    assert [key for key, count in Counter(keys).items() if count > 1] == []
    return dict(zip(keys, rows, strict=True))


def assert_same(actual: Rows, wanted: Mapping[str, list[dict[str, Any]]]) -> None:
    """Compare rows by stream, row by row and field by field, whatever their order."""
    assert {name: len(rows) for name, rows in actual.items()} == {
        name: len(rows) for name, rows in wanted.items()
    }
    for stream, rows in wanted.items():
        assert by_key(stream, actual[stream]) == by_key(stream, rows)


def change(project: Project) -> set[str]:
    """Have happen what happens between two runs; return the sessions that are new or changed."""
    sessions = sorted(project.sessions.values(), key=lambda row: str(row["startedAt"]))
    # The last ones on a clock that is right are within the lookback.
    recent = [row["id"] for row in sessions if row["startedAt"] < project.now.isoformat()][-5:]
    project.grow(recent[-1])
    project.crash(recent[-2])
    new = project.new_session(project.now, active=True)
    project.end(new)
    project.new_network(project.now)
    return {recent[-1], recent[-2], new}


def events_asked(sandbox: Sandbox) -> list[str]:
    """Return the sessions whose events a sandbox was asked for, in order."""
    return [one.query["sessionId"] for one in sandbox.requests if one.path == "/events"]
