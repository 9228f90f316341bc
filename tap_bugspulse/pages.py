"""A page of the API: its envelope, its rows as structs, and what fits a column."""

import json
import math
import re
import typing as t
from collections import Counter
from contextlib import suppress
from datetime import datetime
from types import GenericAlias

import msgspec
import requests
from msgspec import Meta
from singer_sdk.pagination import PageNumberPaginator
from typing_extensions import override

from tap_bugspulse.replication import format_instant, parse_instant

EXTRA = "_extra"  # the column that keeps what has no column
PROJECT = "project"
NUMBERS = ("total", "pages", "limit")  # of the envelope
MAX_DEPTH = 100  # levels of JSON, those of the envelope included

Row = t.Any  # a struct of the columns' types, made from a schema file
Value = t.Any  # whatever the API sends


class Page(msgspec.Struct):
    """One page of a listing; its rows have a key each, ``without_key`` counts the others.

    ``total``, ``pages`` and ``limit`` are None where the envelope does not have them. ``misfits``
    counts values that did not fit their column, ``unknown`` has the names that have none.
    """

    rows: list[Row]
    total: int | None = None
    pages: int | None = None
    limit: int | None = None
    without_key: int = 0
    misfits: Counter[str] = msgspec.field(default_factory=Counter)
    unknown: set[str] = msgspec.field(default_factory=set)

    @property
    def rows_in_all(self) -> int:
        """Number of rows of the listing, a guess where the API does not count them."""
        return (self.pages or 1) * len(self.rows) if self.total is None else self.total


def page_of(response: requests.Response) -> Page:
    """Return the page of a response that is valid, decoded when it came."""
    return t.cast("Page", vars(response)["page"])


class Reading(PageNumberPaginator):
    """One reading of all pages of a listing: whether it goes on, and what it has brought.

    It goes on until all rows have come that the API counts, or a page has none. ``pages`` and
    ``limit`` of the envelope may be those of another page size, and the page number may be any:
    ``pages`` count only where there is no ``total``, or none of the listing.
    """

    def __init__(self, ids: t.Iterable[str] = ()) -> None:
        super().__init__(start_value=1)
        self.ids = {*ids}  # those of earlier readings that count, too
        self.last_page = 1  # as far as is known
        self.total = 0  # as the first page had it
        self.pages = 0  # that had rows
        self.drifted = False  # a row that was there all the time may have been missed
        self._page_ids: list[str] = []  # of the last page
        self._without_key = self._arrived = self._highest_total = 0

    @override
    def has_more(self, response: requests.Response) -> bool:
        page = page_of(response)
        ids, before = [row.id for row in page.rows], self._page_ids
        here = len(ids) + page.without_key
        self.pages += here > 0
        if self.current_value == 1:
            self.total = self._highest_total = page.total or 0
        elif ids and ids == before:
            self.total = max(self.total, self.rows + 1)  # it stands for one not seen
            return False
        # On a later page, as many as it has itself is the number of no listing.
        elif page.total and page.total != here:
            self.drifted = self.drifted or page.total < self._highest_total
            self._highest_total = max(self._highest_total, page.total)
        self._page_ids = ids
        self.ids.update(ids)
        self._without_key += page.without_key
        self._arrived += here
        # ``total`` may be missing, or that of the page alone.
        if page.total is None or page.total == here >= (page.limit or 0):
            self.last_page = page.pages or 1
        elif here:
            self.last_page = self.current_value + math.ceil((page.total - self._arrived) / here)
        return here > 0 and self.current_value < self.last_page

    @property
    def rows(self) -> int:
        """Number of distinct rows that arrived."""
        return len(self.ids) + self._without_key

    @property
    def is_complete(self) -> bool:
        """Whether no row that was there all the time can have been missed."""
        return not self.drifted and self.rows >= self.total


def has_lost_rows(first: Page, again: Page) -> bool:
    """Return whether rows of a first page, now ``again``, are gone: others moved up.

    As many may have come, and then no total shows it. Those push the last ones off the page
    and leave the others in order.
    """
    before, now = ([row.id for row in page.rows] for page in (first, again))
    stayed = [one for one in now if one in before]
    return now[-1:] != stayed[-1:] or stayed != before[: len(stayed)]


# An instant in UTC as the API writes it, of a year that clocks are set to. What is not of this
# form, such as a leap day, is looked at more closely. What is most frequent stands first.
_DAY = r"(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31"
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?"
_AS_WRITTEN = Meta(pattern=rf"(?a)^(?:20|19|[2-8]\d)\d\d-(?:{_DAY})T{_TIME}Z\Z")
_INT64 = t.Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None  # no database holds others
_COUNT = t.Annotated[int, Meta(ge=0, le=2**63 - 1)] | None
_OURS = t.Annotated[str, Meta(pattern="(?!)")]  # which nothing that the API sends can match


def _instant(value: Value) -> str | None:
    """Return an instant as the API writes it, None where it is not of RFC 3339's form."""
    with suppress(msgspec.ValidationError):
        instant = parse_instant(msgspec.convert(value, datetime).isoformat())
        if instant and value[10] == "T" and value[-1] == "Z":
            return str(value)
        return format_instant(instant) if instant else None
    return None


def _number(value: Value, kind: t.Any) -> Value:
    """Return a whole number, which may be written as a fraction or as text."""
    with suppress(msgspec.ValidationError):
        return msgspec.convert(value, kind, strict=False)
    return None


# The type of a column, by its format or type, and what makes a value fit it, or None.
_KINDS: dict[str, tuple[t.Any, t.Callable[[Value], Value]]] = {
    "id": (str | None, lambda v: str(v) if type(v) in {str, int} else None),
    "string": (str | None, lambda v: v if isinstance(v, str) else None),
    "date-time": (t.Annotated[str, _AS_WRITTEN] | None, _instant),
    "integer": (_INT64, lambda v: None if isinstance(v, str) else _number(v, _INT64)),
    "boolean": (bool | None, lambda v: bool(v) if v in (0, 1) else None),
    "object": (dict | None, lambda v: v if isinstance(v, dict) else {"value": v}),
}


class Table:
    """The columns of a stream, and the structs that its rows are decoded into."""

    def __init__(self, name: str, properties: dict[str, t.Any], project: str | None = None) -> None:
        ours = {EXTRA: None, PROJECT: project}  # and what is in them
        kinds = {
            one: "id" if re.search("^id$|Id$", one) else column.get("format", column["type"][0])
            for one, column in properties.items()
            if one not in ours
        }
        self._fits = {one: _KINDS[kind][1] for one, kind in kinds.items()}
        self._objects = [one for one, kind in kinds.items() if kind == "object"]
        types = {one: _KINDS[kind][0] for one, kind in kinds.items()}
        fields: list[t.Any] = [("id", t.Annotated[str, Meta(min_length=1)])]
        fields += [(one, types.get(one, _OURS), ours.get(one)) for one in properties if one != "id"]
        # Rows of JSON leave no cycles behind for the garbage collector.
        self.row_type = msgspec.defstruct(name, fields, forbid_unknown_fields=True, gc=False)
        envelope: list[t.Any] = [("data", GenericAlias(list, self.row_type))]
        envelope += [(name, _COUNT, None) for name in NUMBERS]
        self._decoder = msgspec.json.Decoder(msgspec.defstruct("Envelope", envelope))

    def decode(self, content: bytes) -> Page:
        """Return the page of a body, or raise ValueError; what does not fit is in ``_extra``."""
        with suppress(ValueError, RecursionError):
            body: t.Any = self._decoder.decode(content)
            objects = (getattr(row, name) for name in self._objects for row in body.data)
            if (body.total, body.pages) != (None, None) and not any(map(_is_deep, objects)):
                return Page(body.data, body.total, body.pages, body.limit)
        return self._decode_any(content)

    def _decode_any(self, content: bytes) -> Page:
        """Return the page of a body that is not as documented, value by value."""
        body = msgspec.convert(_loads(content), dict[str, Value])
        rows = msgspec.convert(body.get("data", 0), list[Value] | None)
        total, pages, limit = (_number(body.get(name), _COUNT) for name in NUMBERS)
        if total is None and pages is None:
            raise ValueError
        page = Page([], total, pages, limit)
        for one in rows or ():
            if isinstance(one, dict) and self._fits["id"](one.get("id")):
                page.rows.append(self._fit(one, page))
            else:
                page.without_key += 1  # no table can hold it
        return page

    def _fit(self, raw: dict[str, Value], page: Page) -> Row:
        """Return a row of what fits its column; the rest is in ``_extra``."""
        known = [name for name in raw if name in self._fits and raw[name] is not None]
        values = {name: self._fits[name](raw[name]) for name in known}
        misfits = [name for name in known if values[name] is None]
        unknown = [name for name in raw if name not in self._fits]
        page.misfits.update(misfits)
        page.unknown.update(unknown)
        extra = {name: raw[name] for name in (*misfits, *unknown)}
        return self.row_type(**values, **{EXTRA: extra or None})


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
        opens, closes = token[0] in "[{", token[0] in "]}"
        if closes and depth == MAX_DEPTH:
            parts += text[done:begin], json.dumps(text[begin : token.end()])
            done = token.end()
        depth += opens - closes
        begin = token.start() if opens and depth == MAX_DEPTH else begin
    return "".join([*parts, text[done:]])


def _loads(content: bytes) -> Value:
    """Return what JSON says, with U+FFFD, ``?`` or None in a place where it is damaged."""
    text = _shallow(content.decode("utf-8-sig", errors="replace"))
    value = json.loads(
        text,
        parse_constant=lambda _: None,
        parse_float=lambda number: value if math.isfinite(value := float(number)) else None,
    )
    if "\\ud" in text.lower():
        value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    return value
