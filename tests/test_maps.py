"""Stream maps: a mask that would mask nothing stops the run before its first request."""

from __future__ import annotations

import json
import re
import typing as t
from datetime import datetime
from pathlib import Path

import pytest

from tests.conftest import tiered
from tests.documents import ROOT
from tests.loads import Load, Run, assert_done
from tests.running import PRIMARY_KEYS, Row, counted, events_asked, select, sync
from tests.sandbox import Sandbox
from tests.test_http import assert_one_line
from tests.test_tap import config_file, run_tap

SALT = "kept-secret"
HASH = "sha256(config['salt'] + userId) if userId else None"
NO_SPLITT = "is a text, which has no splitt, did you mean split?"
MASKS: Row = {
    "sessions": {"userId": HASH, "_extra": "__NULL__"},
    "network": {"url": "url.split('?')[0] if url else None"},
}


Loads = t.Callable[..., Run]


@pytest.fixture
def run(load: Load, sandbox: Sandbox) -> Loads:
    """Run the command line with stream maps; its log shows neither key nor salt."""

    def ended(maps: Row | None, **settings: t.Any) -> Run:
        done = load(stream_maps=maps, **settings)
        assert not re.search(f"{SALT}|{sandbox.api_key}", "\n".join(done.log))
        return done

    return ended


def reason(ended: Run) -> str:
    """Return the message of the last line of a run."""
    return ended.log[-1].split(" | ")[-1].strip()


def assert_ends_first(run: Loads, maps: Row, says: str, **settings: t.Any) -> None:
    """Expect a run that says in its last line what is wrong, and asks for nothing."""
    ended = run(maps, code=1, **settings)
    assert (ended.requests, ended.output.messages) == ([], [])
    assert reason(ended) == f"stream_maps: {says}"


def users(sandbox: Sandbox) -> set[str]:
    """Return the users that the sandbox's sessions name."""
    return {row["userId"] for row in sandbox.project.sessions.values() if row["userId"]}


def test_no_map_may_be_null(sandbox: Sandbox, run: Loads) -> None:
    """`stream_maps: null` is none, as where the setting is not there."""
    ended = run(None)
    assert {row["userId"] for row in ended.output.rows("sessions")} - {None} == users(sandbox)


# --- Before the first request

NOTHING = "no selected column and no function is called"
UNREADABLE = "the expression for url cannot be read"
MEANT = "there is no column userID, did you mean userId?"
WRONG: list[tuple[Row, str]] = [
    ({"session": {"userId": None}}, "there is no stream session, did you mean sessions?"),
    ({"xyz": None}, "there is no stream xyz"),
    ({"sess*n": {}}, "there is no stream sess*n, did you mean sessions?"),
    (
        {"visits": {"__source__": "sesions", "userId": None}},
        "there is no stream sesions, did you mean sessions?",
    ),
    (
        {"visits": {"__source__": "sessions", "USERID": "__NULL__"}},
        "sessions.USERID: there is no column USERID, did you mean userId?",
    ),
    (
        {"sessions": {"userId": None}, "*": {"_extra": None}},
        "sessions and * fit sessions, but only one of them would count",
    ),
    ({"*": {"userID": None}}, f"crashes.userID: {MEANT}"),
    ({"*": {"userId": "userId and sha256(userId)"}}, f"crashes.userId: {NOTHING} userId"),
]
WRONG += [
    ({stream: {column: expression}}, f"{stream}.{column}: {says}")
    for stream, column, expression, says in [
        ("sessions", "userID", None, MEANT),
        ("sessions", "userID", "sha256(userId)", MEANT),
        ("sessions", "user", "sha256(userID)", f"{NOTHING} userID, did you mean userId?"),
        ("sessions", "user", "sha256(self)", f"{NOTHING} self"),
        ("sessions", "userId", "sha265(userId)", f"{NOTHING} sha265, did you mean sha256?"),
        ("sessions", "userId", HASH, "stream_map_config has no salt"),
        ("sessions", "__filtr__", "1", "there is no column __filtr__, did you mean __filter__?"),
        ("sessions", "__filter__", "len(userId) > 3", f"{NOTHING} len"),
        ("sessions", "__filter__", "platfrom", f"{NOTHING} platfrom, did you mean platform?"),
        ("network", "url", "url.splitt('?')", f"url {NO_SPLITT}"),
        ("network", "url", "self.splitt('?') if url else None", f"self {NO_SPLITT}"),
        ("network", "url", f"sha256('{SALT}' + url", UNREADABLE),
        ("network", "url", "", UNREADABLE),
        ("network", "url", "url; url", UNREADABLE),
    ]
]


@pytest.mark.parametrize(("maps", "says"), tiered(WRONG, 6), ids=[says for _, says in WRONG])
def test_a_map_that_would_not_do_what_it_says_ends_the_run_first(
    run: Loads, maps: Row, says: str
) -> None:
    """One line names stream, column and the nearest right name; nothing was asked for."""
    assert_ends_first(run, maps, says)


@pytest.mark.parametrize(
    ("config", "near"),
    [({"salt": ""}, ""), ({"salt": None}, ""), ({"sal": SALT}, ", did you mean sal?")],
)
def test_a_salt_that_is_empty_or_called_otherwise_is_none(
    run: Loads, config: Row, near: str
) -> None:
    """A hash without its salt can be undone: the run ends before its first request."""
    says = f"sessions.userId: stream_map_config has no salt{near}"
    assert_ends_first(run, MASKS, says, stream_map_config=config)


def test_a_deselected_column_is_none_that_an_expression_can_use(
    sandbox: Sandbox, run: Loads, now: datetime
) -> None:
    """A row lacks it; to take it away once more is no mistake."""
    catalog = select(now, *PRIMARY_KEYS, without=["sessions.userId"])
    maps = {"sessions": {"userId": "md5(userId)"}}
    assert_ends_first(run, maps, f"sessions.userId: {NOTHING} userId", catalog=catalog)
    output = sync(sandbox, now, catalog=catalog, stream_maps={"sessions": {"userId": None}})
    assert output.rows("sessions")
    assert all("userId" not in row for row in output.rows("sessions"))


@pytest.mark.parametrize("argument", ["--discover", "--about"])
def test_a_wrong_map_keeps_nobody_from_looking(
    sandbox: Sandbox, tmp_path: Path, argument: str
) -> None:
    """What loads nothing says what there is, whatever the maps are."""
    config = config_file(sandbox, tmp_path, stream_maps={"session": None})
    done = run_tap("--config", config, argument)
    assert done.returncode == 0, done.stderr
    assert "sessions" in done.stdout
    assert sandbox.requests == []


def test_a_trial_run_checks_the_maps(sandbox: Sandbox, tmp_path: Path) -> None:
    """--test says what a run would say."""
    config = config_file(sandbox, tmp_path, stream_maps={"session": None})
    says = "stream_maps: there is no stream session, did you mean sessions?"
    assert_one_line(run_tap("--config", config, "--test"), says)
    assert sandbox.requests == []


# --- What is right

RIGHT: dict[str, Row] = {
    "all streams": {"*": {"_extra": None, "userId": "__NULL__"}},
    "a part of the streams": {"se*s": {"userId": None}},
    "a copy": {"visits": {"__source__": "sessions", "userId": None}, "sessions": None},
    "an alias": {"sessions": {"__alias__": "visits", "userId": None}},
    "a new column": {"sessions": {"known": "bool(userId)", "userId": None}},
    "names of the SDK": {
        "sessions": {
            "userId": None,
            "a": "record['platform'] or _['platform']",
            "b": "__stream_name__ + __original_stream_name__",
            "c": "[letter.upper() for letter in str(platform)]",
            "d": "datetime.date.fromisoformat(startedAt[:10]).isoformat()",
            "e": "config.get('missing', 'nothing')",
            "f": "json.dumps(record['hasCrash'])",
        }
    },
    "keys only": {"sessions": {"__else__": None, "id": "self"}},
    "other keys": {"sessions": {"__key_properties__": ["startedAt"], "userId": None}},
    "no other stream": {"sessions": {"userId": None}, "__else__": None},
}


@pytest.mark.parametrize("maps", tiered([(one,) for one in RIGHT.values()], 3), ids=RIGHT)
def test_what_the_sdk_can_do_is_allowed(sandbox: Sandbox, run: Loads, maps: Row) -> None:
    """Such a run ends well, and no user is in what it wrote."""
    ended = run(maps)
    written = ended.output.rows("sessions") + ended.output.rows("visits")
    assert written or maps.get("sessions", "") is None
    assert not any(user in json.dumps(written) for user in users(sandbox))


def test_a_mask_that_holds_leaves_nothing_personal(sandbox: Sandbox, run: Loads) -> None:
    """No user and no query is in the output, and no salt."""
    assert len(users(sandbox)) > 2
    urls = [row["url"] for row in sandbox.project.network.values()]
    queries = {url.split("?")[1] for url in urls if "?" in url}
    assert queries
    ended = run(MASKS, stream_map_config={"salt": SALT})
    rows = json.dumps([*ended.output.rows("sessions"), *ended.output.rows("network")])
    assert not any(personal in rows for personal in (users(sandbox) | queries | {SALT}))


# --- What only a row shows

FAILS = [
    ("sessions.userId", "sha256(userId)", " where userId is null (AttributeError)"),
    ("sessions.userId", "'x' + self", " where self is null (TypeError)"),
    ("sessions.userId", "userId.lower()", " where userId is null (AttributeDoesNotExist)"),
    ("sessions.__filter__", "'usr' in userId", " where userId is null (TypeError)"),
    ("network.duration", "int(url)", " (ValueError)"),
    ("network.url", "record['Url']", " (KeyError)"),
]


@pytest.mark.parametrize(
    ("place", "expression", "says"), tiered(FAILS, 3), ids=[one[1] for one in FAILS]
)
def test_an_expression_that_fails_for_a_row_ends_in_one_line(
    sandbox: Sandbox, run: Loads, place: str, expression: str, says: str
) -> None:
    """It names stream, column and what is null, and repeats no value of the row."""
    stream, column = place.split(".")
    ended = run({stream: {column: expression}}, code=1)
    assert reason(ended) == f"stream_maps: {place}: the expression fails for a row{says}"
    urls = {row["url"] for row in sandbox.project.network.values()}
    assert not any(personal in "\n".join(ended.log) for personal in users(sandbox) | urls)
    assert counted(sandbox)["/events"] == 0


# --- Streams that are not selected, and those that a map takes away


@pytest.mark.parametrize("salt", [{"salt": SALT}, {}])
def test_the_masks_of_what_is_not_selected_are_left_out(
    run: Loads, now: datetime, salt: Row
) -> None:
    """The masking recipe serves a run of network alone, or of events alone."""
    for stream in ("network", "events"):
        ended = run(MASKS, catalog=select(now, stream), stream_map_config=salt)
        assert_done(ended)
        assert {one.get("stream") for one in ended.output.messages} == {stream, None}
        assert len(ended.output.table(stream)) > 50
        assert not any("?" in row["url"] for row in ended.output.rows("network"))


def test_a_stream_that_is_not_selected_may_have_any_map(run: Loads, now: datetime) -> None:
    """Even one that cannot be read; the name of a stream must be right all the same."""
    wrong = {"sessions": {"userId": "sha256('"}, "crashes": {"__filter__": "("}}
    assert_done(run(wrong, catalog=select(now, "network", "events")))
    says = "there is no stream session, did you mean sessions?"
    assert_ends_first(run, {"session": {}}, says, catalog=select(now, "network"))


def test_a_filter_of_sessions_counts_for_their_events(sandbox: Sandbox, now: datetime) -> None:
    """Also where sessions are not selected and other columns of theirs are mapped."""
    maps = {"sessions": {**MASKS["sessions"], "__filter__": "platform == 'ios'"}}
    wanted = {key for key, row in sandbox.project.sessions.items() if row["platform"] == "ios"}
    output = sync(sandbox, now, catalog=select(now, "events"), stream_maps=maps)
    asked = set(events_asked(sandbox.requests))
    assert asked
    assert asked <= wanted
    both = sync(sandbox, now, stream_maps=maps, stream_map_config={"salt": SALT})
    assert output.table("events") == both.table("events")


def test_a_wrong_filter_of_sessions_is_told_where_events_need_it(run: Loads, now: datetime) -> None:
    """A run of events alone ends before its first request."""
    maps, only = {"sessions": {"__filter__": "plat"}}, select(now, "events")
    says = f"sessions.__filter__: {NOTHING} plat, did you mean platform?"
    assert_ends_first(run, maps, says, catalog=only)


@pytest.mark.parametrize(
    ("maps", "asked"),
    [
        ({"events": None}, "sessions network crashes"),
        ({"events": "__NULL__"}, "sessions network crashes"),
        ({"e*": None}, "sessions network crashes"),
        ({"sessions": {"userId": None}, "__else__": None}, "sessions"),
    ],
)
def test_a_stream_that_maps_take_away_costs_no_request(
    sandbox: Sandbox, now: datetime, maps: Row, asked: str
) -> None:
    """The others come as ever; with ``__else__``, only what has a map is asked for."""
    output = sync(sandbox, now, stream_maps=maps)
    assert {*counted(sandbox)} == {f"/{name}" for name in asked.split()}
    for stream in asked.split():
        assert len(output.table(stream)) == len(sandbox.project.table(stream))


def test_the_masking_example_is_right(sandbox: Sandbox, now: datetime) -> None:
    """The file that people copy passes the check, with any one stream selected."""
    import yaml  # type: ignore[import-untyped] # noqa: PLC0415 - it has no types

    text = (ROOT / "examples" / "masking" / "masked.meltano.yml").read_text("utf-8")
    config = yaml.safe_load(text)["plugins"]["extractors"][0]["config"]
    config["stream_map_config"] = {"salt": SALT}
    for stream in PRIMARY_KEYS:
        rows = sync(sandbox, now, catalog=select(now, stream), **config).rows(stream)
        assert rows
        assert not any("_extra" in row for row in rows)
