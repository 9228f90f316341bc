"""The tap's settings: what there is, what is allowed, and what it means."""

from __future__ import annotations

import functools
import math
import typing as t
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from importlib import metadata
from urllib.parse import urlsplit

from singer_sdk import typing as th

from tap_bugspulse.replication import Span, parse_instant

if t.TYPE_CHECKING:
    from collections.abc import Callable, Mapping

API_URL = "https://api.bugspulse.com/export"
KEY_PREFIX = "bp_"
MAX_PAGE_SIZE = 1000  # "Rows per page - max 1,000"
CONCURRENCY, MAX_CONCURRENCY = 16, 32  # measured, see docs/performance.md
REQUESTS_PER_MINUTE = 60  # "rate-limited to 60 requests / minute per API key"
EVENTS_FOR = ("all", "errors", "crashed")
LOOPBACK = ("localhost", "127.0.0.1", "::1")

CONFIG_SCHEMA: dict[str, t.Any] = th.PropertiesList(
    th.Property(
        "api_key",
        th.StringType,
        required=True,
        secret=True,
        title="API key",
        description=(
            "API key of the BugsPulse project, the one its app is set up with. "
            "It begins with bp_."
        ),
    ),
    th.Property(
        "api_url",
        th.StringType,
        default=API_URL,
        title="API URL",
        description="Base URL of the Export API; https, unless the host is loopback.",
    ),
    th.Property(
        "start_date",
        th.DateTimeType,
        title="Start date",
        description=(
            "Earliest date or date-time to load, such as 2026-01-01 or "
            "2026-01-01T12:00:00Z; UTC unless it has an offset. Sessions and network "
            "calls before it are left out, events follow their session's start, "
            "crashes are not affected. Without it the full history is loaded."
        ),
    ),
    th.Property(
        "end_date",
        th.DateTimeType,
        title="End date",
        description=(
            "First date or date-time that is not loaded any more, in the forms of "
            "start_date. The next run without it carries on."
        ),
    ),
    th.Property(
        "lookback_days",
        th.IntegerType,
        default=7,
        title="Lookback in days",
        description=(
            "Number of days before the newest loaded row that are read again for "
            "sessions and network calls that changed or came late; 0 to 36500."
        ),
    ),
    th.Property(
        "events_for",
        th.StringType,
        default="all",
        allowed_values=list(EVENTS_FOR),
        title="Events for",
        description=(
            "Sessions whose events are fetched, at one request each: all, errors "
            "(those with a crash or network errors) or crashed (those with a crash)."
        ),
    ),
    th.Property(
        "max_runtime_minutes",
        th.NumberType,
        title="Longest run in minutes",
        description=(
            "Time after which a run stops cleanly and leaves the rest of the history "
            "and of the events to the next run; above 0, fractions allowed. Reading "
            "what is new is never cut short."
        ),
    ),
    th.Property(
        "project",
        th.StringType,
        title="Project",
        description=(
            "Name to put into a column project of every row, first in its primary "
            "key, so that several BugsPulse projects share one set of tables."
        ),
    ),
    th.Property(
        "page_size",
        th.IntegerType,
        default=MAX_PAGE_SIZE,
        title="Page size",
        description="Rows asked for in one request, 1 to 1000.",
    ),
    th.Property(
        "requests_per_minute",
        th.IntegerType,
        default=REQUESTS_PER_MINUTE,
        title="Requests per minute",
        description=(
            "Requests sent in a minute at most. The API allows 60 per key: lower it "
            "to leave room for other users of the key."
        ),
    ),
    th.Property(
        "concurrency",
        th.IntegerType,
        default=CONCURRENCY,
        title="Concurrent requests",
        description=(
            "Requests that may be on their way at the same time, 1 to 32, so that the "
            "allowance is used also when answers are slow; 1 asks for one after the "
            "other. Rows and their order are the same."
        ),
    ),
    th.Property(
        "request_timeout",
        th.NumberType,
        default=60,
        title="Request timeout in seconds",
        description="Seconds an answer may take before the request is tried again.",
    ),
    th.Property(
        "user_agent",
        th.StringType,
        title="User agent",
        description="User-Agent header of every request; tap-bugspulse/<version>.",
    ),
).to_dict()


class SettingsError(ValueError):
    """Settings that cannot be worked with; ``problems`` has one line for each."""

    def __init__(self, problems: list[str]) -> None:
        """Keep the problems, each a line that names its setting."""
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings in the types the tap works with; instants are aware, in UTC."""

    api_key: str = field(repr=False)
    api_url: str
    need: Span
    lookback_days: int
    events_for: str
    max_runtime_minutes: float | None
    project: str | None
    page_size: int
    requests_per_minute: int
    concurrency: int
    request_timeout: float
    user_agent: str

    @property
    def lookback(self) -> timedelta:
        """How far before the forward mark rows are read again."""
        return timedelta(days=self.lookback_days)

    @classmethod
    def from_config(cls, config: Mapping[str, t.Any]) -> Settings:
        """Read the settings, complaining of all that is wrong with them at once.

        Args:
            config: The tap's configuration. Numbers may be text, which is what
                environment variables give.

        Raises:
            SettingsError: If a setting is missing or breaks its rule. No message
                holds the value of ``api_key``.
        """
        read = _Reader(config)
        start = read.instant("start_date")
        end = read.instant("end_date")
        if start and end and end <= start:
            read.problems.append(
                f"end_date must be after start_date ({config['start_date']}), "
                f"not {config['end_date']!r}"
            )
        settings = cls(
            api_key=read.key(),
            api_url=read.url(),
            need=Span(start, end),
            lookback_days=int(read.number("lookback_days", 7, 0, 36_500, whole=True) or 0),
            events_for=read.choice("events_for", EVENTS_FOR),
            max_runtime_minutes=read.number("max_runtime_minutes", None, 0, above=True),
            project=read.text("project"),
            page_size=int(
                read.number("page_size", MAX_PAGE_SIZE, 1, MAX_PAGE_SIZE, whole=True)
                or MAX_PAGE_SIZE
            ),
            requests_per_minute=int(
                read.number("requests_per_minute", REQUESTS_PER_MINUTE, 1, whole=True)
                or REQUESTS_PER_MINUTE
            ),
            concurrency=int(
                read.number("concurrency", CONCURRENCY, 1, MAX_CONCURRENCY, whole=True)
                or CONCURRENCY
            ),
            request_timeout=read.number("request_timeout", 60, 0, above=True) or 60,
            user_agent=read.text("user_agent") or f"tap-bugspulse/{_version()}",
        )
        if read.problems:
            raise SettingsError(read.problems)
        return settings


class _Reader:
    """Reads settings one by one and collects what is wrong with them."""

    def __init__(self, config: Mapping[str, t.Any]) -> None:
        self.config = config
        self.problems: list[str] = []

    def key(self) -> str:
        value = self.config.get("api_key")
        if value is None or value == "":
            self.problems.append(
                "api_key is missing: set it, or TAP_BUGSPULSE_API_KEY, to the API key "
                "of your BugsPulse project (it begins with bp_)"
            )
        elif not isinstance(value, str) or not value.isascii() or value.split() != [value]:
            # Neither the value nor its kind belong in a log.
            self.problems.append(
                "api_key must be a text without spaces: copy the API key of your "
                "BugsPulse project again (it begins with bp_)"
            )
        else:
            return value
        return ""

    def url(self) -> str:
        value = self.config.get("api_url") or API_URL
        rule = "api_url must be an https URL, or http on loopback, such as " + API_URL
        try:
            parts = urlsplit(value if isinstance(value, str) else "")
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if (
            not host
            or parts.scheme not in {"https", "http"}
            or (parts.scheme == "http" and host not in LOOPBACK)
            or parts.query
            or parts.fragment
        ):
            self.problems.append(f"{rule}, not {value!r}")
            return API_URL
        if parts.username or parts.password:
            # The address may hold a password: it is not repeated.
            self.problems.append(f"{rule}, without a user name or password in it")
            return API_URL
        path = parts.path.rstrip("/") or urlsplit(API_URL).path
        return f"{parts.scheme}://{parts.netloc}{path}"

    def instant(self, name: str) -> t.Any:  # noqa: ANN401 - a datetime or None
        value = self.config.get(name)
        if value is None or value == "":
            return None
        instant = parse_instant(value) if isinstance(value, str) else None
        if instant is None:
            self.problems.append(
                f"{name} must be a date or date-time such as 2026-01-01 or "
                f"2026-01-01T12:00:00Z, not {value!r}"
            )
        return instant

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self.config.get(name)
        if value is None:
            return allowed[0]
        if value not in allowed:
            self.problems.append(
                f"{name} must be one of {', '.join(allowed)}, not {value!r}"
            )
            return allowed[0]
        return str(value)

    def text(self, name: str) -> str | None:
        value = self.config.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str) or not value.isprintable():
            self.problems.append(f"{name} must be a printable text, not {value!r}")
            return None
        return value

    def number(  # noqa: PLR0913 - a rule has these parts
        self,
        name: str,
        default: float | None,
        least: float,
        most: float = math.inf,
        *,
        whole: bool = False,
        above: bool = False,
    ) -> float | None:
        value = self.config.get(name)
        if value is None or value == "":
            return default
        number = _number(value)
        if (
            number is None
            or (whole and number != int(number))
            or not least <= number <= most
            or (above and number == least)
        ):
            kind = "a whole number" if whole else "a number"
            if most < math.inf:
                limits = f"from {least} to {most}"
            else:
                limits = f"above {least}" if above else f"of {least} or more"
            shown = str(value) if isinstance(value, Decimal) else repr(value)
            self.problems.append(f"{name} must be {kind} {limits}, not {shown}")
            return default
        return number


@functools.cache
def _version() -> str:
    """Say the tap's own version, which takes reading a file of what is installed."""
    return metadata.version("tap-bugspulse")


def _number(value: object) -> float | None:
    """Give a finite number for a number or its text, else None."""
    # The SDK reads fractions in a configuration file as Decimal.
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        return None
    convert: Callable[[t.Any], float] = float
    try:
        number = convert(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
