"""How the package is built: in layers, without a circle, and small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tap_bugspulse

NAME = tap_bugspulse.__name__
FOLDER = Path(tap_bugspulse.__file__).parent
# Each imports only modules that stand in a line above its own.
LAYERS = (
    {"replication"},
    {"pages", "settings"},
    {"http", "writer"},
    {"run"},
    {"client"},
    {"windows"},
    {"streams"},
    {"events"},
    {"tap"},
    {"check"},
)
ENTRIES = {"__init__", "__main__"}
SOURCES = {path.stem: path.read_text("utf-8") for path in FOLDER.glob("*.py")}
MOST_LINES, MOST_MODULES, MOST_OF_THE_CHECK = 2_680, 11, 350
# What asks the API by hand; the tap itself runs without it.
CHECK = {"check"}
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 400, 50


def imported(source: str) -> set[str]:
    """Return the modules of the package that a source imports anywhere, also for types."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = f"{NAME}.{node.module or ''}".rstrip(".") if node.level else node.module
            names.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    inner = (name.removeprefix(f"{NAME}.") for name in names if name.startswith(f"{NAME}."))
    return {name.partition(".")[0] for name in inner} & SOURCES.keys()


def test_each_module_has_its_layer() -> None:
    """A new module says where it stands."""
    listed = [name for layer in LAYERS for name in layer]
    assert sorted(listed) == sorted(SOURCES.keys() - ENTRIES)


@pytest.mark.parametrize("name", sorted(SOURCES.keys() - ENTRIES))
def test_a_module_imports_only_what_stands_below_it(name: str) -> None:
    """So there is no circle, and no stream knows the tap; imports for types count."""
    place = next(number for number, layer in enumerate(LAYERS) if name in layer)
    below: set[str] = set().union(*LAYERS[:place])
    assert imported(SOURCES[name]) <= below


def test_the_package_is_started_by_the_tap_alone() -> None:
    """Nothing happens on import, and what runs the tap imports nothing else."""
    assert imported(SOURCES["__init__"]) == set()
    assert imported(SOURCES["__main__"]) == {"tap"}


def test_the_package_stays_small() -> None:
    """What is added has to earn its place."""
    lines = {name: len(source.splitlines()) for name, source in SOURCES.items()}
    assert len(SOURCES.keys() - ENTRIES - CHECK) <= MOST_MODULES
    assert {name: n for name, n in lines.items() if n > MOST_LINES_OF_A_FILE} == {}
    assert sum(lines[name] for name in lines.keys() - CHECK) <= MOST_LINES
    assert sum(lines[name] for name in CHECK) <= MOST_OF_THE_CHECK


def test_no_function_is_longer_than_a_screen() -> None:
    """Each can be read as a whole, its docstring included."""
    long = {
        f"{name}.{node.name}": length
        for name, source in SOURCES.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION
    }
    assert long == {}
