"""Load every BugsPulse project each hour, one task and one key to each, with Meltano.

Tasks run at the same time, so each needs an extractor of its own: two runs of one Meltano
plugin that start together overwrite each other's files in `.meltano/run/`. Name one for each
project, `tap-bugspulse--shop` and so on, in a file such as
examples/several-projects/projects.meltano.yml.

In Airflow, set the variable `bugspulse_projects` to the list of their names, such as
`["shop", "courier"]`, and for each of them a connection, such as `bugspulse_shop`, of type
`generic` with the API's address as host and the key as password. Workers need the Meltano
project in `MELTANO_PROJECT_ROOT`, `meltano` on their PATH, the settings of target-snowflake
and, if there is more than one worker, MELTANO_STATE_BACKEND_URI in their environment. Load
one project by hand before the first tasks: that makes Meltano's own database, the schema and
the tables, which two first runs at once would both try to make.
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
        # The extractor's own variables: tap-bugspulse--my-shop reads
        # TAP_BUGSPULSE__MY_SHOP_API_KEY.
        bash_command=(
            "{% set name = params.project | upper | replace('-', '_') %}"
            "export TAP_BUGSPULSE__{{ name }}_API_URL=$API_URL "
            "TAP_BUGSPULSE__{{ name }}_API_KEY=$API_KEY; "
            "meltano --environment=prod run tap-bugspulse--{{ params.project }} target-snowflake"
        ),
        env={
            "API_URL": CONNECTION + ".host }}",
            "API_KEY": CONNECTION + ".password }}",
            "TAP_BUGSPULSE_MAX_RUNTIME_MINUTES": "40",
        },
        append_env=True,
        execution_timeout=timedelta(minutes=55),
    ).expand(params=projects())
