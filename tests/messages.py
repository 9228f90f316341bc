"""What the tap can say, read from its source: warnings, errors, and what it tells."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import tap_bugspulse

if TYPE_CHECKING:
    from collections.abc import Iterator

GAP = "…"  # what stands for a value
PACKAGE = Path(tap_bugspulse.__file__).parent
TROUBLE = {"warning", "error", "critical", "warn_once", "append"}
TOLD = {"info", "progress"}


def messages(kinds: set[str], package: Path = PACKAGE) -> set[str]:
    """Give the messages in the source, with `…` for each value in them.

    Args:
        kinds: Names of the methods whose first argument is a message. With ``append``
            also what is assigned to a name such as ``msg``.
        package: The folder with the source.
    """
    found = set()
    for path in package.glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            found.update(filter(_is_message, map(_text, _said(node, kinds))))
    return found


def _said(node: ast.AST, kinds: set[str]) -> Iterator[ast.expr]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        holder = ast.unparse(node.func.value)
        if node.func.attr in kinds and re.search("logger|problems|run|self", holder):
            yield node.args[0]
    elif isinstance(node, ast.Assign) and "append" in kinds:
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id in {"msg", "message", "rule"}:
            yield node.value
        elif isinstance(target, ast.Name) and target.id in {
            "REASONS",
            "SIGNS",
            "UNTRUSTED",
            "UNREADABLE",
        }:
            yield from ast.walk(node.value)  # type: ignore[misc] # only texts are kept
    elif isinstance(node, ast.AugAssign) and "append" in kinds:
        yield node.value
    elif isinstance(node, ast.Return) and "append" in kinds and node.value:
        if isinstance(node.value, ast.JoinedStr):
            yield node.value
    elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
        if "append" in kinds:
            yield node.exc.args[0]


def _text(node: ast.AST) -> str:
    """Give a text with `…` for its values; nothing for what is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[.\d]*[sdf]", GAP, node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [
            GAP if isinstance(part, ast.FormattedValue) else _text(part)
            for part in node.values
        ]
        return re.sub(f"{GAP}+", GAP, "".join(parts))
    if isinstance(node, ast.BinOp):
        return _text(node.left) + (_text(node.right) or GAP)
    return ""


def _is_message(text: str) -> bool:
    return " " in text.strip() and re.search("[a-z]{2}", text) is not None


if __name__ == "__main__":
    for kinds in (TROUBLE, TOLD):
        print(*sorted(messages(kinds)), sep="\n", end="\n\n")  # noqa: T201 - for people
