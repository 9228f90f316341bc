"""The questions of transform/README.md: what is printed there is the answer."""

from __future__ import annotations

import copy
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.documents import text
from tests.pipeline.marts import crashes_daily, marts, stored
from tests.pipeline.report import table
from tests.pipeline.transform import readable
from tests.pipeline.truth import held
from tests.sandbox import generate

if TYPE_CHECKING:
    from pathlib import Path

    from duckdb import DuckDBPyConnection

pytestmark = pytest.mark.sources

DOCUMENT = "transform/README.md"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
QUESTION = re.compile(
    r"(?P<head><!-- output: (?:all|first (?P<count>\d+)) rows -->\n"
    r"```sql\n-- tables\n(?P<sql>.*?)```\n\n```text\n).*?```\n",
    re.DOTALL,
)


@pytest.fixture
def connection(tmp_path: Path) -> DuckDBPyConnection:
    """The tables of a project of a month that has had two loads."""
    project = generate(seed=1, sessions=450, days=30, until=NOW)
    first = copy.deepcopy(held(project))
    recent = sorted(
        (row["startedAt"], row["id"])
        for row in project.sessions.values()
        if row["startedAt"] < "2026-03-01"
    )
    for _, session in recent[-6:-3]:
        project.crash(session)
    second = held(project)
    history = crashes_daily([first, second])
    for row in history:
        row["day"] = (NOW + timedelta(days=row["day"])).date().isoformat()
    return stored(marts(second) | {"crashes_daily": history}, tmp_path)


def test_what_is_printed_is_the_answer(connection: DuckDBPyConnection) -> None:
    """Each question has an answer, which stands below it, all of it or its first rows."""
    page = text(DOCUMENT)

    def answered(match: re.Match[str]) -> str:
        found = connection.execute(match["sql"])
        headings = [str(column[0]) for column in found.description]
        rows = readable(found.fetchall())
        assert rows, match["sql"]
        shown = rows[: int(match["count"] or len(rows))]
        return match["head"] + "\n".join(table(headings, shown)) + "\n```\n"

    assert page == QUESTION.sub(answered, page)
    assert len(QUESTION.findall(page)) == page.count("-- tables\n") > 5
