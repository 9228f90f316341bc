"""How a sandbox behaves: what the API reference leaves open, faults and hooks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

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


def _doc(text: str) -> dict[str, str]:
    return {"doc": text}


@dataclass
class Options:
    """How the server behaves; may be changed while it runs.

    Every field but the hooks is also an option of the command line.

    Raises:
        ValueError: a fault that is not known.
    """

    api_keys: tuple[str, ...] = field(
        default=("bp_sandbox_key",), metadata=_doc("keys that are accepted")
    )
    requests_per_minute: int | None = field(
        default=60,
        metadata=_doc(
            "requests a minute and key, None for no limit; a request refused with 429, "
            "401 or 404 for its path does not count"
        ),
    )
    minute: float = field(default=60.0, metadata=_doc("seconds that a minute takes"))
    counting: Literal["fixed", "sliding", "bucket"] = field(
        default="fixed",
        metadata=_doc(
            "how the minute is counted: fixed windows, each beginning with the first "
            "request after the one before; a log of the last minute; a bucket that "
            "holds a minute's requests and refills steadily"
        ),
    )
    retry_after: Literal["seconds", "date", "reset", "x-reset", "none"] = field(
        default="seconds",
        metadata=_doc(
            "what a 429 carries: Retry-After in seconds or as an HTTP date, "
            "RateLimit-Reset in seconds, X-RateLimit-Reset in seconds since 1970, nothing"
        ),
    )
    order: Literal["newest", "oldest", "arbitrary"] = field(
        default="newest",
        metadata=_doc(
            "order of sessions (by startedAt), network rows (timestamp) and crashes "
            "(lastSeenAt), then id; arbitrary is stable"
        ),
    )
    to_means: Literal["before", "midnight", "end"] = field(
        default="before",
        metadata=_doc(
            "what a date as `to` includes: rows before that day, also those of its "
            "first instant, or the whole day; a time of day as `to` is exclusive with "
            "`before` and inclusive else"
        ),
    )
    dates_only: bool = field(
        default=False, metadata=_doc("answer 400 to `from` and `to` with a time of day")
    )
    utc_offset_hours: float = field(
        default=0, metadata=_doc("the time zone that dates and bare times are in")
    )
    filter_on: Literal["startedAt", "endedAt", "received"] = field(
        default="startedAt",
        metadata=_doc(
            "what `from` and `to` filter sessions on; network rows are filtered on "
            "their arrival with `received`, on their timestamp else; a session without "
            "an end counts from its start"
        ),
    )
    events_paging: Literal["all", "pages", "first"] = field(
        default="all",
        metadata=_doc(
            "whether /events answers all events as page 1 of 1, whatever page and limit "
            "say, with their number as limit; or honours page and limit; or answers page 1 "
            "whatever page says"
        ),
    )
    unknown_session: Literal["404", "empty"] = field(
        default="404", metadata=_doc("what /events answers for a session it does not know")
    )
    max_limit: int = field(
        default=1000, metadata=_doc("a larger limit is lowered to this, and echoed so")
    )
    empty_pages: int = field(default=0, metadata=_doc("`pages` where there is no row"))
    omit_pages: bool = field(default=False, metadata=_doc("leave `pages` out"))
    repeat_page: bool = field(
        default=False,
        metadata=_doc("every page holds the rows of page 1 and says that one more follows"),
    )
    ignored: Literal["none", "from", "to", "both", "from-alone"] = field(
        default="none",
        metadata=_doc("which of `from` and `to` are ignored; from-alone: a `from` without a `to`"),
    )
    refuse_before: str = field(
        default="", metadata=_doc("answer 400 to a `from` before this instant")
    )
    row_cap: int | None = field(
        default=None, metadata=_doc("rows of a listing beyond this one are not served")
    )
    beyond_cap: Literal["empty", "400"] = field(
        default="empty",
        metadata=_doc(
            "what a page beyond `row_cap` is: empty, where `total` counts no further either; "
            "or a 400, where the total is the true one"
        ),
    )
    past_end: Literal["empty", "404", "400"] = field(
        default="empty", metadata=_doc("what a page after the last one is, but for page 1")
    )
    ties: Literal["stable", "by-page"] = field(
        default="stable",
        metadata=_doc(
            "how rows of the same instant are ordered: always in the same way; or in another "
            "way for each page and limit, the same each time"
        ),
    )
    counts: Literal[
        "right", "page-total", "one-page", "default-limit", "asked-limit", "unfiltered"
    ] = field(
        default="right",
        metadata=_doc(
            "what `total` and `pages` count: the listing; the rows of the page as `total`; "
            "always 1 page; pages of 100 rows whatever the limit, or of the limit that was "
            "asked for, though it was lowered; all rows of the table"
        ),
    )
    echo: Literal["used", "asked", "page-one-too-high"] = field(
        default="used",
        metadata=_doc("what `page` and `limit` hold: what was used; what was asked for; a lie"),
    )
    empty_as: Literal["list", "null", "204", "floats"] = field(
        default="list",
        metadata=_doc(
            "how a page without rows is answered: data as an empty list or as null; no body; "
            "numbers as 0.0"
        ),
    )
    late_sessions: set[str] = field(
        default_factory=set, metadata=_doc("sessions whose events are not there yet")
    )
    late_events: Literal["zero", "no-rows", "204", "part", "404"] = field(
        default="zero",
        metadata=_doc(
            "what /events answers for late_sessions: no rows and a total of 0; no rows and the "
            "true total; no body; all but the last event; not found"
        ),
    )
    most_requests: int | None = field(
        default=None,
        metadata=_doc(
            "each request after so many is answered 401, so that a client that asks for ever ends"
        ),
    )
    misfits: bool = field(
        default=False,
        metadata=_doc(
            "some rows have an unknown field, a value of a wrong type or a missing field "
            "(never the id or the time of the row)"
        ),
    )
    broken_sessions: set[str] = field(
        default_factory=set, metadata=_doc("sessions whose events are always a 500")
    )
    vanished_sessions: set[str] = field(
        default_factory=set, metadata=_doc("sessions whose events are always a 404")
    )
    latency: float = field(default=0.0, metadata=_doc("seconds before each answer"))
    jitter: float = field(
        default=0.0, metadata=_doc("up to so many random seconds more before each answer")
    )
    faults: dict[str, float] = field(
        default_factory=dict,
        metadata=_doc(
            "KIND=PROBABILITY per request: an HTTP status from 300, such as 429 or 503, "
            "or " + "; ".join(f"{kind} ({text})" for kind, text in FAULTS.items())
        ),
    )
    fault_seed: int = field(
        default=1, metadata=_doc("seed of faults and jitter, read at the start")
    )
    hang_seconds: float = field(default=5.0, metadata=_doc("how long the fault timeout hangs"))
    drip_seconds: float = field(
        default=1.0, metadata=_doc("seconds between the bytes of the fault drip")
    )
    redirect_to: str = field(
        default="", metadata=_doc("Location of the faults 301 to 308; default itself")
    )
    grow_every: int = field(
        default=0,
        metadata=_doc(
            "after every so many requests an active session grows, sometimes ends; 0: never"
        ),
    )
    late_every: int = field(
        default=0, metadata=_doc("so often a session of the last days arrives late")
    )
    purge_every: int = field(default=0, metadata=_doc("so often the oldest day of data is deleted"))
    new_every: int = field(default=0, metadata=_doc("so often a new session arrives"))
    script: Callable[[Request], str | None] | None = None
    """Asked before each answer: a fault for just this request, or None."""
    on_request: Callable[[Request, Project], None] | None = None
    """Called before each answer is built, with the project's lock; may change it."""
    hold: Callable[[Request], None] | None = None
    """Called before each answer is built; may keep it back while others are built."""
    envelope: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Given each JSON envelope before it is sent; gives the one to send."""
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
