"""The check says what the API does, whatever that is, and nothing of what it holds."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import subprocess
import sys
import time
import typing as t
from datetime import timedelta

import pytest

from tap_bugspulse.check import LOST, UNTOLD, Check, page, report
from tests.conftest import sweep
from tests.pipeline.children import CHECKOUT, environment
from tests.running import expected, tap_class
from tests.sandbox import Options, Sandbox, generate_once

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from pathlib import Path

    from tests.running import Row
    from tests.sandbox import Request

ROWS = "data [], total 0, pages 0"
SETTINGS: dict[str, t.Any] = {"requests_per_minute": 60_000}
LONG = 5  # letters; shorter values are words of many texts
# Words of the tap's own that are also values of rows.
OWN = {"crashed", "sessions", "events"}


def found_in(sandbox: Sandbox, now: datetime, *, provokes: bool = False) -> Row:
    """Return what the check finds, as --json prints it; it asks no more than it may."""
    tap = tap_class(now)(config={**SETTINGS, "api_url": sandbox.url, "api_key": sandbox.api_key})
    found = report(Check(tap, provokes=provokes))
    assert len(sandbox.requests) == found["requests"]
    assert provokes or found["requests"] <= 40
    return found


@contextlib.contextmanager
def serving(
    now: datetime, sessions: int = 70, days: float = 20, seed: int = 126, **options: t.Any
) -> Iterator[Sandbox]:
    """Serve a project with some options."""
    project = generate_once(seed=seed, sessions=sessions, days=days, until=now - timedelta(hours=1))
    with Sandbox(project, Options(requests_per_minute=None, **options)) as running:
        yield running


def truth(options: Mapping[str, t.Any]) -> dict[str, str]:
    """Return what the API does with some options, by question; others are as without any."""

    def of(name: str) -> t.Any:
        return options.get(name, getattr(Options(), name))

    yes_no = {True: "yes", False: "no"}
    order = {"arbitrary": "not by"}.get(of("order"), f"{of('order')} first by")
    ignored = {
        "none": "yes",
        "both": "no, from and to ignored",
        "from-alone": "no, from without a to ignored",
    }.get(of("ignored"), f"no, {of('ignored')} ignored")
    zone = of("utc_offset_hours")
    is_lowered = of("max_limit") < 70
    field = "endedAt, or soon after it" if of("dates_only") else of("filter_on")
    # Where nothing is filtered, that of all rows is right.
    total = {"page-total", "unfiltered"} if of("ignored") != "both" else {"page-total"}
    is_paged = of("counts") in {"one-page", "default-limit"}
    is_paged = is_paged or (of("counts") == "asked-limit" and is_lowered)
    return {
        "order_of_sessions": f"{order} startedAt",
        "order_of_network": f"{order} timestamp",
        "dates_are_honoured": ignored,
        "times_are_accepted": yes_no[not of("dates_only")],
        "filter_field": "startedAt" if of("filter_on") == "startedAt" else field,
        "time_zone": f"UTC{zone:+g}" if zone else "UTC",
        "to_includes_its_day": yes_no[of("to_means") == "end"],
        "to_includes_its_instant": yes_no[of("to_means") != "before"],
        "largest_limit": str(of("max_limit")),
        "page_is_honoured": yes_no[not of("repeat_page")],
        "page_and_limit_are_echoed_as_used": yes_no[of("echo") == "used"],
        "total_is_true": yes_no[of("counts") not in total],
        "pages_is_true": yes_no[not of("omit_pages") and not is_paged],
        "listings_are_capped": yes_no[of("row_cap") is not None],
        "events_are_paged": yes_no[of("events_paging") == "pages"],
        "events_echo_the_limit": yes_no[
            of("echo") == "asked" or (of("events_paging") != "all" and not is_lowered)
        ],
        "event_ids_repeat": "yes",
        "values_of_another_type": "no",
        "answers_are_compressed": "no",
    }


def assert_true(found: Row, options: Mapping[str, t.Any]) -> None:
    """Check that each answer is the truth, or says why it could not be told."""
    for name, right in truth(options).items():
        answer, note = found["api"][name]["answer"], found["api"][name]["note"]
        assert answer == right or (answer == UNTOLD and note), (name, answer, note, right)


def cases(*options: Mapping[str, t.Any], quick: int) -> pytest.MarkDecorator:
    """Give a test some options; all but so many of them take long."""
    return pytest.mark.parametrize(
        "options",
        [
            pytest.param(one, marks=() if number < quick else pytest.mark.long, id=named(one))
            for number, one in enumerate(options)
        ],
    )


def named(options: Mapping[str, t.Any]) -> str:
    """Return the name of a test with some options."""
    return " ".join(f"{name}={value}" for name, value in options.items()) or "none"


READINGS = {
    "order": ("newest", "arbitrary", "oldest"),
    "to_means": ("before", "midnight", "end"),
    "dates_only": (False, True),
    "utc_offset_hours": (0, 5.5, -8),
    "filter_on": ("startedAt", "endedAt", "received"),
}
DATES = [dict(zip(READINGS, one, strict=True)) for one in itertools.product(*READINGS.values())]


@cases({"order": "arbitrary", "to_means": "end", "utc_offset_hours": -8}, *DATES, quick=1)
def test_what_dates_mean_is_found_in_every_reading(
    now: datetime, options: dict[str, t.Any]
) -> None:
    """The order, the field, the time zone and what `to` includes are those that are set."""
    with serving(now, **options) as sandbox:
        found = found_in(sandbox, now)
    assert_true(found, options)
    told = {name for name, one in found["api"].items() if one["answer"] != UNTOLD}
    assert {"order_of_sessions", "dates_are_honoured", "times_are_accepted"} <= told
    if options.get("filter_on") != "received":
        assert "to_includes_its_day" in told


SINGLE: dict[str, tuple[t.Any, ...]] = {
    "events_paging": ("first", "all", "pages"),
    "unknown_session": ("empty", "404"),
    "max_limit": (20, 1000),
    "omit_pages": (True, False),
    "repeat_page": (True, False),
    "ignored": ("from", "to", "both", "from-alone", "none"),
    "row_cap": (30, None),
    "past_end": ("404", "400", "empty"),
    "counts": ("page-total", "one-page", "default-limit", "asked-limit", "unfiltered", "right"),
    "echo": ("asked", "page-one-too-high", "used"),
    "empty_as": ("null", "204", "floats", "list"),
}
# Those beside which each other question can still be answered.
TOLD = {
    "events_paging": "events_are_paged events_echo_the_limit",
    "max_limit": "largest_limit",
    "omit_pages": "pages_is_true",
    "repeat_page": "page_is_honoured",
    "ignored": "dates_are_honoured",
    "counts": "total_is_true pages_is_true",
}
ONE_BY_ONE = [{name: value} for name, values in SINGLE.items() for value in values]


def mixed(number: int) -> dict[str, t.Any]:
    """Return options of all kinds, by chance; those that leave no row to look at are left out."""
    draw = random.Random(number)
    options = {name: draw.choice(values) for name, values in (SINGLE | READINGS).items()}
    return options | {"repeat_page": False, "row_cap": None}


@cases(*ONE_BY_ONE, quick=1)
def test_each_option_is_found(now: datetime, options: dict[str, t.Any]) -> None:
    """What one option changes is told, and nothing else is told otherwise."""
    with serving(now, **options) as sandbox:
        found = found_in(sandbox, now)
    assert_true(found, options)
    for name in options:
        for question in TOLD.get(name, "").split():
            assert found["api"][question]["answer"] == truth(options)[question]


@cases(*map(mixed, range(80)), quick=0)
def test_options_are_found_beside_others(now: datetime, options: dict[str, t.Any]) -> None:
    """Whatever comes together, each answer is the truth or says why there is none."""
    with serving(now, **options) as sandbox:
        found = found_in(sandbox, now)
    assert_true(found, options)
