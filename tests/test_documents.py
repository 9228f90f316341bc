"""The commands in the documents work, and print what the documents show.

The blocks of a document run in their order, in one folder that looks like the checkout of
a reader who has run ``make setup``, against a sandbox. Loads name target-snowflake, as
people want them; here they go to target-jsonl, which takes a third of the time: loads
into Snowflake are the business of test_snowflake.py.
"""

# ruff: noqa: S608 - the names in these statements are our own

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import os
import re
import sqlite3
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb
import psycopg
import pytest
import sqlglot
import yaml  # type: ignore[import-untyped] # it has no types
from psycopg import sql

from tap_bugspulse.settings import CONFIG_SCHEMA
from tests.conftest import NOW
from tests.documents import DOCUMENTS, ROOT, Block, anchors, block_with, blocks, links, text
from tests.pipeline.children import environment, serving
from tests.pipeline.meltano import MeltanoProject
from tests.pipeline.truth import tap_settings
from tests.running import PRIMARY_KEYS, counted, events_asked, expected, select, sync
from tests.sandbox import Options, Sandbox, generate
from tests.test_release import succeed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.running import Row

pytestmark = pytest.mark.sources

LOAD = "meltano --environment=prod run tap-bugspulse target-snowflake"
ACCOUNT = "needs an account"

# All blocks of commands that no test runs, by document and beginning: the only list.
NOT_RUN = {
    # Run by other tests, or by CI.
    ("README.md", "REPO="): "test_install.py",
    ("README.md", "meltano add"): "test_install.py",
    (".github/CONTRIBUTING.md", "make setup"): "what runs the tests has run it",
    # Have tests of their own, below.
    ("docs/schedule.md", "id=prod:"): "this",
    ("docs/without-an-account.md", "("): "this",
    # Need an account.
    ("README.md", "export TAP_BUGSPULSE_API_KEY"): ACCOUNT,
    ("README.md", "export TARGET_SNOWFLAKE_ACCOUNT"): ACCOUNT,
    ("docs/connect.md", "create role"): ACCOUNT,
    ("docs/connect.md", "export TARGET_POSTGRES_HOST"): ACCOUNT,
    ("transform/README.md", "sh scripts/setup.sh dbt"): ACCOUNT,
}
SHELL, READ_ONLY = {"bash", "console"}, {"json", "yaml", "python", "text", "mermaid"}
ALL_BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]


def entry_of(block: Block) -> tuple[str, str] | None:
    """Return the entry of the list that a block is on, None if it is run here."""
    for document, beginning in NOT_RUN:
        if block.document == document and block.first_line.startswith(beginning):
            return document, beginning
    return None


RUN = [block for block in ALL_BLOCKS if block.language not in READ_ONLY and not entry_of(block)]
COMMANDS = [block for block in RUN if block.language in SHELL]
# test_queries.py runs those on the tables that dbt makes.
STATEMENTS = [one for one in RUN if one.language == "sql" and one.dialect != "tables"]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """A small project in the days that the documents name."""
    until = datetime(2026, 3, 1, 11, tzinfo=UTC)
    project = generate(seed=7, sessions=120, days=20, until=until)
    with Sandbox(project, Options(requests_per_minute=None)) as running:
        yield running


class Reader(NamedTuple):
    """A checkout after `make setup`, and the environment of who types there."""

    folder: Path
    env: dict[str, str]

    def types(self, command: str, **variables: str) -> str:
        """Run a command, which must end with 0, and return what it printed."""
        shell = ("bash", "-euo", "pipefail", "-c", f"exec 2>&1\n{swapped(command)}")
        return succeed(*shell, cwd=self.folder, env=self.env | variables)


@pytest.fixture(scope="module")
def reader(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """A reader who has the key of the sandbox."""
    project = MeltanoProject(tmp_path_factory.mktemp("reader") / "tap-bugspulse")
    folder = project.directory
    definition = folder / "meltano.yml"
    definition.write_text(swapped(definition.read_text()))
    for name in (".venv-meltano", "examples", "scripts", "tests", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for program in ("tap-bugspulse", "tap-bugspulse-check", "python"):
        (programs / program).symlink_to(Path(sys.executable).parent / program)
    # Who does without Meltano installs a target.
    target = ROOT / ".meltano" / "loaders" / "target-jsonl" / "venv" / "bin" / "target-jsonl"
    (programs / target.name).symlink_to(target)
    settings = {
        # Plugins are those of the checkout, `make setup` alone installs them.
        "MELTANO_AUTO_INSTALL": "false",
        "NO_COLOR": "1",
        "EDITOR": "true",
        "PATH": f"{programs}:{folder / '.venv-meltano' / 'bin'}:{os.environ['PATH']}",
    }
    return Reader(folder, environment(project.home, settings | tap_settings(sandbox)))


def swapped(commands: str) -> str:
    """Have loads go to target-jsonl, in commands and in the jobs of meltano.yml."""
    return re.sub("(tap-bugspulse(?: |-to-))target-snowflake", r"\1target-jsonl", commands)


def plain(line: str) -> str:
    """Return a line without what differs from run to run: numbers and spaces."""
    return re.sub(r"\d[\d,]*", "0", " ".join(swapped(line).split()))


def steps(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Return the commands of a block, each with the output that is shown below it."""
    if block.language == "bash":
        yield block.text, []
        return
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, *shown = part.split("\n")
        while command.endswith("\\"):
            command += "\n" + shown.pop(0)
        yield command, [line for line in shown if line.strip()]


def assert_shown(lines: Iterable[str], output: str) -> None:
    """Expect lines among those that were printed, in that order."""
    printed = map(plain, output.splitlines())
    for line in map(plain, lines):
        assert any(line in other for other in printed), line


@pytest.mark.pipeline
@pytest.mark.parametrize("document", dict.fromkeys(one.document for one in COMMANDS))
def test_what_a_document_says_to_type_works(document: str, reader: Reader) -> None:
    """Each command ends well, and prints the lines that are shown, in that order."""
    if document == "docs/repair.md":  # who repairs has loaded before
        reader.types(LOAD)
    for block in (one for one in COMMANDS if one.document == document):
        for command, shown in steps(block):
            assert_shown(shown, reader.types(command))


@pytest.mark.pipeline
def test_a_run_beside_one_that_was_killed_says_what_the_page_shows(reader: Reader) -> None:
    """Meltano refuses a run while another seems to go on, in the words of repair.md."""
    reader.types("meltano state list")  # makes Meltano's database where there is none
    # What a run leaves behind whose Meltano was killed.
    began = datetime.now(UTC).replace(tzinfo=None).isoformat(" ")
    killed = (uuid.uuid4().hex, "prod:tap-bugspulse-to-target-jsonl", began, began)
    with contextlib.closing(sqlite3.connect(reader.folder / ".meltano" / "meltano.db")) as runs:
        runs.execute(
            "insert into runs (run_id, job_name, started_at, last_heartbeat_at, state,"
            " payload, payload_flags, trigger)"
            " values (?, ?, ?, ?, 'RUNNING', '{}', 0, 'cli')",
            killed,
        )
        runs.commit()
        printed = plain(reader.types(f"! {LOAD}"))
        # One that was forced to run leaves the killed one as it is.
        reader.types(LOAD.replace("run", "run --force"))
        assert "already running" in reader.types(f"! {LOAD}")
        runs.execute("update runs set state = 'FAIL' where run_id = ?", killed[:1])
        runs.commit()
    for part in plain(block_with("Another", "docs/repair.md").text).split("0-0-0 0:0:0"):
        assert part.removeprefix("+0:0").strip() in printed


@pytest.mark.pipeline
def test_a_state_moves_to_another_backend(reader: Reader, sandbox: Sandbox) -> None:
    """After the commands of schedule.md nothing is loaded again from another backend."""
    reader.types(LOAD)
    sandbox.reset()
    reader.types(block_with("id=prod:", "docs/schedule.md").text)
    assert counted(sandbox)["/crashes"] == 1
    assert counted(sandbox)["/events"] == 0
    assert any((reader.folder / "moved" / "prod:tap-bugspulse-to-target-jsonl").iterdir())
    # What `meltano state get` prints is what replication.md says.
    (key,) = re.findall(r"in one line, inside `(\w+)`", text("docs/replication.md"))
    (line,) = (reader.folder / "state.json").read_text().splitlines()
    assert json.loads(line).keys() == {key}
    # What the page warns of: without its state, a run begins anew.
    reader.types(LOAD, MELTANO_STATE_BACKEND_URI=f"file://{reader.folder}/empty")
    assert counted(sandbox)["/events"] > 0


@pytest.mark.pipeline
def test_what_is_pasted_without_an_account_loads_all(reader: Reader) -> None:
    """The block needs only the set-up, loads what its server holds, and has a state of its own."""

    def states() -> set[str]:
        lines = reader.types("meltano state list").splitlines()
        return {line for line in lines if ":tap-bugspulse-to-" in line}

    before = states()
    own = {name: value for name, value in reader.env.items() if "TAP_BUGSPULSE" not in name}
    pasted, shown = blocks("docs/without-an-account.md")
    assert_shown(shown.text.splitlines(), Reader(reader.folder, own).types(pasted.text))
    output = reader.folder / "output" / "sandbox"
    held = json.loads((output / "ready").read_text())
    for stream in PRIMARY_KEYS:
        assert len((output / f"{stream}.jsonl").read_text().splitlines()) == held[stream]
    (new,) = states() - before
    assert new.endswith(":sandbox")


@pytest.mark.pipeline
def test_a_full_refresh_that_stopped_is_run_again_as_its_log_says(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """Without a confirmed state, only `--full-refresh` loads all again; with one, it resumes."""
    (said,) = re.findall(r"whether its log says `(.*?)`", text("docs/repair.md"))
    meltano, log = MeltanoProject(tmp_path / "project"), tmp_path / "log"

    def run(*options: str, code: int = 0, **settings: str) -> set[str]:
        """Return the sessions whose events a run requested."""
        plugins = ("tap-bugspulse", "target-jsonl")
        # A server for each run: what a tap that was killed had sent may be read late.
        own = Sandbox(sandbox.project, Options(requests_per_minute=None))
        with own, log.open("w") as output:
            given = tap_settings(own) | settings
            assert meltano.run(*options, *plugins, settings=given, output=output) == code
        return set(events_asked(own.requests))

    everything = run()
    assert run() == set()
    # The target fails before it has confirmed anything.
    nowhere = str(log / "no directory")
    run("--full-refresh", code=1, TARGET_JSONL_DESTINATION_PATH=nowhere)
    assert said not in log.read_text()
    assert run() == set()
    assert run("--full-refresh") == everything

    part = run("--full-refresh", TAP_BUGSPULSE_MAX_RUNTIME_MINUTES="0.000001")
    assert said in log.read_text()
    assert set() < part < everything
    assert run() == everything - part


@pytest.mark.pipeline
def test_meltano_ignores_a_second_entry_of_the_tap_and_shows_it(tmp_path: Path) -> None:
    """Maps count in the entry of meltano.yml or of an inherited extractor, as safety.md says."""
    (command,) = re.findall(r"Check with `(.*?)`", " ".join(text("docs/safety.md").split()))
    _, *arguments, extractor = command.split()
    recipe, inherited = block_with("salt:", "docs/safety.md").text, f"{extractor}--masked"
    included, log = tmp_path / "included.meltano.yml", tmp_path / "log"

    def shown(maps: str, name: str) -> Any:
        """Return what Meltano says is the configuration of an extractor."""
        included.write_text(maps)
        meltano = MeltanoProject(tmp_path / name, include=included)
        given = ("--log-level", "error", *arguments, name)
        with log.open("w") as output:
            assert meltano.call(*given, settings={"BUGSPULSE_SALT": "sea"}, output=output) == 0
        return json.loads(log.read_text())

    assert shown(recipe, extractor) == {}
    entry = f"name: {inherited}\n    inherit_from: {extractor}"
    found = shown(recipe.replace(f"name: {extractor}", entry), inherited)
    assert found == recipes()[0]["config"] | {"stream_map_config": {"salt": "sea"}}


def test_each_command_of_a_plugin_that_is_named_exists() -> None:
    """`plugin:command` in a document is a command of that plugin in meltano.yml."""
    existing = {
        f"{plugin['name']}:{command}"
        for kind in yaml.safe_load(text("meltano.yml"))["plugins"].values()
        for plugin in kind
        for command in plugin.get("commands", [])
    }
    whole = " ".join(map(text, DOCUMENTS))
    named = set(re.findall(r"\b((?:tap|dbt)-bugspulse:[a-z]+)", whole))
    assert "dbt-bugspulse:rebuild" in named
    assert named <= existing


@pytest.fixture(scope="module")
def files(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `output/`, as target-jsonl writes it in a first run."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "output").mkdir()
    loaded = sync(sandbox, NOW)
    for stream in PRIMARY_KEYS:
        lines = "".join(json.dumps(row) + "\n" for row in loaded.rows(stream))
        (folder / "output" / f"{stream}.jsonl").write_text(lines)
    return folder


def column(name: str, dialect: str) -> str:
    """Return the name that the target of a dialect makes of a column."""
    if dialect == "postgres":
        return f'"{name}"'
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


def database(files: Path, dialect: str) -> duckdb.DuckDBPyConnection:
    """Return a database with the tables that the target of a dialect makes."""
    connection = duckdb.connect()
    if dialect == "duckdb":
        return connection
    connection.execute("create schema bugspulse")
    connection.execute("use bugspulse")
    for stream in PRIMARY_KEYS:
        source = connection.read_json(str(files / "output" / f"{stream}.jsonl"))
        renamed = ", ".join(f'"{one}" as {column(one, dialect)}' for one in source.columns)
        source.select(renamed).create(stream)
    if dialect == "postgres":
        connection.execute("use main")
    return connection


def run_sql(
    statements: str, dialect: str, connection: duckdb.DuckDBPyConnection
) -> list[tuple[Any, ...]]:
    """Run statements of a dialect and return all rows."""
    rows: list[tuple[Any, ...]] = []
    for statement in sqlglot.transpile(statements, read=dialect, write="duckdb"):
        rows += connection.execute(statement).fetchall()
    return rows


@pytest.mark.parametrize("block", STATEMENTS, ids=lambda block: block.name)
def test_each_statement_runs(block: Block, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQL runs on tables with the names that the target of its dialect makes."""
    monkeypatch.chdir(files)
    assert block.dialect in {"snowflake", "postgres", "duckdb"}
    assert run_sql(block.text, block.dialect, database(files, block.dialect))


def test_no_block_of_commands_is_left_out_but_those_of_the_list() -> None:
    """Each block says its language, and the list names no block that is not there."""
    assert {block.language for block in ALL_BLOCKS} <= {*SHELL, "sql", *READ_ONLY}
    found = {entry: block for block in ALL_BLOCKS if (entry := entry_of(block))}
    assert found.keys() == NOT_RUN.keys()
    for entry, block in found.items():
        assert (ACCOUNT in block.text) == (NOT_RUN[entry] == ACCOUNT), block.name


@pytest.mark.parametrize(
    "block",
    [block for block in ALL_BLOCKS if block.language in {"json", "yaml", "python"}],
    ids=lambda block: block.name,
)
def test_data_in_a_document_can_be_read(block: Block) -> None:
    """JSON, YAML and Python are well-formed, and settings in them are the tap's."""
    if block.language == "python":
        ast.parse(block.text)
        return
    data = (json.loads if block.language == "json" else yaml.safe_load)(block.text)
    configs = [extractor.get("config", {}) for extractor in extractors(data)]
    for config in [*configs, *([data] if "api_key" in data else [])]:
        assert config.keys() <= {*CONFIG_SCHEMA["properties"], *OF_THE_SDK}


# What the SDK and Meltano add to the tap's own settings.
OF_THE_SDK = ("stream_maps", "stream_map_config", "flattening_enabled")


def extractors(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the extractors of a piece of meltano.yml."""
    found: list[dict[str, Any]] = data.get("plugins", {}).get("extractors", [])
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """Each link to a file or a heading finds it."""
    for name, anchor in links(document):
        assert (ROOT / name).exists(), name
        assert not anchor or anchor in anchors(name), (name, anchor)


def test_every_document_is_found_from_the_readme() -> None:
    """A reader gets to each document by links that begin in README."""
    found, ahead = set(), {"README.md"}
    while ahead:
        document = ahead.pop()
        found.add(document)
        ahead |= {name for name, _ in links(document) if name in DOCUMENTS} - found
    assert found == {*DOCUMENTS}


# --- Safety ---------------------------------------------------------------------------

USER = "usr_b8to55ji"  # whom docs/safety.md deletes


def recipes() -> list[dict[str, Any]]:
    """Return what each recipe of docs/safety.md says of the extractor, in order."""
    yamls = [one.text for one in blocks("docs/safety.md") if one.language == "yaml"]
    return [extractors(yaml.safe_load(one))[0] for one in yamls]


@pytest.mark.parametrize("number", [0, 2], ids=["with a hash", "without one"])
def test_a_recipe_that_masks_leaves_nothing_personal(sandbox: Sandbox, number: int) -> None:
    """Each row is as the API has it but for what is masked, and a null is taken for one."""
    config = recipes()[number]["config"]
    if salt := config.get("stream_map_config"):
        assert salt == {"salt": "$BUGSPULSE_SALT"}
        salt["salt"] = "pepper"
    output = sync(sandbox, NOW, **config)
    for stream, mask in MASKS[number].items():
        masked = {key: mask(row) for key, row in expected(sandbox.project, stream).items()}
        assert output.table(stream) == masked
    personal = json.dumps(output.rows("sessions") + output.rows("network"))
    assert USER not in personal
    assert "?" not in personal


def without(row: Row, column_name: str) -> Row:
    """Return a row without a column."""
    return {name: value for name, value in row.items() if name != column_name}


# What the recipes make of rows.
MASKS: dict[int, dict[str, Callable[[Row], Row]]] = {
    0: {
        "sessions": lambda row: (
            without(row, "_extra") | {"userId": row["userId"] and hash_of(row["userId"], "pepper")}
        ),
        "network": lambda row: without(row, "_extra") | {"url": row["url"].split("?")[0]},
    },
    2: {
        "sessions": lambda row: without(row, "userId") | {"known": row["userId"] is not None},
        "crashes": lambda row: row | {"message": row["message"].split(":")[0]},
        "network": lambda row: (
            row
            | {"error": "failed" if row["error"] else None}
            | {"url": "/".join(row["url"].split("/")[:3])}
        ),
        "events": lambda row: without(row, "data"),
    },
}


def test_the_recipe_that_leaves_out_columns_and_a_user_does(sandbox: Sandbox) -> None:
    """No row has one of the columns, no session is the user's, and nobody asks for its events."""
    recipe = recipes()[1]
    columns = [name.removeprefix("!") for name in recipe["select"] if name != "*.*"]
    assert len(columns) == 3
    sandbox.reset()
    catalog = select(NOW, *PRIMARY_KEYS, without=columns)
    output = sync(sandbox, NOW, catalog=catalog, **recipe["config"])
    for stream, name in (name.split(".") for name in columns):
        assert output.rows(stream)
        assert all(name not in row and "_extra" in row for row in output.rows(stream))
    assert {*output.ids("sessions")} == sandbox.project.sessions.keys() - theirs(sandbox)
    assert theirs(sandbox).isdisjoint(events_asked(sandbox.requests))


def theirs(sandbox: Sandbox) -> set[str]:
    """Return the sessions of the user."""
    rows = sandbox.project.sessions.items()
    found = {session for session, row in rows if row["userId"] == USER}
    assert found
    return found


def hash_of(user: str, salt: str) -> str:
    """Return what the mask of docs/safety.md makes of a user."""
    return hashlib.sha256(f"{salt}{user}".encode()).hexdigest()


def hashed_user(dialect: str) -> str:
    """Return the query of docs/safety.md for the hash of the user."""
    found = re.findall(r"`(\w[^`]*'usr_b8to55ji'[^`]*)` in (\w+)", text("docs/safety.md"))
    (expression,) = (one for one, name in found if name == dialect)
    return "select " + " ".join(expression.split())


@pytest.mark.pipeline
def test_the_hash_of_a_user_is_found_in_postgres(tmp_path: Path) -> None:
    """A real PostgreSQL computes the hash that the mask of docs/safety.md makes."""
    with (
        serving("tests.pipeline.postgres", home=tmp_path / "home") as server,
        psycopg.connect(server["dsn"]) as connection,
    ):
        rows = connection.execute(sql.SQL(hashed_user("Postgres"))).fetchall()
    assert rows == [(hash_of(USER, "salt"),)]


def test_the_hash_of_a_user_is_found_in_snowflake() -> None:
    """The function of Snowflake, as DuckDB has it, computes the same hash."""
    rows = run_sql(hashed_user("Snowflake"), "snowflake", duckdb.connect())
    assert rows == [(hash_of(USER, "salt"),)]


@pytest.mark.parametrize("dialect", ["snowflake", "postgres"])
def test_a_deletion_request_leaves_no_row_of_the_user(
    dialect: str, sandbox: Sandbox, files: Path
) -> None:
    """The statements delete the user's sessions, events and calls, and no others."""
    connection, session = database(files, dialect), column("sessionId", dialect)

    def left() -> dict[str, dict[str, int]]:
        """Return the numbers of rows of each session, by table."""
        found = {}
        for table, key in (("sessions", "id"), ("events", session), ("network", session)):
            statement = f"select {key}, count(*) from bugspulse.{table} group by 1"
            found[table] = dict(connection.execute(statement).fetchall())
        return found

    before, gone = left(), theirs(sandbox)
    run_sql(block_with(f"-- {dialect}".title(), "docs/safety.md").text, dialect, connection)
    for table, rows in left().items():
        assert before[table].keys() & gone
        assert rows == {key: n for key, n in before[table].items() if key not in gone}


# --- Repair ---------------------------------------------------------------------------


def sessions_from(sandbox: Sandbox, start: str, end: str = "9") -> set[str]:
    """Return the sessions that started in a span of time."""
    rows = sandbox.project.sessions.items()
    return {key for key, row in rows if start <= row["startedAt"] < end}


def test_a_session_is_loaded_again_by_its_second(sandbox: Sandbox) -> None:
    """The dates that docs/repair.md names bring one session and its events."""
    ((at, start, end),) = re.findall(
        r"For\s+`(\S+)Z` that is\s+`\w+START_DATE=(\S+)` and\s+`\w+=(\S+)`", text("docs/repair.md")
    )
    sandbox.reset()
    output = sync(sandbox, NOW, start_date=start, end_date=end)
    (session,) = sessions_from(sandbox, f"{at}Z", f"{at}Z~")
    assert [row["id"] for row in output.rows("sessions")] == [session]
    assert {row["sessionId"] for row in output.rows("events")} == {session}
    assert events_asked(sandbox.requests) == [session]
    assert counted(sandbox).total() <= 14


@pytest.mark.parametrize(
    # What is set in a state, None for what is deleted; the streams of which rows come again,
    # and the day before which their sessions began.
    ("edits", "streams", "day"),
    [
        ({"network": None}, {"network"}, "9"),
        ({"sessions": None, "events": None}, {"sessions", "events"}, "9"),
        (
            dict.fromkeys(
                ["sessions/complete_from", "events/complete/all/complete_from"], "2026-02-14"
            ),
            {"sessions", "events"},
            "2026-02-14",
        ),
        # Those of the old lookback are compared only.
        ({"sessions/replication_key_value": "2026-02-12T00:00:00Z"}, {"sessions"}, "2026-02-20"),
    ],
    ids=["network", "sessions and events", "complete_from", "replication_key_value"],
)
def test_an_edited_state_brings_rows_again(
    sandbox: Sandbox, edits: dict[str, str | None], streams: set[str], day: str
) -> None:
    """What docs/repair.md says to do brings all rows that it says, and no other."""
    state = sync(sandbox, NOW).state
    for path, value in edits.items():
        *outer, name = path.split("/")
        place = functools.reduce(dict.__getitem__, outer, state["bookmarks"])
        place[name] = value
        if value is None:
            del place[name]
    output, again = sync(sandbox, NOW, state), sessions_from(sandbox, "2", day)
    for stream in ("sessions", "events", "network"):
        rows = expected(sandbox.project, stream) if stream in streams else {}
        if stream != "network":
            rows = {key: row for key, row in rows.items() if key[0] in again}
        assert output.table(stream) == rows
        assert bool(rows) == (stream in streams)


def test_a_session_that_changed_back_is_put_right_by_a_full_refresh(sandbox: Sandbox) -> None:
    """What schedule.md says of a state that was not kept: no row, until all come again."""
    session = max(sandbox.project.sessions.values(), key=lambda row: row["startedAt"])
    state, before, changed = sync(sandbox, NOW).state, dict(session), {"status": "odd"}
    session |= changed
    written = sync(sandbox, NOW, state)
    assert written.rows("sessions") == [before | changed | {"_extra": None}]
    session |= before
    # The state of that run was not kept.
    assert sync(sandbox, NOW, state).rows("sessions") == []
    again = sync(sandbox, NOW, catalog=select(NOW, "sessions"))
    assert again.table("sessions") == expected(sandbox.project, "sessions")
    # With a state that was kept it comes by itself.
    assert sync(sandbox, NOW, written.state).rows("sessions") == [before | {"_extra": None}]


def test_a_session_that_is_given_up_is_not_asked_for_again(sandbox: Sandbox) -> None:
    """What is deleted from `set_aside` is left alone by later runs."""
    state = sync(sandbox, NOW).state
    for set_aside in ({"sess_1771604823_wy1h8k": "2026-02-20T16:27:03+00:00"}, {}):
        state["bookmarks"]["events"]["set_aside"] = set_aside
        rows = sync(sandbox, NOW, state).rows("events")
        assert {row["sessionId"] for row in rows} == set_aside.keys()
