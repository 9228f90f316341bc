"""Two ways out for a row: as the struct it is, or as a dict through the SDK's own steps."""

from __future__ import annotations

import typing as t
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tap_bugspulse.client import BugsPulseStream
from tests.conftest import NOW, tiered
from tests.running import PRIMARY_KEYS, Output, Row, Runs, select, sync, tap_class
from tests.sandbox import Options, Sandbox, generate
from tests.test_pages import values

# Settings that change no message, and have each row go the SDK's way.
DETOURS: dict[str, dict[str, t.Any]] = {
    "a map of all": {"stream_maps": {"*": {}}},
    "a map of each": {"stream_maps": {name: {} for name in PRIMARY_KEYS}},
}
FIELDS = ("userId", "duration", "hasCrash", "endedAt", "data", "type", "error", "new")


def is_plain(**settings: object) -> set[bool]:
    """Return whether the streams of a tap write structs."""
    tap = tap_class(NOW)(config={"api_key": "bp_x", **settings})
    return {t.cast("BugsPulseStream", one).is_plain for one in tap.streams.values()}


def timeless(output: Output) -> list[Row]:
    """Return the messages without the moment that a record was read at."""
    for message in output.messages:
        if message["type"] == "RECORD":
            moment = datetime.fromisoformat(message.pop("time_extracted"))
            assert moment.tzinfo is not None
    return output.messages


def test_only_a_tap_without_maps_and_flattening_writes_structs() -> None:
    """What the SDK would do to a row is never left out."""
    assert is_plain() == is_plain(project="ios-app") == {True}
    for detour in DETOURS.values():
        assert is_plain(**detour) == {False}
    assert is_plain(flattening_enabled=True, flattening_max_depth=1) == {False}
    assert is_plain(stream_maps={"events": {}}) == {True, False}


# A third of the usual examples, for each is four runs of the tap.
@settings(max_examples=settings().max_examples // 3)
@given(
    seed=st.integers(0, 99),
    detour=st.sampled_from(sorted(DETOURS)),
    project=st.sampled_from((None, "ios-app")),
    misfits=st.booleans(),
    odd=st.dictionaries(st.sampled_from(FIELDS), values, max_size=3),
    page_size=st.sampled_from((3, 1000)),
)
def test_both_ways_write_the_same(  # noqa: PLR0913 - what a run depends on
    *, seed: int, detour: str, project: str | None, misfits: bool, odd: Row, page_size: int
) -> None:
    """Schemas, records and states are equal in a first run and in one after changes."""

    def with_odd_row(envelope: Row) -> Row:
        rows = envelope["data"]
        return envelope | {"data": [one | odd for one in rows[:1]] + rows[1:]}

    made = generate(seed=seed, sessions=8, days=9, until=NOW - timedelta(hours=1))
    settings: dict[str, t.Any] = {"project": project, "page_size": page_size}
    options = Options(requests_per_minute=None, misfits=misfits, envelope=with_odd_row)
    with Sandbox(made, options) as sandbox:
        plain = Runs(sandbox, NOW, **settings)
        other = Runs(sandbox, NOW, **settings, **DETOURS[detour])
        assert timeless(plain()) == timeless(other())
        made.new_session(NOW + timedelta(hours=1))
        assert timeless(plain(2)) == timeless(other(2))
    assert all(output.rows("sessions") for output in plain.outputs)


@pytest.mark.parametrize(
    ("name", "column"),
    tiered(
        [("events", "data"), ("network", "url"), ("sessions", "userId"), ("crashes", "message")],
        quick=2,
    ),
)
def test_a_deselected_column_is_the_only_difference(
    sandbox: Sandbox, name: str, column: str
) -> None:
    """A stream of which one column is left out goes the SDK's way, the others do not."""
    catalog = select(NOW, *PRIMARY_KEYS, without=[f"{name}.{column}"])
    whole, less = sync(sandbox, NOW), sync(sandbox, NOW, catalog=catalog)
    for row in whole.rows(name):
        del row[column]
    for stream in PRIMARY_KEYS:
        assert whole.rows(stream) == less.rows(stream)
    assert whole.state == less.state
