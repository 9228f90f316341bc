"""What is complete, what is asked for, what is due: plain data, no HTTP, no SDK."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Need:
    """The instants a run needs: from ``start`` up to, not including, ``end``."""

    start: datetime | None = None
    end: datetime | None = None


def parse_instant(text: str) -> datetime | None:
    """Read a date or date-time as an aware instant in UTC; None if it is neither."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
