"""Load every BugsPulse project each hour, one task and one key to each, with Meltano.

In Airflow, set the variable `bugspulse_projects` to a list such as `["shop", "courier"]`,
and for each of them a connection, such as `bugspulse_shop`, of type `generic` with the
API's address as host and the key as password. Workers need the Meltano project in
`MELTANO_PROJECT_ROOT`, `meltano` on their PATH, the settings of target-snowflake and, if
there is more than one worker, MELTANO_STATE_BACKEND_URI in their environment.
"""
# ruff: noqa: INP001 - a folder of DAGs is no package

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Variable, task

CONNECTION = "{{ conn.get('bugspulse_' ~ params.project)"

with DAG(
    "bugspulse",
    schedule="17 * * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,  # a run loads all that is new, so there is nothing to catch up with
    max_active_runs=1,
    default_args={"retries": 1, "retry_delay": timedelta(minutes=6)},
):

    @task
    def projects() -> list[dict[str, str]]:
        """Say which projects there are; each becomes a task."""
        names = Variable.get("bugspulse_projects", deserialize_json=True)
        return [{"project": name} for name in names]

    BashOperator.partial(
        task_id="load",
        map_index_template="{{ params.project }}",
        # The state is kept under the project's name, the rows have it in `project`.
        bash_command=(
            'meltano --environment=prod run --state-id-suffix="$TAP_BUGSPULSE_PROJECT" '
            "tap-bugspulse target-snowflake"
        ),
        env={
            "TAP_BUGSPULSE_PROJECT": "{{ params.project }}",
            "TAP_BUGSPULSE_API_URL": CONNECTION + ".host }}",
            "TAP_BUGSPULSE_API_KEY": CONNECTION + ".password }}",
            "TAP_BUGSPULSE_MAX_RUNTIME_MINUTES": "40",
        },
        append_env=True,
        execution_timeout=timedelta(minutes=55),
    ).expand(params=projects())
