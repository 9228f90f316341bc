"""What the streams of a run share: settings, clock, counts, time limit, HTTP session."""

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

TICK = 1.0  # seconds after which a wait checks for signals, notes and the time limit
LONG_PAUSE = 5.0  # seconds; longer pauses are logged
PROGRESS_INTERVAL, LATER_INTERVAL = 30.0, 300.0  # seconds between two progress lines
LATER = 600.0  # seconds after which the second interval applies
MAX_NAMES = 5  # in a warning


class OutOfTime(Exception):  # noqa: N818 - a time limit that is reached is not an error
    """The time limit is reached: the next run loads the rest."""


@dataclass(slots=True)
class Counts:
    """What a run counts for one stream; short listings lacked rows, short sessions events."""

    rows: int = 0
    requests: int = 0
    retries: int = 0
    seconds: float = 0.0
    short_listings: int = 0
    without_key: int = 0
    misfits: Counter[str] = field(default_factory=Counter)
    unknown: set[str] = field(default_factory=set)
    set_aside: dict[str, str] = field(default_factory=dict)  # sessions, and why they failed
    short: dict[str, tuple[int, int]] = field(default_factory=dict)  # events, eventCount
    vanished: int = 0


@dataclass(eq=False)
class Run:
    """What the streams of one run share."""

    config: t.Mapping[str, t.Any]  # becomes ``settings`` when they are first used
    project: str | None  # in every row; needed before the settings are checked
    clock: Clock
    logger: logging.Logger
    writer: WholeMessageWriter
    when_done: t.Callable[[], None]
    counts: dict[str, Counts] = field(default_factory=lambda: defaultdict(Counts))
    errors: dict[str, str] = field(default_factory=dict)  # of streams that the API refuses
    is_complete: bool = True  # False if the time limit left something for the next run
    events_left: int = 0

    def __post_init__(self) -> None:
        self.started = self.clock.now()
        self._began = self._progress_at = self.clock.seconds()
        self._warned: set[str] = set()
        self._done: set[str] = set()
        self._logs_pause = True

    @cached_property
    def settings(self) -> Settings:
        """The settings, checked and converted when they are first used."""
        return Settings.from_config(self.config)

    @cached_property
    def http(self) -> ApiSession:
        """The one HTTP session of the tap, because the rate limit is per key."""
        return ApiSession(self.settings, self.clock)

    def result(self, call: Call, counts: Counts) -> requests.Response:
        """Return the response of a call, or raise its error, or OutOfTime while it has to wait."""
        began, retries, is_done = self.clock.seconds(), counts.retries, False
        if not call.future.done():
            self.writer.flush()
        while not is_done:
            is_done = bool(wait([call.future], TICK).done)
            while call.notes:
                self.logger.info(call.notes.popleft())
                counts.retries += 1
            pause = self.http.paused_until - self.clock.seconds()
            if pause > LONG_PAUSE and self._logs_pause:
                self.logger.info("waiting %.0f s, as the 429 response asked", pause)
            self._logs_pause = pause <= 0  # once for each pause
            is_waiting = pause > 0 or counts.retries > retries
            if is_waiting and self.is_over() and call.cancel():
                raise OutOfTime
        counts.requests += 1
        counts.seconds += self.clock.seconds() - began
        page = page_of(response := call.future.result())
        counts.without_key += page.without_key
        counts.misfits += page.misfits
        counts.unknown |= page.unknown
        return response

    def is_over(self, share: float = 1.0) -> bool:
        """Return whether this share of ``max_runtime_minutes``, from 0 to 1, has passed."""
        limit = self.settings.max_runtime_minutes
        return limit is not None and self.clock.seconds() - self._began >= limit * 60 * share

    def warn_once(self, message: str, *args: object) -> None:
        """Log a warning, but each message once in a run."""
        if message not in self._warned:
            self._warned.add(message)
            self.logger.warning(message, *args)

    def progress(self, message: str, *args: object) -> None:
        """Log a line every 30 seconds for ten minutes, then every 5 minutes."""
        now = self.clock.seconds()
        interval = PROGRESS_INTERVAL if now - self._began < LATER else LATER_INTERVAL
        if now - self._progress_at >= interval:
            self._progress_at = now
            self.logger.info(message, *args)

    def minutes_for(self, requests: int) -> float:
        """Return how many minutes some requests take at ``requests_per_minute``."""
        return requests / self.settings.requests_per_minute

    def stream_done(self, stream: str, *, is_selected: bool) -> None:
        """Log what a stream did, and after the last stream the summary of the run."""
        counts = self.counts[stream]
        if counts.misfits:
            misfits = (f"{name} {times:,}" for name, times in counts.misfits.items())
            self.logger.warning(
                f"{stream}: values that did not fit their column are null there and kept in "
                f"_extra: {', '.join(misfits)}"
            )
        if names := sorted(counts.unknown):
            more = f" and {len(names) - MAX_NAMES:,} more" if names[MAX_NAMES:] else ""
            self.logger.warning(
                f"{stream}: the API sends fields without a column, which are kept in _extra: "
                f"{', '.join(names[:MAX_NAMES])}{more}"
            )
        problems = {
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
                f"{', '.join(filter(problems.get, problems)) or 'row counts match the API'}"
            )
        self._done.add(stream)
        if self._done == self.counts.keys():
            self.when_done()


def duration(minutes: float) -> str:
    """Return minutes as a text, such as ``5 h 4 min`` or ``22 min``."""
    hours, rest = divmod(max(1, round(minutes)), 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min"
