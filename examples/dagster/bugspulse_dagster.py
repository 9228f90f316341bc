"""Load BugsPulse each hour with Dagster. NOT TESTED: a sketch to start from.

`dagster dev -f bugspulse_dagster.py` needs the Meltano project in `MELTANO_PROJECT_ROOT`,
`meltano` on the PATH and the settings of tap and target in the environment. A plain op
that runs Meltano is enough; the package `dagster-meltano` does not work with Dagster 1.13.

Dagster must not start a run while another one goes on, since both would load from one
state: leave `max_concurrent_runs` of the run queue at 1, or give the tag below a limit.

For several apps, make an op of each job of examples/several-projects: these have an
extractor each, so they may start together. Two runs of one extractor may not.
"""
# ruff: noqa: INP001 - a file of definitions is no package

import os
import subprocess

import dagster as dg


@dg.op(
    # Meltano takes a run that was killed for one that still goes on, for five minutes. What
    # the target has not confirmed is loaded again; the time limit below keeps all.
    retry_policy=dg.RetryPolicy(max_retries=1, delay=360)
)
def load_bugspulse(context: dg.OpExecutionContext) -> None:
    """Run Meltano; a run that fails fails the op, and its log is the op's log."""
    with subprocess.Popen(
        ["meltano", "--environment=prod", "run", "bugspulse-to-snowflake"],  # noqa: S607 - wherever it is
        env=os.environ | {"TAP_BUGSPULSE_MAX_RUNTIME_MINUTES": "50"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        for line in running.stdout or ():
            context.log.info(line.rstrip())
    if running.returncode:
        raise dg.Failure(f"meltano ended with {running.returncode}")


@dg.job(tags={"bugspulse": "load"})
def bugspulse_to_snowflake() -> None:
    """Load what is new."""
    load_bugspulse()


hourly = dg.ScheduleDefinition(job=bugspulse_to_snowflake, cron_schedule="17 * * * *")
defs = dg.Definitions(schedules=[hourly])
