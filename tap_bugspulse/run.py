"""One run of the tap: its clock, its time box, what it counts and tells a person."""

from __future__ import annotations

import time
import typing as t
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime

if t.TYPE_CHECKING:
    import logging

    from tap_bugspulse.settings import Settings

OFTEN, SELDOM = 30.0, 300.0  # seconds between two progress lines
OFTEN_FOR = 600.0  # seconds after which progress lines come seldom


class OutOfTime(Exception):  # noqa: N818 - it is the time box doing its work, no error
    """The time box is used up: what is left is for the next run."""


class Clock:
    """The wall clock and the stopwatch the tap goes by; tests bring their own."""

    def now(self) -> datetime:
        """Give the current instant, in UTC."""
        return datetime.now(UTC)

    def seconds(self) -> float:
        """Give the reading of a stopwatch, in seconds."""
        return time.monotonic()


@dataclass(slots=True)
class Counts:
    """What a run counts of one stream."""

    rows: int = 0
    requests: int = 0
    retries: int = 0
    seconds: float = 0.0
    disagreements: int = 0
    set_aside: list[str] = field(default_factory=list)


class Run:
    """What the streams of one run share."""

    def __init__(self, settings: Settings, clock: Clock, logger: logging.Logger) -> None:
        """Start the run's clock; ``started`` is its instant, in UTC."""
        self.clock = clock
        self.started = clock.now()
        self.counts: dict[str, Counts] = defaultdict(Counts)
        self.status = "complete"
        self.events_left: int | None = None
        self.rows_without_key: dict[str, int] = defaultdict(int)
        self._began = clock.seconds()
        self._told = self._began
        self._minutes = settings.max_runtime_minutes
        self._pace = settings.requests_per_minute
        self._logger = logger
        self._said: set[str] = set()

    def is_over(self, share: float = 1.0) -> bool:
        """Tell whether a part of the time box, 0 to 1, is used up."""
        return (
            self._minutes is not None
            and self.clock.seconds() - self._began >= self._minutes * 60 * share
        )

    def check_time(self, share: float = 1.0) -> None:
        """Stop what history or events are left once the time box is used up.

        Args:
            share: Part of the time box that counts, 0 to 1.

        Raises:
            OutOfTime: If that part of ``max_runtime_minutes`` has passed.
        """
        if self.is_over(share):
            self.status = "incomplete"
            raise OutOfTime

    def warn_once(self, message: str, *args: object) -> None:
        """Log a warning the first time its message comes up in the run."""
        if message not in self._said:
            self._said.add(message)
            self._logger.warning(message, *args)

    def progress(self, message: str, *args: object) -> None:
        """Log a line every 30 seconds for ten minutes, then every 5 minutes."""
        now = self.clock.seconds()
        pause = OFTEN if now - self._began < OFTEN_FOR else SELDOM
        if now - self._told >= pause:
            self._told = now
            self._logger.info(message, *args)

    def minutes_for(self, requests: int) -> float:
        """Give the minutes that requests take at the set pace."""
        return requests / self._pace


def duration(minutes: float) -> str:
    """Say minutes the way a person does: ``5 h 4 min``, ``22 min``."""
    whole = max(1, round(minutes))
    hours, rest = divmod(whole, 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min"
