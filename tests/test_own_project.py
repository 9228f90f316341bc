"""The dbt package in `transform/`, in a dbt project of one's own."""

from __future__ import annotations

import functools
import json
import shutil
from typing import TYPE_CHECKING

import pytest
import yaml  # type: ignore[import-untyped] # it has no types

from tests.conftest import NOW
from tests.documents import blocks
from tests.pipeline.children import environment, serving
from tests.pipeline.marts import marts
from tests.pipeline.transform import TRANSFORM, Dbt, DuckDb, Postgres, by_key, tables
from tests.pipeline.truth import held
from tests.running import sync
from tests.test_release import succeed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.sandbox import Sandbox

pytestmark = pytest.mark.dbt

DATA = {"seed": 3, "sessions": 60, "days": 5, "until": NOW}


@pytest.fixture(params=["duckdb"])
def warehouse(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DuckDb | Postgres]:
    """A database with nothing loaded: DuckDB, or the one that a test names."""
    if request.param == "duckdb":
        yield DuckDb(tmp_path / "duckdb")
        return
    with serving("tests.pipeline.postgres", home=tmp_path / "home") as server:
        yield Postgres(server["dsn"], tmp_path / "postgres")


@pytest.fixture
def dbt(tmp_path: Path, warehouse: DuckDb | Postgres) -> Iterator[Dbt]:
    """One process of dbt, which knows the database."""
    with Dbt(tmp_path / "dbt") as started:
        started.add(warehouse.name, warehouse.output())
        yield started


def repository(folder: Path) -> str:
    """Return the address of a repository that holds the package as it is in the checkout."""
    made = folder / "repository"
    shutil.copytree(TRANSFORM, made / "transform")
    git = functools.partial(succeed, "git", cwd=made, env=environment(folder / "home"))
    git("init", "--quiet", "--initial-branch", "main")
    git("add", ".")
    git("-c", "user.name=A", "-c", "user.email=a@example.com", "commit", "--quiet", "-m", "A")
    return made.as_uri()


def project_of_ones_own(folder: Path, packages: object, variables: object) -> Path:
    """Return an empty dbt project that has the package."""
    project = folder / "shop"
    project.mkdir()
    settings = {"name": "shop", "profile": "bugspulse", "vars": variables}
    (project / "dbt_project.yml").write_text(json.dumps(settings), "utf-8")
    (project / "packages.yml").write_text(json.dumps(packages), "utf-8")
    return project


@pytest.mark.parametrize("warehouse", ["duckdb", "postgres"], indirect=True)
def test_package_is_installed_from_git_as_the_readme_says(
    dbt: Dbt, warehouse: DuckDb | Postgres, sandbox: Sandbox, tmp_path: Path
) -> None:
    """The lines of the README, but for the address, the funnel and the schema, give the tables."""
    warehouse.load(sync(sandbox, NOW))

    readme = blocks("transform/README.md")
    packages, settings = [yaml.safe_load(one.text) for one in readme if one.language == "yaml"][:2]
    assert packages["packages"][0]["git"] == "<address of this repository>"
    packages["packages"][0]["git"] = repository(tmp_path)
    funnel = ["Home", "Product", "Cart"]
    assert settings["vars"]["bugspulse_funnel"] != funnel
    own: dict[str, object] = {"bugspulse_schema": "bugspulse", "bugspulse_funnel": funnel}
    if isinstance(warehouse, DuckDb):
        own["bugspulse_files"] = str(warehouse.folder / "output")
    project = project_of_ones_own(tmp_path, packages, settings["vars"] | own)

    commands = next(one.text for one in readme if one.text.startswith("dbt deps")).splitlines()
    installed, built = (
        dbt.run(warehouse.name, *command.split()[1:], variables={}, project=project)
        for command in commands
    )
    assert installed["success"], installed
    # That a branch moves, see the README.
    assert installed["warnings"]
    assert all('is pinned to the "main" branch' in one for one in installed["warnings"])
    assert built["success"], built
    assert built["problems"] + built["warnings"] == []
    truth = marts(held(sandbox.project), funnel=funnel)
    assert truth["funnel_daily"]
    found = tables(warehouse, ["sessions", "funnel_daily"])
    assert found == {name: by_key(name, truth[name]) for name in found}


OWN_TIME_SPINE = {
    "name": "calendar",
    "time_spine": {"standard_granularity_column": "day"},
    "columns": [{"name": "day", "granularity": "day"}],
}


def test_metrics_are_asked_for_and_leave_a_time_spine_of_ones_own(dbt: Dbt, tmp_path: Path) -> None:
    """Without the variable there are none; with it, days are still those of the project."""
    project = project_of_ones_own(tmp_path, {"packages": [{"local": str(TRANSFORM)}]}, {})
    (project / "models").mkdir()
    (project / "models" / "calendar.sql").write_text("select current_date as day", "utf-8")
    models = json.dumps({"models": [OWN_TIME_SPINE]})
    (project / "models" / "models.yml").write_text(models, "utf-8")
    assert dbt.run("duckdb", "deps", variables={}, project=project)["success"]

    def parsed(**variables: bool) -> tuple[int, dict[str, str]]:
        """Return the number of metrics, and the time spine of each granularity."""
        answer = dbt.run("duckdb", "parse", variables=variables, project=project)
        assert answer["success"], answer
        text = (tmp_path / "dbt" / "target-duckdb" / "semantic_manifest.json").read_text("utf-8")
        manifest = json.loads(text)
        assert bool(manifest["semantic_models"]) == bool(manifest["metrics"])
        spines = manifest["project_configuration"]["time_spines"]
        found = {
            one["primary_column"]["time_granularity"]: one["node_relation"]["alias"]
            for one in spines
        }
        assert len(found) == len(spines)
        return len(manifest["metrics"]), found

    own = {"day": "calendar"}
    assert parsed() == (0, own)
    assert parsed(bugspulse_metrics=True) == (9, own | {"hour": "bugspulse__time_spine"})
    assert parsed(bugspulse_metrics=True, bugspulse_time_spine=False) == (9, own)
