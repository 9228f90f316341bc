"""`meltano run` with the real Meltano and targets, from the sandbox to where it loads."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import TYPE_CHECKING

import pytest

from tests.pipeline.meltano import MeltanoProject
from tests.pipeline.warehouse import emulated

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import Receive, Scope, Send

    from tests.pipeline.connector import Connector

pytestmark = pytest.mark.pipeline

# What target-snowflake 0.20.4 sends, for the table of one test.
MERGE = """merge into ANALYTICS.BUGSPULSE.merged d using \
(select {casts} from '@~/target-snowflake/x'(file_format => f) \
QUALIFY ROW_NUMBER() OVER (PARTITION BY id ORDER BY SEQ8() DESC) = 1) s \
on d.id = s.id when matched then update set d.id = s.id when not matched then \
insert (id, started_at, data) values (s.id, s.started_at, s.data)"""


def test_meltano_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    """A setting that Meltano writes changes its own line of meltano.yml and no other."""
    meltano = MeltanoProject(tmp_path / "a project")
    file = meltano.directory / "meltano.yml"
    before = file.read_text()
    change = ("config", "set", "target-jsonl", "do_timestamp_file")
    assert meltano.call(*change, "true", settings={}) == 0
    lines = zip(before.splitlines(), file.read_text().splitlines(), strict=True)
    assert [pair for pair in lines if pair[0] != pair[1]] == [
        ("      do_timestamp_file: false", "      do_timestamp_file: true")
    ]
    assert meltano.call(*change, "false", settings={}) == 0
    assert file.read_text() == before


def test_the_emulator_merges_staged_rows(tmp_path: Path, connector: Connector) -> None:
    """`merge` adds the last of each key; NULL stays NULL, and the tables outlive the server."""
    rows = [
        {"id": "a", "startedAt": "2026-01-15T10:00:00.123Z", "data": {"n": 1}},
        {"id": "b", "startedAt": None, "data": None},
        {"id": "a", "startedAt": None, "data": {"n": 2}},
        {"id": "c", "startedAt": "2026-01-15T10:00:00.123Z", "data": {"n": 3}},
    ]
    file = tmp_path / "rows.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    casts = (
        "$1:id::VARCHAR as id, "
        '$1:"startedAt"::TIMESTAMP_NTZ as started_at, '
        "$1:data::VARIANT as data"
    )
    statements = [
        "create table merged (id VARCHAR, started_at TIMESTAMP_NTZ, data VARIANT)",
        f"put 'file://{file}' '@~/target-snowflake/x'",
        MERGE.format(casts=casts),
        "remove '@~/target-snowflake/x/'",
    ]
    with emulated(tmp_path, connector) as server:
        _, _, merged, _ = server.query(*statements)
    assert [sum(map(int, row)) for row in merged] == [3]
    question = "select id, started_at, data:n::int from merged order by 1"
    with emulated(tmp_path, connector) as again:
        (left,) = again.query(question)
    assert left == [["a", None, 2], ["b", None, None], ["c", "2026-01-15T10:00:00.123", 3]]


def test_the_emulator_runs_the_statements_of_one_session_at_a_time(tmp_path: Path) -> None:
    """The three statements that stand for a merge are not mixed with another's."""
    from tests.pipeline.snowflake import Emulator  # noqa: PLC0415 - it takes long to import

    came: list[int] = []

    async def fakesnow(scope: Scope, receive: Receive, send: Send) -> None:
        came.append(scope["session"])
        await receive()
        await asyncio.sleep(0)  # here another one would get its turn
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"success": true, "data": {}}'})

    async def both() -> None:
        emulator = Emulator(fakesnow, tmp_path)
        request = {"sqlText": MERGE.format(casts="$1:id::VARCHAR as id")}
        scopes: list[Scope] = [{"session": number, "headers": []} for number in (1, 2)]
        await asyncio.gather(*(emulator.answer(scope, request) for scope in scopes))

    asyncio.run(both())
    assert came == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    "sql",
    [
        "copy into t from '@~/somewhere' purge = true",
        "put 'file:///tmp/rows.gz' '@~/../../outside'",
        "select $1 from '@~/target-snowflake/x'",
    ],
)
def test_the_emulator_refuses_what_it_does_not_know(sql: str, tmp_path: Path) -> None:
    """A new form of staging statement is an error, not a load that seems to work."""
    from tests.pipeline.snowflake import NotEmulatedError, rewrite  # noqa: PLC0415 - same

    with pytest.raises(NotEmulatedError):
        rewrite(sql, tmp_path)
