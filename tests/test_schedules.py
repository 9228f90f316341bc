"""What runs by itself: jobs and schedules, cron, GitHub Actions, several projects."""

from __future__ import annotations

import base64
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml  # type: ignore[import-untyped] # it has no types
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.pipeline.children import CHECKOUT
from tests.pipeline.meltano import MeltanoProject
from tests.pipeline.truth import assert_same, change, events_asked, held, tap_settings
from tests.pipeline.warehouse import Snowflake, emptied
from tests.sandbox import Options, Sandbox, generate
from tests.test_release import run, succeed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


pytestmark = pytest.mark.sources

EXAMPLES = CHECKOUT / "examples"
PROJECTS = EXAMPLES / "several-projects" / "projects.meltano.yml"
CRONTAB = EXAMPLES / "cron" / "bugspulse.crontab"
WORKFLOW = EXAMPLES / "github-actions" / "load.yml"
NOW = datetime.now(UTC)


@pytest.fixture
def snowflake(emulated_snowflake: Snowflake) -> Iterator[Snowflake]:
    """An emulated Snowflake that is empty."""
    with emptied(emulated_snowflake) as server:
        yield server


def sandbox_of(name: str, seed: int = 3) -> Sandbox:
    """Serve a small project under a key of its name; those of one seed are alike, ids and all."""
    project = generate(seed, 40, 4, NOW, crash_groups=4)
    return Sandbox(project, Options((f"bp_{name}",), requests_per_minute=None))


def read(path: Path) -> dict[str, Any]:
    """Read a YAML file."""
    content: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return content


@pytest.mark.parametrize("path", [CHECKOUT / "meltano.yml", PROJECTS], ids=lambda p: p.name)
def test_schedules_jobs_and_plugins_fit_together(path: Path) -> None:
    """Each schedule has a job that is there, each job's plugins are there, each is run."""
    base, own = read(CHECKOUT / "meltano.yml")["plugins"], read(path)
    names = {
        ":".join([plugin["name"], *command])
        for kind in ("extractors", "loaders", "utilities")
        for plugin in (*base[kind], *own["plugins"].get(kind, []))
        for command in ([], *([name] for name in plugin.get("commands", [])))
    }
    jobs = {job["name"]: job["tasks"] for job in own["jobs"]}
    # One job is there for whoever schedules it in place of another.
    scheduled = {schedule["job"] for schedule in own["schedules"]}
    assert set(jobs) - scheduled <= {"bugspulse-to-snowflake-tables"}
    assert scheduled <= set(jobs)
    for tasks in jobs.values():
        assert {name for task in tasks for name in task.split()} <= names
    assert len({schedule["interval"] for schedule in own["schedules"]}) == len(scheduled)


@pytest.mark.pipeline
def test_several_projects_share_one_set_of_tables(snowflake: Snowflake, tmp_path: Path) -> None:
    """Two apps with the same ids are kept apart; one that has no key stops, alone."""
    meltano = MeltanoProject(tmp_path / "project", include=PROJECTS)
    jobs = ("shop-to-snowflake", "courier-to-snowflake")
    with sandbox_of("shop") as shop, sandbox_of("courier") as courier:
        settings = snowflake.settings | {
            "TAP_BUGSPULSE_API_KEY": shop.api_key,  # not inherited
            "TAP_BUGSPULSE_REQUESTS_PER_MINUTE": "60000",  # inherited
            "TAP_BUGSPULSE__SHOP_API_URL": shop.url,
            "TAP_BUGSPULSE__SHOP_API_KEY": shop.api_key,
            "TAP_BUGSPULSE__COURIER_API_URL": courier.url,
        }
        assert meltano.run(*jobs, settings=settings) == 1
        assert courier.requests == []
        first = held(shop.project, "shop")
        assert_same(snowflake.rows(first), first)

        settings["TAP_BUGSPULSE__COURIER_API_KEY"] = courier.api_key
        changed = change(shop.project)
        shop.reset()
        assert meltano.run(*jobs, settings=settings) == 0
        # The first brings its changes, though another's state came between.
        assert sorted(events_asked(shop)) == sorted(changed)
        assert set(courier.project.sessions) < set(shop.project.sessions)
        other = held(courier.project, "courier")
        both = {name: rows + other[name] for name, rows in held(shop.project, "shop").items()}
        assert_same(snowflake.rows(both), both)


def installed(meltano: MeltanoProject) -> None:
    """Put the checkout's Meltano where the examples look for it."""
    (meltano.directory / ".venv-meltano").symlink_to(CHECKOUT / ".venv-meltano")


@pytest.mark.pipeline
def test_the_line_for_cron_runs_with_what_cron_gives(snowflake: Snowflake, tmp_path: Path) -> None:
    """It loads with settings from .env only, is silent, and tells why where it fails."""
    meltano = MeltanoProject(tmp_path / "project")
    installed(meltano)
    *_, line = CRONTAB.read_text("utf-8").splitlines()
    *when, command = line.split(maxsplit=5)
    assert all(re.fullmatch(r"[\d*/,-]+", field) for field in when)
    assert "%" not in command, "cron makes it a new line"
    assert command.count("/srv/bugspulse") == 1
    command = command.replace("/srv/bugspulse", str(meltano.directory))
    environment = {"HOME": str(meltano.home), "LOGNAME": "loader"}
    environment |= {"PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}

    def mailed(**settings: str) -> str:
        """Run it with an .env, and return what cron mails."""
        dotenv = "".join(f"{name}='{text}'\n" for name, text in (given | settings).items())
        (meltano.directory / ".env").write_text(dotenv)
        done = run("/bin/sh", "-c", command, env=environment, cwd=Path("/"))
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    meltano.home.mkdir()
    given = {"MELTANO_AUTO_INSTALL": "false"} | snowflake.settings
    with sandbox_of("key") as sandbox:
        mail = mailed()
        assert "api_key" in mail
        assert all(re.search(r"\[(warning|error|critical)", one) for one in mail.splitlines())
        assert sandbox.requests == []
        assert mailed(**tap_settings(sandbox)) == ""
        rows = held(sandbox.project)
        assert_same(snowflake.rows(rows), rows)
        # Without Meltano there is no line of its log, and what the shell said is mailed.
        (meltano.directory / ".venv-meltano").unlink()
        assert "not found" in mailed()


@pytest.mark.pipeline
def test_the_workflow_keeps_the_state_from_run_to_run(snowflake: Snowflake, tmp_path: Path) -> None:
    """Its steps load on a fresh machine each, and what the cache keeps is enough."""
    (job,) = read(WORKFLOW)["jobs"].values()
    steps: list[dict[str, Any]] = job["steps"]
    restore, save = (step["with"] for step in steps if "cache/" in step.get("uses", ""))
    assert (save["path"], save["key"]) == (restore["path"], restore["key"])
    assert save["key"].startswith(restore["restore-keys"])
    assert steps[-1]["if"] == "always()"
    load = next(step for step in steps if "env" in step)
    box = int(load["env"]["TAP_BUGSPULSE_MAX_RUNTIME_MINUTES"])
    assert box <= job["timeout-minutes"] - 10

    with sandbox_of("key") as sandbox:
        settings = tap_settings(sandbox) | snowflake.settings
        # The target takes one way to sign in, and the workflow has the key.
        del settings["TARGET_SNOWFLAKE_PASSWORD"]
        settings |= {"TARGET_SNOWFLAKE_PRIVATE_KEY": key(), "MELTANO_AUTO_INSTALL": "false"}
        settings |= {"TARGET_SNOWFLAKE_WAREHOUSE": "LOADING"}
        values = {f"secrets.{name}": text for name, text in settings.items()}
        # Beside the secrets, what takes it to the sandbox and the emulated Snowflake.
        around = {name: settings[name] for name in settings.keys() - load["env"].keys()}
        cache, changed = tmp_path / "cache", set[str]()
        for number in ("one", "two"):
            meltano = MeltanoProject(tmp_path / number)
            installed(meltano)
            if cache.exists():
                shutil.move(cache, meltano.directory / restore["path"])
                changed = change(sandbox.project)
            values["github.workspace"] = str(meltano.directory)
            around |= {"PATH": "/usr/bin:/bin", "HOME": str(meltano.home)}
            sandbox.reset()
            for step in (one for one in steps if "run" in one):
                given = filled(job["env"] | step.get("env", {}), values)
                # Set-up is that of the checkout, and done.
                cwd = CHECKOUT if "setup.sh" in step["run"] else meltano.directory
                # As GitHub runs it.
                succeed("/bin/bash", "-e", "-c", step["run"], env=around | given, cwd=cwd)
            shutil.copytree(meltano.directory / save["path"], cache)
        assert sorted(events_asked(sandbox)) == sorted(changed)
        rows = held(sandbox.project)
        assert_same(snowflake.rows(rows), rows)


def key() -> str:
    """Make a private key, in the form that the target asks for."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return base64.b64encode(
        private.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    ).decode()


def filled(variables: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """Put values where a workflow has expressions; a secret that is not set is empty."""
    return {
        name: re.sub(r"\$\{\{ (\S+) \}\}", lambda match: values.get(match[1], ""), text)
        for name, text in variables.items()
    }
