#!/bin/sh
# Resolve what pyproject.toml and meltano.yml ask for into constraints/, for all
# supported versions of Python. Needs uv.
set -eu

cd "$(dirname "$0")/.."

compile() {
    name=$1
    shift
    uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links --output-file "constraints/$name.txt" "$@"
    echo "constraints/$name.txt"
}

compile dev pyproject.toml --group pyproject.toml:dev
# With what it needs to keep the state in a bucket, see examples/kubernetes/.
echo 'meltano[s3,gcs,azure]~=4.4' | compile meltano -
echo 'apache-airflow~=3.3' | compile airflow -
echo 'dagster~=1.13' | compile dagster -
# From 1.12 on, a part of dbt is downloaded from elsewhere when it is installed.
printf '%s\n' 'dbt-core>=1.11,<1.12' 'dbt-duckdb>=1.10' 'dbt-postgres>=1.10' 'dbt-snowflake>=1.11' \
    'dbt-metricflow>=0.15' 'snowflake-connector-python<5' | compile dbt -
# Snowflake itself has no later Streamlit.
printf '%s\n' 'streamlit>=1.47,<1.52' duckdb 'snowflake-connector-python[pandas]<5' | compile streamlit -
# A target's own version stands in meltano.yml, before its constraints file.
sed -n 's|^ *pip_url: \(.*\) -c constraints/\(target-.*\)\.txt$|\1 \2|p' meltano.yml |
    while read -r requirement name; do
        echo "$requirement" | compile "$name" -
    done
