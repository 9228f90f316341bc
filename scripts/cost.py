"""Count the requests of a first load and of hourly runs, by sessions a day.

    python scripts/cost.py

runs the tap against the sandbox of the tests and prints the tables of docs/cost.md. It
takes a few minutes. A project is scaled down by as much as the page: what matters to the
listings is how many pages there are, and 30 days of 10,000 sessions at 1,000 rows a page
are as many as 30 days of 100 at 10.
"""

from __future__ import annotations

import sys
import typing as t
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.running import counted, select, sync
from tests.sandbox import Options, Sandbox, generate

if t.TYPE_CHECKING:
    from tests.sandbox import Project

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAYS = 30
CALLS = 1.5  # network calls to a session
LISTINGS = ("sessions", "network", "crashes")
# Sessions a day, and how many rows of a real project each of the scaled one stands for.
SIZES = {100: 1, 1_000: 10, 10_000: 100, 86_400: 1_000}
FEW = (10_000,)  # what a test has time to measure

# What the tables take for granted, beside the pace.
PER_MINUTE = 60
SHARES = {"all": 1.0, "errors": 0.1, "crashed": 0.02}
# Times that a new session's events are asked for: once more where it is in progress when
# an hourly run meets it, which one of three minutes is in 3 of 60 minutes.
AGAIN = 1 + 3 / 60
BUSY, IDLE = 30, 60  # seconds of merging in a run, and of AUTO_SUSPEND after it


class Counted(t.NamedTuple):
    """Requests of the listings of a first load of 30 days and of the run an hour later."""

    first: int
    hourly: int


def measure(sessions_a_day: int) -> Counted:
    """Run the tap twice against a scaled project, an hour apart, without events."""
    scale = SIZES[sessions_a_day]
    project = generate(
        seed=41,
        sessions=round(sessions_a_day / scale * DAYS),
        days=DAYS,
        until=NOW,
        events_per_session=1,
        network_per_session=CALLS,
        crash_groups=max(1, 50 // scale),
        lying_clocks=False,
    )
    held_back = take_last_hour(project)
    page = 1000 // scale
    catalog = select(NOW, *LISTINGS)
    with Sandbox(project, Options(requests_per_minute=None)) as sandbox:
        an_hour_ago = NOW - timedelta(hours=1)
        first = sync(sandbox, an_hour_ago, catalog=catalog, page_size=page)
        asked = counted(sandbox).total()
        sandbox.reset()
        for table, rows in held_back.items():
            getattr(project, table).update(rows)
        project.changed()
        sync(sandbox, NOW, first.state, catalog=catalog, page_size=page)
        return Counted(asked, counted(sandbox).total())


def take_last_hour(project: Project) -> dict[str, dict[str, t.Any]]:
    """Take out of a project what began in the hour before now."""
    edge = (NOW - timedelta(hours=1)).isoformat()
    taken: dict[str, dict[str, t.Any]] = {"sessions": {}, "network": {}}
    for table, instant in (("sessions", "startedAt"), ("network", "timestamp")):
        rows = getattr(project, table)
        for key in [key for key, row in rows.items() if row[instant] >= edge]:
            taken[table][key] = rows.pop(key)
    project.changed()
    return taken


# --- Tables -----------------------------------------------------------------------------


def events(sessions: float, events_for: str) -> float:
    """Return the events requests of so many sessions, each asked for once."""
    return sessions * SHARES[events_for]


def first_load(sessions_a_day: int, listings: int, events_for: str) -> float:
    """Return the minutes of a first load of 30 days."""
    return (listings + events(sessions_a_day * DAYS, events_for)) / PER_MINUTE


def hourly_run(sessions_a_day: int, listings: int, events_for: str) -> float:
    """Return the minutes of an hourly run."""
    new = events(sessions_a_day / 24, events_for) * AGAIN
    return (listings + new) / PER_MINUTE


def say(minutes: float) -> str:
    """Say minutes with two digits that count, in the unit a person would use."""
    if minutes < 1:
        return "under 1 min"
    for size, unit in ((1440.0, "days"), (60.0, "h"), (1.0, "min")):
        if minutes >= 2 * size or size == 1:
            value = minutes / size
            return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"  # noqa: PLR2004 - two digits
    raise AssertionError


def measured_table(found: t.Mapping[int, Counted]) -> list[list[str]]:
    """Return the cells of the measured numbers."""
    return [
        [f"{size:,}", f"{counts.first:,}", f"{counts.hourly:,}"] for size, counts in found.items()
    ]


def time_table(found: t.Mapping[int, Counted], *, hourly: bool) -> list[list[str]]:
    """Return the cells of minutes by size and by ``events_for``."""
    return [
        [
            f"{size:,}",
            *(
                say(
                    hourly_run(size, counts.hourly, events_for)
                    if hourly
                    else first_load(size, counts.first, events_for)
                )
                for events_for in SHARES
            ),
        ]
        for size, counts in found.items()
    ]


def ceiling_table(found: t.Mapping[int, Counted]) -> list[list[str]]:
    """Return the cells of the most sessions a day, by ``events_for`` and runs a day."""
    (few, a), (many, b) = list(found.items())[-2:]
    listed = (b.hourly - a.hourly) / (many - few)  # requests of a run to a session a day
    a_day = PER_MINUTE * 1440
    return [
        [
            f"`{events_for}`",
            *(f"{round(a_day / (share * AGAIN + runs * listed), -3):,.0f}" for runs in (24, 4, 1)),
        ]
        for events_for, share in SHARES.items()
    ]


def snowflake_table() -> list[list[str]]:
    """Return the cells of what waking an XS warehouse costs, at 1 credit an hour."""
    rows = []
    for name, runs in (("5 minutes", 288), ("15 minutes", 96), ("hour", 24), ("6 hours", 4)):
        awake = runs * (BUSY + IDLE)
        credits_ = awake / 3600
        rows.append([name, f"{runs}", f"{awake:,} s", f"{credits_:.1f}", f"{30 * credits_:.0f}"])
    return rows


def main() -> None:
    """Measure all sizes and print the tables."""
    found = {size: measure(size) for size in SIZES}
    for cells in (
        measured_table(found),
        time_table(found, hourly=False),
        time_table(found, hourly=True),
        ceiling_table(found),
        snowflake_table(),
    ):
        for row in cells:
            print("|", " | ".join(row), "|")  # noqa: T201 - for people
        print()  # noqa: T201 - likewise


if __name__ == "__main__":
    main()
