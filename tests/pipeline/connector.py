"""Asking Snowflake, the emulated or a real one, through its own connector in a child."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.pipeline.children import Answering, ChildError
from tests.pipeline.meltano import DATABASE, NO_PLATFORM_DETECTION, SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def emulated_connection(port: int) -> dict[str, object]:
    """Return the arguments that take Snowflake's connector to the emulated Snowflake."""
    return {
        "user": "emulated",
        "password": "emulated",
        "account": "fakesnow",
        "host": "127.0.0.1",
        "port": port,
        "protocol": "http",
        "database": DATABASE,
        "schema": SCHEMA,
    }


class Connector(Answering):
    """A child that has Snowflake's connector; each question has a connection of its own."""

    def __init__(self, home: Path) -> None:
        """Start nothing yet; `home` stands for the child's home directory."""
        python = Path(sys.executable)
        super().__init__(python, "tests.pipeline.query", home=home, settings=NO_PLATFORM_DETECTION)

    def query(self, port: int, statements: Sequence[str]) -> list[list[list[Any]]]:
        """Ask the emulated Snowflake that listens on a port, see `ask`."""
        return self.ask(emulated_connection(port), statements)

    def ask(
        self, connection: Mapping[str, object], statements: Sequence[str], *, seconds: float = 60
    ) -> list[list[list[Any]]]:
        """Run statements in Snowflake and return the rows of each, times as ISO 8601 text.

        Args:
            connection: Arguments of the connector.
            statements: Statements to run, tables need no qualification.
            seconds: How long all of them may take.

        Raises:
            ChildError: A statement failed.
        """
        question = {"connection": connection, "statements": statements}
        answer = self.answer(question, seconds)
        if "error" in answer:
            msg = f"Snowflake could not be asked: {answer['error']}"
            raise ChildError(msg)
        rows: list[list[list[Any]]] = answer["rows"]
        return rows
