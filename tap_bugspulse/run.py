"""What the streams of one run share: settings, clock, counts, time limit, the session."""

import logging
import typing as t
from collections import Counter, defaultdict
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import cached_property

import requests

from tap_bugspulse.http import ApiSession, Call, Clock
from tap_bugspulse.pages import page_of
from tap_bugspulse.settings import Settings
from tap_bugspulse.writer import WholeMessageWriter

TICK = 1.0  # seconds after which a wait looks for signals and limits
LONG_PAUSE = 5.0  # seconds of a pause that a person should know of
PROGRESS_INTERVAL, LATER_INTERVAL = 30.0, 300.0  # seconds between two progress lines
LATER = 600.0  # seconds after which they come seldom
FEW = 5  # names in a warning


class OutOfTime(Exception):  # noqa: N818 - it is the time limit doing its work, no error
    """The time limit is reached: what is left is for the next run."""


@dataclass(slots=True)
class Counts:
    """What a run counts of one stream; short ones lacked rows, or events."""

    rows: int = 0
    requests: int = 0
    retries: int = 0
    seconds: float = 0.0
    short_listings: int = 0
    without_key: int = 0
    misfits: Counter[str] = field(default_factory=Counter)
    unknown: set[str] = field(default_factory=set)
    set_aside: dict[str, str] = field(default_factory=dict)  # sessions, with why they failed
    short: dict[str, tuple[int, int]] = field(default_factory=dict)  # what came, eventCount
    vanished: int = 0


@dataclass(eq=False)
class Run:
    """What the streams of one run share."""

    config: t.Mapping[str, t.Any]  # read when it is needed
    project: str | None  # that every row carries; known before the settings are
    clock: Clock
    logger: logging.Logger
    writer: WholeMessageWriter
    when_done: t.Callable[[], None]
    counts: dict[str, Counts] = field(default_factory=lambda: defaultdict(Counts))
    errors: dict[str, str] = field(default_factory=dict)  # of streams that the API refuses
    is_complete: bool = True  # nothing is left for the next run
    events_left: int = 0

    def __post_init__(self) -> None:
        self.started = self.clock.now()
        self._began = self._progress_at = self.clock.seconds()
        self._said: set[str] = set()
        self._done: set[str] = set()
        self._says_pause = True

    @cached_property
    def settings(self) -> Settings:
        """The settings in the types the tap works with."""
        return Settings.from_config(self.config)

    @cached_property
    def http(self) -> ApiSession:
        """The one HTTP session of the tap: the limit counts per key."""
        return ApiSession(self.settings, self.clock)

    def result(self, call: Call, counts: Counts) -> requests.Response:
        """Return the response of a call, or raise what it ended with, or OutOfTime in a wait."""
        began, retries, is_done = self.clock.seconds(), counts.retries, False
        if not call.future.done():
            self.writer.flush()
        while not is_done:
            is_done = bool(wait([call.future], TICK).done)
            while call.notes:
                self.logger.info(call.notes.popleft())
                counts.retries += 1
            pause = self.http.paused_until - self.clock.seconds()
            if pause > LONG_PAUSE and self._says_pause:
                self.logger.info("waiting %.0f s, as the 429 response asked", pause)
            self._says_pause = pause <= 0
            is_held = pause > 0 or counts.retries > retries
            if is_held and self.is_over() and call.cancel():
                raise OutOfTime
        counts.requests += 1
        counts.seconds += self.clock.seconds() - began
        page = page_of(response := call.future.result())
        counts.without_key += page.without_key
        counts.misfits += page.misfits
        counts.unknown |= page.unknown
        return response

    def is_over(self, share: float = 1.0) -> bool:
        """Return whether a part of ``max_runtime_minutes``, 0 to 1, has passed."""
        limit = self.settings.max_runtime_minutes
        return limit is not None and self.clock.seconds() - self._began >= limit * 60 * share

    def warn_once(self, message: str, *args: object) -> None:
        """Log a warning the first time its message comes up in the run."""
        if message not in self._said:
            self._said.add(message)
            self.logger.warning(message, *args)

    def progress(self, message: str, *args: object) -> None:
        """Log a line every 30 seconds for ten minutes, then every 5 minutes."""
        now = self.clock.seconds()
        interval = PROGRESS_INTERVAL if now - self._began < LATER else LATER_INTERVAL
        if now - self._progress_at >= interval:
            self._progress_at = now
            self.logger.info(message, *args)

    def minutes_for(self, requests: int) -> float:
        """Return the minutes that requests take at the set pace."""
        return requests / self.settings.requests_per_minute

    def stream_done(self, stream: str, *, is_selected: bool) -> None:
        """Log what a stream did, and the summary after the last of them."""
        counts = self.counts[stream]
        if counts.misfits:
            misfits = (f"{name} {times:,}" for name, times in counts.misfits.items())
            self.logger.warning(
                f"{stream}: values that did not fit their column are null there and kept in "
                f"_extra: {', '.join(misfits)}"
            )
        if names := sorted(counts.unknown):
            more = f" and {len(names) - FEW:,} more" if names[FEW:] else ""
            self.logger.warning(
                f"{stream}: the API sends fields without a column, which are kept in _extra: "
                f"{', '.join(names[:FEW])}{more}"
            )
        found = {
            f"{counts.short_listings} listings short of the API's total": counts.short_listings,
            f"{len(counts.short)} sessions short of events": counts.short,
            f"{counts.vanished} sessions deleted since they were listed": counts.vanished,
            f"set aside: {', '.join(sorted(counts.set_aside))}": counts.set_aside,
            "refused by the API": stream in self.errors,
            "nothing was asked for": not counts.requests,
        }
        if is_selected:
            self.logger.info(
                f"{stream}: rows {counts.rows:,}, requests {counts.requests:,}, retries "
                f"{counts.retries:,}, seconds {counts.seconds:.0f}, "
                f"{', '.join(filter(found.get, found)) or 'row counts match the API'}"
            )
        self._done.add(stream)
        if self._done == self.counts.keys():
            self.when_done()


def duration(minutes: float) -> str:
    """Return minutes the way a person says them: ``5 h 4 min``, ``22 min``."""
    hours, rest = divmod(max(1, round(minutes)), 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min"
