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

from tap_bugspulse.client import BugsPulseStream
from tap_bugspulse.pages import EXTRA, PROJECT, Page, Reading, Table, page_of
from tests.conftest import NOW
from tests.running import PRIMARY_KEYS, Row, tap_class
from tests.sandbox import generate_once

STREAMS = tap_class(NOW)(config={"api_key": "bp_x", "project": "ios-app"}).streams
TABLES = {name: t.cast("BugsPulseStream", one).table for name, one in STREAMS.items()}
NAMES = sorted({name for one in STREAMS.values() for name in one.schema["properties"]})
DEEP = 100_000

# What is no instant of RFC 3339's form, or of a year that clocks are set to, loads as null.
INSTANTS: dict[str, str | None] = {
    "2026-11-20T10:00:00.123Z": "2026-11-20T10:00:00.123Z",
    "2026-11-20T10:00:00Z": "2026-11-20T10:00:00Z",
    "2026-11-20T10:00:00.5Z": "2026-11-20T10:00:00.5Z",
    "2026-11-20t10:00:00z": "2026-11-20T10:00:00.000Z",
    "2026-11-20T10:00:00z": "2026-11-20T10:00:00.000Z",
    "2026-11-20 10:00:00Z": "2026-11-20T10:00:00.000Z",
    "2026-11-20T10:00:00.5+05:30": "2026-11-20T04:30:00.500Z",
    "2026-11-20T10:00:00": "2026-11-20T10:00:00.000Z",
    "1900-01-01T00:00:00Z": "1900-01-01T00:00:00Z",
} | dict.fromkeys(
    (
        *("2026-11-20", "20261120T100000Z", "2026-W47-5T10:00:00Z", "2026-11-20T10Z", "Z", ""),
        *("2026-11-20T10:00:00,123Z", "2026-11-20x10:00:00Z", "2026-02-30T10:00:00Z"),
        *("2026-11-20T24:00:00Z", "2026-11-20T23:59:60Z", "1899-12-31T23:59:59Z"),
        *("0001-01-01T00:00:00Z", "9000-01-01T00:00:00Z", "9999-12-31T23:59:59Z"),
    )
)
instants = st.sampled_from(sorted(INSTANTS))
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
def test_pages_as_documented_are_decoded_at_once(name: str) -> None:
    """None of their rows is looked at value by value, which takes longer."""

    class OnlyAtOnce(Table):
        def _decode_any(self, content: bytes) -> Page:
            raise AssertionError(content[:100])

    table = OnlyAtOnce(name, STREAMS[name].schema["properties"])
    project = generate_once(seed=7, sessions=200, days=20, until=NOW)
    rows = [row for many in project.events.values() for row in many]
    if name != "events":
        rows = list(project.table(name).values())
    page = table.decode(json.dumps({"data": rows, "total": len(rows)}).encode())
    assert len(page.rows) == page.total == len(rows) > 0


# --- Values ----------------------------------------------------------------------------

BEYOND = 2**63  # no database holds it
AS_SENT = ('"low memory"', '["low memory", 2]', "5", "true")


@pytest.mark.parametrize(
    ("column", "sent", "loaded"),
    [
        # A whole number has 64 bits at most, and may be written as a fraction.
        ("sessions.duration", f"{BEYOND - 1}", BEYOND - 1),
        *(("sessions.duration", sent, 3) for sent in ("3", "3.0", "3e0")),
        *(("sessions.duration", f"{sent}", None) for sent in (BEYOND, -BEYOND - 1, 2**70)),
        *(("sessions.duration", sent, None) for sent in ("1e300", "1.5", '"12"')),
        # Databases without a boolean type send 0 and 1.
        *(("sessions.hasCrash", sent, sent != "0") for sent in ("0", "1", "true")),
        *(("sessions.hasCrash", sent, None) for sent in ("2", '"true"')),
        # Ids are text in the warehouse, whatever the API sends.
        ("network.sessionId", "12", "12"),
        # Data that is no object becomes one, so that every target can load it.
        *(("events.data", sent, {"value": json.loads(sent)}) for sent in AS_SENT),
        *(("sessions.startedAt", f'"{text}"', loaded) for text, loaded in INSTANTS.items()),
        *(("events.timestamp", f'"{text}"', loaded) for text, loaded in INSTANTS.items()),
    ],
)
def test_a_value_that_does_not_fit_its_column_is_kept_aside(
    column: str, sent: str, loaded: object
) -> None:
    """The column has the form that every target reads, or is null with the value in `_extra`."""
    stream, name = column.split(".")
    row, extra = row_of(stream, f'"{name}": {sent}')
    assert json.dumps(row[name]) == json.dumps(loaded)
    assert {one for one in row if row[one] is not None} <= {"id", "project", name}
    assert extra == ({name: json.loads(sent)} if loaded is None else {})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_a_number_that_is_none_is_null(number: str) -> None:
    """What JSON has no word for is read as nothing, in a column and inside of data."""
    assert row_of("sessions", f'"duration": {number}')[0]["duration"] is None
    assert row_of("events", f'"data": {{"a": {number}}}')[0]["data"] == {"a": None}


@pytest.mark.parametrize("field", ['"new": [2]', '"_extra": {"a": 1}', '"project": "b"'])
def test_what_has_no_column_is_kept_aside(field: str) -> None:
    """Also a field that has the name of a column of ours, which is not the API's."""
    row, extra = row_of("crashes", field)
    assert extra == json.loads(f"{{{field}}}")
    assert row["project"] == "ios-app"


@pytest.mark.parametrize("row", ["{}", '{"id": null}', '{"id": ""}', '{"id": {}}', "5"])
def test_a_row_without_a_key_is_counted(row: str) -> None:
    """No table can hold it; a number is a key, as text."""
    page = TABLES["crashes"].decode(f'{{"data": [{row}, {{"id": 7}}], "total": 2}}'.encode())
    assert ([one.id for one in page.rows], page.without_key) == (["7"], 1)


# --- Text ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"caf\xe9", "caf\ufffd"),
        (b"\\ud83d", "?"),
        (b"\\uDE00", "?"),
        (b"a\\ud83d\\ud83d", "a??"),
        (b"\\ud83d\\ude00", "\U0001f600"),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte order mark"])
def test_text_that_is_damaged_is_read(mark: bytes, sent: bytes, message: str) -> None:
    """A byte of another encoding, or half a surrogate pair, stops no stream."""
    content = body('{"id": "1", "message": "%"}').replace(b"%", sent)
    (row,) = TABLES["crashes"].decode(mark + content).rows
    assert row.message == message


@pytest.mark.parametrize("depth", [90, 97, 98, 99, 100, 101, 400, DEEP])
@pytest.mark.parametrize(("opens", "closes"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize(("stream", "column"), [("events", "data"), ("sessions", "new")])
def test_values_may_be_deeper_than_others_can_read(
    stream: str, column: str, opens: str, closes: str, depth: int
) -> None:
    """What others could not read becomes text in its place, and nothing is lost."""
    row, extra = row_of(stream, f'"{column}": {{"in": {opens * depth}1{closes * depth}}}')
    value, levels = {**row, **extra}[column]["in"], 0
    while isinstance(value, list | dict):
        (value,) = value.values() if isinstance(value, dict) else value
        levels += 1
    assert levels < 100
    assert str(value) == f"{opens * (depth - levels)}1{closes * (depth - levels)}"


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


@pytest.mark.parametrize(
    ("content", "status", "ids", "total"),
    [
        (b'{"data": null, "total": 0}', 200, [], 0),
        (b"", 204, [], 0),
        (b'{"data": [{"id": "1"}], "total": 3, "next": 2}', 200, ["1"], 3),
    ],
)
def test_a_page_may_have_no_data_or_more_in_its_envelope(
    content: bytes, status: int, ids: list[str], total: int
) -> None:
    """Some APIs send null or nothing where there are no rows; what one adds does no harm."""
    page = page_in(answer(content, status))
    assert ([row.id for row in page.rows], page.total) == (ids, total)


def ends(*pages: str) -> list[bool]:
    """Return whether a listing has ended after each of its pages."""
    paginator, found = Reading(), []
    for page in pages:
        response = answer(f"{{{page}}}".encode())
        page_in(response)
        paginator.advance(response)
        found.append(paginator.finished)
    return found


@pytest.mark.parametrize(
    "envelopes",
    [
        # All of `total` have come, whatever else the envelope says.
        ['"total": 5, "limit": 2, "pages": 3', '"total": 5', '"total": 5'],
        ['"total": 3', '"total": 3'],
        ['"total": "4", "pages": 1', '"total": "4", "pages": 1'],
        ['"total": 2, "limit": 42, "pages": 7'],
        ['"total": 4, "page": 9', '"total": 4, "page": 9'],
        # Nothing is counted but the pages.
        ['"pages": 2', '"pages": 2'],
        ['"pages": 1'],
    ],
)
def test_pages_end_when_all_rows_have_come(envelopes: list[str]) -> None:
    """The number of rows decides; that of the pages only where rows are not counted."""
    pages = [f'"data": [{{"id": "{n}"}}, {{}}], {one}' for n, one in enumerate(envelopes)]
    assert ends(*pages) == [False] * (len(pages) - 1) + [True]


def test_pages_without_a_key_do_not_end_a_listing() -> None:
    """Two of them in a row are not one that is sent twice."""
    assert ends(*['"data": [{}, {}], "total": 6'] * 2) == [False, False]


def test_an_empty_page_is_the_last() -> None:
    """Rows that an API counts but never sends are not asked for endlessly."""
    assert ends('"data": [{"id": "1"}], "total": 9', '"data": [], "total": 9') == [False, True]
