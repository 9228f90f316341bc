"""A page of the API: its envelope, its rows as structs, and values that do not fit a column."""

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

EXTRA = "_extra"  # the column for values that fit no other
PROJECT = "project"
COUNTS = ("total", "pages", "limit")  # of the envelope
MAX_DEPTH = 100  # levels of JSON, those of the envelope included

Row = t.Any  # a struct of the columns' types, made from a schema file
Value = t.Any  # whatever the API sends


class Page(msgspec.Struct):
    """One page of a listing; rows that have no key are only counted, in ``without_key``.

    ``total``, ``pages`` and ``limit`` are None where the envelope does not have them. ``misfits``
    counts values that did not fit their column, by column; ``unknown`` names fields without one.
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
        """Number of rows of the whole listing, a guess if the API does not count them."""
        return (self.pages or 1) * len(self.rows) if self.total is None else self.total


def page_of(response: requests.Response) -> Page:
    """Return the page that ``validate_response`` has decoded from a response."""
    return t.cast("Page", vars(response)["page"])


class Reading(PageNumberPaginator):
    """One reading of all pages of a listing: whether there are more, and which rows have come.

    It ends when as many rows have come as the API counts, or a page is empty. The envelope's page
    number is not used, and ``pages`` and ``limit`` may be those of another page size: ``pages``
    decides only if there is no ``total``, or ``total`` counts the rows of one page.
    """

    def __init__(self, ids: t.Iterable[str] = ()) -> None:
        super().__init__(start_value=1)
        self.ids = {*ids}  # first those of an earlier reading that this one completes
        self.last_page = 1  # as far as is known
        self.total = 0  # of the first page
        self.pages = 0  # that had rows
        self.drifted = False  # a row may have moved to a page that was read before
        self._page_ids: list[str] = []  # of the page before
        self._without_key = self._arrived = self._highest_total = 0

    @override
    def has_more(self, response: requests.Response) -> bool:
        page = page_of(response)
        ids = [row.id for row in page.rows]
        size = len(ids) + page.without_key
        self.pages += size > 0
        if self.current_value == 1:
            self.total = self._highest_total = page.total or 0
        elif ids and ids == self._page_ids:  # the same page again, in place of one not seen
            self.total = max(self.total, self.rows + 1)
            return False
        elif page.total and page.total != size:  # else it may count the rows of this page
            self.drifted = self.drifted or page.total < self._highest_total
            self._highest_total = max(self._highest_total, page.total)
        self._page_ids = ids
        self.ids.update(ids)
        self._without_key += page.without_key
        self._arrived += size
        # ``total`` may be missing, or count the rows of this page.
        if page.total is None or page.total == size >= (page.limit or 0):
            self.last_page = page.pages or 1
        elif size:
            self.last_page = self.current_value + math.ceil((page.total - self._arrived) / size)
        return size > 0 and self.current_value < self.last_page

    @property
    def rows(self) -> int:
        """Number of different rows that have come."""
        return len(self.ids) + self._without_key

    @property
    def is_complete(self) -> bool:
        """Whether all rows that the API counted have come, as far as can be seen."""
        return not self.drifted and self.rows >= self.total


def has_lost_rows(first: Page, again: Page) -> bool:
    """Return whether rows have left the first page, so that rows of later pages moved up.

    ``again`` is the first page now. If as many rows were added, no total shows it. Added rows alone
    push the last ones off the page, and leave the others in order.
    """
    before, now = ([row.id for row in page.rows] for page in (first, again))
    stayed = [one for one in now if one in before]
    return now[-1:] != stayed[-1:] or stayed != before[: len(stayed)]


# An instant in UTC as the API writes it, of a plausible year. Values of any other form, and leap
# days, are parsed instead. The most frequent alternatives come first, which is faster.
_DAY = r"(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31"
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?"
_AS_WRITTEN = Meta(pattern=rf"(?a)^(?:20|19|[2-8]\d)\d\d-(?:{_DAY})T{_TIME}Z\Z")
_INT64 = t.Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None  # as databases have it
_COUNT = t.Annotated[int, Meta(ge=0, le=2**63 - 1)] | None
_OURS = t.Annotated[str, Meta(pattern="(?!)")]  # a column of the tap: no value of the API fits


def _instant(value: Value) -> str | None:
    """Return an instant as the API writes it, None if the value is not one of RFC 3339."""
    with suppress(msgspec.ValidationError):
        instant = parse_instant(msgspec.convert(value, datetime).isoformat())
        if instant and value[10] == "T" and value[-1] == "Z":
            return str(value)
        return format_instant(instant) if instant else None
    return None


def _number(value: Value, kind: t.Any) -> Value:
    """Return a whole number, also from ``5.0`` or from a text; None if the value is not one."""
    with suppress(msgspec.ValidationError):
        return msgspec.convert(value, kind, strict=False)
    return None


# For each kind of column: its type, and how to convert another value to it (None: cannot).
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
        ours = {EXTRA: None, PROJECT: project}  # the tap's own columns, with their defaults
        kinds = {
            col: "id" if re.search("^id$|Id$", col) else schema.get("format", schema["type"][0])
            for col, schema in properties.items()
            if col not in ours
        }
        self._converters = {col: _KINDS[kind][1] for col, kind in kinds.items()}
        self._objects = [col for col, kind in kinds.items() if kind == "object"]
        types = {col: _KINDS[kind][0] for col, kind in kinds.items()}
        fields: list[t.Any] = [("id", t.Annotated[str, Meta(min_length=1)])]
        fields += [(col, types.get(col, _OURS), ours.get(col)) for col in properties if col != "id"]
        # gc=False: rows of JSON hold no cycles that the garbage collector would have to find.
        self.row_type = msgspec.defstruct(name, fields, forbid_unknown_fields=True, gc=False)
        envelope: list[t.Any] = [("data", GenericAlias(list, self.row_type))]
        envelope += [(name, _COUNT, None) for name in COUNTS]
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
        total, pages, limit = (_number(body.get(name), _COUNT) for name in COUNTS)
        if total is None and pages is None:
            raise ValueError
        page = Page([], total, pages, limit)
        for one in rows or ():
            if isinstance(one, dict) and self._converters["id"](one.get("id")):
                page.rows.append(self._fit(one, page))
            else:
                page.without_key += 1  # a table needs the key
        return page

    def _fit(self, raw: dict[str, Value], page: Page) -> Row:
        """Return a row of the values that fit their column; the rest is in ``_extra``."""
        known = [name for name in raw if name in self._converters and raw[name] is not None]
        values = {name: self._converters[name](raw[name]) for name in known}
        misfits = [name for name in known if values[name] is None]
        unknown = [name for name in raw if name not in self._converters]
        page.misfits.update(misfits)
        page.unknown.update(unknown)
        extra = {name: raw[name] for name in (*misfits, *unknown)}
        return self.row_type(**values, **{EXTRA: extra or None})


def _is_deep(value: Value, levels: int = MAX_DEPTH - 4) -> bool:  # a value is level 4
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return not levels or any(_is_deep(one, levels - 1) for one in inner)


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def _shallow(text: str) -> str:
    """Return JSON with a text in place of all that is nested too deep for other programs."""
    parts: list[str] = []
    depth = copied = start = 0
    for token in _TOKEN.finditer(text):
        opens, closes = token[0] in "[{", token[0] in "]}"
        if closes and depth == MAX_DEPTH:
            parts += text[copied:start], json.dumps(text[start : token.end()])
            copied = token.end()
        depth += opens - closes
        start = token.start() if opens and depth == MAX_DEPTH else start
    return "".join([*parts, text[copied:]])


def _loads(content: bytes) -> Value:
    """Return the value of a JSON text, with U+FFFD, ``?`` or None where it is damaged."""
    text = _shallow(content.decode("utf-8-sig", errors="replace"))
    value = json.loads(
        text,
        parse_constant=lambda _: None,
        parse_float=lambda number: found if math.isfinite(found := float(number)) else None,
    )
    if "\\ud" in text.lower():  # half of a surrogate pair cannot be written as UTF-8
        value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    return value
