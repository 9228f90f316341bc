#!/bin/sh
# Set up the checkout and run the demo; exits with the exit code of `meltano run`.
set -eu

cd "$(dirname "$0")/.."
if [ ! -f .venv/.stamp ] || [ ! -f .venv-meltano/.stamp ] || [ ! -f .meltano/.stamp ] || [ ! -f .venv-dbt/.stamp ]; then
    cat <<'END'
The first run installs, inside this checkout: the tap and an emulated Snowflake (.venv),
Meltano (.venv-meltano), Meltano's plugins (.meltano), and dbt (.venv-dbt). That is about
1.5 GB and takes one to five minutes, depending on the network. `make clean` removes it.

END
fi
sh scripts/setup.sh tap meltano dbt
exec .venv/bin/python -m tests.pipeline.demo
