"""How rows of the API become rows of a table, whatever they hold."""

from __future__ import annotations

import json
import typing as t

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from singer_sdk.exceptions import RetriableAPIError

from tap_bugspulse.paging import Page
from tests.conftest import NOW
from tests.running import PRIMARY_KEYS, Row, tap_class
from tests.sandbox import generate

if t.TYPE_CHECKING:
    from tap_bugspulse.client import BugsPulseStream

STREAMS = tap_class(NOW)(config={"api_key": "bp_x", "project": "ios-app"}).streams
NAMES = sorted({name for one in STREAMS.values() for name in one.schema["properties"]})

instants = st.sampled_from(
    (
        "2026-02-01T00:00:00.000Z",
        "2026-02-01T00:00:00Z",
        "2026-02-01T05:30:00.5+05:30",
        "2026-02-01",
        "20260201T000000Z",
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
simple = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from((0, 1, 3.0, -0.0, 1e300, 2**63, 2**64, -(2**63) - 1))
    | st.text(max_size=5)
    | instants
)
values = st.recursive(
    simple,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
as_documented = {
    "string": st.text(max_size=5),
    "integer": st.integers(),
    "boolean": st.booleans(),
    "object": st.dictionaries(st.text(max_size=3), values, max_size=2),
    "date-time": instants,
}


@st.composite
def pages(draw: st.DrawFn, stream: BugsPulseStream) -> list[t.Any]:
    """Draw rows: as documented, with some other values and columns, or none at all."""
    kinds = {}
    for name, column in stream.schema["properties"].items():
        kind = column["type"]
        kind = kind if isinstance(kind, str) else kind[0]
        kinds[name] = as_documented[column.get("format", kind)] | st.none()
    good = st.fixed_dictionaries({}, optional=kinds)
    odd = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), values, max_size=2)
    rows: list[t.Any] = draw(st.lists(good, max_size=4))
    if draw(st.booleans()):
        return rows
    for at in draw(st.lists(st.integers(0, 3), max_size=2)):
        if at < len(rows):
            rows[at] = {**rows[at], **draw(odd)}
    return rows + draw(st.lists(values, max_size=1))


def page_of(rows: list[t.Any]) -> requests.Response:
    """Give the answer that has one page of these rows."""
    page = {"data": rows, "total": len(rows), "page": 1, "limit": 100, "pages": 1}
    return answer(json.dumps(page).encode())


def answer(body: bytes) -> requests.Response:
    """Give an answer with a body."""
    response = requests.Response()
    response.status_code = 200
    response._content = body  # noqa: SLF001 - there is no other way to make one
    return response


def read(stream: BugsPulseStream, page: Page) -> tuple[list[Row | None], dict[str, int]]:
    """Give a page's rows as they are loaded, None without a key, and the misfits."""
    query = {"sessionId": "sess_1"} if stream.name == "events" else {}
    stream.columns.misfits.clear()
    keys = stream.columns.keys(page.rows)
    rows = [
        None if key is None else stream.shape(raw, query)
        for key, raw in zip(keys, page.rows, strict=True)
    ]
    assert keys == [row and row[stream.key_columns[-1]] for row in rows]
    return rows, dict(stream.columns.misfits)


@pytest.mark.parametrize("name", PRIMARY_KEYS)
@given(data=st.data())
def test_a_row_is_the_same_however_its_page_was_decoded(
    name: str, data: st.DataObject
) -> None:
    """Decoded into the columns' types it is as it is when fitted value by value."""
    stream = t.cast("BugsPulseStream", STREAMS[name])
    response = page_of(data.draw(pages(stream)))
    typed, plain = Page.decode(response, stream.decoder), Page.decode(response)
    assert read(stream, typed) == read(stream, plain)
    assert (typed.total, typed.number, typed.pages) == (
        plain.total,
        plain.number,
        plain.pages,
    )


@pytest.mark.parametrize("name", PRIMARY_KEYS)
def test_pages_as_documented_are_decoded_at_once(name: str) -> None:
    """None of their rows is looked at value by value, which takes longer."""
    stream = t.cast("BugsPulseStream", STREAMS[name])
    project = generate(seed=7, sessions=200, days=20, until=NOW)
    rows = [row for many in project.events.values() for row in many]
    if name != "events":
        rows = list(project.table(name).values())
    page = Page.decode(page_of(rows), stream.decoder)
    assert len(page.rows) == len(rows) > 0
    assert {type(row) for row in page.rows} == {stream.columns.row_type}


def test_a_page_whose_total_was_damaged_is_asked_for_again() -> None:
    """A name that is not UTF-8 is not taken for a field that nobody reads."""
    stream = t.cast("BugsPulseStream", STREAMS["sessions"])
    body = b'{"data": [{"id": "1"}], "tota\xff": 250, "page": 1, "limit": 1, "pages": 1}'
    with pytest.raises(RetriableAPIError, match="without the documented JSON body"):
        Page.decode(answer(body), stream.decoder)


def test_a_page_with_more_in_its_envelope_is_read() -> None:
    """What an API adds to it does no harm."""
    stream = t.cast("BugsPulseStream", STREAMS["sessions"])
    page = Page.decode(
        answer(b'{"data": [{"id": "1"}], "total": 3, "next": 2}'), stream.decoder
    )
    rows, misfits = read(stream, page)
    assert [row["id"] for row in rows if row] == ["1"]
    assert (page.total, misfits) == (3, {})


def test_a_catalog_from_a_file_names_columns_as_rows_do() -> None:
    """The SDK finds each column of each row by a name that is the same object."""
    kind, config = tap_class(NOW), {"api_key": "bp_x"}
    catalog = json.loads(json.dumps(kind(config=config).catalog_dict))
    for one in kind(config=config, catalog=catalog).streams.values():
        stream = t.cast("BugsPulseStream", one)
        named = {id(name) for breadcrumb in stream.mask for name in breadcrumb}
        assert {id(name) for name in stream.columns.row_type.__struct_fields__} <= named
