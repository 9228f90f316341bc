"""Asking Snowflake, the emulated or a real one, through its own connector in a child."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

from tests.pipeline.children import CHECKOUT, ChildError, answer_of, environment, pipe, stop
from tests.pipeline.meltano import DATABASE, NO_PLATFORM_DETECTION, SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def emulated_connection(port: int) -> dict[str, object]:
    """Say the arguments that take Snowflake's connector to the emulated Snowflake."""
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


class Connector:
    """A child that has Snowflake's connector, from the first question to leaving `with`.

    Its start takes a second, so that many questions are asked of one. Each has a
    connection of its own.

    Args:
        home: The directory that stands for the child's home directory.
    """

    def __init__(self, home: Path) -> None:
        """Start nothing yet."""
        self._home = home
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Be ready for questions."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the child."""
        if self._child:
            with self._child as child:
                stop(child)
            self._child = None

    def query(self, port: int, statements: Sequence[str]) -> list[list[list[Any]]]:
        """Ask the emulated Snowflake that listens on a port, see `ask`."""
        return self.ask(emulated_connection(port), statements)

    def ask(
        self, connection: Mapping[str, object], statements: Sequence[str], *, seconds: float = 60
    ) -> list[list[list[Any]]]:
        """Ask Snowflake.

        Args:
            connection: Arguments of the connector.
            statements: Statements to run, tables need no qualification.
            seconds: How long all of them may take.

        Returns:
            For each statement its rows, times as ISO 8601 strings.

        Raises:
            ChildError: A statement failed.
        """
        if not self._child:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.pipeline.query"],
                cwd=CHECKOUT,
                env=environment(self._home, NO_PLATFORM_DETECTION),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        question = {"connection": connection, "statements": statements}
        asked = pipe(self._child.stdin)
        asked.write(json.dumps(question) + "\n")
        asked.flush()
        answer = answer_of(self._child, seconds)
        if answer is None:
            self.__exit__()
            answer = {"error": f"no answer within {seconds:g} seconds"}
        if "error" in answer:
            msg = f"Snowflake could not be asked: {answer['error']}"
            raise ChildError(msg)
        rows: list[list[list[Any]]] = answer["rows"]
        return rows
