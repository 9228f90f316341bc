"""Write docs/tables.md from the schemas: ``python scripts/tables.py >docs/tables.md``."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

SCHEMAS = Path(__file__).resolve().parent.parent / "tap_bugspulse" / "schemas"
HEAD = """\
# Tables

What each row and column means. Columns have the API's own names here: Snowflake has `STARTED_AT`
for `startedAt`, Postgres keeps `"startedAt"`. Times are UTC, to the millisecond. Every column
except the key may be null. With the setting `project`, each table begins with a column `project`,
also first in its primary key. Targets add columns of their own, such as `_sdc_extracted_at`.

| Type here | Snowflake | Postgres | JSON |
|---|---|---|---|
| text | `VARCHAR` | `TEXT` | text |
| whole number | `NUMBER` | `BIGINT` | number |
| yes or no | `BOOLEAN` | `BOOLEAN` | true, false |
| instant | `TIMESTAMP_NTZ` | `TIMESTAMP` | text, `2026-01-15T10:00:00.000Z` |
| object | `VARIANT` | `JSONB` | object |

`python scripts/tables.py` writes this page from the schemas.
"""
# What a schema does not say: keys, how rows come, what to mind.
KEYS = {"sessions": ("id",), "events": ("sessionId", "id"), "crashes": ("id",), "network": ("id",)}
ABOUT = {
    "sessions": """
        A row comes when the session is new, and again whenever it has changed within the
        lookback. `status` is what the API says: a session whose app never reported its end stays
        `active`. `startedAt` is the device's clock and may lie in the future.
    """,
    "events": """
        All events of a session come again when the session has changed. An `id` is unique only
        within its session. `events_for` selects the sessions whose events are loaded.
    """,
    "crashes": """
        All rows come in every run, because triage changes no date. They carry no session id, so
        you cannot join them to sessions: use `hasCrash` and the events of the session. The counts
        are current totals; the [dbt package](../transform/README.md) keeps their history.
    """,
    "network": """
        A row comes once, because calls never change. If a call of a day arrives late, other calls
        of that day may come again.
    """,
}
TYPES = {"string": "text", "integer": "whole number", "boolean": "yes or no", "object": "object"}


def column_type(column: dict[str, t.Any]) -> str:
    """Return a column's type in a word or two."""
    if column.get("format") == "date-time":
        return "instant"
    kinds = column["type"]
    return TYPES[kinds if isinstance(kinds, str) else kinds[0]]


def page() -> str:
    """Return the whole page."""
    lines = [HEAD]
    for stream, keys in KEYS.items():
        schema = json.loads((SCHEMAS / f"{stream}.json").read_text("utf-8"))
        key = ", ".join(f"`{key}`" for key in keys)
        about = f"A row is {lower(schema['title'])}. Primary key: {key}. {ABOUT[stream]}"
        lines += [f"## {stream}", "", *wrapped(about), ""]
        lines += ["| Column | Type | What it is |", "|---|---|---|"]
        lines += [
            f"| `{name}` | {column_type(column)} | {column['description']} |"
            for name, column in schema["properties"].items()
        ]
        lines.append("")
    return "\n".join(lines)


def lower(title: str) -> str:
    """Return a title as the middle of a sentence has it."""
    return title[0].lower() + title[1:]


def wrapped(text: str, width: int = 98) -> list[str]:
    """Break a text into lines."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 - for a file
