#!/bin/sh
# Test the wheel in dist/ instead of the sources:
#
#   sh scripts/test_wheel.sh [argument of pytest]...
#
# The tests run in a copy of the checkout that has no package in it, so that they can
# import the installed one only. PYTHON names the Python. Run are the quick tests of the
# package itself: those of what surrounds it have the mark `sources`, those that load by
# Meltano `pipeline`, and `make test-all` has them.
set -eu

cd "$(dirname "$0")/.."
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV

count=0
for wheel in "$(pwd -P)"/dist/*.whl; do
    [ ! -f "$wheel" ] || count=$((count + 1))
done
if [ "$count" -ne 1 ]; then
    echo "dist/ must hold one wheel, it holds $count: run make wheel" >&2
    exit 1
fi

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
tar -cf - --exclude './tap_bugspulse' --exclude './dist' --exclude './output' \
    --exclude './.?*' --exclude '__pycache__' . | tar -xf - -C "$copy"
cd "$copy"
"${PYTHON:-python3}" -m venv .venv
# Dependency groups need pip 25.1.
.venv/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
.venv/bin/python -m pip install --quiet --disable-pip-version-check --group dev "$wheel" \
    --constraint constraints/dev.txt
.venv/bin/python -c 'import sys, tap_bugspulse as t; print(sys.version.split()[0], t.__file__)'
.venv/bin/python -m pytest -n 2 --dist loadgroup \
    -m 'not (sources or pipeline or slow or long or airflow or dbt or streamlit or account)' "$@"
