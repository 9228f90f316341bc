"""The Markdown files that people read: their code blocks, tables and links."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        ROOT / "transform" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / ".github").glob("*.md"),
    )
)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of code; ``line`` is where it begins, for messages only."""

    document: str
    line: int
    language: str
    text: str

    @property
    def first_line(self) -> str:
        """The first command without a remark behind it: what lists call the block."""
        lines = [line for line in self.text.split("\n") if line[:2] not in {"# ", "--"}]
        return lines[0].removeprefix("$ ").split("  ")[0]

    @property
    def dialect(self) -> str:
        """What a block of SQL says in its first line, such as `snowflake`."""
        return self.text.partition("\n")[0].removeprefix("-- ").lower()

    @property
    def name(self) -> str:
        """Where to find the block."""
        return f"{self.document}:{self.line}"


def text(document: str) -> str:
    """Return a document's text."""
    return (ROOT / document).read_text("utf-8")


def blocks(document: str) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
    whole = text(document)
    return [
        Block(
            document,
            whole.count("\n", 0, match.start()) + 1,
            match[2],
            textwrap.dedent(match[3]).strip("\n"),
        )
        for match in FENCE.finditer(whole)
    ]


def block_with(part: str, document: str = "README.md") -> Block:
    """Return the one block of a document that holds some text."""
    (block,) = (one for one in blocks(document) if part in one.text)
    return block


def prose(document: str) -> str:
    """Return a document without its blocks."""
    return FENCE.sub("", text(document))


def anchors(document: str) -> set[str]:
    """Return the anchors that GitHub makes of a document's headings."""
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in HEADING.findall(prose(document))
    }


def links(document: str) -> list[tuple[str, str]]:
    """Return the files of the checkout that a document links to, each with the heading."""
    here = (ROOT / document).parent
    found = [one.partition("#") for one in LINK.findall(prose(document)) if "://" not in one]
    return [
        ((here / name).resolve().relative_to(ROOT).as_posix() if name else document, anchor)
        for name, _, anchor in found
    ]


def table(document: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    section = re.split(rf"^#+ {re.escape(heading)}$", text(document), flags=re.MULTILINE)[1]
    lines: list[str] = []
    for line in section.splitlines():
        if line.startswith("|"):
            lines.append(line)
        elif lines or line.startswith("#"):
            break
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
