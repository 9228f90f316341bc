"""Singer tap for BugsPulse: its settings, its streams, its one HTTP session."""

from __future__ import annotations

import copy
import logging
import os
import signal
import sys
import typing as t
from functools import cached_property

from singer_sdk import Tap
from singer_sdk.exceptions import (
    ConfigurationError,
    ConfigValidationError,
    SingerSDKError,
)
from singer_sdk.helpers.capabilities import PluginCapabilities, TapCapabilities
from singer_sdk.singerlib.messages import StateMessage
from typing_extensions import override

from tap_bugspulse.command import (
    end_on_signals,
    errors_as_one_line,
    json_file,
    spare_memory,
    ticking,
)
from tap_bugspulse.events import COMPLETE_TO, Events
from tap_bugspulse.incremental import MARK
from tap_bugspulse.replication import clean_state, format_instant
from tap_bugspulse.run import Clock, Run
from tap_bugspulse.session import ApiSession
from tap_bugspulse.settings import (
    CONFIG_SCHEMA,
    KEY_PREFIX,
    Settings,
    check_environment,
    drop_empty_variables,
    names_of_objects,
    unknown_settings,
)
from tap_bugspulse.streams import Crashes, Network, Sessions
from tap_bugspulse.writer import WholeMessageWriter

if t.TYPE_CHECKING:
    from types import FrameType

    import click

    from tap_bugspulse.client import BugsPulseStream
    from tap_bugspulse.replication import Span


class TapBugsPulse(Tap):
    """Singer tap for BugsPulse: mobile app sessions, crashes, events, network calls."""

    name = "tap-bugspulse"
    config_jsonschema = copy.deepcopy(CONFIG_SCHEMA)  # the SDK adds settings to it
    message_writer_class = WholeMessageWriter
    # No BATCH, which bypasses stream maps, and no ACTIVATE_VERSION: the warehouse
    # keeps the rows that BugsPulse's retention deletes.
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
        """Set the tap up; metrics, a line for each request, are for LOGLEVEL=DEBUG."""
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

    @property
    def project(self) -> str | None:
        """The name that every row carries, if any; known before the settings are."""
        return self.config.get("project") or None

    @property
    def need(self) -> Span:
        """The instants from start_date to end_date."""
        return self.settings.requested

    @cached_property
    def run(self) -> Run:
        """What the streams of this run share."""
        return Run(self.settings, self.clock, self.logger)

    @cached_property
    def settings(self) -> Settings:
        """The settings in the types the tap works with."""
        return Settings.from_config(self.config)

    @cached_property
    def session(self) -> ApiSession:
        """The one HTTP session of the tap: the limit counts per key."""
        return ApiSession(self.settings, self.minute_seconds, self.clock, self.logger)

    def flush(self) -> None:
        """Write the records that are kept back."""
        # The SDK's own tests bring another writer, which keeps none back.
        if isinstance(self.message_writer, WholeMessageWriter):
            self.message_writer.flush()

    @override
    def discover_streams(self) -> list[BugsPulseStream]:
        streams: list[BugsPulseStream] = [
            Crashes(self),
            Network(self),
            Sessions(self),
            Events(self),
        ]
        for stream in streams:
            self.logger.getChild(stream.name).addFilter(_is_for_a_person)
        return streams

    # --- State -------------------------------------------------------------------------

    @override
    def load_state(self, state: t.Any) -> None:
        # The SDK takes a null stream, a list of bookmarks or a mark that is no date at
        # its word and fails in the middle of the run.
        if not state:
            super().load_state({})
            return
        bookmarks, problems = clean_state(
            state,
            {
                "crashes": "",
                "events": COMPLETE_TO,
                "network": MARK,
                "sessions": MARK,
            },
            self.need.start,
        )
        for problem in problems:
            self.logger.warning("The state is damaged: %s; going on without it", problem)
        for stream, bookmark in bookmarks.items():
            theirs = bookmark.get("project")
            ours_is_new = "complete_from" not in bookmark and "complete" not in bookmark
            if theirs != self.project and not (theirs is None and ours_is_new):
                ours = "not set" if self.project is None else repr(self.project)
                whose = (
                    "was made without a project"
                    if theirs is None
                    else f"belongs to {theirs!r}"
                )
                msg = (
                    f"project is {ours}, but the state of {stream} {whose}: set project "
                    "back, or give each project a state of its own (--state-id-suffix in "
                    "Meltano)"
                )
                raise ConfigurationError(msg)
        super().load_state({"bookmarks": bookmarks})

    def state_of_project(self) -> dict[str, str]:
        """Give what a bookmark keeps of the setting ``project``."""
        return {} if self.project is None else {"project": self.project}

    # --- What a person sees ------------------------------------------------------------

    def sum_up(self, stream: BugsPulseStream) -> None:
        """Log what a stream did; after the last one, a line for machines.

        Raises:
            ConfigurationError: If there were rows that could not be loaded.
        """
        counts = self.run.counts[stream.name]
        if stream.columns.misfits:
            self.logger.warning(
                "%s: values that did not fit their column are null there and kept in "
                "_extra: %s",
                stream.name,
                ", ".join(
                    f"{name} {times:,}" for name, times in stream.columns.misfits.items()
                ),
            )
        if stream.selected:
            self.logger.info(
                "%s: rows %s, requests %s, retries %s, seconds %.0f, %s%s",
                stream.name,
                f"{counts.rows:,}",
                f"{counts.requests:,}",
                f"{counts.retries:,}",
                counts.seconds,
                f"{counts.disagreements} listings short of the API's total"
                if counts.disagreements
                else "as many as the API's totals",
                f", set aside: {', '.join(counts.set_aside)}" if counts.set_aside else "",
            )
        if stream is list(self.streams.values())[-1]:
            self.flush()
            self.session.close()
            self._end()

    def _end(self) -> None:
        events = t.cast("Events", self.streams["events"])
        sessions = t.cast("Sessions", self.streams["sessions"])
        done = events.stretch() if events.selected else None
        mark = sessions.stream_state.get(MARK) if sessions.selected else None
        left = self.run.events_left or 0
        self.logger.info(
            "summary status=%s sessions_through=%s events_through=%s events_left=%d "
            "eta_minutes=%d",
            self.run.status,
            mark or "none",
            format_instant(done.complete_to) if done else "none",
            left,
            round(self.run.minutes_for(left)),
        )
        lost = {name: rows for name, rows in self.run.rows_without_key.items() if rows}
        if lost:
            counts = ", ".join(f"{rows:,} of {name}" for name, rows in lost.items())
            msg = f"rows without a key could not be loaded: {counts}. All others were"
            raise RowsWithoutKeyError(msg)

    # The SDK has no public hook before its own validation, whose messages would print
    # an api_key of the wrong type.
    @override
    def _validate_config(self, *, raise_errors: bool = True) -> list[str]:
        if not raise_errors:
            return []
        settings = Settings.from_config(self.config)
        for name, setting in CONFIG_SCHEMA["properties"].items():
            # Environments give text for numbers, and empty text for what is not set.
            if self._config.get(name) == "":
                del self._config[name]
            elif "string" not in setting["type"] and isinstance(
                self._config.get(name), str
            ):
                self._config[name] = getattr(settings, name)
        if not settings.api_key.startswith(KEY_PREFIX):
            self.logger.warning("api_key does not begin with bp_: is it the right key?")
        known = self.config_jsonschema["properties"]
        for name in names_of_objects(known):
            if not isinstance(self._config.get(name), dict | None):
                # Not the value: stream_map_config may hold the salt of a hash.
                msg = f"{name} must be a JSON object"
                raise ConfigurationError(msg)
        try:
            super()._validate_config(raise_errors=raise_errors)
        except ConfigValidationError as exc:
            raise ConfigurationError("; ".join(exc.errors)) from None
        for unknown, hint in unknown_settings(self._config, known):
            self.logger.warning("%s: unknown setting, ignored (%s)", unknown, hint)
        return []

    # The SDK does this before the state is loaded: a signal in between would write a
    # STATE that holds less than the one the run was started with.
    @override
    def _setup_signal_handlers(self) -> None:
        """Do nothing yet: they are set up when there is a state to write."""

    # The SDK ends with 0, and a killed run must not look successful. Its state could
    # also land in the middle of a message that is being written.
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
        spare_memory()
        # The limiter's thread says at LOGLEVEL=DEBUG that it has a loop: at any moment,
        # also after the line that tells why the run ends.
        logging.getLogger("asyncio").setLevel(logging.INFO)
        with errors_as_one_line(cls.logger), ticking():
            end_on_signals(cls.logger)
            for name in ("state", "catalog"):
                if kwargs.get(name) is not None:
                    kwargs[name] = json_file(name, kwargs[name], cls.logger)
            super().invoke(**kwargs)

    @classmethod
    @override
    def cb_config(
        cls, ctx: click.Context, param: click.Option, value: tuple[str, ...]
    ) -> t.Any:
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


def _is_for_a_person(record: logging.LogRecord) -> bool:
    """Leave out that an error came up in a stream: the last line says which one."""
    return not str(record.msg).startswith("An unhandled error occurred while syncing")


class RowsWithoutKeyError(SingerSDKError):
    """The API sent rows that no table can hold."""
