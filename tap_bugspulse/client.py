"""The base of the streams: requests, the pages of a listing, and rows that move between pages."""

import itertools
import re
import threading
import typing as t
from collections import deque
from contextlib import closing
from datetime import datetime
from functools import cached_property
from http import HTTPStatus

import backoff
import msgspec
from backoff.types import Details
from requests import RequestException, Response, Session
from singer_sdk import RESTStream, SchemaDirectory, StreamSchema, Tap
from singer_sdk.authenticators import BearerTokenAuthenticator
from singer_sdk.exceptions import RetriableAPIError
from singer_sdk.helpers.conform import TypeConformanceLevel
from singer_sdk.mapper import SameRecordTransform
from singer_sdk.pagination import PageNumberPaginator
from singer_sdk.singerlib import Catalog, Schema
from typing_extensions import override

from tap_bugspulse import http, schemas
from tap_bugspulse.pages import EXTRA, PROJECT, Page, Reading, Row, Table, has_lost_rows, page_of
from tap_bugspulse.replication import FAR, parse_instant
from tap_bugspulse.run import OutOfTime, Run

Query = t.Mapping[str, str]
REFUSED = {*range(500)} - {200, 204, 401, 408, 429}  # statuses after which others may work
MAX_DRIFTS, MAX_READINGS = 3, 5  # readings of a listing whose rows move, and in all cases
PROJECT_COLUMN = {"type": "string", "description": "Name of the project, from the setting project."}


class BugsPulseStream(RESTStream[int]):
    """A stream of the Export API."""

    instant_column = ""  # the column that from and to filter on, if there is one
    schema_file = StreamSchema(SchemaDirectory(schemas))
    # Rows come from JSON and are made to fit the schema when they are decoded.
    TYPE_CONFORMANCE_LEVEL = TypeConformanceLevel.NONE
    extra_retry_statuses = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
    allow_redirects = False  # the API key goes to no other host
    # Whatever the settings say: the warehouse keeps rows that BugsPulse's retention deletes.
    emit_activate_version_messages = False
    _refuses_far = False  # the API, a ``to`` of FAR

    def __init__(self, tap: Tap, run: Run) -> None:
        self.run = run
        self.counts = run.counts[str(self.name)]
        schema = self.schema_file
        if run.project is not None:
            self.primary_keys = (PROJECT, *self.primary_keys)
            required = [PROJECT, *schema["required"]]
            columns = {PROJECT: PROJECT_COLUMN, **schema["properties"]}
            schema = {**schema, "required": required, "properties": columns}
        super().__init__(tap, schema=schema)
        self.table = Table(self.name, schema["properties"], run.project)

    @override
    def apply_catalog(self, catalog: Catalog) -> None:
        own_key, columns = self.replication_key, self.schema["properties"]
        if entry := catalog.get_stream(self.name):
            if PROJECT in columns:
                entry.key_properties = [*self.primary_keys]
            # An older catalog lacks these columns: without them, rows would lose values.
            for name in columns.keys() & {PROJECT, EXTRA}:
                (entry.schema.properties or {}).setdefault(name, Schema.from_dict(columns[name]))
        super().apply_catalog(catalog)
        if own_key is None and self.replication_method == "INCREMENTAL":
            self.forced_replication_method, self.replication_key = None, None
            self.logger.warning(
                f"{self.name} cannot be INCREMENTAL, as the catalog asks: it is loaded as usual"
            )

    @override
    def get_batch_config(self, config: t.Mapping[str, t.Any]) -> None:
        return None  # batches bypass stream maps, which may hide personal data

    @property
    @override
    def url_base(self) -> str:
        return self.run.settings.api_url

    @property
    @override
    def requests_session(self) -> Session:
        return self.run.http

    @property
    @override
    def authenticator(self) -> BearerTokenAuthenticator:
        return BearerTokenAuthenticator(token=self.run.settings.api_key)

    @override
    def get_url_params(self, context: t.Any, next_page_token: int | None) -> dict[str, t.Any]:
        return {"page": next_page_token, "limit": self.run.settings.page_size, **(context or {})}

    def fetch(self, query: Query, number: int = 1, *, retries: bool = True) -> http.Call:
        """Start to request a page of a listing, and return the call."""
        send = self.request_decorator(self._request) if retries else self._request
        without_end = {name: one for name, one in query.items() if (name, one) != ("to", f"{FAR}")}
        first, page = without_end if self._refuses_far else query, PageNumberPaginator(number)
        prepared = self._prepare_request(context=first, page=page)

        def job() -> Response:
            try:
                return send(prepared, first)
            except http.RefusedError as error:
                if error.status != HTTPStatus.BAD_REQUEST or number > 1 or first == without_end:
                    raise
            response = send(self._prepare_request(context=without_end, page=page), without_end)
            self._refuses_far = True  # the end was too far away for the API
            return response

        return http.Call(job)

    def prefetch(
        self, calls: t.Iterator[http.Call], limit: t.Callable[[], int] | None = None
    ) -> t.Generator[http.Call, None, None]:
        """Yield calls in order, with up to ``limit`` in flight: ``next(calls)`` sends one."""
        in_flight: deque[http.Call] = deque()
        try:
            while True:
                most = limit() if limit else self.run.settings.concurrency
                in_flight.extend(itertools.islice(calls, max(0, most - len(in_flight))))
                if not in_flight:
                    return
                yield in_flight.popleft()
        finally:
            for call in in_flight:
                call.cancel()

    def take(self, call: http.Call) -> Response:
        """Wait for the response of a call, and count it for this stream."""
        return self.run.result(call, self.counts)

    @override
    def validate_response(self, response: Response) -> None:
        status = response.status_code
        is_empty = status == HTTPStatus.NO_CONTENT
        if is_empty or status == HTTPStatus.OK:
            try:
                page = Page([], 0) if is_empty else self.table.decode(response.content)
            except (ValueError, RecursionError):
                msg = f"{status} without the documented JSON body"
                raise RetriableAPIError(msg, response) from None
            vars(response)["page"] = page
        elif status in REFUSED:
            raise http.RefusedError(self.response_error_message(response), status)
        else:
            super().validate_response(response)

    @override
    def response_error_message(self, response: Response) -> str:
        # Never the body: it may hold personal data.
        dates = re.findall("[?&](from|to)=([^&]*)", response.url)
        listing = " ".join(itertools.chain([self.path], *dates))
        msg = f"{response.status_code} {response.reason} for {listing}"
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            msg += (
                ": the API does not know this api_key. Copy the API key of your BugsPulse project "
                "again (it begins with bp_)"
            )
        return msg

    @override
    def request_decorator(self, func: t.Any) -> t.Any:
        # Like the SDK's own, but patience() decides when to give up, only backoff_handler logs
        # failures, and there is no jitter, which a single client does not need.
        return backoff.on_exception(
            lambda: http.patience(self.path, self.run.http),
            (RetriableAPIError, RequestException),
            on_backoff=self.backoff_handler,
            jitter=None,
            logger=None,
        )(func)

    @override
    def backoff_handler(self, details: Details) -> None:
        wait, why = details["wait"], http.reason(details["exception"])
        call = t.cast("http.Call", threading.current_thread())
        call.is_sent = False
        call.notes.append(f"{self.name}: trying again in {wait:.0f} s after {why}")

    def pages(self, query: Query, reading: Reading, first: Response) -> t.Iterator[list[Row]]:
        """Yield the rows of the first page and of the next ones, which are prefetched."""
        # Without an end, new rows move others to later pages: read those one after the other.
        most = self.run.settings.concurrency if query.get("to", f"{FAR}") != f"{FAR}" else 1
        calls = self.prefetch(
            (self.fetch(query, number) for number in itertools.count(2)),
            lambda: min(most, reading.last_page - reading.current_value + 1),
        )
        try:
            with closing(calls), self.get_http_request_counter() as counter:
                for response in itertools.chain([first], map(self.take, calls)):
                    counter.increment()
                    reading.advance(response)
                    yield page_of(response).rows
                    if reading.finished:
                        break
        except http.RefusedError as error:
            if error.status not in {HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST}:
                raise
            reading.drifted = True  # by the API's earlier counts, this page exists

    def listing(
        self, query: Query, first: Response | None = None, readings: list[Reading] | None = None
    ) -> t.Iterator[list[Row]]:
        """Yield the rows of a listing, each once, page by page; read it again if rows have moved.

        Inserted rows push others to later pages, where they come twice. Deleted rows pull others
        to earlier pages, where they are missed: then ``total`` shrinks, or fewer rows come than it
        said first, or the first page changes. The last of ``readings`` says how complete it is.
        """
        readings = [] if readings is None else readings
        yielded, ids, this_query = set[str](), set[str](), query
        for number in range(1, MAX_READINGS + 1):
            reading = Reading(ids)
            readings.append(reading)
            first = first or self.take(self.fetch(this_query))
            for rows in self.pages(this_query, reading, first):
                new = {row.id: row for row in reversed(rows) if row.id not in yielded}
                yield [*new.values()][::-1]
                yielded.update(new)
            page, first = page_of(first), None
            if reading.is_complete and reading.pages > 1 and self.can_shift(page.rows):
                reading.drifted = has_lost_rows(page, page_of(self.take(self.fetch(this_query))))
            if reading.is_complete:
                return
            is_short = reading.pages > 0 and not reading.drifted
            # Nothing moves in a single page, and rows that are missing twice do not exist.
            is_final = reading.pages == 1 or len(reading.ids) == len(ids)
            if (is_short and is_final) or (not is_short and number >= MAX_DRIFTS):
                break
            # Rows of the same instant may change their order from page to page. Let pages end
            # elsewhere, and add up the rows of these readings.
            ids = reading.ids if is_short else set()
            limit = max(1, self.run.settings.page_size * (6 - number) // 6)
            this_query = {**query, "limit": str(limit)} if is_short else query
        self.counts.short_listings += 1
        self.run.warn_once(
            f"{self.name}: %d rows arrived where the API counts %d in %s",
            *(reading.rows, reading.total, " ".join(map(" ".join, query.items())) or "all"),
        )

    def instant_of(self, row: Row) -> datetime | None:
        """Return the instant of a row, None if it cannot be read."""
        return parse_instant(getattr(row, self.instant_column))

    def can_shift(self, first: list[Row]) -> bool:
        """Return whether rows of a listing's first page may be deleted while it is read."""
        # Retention deletes the oldest. Newest first, they are at the end. A stream without dates is
        # loaded in full by every run, so a missed row comes with the next one.
        instants = [*filter(None, map(self.instant_of, first if self.instant_column else ()))]
        return instants != sorted(instants, reverse=True)

    @override
    def get_records(self, context: t.Any) -> t.Iterator[Row]:
        try:
            yield from itertools.islice(self.read_rows(), self.ABORT_AT_RECORD_COUNT)  # --test
        except OutOfTime:
            self.run.is_complete = False
            self.logger.info("the time limit is reached, the next run goes on here")
        except (http.RefusedError, RetriableAPIError) as error:
            # Without any response, the other streams cannot be loaded, either.
            is_down = isinstance(error, RetriableAPIError) and error.response is None
            if self.ABORT_AT_RECORD_COUNT is not None or is_down:
                raise
            self.run.errors[self.name] = str(error)  # the run ends with it, after the other streams
            self.logger.error("%s", error)  # noqa: TRY400 - without a traceback

    def read_rows(self) -> t.Iterator[Row]:
        """Yield the rows that this run emits, or raise OutOfTime at the time limit."""
        return itertools.chain.from_iterable(self.listing({}))

    @override
    def generate_child_contexts(self, record: Row, context: t.Any) -> t.Iterator[t.Any]:
        return iter(())  # Sessions syncs the events once, after all sessions are listed

    @cached_property
    def is_plain(self) -> bool:
        """Whether rows are emitted as they are: all columns, no stream map, no flattening."""
        maps = self.stream_maps
        return (
            [type(one) for one in maps] == [SameRecordTransform]
            and not maps[0].flattening_enabled
            and all(self.mask[("properties", name)] for name in self.schema["properties"])
        )

    # The SDK makes a dict of each row, checks which columns are selected and passes the row
    # through stream maps. Without need, that would be four fifths of the time.
    @override
    def _write_record_message(self, record: Row) -> None:
        self.counts.rows += 1
        if self.is_plain:
            self.run.writer.write_row(self.name, record)
        else:
            super()._write_record_message(msgspec.structs.asdict(record))

    def save(self, bookmark: t.Mapping[str, t.Any]) -> None:
        """Update the bookmark and write a STATE; the rows that it claims were written before."""
        project = {PROJECT: self.run.project} if self.run.project and bookmark else {}
        # In one step, as a signal may write the state at any moment.
        self.stream_state.update(msgspec.to_builtins({**bookmark, **project}, str_keys=True))
        self.state_manager.is_flushed = False
        self._write_state_message()

    @override
    def log_sync_costs(self) -> None:
        self.run.stream_done(self.name, is_selected=self.selected)  # once, at the end of the run
