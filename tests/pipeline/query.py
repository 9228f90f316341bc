"""Run statements in Snowflake, through its own connector.

    echo '{"connection": {…}, "statements": ["select 1"]}' | python -m tests.pipeline.query

connects with these arguments of the connector and prints `{"rows": …}`, the rows of each
statement, or `{"error": …}`; so for each line until standard input closes.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from decimal import Decimal
from typing import Any

import snowflake.connector


def plain(value: object) -> object:
    """Return what JSON has no form for in another one: times as ISO 8601, decimals as numbers."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    return str(value)


def rows(asked: dict[str, Any]) -> list[Any]:
    """Run statements and return the rows of each.

    Raises:
        snowflake.connector.Error: A statement failed, or there is no connection.
    """
    with snowflake.connector.connect(
        login_timeout=20, network_timeout=30, **asked["connection"]
    ) as connection:
        cursor = connection.cursor()
        answers = []
        for statement in asked["statements"]:
            cursor.execute(statement)
            answers.append(cursor.fetchall())
        return answers


def main() -> None:
    """Answer each line of standard input."""
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"rows": rows(json.loads(line))}
        except snowflake.connector.Error as error:
            answer = {"error": str(error)[-1000:]}
        print(json.dumps(answer, default=plain), flush=True)


if __name__ == "__main__":
    main()
