"""One HTML page of the tables of `transform/`: it needs no server, no script and no download.

Nothing is said by colour alone: what has crashed or failed is hatched and has its number in
words beside it. The page fits a phone, and is dark where the reader's system is.
"""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

Rows = list[list[Any]]
Counts = dict[str, tuple[int, int]]
"""By day, how many sessions there were and how many of them crashed."""

QUESTIONS = {
    "overview": """
        select count(*), count(case when has_crash then 1 end), count(distinct user_id),
            sum(calls), sum(failed_calls)
        from {schema}.bugspulse__sessions
    """,
    "versions": """
        select app_version, day, sum(sessions), sum(crashed_sessions)
        from {schema}.bugspulse__app_versions_daily
        group by app_version, day
        order by app_version, day
    """,
    "crashes": """
        select crash_id, message, platform, app_version, status, occurrence_count, affected_devices
        from {schema}.bugspulse__crashes
        order by affected_devices desc, occurrence_count desc, crash_id
        limit 6
    """,
    # The counts of a group have no days before the history begins; its sessions have.
    "crash_days": """
        select crashes.crash_id, sessions.day, count(*)
        from {schema}.bugspulse__crashes as crashes
        inner join {schema}.bugspulse__sessions as sessions
            on sessions.project = crashes.project and sessions.platform = crashes.platform
            and sessions.app_version = crashes.app_version
            and sessions.crash_message = crashes.message
        where sessions.day is not null
        group by crashes.crash_id, sessions.day
        order by crashes.crash_id, sessions.day
    """,
    "endpoints": """
        select method, endpoint, sum(calls) as calls, sum(failed_calls) as failed_calls,
            {p50_ms} as p50_ms, {p95_ms} as p95_ms
        from {schema}.bugspulse__endpoints_daily
        group by method, endpoint
        having sum(calls) >= 5
        order by p95_ms desc, method, endpoint
        limit 8
    """,
    "funnel": """
        select step, screen, sum(sessions)
        from {schema}.bugspulse__funnel_daily
        group by step, screen
        order by step
    """,
    # The latest crash of a known user that has something to tell.
    "timeline": """
        with chosen as (
            select project, session_id, user_id, platform, os_version, app_version
            from {schema}.bugspulse__sessions
            where has_crash and crash_message is not null and has_all_events
            order by
                case when user_id is null then 1 else 0 end,
                case when screens >= 3 and calls > 0 then 0 else 1 end,
                started_at desc,
                session_id
            limit 1
        )
        select chosen.session_id, chosen.user_id, chosen.platform, chosen.os_version,
            chosen.app_version, moments.moment_number, moments.moment_type, moments.what,
            moments.screen, moments.ms_since_start, moments.status_code, moments.duration_ms,
            moments.is_problem
        from {schema}.bugspulse__session_timeline as moments
        inner join chosen
            on chosen.project = moments.project and chosen.session_id = moments.session_id
        order by moments.moment_number
    """,
}
"""What is asked, in SQL that Snowflake, Postgres and DuckDB understand."""

LONGEST_GAP = timedelta(days=7)
MOST_DAYS = 60
MARKS = {"navigate": "▸", "tap": "●", "custom": "◆", "call": "⇄", "error": "✖", "crash": "✖"}


def statements(schema: str) -> list[str]:
    """Return the questions in their order, to tables in a schema."""
    medians = {
        name: "cast(round(cast(percentile_cont(0.5) within group "
        f"(order by {name}) as decimal(18, 3))) as bigint)"
        for name in ("p50_ms", "p95_ms")
    }
    return [question.format(schema=schema, **medians) for question in QUESTIONS.values()]


def page(answers: Mapping[str, Rows], *, made_up: bool) -> str:
    """Return the page of the answers to `QUESTIONS`; it says where its data is made up."""
    days = main_days(answers["versions"])
    note = (
        '<p class="note"><strong>Made-up data.</strong> The app, its users and its crashes come '
        "from the sandbox of this repository. Nobody is real.</p>"
    )
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>App report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
        f"<h1>App report</h1>\n{note if made_up else ''}",
        overview(answers["overview"], days),
        versions(answers["versions"], days),
        crashes(answers["crashes"], answers["crash_days"], days),
        endpoints(answers["endpoints"]),
        funnel(answers["funnel"]),
        timeline(answers["timeline"]),
        f"{FOOT}\n</main>\n</body>\n</html>\n",
    ]
    return "\n".join(parts)


def main_days(rows: Rows) -> list[str]:
    """Return the days that the charts show, without those of devices with a wrong clock.

    That is the run of days with most sessions in which no week is without any, and its last
    two months at most.
    """
    counts: Counter[date] = Counter()
    for _, day, sessions, _ in rows:
        counts[date.fromisoformat(day)] += int(sessions)
    runs: list[list[date]] = []
    for day in sorted(counts):
        if not runs or day - runs[-1][-1] > LONGEST_GAP:
            runs.append([])
        runs[-1].append(day)
    if not runs:
        return []
    best = max(runs, key=lambda run: sum(counts[day] for day in run))
    length = min((best[-1] - best[0]).days + 1, MOST_DAYS)
    return [(best[-1] - timedelta(days=before)).isoformat() for before in reversed(range(length))]


def overview(rows: Rows, days: list[str]) -> str:
    """Return the numbers of the whole."""
    ((sessions, crashed, users, calls, failed),) = rows
    tiles = [
        (number(sessions), "sessions"),
        (share(sessions - crashed, sessions), f"without a crash; {number(crashed)} crashed"),
        (number(users), "users whom the app names"),
        (share(failed or 0, calls or 0), f"of {number(calls or 0)} calls failed"),
    ]
    span = f"<p>{days[0]} to {days[-1]}, days in UTC.</p>" if days else "<p>No sessions yet.</p>"
    items = "".join(
        f'<div class="tile"><b>{value}</b><span>{words}</span></div>' for value, words in tiles
    )
    return f'{span}\n<div class="tiles">{items}</div>'


def versions(rows: Rows, days: list[str]) -> str:
    """Return how the sessions of each version went, day by day."""
    by_version: dict[str, Counts] = {}
    others = 0
    for version, day, sessions, crashed in rows:
        if day in days:
            by_version.setdefault(version, {})[day] = (int(sessions), int(crashed))
        else:
            others += int(sessions)
    most = most_of(by_version)
    blocks = []
    for version, found in reversed(by_version.items()):
        total, crashed = (sum(numbers) for numbers in zip(*found.values(), strict=True))
        words = (
            f"<p><b>{share(total - crashed, total)}</b> crash-free: {number(crashed)} of "
            f"{number(total)} sessions crashed</p>"
        )
        charts = shares_chart(version, found, days) + bars(version, found, days, most)
        blocks.append(panel("version", version, f"Version {escape(version)}", words + charts))
    left_out = (
        f"<p>{number(others)} sessions of other days are not drawn: clocks of devices that are "
        "wrong, or days long ago.</p>"
    )
    return section(
        "Crash-free sessions by version",
        "The line is the share of each day's sessions that did not crash, from 0 % at the bottom "
        "to 100 % at the top. The bars below are the sessions; the hatched part crashed.",
        rows_of(blocks) + (left_out if others else ""),
    )


def most_of(found: Mapping[str, Counts]) -> int:
    """Return the most sessions that there are on a day."""
    return max((all_ for counts in found.values() for all_, _ in counts.values()), default=1)


def shares_chart(version: str, found: Counts, days: list[str]) -> str:
    """Return the line of crash-free shares of a version."""
    width = len(days)
    points = [
        (days.index(day) + 0.5, 100 * (sessions - crashed) / sessions, day, sessions, crashed)
        for day, (sessions, crashed) in sorted(found.items())
    ]
    line = " ".join(f"{x:g},{100 - y:.2f}" for x, y, *_ in points)
    dots = "".join(
        f'<path class="dot" d="M{x:g} {100 - y:.2f}h0"><title>{day}: {share(all_ - bad, all_)} '
        f"crash-free of {all_}</title></path>"
        for x, y, day, all_, bad in points
    )
    return (
        f'<svg class="line" viewBox="0 -8 {width} 116" preserveAspectRatio="none" role="img" '
        f'aria-label="Crash-free share of version {escape(version)} by day">'
        f'<path class="grid" d="M0 0H{width}M0 50H{width}M0 100H{width}"/>'
        f'<polyline points="{line}"/>{dots}</svg>'
    )


def bars(name: str, found: Counts, days: list[str], most: int) -> str:
    """Return bars of each day's sessions, the part that crashed hatched, above their axis."""
    drawn = []
    for place, day in enumerate(days):
        sessions, crashed = found.get(day, (0, 0))
        rectangles = "".join(
            f'<rect class="{kind}" x="{place + 0.1:g}" y="{100 - height:.2f}" width="0.8" '
            f'height="{height:.2f}"/>'
            for kind, height in (("all", 100 * sessions / most), ("bad", 100 * crashed / most))
            if height
        )
        if sessions:
            words = f"{day}: {sessions} sessions, {crashed} crashed"
            drawn.append(f"<g><title>{words}</title>{rectangles}</g>")
    return (
        f'<svg class="bars" viewBox="0 0 {len(days)} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="Sessions by day of {escape(name)}; at most {most} a day">{HATCH}'
        f'{"".join(drawn)}<path class="grid" d="M0 100H{len(days)}"/></svg>'
        f'<p class="axis"><span>{days[0][5:]}</span><span>{days[-1][5:]}</span></p>'
    )


def crashes(rows: Rows, by_day: Rows, days: list[str]) -> str:
    """Return the crash groups that hit most devices, and when they happened."""
    found: dict[str, Counts] = {}
    for crash, day, sessions in by_day:
        if day in days:
            found.setdefault(crash, {})[day] = (int(sessions), int(sessions))
    most = most_of(found)
    blocks = []
    for crash, message, platform, version, status, count, devices in rows:
        chart, when = "<p>None of the loaded sessions matches it.</p>", ""
        if drawn := found.get(crash):
            chart = bars(f"crash group {crash}", drawn, days, most)
            total = sum(sessions for sessions, _ in drawn.values())
            when = f"{total} matching: {min(drawn)} first, {max(drawn)} last."
        words = (
            f"<p><b>{counted(devices, 'device')}</b>, {counted(count, 'time')} in all; "
            f"{escape(platform or 'unknown')} {escape(version or '')}, "
            f"{escape(status or 'unknown')}</p>"
        )
        title = escape(message or "no message")
        blocks.append(panel("crash", crash, title, f"{words}{chart}<p>{when}</p>"))
    return section(
        "Top crashes",
        "Groups of equal crashes that hit most devices. Bars are the sessions of each day that "
        "match the group by platform, version and message; the API does not name them.",
        rows_of(blocks) or "<p>No crashes.</p>",
    )


def endpoints(rows: Rows) -> str:
    """Return the slowest endpoints, with their failures."""
    most = max((row[5] or 0 for row in rows), default=1) or 1
    blocks = []
    for method, endpoint, calls, failed, p50, p95 in rows:
        half, long = 100 * (p50 or 0) / most, 100 * (p95 or 0) / most
        bar = f'<i style="width:{long:.1f}%"></i><u style="left:{half:.1f}%"></u>'
        part = share(failed, calls)
        words = (
            f"<p>p95 <b>{number(p95)} ms</b>, p50 {number(p50)} ms; "
            f"{number(failed)} of {number(calls)} calls failed, <b>{part}</b></p>"
        )
        thin = f'<s style="width:{100 * failed / calls:.1f}%"></s>'
        content = meter(f"p95 {number(p95)} ms", bar) + words
        content += meter(f"{part} failed", thin, "meter thin")
        title = f"{escape(method)} {escape(short(endpoint))}"
        blocks.append(panel("endpoint", f"{method} {endpoint}", title, content))
    return section(
        "Slow and failing endpoints",
        "The long bar ends where 95 % of the calls of a usual day have been answered, the mark in "
        "it where half have. The hatched bar is the share that failed.",
        rows_of(blocks) or "<p>No calls.</p>",
    )


def funnel(rows: Rows) -> str:
    """Return how far sessions get."""
    first = rows[0][2] if rows else 0
    blocks, before = [], first
    for step, screen, sessions in rows:
        lost = f"; {number(before - sessions)} left before" if before - sessions else ""
        width = 100 * sessions / first if first else 0
        part = share(sessions, first)
        content = meter(part, f'<i style="width:{width:.1f}%"></i>')
        content += f"<p><b>{number(sessions)} sessions</b>, {part} of the first{lost}</p>"
        blocks.append(panel("step", step, f"{step}. {escape(screen)}", content))
        before = sessions
    return section(
        "Funnel",
        "Sessions that came to each screen after all screens before it.",
        rows_of(blocks) or "<p>No funnel: name its screens in bugspulse_funnel.</p>",
    )


def timeline(rows: Rows) -> str:
    """Return one session from its first screen to the crash."""
    if not rows:
        return section("One session", "No session with a crash has all its events.", "")
    session, user, platform, system, version = rows[0][:5]
    items = []
    for *_, kind, what, screen, at, status, duration, problem in (row[5:] for row in rows):
        answer = ""
        if kind == "call":
            answer = f" · {status if status is not None else 'no status'}, {number(duration)} ms"
        words = "failed call" if kind == "call" and problem else str(kind or "event")
        place = f" <em>on {escape(screen)}</em>" if screen and kind != "navigate" else ""
        items.append(
            f"<li{' class=problem' if problem else ''}><time>{seconds(at)}</time>"
            f'<span class="mark" aria-hidden="true">{MARKS.get(kind, "■")}</span>'
            f"<span><b>{escape(words)}</b> {escape(short(what or ''))}{answer}{place}</span></li>"
        )
    return section(
        "One session, from the first screen to the crash",
        f"{escape(session)} of {escape(user or 'an unnamed user')}, {escape(platform or '')} "
        f"{escape(system or '')}, version {escape(version or '')}. Times are since its start.",
        f'<ol class="moments">{"".join(items)}</ol>',
    )


def panel(kind: str, name: object, title: str, content: str) -> str:
    """Return a panel about one thing."""
    return f'<div class="row" data-{kind}="{escape(str(name))}"><h3>{title}</h3>{content}</div>'


def meter(words: str, content: str, kind: str = "meter") -> str:
    """Return a bar across a panel, filled by its content."""
    return f'<div class="{kind}" role="img" aria-label="{words}">{content}</div>'


def rows_of(blocks: list[str]) -> str:
    """Return panels, two beside each other where there is room."""
    return f'<div class="rows">{"".join(blocks)}</div>' if blocks else ""


def section(title: str, words: str, content: str) -> str:
    """Return a part of the page."""
    return f"<section>\n<h2>{title}</h2>\n<p>{words}</p>\n{content}\n</section>"


def short(text: str) -> str:
    """Return an endpoint or other text without the address of a server."""
    head, found, tail = text.partition("://")
    if not found:
        return text
    path = tail.partition("/")
    return f"{head.rpartition(' ')[0]} /{path[2]}".strip() if path[1] else text


def number(value: float | None) -> str:
    """Return a number with commas between thousands."""
    return "unknown" if value is None else f"{value:,.0f}"


def counted(value: float | None, thing: str) -> str:
    """Return a number of things."""
    return f"{number(value)} {thing}{'' if value == 1 else 's'}"


def share(part: float, whole: float) -> str:
    """Return a share in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "none"


def seconds(milliseconds: int | None) -> str:
    """Return minutes and seconds."""
    if milliseconds is None:
        return ""
    minutes, rest = divmod(abs(milliseconds) / 1000, 60)
    return f"{'-' if milliseconds < 0 else ''}{int(minutes)}:{rest:04.1f}"


HATCH = (
    '<defs><pattern id="hatch" width="0.2" height="8" patternUnits="userSpaceOnUse">'
    '<rect class="bad-ground" width="0.2" height="8"/><rect class="bad-line" width="0.2" '
    'height="4"/></pattern></defs>'
)
FOOT = (
    "<footer><p>Made of the tables of the dbt package in <code>transform/</code>, in one file "
    "without scripts.</p></footer>"
)
STYLE = """
:root{--ink:#1b1f24;--soft:#57606a;--ground:#fff;--panel:#f6f8fa;--rule:#d0d7de;--all:#4c78b5;
--bad:#b3261e;--bad-soft:#f3c6c2;--note:#fff3cd;--note-ink:#4d3b00}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9da7b1;--ground:#0d1117;
--panel:#161b22;--rule:#30363d;--all:#6ea8e8;--bad:#ff8a80;--bad-soft:#5c1f1b;--note:#3a2f0b;
--note-ink:#ffe08a}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.45 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem;margin:.5rem 0}h2{font-size:1.25rem;margin:2rem 0 .25rem}
h3{font-size:1rem;margin:0 0 .25rem;overflow-wrap:anywhere}p{margin:.25rem 0;color:var(--soft)}
b,h1,h2,h3{color:var(--ink)}
.note{background:var(--note);color:var(--note-ink);padding:.6rem .8rem;border-radius:.4rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem;
margin:.8rem 0}
.tile{background:var(--panel);border:1px solid var(--rule);border-radius:.5rem;padding:.6rem .8rem}
.tile b{display:block;font-size:1.5rem}.tile span{color:var(--soft);font-size:.9rem}
.row{background:var(--panel);border:1px solid var(--rule);border-radius:.5rem;
padding:.7rem .8rem}
.rows{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(22rem,100%),1fr));gap:.6rem;
margin:.6rem 0}
svg{display:block;width:100%;height:3.2rem;margin:.35rem 0 0}svg.line{height:4rem}
.grid{fill:none;stroke:var(--rule);stroke-width:1;vector-effect:non-scaling-stroke}
polyline{fill:none;stroke:var(--all);stroke-width:2;vector-effect:non-scaling-stroke}
.dot{fill:none;stroke:var(--all);stroke-width:7;stroke-linecap:round;
vector-effect:non-scaling-stroke}
.all{fill:var(--all)}.bad{fill:url(#hatch)}.bad-ground{fill:var(--bad-soft)}
.bad-line{fill:var(--bad)}
.axis{display:flex;justify-content:space-between;font-size:.8rem}
.meter{position:relative;height:1.1rem;background:var(--ground);border:1px solid var(--rule);
border-radius:.25rem;overflow:hidden}.meter.thin{height:.6rem}
.meter i{display:block;height:100%;background:var(--all)}
.meter u{position:absolute;top:0;bottom:0;width:3px;margin-left:-1px;background:var(--ink);
outline:1px solid var(--ground)}
.meter s{display:block;height:100%;background:repeating-linear-gradient(45deg,var(--bad) 0 4px,
var(--bad-soft) 4px 8px)}
.moments{list-style:none;margin:.6rem 0;padding:0}
.moments li{display:grid;grid-template-columns:3.6rem 1.4rem 1fr;gap:.3rem;padding:.25rem .5rem;
border-left:2px solid var(--rule);overflow-wrap:anywhere}
.moments li.problem{border-left:6px double var(--bad);background:var(--panel)}
.moments time{color:var(--soft);font-variant-numeric:tabular-nums;text-align:right}
.moments em,footer{color:var(--soft);font-size:.9rem}.mark{text-align:center}
footer{margin:2rem 0}
@media print{.row,.tile{break-inside:avoid}}
"""
