"""Singer tap for BugsPulse: its settings, its streams, its one HTTP session."""

from __future__ import annotations

import contextlib
import sys
import typing as t
from functools import cached_property

import requests
from requests_ratelimiter import InMemoryBucket, Limiter, LimiterAdapter, Rate
from singer_sdk import Tap
from singer_sdk.exceptions import ConfigValidationError, SingerSDKError
from singer_sdk.helpers.capabilities import PluginCapabilities, TapCapabilities
from typing_extensions import override

from tap_bugspulse import streams
from tap_bugspulse.settings import CONFIG_SCHEMA, KEY_PREFIX, Settings, SettingsError

if t.TYPE_CHECKING:
    import logging
    from collections.abc import Iterator

    import click

    from tap_bugspulse.client import BugsPulseStream

# A little more than the minute the API counts in: arrival times jitter.
RATE_WINDOW_MILLISECONDS = 61_000


class TapBugsPulse(Tap):
    """Singer tap for BugsPulse: mobile app sessions, crashes, events, network calls."""

    name = "tap-bugspulse"
    config_jsonschema = CONFIG_SCHEMA
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

    @cached_property
    def settings(self) -> Settings:
        """The settings in the types the tap works with."""
        return Settings.from_config(self.config)

    @cached_property
    def session(self) -> requests.Session:
        """The one HTTP session of the tap: the limit counts per key."""
        session = requests.Session()
        rate = Rate(self.settings.requests_per_minute, RATE_WINDOW_MILLISECONDS)
        adapter = LimiterAdapter(
            limiter=Limiter(InMemoryBucket([rate])), per_host=False, limit_statuses=()
        )
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        return session

    @override
    def discover_streams(self) -> list[BugsPulseStream]:
        return [
            streams.Crashes(self),
            streams.Network(self),
            streams.Sessions(self),
            streams.Events(self),
        ]

    # The SDK has no public hook before its own validation, whose messages would print
    # an api_key of the wrong type.
    @override
    def _validate_config(self, *, raise_errors: bool = True) -> list[str]:
        if not raise_errors:
            return []
        try:
            settings = Settings.from_config(self.config)
        except SettingsError as exc:
            msg = "; ".join(exc.problems)
            raise ConfigValidationError(msg, errors=exc.problems, schema={}) from None
        if not settings.api_key.startswith(KEY_PREFIX):
            self.logger.warning("api_key does not begin with bp_: is it the right key?")
        return super()._validate_config(raise_errors=raise_errors)

    @classmethod
    @override
    def invoke(cls, **kwargs: t.Any) -> None:  # type: ignore[override]  # passed on whole
        with _errors_as_one_line(cls.logger):
            super().invoke(**kwargs)

    @classmethod
    @override
    def cb_test(
        cls, ctx: click.Context, param: click.Option, value: str
    ) -> None:
        with _errors_as_one_line(cls.logger):
            super().cb_test(ctx, param, value)


@contextlib.contextmanager
def _errors_as_one_line(logger: logging.Logger) -> Iterator[None]:
    """End the process with one line for a person instead of a traceback."""
    try:
        yield
    except (SingerSDKError, requests.RequestException) as exc:
        logger.critical("%s", exc)
        sys.exit(1)
