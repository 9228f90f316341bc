"""The examples that no test runs: that they are well formed, and fit the project.

Those that are run are in test_schedules.py, test_snowflake.py, test_airflow.py, test_dagster.py
and test_dashboard.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # it has no types

from tests.pipeline.children import CHECKOUT

pytestmark = pytest.mark.sources

EXAMPLES = CHECKOUT / "examples"
KUBERNETES = EXAMPLES / "kubernetes"
PREFECT = EXAMPLES / "prefect" / "bugspulse_prefect.py"
PROJECT = yaml.safe_load((CHECKOUT / "meltano.yml").read_text("utf-8"))
JOBS = {job["name"]: job["tasks"] for job in PROJECT["jobs"]}
DOCKERFILE = (KUBERNETES / "Dockerfile").read_text("utf-8")
LIMIT = re.compile(r"TAP_BUGSPULSE_MAX_RUNTIME_MINUTES\W+(?:value: \")?(\d+)")


def instructions(name: str) -> list[str]:
    """Return what the Dockerfile gives to an instruction, each time it stands there."""
    return re.findall(rf"^{name} (.+)$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    """What the CronJob has each hour's job be."""
    cron = yaml.safe_load((KUBERNETES / "bugspulse.yaml").read_text("utf-8"))
    assert (cron["kind"], cron["spec"]["concurrencyPolicy"]) == ("CronJob", "Forbid")
    spec: dict[str, Any] = cron["spec"]["jobTemplate"]["spec"]
    return spec


@pytest.mark.parametrize(
    "path", [KUBERNETES / "bugspulse.yaml", PREFECT], ids=lambda path: path.name
)
def test_what_is_not_tested_says_so(path: Path) -> None:
    """The sketches say in their first line that they are untested, and call a job that is there."""
    text = path.read_text("utf-8")
    assert "not tested" in text.splitlines()[0].lower()
    assert set(JOBS) & set(re.findall(r"[a-z]+(?:-[a-z]+)+", text))
    if path.suffix == ".py":
        compile(text, path.name, "exec")


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("cron/bugspulse.crontab", None),
        ("prefect/bugspulse_prefect.py", None),
        ("dagster/bugspulse_dagster.py", r'"dagster/max_runtime": (\d+)'),
        ("kubernetes/bugspulse.yaml", r"activeDeadlineSeconds: (\d+)"),
        ("airflow/bugspulse_dag.py", r"execution_timeout=timedelta\(minutes=(\d+)\)"),
    ],
)
def test_the_tap_ends_before_anything_ends_it(name: str, ends: str | None) -> None:
    """Its limit leaves eight minutes or more to what ends a run, which the next hour is at last."""
    text = (EXAMPLES / name).read_text("utf-8")
    minutes = 60.0
    if ends:
        (found,) = re.findall(ends, text)
        minutes = int(found) if "minutes" in ends else int(found) / 60
        assert minutes < 60
    (limit,) = set(LIMIT.findall(text))
    assert int(limit) + 8 <= minutes


def test_the_pod_runs_what_the_image_runs_by_itself(job: dict[str, Any]) -> None:
    """Its arguments are those of the Dockerfile: a job of meltano.yml, of plugins it installs."""
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    (entrypoint,), (command,) = instructions("ENTRYPOINT"), instructions("CMD")
    assert json.loads(entrypoint) == ["meltano"]
    environment, run, name = json.loads(command)
    assert container["args"] == [environment, run, name]
    assert "command" not in container
    assert environment.removeprefix("--environment=") in {
        one["name"] for one in PROJECT["environments"]
    }
    (plugins,) = re.findall(r'^ARG PLUGINS="(.+)"$', DOCKERFILE, re.MULTILINE)
    existing = {one["name"] for kind in PROJECT["plugins"].values() for one in kind}
    assert set(" ".join(JOBS[name]).split()) <= set(plugins.split()) <= existing


def test_the_image_holds_what_is_there_and_no_secret(job: dict[str, Any]) -> None:
    """What is copied exists and is all that the build may see; the user is not root."""
    copied = {source.rstrip("/") for line in instructions("COPY") for source in line.split()[:-1]}
    assert all((CHECKOUT / source).exists() for source in copied)
    ignored = (KUBERNETES / "Dockerfile.dockerignore").read_text("utf-8").split()
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert ".env" not in copied
    # A secret that comes by one of these stays in the image.
    given = " ".join([*instructions("ARG"), *instructions("ENV")])
    assert not re.search("KEY|TOKEN|PASSWORD|SECRET", given)
    assert [int(user) > 0 for user in instructions("USER")] == [True]
    assert job["template"]["spec"]["securityContext"]["runAsNonRoot"]


def test_meltano_with_a_bucket_fits_its_constraints() -> None:
    """The lock of Meltano holds what its extras for buckets need, so that they install."""
    locked = (CHECKOUT / "constraints" / "meltano.txt").read_text("utf-8")
    for name in ("boto3", "google-cloud-storage", "azure-storage-blob"):
        assert re.search(rf"^{name}==", locked, re.MULTILINE), name


def test_the_workflow_of_the_image_builds_that_dockerfile() -> None:
    """What image.yml runs builds the Dockerfile of the example, and the Dockerfile says so."""
    assert "make test-image" in (CHECKOUT / ".github/workflows/image.yml").read_text("utf-8")
    script = (CHECKOUT / "scripts" / "test_image.sh").read_text("utf-8")
    assert "--file examples/kubernetes/Dockerfile " in script
    head = " ".join(line.lstrip("# ") for line in DOCKERFILE.split("\n") if line[:1] == "#")
    assert ".github/workflows/image.yml builds it" in head
    assert "do not build it" in head
