"""What the demo asks of the loaded tables: plain SQL, with the columns the target makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Question(NamedTuple):
    """A question to the loaded tables, in Snowflake's dialect, and the headings of its answer."""

    title: str
    headings: tuple[str, ...]
    sql: str


ROWS = Question(
    "Rows per table",
    ("table", "rows"),
    """
    select 'sessions', count(*) from sessions
    union all select 'crashes', count(*) from crashes
    union all select 'events', count(*) from events
    union all select 'network', count(*) from network
    """,
)
CRASH_FREE = Question(
    "Crash-free sessions by app version",
    ("version", "sessions", "crashed", "crash-free %"),
    """
    select app_version, count(*), count_if(has_crash),
        round(100.0 * count_if(not has_crash) / count(*), 2)
    from sessions
    group by app_version
    order by app_version
    """,
)
SLOWEST = Question(
    "Slowest endpoints",
    ("method", "endpoint", "calls", "failed", "median ms", "slowest ms"),
    """
    select method, regexp_replace(split_part(url, '?', 1), '/[0-9]+', '/:id') as endpoint,
        count(*), count_if(error is not null or status_code >= 400),
        round(median(duration))::int as typical, max(duration)
    from network
    group by method, endpoint
    having count(*) >= 5
    order by typical desc, method, endpoint
    limit 5
    """,
)
TOP_CRASHES = Question(
    "Top crashes",
    ("message", "platform", "version", "status", "times", "devices"),
    """
    select message, platform, app_version, status, occurrence_count, affected_devices
    from crashes
    order by affected_devices desc, occurrence_count desc, id
    limit 5
    """,
)
JOURNEY = Question(
    "One user's journey: the last session of a known user that crashed",
    ("user", "at (UTC)", "event", "what"),
    """
    with crashed as (
        select id, user_id
        from sessions
        where has_crash and user_id is not null
        order by started_at desc, id
        limit 1
    )
    select crashed.user_id, events.timestamp, events.type,
        coalesce(
            events.data:to::string, events.data:target::string,
            events.data:name::string, events.data:message::string
        )
    from events
    join crashed on events.session_id = crashed.id
    order by events.sequence_number desc
    limit 12
    """,
)
QUESTIONS = (ROWS, CRASH_FREE, SLOWEST, TOP_CRASHES, JOURNEY)


def show(question: Question, rows: list[list[Any]]) -> str:
    """Set an answer as a table of text, numbers to the right."""
    # Of a journey the last events were asked for; people read forwards.
    ordered = list(reversed(rows)) if question is JOURNEY else rows
    lines = table(question.headings, ordered)
    return "\n".join([question.title, *("  " + line for line in lines)])


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Set headings and rows in columns of text, numbers to the right."""
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    lines = [list(headings), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [
        bool(rows) and all(isinstance(row[number], int | float | None) for row in rows)
        for number in range(len(widths))
    ]
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]
