"""A page of the API: its envelope, its rows as structs, and what fits a column."""

from __future__ import annotations

import json
import math
import re
import typing as t
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from types import GenericAlias

import msgspec
import requests
from msgspec import Meta
from singer_sdk.exceptions import RetriableAPIError
from singer_sdk.pagination import PageNumberPaginator
from typing_extensions import override

from tap_bugspulse.replication import format_instant, parse_instant

EXTRA = "_extra"  # the column that keeps what has no column
PROJECT = "project"
INT64 = 2**63  # from here on no database holds a whole number
MAX_DEPTH = 100  # levels of JSON, those of the envelope included

Row = t.Any  # a struct of the columns' types, made from a schema file
Value = t.Any  # whatever the API sends


@dataclass(slots=True)
class Page:
    """One page of a listing; its rows have a key each, ``without_key`` counts the others.

    ``total``, ``pages`` and ``limit`` are None where the envelope does not have them. ``misfits``
    counts values that did not fit their column, ``unknown`` has the names that have none.
    """

    rows: list[Row]
    total: int | None = None
    pages: int | None = None
    limit: int | None = None
    without_key: int = 0
    misfits: Counter[str] = field(default_factory=Counter)
    unknown: set[str] = field(default_factory=set)

    @property
    def rows_in_all(self) -> int:
        """Number of rows of the listing, a guess where the API does not count them."""
        return (self.pages or 1) * len(self.rows) if self.total is None else self.total


def page_of(response: requests.Response, table: Table | None = None) -> Page:
    """Return the page of a response, decoded at the first call, or raise RetriableAPIError."""
    kept = vars(response)
    if "page" not in kept and table is not None:
        try:
            is_empty = response.status_code == HTTPStatus.NO_CONTENT
            kept["page"] = Page([], 0) if is_empty else table.decode(response.content)
        except (ValueError, RecursionError):
            msg = f"{response.status_code} without the documented JSON body"
            raise RetriableAPIError(msg, response) from None
    return t.cast("Page", kept["page"])


class Reading(PageNumberPaginator):
    """One reading of all pages of a listing: whether it goes on, and what it has brought.

    It goes on until all rows have come that the API counts, or a page has none. ``pages`` and
    ``limit`` of the envelope may be those of another page size, and the page number may be any:
    ``pages`` count only where there is no ``total``, or none of the listing.
    """

    def __init__(self) -> None:
        super().__init__(start_value=1)
        self.last_page = 1  # as far as is known
        self.head: list[Row] = []  # the rows of the first page
        self.page_ids: list[str] = []  # of the last page
        self.ids: set[str] = set()
        self.first_total: int | None = 0
        self.shrank = False  # rows were deleted while the pages were read
        self.is_complete = True  # no row that was there all the time can have been missed
        self.pages = 0
        self._others = self._total = 0  # rows without a key, or with one on the same page
        self._arrived = 0

    @override
    def has_more(self, response: requests.Response) -> bool:
        page = page_of(response)
        here = len(page.rows) + page.without_key
        self._arrived += here
        if page.total is None:
            self.last_page = page.pages or 1
        elif here:
            missing = page.total - self._arrived
            # ``total`` may be that of the page alone.
            is_full = page.total == here >= (page.limit or 0)
            is_of_page = is_full and (page.pages or 1) > self.current_value
            self.last_page = self.current_value + max(is_of_page, math.ceil(missing / here))
        return self._add(page) and here > 0 and self.current_value < self.last_page

    def _add(self, page: Page) -> bool:
        """Note a page; False if it is the one before again, and stands for one not seen."""
        ids, before = [row.id for row in page.rows], self.page_ids
        self.page_ids = ids
        if self.pages == 0:
            self.first_total, self.head = page.total, page.rows
        elif ids and ids == before:
            self.pages += 1
            self.is_complete = False
            return False
        self.pages += bool(ids) or self.pages == 0
        # On a later page, as many as it has itself is the number of no listing.
        is_total = page.total and (self.pages <= 1 or page.total != len(ids) + page.without_key)
        total = page.total if page.total and is_total else self._total
        self.shrank = self.shrank or total < self._total
        self._total = total
        self._others += page.without_key + len(ids) - len(set(ids))
        self.ids.update(ids)
        self.is_complete = not self.shrank and self.rows >= (self.first_total or 0)
        return True

    @property
    def rows(self) -> int:
        """Number of distinct rows that arrived."""
        return len(self.ids) + self._others

    def first_page_lost_rows(self, again: Page) -> bool:
        """Return whether rows of the first page, now ``again``, are gone: others moved up.

        As many may have come, and then no total shows it. Those push the last ones off the page
        and leave the others in order.
        """
        ids, first = ([row.id for row in rows] for rows in (again.rows, self.head))
        stayed = [one for one in ids if one in first]
        return ids[-1:] != stayed[-1:] or stayed != first[: len(stayed)]


class Listing:
    """The new rows of a listing, page by page; in the end ``reading`` tells how it went."""

    reading: Reading

    def __init__(self, pages: Generator[list[Row], None, Reading]) -> None:
        self._pages = pages

    def __iter__(self) -> Iterator[list[Row]]:
        """Yield the rows of each page that have not come before."""
        self.reading = yield from self._pages


# An instant in UTC as the API writes it, of a year that clocks are set to. What is not of this
# form, such as a leap day, is looked at more closely. What is most frequent stands first.
_DAY = r"(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31"
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?"
AS_WRITTEN = rf"(?a)^(?:20|19|[2-8]\d)\d\d-(?:{_DAY})T{_TIME}Z\Z"


def _instant(value: Value) -> str | None:
    """Return an instant as the API writes it, None where it is not of RFC 3339's form."""
    with suppress(msgspec.ValidationError):
        instant = parse_instant(msgspec.convert(value, datetime).isoformat())
        if instant and value[10] == "T" and value[-1] == "Z":
            return str(value)
        return format_instant(instant) if instant else None
    return None


def _whole(value: Value) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and -INT64 <= value < INT64 else None


# The type of a column, by its format or type, and what makes a value fit it, or None.
_KINDS: dict[str, tuple[t.Any, t.Callable[[Value], Value]]] = {
    "id": (str | None, lambda v: str(v) if type(v) in {str, int} else None),
    "string": (str | None, lambda v: v if isinstance(v, str) else None),
    "date-time": (t.Annotated[str, Meta(pattern=AS_WRITTEN)] | None, _instant),
    "integer": (t.Annotated[int, Meta(ge=-INT64, le=INT64 - 1)] | None, _whole),
    "boolean": (bool | None, lambda v: bool(v) if v in (0, 1) else None),
    "object": (dict | None, lambda v: v if isinstance(v, dict) else {"value": v}),
}


class Table:
    """The columns of a stream, and the structs that its rows are decoded into."""

    def __init__(self, name: str, properties: Mapping[str, t.Any]) -> None:
        self._kinds = {column: _kind(column, of) for column, of in properties.items()}
        types = {column: _KINDS[kind][0] for column, kind in self._kinds.items()}
        fields: list[t.Any] = [(column, kind, None) for column, kind in types.items()]
        fields[list(types).index("id")] = ("id", t.Annotated[str, Meta(min_length=1)])
        # Rows of JSON leave no cycles behind for the garbage collector.
        self.row_type = msgspec.defstruct(
            name, fields, forbid_unknown_fields=True, kw_only=True, gc=False
        )
        self._ours = [n for n in (EXTRA, PROJECT) if n in properties]
        self._objects = [n for n, kind in self._kinds.items() if kind == "object" and n != EXTRA]
        rows = GenericAlias(list, self.row_type)
        numbers = [(name, t.Any, None) for name in ("total", "pages", "limit")]
        envelope: list[t.Any] = [("data", rows), *numbers]
        self._decoder = msgspec.json.Decoder(msgspec.defstruct("Envelope", envelope))

    def decode(self, content: bytes) -> Page:
        """Return the page of a body, or raise ValueError; what does not fit is in ``_extra``."""
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            body: t.Any = self._decoder.decode(content)
            page = Page(body.data, _count(body.total), _count(body.pages), _count(body.limit))
            objects = (getattr(row, name) for name in self._objects for row in page.rows)
            # What the API calls like a column of ours has no column.
            ours = (getattr(row, name) for name in self._ours for row in page.rows)
            is_counted = (page.total, page.pages) != (None, None)
            if is_counted and not any(map(_is_deep, objects)) and all(one is None for one in ours):
                return page
        return self._decode_any(content)

    def _decode_any(self, content: bytes) -> Page:
        """Return the page of a body that is not as documented, value by value."""
        body = _loads(content)
        if not isinstance(body, dict) or not isinstance(body.get("data", 0), list | None):
            raise ValueError  # noqa: TRY004 - what page_of looks for
        total, pages, limit = (_count(body.get(name)) for name in ("total", "pages", "limit"))
        page = Page([], total, pages, limit)
        if page.total is None and page.pages is None:
            raise ValueError
        for one in body["data"] or ():
            row = self._fit(one, page) if isinstance(one, dict) else None
            if row is None:
                page.without_key += 1
            else:
                page.rows.append(row)
        return page

    def _fit(self, raw: dict[str, Value], page: Page) -> Row | None:
        """Return a row that fits, None if it has no key, which no table can hold."""
        if not _KINDS["id"][1](raw.get("id")):
            return None
        values: dict[str, Value] = {}
        extra: dict[str, Value] = {}
        for name, value in raw.items():
            kind = self._kinds.get(name) if name not in {EXTRA, PROJECT} else None
            if kind is None:
                page.unknown.add(name)
                extra[name] = value
            elif value is not None:
                values[name] = _KINDS[kind][1](value)
                if values[name] is None:
                    page.misfits[name] += 1
                    extra[name] = value
        return self.row_type(**values, **{EXTRA: extra or None})


def _kind(name: str, column: Mapping[str, t.Any]) -> str:
    if name == "id" or name.endswith("Id"):
        return "id"
    kind = column["type"] if isinstance(column["type"], str) else column["type"][0]
    return str(column.get("format", kind))


def _count(value: Value) -> int | None:
    """Return a number of rows or pages, which drivers of databases may write as text."""
    with suppress(ValueError):
        value = int(value) if isinstance(value, str) and len(value) < len(str(INT64)) else value
    number = _whole(value)
    return number if number is not None and number >= 0 else None


def _is_deep(value: Value, levels: int = MAX_DEPTH - 4) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return not levels or any(_is_deep(one, levels - 1) for one in inner)


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def _shallow(text: str) -> str:
    """Return JSON in which what is nested deeper than others can read is kept as text."""
    parts: list[str] = []
    depth = done = begin = 0
    for token in _TOKEN.finditer(text):
        if token[0] in {"[", "{"}:
            depth += 1
            begin = token.start() if depth == MAX_DEPTH else begin
        elif token[0] in {"]", "}"}:
            if depth == MAX_DEPTH:
                parts += text[done:begin], json.dumps(text[begin : token.end()])
                done = token.end()
            depth -= 1
    return "".join([*parts, text[done:]])


def _loads(content: bytes) -> Value:
    """Return what JSON says, also where it is damaged in a place.

    Bytes that are no UTF-8 become U+FFFD, half of an emoji ``?``, and numbers that are none None.
    """

    def finite(text: str) -> float | None:
        return number if math.isfinite(number := float(text)) else None

    text = _shallow(content.decode("utf-8-sig", errors="replace"))
    value = json.loads(text, parse_constant=lambda _: None, parse_float=finite)
    if "\\ud" in text.lower():
        value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    return value
