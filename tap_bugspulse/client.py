"""One request to the Export API: its page, its errors, its retries."""

from __future__ import annotations

import json
import typing as t
from dataclasses import dataclass
from http import HTTPStatus

import requests
from singer_sdk import RESTStream
from singer_sdk.authenticators import BearerTokenAuthenticator
from singer_sdk.exceptions import FatalAPIError, RetriableAPIError
from singer_sdk.pagination import PageNumberPaginator
from singer_sdk.streams.rest import PageContext
from typing_extensions import override

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from singer_sdk.helpers.types import Context
    from singer_sdk.streams.rest import HTTPRequest

    from tap_bugspulse.tap import TapBugsPulse

__all__ = ["BugsPulseStream", "Page", "PagePaginator", "page_of"]


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing as the API's envelope describes it."""

    rows: list[t.Any]
    total: int
    number: int
    pages: int

    @classmethod
    def decode(cls, response: requests.Response) -> Page:
        """Read the envelope ``data``, ``total``, ``page``, ``limit``, ``pages``.

        Raises:
            RetriableAPIError: If the body is not the documented JSON envelope.
        """
        try:
            body = json.loads(response.content)
        except ValueError:
            raise RetriableAPIError(_not_an_envelope(response), response) from None
        rows = body.get("data") if isinstance(body, dict) else None
        if not isinstance(rows, list):
            raise RetriableAPIError(_not_an_envelope(response), response)
        number, limit = _count(body, "page") or 1, _count(body, "limit") or len(rows)
        total, pages = _count(body, "total"), _count(body, "pages")
        if total is None:
            total = len(rows)
        if pages is None:
            pages = -(-total // limit) if limit else 1
        return cls(rows=rows, total=total, number=number, pages=pages)


def _count(body: dict[str, t.Any], key: str) -> int | None:
    value = body.get(key)
    return value if isinstance(value, int) and value >= 0 else None


def _not_an_envelope(response: requests.Response) -> str:
    return f"{response.status_code} without the documented JSON body"


def page_of(response: requests.Response) -> Page:
    """Decode the page of a response once; later calls return the same page."""
    kept = vars(response)
    if "page" not in kept:
        kept["page"] = Page.decode(response)
    return t.cast("Page", kept["page"])


class PagePaginator(PageNumberPaginator):
    """Follows ``page`` and ``pages`` of the answer, never the number of rows."""

    @override
    def has_more(self, response: requests.Response) -> bool:
        page = page_of(response)
        return page.number < page.pages


class BugsPulseStream(RESTStream[int]):
    """A stream of the Export API."""

    allow_redirects = False  # the key never leaves its host
    tap: TapBugsPulse

    def __init__(self, tap: TapBugsPulse) -> None:
        """Set the stream up with the tap's settings and its one HTTP session."""
        self.tap = tap
        super().__init__(tap)

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

    def request_pages(self, query: Context) -> Iterator[Page]:
        """Ask for all pages of one listing, one after the other.

        Args:
            query: Query parameters beside ``page`` and ``limit``.

        Raises:
            FatalAPIError: If the API refuses the request or does not answer.
        """
        paginator = self.get_new_paginator()
        # The same call the SDK's request_records makes.
        send = self.request_decorator(self._request)
        with self.get_http_request_counter() as counter:
            while not paginator.finished:
                context = PageContext(query, paginator.current_value)
                request = self.get_http_request(page=context)
                response = send(
                    self.build_prepared_request(
                        method=request.method,
                        url=request.url,
                        params=request.encode_params(),
                        headers=request.headers,
                    ),
                    query,
                )
                counter.increment()
                yield page_of(response)
                paginator.advance(response)

    @override
    def parse_response(self, response: requests.Response) -> Iterator[dict[str, t.Any]]:
        yield from page_of(response).rows

    @override
    def validate_response(self, response: requests.Response) -> None:
        status = response.status_code
        if status == HTTPStatus.UNAUTHORIZED:
            msg = (
                "401 Unauthorized: the API does not know this api_key. Copy the API key "
                "of your BugsPulse project again (it begins with bp_)"
            )
            raise FatalAPIError(msg)
        if status == HTTPStatus.OK:
            page_of(response)
            return
        super().validate_response(response)

    @override
    def response_error_message(self, response: requests.Response) -> str:
        # Never the body: it may hold personal data.
        return f"{response.status_code} {response.reason} for {self.path}"
