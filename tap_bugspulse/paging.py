"""What a page is, which one comes next, and when a listing is complete."""

from __future__ import annotations

import json
import typing as t
from contextlib import suppress
from dataclasses import dataclass
from types import GenericAlias

import msgspec
from singer_sdk.exceptions import RetriableAPIError
from singer_sdk.pagination import PageNumberPaginator
from typing_extensions import override

if t.TYPE_CHECKING:
    import requests

    Decoder = msgspec.json.Decoder[t.Any]

MOST_DIGITS = 18  # of a number that is text
MOST_BARREN = 20  # pages in a row without a new row, however many the API says there are


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing as the API's envelope describes it.

    ``rows`` are of the type that they were decoded into, or whatever the API sent;
    ``total`` is a guess by the number of pages where the API does not count the rows.
    """

    rows: list[t.Any]
    total: int
    number: int | None
    pages: int
    is_counted: bool = True

    @classmethod
    def decode(cls, response: requests.Response, decoder: Decoder | None = None) -> Page:
        """Read the envelope ``data``, ``total``, ``page``, ``limit``, ``pages``.

        Args:
            response: What the API answered.
            decoder: What reads it, of `decoder_of`, where its rows allow that.

        Raises:
            RetriableAPIError: If the body is not the documented JSON envelope.
        """
        try:
            body = _decode(response.content, decoder)
        except (ValueError, msgspec.DecodeError, RecursionError):  # 0.20's is no ValueError
            raise RetriableAPIError(_not_an_envelope(response), response) from None
        rows = body.get("data") if isinstance(body, dict) else None
        if not isinstance(rows, list):
            raise RetriableAPIError(_not_an_envelope(response), response)
        number, limit = _count(body, "page"), _count(body, "limit") or len(rows)
        total, pages = _count(body, "total"), _count(body, "pages")
        if total is None and pages is None:
            raise RetriableAPIError(_not_an_envelope(response), response)
        if total is None:
            pages = pages or 0
            total = pages * limit if pages > 1 else len(rows)
            return cls(rows, total, number, pages, is_counted=False)
        # A full page of a longer listing has others after it, whatever `pages` says.
        if pages is None or len(rows) == limit:
            pages = max(pages or 0, -(-total // limit) if limit else 1)
        return cls(rows, total, number, pages)


def decoder_of(row_type: type) -> Decoder:
    """Make what decodes a page whose rows are all of a type, and refuses any other."""
    fields: list[tuple[str, t.Any, None]] = [("data", GenericAlias(list, row_type), None)]
    fields += [(name, t.Any, None) for name in ("total", "page", "limit", "pages")]
    # Nor does it pass over what it does not know: that may be a name that was damaged.
    envelope = msgspec.defstruct("Envelope", fields, forbid_unknown_fields=True)
    return msgspec.json.Decoder(envelope)


def _decode(content: bytes, decoder: Decoder | None) -> t.Any:  # noqa: ANN401 - whatever the API sends
    """Read JSON; half a surrogate pair, of a text cut inside an emoji, becomes ``?``."""
    if decoder is not None:
        with suppress(msgspec.DecodeError):
            return msgspec.structs.asdict(decoder.decode(content))
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        whole = json.dumps(json.loads(content), ensure_ascii=False, allow_nan=False)
        return msgspec.json.decode(whole.encode(errors="replace"))


def _count(body: dict[str, t.Any], key: str) -> int | None:
    value = body.get(key)
    # As drivers of databases write large whole numbers; longer ones are none.
    if isinstance(value, str) and value.isdecimal() and len(value) <= MOST_DIGITS:
        value = int(value)
    return value if type(value) is int and value >= 0 else None


def _not_an_envelope(response: requests.Response) -> str:
    return f"{response.status_code} without the documented JSON body"


def page_of(response: requests.Response, decoder: Decoder | None = None) -> Page:
    """Decode the page of a response once; later calls return the same page."""
    kept = vars(response)
    if "page" not in kept:
        kept["page"] = Page.decode(response, decoder)
    return t.cast("Page", kept["page"])


class Listing:
    """What one reading of all pages of a listing has brought."""

    def __init__(self, keys: set[str | None], *, trusts_one_page: bool = False) -> None:
        """Begin before the first page.

        Args:
            keys: An empty set, to which the keys of rows are added.
            trusts_one_page: Whether a listing of one page is complete whatever its total.
        """
        self.is_counted = True  # whether the API has counted the rows
        self.first_total = 0
        self._trusts_one_page = trusts_one_page
        self._arrived = 0  # with rows that share a key
        self.without_key = 0
        self.leads_nowhere = False
        self.pages = 0
        self._barren = 0  # pages in a row without a new row
        self._shrank = False
        self._total = 0
        self._keys = keys
        self._before: list[str | None] = []
        self._head: list[str | None] = []  # of the first page

    @property
    def rows(self) -> int:
        """Number of distinct rows that arrived."""
        return len(self._keys) + self.without_key

    def add(self, page: Page, keys: list[str | None]) -> bool:
        """Note a page and the keys of its rows; False if there is no use in going on."""
        if self.pages == 0:
            self.first_total = page.total if page.is_counted else 0
            self.is_counted = page.is_counted
            self._head = keys
        self.pages += 1
        self._arrived += len(keys)
        if page.is_counted:
            self._shrank = self._shrank or page.total < self._total
            self._total = page.total
        known = self.rows
        self.without_key += keys.count(None)
        self._keys.update(keys)
        self._keys.discard(None)
        self._barren = 0 if self.rows > known else self._barren + 1
        self.leads_nowhere = self._barren >= MOST_BARREN or (
            bool(keys) and keys == self._before
        )
        self._before = keys
        return not self.leads_nowhere

    def is_complete(self) -> bool:
        """Tell whether no row that was there all the time can have been missed.

        One page is one answer, in which nothing can drift.
        """
        if self.pages == 1:
            return self._trusts_one_page or self._arrived >= self.first_total
        return not self.leads_nowhere and not self._shrank and self.rows >= self.first_total

    def has_moved_up(self, keys: list[str | None]) -> bool:
        """Tell whether rows of the first page are gone, so that others moved up.

        As many rows may have come as have gone, and then no total shows it. Rows that
        came push the last ones off the page and leave the others in their order.

        Args:
            keys: Those of the first page, asked for once more.
        """
        stayed = [key for key in keys if key in self._head]
        return keys[-1:] != stayed[-1:] or stayed != self._head[: len(stayed)]


class PagePaginator(PageNumberPaginator):
    """Follows ``page`` and ``pages`` of the answer, never the number of rows."""

    @override
    def has_more(self, response: requests.Response) -> bool:
        page = page_of(response)
        return max(page.number or 0, self.current_value) < page.pages

    @override
    def get_next(self, response: requests.Response) -> int:
        # Counted from what was asked: an API that answers with one page for ever is
        # then asked for no more than it says it has.
        return self.current_value + 1
