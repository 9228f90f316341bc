#!/bin/sh
# Install what tests and demo need, inside the checkout, and only what is missing:
#
#   sh scripts/setup.sh tap       .venv           the tap, its tests, the emulated Snowflake
#   sh scripts/setup.sh meltano   .venv-meltano   Meltano, and its plugins under .meltano/
#   sh scripts/setup.sh airflow   .venv-airflow   Airflow, which one example is tested with
#   sh scripts/setup.sh dagster   .venv-dagster   Dagster, which another one is tested with
#   sh scripts/setup.sh dbt       .venv-dbt       dbt, a plugin of Meltano's, for transform/
#   sh scripts/setup.sh streamlit .venv-streamlit Streamlit, for examples/streamlit/
#
# Uses uv where it is on the PATH, else the venv and pip of Python. PYTHON names a
# certain Python. Nothing outside the checkout is written but the cache of pip or uv.
set -eu

cd "$(dirname "$0")/.."
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV
here=$(pwd -P)

debian='Debian, Ubuntu: apt install python3 python3-venv'
macos='macOS: brew install python@3.12'

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

# A Python that really runs; names on the PATH may be shims that do not.
runs() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Set $python to a Python of 3.11 or later that can do what is needed, or say what to install.
find_python() {
    old=''
    bare=''
    for python in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3.14 python3 python; do
        if ! runs "$python"; then
            version=$("$python" --version 2>/dev/null) && old="$version"
        elif [ "$uv" ] || "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            return 0
        else
            bare="$python"
        fi
    done
    if [ "$bare" ]; then
        fail "$bare has no venv module, which sets up the checkout. $debian; $macos"
    elif [ "$old" ]; then
        fail "Python 3.11 or later is needed, $old was found. $debian; $macos"
    fi
    fail "Python 3.11 or later is needed, none was found. $debian; $macos"
}

# uv, where it is there and can install dependency groups.
find_uv() {
    uv=''
    if uv pip install --help 2>/dev/null | grep -q -e '--group'; then
        uv=uv
    fi
}

# stamp FILE...: what an installation was made from; a moved checkout is made anew.
stamp() {
    printf '%s\n' "$here"
    cat "$@" scripts/setup.sh | cksum
}

# install_into VENV ARGUMENT...: make the virtual environment where needed, pip install.
install_into() {
    venv=$1
    shift
    find_uv
    if ! runs "$venv/bin/python" || [ "$(sed -n 1p "$venv/.stamp" 2>/dev/null)" != "$here" ]; then
        find_python
        rm -rf "$venv"
        if [ "$uv" ]; then
            uv venv --quiet --no-project --python "$(command -v "$python")" "$venv"
        else
            "$python" -m venv "$venv"
        fi
    fi
    rm -f "$venv/.stamp"
    if [ "$uv" ]; then
        uv pip install --quiet --python "$venv/bin/python" "$@"
    else
        # Dependency groups need pip 25.1.
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    fi
}

setup_tap() {
    now=$(stamp pyproject.toml constraints/dev.txt)
    if [ "$(cat .venv/.stamp 2>/dev/null)" = "$now" ] && runs .venv/bin/python; then
        return
    fi
    echo 'Setting up .venv: the tap, its tests, the emulated Snowflake'
    install_into .venv --group dev --editable . --constraint constraints/dev.txt
    printf '%s\n' "$now" >.venv/.stamp
}

setup_meltano() {
    now=$(stamp constraints/meltano.txt)
    if [ "$(cat .venv-meltano/.stamp 2>/dev/null)" != "$now" ] || ! runs .venv-meltano/bin/python; then
        echo 'Setting up .venv-meltano: Meltano'
        install_into .venv-meltano meltano --constraint constraints/meltano.txt
        printf '%s\n' "$now" >.venv-meltano/.stamp
        rm -f .meltano/.stamp
    fi

    plugins='tap-bugspulse target-jsonl target-snowflake target-postgres target-csv'
    now=$(stamp meltano.yml pyproject.toml constraints/dev.txt constraints/target-*.txt)
    if [ "$(cat .meltano/.stamp 2>/dev/null)" = "$now" ]; then
        return
    fi
    echo "Setting up .meltano: $plugins"
    meltano_install $plugins
    printf '%s\n' "$now" >.meltano/.stamp
}

# meltano_install PLUGIN...: have Meltano install some of its plugins.
meltano_install() {
    mkdir -p .meltano
    # A subshell, since Meltano must see no setting of the person who runs this, be it from
    # the environment, an .env file or the home directory: it might name a real database.
    # The uv that it installs with keeps its cache, its index and its passwords.
    (
        cache=$(.venv-meltano/bin/uv cache dir)
        config=${XDG_CONFIG_HOME:-${HOME:-}/.config}/uv/uv.toml
        netrc=${NETRC:-${HOME:-}/.netrc}
        for name in $(env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p'); do
            case $name in
            PATH | HOME | LANG | LC_* | TMPDIR | PIP_* | UV_* | SSL_CERT_* | REQUESTS_CA_BUNDLE | \
                CURL_CA_BUNDLE | *_proxy | *_PROXY) ;;
            PWD | OLDPWD | SHELLOPTS | BASHOPTS | PPID | UID | EUID) ;;
            *) unset "$name" ;;
            esac
        done
        export HOME="$here/.meltano/home" UV_CACHE_DIR="$cache"
        # Else each plugin's first process compiles all that it imports.
        export UV_COMPILE_BYTECODE=1
        [ ! -f "$config" ] || export UV_CONFIG_FILE="${UV_CONFIG_FILE:-$config}"
        [ ! -f "$netrc" ] || export NETRC="$netrc"
        mkdir -p "$HOME"
        .venv-meltano/bin/meltano --env-file /dev/null --log-level warning install --clean "$@"
    ) >.meltano/setup.log 2>&1 || {
        cat .meltano/setup.log >&2
        fail 'Meltano could not install its plugins, see above.'
    }
}

setup_airflow() {
    now=$(stamp constraints/airflow.txt)
    if [ "$(cat .venv-airflow/.stamp 2>/dev/null)" = "$now" ] && runs .venv-airflow/bin/python; then
        return
    fi
    echo 'Setting up .venv-airflow: Airflow'
    install_into .venv-airflow apache-airflow --constraint constraints/airflow.txt
    printf '%s\n' "$now" >.venv-airflow/.stamp
}

setup_dagster() {
    now=$(stamp constraints/dagster.txt)
    if [ "$(cat .venv-dagster/.stamp 2>/dev/null)" = "$now" ] && runs .venv-dagster/bin/python; then
        return
    fi
    echo 'Setting up .venv-dagster: Dagster'
    install_into .venv-dagster dagster --constraint constraints/dagster.txt
    printf '%s\n' "$now" >.venv-dagster/.stamp
}

setup_dbt() {
    setup_meltano
    now=$(stamp meltano.yml constraints/dbt.txt)
    if [ "$(cat .venv-dbt/.stamp 2>/dev/null)" = "$now" ] && runs .venv-dbt/bin/python; then
        return
    fi
    echo 'Setting up .venv-dbt: dbt for DuckDB, Postgres and Snowflake'
    rm -rf .venv-dbt
    meltano_install dbt-bugspulse
    # It is a plugin of Meltano's, which is used without it as well.
    ln -s .meltano/utilities/dbt-bugspulse/venv .venv-dbt
    # A test queries the metrics of the package; who builds tables does not need it.
    .venv-meltano/bin/uv pip install --quiet --python .venv-dbt/bin/python dbt-metricflow \
        --constraint constraints/dbt.txt
    printf '%s\n' "$now" >.venv-dbt/.stamp
}

setup_streamlit() {
    now=$(stamp constraints/streamlit.txt)
    if [ "$(cat .venv-streamlit/.stamp 2>/dev/null)" = "$now" ] && runs .venv-streamlit/bin/python; then
        return
    fi
    echo 'Setting up .venv-streamlit: Streamlit'
    install_into .venv-streamlit streamlit duckdb 'snowflake-connector-python[pandas]' \
        --constraint constraints/streamlit.txt
    printf '%s\n' "$now" >.venv-streamlit/.stamp
}

for part in "$@"; do
    case $part in
    tap) setup_tap ;;
    meltano) setup_meltano ;;
    airflow) setup_airflow ;;
    dagster) setup_dagster ;;
    dbt) setup_dbt ;;
    streamlit) setup_streamlit ;;
    *) fail "unknown part: $part (tap, meltano, airflow, dagster, dbt or streamlit)" ;;
    esac
done
