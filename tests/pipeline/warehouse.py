"""A schema in Snowflake, the emulated or a real one, and reading its tables back."""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.pipeline.children import serving
from tests.pipeline.meltano import NO_PLATFORM_DETECTION
from tests.running import PRIMARY_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.pipeline.connector import Connector
    from tests.pipeline.truth import Rows

DATABASE, SCHEMA = "ANALYTICS", "BUGSPULSE"
"""Where the tables are, in the emulated Snowflake; the schema comes from meltano.yml."""
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}")
OBJECTS = {"events.data", *(f"{stream}._extra" for stream in PRIMARY_KEYS)}
TIMES = {
    *("sessions.startedAt", "sessions.endedAt", "crashes.firstSeenAt", "crashes.lastSeenAt"),
    *("events.timestamp", "network.timestamp"),
}
"""The columns that are neither texts nor numbers nor truth values."""


class Snowflake(NamedTuple):
    """A schema in Snowflake, the emulated or a real one.

    Attributes:
        schema: Its name.
        settings: The settings of target-snowflake, as environment variables.
        connection: The arguments of Snowflake's connector.
        connector: The connector.
        sql_log: Where the emulated one writes down all statements.
    """

    schema: str
    settings: dict[str, str]
    connection: dict[str, object]
    connector: Connector
    sql_log: Path

    def query(self, *statements: str) -> list[list[list[Any]]]:
        """Run statements and return the rows of each."""
        return self.connector.ask(self.connection, statements)

    def sent(self) -> list[str]:
        """Return the statements since this was last called; none of a real account."""
        if not self.sql_log.exists():
            return []
        lines = self.sql_log.read_text("utf-8").splitlines()
        self.sql_log.unlink()
        return [json.loads(line)["sql"] for line in lines]

    def rows(self, like: Rows) -> Rows:
        """Read tables back, in the API's names and forms; `like` has rows with all fields."""
        fields = {stream: list(some[0]) for stream, some in like.items()}
        answers = self.query(
            *(
                f"select {', '.join(map(column, names))} from {stream}"  # noqa: S608 - own names
                for stream, names in fields.items()
            )
        )
        return {
            stream: [
                {name: plain(name, value) for name, value in zip(names, row, strict=True)}
                for row in answer
            ]
            for (stream, names), answer in zip(fields.items(), answers, strict=True)
        }

    def types(self) -> dict[str, str]:
        """Return the type of each column of the API's, by table and column."""
        of_schema = f"information_schema.columns where table_schema = '{self.schema}'"
        (columns,) = self.query(
            f"select table_name || '.' || column_name, data_type from {of_schema}"  # noqa: S608 - as above
        )
        return {name: kind for name, kind in columns if "._SDC_" not in name}


def column(field: str) -> str:
    """Return the column that target-snowflake makes of a field with `normalise_casing`."""
    return re.sub(r"([A-Z])", r"_\1", field).upper()


def plain(name: str, value: object) -> object:
    """Return a value of Snowflake as the API has it."""
    if name in {"data", "_extra"} and isinstance(value, str):
        return json.loads(value)
    if isinstance(value, str) and INSTANT.fullmatch(value):
        return value + "Z"
    return value


@contextlib.contextmanager
def emulated(directory: Path, connector: Connector) -> Iterator[Snowflake]:
    """Serve an emulated Snowflake that keeps its files in a directory.

    Nothing but its port goes into the settings, so that they never name a real account.
    """
    sql_log, home = directory / "statements.jsonl", directory / "home"
    kept = ("--database-dir", str(directory / "databases"), "--sql-log", str(sql_log))
    with serving("tests.pipeline.snowflake", *kept, home=home) as server:
        user = {"user": "emulated", "password": "emulated", "database": DATABASE}
        place = {"host": "127.0.0.1", "port": server["port"], "protocol": "http"}
        connection = user | place | {"account": "fakesnow", "schema": SCHEMA}
        # snowflake-sqlalchemy builds `snowflake://user:password@ACCOUNT/DATABASE?…` from it,
        # so an account that is a host, a database and parameters reaches any server; with
        # the legacy setting its parameters are heard.
        parameters = "protocol=http&account=fakesnow&passcode="
        settings = {f"TARGET_SNOWFLAKE_{name.upper()}": text for name, text in user.items()} | {
            "TARGET_SNOWFLAKE_ACCOUNT": f"127.0.0.1:{server['port']}/{DATABASE}?{parameters}",
            "SNOWFLAKE_SQLALCHEMY_LEGACY_URL_PARAMS": "1",
        }
        yield Snowflake(SCHEMA, settings | NO_PLATFORM_DETECTION, connection, connector, sql_log)


@contextlib.contextmanager
def emptied(snowflake: Snowflake) -> Iterator[Snowflake]:
    """Lend an emulated Snowflake that has nothing in it, and clear it afterwards."""
    snowflake.sent()
    try:
        yield snowflake
    finally:
        snowflake.query(f"drop schema if exists {snowflake.schema} cascade")
