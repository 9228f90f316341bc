"""Run dbt, in an environment of its own: `.venv-dbt/bin/python -m tests.pipeline.builder`.

For each line of JSON on standard input, the arguments of a dbt command, it prints one that
says what came of it. Queries of metrics come in an object, see `query`. One process does many
commands, since the start of one takes longer than most of what they do.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbt.adapters.duckdb.connections import DuckDBConnectionManager
from dbt.cli.main import dbtRunner

if TYPE_CHECKING:
    from dbt_common.events.base_types import EventMsg


def invoke(arguments: list[str]) -> dict[str, Any]:
    """Run one command of dbt and return what came of each node."""
    warnings: list[str] = []

    def listen(event: EventMsg) -> None:
        if str(event.info.level) == "warn":
            warnings.append(event.info.msg)

    done = dbtRunner(callbacks=[listen]).invoke(arguments)
    # Else the file stays locked while this process is there.
    DuckDBConnectionManager.close_all_connections()
    results = list(getattr(done.result, "results", None) or [])
    problems = [
        f"{one.node.name}: {one.message}"
        for one in results
        if str(one.status) in {"error", "fail", "warn"}
    ]
    if done.exception:
        problems.append(str(done.exception))
    return {
        "success": done.success,
        "results": {one.node.unique_id: str(one.status) for one in results},
        "problems": problems,
        "warnings": warnings,
    }


def query(folder: str, queries: list[list[str]]) -> dict[str, Any]:
    """Have MetricFlow answer queries of metrics, as `mf query` does.

    Args:
        folder: Has `dbt_project.yml`, `profiles.yml`, and what dbt compiled in `target`.
        queries: The options of each.

    Returns:
        The rows of each, values as text.
    """
    # Only one test has these, the demo has dbt alone.
    from dbt_metricflow.cli.cli_configuration import CLIConfiguration  # noqa: PLC0415 - dbt alone has it
    from dbt_metricflow.cli.main import query as command  # noqa: PLC0415 - same

    configuration = CLIConfiguration()
    configuration.setup(Path(folder), Path(folder), configure_file_logging=False)
    answers = []
    for number, options in enumerate(queries):
        file = Path(folder, f"{number}.csv")
        # Not by the program: that one looks for a newer version of itself, on the network.
        command.main(
            [*options, "--csv", str(file), "--quiet"], obj=configuration, standalone_mode=False
        )
        with file.open(newline="", encoding="utf-8") as lines:
            # Snowflake has names in capital letters.
            answers.append(
                [
                    {name.lower(): value for name, value in row.items()}
                    for row in csv.DictReader(lines)
                ]
            )
    configuration.dbt_artifacts.adapter.cleanup_connections()
    DuckDBConnectionManager.close_all_connections()
    return {"rows": answers}


def main() -> None:
    """Answer each line of standard input."""
    # What dbt prints goes to the terminal; the answers have their pipe for themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        answer = query(**asked) if isinstance(asked, dict) else invoke(asked)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
