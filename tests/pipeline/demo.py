"""The demo: a made-up BugsPulse project into an emulated Snowflake, by the real Meltano.

`make demo` sets up the checkout and runs it. It writes to `.demo/` and `.meltano/` in the
checkout and talks to nothing but 127.0.0.1.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.pipeline.children import CHECKOUT, ChildError, environment, serving
from tests.pipeline.connector import Connector
from tests.pipeline.marts import FUNNEL
from tests.pipeline.meltano import MeltanoProject, NotSetUpError
from tests.pipeline.page import QUESTIONS as OF_THE_PAGE
from tests.pipeline.page import page, statements
from tests.pipeline.report import QUESTIONS, show
from tests.pipeline.transform import SCHEMA, Dbt, Snowflake
from tests.pipeline.warehouse import DATABASE, emulated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import FrameType
    from typing import NoReturn

INTRODUCTION = """\
This demo needs no account. BugsPulse is a local sandbox with made-up data, Snowflake a
local emulator (fakesnow); Meltano, tap-bugspulse, target-snowflake and dbt are the real ones.
"""
OWN_PROJECT = """\
For your own project, with the real BugsPulse and the real Snowflake:

  export TAP_BUGSPULSE_API_KEY=bp_...             # your project's API key
  export TAP_BUGSPULSE_START_DATE=2026-01-01      # how far back
  export TARGET_SNOWFLAKE_ACCOUNT=myorg-account   # and where to
  export TARGET_SNOWFLAKE_USER=... TARGET_SNOWFLAKE_PRIVATE_KEY_PATH=...
  export TARGET_SNOWFLAKE_ROLE=... TARGET_SNOWFLAKE_WAREHOUSE=... TARGET_SNOWFLAKE_DATABASE=...
  .venv-meltano/bin/meltano --environment prod run tap-bugspulse target-snowflake

There the API allows 60 requests a minute, and the events of a session cost one; the
sandbox of this demo has no limit.
"""
# More than the sandbox can answer, so that nothing waits.
UNLIMITED = {"TAP_BUGSPULSE_REQUESTS_PER_MINUTE": "60000"}
CHECK = str(Path(sys.executable).with_name("tap-bugspulse-check"))
SIGTERM_EXIT = 128 + signal.SIGTERM
SIGINT_EXIT = 128 + signal.SIGINT


def demo(directory: Path, data: Sequence[str]) -> int:
    """Run the demo, print what it asks of the tables, and write the report.

    It keeps its files in `directory`, those of an earlier demo are removed; `data` are options
    of the sandbox. Return the exit code of `meltano run`; 1 where the tables were not built.

    Raises:
        ChildError: A server did not start, or something took too long.
        NotSetUpError: Meltano or dbt is not installed in the checkout.
    """
    say(INTRODUCTION)
    home, kept = directory / "home", directory / "snowflake"
    for old in (kept, home, directory / "project", directory / "dbt"):
        shutil.rmtree(old, ignore_errors=True)
    project = MeltanoProject(directory / "project", fresh=True)
    with (
        serving("tests.sandbox", *data, "--requests-per-minute", "none", home=home) as bugspulse,
        Connector(home) as connector,
        emulated(kept, connector) as snowflake,
        Dbt(directory / "dbt") as dbt,
    ):
        names = {"sessions": "sessions", "crashes": "crash groups", "events": "events"}
        names["network"] = "network calls"
        held = ", ".join(f"{bugspulse[name]:,} {what}" for name, what in names.items())
        say(f"BugsPulse sandbox     {bugspulse['url']}, holds {held}")
        say(f"Emulated Snowflake    127.0.0.1:{snowflake.connection['port']}\n")
        say("$ tap-bugspulse-check --config=ENV")
        tap = {
            "TAP_BUGSPULSE_API_URL": bugspulse["url"],
            "TAP_BUGSPULSE_API_KEY": bugspulse["api_key"],
        }
        if code := check(tap, home):
            say(f"\nThe check failed with exit code {code}; what it said is above.")
            return code
        say("$ meltano run tap-bugspulse target-snowflake")
        began = time.monotonic()
        settings = tap | UNLIMITED | snowflake.settings
        code = project.run("tap-bugspulse", "target-snowflake", settings=settings, seconds=300)
        if code:
            say(f"\n`meltano run` failed with exit code {code}; what it said is above.")
            return code
        say(f"Loaded in {time.monotonic() - began:.0f} seconds.\n")
        answers = snowflake.query(*(question.sql for question in QUESTIONS))
        say("$ dbt build")
        warehouse = Snowflake(snowflake, directory)
        began = time.monotonic()
        dbt.add(warehouse.name, warehouse.output())
        built = dbt.run(warehouse.name, "build", variables={"bugspulse_funnel": FUNNEL})
        if not built["success"]:
            problems = built["problems"] or ["dbt did not say why"]
            say("\n".join(["`dbt build` failed:", *problems]))
            return 1
        say(f"Built in {time.monotonic() - began:.0f} seconds.\n")
        tables = warehouse.query(*statements(SCHEMA))
    for question, rows in zip(QUESTIONS, answers, strict=True):
        say(show(question, rows) + "\n")
    say(OWN_PROJECT)
    say(f"The loaded database is a DuckDB file: {kept / 'databases' / DATABASE}.db")
    report = directory / "report.html"
    report.write_text(page(dict(zip(OF_THE_PAGE, tables, strict=True)), made_up=True), "utf-8")
    say(f"The report, to open in a browser: {report}")
    return 0


def check(tap: dict[str, str], home: Path) -> int:
    """Run the check on the sandbox, at the pace of the real API; return its exit code."""
    command, env = [CHECK, "--config=ENV"], environment(home, tap)
    code = subprocess.run(command, cwd=CHECKOUT, env=env, timeout=60, check=False).returncode
    say("")
    return code


def say(text: str) -> None:
    """Print at once, so that it stands in order with what Meltano prints."""
    print(text, flush=True)


def on_sigterm(_number: int, _frame: FrameType | None) -> NoReturn:
    """End by way of every `finally`, so that no child is left behind."""
    sys.exit(SIGTERM_EXIT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; exit with Meltano's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.pipeline.demo",
        description="Load a made-up BugsPulse project into an emulated Snowflake.",
    )
    parser.add_argument("--sessions", type=int, default=600, help="how many to make up")
    parser.add_argument("--days", type=int, default=14, help="over how many days")
    parser.add_argument("--until", help="up to when, ISO 8601 (default: now)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, on_sigterm)
    data = ["--sessions", str(options.sessions), "--days", str(options.days)]
    if options.until:
        data += ["--until", options.until]
    try:
        return demo(CHECKOUT / ".demo", data)
    except (ChildError, NotSetUpError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return SIGINT_EXIT


if __name__ == "__main__":
    sys.exit(main())
