"""The tap: reads settings and state, makes the streams, logs a summary and errors."""

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
STOPPED = 128  # plus the number of the signal: the exit code


def stop(signum: int, _: FrameType | None = None) -> t.NoReturn:
    """Exit because of a signal; log nothing here, as it may come while a line is being logged."""
    raise SystemExit(STOPPED + signum)


@contextlib.contextmanager
def errors_as_one_line(reading: str = "") -> t.Iterator[None]:
    """Turn an error into one line of log and exit; ``reading`` names the file that is read."""
    logger = logging.getLogger(settings.NAME)
    try:
        for signum in SIGNALS:  # until there is a state to write
            signal.signal(signum, stop)
        yield
    except SystemExit as exc:
        if isinstance(exc.code, int) and exc.code > STOPPED:
            logger.warning("Stopped by %s", signal.Signals(exc.code - STOPPED).name)
        raise
    except Exception as exc:  # a stream map may raise any type; other unknown errors go on
        message = settings.map_error(exc)
        if reading:  # not the text of the error, which may quote the file
            message = f"the file given with --{reading} cannot be read ({type(exc).__name__}): "
            message += "restore it, or run without it"
            message += " to load everything again" * reading.startswith("state ")
        elif isinstance(exc, SingerSDKError | requests.RequestException):
            message = message or "; ".join(getattr(exc, "errors", [str(exc)]))
        elif isinstance(exc, OSError):
            # Otherwise Python prints another error when it flushes stdout at exit.
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
    # No BATCH: it bypasses stream maps. No ACTIVATE_VERSION: the warehouse keeps rows that
    # BugsPulse's retention deletes.
    capabilities: t.ClassVar[list[t.Any]] = [
        one for one in Tap.capabilities if one.value not in {"activate-version", "batch"}
    ]
    clock = Clock()  # tests replace it
    is_ready = False  # whether there is a state to write
    stopped_at = 0.0  # by the monotonic clock: the time of the first signal

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        self.append_builtin_config(self.config_jsonschema)
        super().__init__(*args, **kwargs)
        self.is_ready = True
        # Metrics are logged only on request. Meltano sets a config, too; it does not name them.
        config = os.environ.get("SINGER_SDK_LOG_CONFIG")
        is_requested = config and self.metrics_logger.name in Path(config).read_text("utf-8")
        if self.metrics_logger.level > logging.DEBUG and not is_requested:
            self.metrics_logger.setLevel(logging.WARNING)
        if not any(one.selected for one in self.streams.values()):
            self.logger.warning(
                "the catalog selects no stream: nothing is loaded. Make it anew with --discover"
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
        for stream in streams:  # the tap logs the error itself, in the last line
            self.logger.getChild(stream.name).addFilter(lambda one: "unhandled" not in str(one.msg))
        return streams

    @override
    def setup_mapper(self) -> None:
        # Without what Tap.setup_mapper adds: it fails at maps of streams that are not selected.
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
            # A filter of sessions also decides which events are loaded.
            schema, kept = one.effective_schema, filters if one.has_selected_descendents else {}
            if one.selected:
                schema, kept = get_selected_schema(name, schema, one.mask), maps
            settings.check_maps(name, kept, given, columns, schema["properties"])
            mapper.stream_maps_dict = kept
            mapper.register_raw_stream_schema(name, schema, one.primary_keys)
            if {type(each) for each in mapper.stream_maps[name]} == {RemoveRecordTransform}:
                one.selected = False  # else it would be requested, but no row emitted

    @override
    def load_state(self, state: t.Any) -> None:
        # The SDK accepts a bookmark that is null, a list or not a date, and fails later, in the
        # middle of the run.
        for wrapper in ("value", "completed", "singer_state"):  # of a STATE, and of Meltano
            if isinstance(state, dict) and "bookmarks" not in state:
                state = state.get(wrapper, state)
        written = state.get("bookmarks", state) if isinstance(state, dict) else state
        known = written.keys() & self.streams.keys() if isinstance(written, dict) else set()
        if not known and written not in (None, {}):  # maybe of another tap
            raise ConfigurationError(
                "the state holds no bookmarks of this tap: restore it, or run without it"
            )
        super().load_state({"bookmarks": {name: self._read(name, written[name]) for name in known}})

    def _read(self, stream: str, written: t.Any) -> t.Any:
        run, bookmark = self.run, Bookmark.read(written, stream)
        keys = msgspec.to_builtins(bookmark).keys()
        is_foreign = keys <= {"replication_key", "replication_key_value"}  # or written by hand
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
        """Log the summary line, and raise an error if something could not be loaded."""
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
        # Not their number: a row may come with more than one answer.
        if names := ", ".join(name for name, one in run.counts.items() if one.without_key):
            problems.append(f"rows without a key could not be loaded: {names}. All others were")
        if problems:
            raise SingerSDKError("; ".join(problems))

    # As texts, for our own validation: the SDK's error for a value that it cannot read lacks the
    # name and prints the value, which may hold the salt of a hash.
    @property
    @override
    def _env_var_config(self) -> dict[str, t.Any]:
        known = self.config_jsonschema["properties"]
        kinds = {name: {"type": "string"} for name in known}
        kinds["flattening_enabled"] = known["flattening_enabled"]  # yes and True are not JSON
        found = parse_environment_config({"properties": kinds}, settings.ENV_PREFIX)
        return {name: one for name, one in found.items() if one != ""}

    # The SDK's own validation would print an api_key of the wrong type, and there is no public
    # hook before it.
    @override
    def _validate_config(self, *, raise_errors: bool = True) -> list[str]:
        if not raise_errors:
            return []
        if not settings.Settings.from_config(self.config).api_key.startswith("bp_"):
            self.logger.warning("api_key does not begin with bp_: is it the right key?")
        known = self.config_jsonschema["properties"]
        # An environment variable that is not set may be empty; the SDK takes no null as stream map.
        given = {name: one for name, one in self.config.items() if one is not None and one != ""}
        for name in known.keys() & given.keys():
            if "string" not in known[name]["type"] and isinstance(given[name], str):
                with contextlib.suppress(ValueError):  # the SDK reports it
                    given[name] = msgspec.json.decode(given[name])
            if "object" in known[name]["type"] and not isinstance(given[name], dict):
                # Without the value: stream_map_config may hold the salt of a hash.
                raise ConfigurationError(f"{name} must be a JSON object")
        self._config = {"user_agent": f"{self.name}/{self.plugin_version}", **given}
        super()._validate_config(raise_errors=raise_errors)
        for unknown, hint in settings.unknown_settings(given, known):
            self.logger.warning("%s: unknown setting, ignored (%s)", unknown, hint)
        return []

    # The SDK exits with 0, but a killed run must not look successful. It might also write its
    # STATE into the middle of another message.
    @override
    def _handle_termination(self, signum: int, frame: FrameType | None) -> None:
        if not self.is_ready:
            stop(signum)
        writer, now = t.cast("WholeMessageWriter", self.message_writer), self.clock.seconds()
        self.stopped_at = now if writer.after_write is None else self.stopped_at

        def end() -> None:
            writer.after_write = functools.partial(stop, signum)
            # Even if the state has not changed: a target acts on the last message.
            writer.write_message(StateMessage(value=self.state))

        if not writer.is_writing:
            end()
        elif writer.after_write is None:
            writer.after_write = end
        elif now - self.stopped_at >= 1.0:  # some programs send two signals at once
            # The write does not end, as nobody reads: this cuts off its last line.
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
        for signum in SIGNALS:  # all is done; inside the decorator, which logs one just before
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
