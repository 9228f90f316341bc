"""Load BugsPulse each hour with Prefect 3: a flow that runs Meltano.

`python bugspulse_prefect.py` serves it. It needs a Prefect server (PREFECT_API_URL), the
Meltano project in `MELTANO_PROJECT_ROOT`, `meltano` on the PATH and the settings of tap and
target in the environment: the key never comes into Prefect's own storage. There is no
retry: the tap retries what may pass, and the next hour goes on from what the target has
confirmed. For several apps, make a flow of each job of examples/several-projects.
"""
# ruff: noqa: INP001 - a file of flows is no package

import os
import subprocess

from prefect import flow

COMMAND = ("meltano", "--environment=prod", "run", "bugspulse-to-snowflake")
# Ends before the next run begins, with all that was loaded kept.
LIMIT = {"TAP_BUGSPULSE_MAX_RUNTIME_MINUTES": "50"}


@flow(name="bugspulse", log_prints=True)
def bugspulse() -> None:
    """Load what is new; Meltano's log is the log of the flow run."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(COMMAND, env=os.environ | LIMIT, **pipe) as meltano:
        try:
            for line in meltano.stdout or ():
                print(line.rstrip())  # noqa: T201 - Prefect logs it
        except BaseException:  # a run that is cancelled ends Meltano, too
            meltano.terminate()
            raise
    if meltano.returncode:
        raise subprocess.CalledProcessError(meltano.returncode, COMMAND)


if __name__ == "__main__":
    bugspulse.serve("hourly", cron="17 * * * *", limit=1)
