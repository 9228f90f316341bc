"""The baseline: a tap as a competent engineer writes it with the SDK's documentation.

It leaves to the SDK whatever the SDK does: requests, retries, conformance, writing. It
knows no rate limit, asks for one page after the other and for all events in every run.

Two choices are in its favour. The paginator believes `pages`; the SDK's own asks for one
page too many, and never ends where `/events` ignores `page`. And the events have one
bookmark: with one for each session, the default, the time for STATE messages grows with
the square of the sessions.
"""

from __future__ import annotations

import typing as t

from singer_sdk import RESTStream, Tap
from singer_sdk import typing as th
from singer_sdk.authenticators import BearerTokenAuthenticator
from singer_sdk.pagination import PageNumberPaginator
from typing_extensions import override

if t.TYPE_CHECKING:
    import requests
    from singer_sdk.streams.rest import HTTPRequest, PageContext

    Row = dict[str, t.Any]


class Paginator(PageNumberPaginator):
    """Pages up to the number that the API names."""

    @override
    def has_more(self, response: requests.Response) -> bool:
        return bool(self.current_value < response.json()["pages"])


class BugsPulseStream(RESTStream[int]):
    """A stream of the Export API."""

    records_jsonpath = "$.data[*]"

    @property
    @override
    def url_base(self) -> str:
        return str(self.config["api_url"])

    @property
    @override
    def authenticator(self) -> BearerTokenAuthenticator:
        return BearerTokenAuthenticator(token=self.config["api_key"])

    @override
    def get_new_paginator(self) -> Paginator:
        return Paginator(1)

    @override
    def get_http_request(self, *, page: PageContext[int]) -> HTTPRequest:
        request = super().get_http_request(page=page)
        request.params |= {"page": page.next_page_token, "limit": 1000}
        start = self.get_starting_timestamp(page.stream_context)
        if start is not None:
            request.params["from"] = f"{start:%Y-%m-%d}"
        return request


class Sessions(BugsPulseStream):
    """Sessions."""

    name = "sessions"
    path = "/sessions"
    primary_keys = ("id",)
    replication_key = "startedAt"
    schema = th.PropertiesList(
        th.Property("id", th.StringType, required=True),
        th.Property("userId", th.StringType),
        th.Property("status", th.StringType),
        th.Property("platform", th.StringType),
        th.Property("osVersion", th.StringType),
        th.Property("appVersion", th.StringType),
        th.Property("networkType", th.StringType),
        th.Property("eventCount", th.IntegerType),
        th.Property("hasCrash", th.BooleanType),
        th.Property("hasNetworkErrors", th.BooleanType),
        th.Property("duration", th.IntegerType),
        th.Property("startedAt", th.DateTimeType),
        th.Property("endedAt", th.DateTimeType),
    ).to_dict()

    @override
    def get_child_context(self, record: Row, context: t.Any) -> Row:
        return {"sessionId": record["id"]}


class Events(BugsPulseStream):
    """The events of each session."""

    name = "events"
    path = "/events"
    primary_keys = ("sessionId", "id")
    parent_stream_type = Sessions
    state_partitioning_keys = ()
    schema = th.PropertiesList(
        th.Property("sessionId", th.StringType, required=True),
        th.Property("id", th.StringType, required=True),
        th.Property("type", th.StringType),
        th.Property("timestamp", th.DateTimeType),
        th.Property("sequenceNumber", th.IntegerType),
        th.Property("data", th.ObjectType(additional_properties=True)),
    ).to_dict()

    @override
    def get_http_request(self, *, page: PageContext[int]) -> HTTPRequest:
        request = super().get_http_request(page=page)
        request.params |= page.stream_context or {}
        return request

    @override
    def post_process(self, row: Row, context: t.Any = None) -> Row:
        return {**row, **context}


class Crashes(BugsPulseStream):
    """Crash groups."""

    name = "crashes"
    path = "/crashes"
    primary_keys = ("id",)
    schema = th.PropertiesList(
        th.Property("id", th.StringType, required=True),
        th.Property("message", th.StringType),
        th.Property("status", th.StringType),
        th.Property("isFatal", th.BooleanType),
        th.Property("handled", th.BooleanType),
        th.Property("occurrenceCount", th.IntegerType),
        th.Property("affectedDevices", th.IntegerType),
        th.Property("platform", th.StringType),
        th.Property("appVersion", th.StringType),
        th.Property("osVersion", th.StringType),
        th.Property("firstSeenAt", th.DateTimeType),
        th.Property("lastSeenAt", th.DateTimeType),
    ).to_dict()


class Network(BugsPulseStream):
    """Network calls."""

    name = "network"
    path = "/network"
    primary_keys = ("id",)
    replication_key = "timestamp"
    schema = th.PropertiesList(
        th.Property("id", th.StringType, required=True),
        th.Property("sessionId", th.StringType),
        th.Property("method", th.StringType),
        th.Property("url", th.StringType),
        th.Property("statusCode", th.IntegerType),
        th.Property("duration", th.IntegerType),
        th.Property("error", th.StringType),
        th.Property("timestamp", th.DateTimeType),
    ).to_dict()


class StockTap(Tap):
    """Singer tap for BugsPulse as the SDK's template makes it."""

    name = "tap-stock"
    config_jsonschema = th.PropertiesList(
        th.Property("api_url", th.StringType(nullable=False), required=True),
        th.Property("api_key", th.StringType(nullable=False), required=True, secret=True),
    ).to_dict()

    @override
    def discover_streams(self) -> list[BugsPulseStream]:
        return [Sessions(self), Events(self), Crashes(self), Network(self)]


if __name__ == "__main__":
    StockTap.cli()
