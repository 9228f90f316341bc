"""What the tables of `transform/` should hold, computed without SQL from what was loaded."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter, defaultdict
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any

import duckdb

from tests.sandbox.world import failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from tests.pipeline.truth import Rows

Row = dict[str, Any]
Marts = dict[str, list[Row]]

FUNNEL = ("Home", "Product", "Cart", "Checkout", "Confirmation")


def stored(tables: Marts, folder: Path) -> duckdb.DuckDBPyConnection:
    """Return a database in a folder that holds tables under the names of the package."""
    connection = duckdb.connect(folder / "tables.duckdb")
    for name, rows in tables.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps(rows), "utf-8")
        connection.execute(
            f"create table bugspulse__{name} as "
            f"from read_json('{file}', format = 'array', sample_size = -1, "
            "timestampformat = '%Y-%m-%dT%H:%M:%S.%g')"
        )
    return connection


def half_up(value: float | Decimal, places: str = "1") -> float:
    """Round as databases do, 0.5 away from zero."""
    return float(Decimal(value).quantize(Decimal(places), ROUND_HALF_UP))


def percent(part: int, whole: int) -> float | None:
    """Return a share in percent with two places; of nothing there is none."""
    return half_up(Decimal(100 * part) / whole, "0.01") if whole else None


def percentile(values: list[int], share: float) -> int:
    """Return a percentile, between two values where it falls between them."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below, above = math.floor(position), math.ceil(position)
    part = (ordered[above] - ordered[below]) * (position - below)
    return int(half_up(half_up(ordered[below] + part, "0.001")))


def instant(text: str | None) -> str | None:
    """Return an instant of the API as it is read back from a table."""
    return text and text.removesuffix("Z")


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Return rows by what they have in common, in the order they come."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def by(rows: Iterable[Row], *columns: str) -> list[tuple[Row, list[Row]]]:
    """Return rows by some columns: what these hold, and the rows that have it in common."""
    groups = grouped(rows, lambda row: tuple(row[column] for column in columns))
    return [(dict(zip(columns, values, strict=True)), some) for values, some in groups.items()]


def renamed(row: Row, *fields: str) -> Row:
    """Return fields of the API under the names that they have in the tables."""
    return {re.sub("([A-Z])", r"_\1", field).lower(): row[field] for field in fields}


def project_of(row: Row) -> str:
    """Return the project of a row, an empty text where none is set."""
    return str(row.get("project") or "")


def endpoint(url: str) -> str:
    """Return the endpoint of a URL that the sandbox makes up."""
    return re.sub(r"/\d+(?=/|$)", "/:id", url.partition("?")[0])


def what(event: Row) -> str | None:
    """Return what an event is about."""
    data = event["data"]
    found: str | None = (
        data.get("to") or data.get("target") or data.get("name") or data.get("message")
    )
    return found


def marts(rows: Rows, funnel: Sequence[str] = FUNNEL) -> Marts:
    """Return the rows of each table but those of crashes over time, see `crashes_daily`."""
    sessions, visits = list(sessions_of(rows)), visits_of(rows)
    activity, users = list(user_activity_daily(sessions)), list(users_of(sessions))
    found: dict[str, Iterable[Row]] = {
        "sessions": sessions,
        "session_timeline": session_timeline(rows),
        "app_versions_daily": app_versions_daily(sessions),
        "endpoints_daily": endpoints(rows, "day"),
        "endpoints_hourly": endpoints(rows, "hour", "day"),
        "crashes": crashes_of(rows, sessions),
        "funnel_daily": funnel_daily(sessions, visits, funnel),
        "screen_flows_daily": screen_flows_daily(sessions, visits),
        "user_activity_daily": activity,
        "users": users,
        "retention_weekly": retention_weekly(activity, users),
    }
    return {name: list(some) for name, some in found.items()}


def by_session(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return rows by the session they belong to."""
    return grouped(rows, lambda row: (project_of(row), row["sessionId"]))


def events_of(rows: Rows) -> dict[tuple[str, str], list[Row]]:
    """Return the events of each session in the order of their number."""
    return {
        key: sorted(events, key=lambda event: event["sequenceNumber"])
        for key, events in by_session(rows["events"]).items()
    }


def visits_of(rows: Rows) -> dict[tuple[str, str], list[str]]:
    """Return the screens of each session in order."""
    visits = {
        key: [event["data"]["to"] for event in events if event["type"] == "navigate"]
        for key, events in events_of(rows).items()
    }
    return {key: screens for key, screens in visits.items() if screens}


def sessions_of(rows: Rows) -> Iterator[Row]:
    """Yield one row to a session."""
    events, calls, visits = events_of(rows), by_session(rows["network"]), visits_of(rows)
    for session in rows["sessions"]:
        key = (project_of(session), session["id"])
        own, screens, called = events.get(key, []), visits.get(key, []), calls.get(key, [])
        types = Counter(event["type"] for event in own)
        problems = [
            event for event in own if event["type"] == ("crash" if types["crash"] else "error")
        ]
        crash = problems[-1] if problems else {"data": {}, "timestamp": None}
        yield {
            "project": key[0],
            "session_id": session["id"],
            **renamed(session, "userId", "status", "platform", "osVersion", "appVersion"),
            **renamed(session, "networkType", "hasCrash", "eventCount"),
            "day": session["startedAt"][:10],
            "started_at": instant(session["startedAt"]),
            "ended_at": instant(session["endedAt"]),
            "duration_ms": session["duration"],
            "crash_message": crash["data"].get("message"),
            "crashed_at": instant(crash["timestamp"]),
            "loaded_events": len(own),
            "has_all_events": len(own) >= session["eventCount"],
            "screens": len(screens),
            "first_screen": screens[0] if screens else None,
            "last_screen": screens[-1] if screens else None,
            "taps": types["tap"],
            "custom_events": types["custom"],
            "calls": len(called),
            "failed_calls": sum(map(failed, called)),
        }


def session_timeline(rows: Rows) -> Iterator[Row]:
    """Yield one row to a moment: events by number, calls between them by time."""
    started = {(project_of(row), row["id"]): row["startedAt"] for row in rows["sessions"]}
    events, calls = events_of(rows), by_session(rows["network"])
    for key in events.keys() | calls.keys():
        moments, latest = [], ""
        for place, event in enumerate(events.get(key, [])):
            latest = max(latest, event["timestamp"])
            moments.append((latest, 0, place, event))
        ordered = sorted(calls.get(key, []), key=lambda call: (call["timestamp"], call["id"]))
        moments += [(call["timestamp"], 1, place, call) for place, call in enumerate(ordered)]
        screen = None
        for number, (_, is_call, _, row) in enumerate(sorted(moments, key=lambda one: one[:3]), 1):
            if not is_call and row["type"] == "navigate":
                screen = row["data"]["to"]
            yield {
                "project": key[0],
                "session_id": key[1],
                "moment_number": number,
                "source": "call" if is_call else "event",
                "moment_type": "call" if is_call else row["type"],
                "what": f"{row['method']} {endpoint(row['url'])}" if is_call else what(row),
                "screen": screen,
                "occurred_at": instant(row["timestamp"]),
                "ms_since_start": between(started.get(key), row["timestamp"]),
                "status_code": row["statusCode"] if is_call else None,
                "duration_ms": row["duration"] if is_call else None,
                "is_problem": failed(row) if is_call else row["type"] in {"crash", "error"},
                "moment_id": row["id"],
            }


def between(start: str | None, end: str) -> int | None:
    """Return the milliseconds from one instant to another."""
    if start is None:
        return None
    length = datetime.fromisoformat(end) - datetime.fromisoformat(start)
    return length // timedelta(milliseconds=1)


def app_versions_daily(sessions: list[Row]) -> Iterator[Row]:
    """Yield one row to a version, platform and day."""
    for key, rows in by(sessions, "project", "day", "platform", "app_version"):
        crashed = [row for row in rows if row["has_crash"]]
        users = {row["user_id"] for row in rows} - {None}
        hit = {row["user_id"] for row in crashed} - {None}
        yield {
            **key,
            "sessions": len(rows),
            "crashed_sessions": len(crashed),
            "sessions_without_end": sum(row["status"] == "active" for row in rows),
            "crash_free_sessions_percent": percent(len(rows) - len(crashed), len(rows)),
            "users": len(users),
            "crashed_users": len(hit),
            "crash_free_users_percent": percent(len(users) - len(hit), len(users)),
            "sessions_without_user": sum(row["user_id"] is None for row in rows),
        }


def endpoints(rows: Rows, *periods: str) -> Iterator[Row]:
    """Yield one row to an endpoint and day, or hour."""
    calls = [
        {
            **call,
            "project": project_of(call),
            "day": call["timestamp"][:10],
            "hour": f"{call['timestamp'][:13]}:00:00.000",
            "endpoint": endpoint(call["url"]),
        }
        for call in rows["network"]
    ]
    for key, some in by(calls, "project", *periods, "method", "endpoint"):
        lost, durations = sum(map(failed, some)), [call["duration"] for call in some]
        yield {
            **key,
            "calls": len(some),
            "failed_calls": lost,
            "failed_percent": percent(lost, len(some)),
            **{f"p{share}_ms": percentile(durations, share / 100) for share in (50, 95, 99)},
        }


def crashes_of(rows: Rows, sessions: list[Row]) -> Iterator[Row]:
    """Yield one row to a crash group, with the sessions that match it."""
    alike = ("project", "platform", "app_version", "crash_message")
    crashed = (row for row in sessions if row["crash_message"])
    matching = grouped(crashed, lambda row: tuple(row[column] for column in alike))
    for crash in rows["crashes"]:
        key = (project_of(crash), crash["platform"], crash["appVersion"], crash["message"])
        own = sorted(matching.get(key, []), key=lambda row: str(row["started_at"]))
        yield {
            "project": key[0],
            "crash_id": crash["id"],
            "is_open": crash["status"] in {"open", "acknowledged"},
            "is_handled": crash["handled"],
            **renamed(crash, "message", "status", "isFatal", "platform", "appVersion"),
            **renamed(crash, "osVersion", "occurrenceCount", "affectedDevices"),
            "first_seen_at": instant(crash["firstSeenAt"]),
            "last_seen_at": instant(crash["lastSeenAt"]),
            "matching_sessions": len(own),
            "latest_matching_session_id": own[-1]["session_id"] if own else None,
        }


def crashes_daily(loads: Sequence[Rows]) -> list[Row]:
    """Return one row to a crash group and load that changed it; days are numbers of loads."""
    found = []
    began: dict[str, int] = {}
    known: dict[tuple[str, str], Row] = {}
    for day, rows in enumerate(loads):
        for crash in rows["crashes"]:
            key = (project_of(crash), crash["id"])
            is_first = began.setdefault(key[0], day) == day
            now = renamed(crash, "status", "occurrenceCount", "affectedDevices")
            before = known.get(key, {"occurrence_count": 0, "affected_devices": 0})
            known[key] = now
            new = {
                "new_occurrences": now["occurrence_count"] - before["occurrence_count"],
                "new_devices": now["affected_devices"] - before["affected_devices"],
            }
            if now != before:
                start = {"project": key[0], "day": day, "crash_id": key[1]}
                found.append(start | now | (dict.fromkeys(new) if is_first else new))
    return found


def funnel_daily(
    sessions: list[Row], visits: dict[tuple[str, str], list[str]], funnel: Sequence[str]
) -> Iterator[Row]:
    """Yield one row to a step and day."""
    seen = [row for row in sessions if (row["project"], row["session_id"]) in visits]
    for key, rows in by(seen, "project", "day"):
        reached = [0] * len(funnel)
        for row in rows:
            step = 0
            for screen in visits[row["project"], row["session_id"]]:
                if step < len(funnel) and screen == funnel[step]:
                    reached[step] += 1
                    step += 1
        for number, screen in enumerate(funnel):
            before = percent(reached[number], reached[number - 1]) if number else None
            yield {
                **key,
                "step": number + 1,
                "screen": screen,
                "sessions": reached[number],
                "percent_of_first": percent(reached[number], reached[0]),
                "percent_of_previous": before,
            }


def screen_flows_daily(sessions: list[Row], visits: dict[tuple[str, str], list[str]]) -> list[Row]:
    """Return one row to a way between two screens and day."""
    ways = [
        row | {"from_screen": one, "to_screen": other}
        for row in sessions
        if (screens := visits.get((row["project"], row["session_id"])))
        for one, other in itertools.pairwise(["(start)", *screens, "(end)"])
    ]
    return [
        key | {"moves": len(rows), "sessions": len({row["session_id"] for row in rows})}
        for key, rows in by(ways, "project", "day", "from_screen", "to_screen")
    ]


def user_activity_daily(sessions: list[Row]) -> Iterator[Row]:
    """Yield one row to a named user and day."""
    known = [row for row in sessions if row["user_id"] is not None]
    for key, rows in by(known, "project", "day", "user_id"):
        durations = [row["duration_ms"] for row in rows if row["duration_ms"] is not None]
        yield {
            **key,
            "sessions": len(rows),
            "crashed_sessions": sum(row["has_crash"] for row in rows),
            "duration_ms": sum(durations) if durations else None,
            "screens": sum(row["screens"] for row in rows),
            "calls": sum(row["calls"] for row in rows),
            "failed_calls": sum(row["failed_calls"] for row in rows),
        }


def users_of(sessions: list[Row]) -> Iterator[Row]:
    """Yield one row to a named user."""
    known = [row for row in sessions if row["user_id"] is not None]
    for key, rows in by(known, "project", "user_id"):
        days = {row["day"] for row in rows}
        last = max(rows, key=lambda row: str(row["started_at"]))
        yield {
            **key,
            "first_day": min(days),
            "last_day": max(days),
            "days_active": len(days),
            "sessions": len(rows),
            "crashed_sessions": sum(row["has_crash"] for row in rows),
            **{f"last_{name}": last[name] for name in ("platform", "os_version", "app_version")},
        }


def monday(day: str) -> date:
    """Return the Monday of the week of a day."""
    found = date.fromisoformat(day)
    return found - timedelta(days=found.weekday())


def retention_weekly(activity: list[Row], users: list[Row]) -> Iterator[Row]:
    """Yield one row to a cohort and week."""
    cohort = {(row["project"], row["user_id"]): monday(row["first_day"]) for row in users}
    weeks: dict[tuple[str, date, date], set[str]] = defaultdict(set)
    for row in activity:
        key = (row["project"], row["user_id"])
        weeks[key[0], cohort[key], monday(row["day"])].add(key[1])
    for (project, first, week), some in weeks.items():
        whole = len(weeks[project, first, first])
        yield {
            "project": project,
            "cohort_week": first.isoformat(),
            "week": week.isoformat(),
            "weeks_later": (week - first).days // 7,
            "cohort_users": whole,
            "users": len(some),
            "retained_percent": percent(len(some), whole),
        }


def metrics(rows: Rows, grain: str) -> list[Row]:
    """Return the metrics of each day or week with sessions or calls; null where it has none."""

    def begin(at: str) -> str:
        return at[:10] if grain == "day" else monday(at[:10]).isoformat()

    sessions = grouped(rows["sessions"], lambda row: begin(row["startedAt"]))
    calls = grouped(rows["network"], lambda row: begin(row["timestamp"]))
    return [
        {f"metric_time__{grain}": time}
        | session_metrics(sessions.get(time, []))
        | call_metrics(calls.get(time, []))
        for time in sorted(sessions.keys() | calls.keys())
    ]


def session_metrics(sessions: list[Row]) -> Row:
    """Return the metrics of some sessions."""
    crashed = [row for row in sessions if row["hasCrash"]]
    total, bad = len(sessions), len(crashed)
    users, hit = (len({row["userId"] for row in some} - {None}) for some in (sessions, crashed))
    found = {
        "bugspulse_sessions": total,
        "bugspulse_crash_free_sessions": total - bad,
        "bugspulse_crash_free_sessions_rate": (total - bad) / total if total else None,
        "bugspulse_active_users": users,
        "bugspulse_crashed_users": hit,
        "bugspulse_crash_free_users_rate": 1 - hit / users if users else None,
    }
    return found if sessions else dict.fromkeys(found)


def call_metrics(calls: list[Row]) -> Row:
    """Return the metrics of some calls."""
    lost = sum(map(failed, calls))
    found = {
        "bugspulse_calls": len(calls),
        "bugspulse_failed_calls": lost,
        "bugspulse_failed_calls_rate": lost / len(calls) if calls else None,
    }
    return found if calls else dict.fromkeys(found)
