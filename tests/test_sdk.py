"""What the tap needs of the SDK's internals: a test fails when the SDK changes one.

A tap of a few lines stands in for ours. It shows what the SDK calls, when and with what,
so that a new release is judged by these tests before it meets our own overrides.
"""

from __future__ import annotations

import inspect
import json
import typing as t
from collections.abc import Callable, Iterator

import msgspec
import pytest
import requests
from singer_sdk import RESTStream, Stream, Tap
from singer_sdk import typing as th
from singer_sdk.pagination import PageNumberPaginator
from typing_extensions import override

from tap_bugspulse.client import BugsPulseStream
from tap_bugspulse.events import Events
from tap_bugspulse.pages import Reading
from tap_bugspulse.streams import Network, Sessions
from tap_bugspulse.tap import TapBugsPulse
from tap_bugspulse.windows import WindowedStream
from tap_bugspulse.writer import WholeMessageWriter
from tests.running import Row
from tests.sandbox import Sandbox

Call = tuple[str, tuple[t.Any, ...], dict[str, t.Any]]
Kind = t.TypeVar("Kind")

OURS = (
    TapBugsPulse,
    WholeMessageWriter,
    Reading,
    BugsPulseStream,
    WindowedStream,
    Network,
    Sessions,
    Events,
)
ROWS = [{"id": "one", "at": "2026-02-01T00:00:00Z"}, {"id": "two", "at": "2026-02-02T00:00:00Z"}]


class Parents(Stream):
    """An incremental stream of two rows."""

    name = "parents"
    primary_keys = ("id",)
    replication_key = "at"
    schema = th.PropertiesList(
        th.Property("id", th.StringType), th.Property("at", th.DateTimeType)
    ).to_dict()

    @override
    def get_records(self, context: t.Any) -> Iterator[Row]:
        yield from map(dict, ROWS)


class Children(Stream):
    """A stream of one row for each time that its parent asks for it."""

    name = "children"
    primary_keys = ("id",)
    schema = th.PropertiesList(th.Property("id", th.StringType)).to_dict()

    @override
    def get_records(self, context: t.Any) -> Iterator[Row]:
        yield {"id": "child"}


class TinyTap(Tap):
    """A tap of the streams that a test names."""

    name = "tap-tiny"
    config_jsonschema = th.PropertiesList().to_dict()
    kinds: t.ClassVar[list[type[Stream]]] = [Parents]

    @override
    def discover_streams(self) -> list[Stream]:
        return [kind(self) for kind in self.kinds]


def tap_of(*streams: type[Stream]) -> type[Tap]:
    """Return a tap with some streams; the first is the parent of the others."""
    first, *others = streams
    family = [first, *(kind_with(kind, parent_stream_type=first) for kind in others)]
    return kind_with(TinyTap, kinds=family)


def kind_with(kind: type[Kind], **members: object) -> type[Kind]:
    """Return a subclass with other members."""
    return type(kind.__name__, (kind,), members)


def noting(kind: type[Kind], *names: str) -> tuple[type[Kind], list[Call]]:
    """Return a subclass that does the same, and the list of its calls of some methods."""
    calls: list[Call] = []

    def method(name: str) -> object:
        def note(self: Kind, *args: object, **kwargs: object) -> object:
            calls.append((name, args, kwargs))
            return getattr(kind, name)(self, *args, **kwargs)

        return note

    return kind_with(kind, **{name: method(name) for name in names}), calls


def run(
    kind: type[Tap], capsys: pytest.CaptureFixture[str], state: Row | None = None
) -> tuple[Tap, list[Row]]:
    """Run a tap to its end and give it with its messages."""
    tap = kind(state=state)
    tap.sync_all()
    return tap, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def kinds(messages: list[Row]) -> list[tuple[str, str]]:
    """Return the types and streams of messages, in order, without the states."""
    return [
        (message["type"], message["stream"]) for message in messages if message["type"] != "STATE"
    ]


def _function(member: object) -> Callable[..., object]:
    """Return the function behind a method, a class method or a property."""
    for name in ("fget", "func", "__func__"):
        member = getattr(member, name, member)
    return t.cast("Callable[..., object]", member)


def _is_method(member: object) -> bool:
    return inspect.isfunction(member) or isinstance(member, classmethod)


# --- All overrides -------------------------------------------------------------------


@pytest.mark.parametrize("kind", OURS)
def test_what_is_overridden_is_there_and_takes_the_same(kind: type) -> None:
    """Each method that is marked as an override has one in the SDK, with its arguments."""
    seen = 0
    for name, member in vars(kind).items():
        ours = _function(member)
        if not getattr(ours, "__override__", False):
            continue
        seen += 1
        bases = [base for base in kind.__mro__[1:] if name in vars(base)]
        assert bases, f"{name} overrides nothing"
        theirs = vars(bases[-1])[name]
        # A property may stand for a plain attribute, never for a method.
        assert _is_method(member) == _is_method(theirs), name
        if _is_method(theirs):
            taken = inspect.signature(ours).parameters
            if not any(one.kind is one.VAR_KEYWORD for one in taken.values()):
                assert list(taken) == list(inspect.signature(_function(theirs)).parameters)
    assert seen


# --- Marks ---------------------------------------------------------------------------


def test_each_record_moves_the_mark_through_one_method(capsys: pytest.CaptureFixture[str]) -> None:
    """`_increment_stream_state` is called once for a record, with it and its context."""
    kind, calls = noting(Parents, "_increment_stream_state")
    tap, _ = run(tap_of(kind), capsys)
    assert calls == [("_increment_stream_state", (row,), {"context": None}) for row in ROWS]
    mark = tap.state["bookmarks"]["parents"]["replication_key_value"]
    assert mark == ROWS[-1]["at"]


def test_a_stream_that_keeps_its_own_marks_finds_them_untouched(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With our three overrides the SDK writes nothing into a bookmark, damaged or not."""
    names = (
        "_increment_stream_state",
        "_write_starting_replication_value",
        "get_replication_key_signpost",
    )
    kind = kind_with(Parents, **{name: vars(WindowedStream)[name] for name in names})
    for bookmark in (
        {"mine": {"a": [1]}},
        {"replication_key": "at", "replication_key_value": "no date", "mine": 1},
    ):
        state = {"bookmarks": {"parents": bookmark}}
        _, messages = run(tap_of(kind), capsys, json.loads(json.dumps(state)))
        states = [one["value"] for one in messages if one["type"] == "STATE"]
        assert states
        assert all(one == state for one in states)


def test_a_state_is_sent_when_it_is_said_not_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    """`_write_state_message` looks at `is_flushed`, and the writer drops an equal state."""
    tap = tap_of(Parents)()
    stream = tap.streams["parents"]
    assert stream.tap_state is tap.state
    for value, is_flushed in ((1, False), (1, False), (2, True), (3, False), (3, True)):
        stream.stream_state["mine"] = value
        stream.state_manager.is_flushed = is_flushed
        stream._write_state_message()  # noqa: SLF001 - it is called
    sent = [json.loads(line)["value"] for line in capsys.readouterr().out.splitlines()]
    assert [one["bookmarks"]["parents"]["mine"] for one in sent] == [1, 3]


def test_a_row_is_written_by_one_method_as_it_was_read(capsys: pytest.CaptureFixture[str]) -> None:
    """`_write_record_message` is given each row once, which may be a struct until then."""
    struct = msgspec.defstruct("struct", [("id", str), ("at", str)])
    rows, written = [struct(**row) for row in ROWS], list[object]()
    hooks: dict[str, object] = {
        "get_records": lambda *_: iter(rows),
        "_write_record_message": lambda _, row: written.append(row),
        "_increment_stream_state": lambda *_, **__: None,
    }
    _, messages = run(tap_of(kind_with(Parents, **hooks)), capsys)
    assert kinds(messages) == [("SCHEMA", "parents")]
    assert written == rows


# --- Parents and children ------------------------------------------------------------


class Listing(Parents):
    """A parent as our sessions are one: its children come after its last record."""

    @override
    def generate_child_contexts(self, record: Row, context: t.Any) -> Iterator[t.Any]:
        return iter(())

    @override
    def get_records(self, context: t.Any) -> Iterator[Row]:
        yield from super().get_records(context)
        self._sync_children({})


def test_children_are_synced_by_hand_once_after_the_listing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No context of a record brings one; `_sync_children` syncs each as a whole stream."""
    child, calls = noting(Children, "get_records")
    _, messages = run(tap_of(Listing, child), capsys)
    assert kinds(messages) == [
        ("SCHEMA", "parents"),
        *[("RECORD", "parents")] * 2,
        ("SCHEMA", "children"),
        ("RECORD", "children"),
    ]
    assert calls == [("get_records", (None,), {})]


# --- Requests ------------------------------------------------------------------------


class Stock(RESTStream[int]):
    """A stream of a REST API as the SDK has them."""

    name = "parents"
    path = "/crashes"
    url_base = ""
    schema = Parents.schema


def test_a_page_is_asked_for_by_two_methods(sandbox: Sandbox) -> None:
    """`_prepare_request` takes a context and a page; `_request` sends it and checks the answer."""
    session, sent = noting(requests.Session, "send")
    headers = {"Authorization": f"Bearer {sandbox.api_key}"}
    members = {"url_base": sandbox.url, "http_headers": headers, "requests_session": session()}
    kind, calls = noting(kind_with(Stock, **members), "get_url_params", "validate_response")
    stream, page = kind(tap_of(Parents)()), PageNumberPaginator(start_value=3)
    prepared = stream._prepare_request(context={"a": "b"}, page=page)  # noqa: SLF001 - it is called
    response = stream._request(prepared, {"a": "b"})  # noqa: SLF001 - it is called
    assert response.json()["total"] == len(sandbox.project.crashes)
    assert [args for _, args, _ in sent] == [(prepared,)]
    assert calls == [
        ("get_url_params", ({"a": "b"}, 3), {}),
        ("validate_response", (response,), {}),
    ]
