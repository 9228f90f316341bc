"""The commands in the documents work, and print what the documents show.

The blocks of a document run in their order, in one folder that looks like the checkout of
a reader who has run ``make setup``, against a sandbox. Loads name target-snowflake, as
people want them; here they go to target-jsonl, which takes a third of the time: loads
into Snowflake are the business of test_pipeline.py.
"""

# ruff: noqa: S608 - the names in these statements are our own

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import uuid
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import psycopg
import pytest
import sqlglot
import yaml  # type: ignore[import-untyped] # it has no types
from psycopg import sql

from tap_bugspulse.settings import CONFIG_SCHEMA
from tests.documents import DOCUMENTS, ROOT, Block, anchors, blocks, links, text
from tests.pipeline.children import environment, serving
from tests.pipeline.meltano import MeltanoProject
from tests.pipeline.truth import events_asked, tap_settings
from tests.running import PRIMARY_KEYS, counted, expected, select, sync
from tests.sandbox import Options, Sandbox, generate

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.sources

SECONDS = 120
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
RUN_BY_SHELL = {"bash", "console"}
RUN = RUN_BY_SHELL | {"sql"}
READ_ONLY = {"json", "yaml", "python", "text", "mermaid"}
ALL_BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]


def left_out(block: Block) -> tuple[str, str] | None:
    """Return the entry of the list that a block of commands is on, None if it is run."""
    for document, beginning in NOT_RUN:
        if block.document == document and block.first_line.startswith(beginning):
            return document, beginning
    return None


def is_run(block: Block) -> bool:
    """Return whether a block of commands is run by this module."""
    return block.language in RUN and left_out(block) is None


COMMANDS = [block for block in ALL_BLOCKS if block.language in RUN_BY_SHELL and is_run(block)]
# test_queries.py runs those on the tables that dbt makes.
ON_LOADED = [block for block in ALL_BLOCKS if not block.text.startswith("-- tables\n")]
STATEMENTS = [block for block in ON_LOADED if block.language == "sql" and is_run(block)]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """A small project in the days that the documents name."""
    until = datetime(2026, 3, 1, 11, tzinfo=UTC)
    project = generate(seed=7, sessions=120, days=20, until=until)
    with Sandbox(project, Options(requests_per_minute=None)) as running:
        yield running


@pytest.fixture(scope="module")
def reader(
    sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """A reader's checkout after `make setup`, and their environment."""
    project = MeltanoProject(tmp_path_factory.mktemp("reader") / "tap-bugspulse")
    folder = project.directory
    definition = folder / "meltano.yml"
    definition.write_text(swapped(definition.read_text()))
    for name in (".venv-meltano", "examples", "scripts", "tests", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv" / "bin").mkdir(parents=True)
    programs = Path(sys.executable).parent
    for program in ("tap-bugspulse", "tap-bugspulse-check", "python"):
        (folder / ".venv" / "bin" / program).symlink_to(programs / program)
    # Who does without Meltano installs a target.
    target = ROOT / ".meltano" / "loaders" / "target-jsonl" / "venv" / "bin" / "target-jsonl"
    (folder / ".venv" / "bin" / target.name).symlink_to(target)
    settings = {
        "TAP_BUGSPULSE_API_KEY": sandbox.api_key,
        "TAP_BUGSPULSE_API_URL": sandbox.url,
        "TAP_BUGSPULSE_REQUESTS_PER_MINUTE": "60000",
        # Plugins are those of the checkout, `make setup` alone installs them.
        "MELTANO_AUTO_INSTALL": "false",
        "NO_COLOR": "1",
        "EDITOR": "true",
    }
    paths = [folder / ".venv" / "bin", folder / ".venv-meltano" / "bin"]
    path = os.pathsep.join([*map(str, paths), os.environ["PATH"]])
    return folder, environment(project.home, settings) | {"PATH": path}


def swapped(commands: str) -> str:
    """Have loads go to target-jsonl, in commands and in the jobs of meltano.yml."""
    return re.sub("(tap-bugspulse(?: |-to-))target-snowflake", r"\1target-jsonl", commands)


def shell(command: str, folder: Path, env: dict[str, str]) -> str:
    """Run a command as a reader would, which must end with 0; return what it printed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", swapped(command)],  # noqa: S607 - a reader's
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


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


@pytest.mark.pipeline
@pytest.mark.parametrize("document", dict.fromkeys(one.document for one in COMMANDS))
def test_what_a_document_says_to_type_works(
    document: str, reader: tuple[Path, dict[str, str]]
) -> None:
    """Each command ends well, and prints the lines that are shown, in that order."""
    if document == "docs/repair.md":  # who repairs has loaded before
        shell("meltano --environment=prod run tap-bugspulse target-snowflake", *reader)
    for block in (one for one in COMMANDS if one.document == document):
        for command, shown in steps(block):
            printed = map(plain, shell(command, *reader).splitlines())
            for line in map(plain, shown):
                assert any(line in other for other in printed), (block.name, line)


@pytest.mark.pipeline
def test_a_run_beside_one_that_was_killed_says_what_the_page_shows(
    reader: tuple[Path, dict[str, str]],
) -> None:
    """Meltano refuses a run while another seems to go on, in the words of repair.md."""
    folder, env = reader
    database_file = folder / ".meltano" / "meltano.db"
    if not database_file.exists():
        shell("meltano state list", folder, env)
    # What a run leaves behind whose Meltano was killed.
    id_, now = "prod:tap-bugspulse-to-target-jsonl", datetime.now(UTC)
    killed = (uuid.uuid4().hex, id_, *2 * [now.replace(tzinfo=None).isoformat(" ")])
    with contextlib.closing(sqlite3.connect(database_file)) as runs:
        runs.execute(
            "insert into runs (run_id, job_name, started_at, last_heartbeat_at, state,"
            " payload, payload_flags, trigger)"
            " values (?, ?, ?, ?, 'RUNNING', '{}', 0, 'cli')",
            killed,
        )
        runs.commit()
        command = "! meltano --environment=prod run tap-bugspulse target-jsonl"
        printed = plain(" ".join(shell(command, folder, env).split()))
        # One that was forced to run leaves the killed one as it is.
        shell(command.removeprefix("! ").replace("run", "run --force"), folder, env)
        assert "already running" in shell(command, folder, env)
        runs.execute("update runs set state = 'FAIL' where run_id = ?", killed[:1])
        runs.commit()
    shown = next(block for block in blocks("docs/repair.md") if block.text.startswith("Another"))
    for part in plain(swapped(shown.text)).split("0-0-0 0:0:0"):
        assert part.removeprefix("+0:0").strip() in printed


@pytest.mark.pipeline
def test_a_state_moves_to_another_backend(
    reader: tuple[Path, dict[str, str]], sandbox: Sandbox
) -> None:
    """After the commands of schedule.md nothing is loaded again from another backend."""
    folder, env = reader
    shell("meltano --environment=prod run tap-bugspulse target-snowflake", folder, env)
    sandbox.reset()
    (block,) = (one for one in blocks("docs/schedule.md") if one.text.startswith("id=prod:"))
    shell(block.text, folder, env)
    assert counted(sandbox)["/crashes"] == 1
    assert counted(sandbox)["/events"] == 0
    assert any((folder / "moved" / "prod:tap-bugspulse-to-target-jsonl").iterdir())
    # What the page warns of: without its state, a run begins anew.
    without = env | {"MELTANO_STATE_BACKEND_URI": f"file://{folder}/empty"}
    shell("meltano --environment=prod run tap-bugspulse target-snowflake", folder, without)
    assert counted(sandbox)["/events"] > 0


@pytest.mark.pipeline
def test_what_is_pasted_without_an_account_loads_all(reader: tuple[Path, dict[str, str]]) -> None:
    """The block needs nothing but the set-up, loads what its server holds, and leaves no state."""
    folder, env = reader
    own = {name: value for name, value in env.items() if not name.startswith("TAP_BUGSPULSE")}
    pasted, shown = blocks("docs/without-an-account.md")
    printed = map(plain, shell(pasted.text, folder, own).splitlines())
    for line in map(plain, shown.text.splitlines()):
        assert any(line in other for other in printed), line
    output = folder / "output" / "sandbox"
    held = json.loads((output / "ready").read_text())
    for stream in PRIMARY_KEYS:
        assert len((output / f"{stream}.jsonl").read_text().splitlines()) == held[stream]
    states = shell("meltano state list", folder, env).splitlines()
    assert [line for line in states if line.endswith(":sandbox")]


@pytest.mark.pipeline
def test_a_full_refresh_that_stopped_is_run_again_as_its_log_says(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """Without a confirmed state, only `--full-refresh` loads all again; with one, it resumes."""
    said = re.search(r"whether its log says `(.*?)`", text("docs/repair.md"))
    assert said
    meltano, log = MeltanoProject(tmp_path / "project"), tmp_path / "log"

    def run(*options: str, code: int = 0, **settings: str) -> set[str]:
        """Return the sessions whose events a run requested."""
        sandbox.reset()
        blocks = (*options, "tap-bugspulse", "target-jsonl")
        with log.open("w") as output:
            given = tap_settings(sandbox) | settings
            assert meltano.run(*blocks, settings=given, output=output) == code
        return set(events_asked(sandbox))

    everything = run()
    assert run() == set()
    # The target fails before it has confirmed anything.
    nowhere = str(log / "no directory")
    run("--full-refresh", code=1, TARGET_JSONL_DESTINATION_PATH=nowhere)
    assert said[1] not in log.read_text()
    assert run() == set()
    assert run("--full-refresh") == everything

    part = run("--full-refresh", TAP_BUGSPULSE_MAX_RUNTIME_MINUTES="0.000001")
    assert said[1] in log.read_text()
    assert set() < part < everything
    assert run() == everything - part


@pytest.mark.pipeline
def test_meltano_ignores_a_second_entry_of_the_tap_and_shows_it(tmp_path: Path) -> None:
    """Maps count in the entry of meltano.yml or of an inherited extractor, as safety.md says."""
    command = re.search(r"Check with `(.*?)`", " ".join(text("docs/safety.md").split()))
    assert command
    (recipe, *_) = (one for one in blocks("docs/safety.md") if one.language == "yaml")
    included, log = tmp_path / "included.meltano.yml", tmp_path / "log"

    def shown(maps: str, name: str, settings: dict[str, str]) -> Any:
        """Return what Meltano says is the configuration of an extractor."""
        included.write_text(maps)
        meltano = MeltanoProject(tmp_path / name, include=included)
        _, *arguments, _ = command[1].split()
        with log.open("w") as output:
            given = ("--log-level", "error", *arguments, name)
            assert meltano.call(*given, settings=settings, output=output) == 0
        return json.loads(log.read_text())

    _, *_, extractor = command[1].split()
    salt = {"BUGSPULSE_SALT": "pepper"}
    assert shown(recipe.text, extractor, salt) == {}
    inherited = f"name: {extractor}--masked\n    inherit_from: {extractor}"
    found = shown(
        recipe.text.replace(f"name: {extractor}", inherited), f"{extractor}--masked", salt
    )
    assert found == recipes()[0]["config"] | {"stream_map_config": {"salt": "pepper"}}


@pytest.mark.pipeline
def test_the_state_is_printed_in_one_line_inside_its_key(
    reader: tuple[Path, dict[str, str]],
) -> None:
    """`meltano state get` prints what replication.md says, for the id of a run."""
    folder, env = reader
    shell("meltano run --state-id-suffix=printed tap-bugspulse target-jsonl", folder, env)
    command = "meltano state get dev:tap-bugspulse-to-target-jsonl:printed 2>/dev/null"
    (line,) = shell(command, folder, env).splitlines()
    (key,) = re.findall(r"in one line, inside `(\w+)`", text("docs/replication.md"))
    assert json.loads(line).keys() == {key}


def test_each_command_of_a_plugin_that_is_named_exists() -> None:
    """`plugin:command` in a document is a command of that plugin in meltano.yml."""
    kinds = yaml.safe_load(text("meltano.yml"))["plugins"]
    existing = {
        f"{one['name']}:{command}"
        for plugins_of_kind in kinds.values()
        for one in plugins_of_kind
        for command in one.get("commands", [])
    }
    named = {
        one
        for document in DOCUMENTS
        for one in re.findall(r"\b((?:tap|dbt)-bugspulse:[a-z]+)", text(document))
    }
    assert "dbt-bugspulse:rebuild" in named
    assert named <= existing


@pytest.fixture(scope="module")
def files(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `output/`, as target-jsonl writes it in a first run."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "output").mkdir()
    loaded = sync(sandbox, datetime(2026, 3, 1, 12, tzinfo=UTC))
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
    if dialect == "postgres":
        connection.execute("create schema bugspulse")
        connection.execute("use bugspulse")
    for stream in PRIMARY_KEYS:
        source = connection.read_json(str(files / "output" / f"{stream}.jsonl"))
        renamed = ", ".join(f'"{one}" as {column(one, dialect)}' for one in source.columns)
        source.select(renamed).create(stream)
    if dialect == "postgres":
        connection.execute("use main")
    return connection


def run_sql(text: str, connection: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    """Run the statements of a block, whose first line is its dialect; give all rows."""
    dialect = text.split("\n", 1)[0].removeprefix("-- ").lower()
    rows: list[tuple[Any, ...]] = []
    for statement in sqlglot.transpile(text, read=dialect, write="duckdb"):
        rows += connection.execute(statement).fetchall()
    return rows


@pytest.mark.parametrize("block", STATEMENTS, ids=lambda block: block.name)
def test_each_statement_runs(block: Block, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQL runs on tables with the names that the target of its dialect makes."""
    monkeypatch.chdir(files)
    dialect = block.text.split("\n", 1)[0].removeprefix("-- ").lower()
    assert dialect in {"snowflake", "postgres", "duckdb"}
    assert run_sql(block.text, database(files, dialect))


def test_no_block_of_commands_is_left_out_but_those_of_the_list() -> None:
    """Each block says its language, and the list names no block that is not there."""
    assert {block.name for block in ALL_BLOCKS if not block.language} == set()
    assert {block.language for block in ALL_BLOCKS} <= RUN | READ_ONLY
    found = set()
    for block in ALL_BLOCKS:
        entry = left_out(block) if block.language in RUN else None
        if entry is not None:
            found.add(entry)
            assert (ACCOUNT in block.text) == (NOT_RUN[entry] == ACCOUNT), block.name
    assert found == {entry for entry in NOT_RUN if entry[0] in DOCUMENTS}


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
    load = json.loads if block.language == "json" else yaml.safe_load
    for name in settings_in(load(block.text)):
        assert name in {*CONFIG_SCHEMA["properties"], *OF_THE_SDK}, block.name


# What the SDK and Meltano add to the tap's own settings.
OF_THE_SDK = ("stream_maps", "stream_map_config", "flattening_enabled")


def settings_in(data: Any) -> Iterator[str]:
    """Return the settings under a ``config`` of tap-bugspulse, or at the top."""
    if isinstance(data, dict) and "api_key" in data:
        yield from data
    for extractor in plugins(data):
        yield from extractor.get("config", {})


def plugins(data: Any) -> list[dict[str, Any]]:
    """Return the extractors of a piece of meltano.yml."""
    found = data.get("plugins") if isinstance(data, dict) else None
    return found.get("extractors", []) if isinstance(found, dict) else []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """Each link to a file or a heading finds it."""
    here = (ROOT / document).parent
    for link in links(document):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (here / name).resolve() if name else ROOT / document
        inside = target.relative_to(ROOT).as_posix()
        assert target.exists(), f"{document}: {link}"
        if anchor:
            assert anchor in anchors(inside), f"{document}: {link}"


def test_every_document_is_found_from_the_readme() -> None:
    """A reader gets to each document by links that begin in README."""
    found, ahead = set(), ["README.md"]
    while ahead:
        document = ahead.pop()
        found.add(document)
        for link in links(document):
            target = ((ROOT / document).parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.is_relative_to(ROOT):
                name = target.relative_to(ROOT).as_posix()
                if target.exists() and name not in found:
                    ahead.append(name)
    assert Counter(DOCUMENTS) - Counter(found) == Counter()


# --- Safety ---------------------------------------------------------------------------

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
USER = "usr_b8to55ji"  # whom docs/safety.md deletes


def recipes() -> list[dict[str, Any]]:
    """Return what each recipe of docs/safety.md says of the extractor, in order."""
    yamls = [one for one in blocks("docs/safety.md") if one.language == "yaml"]
    return [plugins(yaml.safe_load(block.text))[0] for block in yamls]


def test_the_recipe_that_masks_leaves_no_clear_text(sandbox: Sandbox) -> None:
    """Users are hashed with the salt, URLs have no query, `_extra` is no column."""
    config = recipes()[0]["config"]
    assert config["stream_map_config"] == {"salt": "$BUGSPULSE_SALT"}
    config["stream_map_config"] = {"salt": "pepper"}
    output = sync(sandbox, NOW, **config)
    for row in output.rows("sessions"):
        user = sandbox.project.sessions[row["id"]]["userId"]
        hashed = hashlib.sha256(f"pepper{user}".encode()).hexdigest()
        assert row["userId"] == (hashed if user else None)
        assert "_extra" not in row
    urls = [sandbox.project.network[row["id"]]["url"] for row in output.rows("network")]
    assert any("?" in url for url in urls)
    assert [row["url"] for row in output.rows("network")] == [url.split("?")[0] for url in urls]
    assert USER not in json.dumps(output.rows("sessions"))


def test_the_recipe_that_leaves_columns_out_does(sandbox: Sandbox) -> None:
    """A column that is not selected is in no row, and its neighbours are."""
    assert recipes()[1]["select"] == [
        "*.*",
        *(f"!{name}" for name in ("sessions.userId", "network.url", "events.data")),
    ]
    catalog = select(NOW, *PRIMARY_KEYS)
    for stream in catalog["streams"]:
        for entry in stream["metadata"]:
            name = ".".join([stream["stream"], *entry["breadcrumb"][1:]])
            if f"!{name}" in recipes()[1]["select"]:
                entry["metadata"]["selected"] = False
    output = sync(sandbox, NOW, catalog=catalog)
    for stream, column_name in (("sessions", "userId"), ("network", "url"), ("events", "data")):
        assert output.rows(stream)
        assert not any(column_name in row for row in output.rows(stream))
        assert all("_extra" in row for row in output.rows(stream))


def test_the_recipe_that_leaves_a_user_out_spares_their_events(sandbox: Sandbox) -> None:
    """Sessions of the user are not loaded, and nobody asks for their events."""
    theirs = {name for name, row in sandbox.project.sessions.items() if row["userId"] == USER}
    assert theirs
    sandbox.reset()
    output = sync(sandbox, NOW, **recipes()[1]["config"])
    assert {row["id"] for row in output.rows("sessions")} == (
        sandbox.project.sessions.keys() - theirs
    )
    asked = {one.query.get("sessionId") for one in sandbox.requests}
    assert asked & theirs == set()


def test_the_recipes_without_a_hash_leave_nothing_personal(sandbox: Sandbox) -> None:
    """They take a null for what it is, and keep what they say they keep."""
    output = sync(sandbox, NOW, **recipes()[2]["config"])
    held = sandbox.project
    for row in output.rows("sessions"):
        assert "userId" not in row
        assert row["known"] is bool(held.sessions[row["id"]]["userId"])
    assert {row["known"] for row in output.rows("sessions")} == {True, False}
    for row in output.rows("network"):
        call = held.network[row["id"]]
        assert row["error"] == ("failed" if call["error"] else None)
        assert row["url"] == "/".join(call["url"].split("/")[:3])
    assert {row["error"] for row in output.rows("network")} == {None, "failed"}
    for row in output.rows("crashes"):
        assert row["message"] == held.crashes[row["id"]]["message"].split(":")[0]
    assert output.rows("events")
    assert not any("data" in row for row in output.rows("events"))


HASHED = re.compile(r"`(\w[^`]*'usr_b8to55ji'[^`]*)` in (Snowflake|Postgres)")


def hashed_user(dialect: str) -> str:
    """Return the expression of docs/safety.md for the hash of the user."""
    found = HASHED.findall(" ".join(text("docs/safety.md").split()))
    (expression,) = (one for one, database_ in found if database_.lower() == dialect)
    return str(expression)


@pytest.mark.pipeline
def test_the_hash_of_a_user_is_found_in_postgres(tmp_path: Path) -> None:
    """A real PostgreSQL computes the hash that the mask of docs/safety.md makes."""
    with (
        serving("tests.pipeline.postgres", home=tmp_path / "home") as server,
        psycopg.connect(server["dsn"]) as connection,
    ):
        rows = connection.execute(sql.SQL("select " + hashed_user("postgres"))).fetchall()
    assert rows == [(hashlib.sha256(f"salt{USER}".encode()).hexdigest(),)]


@pytest.mark.parametrize("is_hashed", [False, True])
@pytest.mark.parametrize("dialect", ["snowflake", "postgres"])
def test_a_deletion_request_leaves_no_row_of_the_user(
    dialect: str, files: Path, *, is_hashed: bool
) -> None:
    """The statements delete the user's sessions, events and calls, and no others."""
    (block,) = (
        one for one in blocks("docs/safety.md") if one.text.lower().startswith(f"-- {dialect}")
    )
    connection = database(files, dialect)
    schema = "bugspulse." if dialect == "postgres" else ""
    user, session = column("userId", dialect), column("sessionId", dialect)
    name, statements = USER, block.text
    if is_hashed:
        name = hashlib.sha256(f"salt{USER}".encode()).hexdigest()
        connection.execute(f"update {schema}sessions set {user} = sha256('salt' || {user})")
        # DuckDB's own, for that of Postgres, which is tested above.
        own = "sha256('salt' || 'usr_b8to55ji')"
        expression = own if dialect == "postgres" else hashed_user(dialect)
        statements = statements.replace(f"'{USER}'", expression)
    rest = [
        f"select id from {schema}sessions where {user} is distinct from '{name}'",
        *(
            f"select id, {session} from {schema}{table} where {session} in"
            f" (select id from {schema}sessions where {user} is distinct from '{name}')"
            for table in ("events", "network")
        ),
    ]
    kept = [sorted(connection.execute(sql).fetchall()) for sql in rest]
    before = counts(connection, schema)
    run_sql(statements, connection)
    assert [sorted(connection.execute(sql).fetchall()) for sql in rest] == kept
    assert counts(connection, schema) == [len(rows) for rows in kept]
    assert all(less < more for less, more in zip(counts(connection, schema), before, strict=True))


def counts(connection: duckdb.DuckDBPyConnection, schema: str) -> list[int]:
    """Return the numbers of rows of the three tables that hold a user's rows."""
    return [
        int(connection.execute(f"select count(*) from {schema}{name}").fetchall()[0][0])
        for name in ("sessions", "events", "network")
    ]


# --- Repair ---------------------------------------------------------------------------


def test_a_session_is_loaded_again_by_its_second(sandbox: Sandbox) -> None:
    """The dates that docs/repair.md names bring one session and its events."""
    found = re.search(
        r"For\s+`(\S+)Z` that is\s+`\w+START_DATE=(\S+)` and\s+`\w+=(\S+)`", text("docs/repair.md")
    )
    assert found
    at, start, end = found.groups()
    (session,) = (
        name for name, row in sandbox.project.sessions.items() if row["startedAt"] == f"{at}Z"
    )
    sandbox.reset()
    output = sync(sandbox, NOW, start_date=start, end_date=end)
    assert [row["id"] for row in output.rows("sessions")] == [session]
    assert {row["sessionId"] for row in output.rows("events")} == {session}
    asked = counted(sandbox)
    assert asked["/events"] == 1
    assert asked.total() <= 14


@pytest.mark.parametrize("gone", [{"network"}, {"sessions", "events"}])
def test_a_deleted_bookmark_has_its_stream_read_again(sandbox: Sandbox, gone: set[str]) -> None:
    """Without the bookmarks that docs/repair.md says to delete, all rows come again."""
    state = sync(sandbox, NOW).state
    for stream in gone:
        del state["bookmarks"][stream]
    output = sync(sandbox, NOW, state)
    for stream in ("sessions", "events", "network"):
        everything = expected(sandbox.project, stream) if stream in gone else {}
        assert output.table(stream) == everything


def test_a_session_that_changed_back_is_put_right_by_a_full_refresh(sandbox: Sandbox) -> None:
    """What schedule.md says of a state that was not kept: no row, until all come again."""
    (*_, session) = sorted(sandbox.project.sessions.values(), key=lambda row: row["startedAt"])
    before = dict(session)
    state = sync(sandbox, NOW).state

    def changed(**values: object) -> None:
        session.update(values)
        sandbox.project.changed("sessions")

    changed(hasCrash=not before["hasCrash"])
    written = sync(sandbox, NOW, state)
    assert [row["hasCrash"] for row in written.rows("sessions")] == [not before["hasCrash"]]
    changed(hasCrash=before["hasCrash"])
    # The state of that run was not kept.
    assert sync(sandbox, NOW, state).rows("sessions") == []
    again = sync(sandbox, NOW, catalog=select(NOW, "sessions"))
    assert again.table("sessions")[before["id"],] == before | {"_extra": None}
    # With a state that was kept it comes by itself.
    kept = sync(sandbox, NOW, written.state).rows("sessions")
    assert kept == [before | {"_extra": None}]


def test_a_stretch_that_begins_later_has_its_history_read_again(sandbox: Sandbox) -> None:
    """An edited `complete_from` brings the sessions before it, and their events."""
    state = sync(sandbox, NOW).state
    bookmarks = state["bookmarks"]
    bookmarks["sessions"]["complete_from"] = "2026-02-14"
    bookmarks["events"]["complete"]["all"]["complete_from"] = "2026-02-14"
    output = sync(sandbox, NOW, state)
    before = {
        key for key, row in sandbox.project.sessions.items() if row["startedAt"] < "2026-02-14"
    }
    assert before
    assert {row["id"] for row in output.rows("sessions")} == before
    assert {row["sessionId"] for row in output.rows("events")} == {
        key for key in before if sandbox.project.events[key]
    }


def test_a_mark_that_is_set_back_brings_what_lies_before_the_lookback(sandbox: Sandbox) -> None:
    """An edited forward mark has older sessions emitted again, recent ones compared."""
    state = sync(sandbox, NOW).state
    mark = state["bookmarks"]["sessions"]
    assert mark["replication_key_value"] > "2026-02-28"
    mark["replication_key_value"] = "2026-02-12T00:00:00.000Z"
    loaded = {row["id"] for row in sync(sandbox, NOW, state).rows("sessions")}
    remembered = {key[0] for key in expected(sandbox.project, "sessions")} - loaded
    starts = {key: sandbox.project.sessions[key]["startedAt"] for key in loaded}
    assert loaded
    assert max(starts.values()) < "2026-02-21"
    assert {sandbox.project.sessions[key]["startedAt"][:10] for key in remembered} >= {
        "2026-02-26",
        "2026-02-27",
    }


def test_a_session_that_is_given_up_is_not_asked_for_again(sandbox: Sandbox) -> None:
    """What is deleted from `set_aside` is left alone by later runs."""
    broken = max(sandbox.project.sessions, key=lambda key: key == "sess_1771604823_wy1h8k")
    state = sync(sandbox, NOW).state
    state["bookmarks"]["events"]["set_aside"] = {broken: "2026-02-20T16:27:03+00:00"}
    sandbox.reset()
    again = sync(sandbox, NOW, state)
    assert {row["sessionId"] for row in again.rows("events")} == {broken}
    state["bookmarks"]["events"]["set_aside"] = {}
    assert sync(sandbox, NOW, state).rows("events") == []


def test_a_bookmark_set_by_hand_counts_from_the_start_date(sandbox: Sandbox) -> None:
    """With a mark alone nothing before it is loaded, but what the lookback reads."""
    mark = {"replication_key": "startedAt", "replication_key_value": "2026-02-20T00:00:00Z"}
    output = sync(sandbox, NOW, {"bookmarks": {"sessions": mark}})
    assert min(row["startedAt"] for row in output.rows("sessions")) >= "2026-02-12"
