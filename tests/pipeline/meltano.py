"""Running the real Meltano in a project of its own, against local stand-ins only."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import IO, TYPE_CHECKING, Any

from tests.forks import CAN_FORK, Fork, Kind
from tests.pipeline.children import CHECKOUT, allowed, environment, run_group

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.forks import Process

# Else the connector asks the metadata servers of three clouds where it runs.
NO_PLATFORM_DETECTION = {"SNOWFLAKE_DISABLE_PLATFORM_DETECTION": "true"}
PLUGINS = ("extractors", "loaders")
OWN = {
    # Plugins are those of the checkout, `make setup` alone installs them.
    "MELTANO_AUTO_INSTALL": "false",
    "NO_COLOR": "1",
}
# What each of its commands imports; it takes longer than most of what they do.
IMPORTED = (
    "meltano.cli",
    "alembic.command",
    "alembic.context",
    "sqlalchemy.dialects.mssql",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "anyio._backends._asyncio",
    "pygments.styles.default",
)


class NotSetUpError(Exception):
    """Meltano or its plugins are not installed in the checkout."""


def meltano_kind(meltano: Path) -> Kind:
    """Return what forks of Meltano are forks of: it sees no more than each of them does."""
    env = allowed() | OWN | {"HOME": os.devnull}
    return Kind(str(meltano.with_name("python")), IMPORTED, tuple(env.items()))


class MeltanoProject:
    """A Meltano project with the checkout's `meltano.yml` and plugins, and nothing else.

    It has its own system database, so its own state, its own home and its own output. An
    `.env` file in the checkout is not read.

    Args:
        directory: Where to put it. What is there already is used again.
        include: A file of plugins, jobs and schedules, put beside `meltano.yml`.
        fresh: Whether Meltano is a Python from its very start, see `tests.forks`.

    Raises:
        NotSetUpError: Meltano or a plugin is not installed in the checkout.
    """

    def __init__(
        self, directory: Path, include: Path | None = None, *, fresh: bool = False
    ) -> None:
        """Make the project, or take up the one that is there."""
        self.directory = directory
        self.fresh = fresh
        self.home = directory / "home"
        self.meltano = CHECKOUT / ".venv-meltano" / "bin" / "meltano"
        installed = [CHECKOUT / ".meltano" / kind for kind in PLUGINS]
        for needed in (self.meltano, *installed):
            if not needed.exists():
                msg = f"Meltano is not set up, {needed} is missing: run `make setup`"
                raise NotSetUpError(msg)
        (directory / ".meltano").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CHECKOUT / "meltano.yml", directory / "meltano.yml")
        if include:
            shutil.copyfile(include, directory / include.name)
            with (directory / "meltano.yml").open("a") as file:
                file.write(f"include_paths:\n- {include.name}\n")
        # Only some set up dbt.
        for plugins in (*installed, CHECKOUT / ".meltano" / "utilities"):
            link = directory / ".meltano" / plugins.name
            if plugins.exists() and not link.is_symlink():
                link.symlink_to(plugins)

    def run(self, *blocks: str, settings: Mapping[str, str], **options: Any) -> int:
        """Run `meltano run` of blocks such as `tap-bugspulse target-jsonl`, as `call` does."""
        return self.call("--log-format", "plain", "run", *blocks, settings=settings, **options)

    def call(
        self,
        *arguments: str,
        settings: Mapping[str, str],
        seconds: float = 120,
        output: IO[str] | None = None,
    ) -> int:
        """Run any Meltano command in the project and return its exit code.

        Args:
            arguments: What follows `meltano`.
            settings: The settings of the plugins, as environment variables.
            seconds: How long it may take.
            output: Where Meltano's output goes; to the terminal where that is `None`.

        Raises:
            ChildError: It took longer than it may.
        """
        child = self.start(*arguments, settings=settings, output=output)
        return run_group(child, self.meltano.name, seconds=seconds)

    def start(
        self, *arguments: str, settings: Mapping[str, str], output: IO[str] | None = None
    ) -> Process:
        """Start any Meltano command in the project, as the leader of a group of its own."""
        env = environment(self.home, OWN | dict(settings))
        if CAN_FORK and not self.fresh:
            descriptors = (output.fileno(),) * 2 if output else (1, 2)
            streams = dict(zip(("stdout", "stderr"), descriptors, strict=True))
            kind = meltano_kind(self.meltano)
            return Fork(kind, self.meltano, *arguments, env=env, cwd=self.directory, **streams)
        return subprocess.Popen(
            [self.meltano, *arguments],
            cwd=self.directory,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
        )
