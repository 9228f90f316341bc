"""An emulated Snowflake on loopback, for tests and the demo; nothing here is Snowflake.

`fakesnow` speaks the connector's HTTP protocol over DuckDB. What it does not know is
how target-snowflake loads: files put on the user's own stage (`@~`) and read back by
`merge` or `copy`. This module puts a layer before it that turns those statements into
ones it knows, and corrects two of its answers, so that the unmodified target works.

    python -m tests.pipeline.snowflake --database-dir DIR

keeps its databases in DIR, where a later start finds them again. It prints one JSON line
when it is ready, `{"ready": true, "port": N}`, and serves until it
gets SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gzip
import json
import logging
import re
import shutil
import socket
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa  # type: ignore[import-untyped] # it has no types
import uvicorn
from fakesnow.server import app as fakesnow_app
from fakesnow.server import shared_fs
from starlette.requests import Request
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = "127.0.0.1"
QUERY_PATH = "/queries/v1/query-request"

# target-snowflake 0.20.4 writes its statements in exactly these forms. One that names
# the user's stage and has none of them is refused, so that a change shows itself.
PUT = re.compile(r"put\s+'?file://(?P<file>.+?)'?\s+'@~/(?P<stage>[^']+)'\s*", re.DOTALL)
REMOVE = re.compile(r"remove\s+'@~/(?P<stage>[^']+?)/?'\s*", re.DOTALL)
MERGE = re.compile(
    r"merge into (?P<table>\S+) d using \(select (?P<casts>.+) from '@~/(?P<stage>[^']+)'"
    r"\(file_format => .+?\) QUALIFY (?P<qualify>.+)\) s on (?P<rest>.+)",
    re.DOTALL,
)
COPY = re.compile(
    r"copy into (?P<table>\S+) (?P<columns>\(.+?\)) from \(select (?P<casts>.+) from "
    r"'@~/(?P<stage>[^']+)'\)\s*file_format = .+",
    re.DOTALL,
)
DROP_FILE_FORMAT = re.compile(r"drop file format if exists .+", re.DOTALL)
# What dbt writes and fakesnow does not know: temporary tables and views in a schema, columns
# of an insert with the name of their table, and transactions, which dbt opens around each
# statement that changes rows.
DBT_TEMPORARY = re.compile(
    r"create or replace temporary (?P<kind>table|view)(?= \S+__dbt_tmp\b)", re.IGNORECASE
)
DBT_INSERT = re.compile(
    r"(?P<head>.*\bwhen not matched\b.*?\bvalues\s*\()(?P<values>[^()]*)(?P<tail>\).*)",
    re.IGNORECASE | re.DOTALL,
)
DBT_TRANSACTION = re.compile(
    r"\s*(begin|commit);?\s*/\* .*\"app\": \"dbt\".*\*/;?\s*", re.IGNORECASE
)
DONE = "select 'Statement executed successfully.' as \"status\""
# The temporary view of the rows that were uploaded.
STAGED = "temp.main.staged"
# The target adds up the fourth column of the answer to `copy`.
COPIED = f"""
    select 'staged' as "file", 'LOADED' as "status",
        count(*) as "rows_parsed", count(*) as "rows_loaded"
    from {STAGED}
"""  # noqa: S608 - only a name of our own


class NotEmulatedError(Exception):
    """A statement uses the user's stage in a way that is not emulated."""


class Upload(NamedTuple):
    """A PUT: the client is to copy `file` into the directory `stage`."""

    file: str
    stage: Path

    def answer(self) -> dict[str, Any]:
        """Return where to, in the words the connector expects of the server."""
        location = {"locationType": "LOCAL_FS", "location": f"{self.stage}/", "creds": {}}
        data = {
            "command": "UPLOAD",
            "src_locations": [self.file],
            "stageInfo": location,
            "autoCompress": True,
            "sourceCompression": "auto_detect",
            "overwrite": False,
            "parallel": 1,
        }
        return {"data": data, "success": True}


def rewrite(sql: str, stages: Path) -> Upload | list[str]:
    """Return the upload that the client is to make, or what fakesnow is to run instead.

    The client gets the answer to the last of the statements. `stages` is the directory that
    stands for the user's stage.

    Raises:
        NotEmulatedError: The statement uses the user's stage in an unknown form.
    """
    if match := PUT.fullmatch(sql):
        return Upload(match["file"], directory(stages, match["stage"]))
    if match := REMOVE.fullmatch(sql):
        shutil.rmtree(directory(stages, match["stage"]), ignore_errors=True)
        return [DONE]
    if DROP_FILE_FORMAT.fullmatch(sql):
        return [DONE]
    if match := MERGE.fullmatch(sql):
        files = directory(stages, match["stage"])
        return [
            use_schema_of(match["table"]),
            staged(match["casts"], files, match["qualify"]),
            f"merge into {match['table']} d using {STAGED} s on {match['rest']}",
        ]
    if match := COPY.fullmatch(sql):
        files = directory(stages, match["stage"])
        columns = match["columns"].strip("()")
        return [
            use_schema_of(match["table"]),
            staged(match["casts"], files),
            # What runs is what the target sent, in another form; there is nobody to guard
            # against on loopback, here and below.
            f"insert into {match['table']} ({columns}) select {columns} from {STAGED}",  # noqa: S608
            COPIED,
        ]
    if "'@~" in sql:
        msg = f"The emulated Snowflake does not know this statement: {sql[:200]}"
        raise NotEmulatedError(msg)
    return [rewrite_of_dbt(sql)]


def rewrite_of_dbt(sql: str) -> str:
    """Return a statement of dbt in a form that fakesnow runs; any other as it is."""
    if DBT_TRANSACTION.fullmatch(sql):
        return DONE
    if "DBT_INTERNAL_SOURCE" in sql and (match := DBT_INSERT.fullmatch(sql)):
        values = [f"DBT_INTERNAL_SOURCE.{one.strip()}" for one in match["values"].split(",")]
        return f"{match['head']}{', '.join(values)}{match['tail']}"
    return DBT_TEMPORARY.sub(r"create or replace \g<kind>", sql)


def use_schema_of(table: str) -> str:
    """Return what chooses a schema; fakesnow wants one even where names are qualified."""
    return f"use schema {table.rpartition('.')[0]}"


def staged(casts: str, files: Path, qualify: str | None = None) -> str:
    """Return what makes the temporary view `STAGED` of uploaded files, gzipped JSON lines.

    `casts` is the select list of the target, `$1:name::type as alias, …`; `qualify` says which
    of several rows of a key to keep, where that matters.
    """
    # SEQ8() numbers the rows in the order they were uploaded.
    columns = re.sub(r"\$1:", "json:", casts)
    pattern = str(files / "*").replace("'", "''")
    rows = (
        f"select {columns}, row_number() over () as staged_seq "  # noqa: S608 - as above
        f"from read_ndjson_objects('{pattern}')"
    )
    chosen = f" qualify {qualify.replace('SEQ8()', 'staged_seq')}" if qualify else ""
    chosen_rows = f"select * from ({rows}){chosen}"  # noqa: S608 - as above
    return f"create or replace temporary view {STAGED} as {chosen_rows}"


def directory(stages: Path, name: str) -> Path:
    """Return which directory holds a path of the user's stage; never one outside it."""
    path = (stages / name).resolve()
    if not path.is_relative_to(stages.resolve()):
        msg = f"{name} lies outside the stage"
        raise NotEmulatedError(msg)
    return path


def null_timestamps(rowset: str) -> str:
    """Make NULL timestamps NULL in Arrow IPC in base64; fakesnow sends structs of two NULLs."""
    if not rowset:
        return rowset
    with pa.ipc.open_stream(base64.b64decode(rowset)) as reader:
        table = reader.read_all()
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_struct(field.type) and field.type.get_field_index("epoch") == 0:
            struct = column.combine_chunks()
            parts = struct.flatten()
            columns.append(
                pa.StructArray.from_arrays(parts, fields=list(field.type), mask=parts[0].is_null())
            )
        else:
            columns.append(column)
    corrected = pa.Table.from_arrays(columns, schema=table.schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, corrected.schema) as writer:
        writer.write_table(corrected)
    return base64.b64encode(sink.getvalue()).decode()


class Emulator:
    """The layer before fakesnow's server, an ASGI application.

    `sql_log` is a file that gets each statement as one JSON line, `{"sql": …}`.
    """

    def __init__(self, app: ASGIApp, stages: Path, sql_log: Path | None = None) -> None:
        """Put the layer before `app`."""
        self.app = app
        self.stages = stages
        self.sql_log = sql_log
        # fakesnow notes each table and view by name, its own helpers too; two sessions that
        # make one of a name at once run into each other.
        self.one_at_a_time = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] != QUERY_PATH:
            await self.app(scope, receive, send)
            return
        request = json.loads(await read_body(scope, receive))
        answer = await self.answer(scope, request)
        await JSONResponse(answer)(scope, receive, send)

    async def answer(self, scope: Scope, request: dict[str, Any]) -> dict[str, Any]:
        """Run one statement of the client, as the statements it takes."""
        sql = request["sqlText"]
        if self.sql_log:
            with self.sql_log.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"sql": sql}) + "\n")
        try:
            statements = rewrite(sql, self.stages)
        except NotEmulatedError as error:
            return refusal(str(error))
        if isinstance(statements, Upload):
            statements.stage.mkdir(parents=True, exist_ok=True)
            return statements.answer()
        answer: dict[str, Any] = {}
        async with self.one_at_a_time:
            for statement in statements:
                answer = await self.ask(scope, request | {"sqlText": statement})
                if not answer["success"]:
                    break
        return answer

    async def ask(self, scope: Scope, request: dict[str, Any]) -> dict[str, Any]:
        """Have fakesnow run one statement."""
        body = json.dumps(request).encode()
        status = 0
        parts: list[bytes] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                parts.append(message.get("body", b""))

        headers = [
            header
            for header in scope["headers"]
            if header[0].lower() not in {b"content-encoding", b"content-length"}
        ]
        await self.app({**scope, "headers": headers}, receive, send)
        answer: dict[str, Any] = json.loads(b"".join(parts))
        if status >= 500:
            # The connector repeats a 500 for minutes; a refusal ends the run at once.
            return refusal(f"The emulated Snowflake cannot run this: {answer['message']}")
        if answer["success"] and "rowsetBase64" in answer["data"]:
            answer["data"]["rowsetBase64"] = null_timestamps(answer["data"]["rowsetBase64"])
        return answer


def refusal(message: str) -> dict[str, Any]:
    """Refuse a statement as Snowflake does, with an SQL compilation error."""
    return {
        "data": {"errorCode": "001003", "sqlState": "42000"},
        "code": "001003",
        "message": message,
        "success": False,
    }


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """Read the whole body of a request."""
    body = await Request(scope, receive).body()
    return gzip.decompress(body) if (b"content-encoding", b"gzip") in scope["headers"] else body


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.pipeline.snowflake",
        description="An emulated Snowflake on loopback. Any user and password will do.",
    )
    parser.add_argument("--database-dir", type=Path, required=True, help="where databases are kept")
    parser.add_argument("--sql-log", type=Path, help="a file that gets every statement, JSON lines")
    parser.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="also stop when standard input ends, as it does when the parent is gone",
    )
    options = parser.parse_args(arguments)
    options.database_dir.mkdir(parents=True, exist_ok=True)
    shared_fs.db_path = str(options.database_dir.resolve())
    logging.getLogger("fakesnow.server").setLevel(logging.CRITICAL)
    # What it makes of dbt's statements is not of interest; what it cannot run is an error.
    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    # fakesnow warns of its own use of DuckDB, on every query.
    warnings.filterwarnings("ignore", module="fakesnow")
    with (
        tempfile.TemporaryDirectory(prefix="stage-") as stages,
        # asyncio turns off the delay of small packets only where the protocol is named.
        socket.socket(proto=socket.IPPROTO_TCP) as listener,
    ):
        listener.bind((HOST, 0))
        listener.listen(128)
        app = Emulator(fakesnow_app, Path(stages), options.sql_log)
        uvicorn_server = uvicorn.Server(
            uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        )

        def stop_with_parent() -> None:
            sys.stdin.read()
            uvicorn_server.should_exit = True

        if options.until_stdin_closes:
            threading.Thread(target=stop_with_parent, daemon=True).start()
        ready = {"ready": True, "port": listener.getsockname()[1]}
        print(json.dumps(ready), flush=True)
        uvicorn_server.run(sockets=[listener])
        # Whatever is only in the write-ahead log goes into the database file.
        shared_fs.duck_conn.close()


if __name__ == "__main__":
    main()
