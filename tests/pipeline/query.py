"""Run statements in Snowflake, through its own connector.

    echo '{"connection": {…}, "statements": ["select 1"]}' | python -m tests.pipeline.query

connects with these arguments of the connector, prints the rows of each statement as JSON.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from decimal import Decimal

import snowflake.connector


def plain(value: object) -> object:
    """Say a value that JSON has no form for: times as ISO 8601, decimals as numbers."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    return str(value)


def main() -> None:
    """Read statements from standard input, print their rows."""
    asked = json.load(sys.stdin)
    with snowflake.connector.connect(
        login_timeout=20, network_timeout=30, **asked["connection"]
    ) as connection:
        cursor = connection.cursor()
        rows = []
        for statement in asked["statements"]:
            cursor.execute(statement)
            rows.append(cursor.fetchall())
    json.dump(rows, sys.stdout, default=plain)


if __name__ == "__main__":
    main()
