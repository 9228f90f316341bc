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
echo 'meltano~=4.4' | compile meltano -
echo 'apache-airflow~=3.3' | compile airflow -
# A target's own version stands in meltano.yml, before its constraints file.
sed -n 's|^ *pip_url: \(.*\) -c constraints/\(target-.*\)\.txt$|\1 \2|p' meltano.yml |
    while read -r requirement name; do
        echo "$requirement" | compile "$name" -
    done
