"""The base of the streams: a request, the pages of a listing, and its drift."""

from __future__ import annotations

import itertools
import threading
import typing as t
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from functools import cached_property
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

import backoff
import msgspec
import requests
from backoff.types import Details
from singer_sdk import RESTStream, SchemaDirectory, StreamSchema, Tap
from singer_sdk.authenticators import BearerTokenAuthenticator
from singer_sdk.exceptions import RetriableAPIError
from singer_sdk.helpers.conform import TypeConformanceLevel
from singer_sdk.mapper import SameRecordTransform
from singer_sdk.pagination import PageNumberPaginator
from singer_sdk.singerlib import Catalog, Schema
from singer_sdk.singerlib.catalog import REPLICATION_INCREMENTAL
from singer_sdk.streams.rest import HTTPRequest, PageContext
from typing_extensions import override

from tap_bugspulse import schemas
from tap_bugspulse.http import Call, RefusedError, patience, reason
from tap_bugspulse.pages import EXTRA, PROJECT, Listing, Reading, Row, Table, page_of
from tap_bugspulse.run import Counts, OutOfTime, Run

Query = Mapping[str, str]

MAX_DRIFTS, MAX_READINGS = 3, 5  # readings of a listing, before rows are given up
PROJECT_COLUMN = {
    "type": "string",
    "description": "Name of the BugsPulse project, from the setting project.",
}


class BugsPulseStream(RESTStream[int]):
    """A stream of the Export API."""

    schema_file = StreamSchema(SchemaDirectory(schemas))
    # The rows are JSON already, and made to fit when they are decoded.
    TYPE_CONFORMANCE_LEVEL = TypeConformanceLevel.NONE
    is_incremental = False  # to the SDK
    extra_retry_statuses = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
    allow_redirects = False  # the key never leaves its host
    # The warehouse keeps what BugsPulse's retention deletes, whatever a setting asks for.
    emit_activate_version_messages = False

    def __init__(self, tap: Tap, run: Run) -> None:
        self.run = run
        self.counts: Counts = run.counts[str(self.name)]
        super().__init__(tap)
        if run.project is not None:
            self.primary_keys = (PROJECT, *self.primary_keys)
        self.table = Table(self.name, self.schema["properties"])

    @cached_property
    @override
    def schema(self) -> dict[str, t.Any]:
        """The schema file named after the stream, and ``project`` where it is set."""
        if self.run.project is None:
            return self.schema_file
        return self.schema_file | {
            "required": [PROJECT, *self.schema_file["required"]],
            "properties": {PROJECT: PROJECT_COLUMN, **self.schema_file["properties"]},
        }

    @override
    def apply_catalog(self, catalog: Catalog) -> None:
        keys, known = self.primary_keys, self.schema["properties"]
        entry = catalog.get_stream(self.name)
        columns = entry.schema.properties if entry else None
        # It may be from before these columns, without which rows would lack something.
        for name in (PROJECT, EXTRA):
            if columns and name in known:
                columns.setdefault(name, Schema.from_dict(known[name]))
        if entry and self.run.project is not None:
            entry.key_properties = [*keys]
        super().apply_catalog(catalog)
        if self.replication_method == REPLICATION_INCREMENTAL and not self.is_incremental:
            self.forced_replication_method, self.replication_key = None, None
            self.logger.warning(
                f"{self.name} cannot be INCREMENTAL, as the catalog asks: it is loaded as usual"
            )

    @override
    def get_batch_config(self, config: Mapping[str, t.Any]) -> None:
        return None  # batches bypass stream maps, which may hide personal data

    @property
    @override
    def url_base(self) -> str:
        return self.run.settings.api_url

    @property
    @override
    def requests_session(self) -> requests.Session:
        return self.run.http

    @property
    @override
    def authenticator(self) -> BearerTokenAuthenticator:
        return BearerTokenAuthenticator(token=self.run.settings.api_key)

    @override
    def get_http_request(self, *, page: PageContext[int]) -> HTTPRequest:
        request = super().get_http_request(page=page)
        request.params["page"] = page.next_page_token
        request.params["limit"] = self.run.settings.page_size
        request.params.update(page.stream_context or {})
        return request

    def fetch(self, query: Query, number: int = 1, *, retries: bool = True) -> Call:
        """Return the call that asks for a page of a listing, on its way from now on."""
        at = PageNumberPaginator(start_value=number)
        prepared = self._prepare_request(context=query, page=at)
        send = self.request_decorator(self._request) if retries else self._request
        return Call(lambda: send(prepared, query))

    def prefetch(self, calls: Iterable[Call], many: int = 0) -> Generator[Call, None, None]:
        """Yield calls in their order, many on their way; taking one from ``calls`` sends it."""
        many = many or self.run.settings.concurrency
        sent: deque[Call] = deque()
        try:
            for call in calls:
                sent.append(call)
                if len(sent) >= many:
                    yield sent.popleft()
            while sent:
                yield sent.popleft()
        finally:
            for call in sent:
                call.cancel()

    def take(self, call: Call) -> requests.Response:
        """Return the response of a call, and count what no column holds."""
        return self.run.result(call, self.counts)

    @override
    def validate_response(self, response: requests.Response) -> None:
        status = response.status_code
        if status in {HTTPStatus.OK, HTTPStatus.NO_CONTENT}:
            page_of(response, self.table)
            return
        others = {HTTPStatus.UNAUTHORIZED, *self.extra_retry_statuses}
        if status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in others:
            raise RefusedError(self.response_error_message(response), status)
        super().validate_response(response)

    @override
    def response_error_message(self, response: requests.Response) -> str:
        # Never the body: it may hold personal data.
        asked = parse_qs(urlsplit(response.url).query)
        dates = "".join(f" {name} {asked[name][0]}" for name in ("from", "to") if name in asked)
        msg = f"{response.status_code} {response.reason} for {self.path}{dates}"
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            msg += (
                ": the API does not know this api_key. Copy the API key of your BugsPulse project "
                "again (it begins with bp_)"
            )
        return msg

    @override
    def request_decorator(self, func: t.Any) -> t.Any:
        # As the SDK's own, but patience counts the tries, one tap is no herd that needs jitter,
        # and what is logged of a failure is up to backoff_handler alone.
        return backoff.on_exception(
            lambda: patience(self.path, self.run.http),
            (RetriableAPIError, requests.RequestException),
            on_backoff=self.backoff_handler,
            jitter=None,
            logger=None,
        )(func)

    @override
    def backoff_handler(self, details: Details) -> None:
        wait, why = details["wait"], reason(details["exception"])
        call = t.cast("Call", threading.current_thread())
        call.end_try(f"{self.name}: trying again in {wait:.0f} s after {why}")

    def pages(
        self, query: Query, reading: Reading, first: requests.Response | None
    ) -> Iterator[list[Row]]:
        """Yield the rows of each page, ``first`` where it has come, the next on their way."""
        # Where rows still arrive, pages answered out of turn would miss those that move on.
        many = 0 if "to" in query else 1
        try:
            with self.get_http_request_counter() as counter:
                while True:
                    at = itertools.count(reading.current_value)
                    numbers = itertools.takewhile(lambda number: number <= reading.last_page, at)
                    calls = self.prefetch((self.fetch(query, number) for number in numbers), many)
                    with closing(calls):
                        for response in [first] if first else map(self.take, calls):
                            counter.increment()
                            reading.advance(response)
                            yield page_of(response).rows
                            if reading.finished:
                                return
                    first = None
        except RefusedError as error:
            past_end = {HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST}
            if reading.current_value == 1 or error.status not in past_end:
                raise
            reading.shrank, reading.is_complete = True, False  # the API had named that page

    def listing(self, query: Query, first: requests.Response | None = None) -> Listing:
        """Return the rows of a listing, each once; its first page may have come already."""
        return Listing(self._read_until_whole(query, first))

    def _read_until_whole(
        self, query: Query, first: requests.Response | None
    ) -> Generator[list[Row], None, Reading]:
        """Yield the new rows of each page; list again when pages drift.

        Rows that are inserted push others to later pages, where they are met again. Deleted ones
        pull others to earlier pages, where they are missed: ``total`` shrinks, or fewer rows
        arrive than it named first, or the first page is another one.
        """
        known: set[str] = set()
        before: Reading | None = None
        asked = query
        for number in range(1, MAX_READINGS + 1):
            reading = Reading()
            for page in self.pages(asked, reading, first):
                rows = self._new_rows(page, reading.page_ids, known)
                self.set_fixed(rows, query)
                yield rows
                known.update(reading.page_ids)
            first = None
            if reading.is_complete and not (
                reading.pages > 1
                and self.can_shift(reading.head)
                and reading.first_page_lost_rows(page_of(self.take(self.fetch(asked))))
            ):
                return reading
            # One page is one answer, in which nothing can drift, and what is missing twice is
            # not there.
            is_same = before is not None and before.ids >= reading.ids
            if reading.rows and not reading.shrank and (reading.pages <= 1 or is_same):
                break
            before = reading
            if reading.rows and not reading.shrank and reading.rows < (reading.first_total or 0):
                # Rows of one instant may come in another order on each page: let pages end
                # elsewhere, and take all readings together.
                if len(known) >= (reading.first_total or 0):
                    reading.ids, reading.is_complete = known, True
                    return reading
                limit = self.run.settings.page_size * (6 - number) // 6
                asked = {**query, "limit": str(max(1, limit))}
            elif number >= MAX_DRIFTS:
                break
        reading.ids, reading.is_complete = known, False
        self._note_short_listing(reading, query)
        return reading

    def _note_short_listing(self, reading: Reading, query: Query) -> None:
        self.counts.short_listings += 1
        asked = " ".join(f"{name} {value}" for name, value in query.items()) or "all"
        self.run.warn_once(
            f"{self.name}: %d rows arrived where the API counts %d in %s",
            *(reading.rows, reading.first_total or 0, asked),
        )

    def _new_rows(self, rows: list[Row], ids: list[str], known: set[str]) -> list[Row]:
        if len(set(ids)) < len(ids):
            self.run.warn_once(
                f"{self.name}: the API sends rows with the same {' and '.join(self.primary_keys)} "
                "on one page; only the first of them is loaded"
            )
            rows = list({row.id: row for row in reversed(rows)}.values())[::-1]
        return [row for row in rows if row.id not in known]

    def set_fixed(self, rows: list[Row], query: Query) -> None:  # noqa: ARG002 - events do
        """Set the columns that the API does not send."""
        if self.run.project is not None:
            for row in rows:
                row.project = self.run.project

    def can_shift(self, head: list[Row]) -> bool:  # noqa: ARG002 - some streams look
        """Return whether rows of its first page, ``head``, may go while a listing is read."""
        return False  # not worth a request where each run lists everything

    @override
    def get_records(self, context: t.Any) -> Iterator[Row]:
        try:
            # All rows, or those that --test asks for.
            yield from itertools.islice(self.read_rows(), self.ABORT_AT_RECORD_COUNT)
        except OutOfTime:
            self.run.is_complete = False
            self.logger.info("the time limit is reached, the next run goes on here")
        except (RefusedError, RetriableAPIError) as error:
            # Where nothing answers at all, no other stream can be loaded.
            is_dead = isinstance(error, RetriableAPIError) and error.response is None
            if self.ABORT_AT_RECORD_COUNT is not None or is_dead:
                raise
            # The other streams load; the run ends with it.
            self.run.errors[self.name] = str(error)
            self.logger.error("%s", error)  # noqa: TRY400 - for a person

    def read_rows(self) -> Iterator[Row]:
        """Yield the rows that this run emits, or raise OutOfTime at the time limit."""
        return itertools.chain.from_iterable(self.listing({}))

    @override
    def generate_child_contexts(self, record: Row, context: t.Any) -> Iterator[t.Any]:
        return iter(())  # the sessions run the events when all of them are listed

    @cached_property
    def is_plain(self) -> bool:
        """Whether rows are emitted as they are: no stream map, nothing left out."""
        maps = self.stream_maps
        return (
            [type(one) for one in maps] == [SameRecordTransform]
            and not maps[0].flattening_enabled
            and all(self.mask[("properties", name)] for name in self.schema["properties"])
        )

    # The SDK makes a dict of each row, looks at each column's selection and copies the row
    # through its maps: four fifths of the time, for nothing where it is plain.
    @override
    def _write_record_message(self, record: Row) -> None:
        self.counts.rows += 1
        if self.is_plain:
            self.run.writer.write_row(self.name, record)
        else:
            super()._write_record_message(msgspec.structs.asdict(record))

    def save(self, bookmark: Mapping[str, t.Any]) -> None:
        """Change keys of the bookmark and send the state; all rows that it claims are out."""
        project = {PROJECT: self.run.project} if self.run.project and bookmark else {}
        # In one step: a signal may write it at any moment.
        self.stream_state.update({**bookmark, **project})
        self.state_manager.is_flushed = False
        self._write_state_message()

    @override
    def log_sync_costs(self) -> None:
        # The SDK calls this once for each stream when all is done.
        self.run.stream_done(self.name, is_selected=self.selected)
