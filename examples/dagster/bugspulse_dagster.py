"""Load BugsPulse each hour with Dagster: four assets, one run of Meltano.

`dagster dev -f bugspulse_dagster.py` needs the Meltano project in `MELTANO_PROJECT_ROOT`,
`meltano` on the PATH and the settings of tap and target in the environment: the key never
comes into Dagster's own storage. The package `dagster-meltano` does not work with Dagster
1.13, and is not needed.

Put dagster.yaml, which is beside this file, into DAGSTER_HOME: with it, a run that would
begin while another one goes on waits for it. Without it, Meltano refuses the second.

There is no retry: the tap retries what may pass, and the next hour goes on from what the
target has confirmed.

For several apps, make an asset and a pool of each job of examples/several-projects: these
have an extractor each, so they may start together. Two runs of one extractor may not.
"""
# ruff: noqa: INP001 - a file of definitions is no package

import os
import re
import subprocess
from collections.abc import Iterator

import dagster as dg

TABLES = ("sessions", "events", "crashes", "network")
LOADED = re.compile(r"tap-bugspulse +(\w+): rows (\d+),")
ERROR = re.compile(r"\[(?:error|critical) *\] (?!meltano )\S+ +(.+)")


@dg.multi_asset(
    specs=[dg.AssetSpec(["bugspulse", table], kinds={"snowflake"}) for table in TABLES],
    group_name="bugspulse",
    pool="bugspulse",
)
def bugspulse(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
    """Load what is new; Meltano's log is the log of the step."""
    rows: dict[str, int] = {}
    error = ""
    with subprocess.Popen(
        ["meltano", "--environment=prod", "run", "bugspulse-to-snowflake"],  # noqa: S607 - wherever it is
        # Ends well before Dagster would end the run, with all that was loaded kept.
        env=os.environ | {"TAP_BUGSPULSE_MAX_RUNTIME_MINUTES": "50", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as meltano:
        try:
            for line in meltano.stdout or ():
                context.log.info(line.rstrip())
                if found := LOADED.search(line):
                    rows[found[1]] = int(found[2])
                elif found := ERROR.search(line):
                    error = found[1]
        except BaseException:  # a run that is terminated ends Meltano, too
            meltano.terminate()
            raise
    if meltano.returncode:
        raise dg.Failure(error or f"meltano ended with {meltano.returncode}")
    for table in TABLES:
        yield dg.MaterializeResult(
            asset_key=["bugspulse", table], metadata={"rows": rows.get(table, 0)}
        )


load = dg.define_asset_job("load_bugspulse", [bugspulse], tags={"dagster/max_runtime": 3500})
hourly = dg.ScheduleDefinition(
    job=load, cron_schedule="17 * * * *", default_status=dg.DefaultScheduleStatus.RUNNING
)
defs = dg.Definitions(assets=[bugspulse], jobs=[load], schedules=[hourly])
