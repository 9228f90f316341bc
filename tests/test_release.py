"""What surrounds the package: the lock, the definition for MeltanoHub, the workflows."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import typing as t
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped] # it has no types
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.documents import blocks, text
from tests.pipeline.children import CHECKOUT

if t.TYPE_CHECKING:
    from types import ModuleType

pytestmark = pytest.mark.sources

SECONDS = 300
WORKFLOWS = sorted((CHECKOUT / ".github" / "workflows").glob("*.yml"))
HUB = "docs/hub/tap-bugspulse.yml"
PYPROJECT = tomllib.loads(text("pyproject.toml"))
PROJECT = PYPROJECT["project"]
PINNED = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


def run(
    *command: str | Path, cwd: Path = CHECKOUT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it said."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def succeed(*command: str | Path, cwd: Path = CHECKOUT, env: dict[str, str] | None = None) -> str:
    """Run a command that must end with 0 and return what it printed."""
    done = run(*command, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def script(name: str) -> ModuleType:
    """Import a script."""
    spec = importlib.util.spec_from_file_location(name, CHECKOUT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_targets(names: t.Iterable[str]) -> None:
    """Expect that `make` has these targets."""
    assert {*names} <= set(re.findall("^([a-z-]+):", text("Makefile"), re.MULTILINE))


def test_the_lock_covers_what_the_project_asks_for() -> None:
    """Each requirement of tap and development is locked, within its bounds."""
    locked = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", text("constraints/dev.txt")))
    for requirement in (*PROJECT["dependencies"], *PYPROJECT["dependency-groups"]["dev"]):
        asked = Requirement(requirement)
        assert asked.specifier.contains(locked[canonicalize_name(asked.name)]), requirement


# --- MeltanoHub -----------------------------------------------------------------------


def described(settings: list[dict[str, t.Any]]) -> dict[str, t.Any]:
    """Return what the hub and meltano.yml must say alike of each setting."""
    return {
        setting["name"]: (
            setting["kind"],
            setting.get("sensitive", False),
            [option["value"] for option in setting.get("options", [])],
        )
        for setting in settings
    }


def test_the_hub_definition_is_what_the_tap_says() -> None:
    """What `make hub` writes is in docs/hub already."""
    assert succeed(sys.executable, "scripts/hub_definition.py") == text(HUB)


def test_meltano_and_the_hub_know_the_same_settings() -> None:
    """meltano.yml and the definition have the same settings, explained, and capabilities."""
    hub = yaml.safe_load(text(HUB))
    (ours,) = yaml.safe_load(text("meltano.yml"))["plugins"]["extractors"]
    assert described(ours["settings"]) == described(hub["settings"])
    assert sorted(ours["capabilities"]) == hub["capabilities"]
    for name in ("name", "namespace", "label", "executable"):
        assert ours[name] == hub[name]
    for setting in hub["settings"]:
        assert setting["label"]
        assert setting["description"].endswith("."), setting["name"]
        # The key alone is a secret, and has to be there.
        assert setting.get("sensitive", False) is (setting["name"] == "api_key")
    assert hub["settings_group_validation"] == [["api_key"]]


def test_the_hub_definition_names_the_repository_where_it_is_known() -> None:
    """The address of the repository in pyproject.toml comes into the definition."""
    about: dict[str, t.Any] = {"name": "tap-bugspulse", "capabilities": []}
    about |= {"settings": {"properties": {}, "required": []}}
    project = PROJECT | {"urls": {"Repository": "https://git.example/owner/name"}}
    found = script("hub_definition").definition(about, project)
    assert found["repo"] == "https://git.example/owner/name"


# --- Workflows ------------------------------------------------------------------------


@pytest.mark.long
def test_the_audit_finds_nothing() -> None:
    """The workflows pass zizmor and have the form that GitHub publishes, offline."""
    env = {name: value for name, value in os.environ.items() if name != "GH_TOKEN"}
    done = run("sh", "scripts/audit.sh", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No findings to report" in done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("permissions: {}", "permissions: write-all"),
        (" # v7.0.1\n        with:\n          persist-credentials: false", " # v7.0.1"),
        ("actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1", "actions/checkout@v7"),
        ("timeout-minutes: 15", ""),
        ("runs-on:", "run-on:"),
    ],
)
def test_the_audit_finds_what_is_wrong(old: str, new: str, tmp_path: Path) -> None:
    """A workflow with too many rights, a loose pin or a wrong form fails the audit."""
    for name in (".github", "scripts", "examples/github-actions"):
        shutil.copytree(CHECKOUT / name, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("zizmor", "check-jsonschema"):
        (tmp_path / ".venv" / "bin" / name).symlink_to(Path(sys.executable).parent / name)
    workflow = tmp_path / ".github" / "workflows" / "audit.yml"
    before = workflow.read_text()
    assert old in before
    workflow.write_text(before.replace(old, new))
    assert run("sh", "scripts/audit.sh", cwd=tmp_path).returncode != 0


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_do_nothing_but_what_it_says(path: Path) -> None:
    """Rights are given to jobs, and each action is pinned to a commit and a version."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    assert all("permissions" in job for job in workflow["jobs"].values())
    used = re.findall(r"uses: (.*)", path.read_text())
    assert used
    for action in used:
        assert action.startswith("$/") or PINNED.fullmatch(action), action


def jobs() -> dict[str, t.Any]:
    """Return the jobs of the workflow that tests."""
    found: dict[str, t.Any] = yaml.safe_load(text(".github/workflows/test.yml"))["jobs"]
    return found


def test_one_check_stands_for_all_jobs() -> None:
    """The job that a pull request needs waits for all others and runs in any case."""
    assert sorted(jobs()["required"]["needs"]) == sorted(jobs().keys() - {"required"})
    assert jobs()["required"]["if"] == "always()"


@pytest.mark.parametrize("result", ["success", "failure", "cancelled", "skipped"])
@pytest.mark.parametrize("order", [1, -1])
def test_the_one_check_needs_every_success(result: str, order: int) -> None:
    """One job that failed, was cancelled or was skipped fails the check."""
    (step,) = jobs()["required"]["steps"]
    env = {"PATH": os.environ["PATH"], "RESULTS": " ".join(["success", result][::order])}
    # As GitHub runs it.
    assert run("bash", "-e", "-c", step["run"], env=env).returncode == (result != "success")


def test_every_supported_python_is_tested() -> None:
    """The wheel is tested on the versions that the package says it supports."""
    named = re.findall(r":: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert jobs()["wheel"]["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_the_workflows_call_targets_that_exist() -> None:
    """Each `make` and each script that a workflow runs is there."""
    whole = "\n".join(path.read_text() for path in WORKFLOWS)
    targets = set(re.findall(r"\bmake ([a-z-]+)$", whole, re.MULTILINE))
    assert targets == {"wheel", "test-wheel", "test-image", "test-all", "lint", "audit"}
    assert_targets(targets)
    for name in re.findall(r"scripts/\S+", whole):
        assert (CHECKOUT / name).is_file(), name


def test_each_command_runs_the_tests_that_their_marks_say() -> None:
    """`make test` leaves out each mark that is slow, `make test-wheel` each there is."""
    settings = PYPROJECT["tool"]["pytest"]["ini_options"]
    marks = {mark.split(":")[0] for mark in settings["markers"]}
    assert left_out(" ".join(settings["addopts"])) == marks - {"sources"}
    assert left_out(text("scripts/test_wheel.sh")) == marks
    target = text("Makefile").split("\ntest-all:")[1].split("\n\n")[0]
    assert left_out(target) == {"slow", "account"}


def left_out(command: str) -> set[str]:
    """Return the marks that a command of pytest leaves out."""
    (marks,) = re.findall(r"-m '?not \((.*?)\)", command)
    return set(marks.split(" or "))


def test_what_is_run_before_a_release_is_there() -> None:
    """`.ci/run` has the linters, all tests, and the wheel on two versions of Python."""
    targets = re.findall(r"^ *(?:elif )?make ([a-z-]+)", text(".ci/run"), re.MULTILINE)
    assert targets == ["lint", "test-all", "wheel", "test-wheel"]


def test_contributing_names_what_is_there() -> None:
    """Its commands and files exist, and its example is a class of the tap."""
    page = text(".github/CONTRIBUTING.md")
    assert_targets(re.findall(r"`make ([a-z-]+)`", page))
    package = CHECKOUT / "tap_bugspulse"
    places = (package, CHECKOUT / "tests", CHECKOUT / "tests" / "sandbox")
    for name in re.findall(r"`(?:tap_bugspulse/)?([a-z_]+\.py)`", page):
        assert any((place / name).is_file() for place in places), name
    named = set(re.findall(r"`([a-z_]+)\.py`", text("docs/architecture.md")))
    assert {path.stem for path in package.glob("[!_]*.py")} <= named
    (example,) = (one for one in blocks(".github/CONTRIBUTING.md") if one.language == "python")
    assert example.text in (package / "streams.py").read_text()


# --- A release ------------------------------------------------------------------------

CHANGELOG = """# Changelog

## Unreleased

- Next.

## 1.2.3 (2026-01-31)

- This.

## 1.2.2 (2026-01-01)

- Before.
"""


def test_the_notes_of_a_release_are_its_section() -> None:
    """A release tells what the changelog says under its version, no more."""
    notes = script("release_notes").notes
    assert notes("v1.2.3", "1.2.3", CHANGELOG) == "- This."
    assert notes("v1.2.2", "1.2.2", CHANGELOG) == "- Before."


@pytest.mark.parametrize(
    ("tag", "version", "message"),
    [
        ("1.2.3", "1.2.3", "the tag is 1.2.3, but pyproject.toml has version 1.2.3"),
        ("v1.2.4", "1.2.4", "CHANGELOG.md has no heading '## 1.2.4 (YYYY-MM-DD)'"),
    ],
)
def test_a_release_that_does_not_agree_is_refused(tag: str, version: str, message: str) -> None:
    """A tag without its v, and a version that the changelog has not, end the release."""
    with pytest.raises(ValueError, match=re.escape(message)):
        script("release_notes").notes(tag, version, CHANGELOG)


def test_a_tag_of_another_version_ends_with_one_line() -> None:
    """The command fails and says in one line what differs."""
    done = run(sys.executable, "scripts/release_notes.py", "v0.0.0")
    says = f"the tag is v0.0.0, but pyproject.toml has version {PROJECT['version']}\n"
    assert (done.returncode, done.stderr) == (1, says)
