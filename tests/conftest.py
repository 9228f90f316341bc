"""Fixtures that several test modules share."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet
from hypothesis import HealthCheck, settings

from tests import forks
from tests.loads import Load
from tests.pipeline.connector import Connector
from tests.pipeline.warehouse import Snowflake, emulated
from tests.sandbox import Options, Sandbox, generate_once
from tests.tap_process import Starter

# The same examples in each run, fewer where what is long is left out;
# HYPOTHESIS_PROFILE=long looks at many others.
slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", slow, derandomize=True, database=None, max_examples=12)
settings.register_profile("default", slow, derandomize=True, database=None, max_examples=36)
settings.register_profile("long", slow, database=None, max_examples=3000)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
# Tests here wait for as long as those do that load by Meltano; nearly all others take less
# than a second.
LONGEST = ("test_http", "test_errors", "test_sequences", "test_snowflake")


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples a property is tried with."""
    is_quick = re.search(r"not \(.*\blong\b", config.option.markexpr)
    usual = "quick" if is_quick else "default"
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", usual))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, else one process is left with it in the end."""

    def is_short(item: pytest.Item) -> bool:
        marks = map(item.get_closest_marker, ("dbt", "pipeline", "long"))
        return item.path.stem not in LONGEST and not any(marks)

    items.sort(key=is_short)


def sweep(
    names: str, *values: Iterable[object], quick: Collection[tuple[object, ...]]
) -> pytest.MarkDecorator:
    """Return a test each combination of some values; those that are not quick are long."""
    return pytest.mark.parametrize(
        names.split(),
        [
            pytest.param(*one, marks=() if one in quick else pytest.mark.long)
            for one in itertools.product(*values)
        ],
    )


def tiered(cases: Sequence[tuple[object, ...]], quick: int) -> list[ParameterSet]:
    """Return cases of which all but the first few are for the longer tests."""
    marks = [() if number < quick else pytest.mark.long for number in range(len(cases))]
    return [pytest.param(*case, marks=mark) for case, mark in zip(cases, marks, strict=True)]


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """The server of forks ends with the tests."""
    yield
    forks.stop()


@pytest.fixture(scope="session")
def connector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connector]:
    """Snowflake's connector."""
    with Connector(tmp_path_factory.mktemp("connector")) as started:
        yield started


@pytest.fixture(scope="session")
def emulated_snowflake(
    tmp_path_factory: pytest.TempPathFactory, connector: Connector
) -> Iterator[Snowflake]:
    """An emulated Snowflake, which takes two seconds to start; tests use it in turn."""
    with emulated(tmp_path_factory.mktemp("snowflake"), connector) as started:
        yield started


@pytest.fixture
def now() -> datetime:
    """The instant that the tap's clock shows."""
    return NOW


def with_project(**data: object) -> pytest.MarkDecorator:
    """Return a test whose sandbox has another project than the usual one."""
    return pytest.mark.parametrize("sandbox", [data], indirect=True, ids=["other"])


# For tests that count more requests than the usual project needs.
LARGER = with_project(seed=7, sessions=120)


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A small project of 20 days, without a rate limit.

    Its seed gives crashes in six sessions, four of them within the lookback, calls that
    failed in seven, and sessions that go on, have no events or no user. A module's DATA
    and the parameter of a test say what is otherwise.
    """
    usual = {"seed": 126, "sessions": 70, "days": 20, "until": NOW - timedelta(hours=1)}
    own = getattr(request.module, "DATA", {}) | getattr(request, "param", {})
    with Sandbox(generate_once(**usual | own), Options(requests_per_minute=None)) as running:
        yield running


@pytest.fixture
def start(sandbox: Sandbox, tmp_path: Path, now: datetime) -> Starter:
    """Start the tap as a process, once or more often."""
    return Starter(sandbox, tmp_path, now)


@pytest.fixture
def load(sandbox: Sandbox, start: Starter) -> Load:
    """Run the tap as a process to its end, once or more often."""
    return Load(sandbox, start)
