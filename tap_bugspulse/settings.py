"""The settings of the tap, each declared once, and checks of stream maps before a run."""

import ast
import contextlib
import difflib
import fnmatch
import functools
import os
import re
import traceback
import typing as t
from datetime import datetime, timedelta
from decimal import Decimal

import msgspec
from msgspec import Meta
from singer_sdk.exceptions import ConfigurationError, ConfigValidationError
from singer_sdk.mapper import CustomStreamMap

from tap_bugspulse.replication import FAR_AWAY, LONG_AGO, Span, parse_instant

NAME = "tap-bugspulse"
CONCURRENCY = 16  # measured, see docs/performance.md
API_URL = "https://api.bugspulse.com/export"
ENV_PREFIX = "TAP_BUGSPULSE_"

Config = t.Mapping[str, t.Any]
EventsFor = t.Literal["all", "errors", "crashed"]
EVENTS_FOR: tuple[str, ...] = t.get_args(EventsFor)
HOST, LOOPBACK = r"([\w.-]+|\[[\da-f:.]+\])", r"(localhost|127\.0\.0\.1|\[::1\])"
SAFE_URL = rf"(?i)^(https://{HOST}|http://{LOOPBACK})(:\d{{1,5}})?(/[^?#]*)?\Z"
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*\Z"
A_KEY = "a text without spaces (it begins with bp_: copy it anew)"
A_URL = "an https URL, or http on loopback, without a user name or password, query or fragment"
A_DATE = "a date or date-time such as 2026-01-01 or 2026-01-01T12:00:00Z"
# The title of a rule is the text of its error: what a value must be.
Text = t.Annotated[str, Meta(pattern=PRINTABLE, title="a printable text")]
Instant = t.Annotated[datetime, Meta(tz=True, title=A_DATE)]
Positive = t.Annotated[float, Meta(gt=0, le=1e308, title="a number above 0")]  # not infinite
Seconds = t.Annotated[float, Meta(gt=0, le=86_400, title="a number above 0, 86400 at most")]
Days = t.Annotated[int, Meta(ge=0, le=36_500, title="a whole number from 0 to 36500")]
PageSize = t.Annotated[int, Meta(ge=1, le=1000, title="a whole number from 1 to 1000")]
Pace = t.Annotated[int, Meta(ge=1, title="a whole number of 1 or more")]
Concurrency = t.Annotated[int, Meta(ge=1, le=32, title="a whole number from 1 to 32")]
DESCRIPTIONS = {
    "api_key": "API key of the BugsPulse project, the one its app uses. It begins with bp_.",
    "api_url": "Base URL of the Export API; https, unless the host is loopback.",
    "start_date": "Date or date-time, in UTC unless it has an offset, before which sessions, their "
    "events and network calls are left out, such as 2026-01-01. Without it, all are loaded.",
    "end_date": "First date or date-time that is not loaded; the next run without it carries on.",
    "lookback_days": "Days before the last run that are read again for what changed or came late.",
    "events_for": "Sessions whose events are fetched, at one request each: all, errors (those with "
    "a crash or network errors) or crashed (those with a crash).",
    "max_runtime_minutes": "Minutes after which a run stops cleanly; the rest is for the next run.",
    "project": "Name to put into a column project of every row, first in its primary key, so that "
    "several BugsPulse projects share one set of tables.",
    "page_size": "Rows asked for in one request, 1 to 1000.",
    "requests_per_minute": "Requests sent in a minute at most. The API allows 60 per key: lower it "
    "to leave room for other users of the key.",
    "concurrency": "Requests that may be on their way at once, for when answers are slow; 1 to 32.",
    "request_timeout": "Seconds an answer may take before the request is tried again.",
    "user_agent": "User-Agent header of every request; tap-bugspulse/<version>.",
}


class Settings(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The settings, converted to the types that the tap uses; instants are aware, in UTC."""

    api_key: t.Annotated[str, Meta(pattern=r"^[!-~]+\Z", title=A_KEY)]
    api_url: t.Annotated[str, Meta(pattern=SAFE_URL, title=A_URL)] = API_URL
    start_date: Instant | None = None
    end_date: Instant | None = None
    lookback_days: Days = 7
    events_for: t.Annotated[EventsFor, Meta(title=f"one of {', '.join(EVENTS_FOR)}")] = "all"
    max_runtime_minutes: Positive | None = None
    project: Text | None = None
    page_size: PageSize = 1000  # "Rows per page - max 1,000"
    requests_per_minute: Pace = 60  # "rate-limited to 60 requests / minute per API key"
    concurrency: Concurrency = CONCURRENCY
    request_timeout: Seconds = 60
    user_agent: Text | None = None

    @classmethod
    def from_config(cls, config: Config) -> t.Self:
        """Return the settings, or raise ConfigValidationError, which names all that are wrong."""
        values: dict[str, t.Any] = {}
        problems = []
        for name, kind in t.get_type_hints(cls, include_extras=True).items():
            given = config.get(name)
            if given is None or given == "":  # an environment variable that is not set may be empty
                continue
            given = float(given) if isinstance(given, Decimal) else given  # as the SDK reads 0.5
            value = parse_instant(given) if "format" in _DECLARED[name] else given
            with contextlib.suppress(msgspec.ValidationError):
                values[name] = msgspec.convert(value, kind, strict=False)
            if values.get(name) is None:
                is_secret = name == "api_key" or (name == "api_url" and {*"@?#"} & {*str(given)})
                shown = "what is set" if is_secret else repr(given)
                problems.append(f"{name} must be {_DECLARED[name]['title']}, not {shown}")
        if not config.get("api_key"):
            problems.append(
                "api_key is missing: set it, or TAP_BUGSPULSE_API_KEY, which is read with "
                "--config=ENV, to your project's API key (it begins with bp_)"
            )
        start, end = values.get("start_date"), values.get("end_date")
        if start and end and end <= start:
            rule = f"end_date must be after start_date ({config['start_date']}), not "
            problems.append(rule + repr(config["end_date"]))
        if problems:
            raise ConfigValidationError("; ".join(problems), errors=problems)
        # A URL without a path gets that of the API.
        url = re.sub(r"(//[^/]+)/*\Z", r"\1/export", values.pop("api_url", API_URL)).rstrip("/")
        return cls(api_url=url, **values)

    @functools.cached_property
    def requested(self) -> Span:
        """The instants from start_date to end_date."""
        return Span(self.start_date or LONG_AGO, self.end_date or FAR_AWAY)

    @property
    def lookback(self) -> timedelta:
        """How far before the end of the complete range rows are read again."""
        return timedelta(days=self.lookback_days)


# The schema of a setting that may be None has two alternatives; the first is the real one.
_DECLARED = {
    name: {"type": "string", **setting, **setting.get("anyOf", [{}])[0]}
    for name, setting in msgspec.json.schema(Settings)["$defs"]["Settings"]["properties"].items()
}
_KEPT = {"default", "enum", "format"}  # not the limits: the SDK's messages on them are less clear
CONFIG_SCHEMA: dict[str, t.Any] = {
    "type": "object",
    "properties": {
        name: {"title": name.replace("_", " ").replace("api", "API").replace("url", "URL")}
        | {"description": DESCRIPTIONS[name], "type": [setting["type"], "null"]}
        | {key: one for key, one in setting.items() if key in _KEPT and one is not None}
        for name, setting in _DECLARED.items()
    },
    "required": ["api_key"],
}
CONFIG_SCHEMA["properties"]["events_for"]["enum"] = [*EVENTS_FOR]  # msgspec sorts them
CONFIG_SCHEMA["properties"]["api_key"] |= {"type": ["string"], "secret": True, "writeOnly": True}


def unknown_settings(config: Config, known: Config) -> t.Iterator[tuple[str, str]]:
    """Yield each setting that does not exist, and a hint such as the name that was meant."""
    # Meltano also sets variables for its own extras, which begin with one more underscore, and
    # for each key of a setting that is an object.
    theirs = ("_", "loglevel", *(f"{n}_" for n, one in known.items() if "object" in one["type"]))
    env = {name[len(ENV_PREFIX) :].lower() for name in os.environ if name.startswith(ENV_PREFIX)}
    for name in sorted(env.union(config) - known.keys()):
        if not name.startswith(theirs):
            close = difflib.get_close_matches(name, known, n=1)
            yield name, f"did you mean {close[0]}?" if close else "see --about"


MAP_OPTIONS = {"__alias__", "__else__", "__key_properties__", "__source__"}  # of a stream map
NAMES = {"_", "record", "config", "fake", "__NULL__", "__stream_name__", "__original_stream_name__"}


def check_maps(stream: str, maps: Config, given: Config, columns: Config, usable: Config) -> None:
    """Raise an error for a mistake in the maps of a stream; ``usable`` are its selected columns."""
    named = [key for key, one in maps.items() if "__source__" not in (one or ())]
    matching = [key for key in named if fnmatch.fnmatchcase(stream, key)]
    if len(matching) > 1:
        raise ConfigurationError(
            f"stream_maps: {' and '.join(matching)} fit {stream}, but only one of them would count"
        )
    for key, one in maps.items():
        mapping = one if isinstance(one, dict) else {}
        source = mapping.get("__source__", key)
        if not (matched := fnmatch.filter(columns, source)):
            raise ConfigurationError(f"stream_maps: there is no stream {_suggest(source, columns)}")
        names = MAP_OPTIONS.union(["__filter__"], *(columns[name] for name in matched))
        for column, text in mapping.items() if stream in matched else ():
            if column not in MAP_OPTIONS and (fault := _fault(column, text, names, given, usable)):
                raise ConfigurationError(f"stream_maps: {stream}.{column}: {fault}")


def _fault(column: str, text: t.Any, names: set[str], given: Config, usable: Config) -> str:
    """Return what is wrong with a column's expression, as far as it shows without a row."""
    must_exist = text is None or text == "__NULL__" or column.lower() in map(str.lower, names)
    if column not in names and (must_exist or column.startswith("__")):
        return f"there is no column {_suggest(column, names)}"
    try:
        nodes = list(ast.walk(ast.parse(str(text), mode="eval")))
    except (SyntaxError, ValueError):
        return f"the expression for {column} cannot be read"
    sdk = CustomStreamMap("", {}, {}, {"properties": {}}, (), {}, None)  # for its functions
    usable = {**usable, "self": usable[column]} if column in usable else usable
    texts = {name for name in usable if "string" in usable[name].get("type", ())}
    known = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    known |= {*sdk.expr_evaluator.functions, *NAMES, *usable}
    for node in nodes:
        match node:
            case ast.Name(name) if name not in known:
                return f"no selected column and no function is called {_suggest(name, known)}"
            case ast.Attribute(ast.Name(name), attr) if name in texts and not hasattr(str, attr):
                return f"{name} is a text, which has no {_suggest(attr, dir(str))}"
            case ast.Subscript(ast.Name("config"), ast.Constant(str(name))) if name not in given:
                return f"stream_map_config has no {_suggest(name, given)}"
    return ""


def _suggest(name: str, names: t.Collection[str]) -> str:
    """Return a name, with a question after it if one of ``names`` may have been meant."""
    close = difflib.get_close_matches(name.lower(), names, n=1)
    return f"{name}, did you mean {close[0]}?" if close else name


def map_error(error: Exception) -> str | None:
    """Return which map expression raised an error, without values of the row; None if none did."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if "expr_parsed" in (found := frame.f_locals):  # the SDK's method that evaluates
            names = {n.id for n in ast.walk(found["expr_parsed"]) if isinstance(n, ast.Name)}
            nulls = sorted(name for name in names if found["names"].get(name, "") is None)
            where = f" where {' and '.join(nulls)} is null" if nulls else ""
            place = f"{found['self'].stream_name}.{found['property_name'] or '__filter__'}"
            why = type(error.__cause__ or error).__name__
            return f"stream_maps: {place}: the expression fails for a row{where} ({why})"
    return None
