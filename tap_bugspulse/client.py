"""The base of the streams: a request, the pages of a listing, and its drift."""

import itertools
import re
import threading
import typing as t
from collections import deque
from contextlib import closing
from datetime import date, datetime
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
from tap_bugspulse.replication import parse_instant
from tap_bugspulse.run import OutOfTime, Run

Query = t.Mapping[str, str]
REFUSED = {*range(500)} - {200, 204, 401, 408, 429}  # statuses where another request may work
FAR = date(2999, 1, 1)  # an end where none is meant
MAX_DRIFTS, MAX_READINGS = 3, 5  # readings of a listing, before rows are given up
PROJECT_COLUMN = {"type": "string", "description": "Name of the project, from the setting project."}


class BugsPulseStream(RESTStream[int]):
    """A stream of the Export API."""

    instant_column = ""  # the one that the dates of a query filter on, if there is one
    schema_file = StreamSchema(SchemaDirectory(schemas))
    # The rows are JSON already, and made to fit when they are decoded.
    TYPE_CONFORMANCE_LEVEL = TypeConformanceLevel.NONE
    extra_retry_statuses = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
    allow_redirects = False  # the key never leaves its host
    # The warehouse keeps what BugsPulse's retention deletes, whatever a setting asks for.
    emit_activate_version_messages = False

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
        own_key, known = self.replication_key, self.schema["properties"]
        if entry := catalog.get_stream(self.name):
            if PROJECT in known:
                entry.key_properties = [*self.primary_keys]
            # It may be from before these columns, without which rows would lack something.
            for name in known.keys() & {PROJECT, EXTRA}:
                (entry.schema.properties or {}).setdefault(name, Schema.from_dict(known[name]))
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
        """Return the call that asks for a page of a listing, on its way from now on."""
        prepared = self._prepare_request(context=query, page=PageNumberPaginator(number))
        send = self.request_decorator(self._request) if retries else self._request
        return http.Call(lambda: send(prepared, query))

    def prefetch(
        self, calls: t.Iterator[http.Call], many: t.Callable[[], int] | None = None
    ) -> t.Generator[http.Call, None, None]:
        """Yield calls in their order, many on their way; taking one from ``calls`` sends it."""
        sent: deque[http.Call] = deque()
        try:
            while True:
                most = many() if many else self.run.settings.concurrency
                sent.extend(itertools.islice(calls, max(0, most - len(sent))))
                if not sent:
                    return
                yield sent.popleft()
        finally:
            for call in sent:
                call.cancel()

    def take(self, call: http.Call) -> Response:
        """Return the response of a call, and count what no column holds."""
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
        asked = " ".join(itertools.chain([self.path], *dates))
        msg = f"{response.status_code} {response.reason} for {asked}"
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
        """Yield the rows of the first page and of those after it, which are on their way."""
        # Where rows still arrive, pages answered out of turn would miss those that move on.
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
            reading.drifted = True  # the API had named that page

    def listing(
        self, query: Query, first: Response | None = None, readings: list[Reading] | None = None
    ) -> t.Iterator[list[Row]]:
        """Yield the rows of a listing, each once, page by page; read it again when pages drift.

        Rows that are inserted push others to later pages, where they are met again. Deleted ones
        pull others to earlier pages, where they are missed: ``total`` shrinks, or fewer rows
        arrive than it named first, or the first page is another one. The last of ``readings``
        tells how it went.
        """
        readings = [] if readings is None else readings
        known, ids, asked = set[str](), set[str](), query
        for number in range(1, MAX_READINGS + 1):
            reading = Reading(ids)
            readings.append(reading)
            first = first or self.take(self.fetch(asked))
            for rows in self.pages(asked, reading, first):
                new = {row.id: row for row in reversed(rows) if row.id not in known}
                yield [*new.values()][::-1]
                known.update(new)
            page, first = page_of(first), None
            if reading.is_complete and reading.pages > 1 and self.can_shift(page.rows):
                reading.drifted = has_lost_rows(page, page_of(self.take(self.fetch(asked))))
            if reading.is_complete:
                return
            is_short = reading.pages > 0 and not reading.drifted
            # One page is one answer, and what is missing twice is not there.
            is_final = reading.pages == 1 or len(reading.ids) == len(ids)
            if is_final if is_short else number >= MAX_DRIFTS:
                break
            # Rows of one instant may come in another order on each page: let pages end
            # elsewhere, and take all readings together.
            ids = reading.ids if is_short else set()
            limit = max(1, self.run.settings.page_size * (6 - number) // 6)
            asked = {**query, "limit": str(limit)} if is_short else query
        self.counts.short_listings += 1
        self.run.warn_once(
            f"{self.name}: %d rows arrived where the API counts %d in %s",
            *(reading.rows, reading.total, " ".join(map(" ".join, query.items())) or "all"),
        )

    def instant_of(self, row: Row) -> datetime | None:
        """Return when something happened, None where that cannot be read."""
        return parse_instant(getattr(row, self.instant_column))

    def can_shift(self, head: list[Row]) -> bool:
        """Return whether rows of its first page, ``head``, may go while a listing is read."""
        # Newest first, what retention deletes is at the end; what has no dates comes in each run.
        known = [one for one in map(self.instant_of, head if self.instant_column else ()) if one]
        return known != sorted(known, reverse=True)

    @override
    def get_records(self, context: t.Any) -> t.Iterator[Row]:
        try:
            yield from itertools.islice(self.read_rows(), self.ABORT_AT_RECORD_COUNT)  # by --test
        except OutOfTime:
            self.run.is_complete = False
            self.logger.info("the time limit is reached, the next run goes on here")
        except (http.RefusedError, RetriableAPIError) as error:
            # Where nothing answers at all, no other stream can be loaded.
            is_dead = isinstance(error, RetriableAPIError) and error.response is None
            if self.ABORT_AT_RECORD_COUNT is not None or is_dead:
                raise
            self.run.errors[self.name] = str(error)  # with which the run ends, after the others
            self.logger.error("%s", error)  # noqa: TRY400 - for a person

    def read_rows(self) -> t.Iterator[Row]:
        """Yield the rows that this run emits, or raise OutOfTime at the time limit."""
        return itertools.chain.from_iterable(self.listing({}))

    @override
    def generate_child_contexts(self, record: Row, context: t.Any) -> t.Iterator[t.Any]:
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

    def save(self, bookmark: t.Mapping[str, t.Any]) -> None:
        """Change keys of the bookmark and send the state; all rows that it claims are out."""
        project = {PROJECT: self.run.project} if self.run.project and bookmark else {}
        # In one step: a signal may write it at any moment.
        self.stream_state.update(msgspec.to_builtins({**bookmark, **project}, str_keys=True))
        self.state_manager.is_flushed = False
        self._write_state_message()

    @override
    def log_sync_costs(self) -> None:
        self.run.stream_done(self.name, is_selected=self.selected)  # once, when all is done
