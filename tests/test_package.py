"""The package that is released: what is in it, and that it works away from the checkout."""

from __future__ import annotations

import sys
import tarfile
import typing as t
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from tests.pipeline.children import CHECKOUT, environment
from tests.pipeline.truth import tap_settings
from tests.running import PRIMARY_KEYS, Output, assert_whole
from tests.test_release import PROJECT, succeed

if t.TYPE_CHECKING:
    from tests.sandbox import Sandbox

# One process of pytest builds the package and installs it.
pytestmark = [pytest.mark.sources, pytest.mark.long, pytest.mark.xdist_group("package")]


def build(source: Path, into: Path) -> None:
    """Build the wheel and the source distribution, as `make wheel` does."""
    succeed(Path(sys.executable).parent / "hatchling", "build", "-d", into, cwd=source)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The built wheel and source distribution."""
    path = tmp_path_factory.mktemp("dist")
    build(CHECKOUT, path)
    (wheel,), (sdist,) = path.glob("*.whl"), path.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def wheel(dist: tuple[Path, Path]) -> Path:
    """The built wheel."""
    return dist[0]


@pytest.fixture(scope="module")
def tap(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of the wheel, installed into an empty environment of its own."""
    # The uv that Meltano brings has installed the same packages before.
    uv = CHECKOUT / ".venv-meltano" / "bin" / "uv"
    venv = tmp_path_factory.mktemp("elsewhere") / "venv"
    succeed(uv, "venv", "--quiet", "--no-project", "--python", sys.executable, venv)
    locked = CHECKOUT / "constraints" / "dev.txt"
    succeed(uv, "pip", "install", "--quiet", "--python", venv, wheel, "--constraint", locked)
    return venv / "bin" / "tap-bugspulse"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Each file of the package is in the wheel, schemas and types too, and no other."""
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        path.relative_to(CHECKOUT).as_posix()
        for path in (CHECKOUT / "tap_bugspulse").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {f"tap_bugspulse/schemas/{stream}.json" for stream in PRIMARY_KEYS} <= package
    assert "tap_bugspulse/py.typed" in package
    info = f"tap_bugspulse-{PROJECT['version']}.dist-info"
    assert names - package == {
        f"{info}/METADATA",
        f"{info}/RECORD",
        f"{info}/WHEEL",
        f"{info}/entry_points.txt",
        f"{info}/licenses/LICENSE",
    }
    assert package <= names


def test_the_source_distribution_builds_the_same_wheel(
    dist: tuple[Path, Path], tmp_path: Path
) -> None:
    """What is built from the source distribution is the wheel, byte by byte."""
    wheel, sdist = dist
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
        names = {Path(name).parts[1] for name in archive.getnames()}
    assert names == {
        ".gitignore",
        "CHANGELOG.md",
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "pyproject.toml",
        "tap_bugspulse",
    }
    (source,) = tmp_path.iterdir()
    build(source, tmp_path / "again")
    (again,) = (tmp_path / "again").glob("*.whl")
    assert again.read_bytes() == wheel.read_bytes()


def test_the_version_has_one_place(wheel: Path, tap: Path, tmp_path: Path) -> None:
    """The version stands in pyproject.toml only, and the tap says it."""
    version = PROJECT["version"]
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
    (metadata,) = (text for name, text in files.items() if name.endswith("/METADATA"))
    assert message_from_string(metadata)["Version"] == version
    package = {name: text for name, text in files.items() if name.startswith("tap_bugspulse/")}
    assert [name for name, text in package.items() if version in text] == []
    said = succeed(tap, "--version", cwd=tmp_path, env=environment(tmp_path / "home"))
    assert said.startswith(f"tap-bugspulse v{version},")


def test_the_installed_wheel_loads_everything(tap: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    """Away from the checkout, it emits every row of a project once."""
    env = environment(tmp_path / "home", tap_settings(sandbox))
    output = Output.read(succeed(tap, "--config=ENV", cwd=tmp_path, env=env))
    assert_whole(sandbox.project, output)
    assert [output.repeated(stream) for stream in PRIMARY_KEYS] == [[], [], [], []]
