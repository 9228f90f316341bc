"""Asking Snowflake, the emulated or a real one, through its own connector in a child."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.pipeline.children import Answering, ChildError
from tests.pipeline.meltano import NO_PLATFORM_DETECTION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Connector(Answering):
    """A child that has Snowflake's connector; each question has a connection of its own."""

    def __init__(self, home: Path) -> None:
        """Start nothing yet; `home` stands for the child's home directory."""
        python = Path(sys.executable)
        super().__init__(python, "tests.pipeline.query", home=home, settings=NO_PLATFORM_DETECTION)

    def ask(
        self, connection: Mapping[str, object], statements: Sequence[str]
    ) -> list[list[list[Any]]]:
        """Run statements in Snowflake and return the rows of each, times as ISO 8601 text.

        `connection` has the arguments of the connector; tables need no qualification.

        Raises:
            ChildError: A statement failed, or all of them took longer than a minute.
        """
        question = {"connection": connection, "statements": statements}
        answer = self.answer(question, seconds=60)
        if "error" in answer:
            msg = f"Snowflake could not be asked: {answer['error']}"
            raise ChildError(msg)
        rows: list[list[list[Any]]] = answer["rows"]
        return rows
