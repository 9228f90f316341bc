"""Print what the changelog says of the release that a tag names.

    python scripts/release_notes.py v0.1.0

Fails where the tag, the version in pyproject.toml and the changelog do not agree, so that
nothing is released that they do not all know.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def notes(tag: str, version: str, changelog: str) -> str:
    """Return the section of a release.

    Args:
        tag: The tag, ``v`` and the version.
        version: The version of the package.
        changelog: Text with a heading ``## 0.1.0 (2026-01-31)`` for each release.

    Raises:
        ValueError: If the three do not agree.
    """
    if tag != f"v{version}":
        msg = f"the tag is {tag}, but pyproject.toml has version {version}"
        raise ValueError(msg)
    for section in changelog.split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        if re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", heading):
            return text.strip()
    msg = f"CHANGELOG.md has no heading '## {version} (YYYY-MM-DD)'"
    raise ValueError(msg)


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    try:
        found = notes(sys.argv[1], project["version"], (ROOT / "CHANGELOG.md").read_text())
    except ValueError as error:
        sys.exit(str(error))
    sys.stdout.write(found + "\n")
