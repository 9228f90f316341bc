"""Write docs/tables.md from the schemas: ``python scripts/tables.py >docs/tables.md``."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

SCHEMAS = Path(__file__).resolve().parent.parent / "tap_bugspulse" / "schemas"
HEAD = """\
# Tables

One table to a stream. Columns have the API's own names here; Snowflake has `STARTED_AT` for
`startedAt`, Postgres keeps `"startedAt"`. Times are UTC, to the millisecond. Every column
but those of the key may be null.

With the setting `project`, each table has a column `project` as its first, also the first
of its primary key. Targets add columns of their own, `_sdc_extracted_at` and the like.

| Type here | Snowflake | Postgres | JSON |
|---|---|---|---|
| text | `VARCHAR` | `TEXT` | text |
| whole number | `NUMBER` | `BIGINT` | number |
| yes or no | `BOOLEAN` | `BOOLEAN` | true, false |
| instant | `TIMESTAMP_NTZ` | `TIMESTAMP` | text, `2026-01-15T10:00:00.000Z` |
| object | `VARIANT` | `JSONB` | object |

This page is made from the schemas by `python scripts/tables.py`.
"""
# What a schema does not say: keys, how rows come, what to mind.
KEYS = {"sessions": ("id",), "events": ("sessionId", "id"), "crashes": ("id",), "network": ("id",)}
ABOUT = {
    "sessions": """
        A row comes when the session is new, and again whenever it has changed within the
        lookback: it grew, ended, crashed. `status` is as the API has it: a session whose
        app never said that it ended stays `active` for ever. `startedAt` is a device's
        clock and may lie in the future.
    """,
    "events": """
        All events of a session come again when the session has changed. An `id` is only
        unique within its session. Which sessions' events are loaded says `events_for`.
    """,
    "crashes": """
        All rows come in every run, since triage moves no date. They carry no session id,
        so they cannot be joined to sessions. The counts are those of now: the
        [dbt package](../transform/README.md) keeps their history.
    """,
    "network": """
        A row comes once, since calls never change; now and then a day's rows come again,
        when one of them came late.
    """,
}
TYPES = {"string": "text", "integer": "whole number", "boolean": "yes or no", "object": "object"}


def column_type(column: dict[str, t.Any]) -> str:
    """Say a column's type in a word."""
    if column.get("format") == "date-time":
        return "instant"
    kinds = column["type"]
    return TYPES[kinds if isinstance(kinds, str) else kinds[0]]


def page() -> str:
    """Give the whole page."""
    lines = [HEAD]
    for stream, keys in KEYS.items():
        schema = json.loads((SCHEMAS / f"{stream}.json").read_text("utf-8"))
        lines += [f"## {stream}", "", f"A row is {lower(schema['title'])}.", ""]
        lines += [f"Primary key: {', '.join(f'`{key}`' for key in keys)}.", ""]
        lines += [*wrapped(ABOUT[stream]), "", "| Column | Type | What it is |", "|---|---|---|"]
        lines += [
            f"| `{name}` | {column_type(column)} | {column['description']} |"
            for name, column in schema["properties"].items()
        ]
        lines.append("")
    return "\n".join(lines)


def lower(title: str) -> str:
    """Have a title begin in the middle of a sentence."""
    return title[0].lower() + title[1:]


def wrapped(text: str, width: int = 92) -> list[str]:
    """Break a text into lines."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 - for a file
