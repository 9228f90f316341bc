"""Load BugsPulse each hour with Prefect 3. Not tested: no test here runs it.

It was tried by hand with Prefect 3.9: a load, a load that failed, and one that was stopped.
`python bugspulse_prefect.py` serves the flow. That needs a Prefect server (PREFECT_API_URL),
the Meltano project in `MELTANO_PROJECT_ROOT`, `meltano` on the PATH and the settings of tap
and target in the environment: the key never comes into Prefect's own storage.

There is no retry: the tap retries what may pass, and the next hour goes on from what the
target has confirmed. For several apps, make a flow of each job of examples/several-projects.
"""
# ruff: noqa: INP001 - a file of flows is no package

import os
import subprocess

from prefect import flow


@flow(name="bugspulse", log_prints=True)
def bugspulse() -> None:
    """Load what is new; Meltano's log is the log of the flow run."""
    with subprocess.Popen(
        ["meltano", "--environment=prod", "run", "bugspulse-to-snowflake"],  # noqa: S607 - wherever it is
        # Ends before the next hour, with all that was loaded kept.
        env=os.environ | {"TAP_BUGSPULSE_MAX_RUNTIME_MINUTES": "50"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as meltano:
        try:
            for line in meltano.stdout or ():
                print(line.rstrip())  # noqa: T201 - Prefect logs it
        except BaseException:  # a run that is cancelled ends Meltano, too
            meltano.terminate()
            raise
    if meltano.returncode:
        raise subprocess.CalledProcessError(meltano.returncode, "meltano")


if __name__ == "__main__":
    bugspulse.serve("hourly", cron="17 * * * *", limit=1)
