"""Do what the schedule of examples/dagster asks for, in an environment that has Dagster.

    .venv-dagster/bin/python -m tests.pipeline.ticks

runs it once for each line of its input, and prints a line of JSON for each: how it ended.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import dagster as dg

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "dagster" / "bugspulse_dagster.py"


def definitions() -> dg.Definitions:
    """Import the example."""
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dg.Definitions = module.defs
    return found


def tick(defs: dg.Definitions, instance: dg.DagsterInstance) -> dict[str, Any]:
    """Run the job that the schedule asks for, and return how it ended."""
    (schedule,) = defs.schedules
    with dg.build_schedule_context(instance) as context:
        (request,) = schedule.evaluate_tick(context).run_requests
    job = defs.resolve_job_def(schedule.job_name)
    done = job.execute_in_process(instance=instance, tags=request.tags, raise_on_error=False)
    loaded = [
        one.step_materialization_data.materialization
        for one in done.all_events
        if one.is_step_materialization
    ]
    return {
        "rows": {one.asset_key.path[-1]: one.metadata["rows"].value for one in loaded},
        "failures": [
            one.step_failure_data.user_failure_data.description
            for one in done.all_node_events
            if one.is_step_failure
        ],
        "success": done.success,
    }


def main() -> None:
    """Run once for each line of input."""
    defs = definitions()
    with dg.DagsterInstance.get() as instance:
        for _ in sys.stdin:
            print(json.dumps(tick(defs, instance)), flush=True)


if __name__ == "__main__":
    main()
