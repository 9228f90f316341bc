"""A dashboard on the tables that the dbt package in `transform/` makes.

    streamlit run bugspulse_app.py

reads Snowflake through `st.connection("snowflake")`, whose account stands in
`.streamlit/secrets.toml`; as a Streamlit app in Snowflake it has the account it runs in.
With BUGSPULSE_DUCKDB it reads that DuckDB file instead. BUGSPULSE_SCHEMA is where the
tables are, `bugspulse_marts` unless set; in Snowflake, write it below. It needs Streamlit 1.47
or later.
"""

from __future__ import annotations

import datetime as dt
import os
from typing import NamedTuple

import pandas as pd
import streamlit as st

SCHEMA = os.environ.get("BUGSPULSE_SCHEMA", "bugspulse_marts")
DUCKDB = os.environ.get("BUGSPULSE_DUCKDB")
# How long an answer is kept. A comment, as Streamlit would print a text that stands alone.
MINUTES = 10


@st.cache_data(ttl=60 * MINUTES)
def ask(sql: str) -> pd.DataFrame:
    """Return the answer to a question, its columns in lower case."""
    if DUCKDB:
        import duckdb  # noqa: PLC0415 - Snowflake has no such package

        with duckdb.connect(DUCKDB, read_only=True) as connection:
            answer = connection.execute(sql).df()
    else:
        answer = st.connection("snowflake").query(sql, ttl=60 * MINUTES)
    answer.columns = [str(name).lower() for name in answer.columns]
    return answer


def table(name: str) -> str:
    """Return the full name of a table of the package."""
    return f"{SCHEMA}.bugspulse__{name}"


def quoted(value: object) -> str:
    """Return a value as a text in SQL."""
    return "'" + str(value).replace("'", "''") + "'"


def one_of(column: str, values: list[str]) -> str:
    """Return a condition on a column; without any values all are meant."""
    if not values:
        return "1 = 1"
    return f"coalesce({column}, 'unknown') in ({', '.join(map(quoted, values))})"


class Choice(NamedTuple):
    """What is to be shown, as conditions in SQL.

    Attributes:
        project: On the app.
        days: On the days.
        kind: On version and platform.
    """

    project: str
    days: str
    kind: str


def choose() -> Choice:
    """Ask for what to show."""
    found = ask(
        "select project, app_version, platform, day, sum(sessions) as sessions "
        f"from {table('app_versions_daily')} group by 1, 2, 3, 4 order by day"
    )
    if found.empty:
        st.info("There are no sessions yet.")
        st.stop()
    with st.sidebar:
        projects = sorted(set(found["project"]))
        project = st.selectbox("App", projects, format_func=lambda name: name or "the only one")
        own = found[found["project"] == project]
        versions = st.multiselect("Version", sorted(set(own["app_version"]), reverse=True))
        platforms = st.multiselect("Platform", sorted(set(own["platform"])))
        last = last_day(own)
        span = st.date_input("Days (UTC)", (last - dt.timedelta(days=29), last))
        st.caption("Without a version or platform, all are shown.")
    # While somebody picks the second day there is only the first.
    first, last = (span[0], span[-1]) if isinstance(span, tuple) else (span, span)
    return Choice(
        f"project = {quoted(project)}",
        f"day between cast({quoted(first)} as date) and cast({quoted(last)} as date)",
        f"{one_of('app_version', versions)} and {one_of('platform', platforms)}",
    )


def last_day(rows: pd.DataFrame) -> dt.date:
    """Return the last day that is not that of a device with a wrong clock.

    It ends the run of days with most sessions in which no week is without any.
    """
    counts = rows.groupby(pd.to_datetime(rows["day"]))["sessions"].sum()
    run = (counts.index.to_series().diff() > pd.Timedelta(days=7)).cumsum()
    longest = counts.groupby(run).sum().idxmax()
    last: pd.Timestamp = counts.index[run == longest].max()
    return last.date()


def overview(choice: Choice) -> None:
    """Show the numbers of the whole."""
    answer = ask(
        "select count(*) as sessions, count(case when has_crash then 1 end) as crashed, "
        "count(distinct user_id) as users, "
        "count(case when user_id is null then 1 end) as without_user, "
        "coalesce(sum(calls), 0) as calls, coalesce(sum(failed_calls), 0) as failed "
        f"from {table('sessions')} where {' and '.join(choice)}"
    ).iloc[0]
    count, crashed, calls = int(answer["sessions"]), int(answer["crashed"]), int(answer["calls"])
    columns = st.columns(4)
    columns[0].metric("Sessions", f"{count:,}")
    columns[1].metric("Crash-free", share(count - crashed, count), help=f"{crashed} crashed")
    columns[2].metric(
        "Named users",
        f"{int(answer['users']):,}",
        help=f"{int(answer['without_user'])} sessions are of nobody the app names",
    )
    columns[3].metric("Calls failed", share(int(answer["failed"]), calls), help=f"of {calls} calls")


def share(part: int, whole: int) -> str:
    """Return a share in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "none"


def versions(choice: Choice) -> None:
    """Show crash-free sessions by version and day."""
    st.subheader("Crash-free sessions by version, %")
    answer = ask(
        "select day, app_version, sum(sessions) as sessions, "
        "sum(crashed_sessions) as crashed_sessions "
        f"from {table('app_versions_daily')} where {' and '.join(choice)} "
        "group by 1, 2 order by 1, 2"
    )
    if answer.empty:
        st.write("No sessions.")
        return
    answer["crash_free"] = 100.0 - 100.0 * answer["crashed_sessions"].astype(float) / answer[
        "sessions"
    ].astype(float)
    st.line_chart(answer.pivot_table(index="day", columns="app_version", values="crash_free"))
    whole = answer.groupby("app_version", as_index=False)[["sessions", "crashed_sessions"]].sum()
    whole["crash_free_percent"] = [
        share(sessions - crashed, sessions)
        for sessions, crashed in zip(whole["sessions"], whole["crashed_sessions"], strict=True)
    ]
    st.dataframe(whole, hide_index=True)


def crashes(choice: Choice) -> None:
    """Show the crash groups of what is chosen."""
    st.subheader("Crashes")
    answer = ask(
        "select message, platform, app_version, status, affected_devices, occurrence_count, "
        f"matching_sessions, last_seen_at from {table('crashes')} "
        f"where {choice.project} and {choice.kind} "
        "order by affected_devices desc, occurrence_count desc, crash_id limit 20"
    )
    st.caption("Totals since each group was first seen, not of the days that are chosen.")
    st.dataframe(answer, hide_index=True)


def endpoints(choice: Choice) -> None:
    """Show slow and failing endpoints."""
    st.subheader("Endpoints")
    answer = ask(
        "select method, endpoint, sum(calls) as calls, sum(failed_calls) as failed_calls, "
        "round(100.0 * sum(failed_calls) / sum(calls), 2) as failed_percent, "
        f"max(p95_ms) as worst_p95_ms from {table('endpoints_daily')} "
        f"where {choice.project} and {choice.days} "
        "group by method, endpoint order by worst_p95_ms desc, endpoint"
    )
    st.caption("Of all versions and platforms. The 95th percentile is the worst day's.")
    st.dataframe(answer, hide_index=True)


def funnel(choice: Choice) -> None:
    """Show how far sessions get."""
    st.subheader("Funnel")
    answer = ask(
        f"select step, screen, sum(sessions) as sessions from {table('funnel_daily')} "
        f"where {choice.project} and {choice.days} group by step, screen order by step"
    )
    if answer.empty:
        st.write("There is no funnel: name its screens in the variable bugspulse_funnel.")
        return
    st.caption("Of all versions and platforms.")
    st.bar_chart(answer.assign(name=answer["step"].astype(str) + ". " + answer["screen"]),
                 x="name", y="sessions", horizontal=True)  # fmt: skip


def timeline(choice: Choice) -> None:
    """Show what happened in one session."""
    st.subheader("One session")
    only = st.toggle("Crashed sessions only", value=True)
    condition = " and ".join([*choice, *(["has_crash"] if only else [])])
    found = ask(
        "select session_id, user_id, app_version, platform, started_at, crash_message, "
        f"has_all_events from {table('sessions')} where {condition} "
        "order by started_at desc, session_id limit 200"
    )
    if found.empty:
        st.write("No such session.")
        return
    rows = {row["session_id"]: row for row in found.to_dict("records")}
    chosen = st.selectbox("Session", list(rows), format_func=lambda name: label(rows[name]))
    if not rows[chosen]["has_all_events"]:
        st.warning("Some events of this session are not loaded.")
    answer = ask(
        "select moment_number, ms_since_start, moment_type, what, screen, status_code, "
        f"duration_ms, is_problem from {table('session_timeline')} "
        f"where {choice.project} and session_id = {quoted(chosen)} order by moment_number"
    )
    st.dataframe(answer, hide_index=True)


def label(row: dict[str, object]) -> str:
    """Return what a session is called in the list."""
    parts = (row["started_at"], row["platform"], row["app_version"], row["user_id"],
             row["crash_message"])  # fmt: skip
    return " · ".join(str(part) for part in parts if not pd.isna(part))


def main() -> None:
    """Show the page."""
    st.set_page_config(page_title="BugsPulse", layout="wide")
    st.title("App quality")
    choice = choose()
    for part in (overview, versions, crashes, endpoints, funnel, timeline):
        part(choice)


main()
