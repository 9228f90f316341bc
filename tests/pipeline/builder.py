"""Run dbt, in an environment of its own: `.venv-dbt/bin/python -m tests.pipeline.builder`.

For each line of JSON on standard input, the arguments of a dbt command, it prints one that
says what came of it. One process does many commands, since the start of one takes longer than
most of what they do.
"""

from __future__ import annotations

import json
import os
import sys
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


def main() -> None:
    """Answer each line of standard input."""
    # What dbt prints goes to the terminal; the answers have their pipe for themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(invoke(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
