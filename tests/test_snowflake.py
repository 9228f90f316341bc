"""`meltano run tap-bugspulse target-snowflake`, into the emulated Snowflake or a real one.

The emulator runs what the target sends in DuckDB, so it proves which statements are sent,
in which order, and what they leave in the tables by the meaning that SQL gives them. It
does not prove what only Snowflake has:

- **Signing in.** It takes any user, password and key: the target reads a key and signs with
  it (tests/test_schedules.py), but nothing checks that. Network policies, roles and their
  grants, and OAuth are never tried.
- **Staging.** PUT copies a file into a folder. Encryption, uploads to a cloud's storage,
  and files that Snowflake cuts or refuses are never tried.
- **COPY and MERGE as Snowflake runs them.** Both are rewritten for DuckDB: how a file
  format reads JSON, what a value that cannot be cast does, how MERGE locks, and what two
  loads at once do to one table, may differ. Primary keys are enforced here, in Snowflake
  they are only a note.
- **JSON's null.** A VARIANT of it is no SQL NULL in Snowflake: `_extra is null` is false
  there, `is_null_value(_extra)` is true. Here it is NULL.
- **Types at their limits.** A VARIANT holds 128 MB there (16 MB in older accounts), a
  text as much, a number 38 digits; DuckDB's limits are others. fakesnow reads a NULL
  timestamp as 1970, which the layer before it corrects; Snowflake has no such fault.
- **Time zones and other parameters** of account, user and session.
- **Cost and speed.** Waking a warehouse, suspending it, queues, clustering, pruning, and
  what a MERGE rewrites.
- **Statements of its own**: tasks, streams, Snowpipe, GRANT, masking policies.

`make test-snowflake` runs these same tests on a real account, which proves the first four
for that account, and no cost.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import signal
import uuid
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tap_bugspulse.settings import CONCURRENCY
from tests.pipeline.children import CHECKOUT
from tests.pipeline.meltano import MeltanoProject
from tests.pipeline.truth import KEYS, Rows, assert_same, change, events_asked, held, tap_settings
from tests.pipeline.warehouse import OBJECTS, TIMES, Snowflake, column, emptied
from tests.running import wait_until
from tests.test_release import run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tests.pipeline.connector import Connector
    from tests.sandbox import Sandbox

pytestmark = pytest.mark.sources

SNAPSHOT = Path(__file__).parent / "snapshots" / "target-snowflake.sql"
MASKED = CHECKOUT / "examples" / "masking" / "masked.meltano.yml"
RUN = ("tap-bugspulse", "target-snowflake")
# A few days old: what changes is within the lookback.
DATA = {"seed": 1, "sessions": 60, "days": 5, "until": datetime.now(UTC), "crash_groups": 6}


@pytest.fixture(params=["emulated", pytest.param("real", marks=pytest.mark.account)])
def snowflake(
    request: pytest.FixtureRequest, tmp_path: Path, connector: Connector
) -> Iterator[Snowflake]:
    """A schema that nobody else has, dropped afterwards where the account is real."""
    if request.param == "real":
        schema = f"BUGSPULSE_TEST_{uuid.uuid4().hex[:8].upper()}"
        settings, connection = account(os.environ, schema)
        yield Snowflake(schema, settings, connection, connector, tmp_path / "none")
        connector.ask(connection, [f"drop schema if exists {schema} cascade"])
        return
    with emptied(request.getfixturevalue("emulated_snowflake")) as server:
        yield server


def account(variables: Mapping[str, str], schema: str) -> tuple[dict[str, str], dict[str, object]]:
    """Return the settings of target-snowflake and the connector's arguments for an account.

    `scripts/test_snowflake.sh` has checked that the variables which must be there are.
    """
    prefix = "TARGET_SNOWFLAKE_"
    settings = {name: text for name, text in variables.items() if name.startswith(prefix)}
    settings[f"{prefix}DEFAULT_TARGET_SCHEMA"] = schema
    if path := settings.get(f"{prefix}PRIVATE_KEY_PATH"):
        # The home directory is another one where it is read.
        settings[f"{prefix}PRIVATE_KEY_PATH"] = str(Path(path).expanduser().resolve())
    key = {"PRIVATE_KEY_PATH": "private_key_file", "PRIVATE_KEY_PASSPHRASE": "private_key_file_pwd"}
    connection: dict[str, object] = {
        key.get(name, name.lower()): settings[prefix + name]
        for name in ("ACCOUNT", "USER", "PASSWORD", "ROLE", "WAREHOUSE", "DATABASE", *key)
        if prefix + name in settings
    }
    return settings, connection | {"schema": schema}


@pytest.fixture
def meltano(tmp_path: Path) -> MeltanoProject:
    """Make a Meltano project of its own in a path with a space."""
    return MeltanoProject(tmp_path / "a project")


# The one load by Meltano that `make test` runs.
def test_snowflake_holds_what_bugspulse_holds_after_each_run(
    snowflake: Snowflake, sandbox: Sandbox, meltano: MeltanoProject
) -> None:
    """Two runs leave each row once, with latest values; the second loads what changed."""
    settings = tap_settings(sandbox) | snowflake.settings
    assert meltano.run(*RUN, settings=settings) == 0
    sent = snowflake.sent()
    first = held(sandbox.project)
    assert_same(snowflake.rows(first), first)
    assert_variants(snowflake, first)
    assert_types(snowflake)

    changed = change(sandbox.project)
    second = held(sandbox.project)
    assert second["sessions"] != first["sessions"]
    assert len(second["network"]) > len(first["network"])
    sandbox.reset()
    snowflake.sent()
    # What the schedule runs; it carries on from a run by hand.
    assert meltano.run("bugspulse-to-snowflake", settings=settings) == 0
    sent += snowflake.sent()
    assert_same(snowflake.rows(second), second)
    assert sorted(events_asked(sandbox)) == sorted(changed)

    if sent:
        assert_snapshot(normal(sent))


def assert_snapshot(sent: str) -> None:
    """Compare what the target sent with what it sent before; write it where it is new."""
    if not SNAPSHOT.exists():
        SNAPSHOT.write_text(sent, "utf-8")
        pytest.fail(f"{SNAPSHOT.name} was missing and is written: look at it, commit it")
    said = f"not what {SNAPSHOT.name} has. If it is right, delete that and run this test twice."
    assert sent.splitlines() == SNAPSHOT.read_text("utf-8").splitlines(), said


def normal(statements: Iterable[str]) -> str:
    """Return what the target sent, the same for each run: by table, each statement once.

    Four threads load four tables, so the order is fixed within a table only. The ends of
    transactions are left out.
    """
    sections: dict[str, dict[str, None]] = {name: {} for name in ("the session", *KEYS)}
    for statement in statements:
        text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", statement)
        text = re.sub(r"'file://[^']*/", "'file://FOLDER/", text)
        text = " ".join(text.split()).rstrip(";")
        if text not in {"COMMIT", "ROLLBACK"}:
            # A table is named by its name or by a file's.
            names = (one for one in KEYS if re.search(f'"{one.upper()}"|[-/]{one}-ID', text))
            sections[next(names, "the session")][text] = None
    head = "-- What target-snowflake sends in two loads, each statement once; tests compare.\n"
    return head + "".join(
        f"\n-- {name}\n\n" + "".join(text.replace(", ", ",\n    ") + ";\n" for text in some)
        for name, some in sections.items()
    )


def assert_variants(snowflake: Snowflake, rows: Rows) -> None:
    """Check that Snowflake's path syntax finds what is inside the `data` of events."""
    (found,) = snowflake.query(
        "select data:name::string, data:properties.screen::string, count(*) "
        "from events where type = 'custom' group by 1, 2"
    )
    custom = [event["data"] for event in rows["events"] if event["type"] == "custom"]
    inside = Counter((data["name"], data["properties"].get("screen")) for data in custom)
    assert {(name, screen): count for name, screen, count in found} == inside
    assert any(screen for _, screen in inside)


def assert_types(snowflake: Snowflake) -> None:
    """Check that objects are VARIANT, times without a zone and names spelled with `_`."""
    types = snowflake.types()
    for kind, names in (("VARIANT", OBJECTS), ("TIMESTAMP_NTZ", TIMES)):
        assert {name for name in types if types[name] == kind} == set(map(column, names))
    assert types["SESSIONS.EVENT_COUNT"] == "NUMBER"
    assert types["SESSIONS.HAS_CRASH"] == "BOOLEAN"


@pytest.mark.pipeline
def test_what_is_masked_or_deselected_never_reaches_snowflake(
    snowflake: Snowflake, sandbox: Sandbox, tmp_path: Path
) -> None:
    """The job of the example hashes users with a salt, cuts URLs, and leaves columns out."""
    meltano = MeltanoProject(tmp_path / "project", include=MASKED)
    settings = tap_settings(sandbox) | snowflake.settings | {"BUGSPULSE_SALT": "sea"}
    assert meltano.run("masked-to-snowflake", settings=settings) == 0

    rows = held(sandbox.project)
    assert any(row["userId"] is None for row in rows["sessions"])
    assert any("?" in row["url"] for row in rows["network"])
    for row in rows["sessions"]:
        del row["networkType"]
        if row["userId"] is not None:
            row["userId"] = hashlib.sha256(f"sea{row['userId']}".encode()).hexdigest()
    for row in rows["network"]:
        row["url"] = row["url"].split("?")[0]
    for row in itertools.chain(*rows.values()):
        del row["_extra"]
    assert_same(snowflake.rows(rows), rows)
    assert "SESSIONS.NETWORK_TYPE" not in snowflake.types()


@pytest.mark.pipeline
def test_text_with_a_null_character_loads(
    snowflake: Snowflake, sandbox: Sandbox, meltano: MeltanoProject
) -> None:
    """U+0000 stays as it is, in a text and at any depth of an object."""
    project = sandbox.project
    event = next(events[0] for events in project.events.values() if events)
    call = next(iter(project.network.values()))
    event["data"], call["error"] = {"text": "a\0b", "deep": {"more": ["c\0"]}}, "e\0"
    project.changed("events", "network")
    settings = tap_settings(sandbox) | snowflake.settings
    assert meltano.run(*RUN, settings=settings) == 0
    rows = held(project)
    assert_same(snowflake.rows(rows), rows)


@pytest.mark.pipeline
def test_a_killed_run_into_snowflake_is_carried_on_by_the_next(
    snowflake: Snowflake, sandbox: Sandbox, meltano: MeltanoProject
) -> None:
    """A whole `meltano run` that is killed leaves nothing out and nothing twice."""
    settings = tap_settings(sandbox) | snowflake.settings
    # A limit of no time: what is new, and the events that were on their way, with a state.
    limit = {"TAP_BUGSPULSE_MAX_RUNTIME_MINUTES": "0.000001"}
    assert meltano.run(*RUN, settings=settings | limit) == 0
    first = events_asked(sandbox)
    assert 1 <= len(first) <= CONCURRENCY

    sandbox.reset()
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        running = meltano.start("run", *RUN, settings=settings, output=nowhere)
    try:
        wait_until(lambda: len(events_asked(sandbox)) >= 20, 90)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        assert running.wait(90) == -signal.SIGKILL
    # Meltano takes the killed run for one that still goes on, for five minutes.
    assert meltano.run("--force", *RUN, settings=settings) == 0
    rows = held(sandbox.project)
    assert_same(snowflake.rows(rows), rows)
    assert not {*first} & {*events_asked(sandbox)}


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "ACCOUNT USER DATABASE WAREHOUSE PRIVATE_KEY_PATH"),
        ({"ACCOUNT": "a", "USER": "u", "PASSWORD": "p"}, "DATABASE WAREHOUSE"),
    ],
)
def test_a_real_account_needs_its_variables(given: dict[str, str], missing: str) -> None:
    """`make test-snowflake` names the variables that are not set, and does nothing else."""
    variables = {f"TARGET_SNOWFLAKE_{name}": text for name, text in given.items()}
    command = ("make", "--no-print-directory", "test-snowflake")
    done = run(*command, env={"PATH": os.environ["PATH"], **variables})
    assert (done.returncode, done.stdout) == (2, "")
    names = "".join(f" TARGET_SNOWFLAKE_{name}" for name in missing.split())
    assert done.stderr.splitlines()[0] == (
        f"These tests load into a Snowflake account of yours. Not set:{names}"
    )


def test_a_real_account_gets_a_schema_of_the_tests(tmp_path: Path) -> None:
    """Target and connector are given the account's variables, and the throwaway schema."""
    given = {
        "ACCOUNT": "myorg-account123",
        "USER": "LOADER",
        "PRIVATE_KEY_PATH": str(tmp_path / "key.p8"),
        "DEFAULT_TARGET_SCHEMA": "PRODUCTION",
    }
    variables = {f"TARGET_SNOWFLAKE_{name}": text for name, text in given.items()}
    settings, connection = account(variables | {"HOME": "/home/somebody"}, "BUGSPULSE_TEST_1")
    schema = {"TARGET_SNOWFLAKE_DEFAULT_TARGET_SCHEMA": "BUGSPULSE_TEST_1"}
    assert settings == variables | schema
    assert connection == {
        "account": "myorg-account123",
        "user": "LOADER",
        "private_key_file": given["PRIVATE_KEY_PATH"],
        "schema": "BUGSPULSE_TEST_1",
    }
