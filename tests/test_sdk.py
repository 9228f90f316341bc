"""What the tap needs of the SDK's internals: a test fails when the SDK changes one.

A tap of a few lines stands in for ours. It shows what the SDK calls, when and with what,
so that a new release is judged by these tests before it meets our own overrides.
"""

from __future__ import annotations

import inspect
import json
import logging
import signal
import typing as t
from types import SimpleNamespace

import msgspec
import pytest
import requests
from singer_sdk import RESTStream, Stream, Tap
from singer_sdk import typing as th
from singer_sdk.configuration._dict_config import parse_environment_config
from singer_sdk.contrib.msgspec import MsgSpecWriter
from singer_sdk.exceptions import ConfigValidationError
from singer_sdk.pagination import PageNumberPaginator
from singer_sdk.singerlib.messages import RecordMessage, StateMessage
from typing_extensions import override

from tap_bugspulse import tap as tap_module
from tap_bugspulse.client import BugsPulseStream
from tap_bugspulse.events import Events
from tap_bugspulse.pages import Page, Reading
from tap_bugspulse.streams import Network, Sessions
from tap_bugspulse.windows import WindowedStream
from tap_bugspulse.writer import WholeMessageWriter

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.running import Row
    from tests.sandbox import Sandbox

    Call = tuple[str, tuple[t.Any, ...], dict[str, t.Any]]

Kind = t.TypeVar("Kind")

OURS = (
    tap_module.TapBugsPulse,
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
    state_partitioning_keys = ()

    @override
    def get_records(self, context: t.Any) -> Iterator[Row]:
        yield {"id": "child"}


class TinyTap(Tap):
    """A tap of the streams that a test names."""

    name = "tap-tiny"
    config_jsonschema = th.PropertiesList(th.Property("count", th.IntegerType)).to_dict()
    kinds: t.ClassVar[list[type[Stream]]] = [Parents]

    @override
    def discover_streams(self) -> list[Stream]:
        return [kind(self) for kind in self.kinds]


def tap_of(*streams: type[Stream], base: type[Tap] = TinyTap) -> type[Tap]:
    """Return a tap with some streams; the first is the parent of the others."""
    first, *others = streams
    family = [first, *(kind_with(kind, parent_stream_type=first) for kind in others)]
    return kind_with(base, kinds=family)


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
    kind: type[Tap],
    capsys: pytest.CaptureFixture[str],
    state: Row | None = None,
    *deselected: str,
    **config: object,
) -> tuple[Tap, list[Row]]:
    """Run a tap to its end and give it with its messages."""
    catalog = kind().catalog_dict
    for stream in catalog["streams"]:
        for entry in stream["metadata"]:
            if not entry["breadcrumb"]:
                entry["metadata"]["selected"] = stream["tap_stream_id"] not in deselected
    tap = kind(config=config, state=state, catalog=catalog)
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


def test_the_starting_value_and_the_signpost_come_before_the_records(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The SDK asks for both once in a sync, before it asks for the first record."""
    names = ("get_replication_key_signpost", "_write_starting_replication_value")
    kind, calls = noting(Parents, *names, "get_records")
    run(tap_of(kind), capsys)
    assert calls == [(name, (None,), {}) for name in (*names, "get_records")]


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


def test_what_is_written_into_the_stream_state_is_sent_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The stream's state is part of the tap's, and an equal one is not sent again."""
    tap = tap_of(Parents)()
    stream = tap.streams["parents"]
    stream.stream_state["mine"] = 1
    assert stream.tap_state is tap.state
    assert stream.tap_state == {"bookmarks": {"parents": {"mine": 1}}}
    for value in (1, 1, 2, 2):
        stream.stream_state["mine"] = value
        tap.state_writer.write_state(stream.tap_state)
    sent = [json.loads(line)["value"] for line in capsys.readouterr().out.splitlines()]
    assert [one["bookmarks"]["parents"]["mine"] for one in sent] == [1, 2]


def test_a_state_is_sent_when_it_is_said_not_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    """`_write_state_message` looks at `is_flushed`, and the writer drops an equal state."""
    stream = tap_of(Parents)().streams["parents"]
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
    kind = tap_of(kind_with(Parents, **hooks))
    _, messages = run(kind, capsys)
    assert kinds(messages) == [("SCHEMA", "parents")]
    assert written == rows
    run(kind, capsys, None, "parents")
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


def test_no_child_context_means_no_child_and_no_warning(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The SDK asks for contexts by keywords, and with none it skips children silently."""
    kind, calls = noting(Parents, "generate_child_contexts")
    _, messages = run(tap_of(kind, Children), capsys)
    wanted = [("generate_child_contexts", (), {"record": row, "context": None}) for row in ROWS]
    assert calls == wanted
    assert kinds(messages).count(("RECORD", "children")) == len(ROWS)

    silent = kind_with(Parents, generate_child_contexts=lambda *_, **__: iter(()))
    caplog.clear()
    _, messages = run(tap_of(silent, Children), capsys)
    assert kinds(messages) == [("SCHEMA", "parents"), *[("RECORD", "parents")] * 2]
    assert not [one for one in caplog.records if "child" in one.getMessage()]


def test_children_are_synced_by_hand_once_after_the_listing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`_sync_children` with an empty context syncs each child as a whole stream."""
    child, calls = noting(Children, "get_records")
    _, messages = run(tap_of(Listing, child), capsys)
    assert kinds(messages) == [
        ("SCHEMA", "parents"),
        *[("RECORD", "parents")] * 2,
        ("SCHEMA", "children"),
        ("RECORD", "children"),
    ]
    assert calls == [("get_records", (None,), {})]


def test_a_selected_child_of_a_parent_that_is_not_is_synced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A deselected parent is read for its children, and its own rows are not written."""
    _, messages = run(tap_of(Listing, Children), capsys, None, "parents")
    assert kinds(messages) == [("SCHEMA", "children"), ("RECORD", "children")]
    _, messages = run(tap_of(Listing, Children), capsys, None, "children")
    assert ("RECORD", "children") not in kinds(messages)
    assert ("RECORD", "parents") in kinds(messages)


def test_a_child_without_partitions_has_one_bookmark(capsys: pytest.CaptureFixture[str]) -> None:
    """With no keys to partition by, a context leaves no trace in the state."""
    kind = kind_with(Parents, get_child_context=lambda *_, **__: {"parent": "one"})
    tap, _ = run(tap_of(kind, Children), capsys)
    assert "partitions" not in tap.state["bookmarks"].get("children", {})
    assert tap.streams["parents"].child_streams == [tap.streams["children"]]


def test_a_filter_in_a_stream_map_can_be_asked() -> None:
    """The mapper has the maps by stream, and the first tells whether a row is kept."""
    maps = {"parents": {"__filter__": "id == 'one'"}}
    tap = tap_of(Parents)(config={"stream_maps": maps})
    first = tap.mapper.stream_maps["parents"][0]
    assert [bool(first.get_filter_result(row)) for row in ROWS] == [True, False]


# --- Requests ------------------------------------------------------------------------


def rest_stream(sandbox: Sandbox) -> type[RESTStream[int]]:
    """Return a stock stream of the sandbox's crashes."""

    class Stock(RESTStream[int]):
        name = "parents"
        path = "/crashes"
        records_jsonpath = "$.data[*]"
        schema = Parents.schema
        url_base = sandbox.url
        http_headers: t.ClassVar[dict[str, str]] = {"Authorization": f"Bearer {sandbox.api_key}"}

        @override
        def get_new_paginator(self) -> None:
            return None

    return Stock


def test_a_request_is_sent_by_one_method_inside_the_decorator(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """`request_decorator` gets `_request` once; that takes a request and a context."""
    kind, calls = noting(rest_stream(sandbox), "request_decorator", "_request", "validate_response")
    tap, messages = run(tap_of(kind), capsys)
    stream = t.cast("RESTStream[int]", tap.streams["parents"])
    assert [name for name, _, _ in calls] == ["request_decorator", "_request", "validate_response"]
    (decorated,), (request, context), (response,) = (args for _, args, _ in calls)
    assert decorated == stream._request  # noqa: SLF001 - this is what the test is of
    assert isinstance(request, requests.PreparedRequest)
    assert context is None
    assert isinstance(response, requests.Response)
    assert len(kinds(messages)) == 1 + len(sandbox.project.crashes)


def test_a_request_is_made_of_a_context_and_the_number_of_a_page(sandbox: Sandbox) -> None:
    """`_prepare_request` takes both, and `get_url_params` says what is asked for."""
    kind, calls = noting(rest_stream(sandbox), "get_url_params")
    stream = kind(tap_of(Parents)())
    at = PageNumberPaginator(start_value=3)
    prepared = stream._prepare_request(context={"a": "b"}, page=at)  # noqa: SLF001 - it is called
    assert calls == [("get_url_params", ({"a": "b"}, 3), {})]
    assert prepared.url == sandbox.url + "/crashes"


def test_a_request_goes_through_the_session_of_the_stream(sandbox: Sandbox) -> None:
    """`_request` calls `send` of `requests_session`, with the request and keywords."""
    session, calls = noting(requests.Session, "send")
    kind = kind_with(rest_stream(sandbox), requests_session=session())
    stream = kind(tap_of(Parents)())
    prepared = stream.build_prepared_request(
        method="GET", url=sandbox.url + "/crashes", headers=stream.http_headers
    )
    response = stream._request(prepared, {"a": "b"})  # noqa: SLF001 - it is overridden
    assert response.json()["total"] == len(sandbox.project.crashes)
    ((_, (sent,), keywords),) = calls
    assert sent is prepared
    assert set(keywords) == {"timeout", "allow_redirects"}


def test_a_wait_is_told_by_the_error(sandbox: Sandbox) -> None:
    """`backoff_runtime` is primed once and then gives a wait for each error sent to it."""
    stream = rest_stream(sandbox)(tap_of(Parents)())
    waits: t.Any = stream.backoff_runtime(value=lambda error: len(str(error)))
    assert next(waits) is None
    assert [waits.send(ValueError(text)) for text in ("a", "abc")] == [1, 3]


def test_a_paginator_ends_where_there_is_no_more() -> None:
    """`advance` asks `has_more` and `get_next`, and then moves `current_value`."""
    kind, calls = noting(Reading, "has_more", "get_next")
    paginator = kind()
    for name in "ab":
        response = requests.Response()
        vars(response)["page"] = Page([SimpleNamespace(id=name)], total=2)
        assert not paginator.finished
        paginator.advance(response)
    assert [name for name, _, _ in calls] == ["has_more", "get_next", "has_more"]
    assert (paginator.current_value, paginator.finished) == (2, True)


# --- The run -------------------------------------------------------------------------


def test_costs_are_logged_once_for_each_stream_when_all_is_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`log_sync_costs` comes at the end, by name, for children and deselected ones, too."""
    ended: list[tuple[str, int]] = []
    records: list[str] = []

    def log_sync_costs(self: Stream) -> None:
        ended.append((self.name, len(records)))

    def post_process(self: Stream, row: Row, *_: object) -> Row:
        records.append(self.name)
        return row

    hooks: dict[str, object] = {"log_sync_costs": log_sync_costs, "post_process": post_process}
    family = tap_of(kind_with(Listing, **hooks), kind_with(Children, **hooks))
    tap, _ = run(family, capsys)
    assert ended == [("children", 3), ("parents", 3)]
    assert [name for name, _ in ended] == list(tap.streams)
    run(family, capsys, None, "children")
    assert ended[2:] == [("children", 5), ("parents", 5)]


def test_an_error_in_a_stream_is_logged_by_a_logger_of_its_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The line that our filter leaves out comes from the stream's logger, and only it."""

    def get_records(*_: object) -> Iterator[Row]:
        yield {"id": 1 / 0}

    tap_module.TapBugsPulse(config={"api_key": "bp_x"})  # puts the filter on its streams' loggers
    ours = logging.getLogger("tap-bugspulse.crashes").filters[-1]
    tap = tap_of(kind_with(Parents, get_records=get_records))()
    for is_filtered in (False, True):
        caplog.clear()
        if is_filtered:
            tap.logger.getChild("parents").addFilter(ours)
        with pytest.raises(ZeroDivisionError):
            tap.sync_all()
        errors = [one for one in caplog.records if one.levelno >= logging.ERROR]
        assert [one.name for one in errors] == [] if is_filtered else ["tap-tiny.parents"]
    tap.logger.getChild("parents").removeFilter(ours)


def test_a_connection_test_wants_one_record_of_each_stream(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`--test` sets ABORT_AT_RECORD_COUNT of children, too, which is None otherwise."""
    tap = tap_of(Parents, Children)()
    assert {one.ABORT_AT_RECORD_COUNT for one in tap.streams.values()} == {None}
    assert tap.run_connection_test()
    assert {one.ABORT_AT_RECORD_COUNT for one in tap.streams.values()} == {1}
    rows = [one for one in capsys.readouterr().out.splitlines() if '"RECORD"' in one]
    assert len(rows) == 2


def test_batches_and_versions_are_asked_for_by_hooks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Where the two hooks of a stream say no, no setting brings BATCH or a version."""
    batch = {
        "encoding": {"format": "jsonl", "compression": "none"},
        "storage": {"root": tmp_path.as_uri()},
    }
    full = kind_with(Parents, replication_key=None)
    names = ("emit_activate_version_messages", "get_batch_config")
    quiet = kind_with(full, **{name: vars(BugsPulseStream)[name] for name in names})
    settings: dict[str, t.Any] = {"emit_activate_version_messages": True}
    _, messages = run(tap_of(full), capsys, **settings)
    assert "ACTIVATE_VERSION" in {one["type"] for one in messages}
    _, messages = run(tap_of(quiet), capsys, batch_config=batch, **settings)
    assert kinds(messages) == [("SCHEMA", "parents"), *[("RECORD", "parents")] * 2]


# --- Starting and ending -------------------------------------------------------------


def test_a_tap_is_set_up_in_the_order_that_ours_relies_on() -> None:
    """Settings are validated first, then signals are handled, then the state is loaded."""
    names = ("_validate_config", "_setup_signal_handlers", "setup_mapper", "load_state")
    kind, calls = noting(TinyTap, *names)
    state = {"bookmarks": {"parents": {"mine": 1}}}
    tap = kind(config={"count": 1}, state=state)
    assert [name for name, _, _ in calls] == list(names)
    assert calls[0][1:] == ((), {"raise_errors": True})
    assert calls[-1][1:] == ((state,), {})
    calls.clear()
    kind(validate_config=False)
    assert calls[0][1:] == ((), {"raise_errors": False})
    tap._config = {"count": 2}  # noqa: SLF001 - our validation puts there what it has read
    assert tap.config["count"] == 2
    assert tap.metrics_logger.name == "singer_sdk.metrics"


def test_validation_says_what_is_wrong_in_errors() -> None:
    """A wrong setting raises an error whose `errors` our last line is made of."""
    with pytest.raises(ConfigValidationError) as caught:
        TinyTap(config={"count": "many"})
    assert [("many" in text, "count" in text) for text in caught.value.errors] == [(True, True)]


def test_the_environment_is_read_as_the_schema_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """`_env_var_config` is asked for it, and what the schema calls a text is left as it stands."""
    monkeypatch.setenv("TAP_TINY_COUNT", "many")
    texts = {"properties": {"count": {"type": "string"}, "other": {"type": "string"}}}
    found = parse_environment_config(texts, "TAP_TINY_")
    assert found == {"count": "many"}
    # The SDK's own reading raises a ValueError that names no setting.
    with pytest.raises(ValueError, match="many") as caught:
        TinyTap(parse_env_config=True)
    assert "COUNT" not in str(caught.value).upper().replace("MANY", "")
    ours = kind_with(TinyTap, _env_var_config={"count": 3})
    assert ours(parse_env_config=True).config["count"] == 3


def test_settings_of_the_sdk_are_added_to_the_given_schema() -> None:
    """`append_builtin_config` changes the schema it gets, by what the tap can do."""
    for kind, has_batches in ((TinyTap, True), (tap_module.TapBugsPulse, False)):
        schema: Row = {"properties": {}}
        kind.append_builtin_config(schema)
        assert {"stream_maps", "flattening_enabled"} <= schema["properties"].keys()
        assert ("batch_config" in schema["properties"]) is has_batches


def test_signals_reach_the_method_that_ends_the_run() -> None:
    """SIGINT and SIGTERM call `_handle_termination`, which else ends with 0."""
    handled: list[int] = []

    def _handle_termination(self: Tap, signum: int, frame: object) -> None:
        del self, frame
        handled.append(signum)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(signum) for signum in signals]
    try:
        kind_with(TinyTap, _handle_termination=_handle_termination)()
        for signum in signals:
            signal.raise_signal(signum)
        tap = TinyTap()
        with pytest.raises(SystemExit) as ended:
            tap._handle_termination(signal.SIGTERM, None)  # noqa: SLF001 - it is overridden
    finally:
        for signum, handler in zip(signals, before, strict=True):
            signal.signal(signum, handler)
    assert handled == list(signals)
    assert ended.value.code == 0


def test_all_messages_go_through_the_writer_of_the_class(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    """A tap makes its writer without arguments, and states go through it as rows do."""
    writer, calls = noting(MsgSpecWriter, "write_message")
    tap = tap_of(Parents, base=kind_with(TinyTap, message_writer_class=writer))()
    assert type(tap.message_writer) is writer
    tap.sync_all()
    written = [type(args[0]).__name__ for _, args, _ in calls]
    assert written[:3] == ["SchemaMessage", "RecordMessage", "RecordMessage"]
    assert set(written[3:]) == {"StateMessage"}
    assert len(capsysbinary.readouterr().out.splitlines()) == len(written)


def test_a_message_is_formatted_as_one_line() -> None:
    """`format_message` gives a whole line, which the next message may overwrite."""
    writer: MsgSpecWriter = MsgSpecWriter()
    state = bytes(writer.format_message(StateMessage(value={"a": 1})))
    row = bytes(writer.format_message(RecordMessage(stream="x", record={"b": "é"})))
    assert json.loads(state) == {"type": "STATE", "value": {"a": 1}}
    assert json.loads(row)["record"] == {"b": "é"}
    assert [one.count(b"\n") for one in (state, row)] == [1, 1]
    assert state.endswith(b"\n")


# --- The command line ----------------------------------------------------------------


def test_the_command_line_asks_the_methods_that_are_overridden(tmp_path: Path) -> None:
    """--config and --test call `cb_config` and `cb_test`; files come to `invoke` open."""
    asked: list[tuple[str, object]] = []

    class Asked(TinyTap):
        @classmethod
        @override
        def cb_config(cls, ctx: t.Any, param: t.Any, value: tuple[str, ...]) -> t.Any:
            asked.append(("cb_config", value))
            return super().cb_config(ctx, param, value)

        @classmethod
        @override
        def cb_test(cls, ctx: t.Any, param: t.Any, value: str) -> None:
            asked.append(("cb_test", value))
            super().cb_test(ctx, param, "disabled")

        @classmethod
        @override
        def invoke(cls, **kwargs: t.Any) -> None:
            asked.append(("invoke", sorted(kwargs)))
            asked.append(("state", kwargs["state"].read()))
            asked.append(("catalog", kwargs["catalog"]))

    state = tmp_path / "state.json"
    state.write_text("{}")
    command = Asked.get_singer_command()
    arguments = ["--config", "ENV", "--test", "--state", str(state)]
    with command.make_context("tap", arguments) as context:
        assert command.callback is not None
        command.callback(**context.params)
    assert asked == [
        ("cb_config", ("ENV",)),
        ("cb_test", "all"),
        ("invoke", ["about", "about_format", "catalog", "config", "state"]),
        ("state", "{}"),
        ("catalog", None),
    ]


def test_a_config_file_that_cannot_be_read_fails_in_its_callback(tmp_path: Path) -> None:
    """A missing file raises an OSError and broken JSON a ValueError, for ours to catch."""
    command = TinyTap.get_singer_command()
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for path, error in ((tmp_path / "none.json", OSError), (broken, ValueError)):
        with pytest.raises(error):
            command.make_context("tap", ["--config", str(path)])
