"""The tap: settings in, streams out, state in, one summary, errors as one line."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import signal
import sys
import typing as t
from functools import cached_property

import requests
from singer_sdk import Tap
from singer_sdk.exceptions import ConfigurationError, ConfigValidationError, SingerSDKError
from singer_sdk.helpers.capabilities import PluginCapabilities, TapCapabilities
from singer_sdk.singerlib.messages import StateMessage
from typing_extensions import override

from tap_bugspulse.events import Events
from tap_bugspulse.http import Clock
from tap_bugspulse.replication import BEGINNING, Bookmark, StateError, format_instant, unwrap_state
from tap_bugspulse.run import Run
from tap_bugspulse.settings import (
    CONFIG_SCHEMA,
    KEY_PREFIX,
    Settings,
    check_environment,
    drop_empty_variables,
    names_of_objects,
    unknown_settings,
)
from tap_bugspulse.streams import Crashes, DueSessions, Network, Sessions
from tap_bugspulse.writer import WholeMessageWriter

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    import click

    from tap_bugspulse.client import BugsPulseStream

    Row = dict[str, t.Any]

STREAMS = {kind.name for kind in (Crashes, Events, Network, Sessions)}
SDK_KEYS = {"replication_key", "replication_key_value"}


class IncompleteError(SingerSDKError):
    """The run has ended without rows or streams that it should have loaded."""


class TapBugsPulse(Tap):
    """Singer tap for BugsPulse: mobile app sessions, crashes, events, network calls."""

    name = "tap-bugspulse"
    config_jsonschema = copy.deepcopy(CONFIG_SCHEMA)  # the SDK adds settings to it
    message_writer_class = WholeMessageWriter
    # No BATCH, which bypasses stream maps, and no ACTIVATE_VERSION: the warehouse keeps the
    # rows that BugsPulse's retention deletes.
    capabilities: t.ClassVar[list[t.Any]] = [
        TapCapabilities.CATALOG,
        TapCapabilities.DISCOVER,
        TapCapabilities.STATE,
        PluginCapabilities.ABOUT,
        PluginCapabilities.FLATTENING,
        PluginCapabilities.STREAM_MAPS,
        PluginCapabilities.STRUCTURED_LOGGING,
    ]
    # A test brings a shorter minute and a clock of its own.
    minute_seconds = 60.0
    clock = Clock()

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        self.append_builtin_config(self.config_jsonschema)
        known = self.config_jsonschema["properties"]
        drop_empty_variables(known)
        try:
            super().__init__(*args, **kwargs)
        except ValueError:
            # The SDK reads numbers and JSON in the environment without saying which.
            check_environment(known)
            raise
        super()._setup_signal_handlers()
        if self.metrics_logger.level > logging.DEBUG:
            self.metrics_logger.setLevel(logging.WARNING)

    @cached_property
    def run(self) -> Run:
        """What the streams of this run share."""
        # The SDK's own tests bring another writer.
        writer = self.message_writer
        ours = writer if isinstance(writer, WholeMessageWriter) else None
        return Run(self.config, self.clock, self.minute_seconds, self.logger, ours)

    @override
    def discover_streams(self) -> list[BugsPulseStream]:
        run = self.run
        sessions = Sessions(self, run, DueSessions(run))
        streams = [Crashes(self, run), Network(self, run), sessions, Events(self, run, sessions)]
        for stream in streams:
            self.logger.getChild(stream.name).addFilter(is_for_a_person)
        run.when_done = self._log_run_summary
        run.streams_left = {stream.name for stream in streams}
        return streams

    @override
    def load_state(self, state: t.Any) -> None:
        # The SDK takes a null stream, a list of bookmarks or a bookmark that is no date at its
        # word and fails in the middle of the run.
        state = unwrap_state(state) or {}
        written = state.get("bookmarks") or {} if isinstance(state, dict) else None
        if not isinstance(written, dict):
            raise ConfigurationError("the state holds no bookmarks: restore it, or run without it")
        try:
            kept = {name: self._read(name, written[name]) for name in written}
        except StateError as error:
            raise ConfigurationError(str(error)) from None
        super().load_state({"bookmarks": {n: one for n, one in kept.items() if one is not None}})

    def _read(self, stream: str, written: Row | None) -> Row | None:
        """Return the keys of a stream's bookmark, None if there is no such stream.

        Raises:
            StateError: If it cannot be read.
            ConfigurationError: If it belongs to another project.
        """
        run = self.run
        if stream not in STREAMS:
            self.logger.warning("the state has a bookmark of %r, which is no stream", stream)
            return None
        bookmark = Bookmark.read(written, stream)
        kept = {
            key: one for key, one in (written or {}).items() if key in Bookmark.__struct_fields__
        }
        if kept.keys() and kept.keys() <= SDK_KEYS:  # set by hand, or by another tap
            start = run.settings.requested.start
            kept["complete_from"] = format_instant(start) if start else BEGINNING
            bookmark = Bookmark.read(kept, stream)
        # By another machine's clock, the end of a range may be a little ahead: it is now.
        if found := bookmark.range(stream, run.started):
            kept |= found.write("replication_key_value")
        if bookmark.complete:
            ranges = {
                n: one.range(f"{stream} ({n})", run.started) for n, one in bookmark.complete.items()
            }
            kept["complete"] = {n: one.write("complete_to") for n, one in ranges.items() if one}
        is_ours = "complete_from" in kept or "complete" in kept
        if bookmark.project != run.project and (bookmark.project is not None or is_ours):
            made = "was made without a project"
            whose = made if bookmark.project is None else f"belongs to {bookmark.project!r}"
            ours = "not set" if run.project is None else repr(run.project)
            raise ConfigurationError(
                f"project is {ours}, but the state of {stream} {whose}: set project back, or "
                "give each project a state of its own (--state-id-suffix in Meltano)"
            )
        return kept

    def _log_run_summary(self) -> None:
        """Log a line for machines when all streams are done.

        Raises:
            IncompleteError: If there were rows or streams that could not be loaded.
        """
        run, streams = self.run, self.streams
        if run.writer:
            run.writer.flush()
        run.http.close()
        sessions = Bookmark.read(streams["sessions"].stream_state).range()
        fetched = t.cast("Events", streams["events"]).complete()
        self.logger.info(
            "summary status=%s sessions_through=%s events_through=%s events_left=%d eta_minutes=%d",
            "complete" if run.is_complete and not run.errors else "incomplete",
            format_instant(sessions.complete_to)
            if sessions and streams["sessions"].selected
            else "none",
            format_instant(fetched.complete_to)
            if fetched and streams["events"].selected
            else "none",
            run.events_left,
            round(run.minutes_for(run.events_left)),
        )
        problems = [
            f"{error}. The other streams are loaded: deselect {stream} to leave it out"
            for stream, error in run.errors.items()
        ]
        lost = {name: one.without_key for name, one in run.counts.items() if one.without_key}
        if lost:
            rows = ", ".join(f"{count:,} of {name}" for name, count in lost.items())
            problems.append(f"rows without a key could not be loaded: {rows}. All others were")
        if problems:
            raise IncompleteError("; ".join(problems))

    # The SDK has no public hook before its own validation, whose messages would print an
    # api_key of the wrong type.
    @override
    def _validate_config(self, *, raise_errors: bool = True) -> list[str]:
        if not raise_errors:
            return []
        settings = Settings.from_config(self.config)
        for name, setting in CONFIG_SCHEMA["properties"].items():
            # Environments give text for numbers, and empty text for what is not set.
            if self._config.get(name) == "":
                del self._config[name]
            elif "string" not in setting["type"] and isinstance(self._config.get(name), str):
                self._config[name] = getattr(settings, name)
        if not settings.api_key.startswith(KEY_PREFIX):
            self.logger.warning("api_key does not begin with bp_: is it the right key?")
        known = self.config_jsonschema["properties"]
        for name in names_of_objects(known):
            if not isinstance(self._config.get(name), dict | None):
                # Not the value: stream_map_config may hold the salt of a hash.
                raise ConfigurationError(f"{name} must be a JSON object")
        try:
            super()._validate_config(raise_errors=raise_errors)
        except ConfigValidationError as exc:
            raise ConfigurationError("; ".join(exc.errors)) from None
        for unknown, hint in unknown_settings(self._config, known):
            self.logger.warning("%s: unknown setting, ignored (%s)", unknown, hint)
        return []

    # The SDK does this before the state is loaded: a signal in between would write a STATE
    # that holds less than the one the run was started with.
    @override
    def _setup_signal_handlers(self) -> None:
        """Do nothing yet: they are set up when there is a state to write."""

    # The SDK ends with 0, and a killed run must not look successful. Its state could also land
    # in the middle of a message that is being written.
    @override
    def _handle_termination(self, signum: int, frame: FrameType | None) -> None:
        def end() -> None:
            writer.after, writer.is_ending = None, True
            # Even when it is the last one again: a target acts on what comes last.
            writer.write_message(StateMessage(value=self.state))
            self.logger.warning("Stopped by %s", signal.Signals(signum).name)
            raise SystemExit(128 + signum)

        writer = t.cast("WholeMessageWriter", self.message_writer)
        if writer.is_writing and (writer.is_ending or writer.after is not None):
            # A second one, while nobody reads what is written: its last line is cut.
            os._exit(128 + signum)
        elif writer.is_writing:
            writer.after = end
        else:
            end()

    @classmethod
    @override
    def invoke(cls, **kwargs: t.Any) -> None:
        # The limiter's thread says at LOGLEVEL=DEBUG that it has a loop: at any moment, also
        # after the line that tells why the run ends.
        logging.getLogger("asyncio").setLevel(logging.INFO)
        with errors_as_one_line(cls.logger):
            end_on_signals(cls.logger)
            for name in ("state", "catalog"):
                if kwargs.get(name) is not None:
                    kwargs[name] = json_file(name, kwargs[name])
            super().invoke(**kwargs)

    @classmethod
    @override
    def cb_config(cls, ctx: click.Context, param: click.Option, value: tuple[str, ...]) -> t.Any:
        try:
            return super().cb_config(ctx, param, value)
        except (OSError, ValueError) as error:
            # Not the error's own text, which may hold what stands in the file.
            cls.logger.critical(
                "the file given with --config cannot be read as JSON (%s): %s",
                type(error).__name__,
                ", ".join(name for name in value if name != "ENV"),
            )
            sys.exit(1)

    @classmethod
    @override
    def cb_test(cls, ctx: click.Context, param: click.Option, value: str) -> None:
        with errors_as_one_line(cls.logger):
            super().cb_test(ctx, param, value)


def is_for_a_person(record: logging.LogRecord) -> bool:
    """Return whether a line says more than that an error came up, as the last line does."""
    return not str(record.msg).startswith("An unhandled error occurred while syncing")


def json_file(name: str, file: t.IO[str]) -> t.IO[str]:
    """Return the JSON of a file; the SDK would end with a traceback where there is none."""
    try:
        content = json.loads(file.read(), parse_constant=lambda _: None)
    except ValueError:
        content = ""
    if content is not None and not isinstance(content, dict):
        msg = f"the file given with --{name} is not JSON: restore it, or run without it"
        if name == "state":
            msg += " to load everything again"
        raise ConfigurationError(msg)
    # Half a surrogate pair could not be written again.
    whole = json.dumps(content, ensure_ascii=False).encode(errors="replace")
    return io.StringIO(whole.decode())


def end_on_signals(logger: logging.Logger) -> None:
    """End on a signal as long as there is no state to write yet."""

    def end(signum: int, _: FrameType | None) -> None:
        logger.warning("Stopped by %s", signal.Signals(signum).name)
        raise SystemExit(128 + signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, end)


@contextlib.contextmanager
def errors_as_one_line(logger: logging.Logger) -> Iterator[None]:
    """End the process with one line for a person instead of a traceback."""
    try:
        yield
    except (SingerSDKError, requests.RequestException) as exc:
        logger.critical("%s", exc)
    except OSError as exc:
        if isinstance(exc, BrokenPipeError):
            logger.critical("the target has closed its input: look for its own error above")
        else:
            logger.critical("the output cannot be written: %s", exc.strerror)
        # Python would complain once more when it flushes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        return
    sys.exit(1)
