"""One request to the Export API: its page, its errors, its retries."""

from __future__ import annotations

import contextlib
import json
import operator
import typing as t
from collections import Counter, deque
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus

import backoff
import msgspec
import requests
from singer_sdk import RESTStream, SchemaDirectory, StreamSchema
from singer_sdk.authenticators import BearerTokenAuthenticator
from singer_sdk.exceptions import ConfigurationError, FatalAPIError, RetriableAPIError
from singer_sdk.helpers.conform import TypeConformanceLevel
from singer_sdk.pagination import PageNumberPaginator
from singer_sdk.streams.rest import PageContext
from typing_extensions import override

from tap_bugspulse import schemas
from tap_bugspulse.patience import Patience, PatienceError, reason
from tap_bugspulse.replication import format_instant, parse_instant

if t.TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from backoff.types import Details
    from singer_sdk.singerlib import Catalog
    from singer_sdk.streams.rest import HTTPRequest

    from tap_bugspulse.session import Then
    from tap_bugspulse.tap import TapBugsPulse

    Row = dict[str, t.Any]
    Query = Mapping[str, str]
    Key = str | tuple[str, ...]  # a column's value, or several
    Fit = Callable[[t.Any], t.Any]
    Asked = deque[requests.PreparedRequest]

MOST_BARREN = 20  # pages in a row without a new row, however many the API says there are
LISTINGS = 3  # times a listing is read before rows that do not turn up are given up
MOST_ALIKE = 1000  # combinations of columns and types that are remembered
EXTRA = "_extra"  # the column that keeps what has no column
PROJECT = "project"

__all__ = ["BugsPulseStream", "Page", "PagePaginator", "page_of"]


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing as the API's envelope describes it.

    ``total`` is a guess by the number of pages where the API does not count the rows.
    """

    rows: list[t.Any]
    total: int
    number: int | None
    pages: int
    is_counted: bool = True

    @classmethod
    def decode(cls, response: requests.Response) -> Page:
        """Read the envelope ``data``, ``total``, ``page``, ``limit``, ``pages``.

        Raises:
            RetriableAPIError: If the body is not the documented JSON envelope.
        """
        try:
            body = _decode(response.content)
        except (ValueError, RecursionError):
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


def _decode(content: bytes) -> t.Any:  # noqa: ANN401 - whatever the API sends
    """Read JSON; half a surrogate pair, of a text cut inside an emoji, becomes ``?``."""
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        whole = json.dumps(json.loads(content), ensure_ascii=False, allow_nan=False)
        return msgspec.json.decode(whole.encode(errors="replace"))


def _count(body: dict[str, t.Any], key: str) -> int | None:
    value = body.get(key)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)  # as drivers of databases write large whole numbers
    return value if type(value) is int and value >= 0 else None


def _not_an_envelope(response: requests.Response) -> str:
    return f"{response.status_code} without the documented JSON body"


def page_of(response: requests.Response) -> Page:
    """Decode the page of a response once; later calls return the same page."""
    kept = vars(response)
    if "page" not in kept:
        kept["page"] = Page.decode(response)
    return t.cast("Page", kept["page"])


class NotFoundError(FatalAPIError):
    """The API does not know what was asked for."""


class Listing:
    """What one reading of all pages of a listing has brought."""

    def __init__(self, keys: set[Key], *, trusts_one_page: bool = False) -> None:
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
        self._before: list[Key | None] = []
        self._head: list[Key | None] = []  # of the first page

    @property
    def rows(self) -> int:
        """Number of distinct rows that arrived."""
        return len(self._keys) + self.without_key

    def add(self, page: Page, keys: list[Key | None]) -> bool:
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
        self._keys.update(key for key in keys if key is not None)
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

    def has_moved_up(self, keys: list[Key | None]) -> bool:
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


def _instant(value: t.Any) -> str | None:  # noqa: ANN401 - whatever the API sends
    instant = parse_instant(value)
    if instant is None or value.endswith("Z"):
        return value if instant else None
    return format_instant(instant)


def _whole(value: t.Any) -> int | None:  # noqa: ANN401 - whatever the API sends
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


# What makes a value fit a column, by the column's format or type; None where it does not.
_FITS: dict[str, Fit] = {
    "key": lambda value: str(value) if type(value) in {str, int} and value != "" else None,
    "string": lambda value: value if isinstance(value, str) else None,
    "date-time": _instant,
    "integer": _whole,
    "boolean": lambda value: value if isinstance(value, bool) else None,
    "object": lambda value: value if isinstance(value, dict) else None,
}


# The type whose values all fit; others are looked at one by one.
_SURE = {"string": str, "integer": int, "boolean": bool, "object": dict}
PROJECT_COLUMN = {
    "type": "string",
    "description": "Name of the BugsPulse project, from the setting project.",
}


class BugsPulseStream(RESTStream[int]):
    """A stream of the Export API."""

    schema_file = StreamSchema(SchemaDirectory(schemas))
    # The rows are JSON already and shape() has made them fit.
    TYPE_CONFORMANCE_LEVEL = TypeConformanceLevel.NONE

    allow_redirects = False  # the key never leaves its host
    patience_tries = 8
    trusts_one_page = False
    tap: TapBugsPulse
    listing: Listing  # the last reading of a listing

    def __init__(self, tap: TapBugsPulse) -> None:
        """Set the stream up with the tap's settings and its one HTTP session."""
        self.tap = tap
        self.misfits: Counter[str] = Counter()
        self._alike: dict[tuple[t.Any, ...], list[tuple[str, Fit]]] = {}
        self.key_columns = tuple(self.primary_keys)
        self._key_of = operator.itemgetter(*self.key_columns)
        super().__init__(tap)
        if tap.project is not None:
            self.primary_keys = (PROJECT, *self.key_columns)

    @cached_property
    @override
    def schema(self) -> dict[str, t.Any]:
        """The schema file named after the stream, and ``project`` where it is set."""
        if self.tap.project is None:
            return self.schema_file
        return self.schema_file | {
            "required": [PROJECT, *self.schema_file["required"]],
            "properties": {PROJECT: PROJECT_COLUMN, **self.schema_file["properties"]},
        }

    @override
    def apply_catalog(self, catalog: Catalog) -> None:
        super().apply_catalog(catalog)
        entry = catalog.get_stream(self.name)
        if self.tap.project is None or entry is None:
            return
        if PROJECT not in (entry.schema.to_dict().get("properties") or {}):
            msg = (
                f"the catalog knows no column project for {self.name}: make it anew with "
                "--discover, now that the setting project is set"
            )
            raise ConfigurationError(msg)
        self.primary_keys = (PROJECT, *self.key_columns)

    @property
    @override
    def emit_activate_version_messages(self) -> bool:
        # The warehouse keeps the rows that BugsPulse's retention deletes. Leaving the
        # capability out of the tap's list does not keep a setting from asking for it.
        return False

    @override
    def get_batch_config(self, config: Mapping[str, t.Any]) -> None:
        # Batches bypass stream maps, which may be there to hide personal data.
        return None

    @property
    @override
    def url_base(self) -> str:
        return self.tap.settings.api_url

    @property
    @override
    def requests_session(self) -> requests.Session:
        return self.tap.session

    @property
    @override
    def authenticator(self) -> BearerTokenAuthenticator:
        return BearerTokenAuthenticator(token=self.tap.settings.api_key)

    @property
    @override
    def timeout(self) -> t.Any:
        return self.tap.settings.request_timeout

    @override
    def get_new_paginator(self) -> PagePaginator:
        return PagePaginator(start_value=1)

    @override
    def get_http_request(self, *, page: PageContext[int]) -> HTTPRequest:
        request = super().get_http_request(page=page)
        request.params["page"] = page.next_page_token
        request.params["limit"] = self.tap.settings.page_size
        request.params.update(page.stream_context or {})
        return request

    def ask(
        self, query: Query, number: int = 1, then: Then | None = None
    ) -> requests.PreparedRequest:
        """Prepare the request for a page and, if there is room, send it ahead."""
        page = PageContext[int](query, number)
        request = self.get_http_request(page=page)
        prepared = self.build_prepared_request(
            method=request.method,
            url=request.url,
            params=request.encode_params(),
            headers=request.headers,
        )
        self.tap.session.ask(prepared, then)
        return prepared

    def ask_for_listing(self, query: Query, is_wanted: Callable[[Page], bool]) -> Asked:
        """Ask for a listing's first page and, when it has come, for those after it.

        Args:
            query: Query parameters of the listing.
            is_wanted: Whether the rest is wanted, by the first page.
        """

        def go_on(answer: requests.Response | Exception) -> None:
            if getattr(answer, "status_code", None) != HTTPStatus.OK:
                return
            with contextlib.suppress(RetriableAPIError):  # for whoever takes the answer
                page = page_of(t.cast("requests.Response", answer))
                if is_wanted(page):
                    self._ask_more(query, page, asked, len(asked) + 1)

        asked: Asked = deque()
        asked.append(self.ask(query, then=go_on))
        return asked

    def _ask_more(self, query: Query, page: Page, asked: Asked, number: int) -> None:
        """Ask for the pages of a listing from a number on, as far as there is room."""
        # Without totals nothing would show that pages were out of turn.
        while page.is_counted and self.tap.session.has_room and number <= page.pages:
            asked.append(self.ask(query, number))
            number += 1

    def request_pages(
        self, query: Query, asked: Asked | None = None, *, ahead: bool = True
    ) -> Iterator[Page]:
        """Ask for the pages of one listing and give them in their order.

        Args:
            query: Query parameters beside ``page`` and ``limit``.
            asked: The requests for its first pages, where they were asked for already.
            ahead: Whether further pages are asked for while the rows of one are used.

        Raises:
            FatalAPIError: If the API refuses a request or does not answer.
        """
        paginator = self.get_new_paginator()
        # The call that the SDK's request_records makes.
        send = self.request_decorator(self._request)
        counts = self.tap.run.counts[self.name]
        asked = asked or deque([self.ask(query)])
        try:
            with self.get_http_request_counter() as counter:
                while asked:
                    self.tap.flush()
                    began = self.tap.run.clock.seconds()
                    response = send(asked.popleft(), query)
                    counter.increment()
                    counts.requests += 1
                    counts.seconds += self.tap.run.clock.seconds() - began
                    page = page_of(response)
                    yield page
                    paginator.advance(response)
                    if paginator.finished:
                        continue
                    if ahead:
                        self._ask_more(
                            query, page, asked, paginator.current_value + len(asked)
                        )
                    if not asked:
                        asked.append(self.ask(query, paginator.current_value))
        finally:
            self.forget(asked)

    def forget(self, asked: Asked) -> None:
        """Give up requests that were asked for and are not wanted any more."""
        for request in asked:
            self.tap.session.forget(request)

    def rows(self, query: Query, pages: Iterator[Page] | None = None) -> Iterator[Row]:
        """Give each row of a listing once, shaped; list again when pages drift.

        Rows that are inserted while the pages are read push others to later pages,
        where they are met again. Rows that are deleted pull others to earlier pages,
        where they are missed: the API's ``total`` shrinks, or fewer rows arrive than
        it named first, or, where as many have come, the first page is another one.

        Args:
            query: Query parameters of the listing.
            pages: Its pages, where some have been asked for already.
        """
        known: set[Key] = set()
        for listing in range(LISTINGS):
            keys_seen = set() if listing else known  # one set for both in the first
            self.listing = seen = Listing(keys_seen, trusts_one_page=self.trusts_one_page)
            head: list[Row | None] = []
            # The API may answer pages that are asked for at once out of turn, and rows
            # that come in between are then missed: one after the other misses none.
            for page in pages or self.request_pages(query, ahead=listing == 0):
                rows = [self.shape(raw, query) for raw in page.rows]
                keys = [self._key(row) for row in rows]
                if len(set(keys) - {None}) < len(keys) - keys.count(None):
                    self.tap.run.warn_once(
                        f"{self.name}: the API sends rows with the same "
                        f"{' and '.join(self.key_columns)} on one page; only the first "
                        "of them is loaded"
                    )
                head = head if seen.pages else rows
                new: dict[Key, Row] = {}
                for row, key in zip(rows, keys, strict=True):
                    if row is not None and key is not None and key not in known:
                        new.setdefault(key, row)
                if not seen.add(page, keys):
                    break
                known.update(new)
                yield from new.values()
            self.tap.run.rows_without_key[self.name] += seen.without_key
            if seen.is_complete() and not (
                seen.pages > 1
                and self.may_move_up(head)
                and seen.has_moved_up(self._keys_of_first_page(query))
            ):
                return
            pages = None
        if seen.leads_nowhere:
            msg = f"{self.path} answers pages without new rows again and again"
            raise PatienceError(msg)
        self.tap.run.counts[self.name].disagreements += 1
        self.logger.warning(
            "%s: %d rows arrived where the API counts %d, after listing %s %d times",
            self.name,
            seen.rows,
            seen.first_total,
            " ".join(f"{name} {value}" for name, value in query.items()) or "all",
            LISTINGS,
        )

    def may_move_up(self, rows: list[Row | None]) -> bool:  # noqa: ARG002 - for some
        """Tell whether rows at the head of this listing may have gone while it was read.

        Asked after its last row; not worth a request where each run lists everything.
        """
        return False

    def _keys_of_first_page(self, query: Query) -> list[Key | None]:
        page = next(self.request_pages(query))
        return [self._key(self.shape(raw, query)) for raw in page.rows]

    def shape(self, raw: object, query: Query) -> Row | None:  # noqa: ARG002 - for events
        """Fit a row of the API to the schema; None for what is no row at all.

        What is not in the schema, and values that do not fit their column, are kept
        in ``_extra``.
        """
        if not isinstance(raw, dict):
            return None
        # Rows with the same columns and types differ only in values to be looked at.
        alike = (*raw, *map(type, raw.values()))
        doubtful = self._alike.get(alike)
        if doubtful is not None:
            row: Row = {**self._empty, **raw}
            for name, fit in doubtful:
                row[name] = fit(raw[name])
                if row[name] is None:
                    break
            else:
                return row
        return self._shape_any(raw, alike)

    def _shape_any(self, raw: Row, alike: tuple[t.Any, ...]) -> Row:
        row, extra = self._empty.copy(), {}
        doubtful = []
        for name, value in raw.items():
            kind = self._kinds.get(name)
            if kind is None:
                self.tap.run.warn_once(
                    f"{self.name}: the API sends {name}, which is no column yet; "
                    f"it is kept in {EXTRA}"
                )
                extra[name] = value
            elif value is not None:
                fit = _FITS[kind]
                row[name] = fit(value)
                if row[name] is None:
                    self.misfits[name] += 1
                    extra[name] = value
                if type(value) is not _SURE.get(kind):
                    doubtful.append((name, fit))
        row[EXTRA] = extra or None
        if not extra and len(self._alike) < MOST_ALIKE:
            self._alike[alike] = doubtful
        return row

    @cached_property
    def _kinds(self) -> dict[str, str]:
        """For each column of the API, the name of what makes a value fit it."""
        kinds = {}
        for name, column in self.schema["properties"].items():
            if name in {EXTRA, PROJECT}:
                continue
            kind = column["type"][0] if isinstance(column["type"], list) else "key"
            if name in self.key_columns:
                kind = "key"
            kinds[name] = column.get("format", kind)
        return kinds

    @cached_property
    def _empty(self) -> Row:
        """A row without a value; its project, where that is set, is known."""
        project = {} if self.tap.project is None else {PROJECT: self.tap.project}
        return {**dict.fromkeys(self._kinds), EXTRA: None, **project}

    def _key(self, row: Row | None) -> Key | None:
        if row is None or any(row[name] is None for name in self.key_columns):
            return None
        key: Key = self._key_of(row)
        return key

    @override
    def post_process(self, row: Row, context: t.Any = None) -> Row:
        self.tap.run.counts[self.name].rows += 1
        return row

    @override
    def log_sync_costs(self) -> None:
        # The SDK calls this once for each stream when all is done.
        self.tap.sum_up(self)

    @override
    def validate_response(self, response: requests.Response) -> None:
        status = response.status_code
        if status == HTTPStatus.OK:
            page_of(response)
            return
        if status == HTTPStatus.NOT_FOUND:
            raise NotFoundError(self.response_error_message(response))
        if status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS} or (
            status >= HTTPStatus.INTERNAL_SERVER_ERROR
        ):
            raise RetriableAPIError(self.response_error_message(response), response)
        raise FatalAPIError(self.response_error_message(response))

    @override
    def response_error_message(self, response: requests.Response) -> str:
        # Never the body: it may hold personal data.
        message = f"{response.status_code} {response.reason} for {self.path}"
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            message += (
                ": the API does not know this api_key. Copy the API key of your "
                "BugsPulse project again (it begins with bp_)"
            )
        return message

    # --- Retries -----------------------------------------------------------------------

    @override
    def request_decorator(self, func: t.Any) -> t.Any:
        # As the SDK's own, but patience counts the tries, one tap is no herd that needs
        # jitter, and what is logged of a failure is up to backoff_handler alone.
        return backoff.on_exception(
            self.backoff_wait_generator,
            (RetriableAPIError, ConnectionResetError, requests.RequestException),
            on_backoff=self.backoff_handler,
            jitter=None,
            logger=None,
        )(func)

    @override
    def backoff_wait_generator(self) -> Generator[float, t.Any, None]:
        patience = Patience(
            self.path, self.patience_tries, self.tap.minute_seconds, self.tap.run.clock
        )
        return self.backoff_runtime(value=patience.wait_after)

    @override
    def backoff_handler(self, details: Details) -> None:
        self.tap.run.counts[self.name].retries += 1
        self.logger.info(
            "%s: trying again in %.0f s after %s",
            self.name,
            details["wait"],
            reason(details["exception"]),
        )
