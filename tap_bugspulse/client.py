"""One request to the Export API: its page, its errors, its retries."""

from __future__ import annotations

import contextlib
import typing as t
from collections import deque
from functools import cached_property
from http import HTTPStatus

import backoff
import requests
from singer_sdk import RESTStream, SchemaDirectory, StreamSchema
from singer_sdk.authenticators import BearerTokenAuthenticator
from singer_sdk.exceptions import ConfigurationError, FatalAPIError, RetriableAPIError
from singer_sdk.helpers.conform import TypeConformanceLevel
from singer_sdk.streams.rest import PageContext
from typing_extensions import override

from tap_bugspulse import schemas
from tap_bugspulse.columns import EXTRA, PROJECT, PROJECT_COLUMN, Columns
from tap_bugspulse.paging import Listing, PagePaginator, decoder_of, page_of
from tap_bugspulse.patience import Patience, PatienceError, reason

if t.TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from backoff.types import Details
    from singer_sdk.singerlib import Catalog
    from singer_sdk.streams.rest import HTTPRequest

    from tap_bugspulse.columns import Row
    from tap_bugspulse.paging import Page
    from tap_bugspulse.run import Counts
    from tap_bugspulse.session import Then
    from tap_bugspulse.tap import TapBugsPulse

    Query = Mapping[str, str]
    Asked = deque[requests.PreparedRequest]

LISTINGS = 3  # times a listing is read before rows that do not turn up are given up


class NotFoundError(FatalAPIError):
    """The API does not know what was asked for."""


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
    known: set[str]  # keys of the rows that came in all of its readings

    def __init__(self, tap: TapBugsPulse) -> None:
        """Set the stream up with the tap's settings and its one HTTP session."""
        self.tap = tap
        self.key_columns = tuple(self.primary_keys)
        super().__init__(tap)
        if tap.project is not None:
            self.primary_keys = (PROJECT, *self.key_columns)
        self.columns = Columns(
            self.schema["properties"], self.key_columns, tap.project, self._has_no_column
        )
        self.decoder = decoder_of(self.columns.row_type)

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

    @cached_property
    def counts(self) -> Counts:
        """What the run counts of this stream."""
        return self.tap.run.counts[self.name]

    def _has_no_column(self, name: str) -> None:
        self.tap.run.warn_once(
            f"{self.name}: the API sends {name}, which is no column yet; "
            f"it is kept in {EXTRA}"
        )

    @override
    def apply_catalog(self, catalog: Catalog) -> None:
        super().apply_catalog(catalog)
        entry = catalog.get_stream(self.name)
        if entry is None:
            return
        # The SDK looks for each column of each row in the metadata. Names that are the
        # row's own, not equal ones read from a file, are found without comparing text.
        names = {name: name for name in ("properties", *self.schema["properties"])}
        for breadcrumb in list(entry.metadata):
            own = tuple(names.get(name, name) for name in breadcrumb)
            entry.metadata[own] = entry.metadata.pop(breadcrumb)
        if self.tap.project is None:
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
                page = page_of(t.cast("requests.Response", answer), self.decoder)
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
        asked = asked or deque([self.ask(query)])
        try:
            with self.get_http_request_counter() as counter:
                while asked:
                    self.tap.flush()
                    began = self.tap.run.clock.seconds()
                    response = send(asked.popleft(), query)
                    counter.increment()
                    self.counts.requests += 1
                    self.counts.seconds += self.tap.run.clock.seconds() - began
                    page = page_of(response, self.decoder)
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
        self.known = known = set[t.Any]()
        for listing in range(LISTINGS):
            keys_seen = set() if listing else known  # one set for both in the first
            self.listing = seen = Listing(keys_seen, trusts_one_page=self.trusts_one_page)
            head: list[t.Any] = []
            # The API may answer pages that are asked for at once out of turn, and rows
            # that come in between are then missed: one after the other misses none.
            for page in pages or self.request_pages(query, ahead=listing == 0):
                keys = self.columns.keys(page.rows)
                new = self._new_rows(page, keys)
                head = head if seen.pages else page.rows
                if not seen.add(page, keys):
                    break
                known.update(new)
                # One by one, as they are written: what is at hand is still in the cache.
                for raw in new.values():
                    yield self.shape(raw, query)
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
        self.counts.disagreements += 1
        self.logger.warning(
            "%s: %d rows arrived where the API counts %d, after listing %s %d times",
            self.name,
            seen.rows,
            seen.first_total,
            " ".join(f"{name} {value}" for name, value in query.items()) or "all",
            LISTINGS,
        )

    def _new_rows(self, page: Page, keys: list[str | None]) -> dict[str, t.Any]:
        """Give the rows of a page that have not come before, by their keys."""
        if len(set(keys) - {None}) < len(keys) - keys.count(None):
            self.tap.run.warn_once(
                f"{self.name}: the API sends rows with the same "
                f"{' and '.join(self.key_columns)} on one page; only the first of them is "
                "loaded"
            )
        new: dict[str, t.Any] = {}
        for raw, key in zip(page.rows, keys, strict=True):
            if key is not None and key not in self.known:
                new.setdefault(key, raw)
        return new

    def may_move_up(self, head: list[t.Any]) -> bool:  # noqa: ARG002 - some streams look
        """Tell whether rows at the head of this listing may have gone while it was read.

        Asked after its last row; not worth a request where each run lists everything.

        Args:
            head: The rows of its first page, as the API sent them.
        """
        return False

    def _keys_of_first_page(self, query: Query) -> list[str | None]:
        return self.columns.keys(next(self.request_pages(query)).rows)

    # Whatever the API sends; the query is for events, whose rows do not hold all of it.
    def shape(self, raw: t.Any, query: Query) -> Row:  # noqa: ANN401, ARG002 - see above
        """Fit a row of the API that has a key to the schema."""
        return self.columns.fit(raw)

    @override
    def post_process(self, row: Row, context: t.Any = None) -> Row:
        self.counts.rows += 1
        return row

    @override
    def generate_child_contexts(self, record: Row, context: t.Any) -> Iterator[t.Any]:
        # None for a row: Sessions.get_records runs the events when all are listed. The
        # SDK's own makes a copy of each row, also where a stream has no children.
        return iter(())

    @override
    def log_sync_costs(self) -> None:
        # The SDK calls this once for each stream when all is done.
        self.tap.sum_up(self)

    @override
    def validate_response(self, response: requests.Response) -> None:
        status = response.status_code
        if status == HTTPStatus.OK:
            page_of(response, self.decoder)
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
        self.counts.retries += 1
        self.logger.info(
            "%s: trying again in %.0f s after %s",
            self.name,
            details["wait"],
            reason(details["exception"]),
        )
