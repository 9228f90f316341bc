"""The dbt package in `transform/`, built on DuckDB, a real PostgreSQL and the emulated Snowflake.

One run of the tap is loaded into each of them by the targets of the checkout, with the
settings that `meltano.yml` gives them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import duckdb
import psycopg
import yaml  # type: ignore[import-untyped] # it has no types

from tests.pipeline.children import CHECKOUT, Answering, environment
from tests.pipeline.meltano import NO_PLATFORM_DETECTION, NotSetUpError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from tests.pipeline.marts import Row
    from tests.pipeline.warehouse import Snowflake as Account
    from tests.running import Output

TRANSFORM = CHECKOUT / "transform"
PREFIX = "bugspulse__"
"""What the names of the package's tables begin with."""
SCHEMA = "marts"
"""Where the tests have dbt put them."""
SECONDS = 120
DBT_ENVIRONMENT = {
    "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    "DO_NOT_TRACK": "1",
} | NO_PLATFORM_DETECTION


class Dbt(Answering):
    """A child that runs commands of dbt, from the first of them to leaving `with`.

    Args:
        folder: Where its profile, its logs and what it compiles go.

    Raises:
        NotSetUpError: dbt is not installed in the checkout.
    """

    def __init__(self, folder: Path) -> None:
        """Start nothing yet."""
        python = CHECKOUT / ".venv-dbt" / "bin" / "python"
        if not python.exists():
            msg = f"dbt is not set up, {python} is missing: run `sh scripts/setup.sh dbt`"
            raise NotSetUpError(msg)
        home = folder / "home"
        super().__init__(python, "tests.pipeline.builder", home=home, settings=DBT_ENVIRONMENT)
        self._folder = folder
        self._outputs: dict[str, dict[str, object]] = {}

    def add(self, name: str, output: dict[str, object]) -> None:
        """Make a database known by a name."""
        self._outputs[name] = output
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write_profile(self._folder, name)

    def run(
        self,
        target: str,
        *arguments: str,
        variables: Mapping[str, object],
        project: Path = TRANSFORM,
    ) -> dict[str, Any]:
        """Run one command of dbt on a database.

        Return whether it succeeded, the status of each node, and what there is to say of
        those that failed or warn.
        """
        command = [
            *("--log-path", self._folder / "logs", "--log-level", "none", *arguments),
            *("--project-dir", project, "--profiles-dir", self._folder, "--target", target),
            *("--vars", json.dumps(variables)),
        ]
        if arguments[0] != "deps":
            command += ["--target-path", self._folder / f"target-{target}"]
        return self.answer([str(part) for part in command], SECONDS)

    def query(self, target: str, *queries: Sequence[str]) -> Any:
        """Have MetricFlow answer queries in a database that `run` has built.

        `queries` are the options of `mf query` for each. Return the rows of each, as text.
        """
        folder = self._folder / f"metrics-{target}"
        if not folder.exists():
            folder.mkdir()
            shutil.copy(TRANSFORM / "dbt_project.yml", folder)
            (folder / "target").symlink_to(self._folder / f"target-{target}")
        # The only way to name the database.
        self._write_profile(folder, target)
        return self.answer({"folder": str(folder), "queries": queries}, SECONDS)["rows"]

    def _write_profile(self, folder: Path, target: str) -> None:
        profile = {"bugspulse": {"target": target, "outputs": self._outputs}}
        (folder / "profiles.yml").write_text(yaml.safe_dump(profile), "utf-8")


@cache
def loaders() -> dict[str, dict[str, object]]:
    """Return the settings that meltano.yml gives to each target."""
    text = (CHECKOUT / "meltano.yml").read_text("utf-8")
    found: list[dict[str, Any]] = yaml.safe_load(text)["plugins"]["loaders"]
    return {loader["name"]: loader.get("config", {}) for loader in found}


def load(
    target: str,
    output: Output,
    folder: Path,
    settings: Mapping[str, object],
    variables: Mapping[str, str] | None = None,
) -> None:
    """Have a target of the checkout load what a run of the tap wrote.

    Its settings are those of meltano.yml and some on top; `folder` is its working directory,
    and `variables` are what its environment has besides.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{target}.json"
    config.write_text(json.dumps(loaders()[target] | dict(settings)), "utf-8")
    program = CHECKOUT / ".meltano" / "loaders" / target / "venv" / "bin" / target
    done = subprocess.run(
        [program, "--config", config],
        cwd=folder,
        env=environment(folder / "home", variables),
        input="".join(json.dumps(message) + "\n" for message in output.messages),
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


class Warehouse(Protocol):
    """A database that the tap's rows are loaded into, and that dbt builds tables in."""

    name: str

    def output(self) -> dict[str, object]:
        """Return what dbt's profile says of it."""

    def load(self, output: Output) -> None:
        """Load what a run of the tap wrote."""

    def query(self, *statements: str) -> list[list[list[Any]]]:
        """Run statements and return the rows of each, values as `readable` has them."""


class DuckDb:
    """DuckDB over the files that target-jsonl writes."""

    name = "duckdb"

    def __init__(self, folder: Path) -> None:
        """Keep the files and the database in a folder."""
        self.folder = folder
        self.path = folder / "bugspulse.duckdb"

    def output(self) -> dict[str, object]:
        """Return what dbt's profile says of it."""
        return {"type": "duckdb", "path": str(self.path), "schema": SCHEMA, "threads": 1}

    def load(self, output: Output) -> None:
        """Add the rows to the files."""
        (self.folder / "output").mkdir(parents=True, exist_ok=True)
        load("target-jsonl", output, self.folder, {})

    def query(self, *statements: str) -> list[list[list[Any]]]:
        """Run statements and return the rows of each."""
        with duckdb.connect(self.path) as connection:
            return [readable(connection.execute(one).fetchall()) for one in statements]


class Postgres:
    """A real PostgreSQL, reached by its socket."""

    name = "postgres"

    def __init__(self, dsn: str, folder: Path) -> None:
        """Take a server."""
        self.dsn = dsn
        self.settings: dict[str, object] = {}
        self._folder = folder

    def output(self) -> dict[str, object]:
        """Return what dbt's profile says of it."""
        info = psycopg.conninfo.conninfo_to_dict(self.dsn)
        return {
            "type": "postgres",
            "host": info["host"],
            "port": int(info.get("port") or 5432),
            "user": info["user"],
            "password": info.get("password") or "",
            "dbname": info["dbname"],
            "schema": SCHEMA,
            "threads": 2,
        }

    def load(self, output: Output) -> None:
        """Merge the rows."""
        url = self.dsn.replace("postgresql://", "postgresql+psycopg://", 1)
        settings = {"sqlalchemy_url": url, "default_target_schema": "bugspulse"}
        load("target-postgres", output, self._folder, settings | self.settings)

    def query(self, *statements: str) -> list[list[list[Any]]]:
        """Run statements and return the rows of each."""
        answers = []
        # A person's session may be in any time zone; days are UTC all the same.
        zone = "-c timezone=Pacific/Kiritimati"
        with psycopg.connect(self.dsn, autocommit=True, options=zone) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
                answers.append(readable(cursor.fetchall()) if cursor.description else [])
        return answers


class Snowflake:
    """The emulated Snowflake."""

    name = "snowflake"

    def __init__(self, account: Account, folder: Path) -> None:
        """Take a server."""
        self._account = account
        self._folder = folder

    def output(self) -> dict[str, object]:
        """Return what dbt's profile says of it."""
        own = {"type": "snowflake", "schema": SCHEMA, "threads": 2, "warehouse": "emulated"}
        return self._account.connection | own

    def load(self, output: Output) -> None:
        """Merge the rows."""
        prefix, others = "TARGET_SNOWFLAKE_", dict(self._account.settings)
        own = [name for name in others if name.startswith(prefix)]
        settings = {name.removeprefix(prefix).lower(): others.pop(name) for name in own}
        load("target-snowflake", output, self._folder, settings, others)

    def query(self, *statements: str) -> list[list[list[Any]]]:
        """Run statements and return the rows of each."""
        return self._account.query(*statements)


def readable(rows: Iterable[Iterable[object]]) -> list[list[Any]]:
    """Return rows with instants and days as text, and any number as Python compares it."""
    result = []
    for row in rows:
        values: list[Any] = list(row)
        for number, value in enumerate(values):
            if isinstance(value, datetime):
                values[number] = value.isoformat(timespec="milliseconds")
            elif isinstance(value, date):
                values[number] = value.isoformat()
            elif isinstance(value, Decimal):
                values[number] = float(value)
        result.append(values)
    return result


@cache
def documented() -> dict[str, dict[str, Any]]:
    """Return what the package says of each of its tables, by its short name."""
    text = (TRANSFORM / "models" / "marts" / "marts.yml").read_text("utf-8")
    return {
        model["name"].removeprefix(PREFIX): {
            "columns": [column["name"] for column in model["columns"]],
            "key": model["data_tests"][0]["is_unique_together"]["arguments"]["columns"],
        }
        for model in yaml.safe_load(text)["models"]
    }


def tables(warehouse: Warehouse, names: Sequence[str]) -> dict[str, dict[tuple[Any, ...], Row]]:
    """Read tables of the package, each by its key, which tests have found unique.

    When a row was loaded differs between databases, so that is left out.
    """
    columns = {
        name: [column for column in documented()[name]["columns"] if column != "loaded_at"]
        for name in names
    }
    answers = warehouse.query(
        *(
            f"select {', '.join(columns[name])} from {SCHEMA}.{PREFIX}{name}"  # noqa: S608 - own names
            for name in names
        )
    )
    return {
        name: by_key(name, (dict(zip(columns[name], row, strict=True)) for row in answer))
        for name, answer in zip(names, answers, strict=True)
    }


def by_key(name: str, rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    """Return the rows of a table by its key, having checked that each is there once."""
    all_rows = list(rows)
    key = documented()[name]["key"]
    found = {tuple(row[column] for column in key): row for row in all_rows}
    assert len(found) == len(all_rows), name
    return found
