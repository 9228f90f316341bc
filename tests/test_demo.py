"""`make demo` and the set-up before it, as the person sees them who runs them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.documents import block_with
from tests.pipeline.children import CHECKOUT
from tests.pipeline.demo import OWN_PROJECT
from tests.pipeline.meltano import MeltanoProject
from tests.running import wait_until
from tests.sandbox import Project, generate
from tests.test_release import run, succeed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.sources

SESSIONS, DAYS = 80, 5
DATABASE = "snowflake/databases/ANALYTICS.db"
REAL_SECRET = "bp_real_secret"  # noqa: S105 - made up, and must never be used


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy what the demo needs, with its plugins linked, into a path with a space."""
    # It fails with a clear message where the checkout is not set up.
    MeltanoProject(tmp_path / "unused")
    copy = tmp_path / "a checkout"
    unwanted = shutil.ignore_patterns("__pycache__", "target", "logs")
    for name in ("tests", "scripts", "transform"):
        shutil.copytree(CHECKOUT / name, copy / name, ignore=unwanted)
    shutil.copyfile(CHECKOUT / "meltano.yml", copy / "meltano.yml")
    (copy / ".meltano").mkdir()
    for name in (".venv-meltano", ".venv-dbt", ".meltano/extractors", ".meltano/loaders"):
        (copy / name).symlink_to(CHECKOUT / name)
    return copy


@pytest.fixture
def stub(checkout: Path) -> Path:
    """Put a program in Meltano's place that does what the file it returns says."""
    (checkout / ".venv-meltano").unlink()
    meltano = checkout / ".venv-meltano" / "bin" / "meltano"
    meltano.parent.mkdir(parents=True)
    meltano.touch(0o755)
    return meltano


def demo_command(*arguments: str) -> list[str]:
    """Return the command that `make demo` ends with, for a small project."""
    data = ["--sessions", str(SESSIONS), "--days", str(DAYS)]
    return [sys.executable, "-m", "tests.pipeline.demo", *data, *arguments]


def recorded(path: Path) -> dict[str, str]:
    """Read what `env` wrote."""
    return dict(line.split("=", 1) for line in path.read_text("utf-8").splitlines())


def assert_closed(settings: dict[str, str]) -> None:
    """Check that neither the sandbox nor the emulated Snowflake listens any more."""
    for name in ("TAP_BUGSPULSE_API_URL", "TARGET_SNOWFLAKE_ACCOUNT"):
        (port,) = re.findall(r"127\.0\.0\.1:(\d+)", settings[name])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)), timeout=5)


def hostile(trap: str, home: Path) -> dict[str, str]:
    """Return the settings of somebody who has a real account of everything."""
    return {
        "TARGET_SNOWFLAKE_ACCOUNT": f"{trap}/REAL?protocol=http&account=real&passcode=",
        "TARGET_SNOWFLAKE_USER": "real",
        "TARGET_SNOWFLAKE_PASSWORD": REAL_SECRET,
        "TARGET_SNOWFLAKE_DATABASE": "REAL",
        "TARGET_SNOWFLAKE_DEFAULT_TARGET_SCHEMA": "REAL",
        "TARGET_SNOWFLAKE_PRIVATE_KEY": REAL_SECRET,
        "ANYTHING_ELSE": REAL_SECRET,
        "TAP_BUGSPULSE_API_URL": f"http://{trap}/export",
        "TAP_BUGSPULSE_API_KEY": REAL_SECRET,
        "TAP_BUGSPULSE_START_DATE": "2999-01-01",
        "TAP_BUGSPULSE__SELECT": '["!*.*"]',
        "SNOWFLAKE_ACCOUNT": "real",
        "SNOWFLAKE_HOST": trap,
        "SNOWFLAKE_HOME": str(home / ".snowflake"),
        "SNOWFLAKE_DEFAULT_CONNECTION_NAME": "real",
        "MELTANO_DATABASE_URI": f"postgresql://real:{REAL_SECRET}@{trap}/meltano",
        "MELTANO_STATE_BACKEND_URI": f"s3://{REAL_SECRET}@{trap}/state",
        "MELTANO_ENVIRONMENT": "prod",
        "MELTANO_PROJECT_ROOT": str(home),
        "MELTANO_HUB_URL": f"http://{trap}",
        "MELTANO_SEND_ANONYMOUS_USAGE_STATS": "true",
        "MELTANO_SNOWPLOW_COLLECTOR_ENDPOINTS": f'["http://{trap}"]',
        **dict.fromkeys(
            ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
            f"http://{trap}",
        ),
    }


def section(output: str, title: str) -> list[list[str]]:
    """Return the rows of one table of the report, without its headings."""
    lines = output.partition(title)[2].split("\n\n")[0].splitlines()[2:]
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


@pytest.mark.pipeline
def test_the_demo_loads_the_sandbox_and_touches_nothing_real(
    checkout: Path, tmp_path: Path
) -> None:
    """The report shows the sandbox's data, whatever real accounts are set up around it."""
    home = tmp_path / "home"
    (home / ".snowflake").mkdir(parents=True)
    until = datetime.now(UTC).replace(microsecond=0).isoformat()
    # It stands for everything real: whoever calls it waits in its queue.
    with socket.create_server(("127.0.0.1", 0)) as trap:
        address = f"127.0.0.1:{trap.getsockname()[1]}"
        settings = hostile(address, home)
        dotenv = "".join(f"{name}='{value}'\n" for name, value in settings.items())
        (checkout / ".env").write_text(dotenv, "utf-8")
        connections = home / ".snowflake" / "connections.toml"
        connections.write_text(f'[real]\naccount = "real"\nhost = "{address}"\n', "utf-8")
        connections.chmod(0o600)
        before = sorted(home.rglob("*"))
        env = os.environ | settings | {"HOME": str(home)}
        demo = run(*demo_command("--until", until), cwd=checkout, env=env)
        assert demo.returncode == 0, demo.stdout + demo.stderr
        trap.settimeout(0)
        with pytest.raises(BlockingIOError):
            trap.accept()
        # A call would have been there.
        socket.create_connection(trap.getsockname()).close()
        trap.accept()[0].close()
    assert REAL_SECRET not in demo.stdout + demo.stderr
    assert (checkout / ".env").read_text("utf-8") == dotenv
    assert sorted(home.rglob("*")) == before
    begin, _, rest = demo.stdout.partition("$ meltano run")
    assert "The key works: " in begin
    assert f"  sessions{SESSIONS:>18,} rows" in begin
    database, report = (checkout / ".demo" / name for name in (DATABASE, "report.html"))
    assert database.is_file()
    assert f"{database}\n" in rest
    assert rest.splitlines()[-1] == f"The report, to open in a browser: {report}"
    project = generate(1, SESSIONS, DAYS, datetime.fromisoformat(until))
    assert_report(rest, project)
    assert_page(report.read_text("utf-8"), project)


def assert_page(html: str, project: Project) -> None:
    """Check that the page is of the sandbox's data, all its parts, and says so."""
    crashed = sum(row["hasCrash"] for row in project.sessions.values())
    assert "Made-up data." in html
    assert f"<b>{len(project.sessions)}</b><span>sessions</span>" in html
    assert f"{crashed} crashed" in html
    assert f"of {len(project.network)} calls failed" in html
    for part in ("version", "crash", "endpoint", "step"):
        assert f'class="row" data-{part}="' in html
    assert '<ol class="moments"><li>' in html


def assert_report(report: str, project: Project) -> None:
    """Compare the tables of a report with what the sandbox holds, computed directly."""
    sessions = list(project.sessions.values())
    assert section(report, "Rows per table") == [
        ["sessions", str(len(sessions))],
        ["crashes", str(len(project.crashes))],
        ["events", str(sum(map(len, project.events.values())))],
        ["network", str(len(project.network))],
    ]

    versions: dict[str, list[bool]] = defaultdict(list)
    for row in sessions:
        versions[row["appVersion"]].append(row["hasCrash"])
    assert [
        [version, int(total), int(crashed), float(rate)]
        for version, total, crashed, rate in section(report, "Crash-free sessions by app version")
    ] == [
        [version, len(crashed), sum(crashed), round(100 * (1 - sum(crashed) / len(crashed)), 2)]
        for version, crashed in sorted(versions.items())
    ]

    calls: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for call in project.network.values():
        endpoint = re.sub(r"/\d+", "/:id", call["url"].partition("?")[0])
        calls[call["method"], endpoint].append(call["duration"])
    slowest = section(report, "Slowest endpoints")
    for method, endpoint, count, _, _, longest, *_ in slowest:
        of_it = calls[method, endpoint]
        assert (int(count), int(longest)) == (len(of_it), max(of_it))
    medians = sorted(statistics.median(some) for some in calls.values() if len(some) >= 5)
    assert [int(row[4]) for row in slowest] == pytest.approx(medians[:-6:-1], abs=0.5)

    def most(crash: dict[str, Any]) -> tuple[object, ...]:
        return -crash["affectedDevices"], -crash["occurrenceCount"], crash["id"]

    assert [(row[0], int(row[-2]), int(row[-1])) for row in section(report, "Top crashes")] == [
        (crash["message"], crash["occurrenceCount"], crash["affectedDevices"])
        for crash in sorted(project.crashes.values(), key=most)[:5]
    ]

    named = [row for row in sessions if row["hasCrash"] and row["userId"]]
    last = max(named, key=lambda row: str(row["startedAt"]))
    assert [row[:3] for row in section(report, "One user's journey")] == [
        [last["userId"], event["timestamp"].removesuffix("Z"), event["type"]]
        for event in project.events[last["id"]][-12:]
    ]


@pytest.mark.pipeline
def test_the_demo_exits_with_meltanos_code(checkout: Path, stub: Path) -> None:
    """A failed load is the demo's failure, with no report and no server left behind."""
    stub.write_text('#!/bin/sh\nenv >"$HOME/seen"\nexit 7\n', "utf-8")
    real = hostile("127.0.0.1:1", checkout)
    demo = run(*demo_command(), cwd=checkout, env=os.environ | real)
    assert demo.returncode == 7
    assert "`meltano run` failed with exit code 7" in demo.stdout
    assert "Rows per table" not in demo.stdout
    seen = recorded(checkout / ".demo" / "project" / "home" / "seen")
    assert_closed(seen)
    assert not seen.items() & real.items()


@pytest.mark.pipeline
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_demo_stops_what_it_started(
    checkout: Path, stub: Path, number: signal.Signals, code: int
) -> None:
    """Ctrl-C or a kill in the middle of the load ends Meltano and both servers."""
    stub.write_text(
        "#!/bin/sh\nenv >seen.tmp\necho $$ >pid\nmv seen.tmp seen\nexec sleep 100\n", "utf-8"
    )
    project = checkout / ".demo" / "project"
    with subprocess.Popen(demo_command(), cwd=checkout, stdout=subprocess.DEVNULL) as demo:
        try:
            wait_until(lambda: (project / "seen").exists() or demo.poll() is not None)
            demo.send_signal(number)
            assert demo.wait(30) == code
        finally:
            demo.kill()
    assert_closed(recorded(project / "seen"))
    with pytest.raises(ProcessLookupError):
        os.kill(int((project / "pid").read_text("ascii")), 0)


def test_the_demo_names_all_that_a_load_needs() -> None:
    """What it says of one's own project sets each variable of target-snowflake in README."""
    names = re.compile("TARGET_SNOWFLAKE_[A-Z_]+")
    load = block_with("export TARGET_SNOWFLAKE").text
    assert {*names.findall(OWN_PROJECT)} == {*names.findall(load)}


def test_clean_keeps_what_was_loaded(tmp_path: Path) -> None:
    """`make clean` removes what was installed, but no state of a load and no row of it."""
    shutil.copyfile(CHECKOUT / "Makefile", tmp_path / "Makefile")
    kept = {"Makefile", ".env", ".meltano/meltano.db", "output/sessions.jsonl"}
    installed = {
        *(".venv/bin/tap-bugspulse", ".venv-meltano/.stamp", ".demo/report.html", "dist/a.whl"),
        *(".meltano/.stamp", ".meltano/setup.log", ".meltano/extractors/tap-bugspulse/venv/a"),
        *(".meltano/loaders/target-csv/venv/a", ".meltano/utilities/dbt-bugspulse/venv/a"),
    }
    for name in kept | installed:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".venv-dbt").symlink_to(".meltano/utilities/dbt-bugspulse/venv")
    succeed("make", "--silent", "clean", cwd=tmp_path)
    found = {one.relative_to(tmp_path) for one in tmp_path.rglob("*") if not one.is_dir()}
    assert {one.as_posix() for one in found} == kept
    assert not (tmp_path / ".venv-dbt").is_symlink()


PYTHON_TOO_OLD = '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.18" && exit 0\nexit 1\n'
PYTHON_NOT_RUNNING = "#!/bin/sh\necho 'pyenv: python3: command not found' >&2\nexit 127\n"
PYTHON_WITHOUT_VENV = '#!/bin/sh\ncase "$2" in *ensurepip*) exit 1 ;; esac\nexit 0\n'


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (None, "Python 3.11 or later is needed, none was found."),
        (PYTHON_NOT_RUNNING, "Python 3.11 or later is needed, none was found."),
        (PYTHON_TOO_OLD, "Python 3.11 or later is needed, Python 3.9.18 was found."),
        (PYTHON_WITHOUT_VENV, "python3 has no venv module, which sets up the checkout."),
    ],
)
def test_set_up_says_what_to_install(program: str | None, says: str, tmp_path: Path) -> None:
    """Without a usable Python, one line says what to install on Debian and macOS."""
    copy, tools = tmp_path / "a checkout", tmp_path / "tools"
    for name in ("scripts", "constraints"):
        shutil.copytree(CHECKOUT / name, copy / name)
    shutil.copyfile(CHECKOUT / "pyproject.toml", copy / "pyproject.toml")
    tools.mkdir()
    for name in ("sh", "cat", "cksum", "dirname", "env", "grep", "mkdir", "rm", "sed"):
        (tools / name).symlink_to(str(shutil.which(name)))
    if program:
        (tools / "python3").write_text(program, "utf-8")
        (tools / "python3").chmod(0o755)
    setup = run(tools / "sh", copy / "scripts" / "setup.sh", "tap", env={"PATH": str(tools)})
    assert setup.returncode == 1
    assert setup.stderr == (
        f"{says} Debian, Ubuntu: apt install python3 python3-venv; "
        "macOS: brew install python@3.12\n"
    )
    assert not (copy / ".venv").exists()
