"""The tap: settings in, streams out, state in, one summary, errors as one line."""

import contextlib
import copy
import functools
import io
import logging
import os
import signal
import sys
import typing as t
from pathlib import Path
from types import FrameType

import click
import msgspec
import requests
from singer_sdk import Tap
from singer_sdk.configuration._dict_config import parse_environment_config
from singer_sdk.exceptions import ConfigurationError, SingerSDKError
from singer_sdk.helpers._catalog import get_selected_schema
from singer_sdk.mapper import RemoveRecordTransform
from singer_sdk.singerlib.messages import StateMessage
from typing_extensions import override

from tap_bugspulse import settings
from tap_bugspulse.client import BugsPulseStream
from tap_bugspulse.events import Events
from tap_bugspulse.http import Clock
from tap_bugspulse.replication import BEGINNING, Bookmark, format_instant
from tap_bugspulse.run import Run
from tap_bugspulse.streams import Crashes, Network, Sessions
from tap_bugspulse.writer import WholeMessageWriter

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = 128  # and the number of the signal are the exit code


def stop(signum: int, _: FrameType | None = None) -> t.NoReturn:
    """End because of a signal; it may come while a line is logged: log none here."""
    raise SystemExit(STOPPED + signum)


@contextlib.contextmanager
def errors_as_one_line(reading: str = "") -> t.Iterator[None]:
    """End the process with one line for a person, which names the file that is being read."""
    logger = logging.getLogger(settings.NAME)
    try:
        for signum in SIGNALS:  # as long as there is no state to write
            signal.signal(signum, stop)
        yield
    except SystemExit as exc:
        if isinstance(exc.code, int) and exc.code > STOPPED:
            logger.warning("Stopped by %s", signal.Signals(exc.code - STOPPED).name)
        raise
    except Exception as exc:  # the expression of a stream map may raise any; no other is kept
        message = settings.map_error(exc)
        if reading:  # without the error's own text, which may hold what stands in the file
            message = f"the file given with --{reading} cannot be read ({type(exc).__name__}): "
            message += "restore it, or run without it"
            message += " to load everything again" * reading.startswith("state ")
        elif isinstance(exc, SingerSDKError | requests.RequestException):
            message = message or "; ".join(getattr(exc, "errors", [str(exc)]))
        elif isinstance(exc, OSError):
            # Python would complain once more when it flushes what is left.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            message = f"the output cannot be written: {exc.strerror}"
            if isinstance(exc, BrokenPipeError):
                message = "the target has closed its input: look for its own error above"
        elif message is None:
            raise
        logger.critical("%s", message)
        sys.exit(1)


class TapBugsPulse(Tap):
    """Singer tap for BugsPulse: mobile app sessions, crashes, events, network calls."""

    name = settings.NAME
    config_jsonschema = copy.deepcopy(settings.CONFIG_SCHEMA)  # the SDK adds settings to it
    message_writer_class = WholeMessageWriter
    # No BATCH, which bypasses stream maps, and no ACTIVATE_VERSION: the warehouse keeps the
    # rows that BugsPulse's retention deletes.
    capabilities: t.ClassVar[list[t.Any]] = [
        one for one in Tap.capabilities if one.value not in {"activate-version", "batch"}
    ]
    clock = Clock()  # a test brings its own
    is_ready = False  # whether there is a state to write
    stopped_at = 0.0  # the stopwatch's reading at the first signal

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        self.append_builtin_config(self.config_jsonschema)
        super().__init__(*args, **kwargs)
        self.is_ready = True
        # Meltano sets one, too, which does not name them.
        config = os.environ.get("SINGER_SDK_LOG_CONFIG")
        is_asked_for = config and self.metrics_logger.name in Path(config).read_text("utf-8")
        if self.metrics_logger.level > logging.DEBUG and not is_asked_for:
            self.metrics_logger.setLevel(logging.WARNING)
        if self.input_catalog is not None and not self.input_catalog:
            self.logger.warning(
                "the catalog has no stream: nothing is loaded. Make it anew with --discover"
            )

    @functools.cached_property
    def run(self) -> Run:
        """What the streams of this run share."""
        writer = t.cast("WholeMessageWriter", self.message_writer)
        project = self.config.get("project") or None
        return Run(self.config, project, self.clock, self.logger, writer, self._log_run_summary)

    @override
    def discover_streams(self) -> list[BugsPulseStream]:
        run = self.run
        sessions = Sessions(self, run)
        streams = [Crashes(self, run), Network(self, run), sessions, Events(self, run, sessions)]
        for stream in streams:  # the last line of a run says what the error is
            self.logger.getChild(stream.name).addFilter(lambda one: "unhandled" not in str(one.msg))
        return streams

    @override
    def setup_mapper(self) -> None:
        # Without the SDK's next step, which fails at maps of streams that are not selected.
        super(Tap, self).setup_mapper()
        mapper, maps = self.mapper, t.cast("dict[str, t.Any]", self.mapper.stream_maps_dict)
        given = {n: one for n, one in (mapper.map_config or {}).items() if one not in (None, "")}
        filters: dict[str, t.Any] = {
            key: {"__filter__": one["__filter__"]}
            for key, one in maps.items()
            if "__filter__" in (one or ()) and "__source__" not in one
        }
        columns = {name: one.schema["properties"] for name, one in self.streams.items()}
        for name, one in self.streams.items():
            # A filter of sessions counts for their events, too.
            schema, kept = one.effective_schema, filters if one.has_selected_descendents else {}
            if one.selected:
                schema, kept = get_selected_schema(name, schema, one.mask), maps
            settings.check_maps(name, kept, given, columns, schema["properties"])
            mapper.stream_maps_dict = kept
            mapper.register_raw_stream_schema(name, schema, one.primary_keys)
            if {type(each) for each in mapper.stream_maps[name]} == {RemoveRecordTransform}:
                one.selected = False  # else it is asked for, and no row of it emitted

    @override
    def load_state(self, state: t.Any) -> None:
        # The SDK takes a null stream, a list of bookmarks or a bookmark that is no date at its
        # word and fails in the middle of the run.
        for wrapper in ("value", "completed", "singer_state"):  # of a message, and of Meltano
            if isinstance(state, dict) and "bookmarks" not in state:
                state = state.get(wrapper, state)
        written = (state.get("bookmarks") if isinstance(state, dict) else state) or {}
        if not isinstance(written, dict):
            raise ConfigurationError("the state holds no bookmarks: restore it, or run without it")
        if unknown := ", ".join(sorted(written.keys() - self.streams.keys())):
            self.logger.warning("the state has a bookmark of %s, which is no stream", unknown)
        known = written.keys() & self.streams.keys()
        super().load_state({"bookmarks": {name: self._read(name, written[name]) for name in known}})

    def _read(self, stream: str, written: t.Any) -> t.Any:
        run, bookmark = self.run, Bookmark.read(written, stream)
        keys = msgspec.to_builtins(bookmark).keys()
        is_foreign = keys <= {"replication_key", "replication_key_value"}  # or set by hand
        if is_foreign and keys:
            start = run.settings.start_date
            bookmark.complete_from = format_instant(start) if start else BEGINNING
        bookmark.range(stream, run.started)
        for name, one in bookmark.complete.items():
            one.range(f"{stream} ({name})", run.started)
        if bookmark.project != run.project and (bookmark.project or not is_foreign):
            made = "was made without a project"
            whose = f"belongs to {bookmark.project!r}" if bookmark.project else made
            set_to = "not set" if run.project is None else repr(run.project)
            raise ConfigurationError(
                f"project is {set_to}, but the state of {stream} {whose}: set project back, or "
                "give each project a state of its own (--state-id-suffix in Meltano)"
            )
        return msgspec.to_builtins(bookmark, str_keys=True)

    def _log_run_summary(self) -> None:
        """Log a line for machines, or raise an error if something is not loaded."""
        run, streams = self.run, self.streams
        run.writer.flush()
        run.http.close()
        sessions = Bookmark.read(streams["sessions"].stream_state).range()
        found = {"sessions": sessions, "events": t.cast("Events", streams["events"]).complete()}
        short = any(one.short_listings or one.short for one in run.counts.values())
        through = [
            format_instant(one.end) if one and streams[name].selected else "none"
            for name, one in found.items()
        ]
        self.logger.info(
            "summary status=%s sessions_through=%s events_through=%s events_left=%d eta_minutes=%d",
            "complete" if run.is_complete and not run.errors and not short else "incomplete",
            *through,
            run.events_left,
            round(run.minutes_for(run.events_left)),
        )
        problems = [
            f"{error}. It keeps no other stream back: deselect {stream} to leave it out"
            for stream, error in run.errors.items()
        ]
        counts = run.counts.items()
        if rows := ", ".join(f"{one.without_key:,} of {n}" for n, one in counts if one.without_key):
            problems.append(f"rows without a key could not be loaded: {rows}. All others were")
        if problems:
            raise SingerSDKError("; ".join(problems))

    # As texts, which our validation reads: of one that it cannot read itself the SDK would say
    # no name, and the value, which may hold the salt of a hash.
    @property
    @override
    def _env_var_config(self) -> dict[str, t.Any]:
        known = self.config_jsonschema["properties"]
        kinds = {name: {"type": "string"} for name in known}
        kinds["flattening_enabled"] = known["flattening_enabled"]  # yes and True are no JSON
        found = parse_environment_config({"properties": kinds}, settings.ENV_PREFIX)
        return {name: one for name, one in found.items() if one != ""}

    # The SDK has no public hook before its own validation, whose messages would print an
    # api_key of the wrong type.
    @override
    def _validate_config(self, *, raise_errors: bool = True) -> list[str]:
        if not raise_errors:
            return []
        if not settings.Settings.from_config(self.config).api_key.startswith("bp_"):
            self.logger.warning("api_key does not begin with bp_: is it the right key?")
        known = self.config_jsonschema["properties"]
        # Environments give empty text for what is not set, and null is no stream map.
        given = {name: one for name, one in self.config.items() if one is not None and one != ""}
        for name in known.keys() & given.keys():
            if "string" not in known[name]["type"] and isinstance(given[name], str):
                with contextlib.suppress(ValueError):  # the SDK says so
                    given[name] = msgspec.json.decode(given[name])
            if "object" in known[name]["type"] and not isinstance(given[name], dict):
                # Not the value: stream_map_config may hold the salt of a hash.
                raise ConfigurationError(f"{name} must be a JSON object")
        self._config = {"user_agent": f"{self.name}/{self.plugin_version}", **given}
        super()._validate_config(raise_errors=raise_errors)
        for unknown, hint in settings.unknown_settings(given, known):
            self.logger.warning("%s: unknown setting, ignored (%s)", unknown, hint)
        return []

    # The SDK ends with 0, and a killed run must not look successful. Its state could also land
    # in the middle of a message that is being written.
    @override
    def _handle_termination(self, signum: int, frame: FrameType | None) -> None:
        if not self.is_ready:
            stop(signum)
        writer, now = t.cast("WholeMessageWriter", self.message_writer), self.clock.seconds()
        self.stopped_at = now if writer.after_write is None else self.stopped_at

        def end() -> None:
            writer.after_write = functools.partial(stop, signum)
            # Even when it is the last one again: a target acts on what comes last.
            writer.write_message(StateMessage(value=self.state))

        if not writer.is_writing:
            end()
        elif writer.after_write is None:
            writer.after_write = end
        elif now - self.stopped_at >= 1.0:  # some send two at once
            # While nobody reads what is written: its last line is cut.
            os._exit(STOPPED + signum)

    @classmethod
    @override
    @errors_as_one_line()
    def invoke(cls, **kwargs: t.Any) -> None:
        if sys.stdout is None:
            raise ConfigurationError("the output is closed: send it to a target or a file")
        for name in ("state", "catalog"):
            if (file := kwargs.get(name)) is not None:
                with errors_as_one_line(f"{name} {file.name}"):
                    text = file.read()
                    msgspec.json.decode(text, type=dict | None)
                kwargs[name] = io.StringIO(text)
        super().invoke(**kwargs)
        for signum in SIGNALS:  # all is done; in here, as one just before is to be told, too
            signal.signal(signum, signal.SIG_IGN)

    @classmethod
    @override
    def cb_config(cls, ctx: click.Context, param: click.Option, value: tuple[str, ...]) -> t.Any:
        with errors_as_one_line(f"config {' '.join(value)}"):
            return super().cb_config(ctx, param, value)

    @classmethod
    @override
    @errors_as_one_line()
    def cb_test(cls, ctx: click.Context, param: click.Option, value: str) -> None:
        try:
            super().cb_test(ctx, param, value)
        except click.exceptions.Exit:
            cls.logger.info("the test succeeded; tap-bugspulse-check tells more of the API")
            raise
