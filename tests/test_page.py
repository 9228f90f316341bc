"""The report made of the tables of `transform/`, as a browser shows it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from datetime import UTC, datetime
from html import unescape
from typing import TYPE_CHECKING

import pytest

from tests.pipeline.marts import Marts, marts, stored
from tests.pipeline.page import QUESTIONS, Rows, main_days, number, page, share, statements
from tests.pipeline.transform import readable
from tests.pipeline.truth import held
from tests.sandbox import generate

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.sources

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PHONE = 360


@pytest.fixture(scope="module")
def tables() -> Marts:
    """The tables of a made-up project."""
    return marts(held(generate(seed=1, sessions=300, days=20, until=NOW)))


@pytest.fixture(scope="module")
def answers(tables: Marts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """What the report asks of them."""
    with stored(tables, tmp_path_factory.mktemp("tables")) as connection:
        return {
            name: readable(connection.execute(one).fetchall())
            for name, one in zip(QUESTIONS, statements("main"), strict=True)
        }


def browser() -> str:
    """Return a browser's program; skip the test where there is none and none has to be."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    reason = f"none of {', '.join(BROWSERS)} is installed (Debian: apt install chromium)"
    if os.environ.get("BROWSER_IS_THERE"):
        pytest.fail(reason)
    pytest.skip(reason)


def shown(html: str, folder: Path) -> str:
    """Return a page as a browser has it after loading, in a frame as wide as a phone.

    The title is then how wide its content is.
    """
    quoted = html.replace("&", "&amp;").replace('"', "&quot;")
    frame = folder / "frame.html"
    frame.write_text(
        f'<!doctype html><meta charset="utf-8"><iframe width="{PHONE}" height="800" '
        f'style="border:0" srcdoc="{quoted}"></iframe><pre></pre><script>onload = () => {{'
        "const whole = document.querySelector('iframe').contentDocument.documentElement;"
        "document.title = whole.scrollWidth;"
        "document.querySelector('pre').textContent = whole.querySelector('body').innerText;"
        "}</script>",
        "utf-8",
    )
    done = subprocess.run(
        [
            *(browser(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *(f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000"),
            *("--dump-dom", frame.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


def test_a_browser_shows_the_numbers_of_the_tables(
    answers: dict[str, Rows], tables: Marts, tmp_path: Path
) -> None:
    """Versions, crashes, endpoints, funnel and timeline are those of the tables."""
    html = page(answers, made_up=True)
    assert len(html) < 60_000
    assert "<script" not in html
    assert "http" not in re.sub(r"data-endpoint=\"[^\"]*\"", "", html)

    dom = shown(html, tmp_path)
    (title,) = re.findall(r"<title>(\d+)</title>", dom)
    assert int(title) <= PHONE
    (text,) = re.findall(r"<pre>(.*?)</pre>", dom, re.DOTALL)
    lines = [line.strip() for line in unescape(text).split("\n") if line.strip()]

    assert lines[1].startswith("Made-up data.")

    def after(line: str) -> str:
        return lines[lines.index(line) + 1]

    sessions = tables["sessions"]
    crashed = sum(row["has_crash"] for row in sessions)
    assert lines[3:7] == [
        str(len(sessions)),
        "sessions",
        share(len(sessions) - crashed, len(sessions)),
        f"without a crash; {crashed} crashed",
    ]
    days = main_days(answers["versions"])
    assert len(days) in {20, 21}
    drawn = [row for row in sessions if row["day"] in days]
    versions = {row["app_version"] for row in drawn}
    assert len(versions) > 2
    for version in versions:
        found = [row["has_crash"] for row in drawn if row["app_version"] == version]
        assert after(f"Version {version}") == (
            f"{share(len(found) - sum(found), len(found))} crash-free: "
            f"{sum(found)} of {len(found)} sessions crashed"
        )
    assert len(sessions) - len(drawn) == 2
    assert any(line.startswith("2 sessions of other days are not drawn") for line in lines)

    top = sorted(
        tables["crashes"],
        key=lambda row: (-row["affected_devices"], -row["occurrence_count"], row["crash_id"]),
    )
    heading = lines.index("Top crashes")
    assert lines[heading + 2] == top[0]["message"]
    assert f"{top[0]['occurrence_count']} times in all" in lines[heading + 3]

    for method, endpoint, calls, failed, p50, p95 in answers["endpoints"]:
        daily = tables["endpoints_daily"]
        rows = [row for row in daily if (row["method"], row["endpoint"]) == (method, endpoint)]
        assert calls == sum(row["calls"] for row in rows)
        assert failed == sum(row["failed_calls"] for row in rows)
        path = endpoint.removeprefix("https://api.shopnest.example")
        assert after(f"{method} {path}") == (
            f"p95 {number(p95)} ms, p50 {number(p50)} ms; "
            f"{number(failed)} of {number(calls)} calls failed, {share(failed, calls)}"
        )

    steps = Counter[str]()
    for row in tables["funnel_daily"]:
        steps[f"{row['step']}. {row['screen']}"] += row["sessions"]
    for step, count in steps.items():
        assert after(step).startswith(f"{number(count)} sessions, ")

    session = answers["timeline"][0][0]
    moments = [row for row in tables["session_timeline"] if row["session_id"] == session]
    assert moments[-1]["moment_type"] in {"crash", "error"}
    told = lines[lines.index("One session, from the first screen to the crash") :]
    assert told[1].startswith(session)
    assert sum(bool(re.fullmatch(r"\d+:\d\d\.\d", line)) for line in told) == len(moments)
    assert f"{moments[-1]['moment_type']} {moments[-1]['what']}" in " ".join(told)


def test_nothing_there_makes_a_page_as_well() -> None:
    """Tables without rows make a page that says so, without the note on made-up data."""
    empty: dict[str, Rows] = {name: [] for name in QUESTIONS}
    html = page(empty | {"overview": [[0, 0, 0, None, None]]}, made_up=False)
    for words in ("No sessions yet.", "No crashes.", "No calls.", "No funnel"):
        assert words in html
    assert "Made-up" not in html


def test_names_are_no_markup(answers: dict[str, Rows]) -> None:
    """What an app sends is shown and never run."""
    evil = '<img src=x onerror="alert(1)">'

    def change(value: object) -> object:
        return evil if isinstance(value, str) and "-" not in value else value

    changed = {name: [[*map(change, row)] for row in rows] for name, rows in answers.items()}
    assert "<img" not in page(changed, made_up=True)
    assert "&lt;img" in page(changed, made_up=True)
