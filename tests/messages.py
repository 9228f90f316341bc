"""What the tap can say, read from its source: warnings and errors."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import tap_bugspulse

GAP = "…"  # what stands for a value
PACKAGE = Path(tap_bugspulse.__file__).parent
# Methods whose first argument is a message, of objects with one of these in their name.
METHODS = {"__init__", "warning", "error", "critical", "warn_once", "append"}
OBJECTS = re.compile("logger|problems|run|self|super")
# Names that a message, or a part of one, is given before it is used.
NAMES = {"msg", "message", "rule", "A_DATE", "A_KEY", "A_URL", "REASONS", "SIGNS"}


def messages(package: Path = PACKAGE) -> set[str]:
    """Return the warnings and errors in the source, with `…` for each value in them.

    What is told in a line of INFO is left out. A message that is put together of parts
    comes as its parts.
    """
    found: set[str] = set()
    for path in package.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            found.update(filter(_is_message, map(_text, _said(node))))
    return found


def _said(node: ast.AST) -> Iterator[ast.AST]:
    """Return what a node of the source says, if it says anything."""
    match node:
        case ast.Call(func=ast.Attribute(attr=method, value=holder), args=[first, *_]):
            if method in METHODS and OBJECTS.search(ast.unparse(holder)):
                yield first
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in NAMES:
            # Some are tables with a message in each line.
            yield from ast.walk(value) if name.isupper() else (value,)
        case ast.AugAssign(value=value) | ast.Return(value=ast.JoinedStr() as value):
            yield value
        case ast.Raise(exc=ast.Call(args=[first, *_])):
            yield first


def _text(node: ast.AST) -> str:
    """Return a text with `…` for its values; nothing for what is no text."""
    match node:
        case ast.Constant(value=str(value)):
            return re.sub(r"%[.\d]*[sdf]", GAP, value)
        case ast.JoinedStr(values=parts):
            texts = [_text(part) or GAP for part in parts]
            return re.sub(f"{GAP}+", GAP, "".join(texts))
        case ast.BinOp(left=left, right=right):
            return (_text(left) or GAP) + (_text(right) or GAP)
    return ""


def _is_message(text: str) -> bool:
    return " " in text.strip() and re.search("[a-z]{2}", text) is not None
