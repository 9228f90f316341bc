"""Run statements in the emulated Snowflake, through Snowflake's own connector.

    echo '["select count(*) from sessions"]' | python -m tests.pipeline.query PORT

prints the rows of each statement as JSON.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from decimal import Decimal

import snowflake.connector

from tests.pipeline.meltano import DATABASE, SCHEMA


def plain(value: object) -> object:
    """Say a value that JSON has no form for: times as ISO 8601, decimals as numbers."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    return str(value)


def main() -> None:
    """Read statements from standard input, print their rows."""
    with snowflake.connector.connect(
        user="emulated",
        password="emulated",  # noqa: S106 - the emulated Snowflake takes any
        account="fakesnow",
        host="127.0.0.1",
        port=int(sys.argv[1]),
        protocol="http",
        database=DATABASE,
        schema=SCHEMA,
        login_timeout=20,
        network_timeout=30,
    ) as connection:
        cursor = connection.cursor()
        rows = []
        for statement in json.load(sys.stdin):
            cursor.execute(statement)
            rows.append(cursor.fetchall())
    json.dump(rows, sys.stdout, default=plain)


if __name__ == "__main__":
    main()
