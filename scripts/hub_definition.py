"""Print the definition of the tap for MeltanoHub, made from what the tap says of itself.

`make hub` keeps it in docs/hub/tap-bugspulse.yml. On the hub its place is
_data/meltano/extractors/tap-bugspulse/<variant>.yml.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import typing as t
from pathlib import Path

import yaml  # type: ignore[import-untyped] # it has no types

ROOT = Path(__file__).resolve().parents[1]
VARIANT = "bugspulse"  # on the hub, the owner of the repository

# By the type in the tap's JSON Schema.
KINDS = {
    "boolean": "boolean",
    "integer": "integer",
    "number": "string",  # Meltano cannot pass on a decimal
    "object": "object",
    "string": "string",
}


def setting(name: str, schema: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return the hub's form of a setting."""
    types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    (json_type,) = (each for each in types if each != "null")
    found = {
        "name": name,
        "label": schema["title"],
        "kind": KINDS[json_type],
        "description": schema["description"],
    }
    if schema.get("secret"):
        found["sensitive"] = True
    if "enum" in schema:
        found["kind"] = "options"
        found["options"] = [
            {"label": value.capitalize(), "value": value} for value in schema["enum"]
        ]
    if "default" in schema:
        found["value"] = schema["default"]
    return found


def commands() -> dict[str, t.Any]:
    """Return the commands beside loading, as meltano.yml has them."""
    plugins = yaml.safe_load((ROOT / "meltano.yml").read_text())["plugins"]
    (extractor,) = plugins["extractors"]
    found: dict[str, t.Any] = extractor["commands"]
    return found


def definition(about: dict[str, t.Any], project: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return the definition of the tap.

    Args:
        about: What ``tap-bugspulse --about --format=json`` prints.
        project: The table ``project`` of pyproject.toml.
    """
    settings = about["settings"]["properties"]
    repository = project.get("urls", {}).get("Repository")
    return {
        "capabilities": sorted(about["capabilities"]),
        "commands": commands(),
        "description": project["description"].split(": ", 1)[1].capitalize(),
        "domain_url": "https://bugspulse.com",
        "executable": about["name"],
        "keywords": ["api", "meltano_sdk", "mobile", "crashes"],
        "label": "BugsPulse",
        "logo_url": "/assets/logos/extractors/bugspulse.png",
        "maintenance_status": "active",
        "name": about["name"],
        "namespace": about["name"].replace("-", "_"),
        "pip_url": project["name"],
        "quality": "unknown",  # the hub gives it
        **({"repo": repository} if repository else {}),
        "select": ["*.*"],
        "settings": [setting(name, schema) for name, schema in settings.items()],
        "settings_group_validation": [about["settings"]["required"]],
        "variant": VARIANT,
    }


if __name__ == "__main__":
    printed = subprocess.run(
        [sys.executable, "-m", "tap_bugspulse", "--about", "--format=json"],
        check=True,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ).stdout
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    yaml.safe_dump(definition(json.loads(printed), metadata), sys.stdout, sort_keys=False, width=88)
