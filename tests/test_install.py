"""What README says of installation: its commands, from a repository on this machine.

It is served as GitHub serves one, so that they are run as they stand, but for the address.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml  # type: ignore[import-untyped] # it has no types

from tests.documents import block_with
from tests.pipeline.children import CHECKOUT, environment
from tests.pipeline.truth import assert_same, held, tap_settings
from tests.test_files import json_lines
from tests.test_release import PROJECT, succeed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sandbox import Sandbox

# One process of pytest serves the repository.
pytestmark = [pytest.mark.sources, pytest.mark.long, pytest.mark.xdist_group("install")]

ADDRESS = "https://github.com/your-org/tap-bugspulse"
TOOLS = CHECKOUT / ".venv-meltano" / "bin"
"""Where Meltano is, and the uv that it brings."""

# How this machine reaches an index of packages; no setting of the tap or of Meltano.
REACHES = ("PIP_", "UV_", "SSL_CERT_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def commands(beginning: str, repository: str) -> str:
    """Return a block of README, with another repository."""
    return block_with(beginning).text.replace(ADDRESS, repository)


class Silent(http.server.SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a repository that holds the checkout as it is now."""
    folder = tmp_path_factory.mktemp("repository")
    work, served = folder / "work", folder / "served" / "tap-bugspulse"
    unwanted = shutil.ignore_patterns(".?*", "__pycache__", "dist", "output", "target", "logs")
    shutil.copytree(CHECKOUT, work, ignore=unwanted)
    git = functools.partial(succeed, env=environment(folder / "home"), cwd=work)
    git("git", "init", "--quiet", "--initial-branch=main")
    git("git", "add", ".")
    who = ("-c", "user.name=Tests", "-c", "user.email=tests@example.com")
    git("git", *who, "commit", "--quiet", "--message=All")
    git("git", "clone", "--quiet", "--bare", work, served)
    # What git needs of a server that only serves files.
    git("git", "-C", served, "update-server-info")
    shutil.copytree(work / "docs", served / "raw" / "main" / "docs")
    handler = functools.partial(Silent, directory=served.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/{served.name}"
        finally:
            server.shutdown()
            thread.join()


def newcomer(folder: Path, *programs: Path) -> dict[str, str]:
    """Return the environment of somebody who has Meltano and uv, and an empty home."""
    reaches = {
        name: text
        for name, text in os.environ.items()
        if name.startswith(REACHES) or name.lower().endswith("_proxy")
    }
    # What is downloaded once is not downloaded again.
    own = {
        "UV_CACHE_DIR": succeed(TOOLS / "uv", "cache", "dir").strip(),
        "MELTANO_SEND_ANONYMOUS_USAGE_STATS": "false",
        "MELTANO_CLI_DISABLE_VERSION_CHECK": "true",
        "NO_COLOR": "1",
    }
    env = environment(folder / "home", reaches | own)
    for name, kind in (("pip/pip.conf", "PIP_CONFIG_FILE"), ("uv/uv.toml", "UV_CONFIG_FILE")):
        if (path := Path.home() / ".config" / name).exists():
            env.setdefault(kind, str(path))
    return env | {"PATH": os.pathsep.join([*map(str, programs), str(TOOLS), env["PATH"]])}


def typed(text: str, env: dict[str, str], cwd: Path) -> str:
    """Type commands, the first that fails being the last."""
    return succeed("bash", "-e", "-u", "-c", text, env=env, cwd=cwd)


def test_it_installs_from_git(repository: str, sandbox: Sandbox, tmp_path: Path) -> None:
    """After pip and after uv, the tap says its version and its catalog, and checks a key."""
    venv = tmp_path / "venv"
    env = newcomer(tmp_path, venv / "bin") | tap_settings(sandbox)
    succeed(TOOLS / "uv", "venv", "--quiet", "--no-project", "--seed", venv, env=env)
    typed(commands("REPO=", repository), env, tmp_path)
    catalog = json.loads((CHECKOUT / "tests" / "snapshots" / "catalog.json").read_text())
    for programs in (venv / "bin", tmp_path / "home" / ".local" / "bin"):
        said = succeed(programs / "tap-bugspulse", "--version", env=env, cwd=tmp_path)
        assert said.startswith(f"tap-bugspulse v{PROJECT['version']},")
        said = succeed(programs / "tap-bugspulse", "--discover", env=env, cwd=tmp_path)
        assert json.loads(said) == catalog
        check = (programs / "tap-bugspulse-check", "--config=ENV")
        assert succeed(*check, env=env, cwd=tmp_path).startswith("The key works: ")


def test_meltano_adds_it_from_its_definition(
    repository: str, sandbox: Sandbox, tmp_path: Path
) -> None:
    """In a new Meltano project the tap is installed from git, checks a key, loads every row."""
    env = newcomer(tmp_path) | tap_settings(sandbox)
    succeed("meltano", "init", "--no-usage-stats", "elt", env=env, cwd=tmp_path)
    project = tmp_path / "elt"
    # A hub would have it; here it is the one that the checkout names.
    loaders = yaml.safe_load((CHECKOUT / "meltano.yml").read_text())["plugins"]["loaders"]
    (target,) = (one for one in loaders if one["name"] == "target-jsonl")
    target["pip_url"] = target["pip_url"].replace("constraints/", f"{CHECKOUT}/constraints/")
    (tmp_path / "target.yml").write_text(yaml.safe_dump(target))
    add = ("meltano", "add", "--no-install", "--from-ref", str(tmp_path / "target.yml"))
    succeed(*add, "target-jsonl", env=env, cwd=project)

    typed(commands("meltano add", repository), env | {"REPO": repository}, project)
    said = succeed("meltano", "invoke", "tap-bugspulse:check", env=env, cwd=project)
    assert said.startswith("The key works: ")
    settings = {
        "TARGET_JSONL_DESTINATION_PATH": "output",  # which `meltano init` has made
        "TARGET_JSONL_DO_TIMESTAMP_FILE": "false",
    }
    run = ("meltano", "run", "tap-bugspulse", "target-jsonl")
    succeed(*run, env=env | settings, cwd=project)
    assert_same(json_lines(project / "output"), held(sandbox.project))
    installed = project / ".meltano" / "extractors" / "tap-bugspulse" / "venv"
    (origin,) = installed.rglob("tap_bugspulse-*.dist-info/direct_url.json")
    assert json.loads(origin.read_text())["url"] == repository
