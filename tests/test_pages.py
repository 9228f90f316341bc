"""How a page of the API becomes rows of a table, whatever it holds."""

from __future__ import annotations

import json
import typing as t

import msgspec
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from singer_sdk.exceptions import RetriableAPIError

from tap_bugspulse.pages import EXTRA, PROJECT, Reading, Table, page_of
from tests.conftest import NOW
from tests.running import PRIMARY_KEYS, Row, tap_class
from tests.sandbox import generate

if t.TYPE_CHECKING:
    from tap_bugspulse.client import BugsPulseStream
    from tap_bugspulse.pages import Page

STREAMS = tap_class(NOW)(config={"api_key": "bp_x", "project": "ios-app"}).streams
TABLES = {name: t.cast("BugsPulseStream", one).table for name, one in STREAMS.items()}
NAMES = sorted({name for one in STREAMS.values() for name in one.schema["properties"]})
DEEP = 100_000

instants = st.sampled_from(
    (
        "2026-02-01T00:00:00.000Z",
        "2026-02-01T00:00:00Z",
        "2026-02-01T00:00:00.5Z",
        "2026-02-01T00:00:00,123Z",
        "2026-02-01T05:30:00.5+05:30",
        "2026-02-01T00:00:00",
        "2026-02-01",
        "20260201T000000Z",
        "2026-W47-5T10:00:00Z",
        "2026-02-01T10Z",
        "2026-02-01x10:00:00Z",
        "2026-02-01 10:00:00Z",
        "2026-02-01T24:00:00Z",
        "2026-02-01T23:59:60Z",
        "2026-02-01t00:00:00z",
        "2026-02-01T00:00:00z",
        "2026-02-30T00:00:00Z",
        "1899-12-31T23:59:59Z",
        "1900-01-01T00:00:00Z",
        "9000-01-01T00:00:00Z",
        "0001-01-01T00:00:00Z",
        "Z",
        "",
    )
)
texts = st.text(max_size=5) | st.sampled_from(("\ud83d", "a\udc00", "\U0001f600", "\x00"))
simple = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from((0, 1, 3.0, -0.0, 1e300, 2**63 - 1, 2**63, 2**64, -(2**63) - 1))
    | texts
    | instants
)
values = st.recursive(
    simple,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
as_documented = {
    "string": texts,
    "integer": st.integers(),
    "boolean": st.booleans(),
    "object": st.dictionaries(texts, values, max_size=2),
    "date-time": instants,
}


def bodies(stream: str) -> st.SearchStrategy[bytes]:
    """Return pages: as documented, with other values and columns, or with other rows."""
    kinds = {}
    for name, column in STREAMS[stream].schema["properties"].items():
        kind = column["type"]
        kind = kind if isinstance(kind, str) else kind[0]
        if name not in {"id", EXTRA, PROJECT}:
            kinds[name] = as_documented[column.get("format", kind)] | st.none()
    good = st.fixed_dictionaries({"id": st.text(min_size=1, max_size=3)}, optional=kinds)
    odd = st.dictionaries(st.sampled_from(NAMES) | texts, values, max_size=2)
    mixed = st.builds(lambda row, other: {**row, **other}, good, odd)
    counts = st.integers(0, 5)
    documented = st.fixed_dictionaries({"data": st.lists(good, max_size=3), "total": counts})
    others = st.fixed_dictionaries(
        {"data": st.lists(good | mixed | values, max_size=3) | st.none()},
        optional={"total": counts | simple, "pages": counts | simple, "next": simple},
    )
    return (documented | others).map(lambda page: json.dumps(page).encode())


def body(row: str) -> bytes:
    """Return the page that has this row."""
    return f'{{"data": [{row}], "total": 1}}'.encode()


def read(decode: t.Callable[[bytes], Page], content: bytes) -> tuple[Page, bytes] | None:
    """Return a page and its rows as they are written, None where it is none."""
    try:
        page = decode(content)
    except ValueError:
        return None
    return page, msgspec.json.encode(page.rows, order="sorted")


def value_by_value(table: Table) -> t.Callable[[bytes], Page]:
    """Return the slower way of a table to read a page."""
    return table._decode_any  # noqa: SLF001 - what the fast way must agree with


def row_of(stream: str, columns: str) -> tuple[Row, Row]:
    """Return the one row that a page has, and what is in its `_extra`."""
    page = TABLES[stream].decode(body(f'{{"id": "x", {columns}}}'))
    assert page == value_by_value(TABLES[stream])(body(f'{{"id": "x", {columns}}}'))
    (row,) = json.loads(msgspec.json.encode(page.rows))
    extra = row.pop("_extra")
    assert sorted(page.misfits) == sorted(set(extra or {}) - page.unknown)
    return row, extra or {}


# --- Two ways to the same row ----------------------------------------------------------


@pytest.mark.parametrize("name", PRIMARY_KEYS)
@given(data=st.data())
def test_a_row_is_the_same_however_its_page_was_decoded(name: str, data: st.DataObject) -> None:
    """Decoded into the columns' types it is as it is when fitted value by value."""
    content, table = data.draw(bodies(name)), TABLES[name]
    assert read(table.decode, content) == read(value_by_value(table), content)


@pytest.mark.parametrize("name", PRIMARY_KEYS)
@pytest.mark.parametrize("depth", [90, 97, 98, 99, 100, 101, 400])
def test_a_row_is_the_same_at_any_depth(name: str, depth: int) -> None:
    """What is too deep for a warehouse becomes text in both ways at the same level."""
    inner = "[" * depth + "1" + "]" * depth
    for column in ("data", "new"):
        content = body(f'{{"id": "x", "{column}": {{"deep": {inner}}}}}')
        table = TABLES[name]
        assert read(table.decode, content) == read(value_by_value(table), content)


@pytest.mark.parametrize("name", PRIMARY_KEYS)
def test_pages_as_documented_are_decoded_at_once(name: str) -> None:
    """None of their rows is looked at value by value, which takes longer."""

    class OnlyAtOnce(Table):
        def _decode_any(self, content: bytes) -> Page:
            raise AssertionError(content[:100])

    table = OnlyAtOnce(name, STREAMS[name].schema["properties"])
    project = generate(seed=7, sessions=200, days=20, until=NOW)
    rows = [row for many in project.events.values() for row in many]
    if name != "events":
        rows = list(project.table(name).values())
    page = table.decode(json.dumps({"data": rows, "total": len(rows)}).encode())
    assert len(page.rows) == page.total == len(rows) > 0


# --- Values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kept"),
    [
        ("9223372036854775807", None),
        ("9223372036854775808", 9223372036854775808),
        ("-9223372036854775809", -9223372036854775809),
        ("1180591620717411303424", 2**70),
        ("1e300", 1e300),
        ("1.5", 1.5),
        ('"12"', "12"),
    ],
)
def test_a_number_that_no_database_holds_is_kept_aside(number: str, kept: object) -> None:
    """A whole number has 64 bits at most; anything else is null, and raw in `_extra`."""
    row, extra = row_of("sessions", f'"duration": {number}')
    assert row["duration"] == (int(number) if kept is None else None)
    assert extra == ({} if kept is None else {"duration": kept})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_a_number_that_is_none_is_null(number: str) -> None:
    """What JSON has no word for is read as nothing, in a column and inside of data."""
    assert row_of("sessions", f'"duration": {number}')[0]["duration"] is None
    assert row_of("events", f'"data": {{"a": {number}}}')[0]["data"] == {"a": None}


@pytest.mark.parametrize("number", ["3.0", "3e0", "3"])
def test_a_whole_number_may_be_written_as_a_fraction(number: str) -> None:
    """Languages with one kind of number write it so."""
    row, extra = row_of("sessions", f'"duration": {number}')
    assert (json.dumps(row["duration"]), extra) == ("3", {})


@pytest.mark.parametrize(
    ("flag", "fits"), [("0", False), ("1", True), ("true", True), ("2", None), ('"true"', None)]
)
def test_a_flag_may_be_zero_or_one(flag: str, fits: object) -> None:
    """Databases without a boolean type send numbers; others are kept aside."""
    row, extra = row_of("sessions", f'"hasCrash": {flag}')
    assert row["hasCrash"] is fits
    assert extra == ({"hasCrash": json.loads(flag)} if fits is None else {})


def test_an_id_may_be_a_number() -> None:
    """Ids are text in the warehouse, whatever the API sends."""
    assert row_of("network", '"sessionId": 12')[0]["sessionId"] == "12"
    page = TABLES["network"].decode(body('{"id": 7}'))
    assert [row.id for row in page.rows] == ["7"]


@pytest.mark.parametrize(
    ("text", "loaded"),
    [
        ("2026-11-20T10:00:00.123Z", "2026-11-20T10:00:00.123Z"),
        ("2026-11-20T10:00:00Z", "2026-11-20T10:00:00Z"),
        ("2026-11-20t10:00:00z", "2026-11-20T10:00:00.000Z"),
        ("2026-11-20T10:00:00+05:30", "2026-11-20T04:30:00.000Z"),
        ("2026-11-20T10:00:00", "2026-11-20T10:00:00.000Z"),
        ("2026-W47-5T10:00:00Z", None),
        ("2026-11-20T10Z", None),
        ("2026-11-20T10:00:00,123Z", None),
        ("2026-11-20x10:00:00Z", None),
        ("2026-11-20", None),
        ("2026-02-30T10:00:00Z", None),
        ("0001-01-01T00:00:00Z", None),
        ("9999-12-31T23:59:59Z", None),
        ("", None),
    ],
)
def test_an_instant_has_the_form_that_every_target_reads(text: str, loaded: str | None) -> None:
    """Other forms than RFC 3339's, and years that no clock is set to, are kept aside."""
    for stream, column in (("sessions", "startedAt"), ("events", "timestamp")):
        row, extra = row_of(stream, f'"{column}": "{text}"')
        assert row[column] == loaded
        assert extra == ({} if loaded else {column: text})


@pytest.mark.parametrize("data", ['"low memory"', '["low memory", 2]', "5", "true"])
def test_data_that_is_no_object_becomes_one(data: str) -> None:
    """Its value is under `value`, so that every target can load it."""
    row, extra = row_of("events", f'"data": {data}')
    assert (row["data"], extra) == ({"value": json.loads(data)}, {})


@pytest.mark.parametrize("field", ['"new": [2]', '"_extra": {"a": 1}', '"project": "b"'])
def test_what_has_no_column_is_kept_aside(field: str) -> None:
    """Also a field that has the name of a column of ours, which is not the API's."""
    row, extra = row_of("crashes", field)
    assert extra == json.loads(f"{{{field}}}")
    assert row["project"] == "ios-app"


@pytest.mark.parametrize("row", ["{}", '{"id": null}', '{"id": ""}', '{"id": {}}', "5"])
def test_a_row_without_a_key_is_counted(row: str) -> None:
    """No table can hold it."""
    page = TABLES["crashes"].decode(body(row))
    assert (page.rows, page.without_key) == ([], 1)


# --- Text ------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_the_page() -> None:
    """Some servers put one before what they send."""
    page = TABLES["sessions"].decode(b"\xef\xbb\xbf" + body('{"id": "1"}'))
    assert [row.id for row in page.rows] == ["1"]


def test_bytes_that_are_no_text_are_replaced() -> None:
    """One byte of another encoding becomes U+FFFD instead of stopping the stream."""
    content = body('{"id": "1", "message": "caf?"}').replace(b"?", b"\xe9")
    (row,) = TABLES["crashes"].decode(content).rows
    assert row.message == "caf\ufffd"


@pytest.mark.parametrize("half", ["\\ud83d", "\\uDE00", "a\\ud83d\\ud83d"])
def test_text_that_was_cut_inside_a_character_is_kept(half: str) -> None:
    """Half a surrogate pair becomes a question mark instead of stopping the stream."""
    row, _ = row_of("crashes", f'"message": "{half}"')
    assert row["message"] == half.replace("\\ud83d", "?").replace("\\uDE00", "?")
    assert row_of("crashes", '"message": "\\ud83d\\ude00"')[0]["message"] == "\U0001f600"


@pytest.mark.parametrize("depth", [150, 400, 1000, DEEP])
@pytest.mark.parametrize(("opens", "closes"), [("[", "]"), ('{"a":', "}")])
def test_data_may_be_deeper_than_others_can_read(depth: int, opens: str, closes: str) -> None:
    """What others could not read becomes text in its place, and nothing is lost."""
    row, extra = row_of("events", f'"data": {{"in": {opens * depth}1{closes * depth}}}')
    text = json.dumps(row["data"])
    levels = 0
    value: t.Any = row["data"]["in"]
    while not isinstance(value, str):
        value = value[0] if isinstance(value, list) else value["a"]
        levels += 1
    assert levels < 100
    assert value == f"{opens * (depth - levels)}1{closes * (depth - levels)}"
    assert len(text) > depth
    assert extra == {}


# --- Envelopes -------------------------------------------------------------------------


def answer(content: bytes, status: int = 200) -> requests.Response:
    """Return an answer with a body."""
    response = requests.Response()
    response.status_code = status
    response._content = content  # noqa: SLF001 - there is no other way to make one
    return response


def page_in(response: requests.Response) -> Page:
    """Return the page of an answer about sessions, or raise what it is refused with."""
    t.cast("BugsPulseStream", STREAMS["sessions"]).validate_response(response)
    return page_of(response)


@pytest.mark.parametrize(
    "content",
    [
        b'{"data": [{"id": "1"}], "page": 1, "limit": 1}',
        b'{"data": [{"id": "1"}], "tota\xff": 250, "page": 1, "limit": 1}',
        b'{"data": {"id": "1"}, "total": 1}',
        b'{"total": 1}',
        b'[{"id": "1"}]',
        b'{"data": [{"id": "1"',
        b"[" * DEEP,
        b"",
    ],
)
def test_what_is_no_page_is_asked_for_again(content: bytes) -> None:
    """A page counts its rows or pages, or there is no telling whether it is the last."""
    with pytest.raises(RetriableAPIError, match="without the documented JSON body"):
        page_in(answer(content))


@pytest.mark.parametrize(("content", "status"), [(b'{"data": null, "total": 0}', 200), (b"", 204)])
def test_an_empty_listing_may_have_no_data(content: bytes, status: int) -> None:
    """Some APIs send null or nothing where there are no rows."""
    page = page_in(answer(content, status))
    assert (page.rows, page.total) == ([], 0)


def test_a_page_with_more_in_its_envelope_is_read() -> None:
    """What an API adds to it does no harm."""
    page = TABLES["sessions"].decode(b'{"data": [{"id": "1"}], "total": 3, "next": 2}')
    assert ([row.id for row in page.rows], page.total) == (["1"], 3)


@pytest.mark.parametrize(
    ("envelopes", "pages"),
    [
        # All of `total` have come, whatever else the envelope says.
        (['"total": 5, "limit": 2, "pages": 3', '"total": 5', '"total": 5'], 3),
        (['"total": 3', '"total": 3'], 2),
        (['"total": "4", "pages": 1', '"total": "4", "pages": 1'], 2),
        (['"total": 2, "limit": 42, "pages": 7'], 1),
        (['"total": 4, "page": 9', '"total": 4, "page": 9'], 2),
        # Nothing is counted but the pages.
        (['"pages": 2', '"pages": 2'], 2),
        (['"pages": 1'], 1),
    ],
)
def test_pages_end_when_all_rows_have_come(envelopes: list[str], pages: int) -> None:
    """The number of rows decides; that of the pages only where rows are not counted."""
    paginator, number = Reading(), 0
    for envelope in envelopes:
        assert not paginator.finished
        response = answer(f'{{"data": [{{"id": "{number}"}}, {{}}], {envelope}}}'.encode())
        page_in(response)
        paginator.advance(response)
        number += 1
    assert (number, paginator.finished) == (pages, True)


def test_pages_without_a_key_do_not_end_a_listing() -> None:
    """Two of them in a row are not one that is sent twice."""
    paginator = Reading()
    for _ in range(2):
        response = answer(b'{"data": [{}, {}], "total": 6}')
        page_in(response)
        paginator.advance(response)
        assert not paginator.finished


def test_an_empty_page_is_the_last() -> None:
    """Rows that an API counts but never sends are not asked for endlessly."""
    paginator = Reading()
    for rows, is_last in (('{"id": "1"}', False), ("", True)):
        response = answer(f'{{"data": [{rows}], "total": 9}}'.encode())
        page_in(response)
        paginator.advance(response)
        assert paginator.finished is is_last
