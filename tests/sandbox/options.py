"""How a sandbox behaves: what the API reference leaves open, faults and hooks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tests.sandbox.project import Project

# Kinds of fault beside plain statuses such as "500".
FAULTS = {
    "timeout": "no answer for hang_seconds, then the connection is closed",
    "reset": "the connection is reset",
    "cut": "the body ends in the middle of the promised length",
    "drip": "the body comes one byte every drip_seconds",
    "html": "status 200 with an HTML page",
    "not_json": "status 200 with a JSON content type and a body that is none",
    "no_data": "the envelope without data",
    "data_not_list": "the envelope with an object as data",
    "row_not_object": "the envelope with a string among its rows",
}


@dataclass
class Request:
    """One request as it came in.

    `at` is `time.monotonic()` seconds, `path` begins after `/export`, `status` is 0
    until there is an answer and where there is none, `fault` the fault it was given,
    `number` its place among the requests, from 1.
    """

    at: float
    path: str
    query: dict[str, str]
    status: int = 0
    key_ok: bool = False
    fault: str | None = None
    number: int = 0


@dataclass
class Options:
    """How the server behaves; may be changed while it runs.

    Every field but the hooks is also an option of the command line.

    Raises:
        ValueError: a fault that is not known.
    """

    api_keys: Annotated[tuple[str, ...], "keys that are accepted"] = ("bp_sandbox_key",)
    requests_per_minute: Annotated[
        int | None,
        "requests a minute and key, None for no limit; a request refused with 429, "
        "401 or 404 for its path does not count",
    ] = 60
    minute: Annotated[float, "seconds that a minute takes"] = 60.0
    counting: Annotated[
        Literal["fixed", "sliding", "bucket"],
        "how the minute is counted: fixed windows, each beginning with the first "
        "request after the one before; a log of the last minute; a bucket that "
        "holds a minute's requests and refills steadily",
    ] = "fixed"
    retry_after: Annotated[
        Literal["seconds", "date", "reset", "x-reset", "none"],
        "what a 429 carries: Retry-After in seconds or as an HTTP date, "
        "RateLimit-Reset in seconds, X-RateLimit-Reset in seconds since 1970, nothing",
    ] = "seconds"
    order: Annotated[
        Literal["newest", "oldest", "arbitrary"],
        "order of sessions (by startedAt), network rows (timestamp) and crashes "
        "(lastSeenAt), then id; arbitrary is stable",
    ] = "newest"
    to_means: Annotated[
        Literal["before", "midnight", "end"],
        "what a date as `to` includes: rows before that day, also those of its "
        "first instant, or the whole day; a time of day as `to` is exclusive with "
        "`before` and inclusive else",
    ] = "before"
    dates_only: Annotated[bool, "answer 400 to `from` and `to` with a time of day"] = False
    utc_offset_hours: Annotated[float, "the time zone that dates and bare times are in"] = 0
    filter_on: Annotated[
        Literal["startedAt", "endedAt", "received"],
        "what `from` and `to` filter sessions on; network rows are filtered on "
        "their arrival with `received`, on their timestamp else; a session without "
        "an end counts from its start",
    ] = "startedAt"
    events_paging: Annotated[
        Literal["all", "pages", "first"],
        "whether /events answers all events as page 1 of 1, whatever page and limit "
        "say, with their number as limit; or honours page and limit; or answers page 1 "
        "whatever page says",
    ] = "all"
    unknown_session: Annotated[
        Literal["404", "empty"], "what /events answers for a session it does not know"
    ] = "404"
    max_limit: Annotated[int, "a larger limit is lowered to this, and echoed so"] = 1000
    omit_pages: Annotated[bool, "leave `pages` out"] = False
    repeat_page: Annotated[
        bool, "every page holds the rows of page 1 and says that one more follows"
    ] = False
    ignored: Annotated[
        Literal["none", "from", "to", "both", "from-alone"],
        "which of `from` and `to` are ignored; from-alone: a `from` without a `to`",
    ] = "none"
    refuse_before: Annotated[str, "answer 400 to a `from` before this instant"] = ""
    row_cap: Annotated[int | None, "rows of a listing beyond this one are not served"] = None
    beyond_cap: Annotated[
        Literal["empty", "400"],
        "what a page beyond `row_cap` is: empty, where `total` counts no further either; "
        "or a 400, where the total is the true one",
    ] = "empty"
    past_end: Annotated[
        Literal["empty", "404", "400"], "what a page after the last one is, but for page 1"
    ] = "empty"
    ties: Annotated[
        Literal["stable", "by-page"],
        "how rows of the same instant are ordered: always in the same way; or in another "
        "way for each page and limit, the same each time",
    ] = "stable"
    counts: Annotated[
        Literal["right", "page-total", "one-page", "default-limit", "asked-limit", "unfiltered"],
        "what `total` and `pages` count: the listing; the rows of the page as `total`; "
        "always 1 page; pages of 100 rows whatever the limit, or of the limit that was "
        "asked for, though it was lowered; all rows of the table",
    ] = "right"
    echo: Annotated[
        Literal["used", "asked", "page-one-too-high"],
        "what `page` and `limit` hold: what was used; what was asked for; a lie",
    ] = "used"
    empty_as: Annotated[
        Literal["list", "null", "204", "floats"],
        "how a page without rows is answered: data as an empty list or as null; no body; "
        "numbers as 0.0",
    ] = "list"
    late_sessions: Annotated[set[str], "sessions whose events are not there yet"] = field(
        default_factory=set
    )
    late_events: Annotated[
        Literal["zero", "no-rows", "204", "part", "404"],
        "what /events answers for late_sessions: no rows and a total of 0; no rows and the "
        "true total; no body; all but the last event; not found",
    ] = "zero"
    most_requests: Annotated[
        int | None,
        "each request after so many is answered 401, so that a client that asks for ever ends",
    ] = None
    misfits: Annotated[
        bool,
        "some rows have an unknown field, a value of a wrong type or a missing field "
        "(never the id or the time of the row)",
    ] = False
    broken_sessions: Annotated[set[str], "sessions whose events are always a 500"] = field(
        default_factory=set
    )
    vanished_sessions: Annotated[set[str], "sessions whose events are always a 404"] = field(
        default_factory=set
    )
    latency: Annotated[float, "seconds before each answer"] = 0.0
    jitter: Annotated[float, "up to so many random seconds more before each answer"] = 0.0
    faults: Annotated[
        dict[str, float],
        "KIND=PROBABILITY per request: an HTTP status from 300, such as 429 or 503, "
        "or " + "; ".join(f"{kind} ({text})" for kind, text in FAULTS.items()),
    ] = field(default_factory=dict)
    hang_seconds: Annotated[float, "how long the fault timeout hangs"] = 5.0
    drip_seconds: Annotated[float, "seconds between the bytes of the fault drip"] = 1.0
    redirect_to: Annotated[str, "Location of the faults 301 to 308; default itself"] = ""
    late_every: Annotated[
        int, "after every so many requests a session of the last days arrives late; 0: never"
    ] = 0
    purge_every: Annotated[int, "so often the oldest day of data is deleted"] = 0
    new_every: Annotated[int, "so often a new session arrives"] = 0
    script: Callable[[Request], str | None] | None = None
    """Asked before each answer: a fault for just this request, or None."""
    on_request: Callable[[Request, Project], None] | None = None
    """Called before each answer is built, with the project's lock; may change it."""
    hold: Callable[[Request], None] | None = None
    """Called before each answer is built; may keep it back while others are built."""
    envelope: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Given each JSON envelope before it is sent; returns the one to send."""
    body: Callable[[bytes], bytes] | None = None
    """Given the bytes of each listing before they are sent; returns those to send."""

    def __post_init__(self) -> None:
        """Check the faults' names."""
        for kind in self.faults:
            check_fault(kind)


def check_fault(kind: str) -> None:
    """Refuse a fault that is not known.

    Raises:
        ValueError: it is neither in `FAULTS` nor an HTTP status from 300.
    """
    if kind not in FAULTS and not (kind.isdigit() and 300 <= int(kind) < 600):
        known = ", ".join(FAULTS)
        msg = f"{kind!r} is no fault: a status from 300, or one of {known}"
        raise ValueError(msg)
