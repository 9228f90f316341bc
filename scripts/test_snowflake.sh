#!/bin/sh
# Run the tests of target-snowflake on an account of yours instead of the emulated one:
#
#   sh scripts/test_snowflake.sh [argument of pytest]...
#
# They need the variables that the target itself needs, see below, and a user who may
# create schemas in the database. Each test makes a schema BUGSPULSE_TEST_… of its own and
# drops it in the end. It costs a few minutes of the smallest warehouse.
set -eu

cd "$(dirname "$0")/.."

missing=''
for name in ACCOUNT USER DATABASE WAREHOUSE; do
    eval "value=\${TARGET_SNOWFLAKE_$name:-}"
    [ "$value" ] || missing="$missing TARGET_SNOWFLAKE_$name"
done
if [ -z "${TARGET_SNOWFLAKE_PRIVATE_KEY_PATH:-}${TARGET_SNOWFLAKE_PASSWORD:-}" ]; then
    missing="$missing TARGET_SNOWFLAKE_PRIVATE_KEY_PATH"
fi
if [ "$missing" ]; then
    cat >&2 <<END
These tests load into a Snowflake account of yours. Not set:$missing
  TARGET_SNOWFLAKE_ACCOUNT, _USER, _DATABASE and _WAREHOUSE say where,
  TARGET_SNOWFLAKE_PRIVATE_KEY_PATH (and _PASSPHRASE) or _PASSWORD who;
  TARGET_SNOWFLAKE_ROLE is the user's own role unless set.
END
    exit 2
fi
sh scripts/setup.sh tap meltano
exec .venv/bin/python -m pytest -m account tests/test_snowflake.py "$@"
