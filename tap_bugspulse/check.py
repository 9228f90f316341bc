"""A check of the API: what a key may read, what a load costs, what the reference leaves open.

It tells nothing of any row but counts, forms and names of fields.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
import typing as t
from collections.abc import Iterator
from dataclasses import replace

import click
from singer_sdk.exceptions import FatalAPIError, RetriableAPIError

from tap_bugspulse.probe import ENOUGH, LIMIT, NEVER, TIMES, UNKNOWN, Probe, Untold
from tap_bugspulse.replication import DAY, parse_instant
from tap_bugspulse.run import duration
from tap_bugspulse.tap import TapBugsPulse, end_on_signals, errors_as_one_line

IGNORED = {"from", "to", "from and to"}
MAX_PROVOKING, FEW = 70, 2  # requests to get a 429; events of a page
HOURLY = 50  # minutes of a run that leave room before the next
TWICE = {"limit": str(2 * LIMIT)}
LISTED = {"sessions": "active completed crashed", "crashes": "open acknowledged resolved ignored"}
RESETS = ("Retry-After", "RateLimit-Reset", "X-RateLimit-Reset")
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?")
OF_PAGE = "that of the page"
LOST = "THE TAP DOES NOT HANDLE THIS: "
QUESTIONS = {
    "order": "order_of_sessions order_of_network order_of_crashes",
    "pages": "largest_limit page_is_honoured page_and_limit_are_echoed_as_used",
    "counts": "total_is_true pages_is_true a_page_past_the_last a_page_without_rows "
    "listings_are_capped",
    "events": "an_unknown_session events_are_paged events_echo_the_limit event_count_is_true "
    "event_ids_repeat",
    # Last of those that ask, since it takes most requests.
    "dates": "dates_are_honoured times_are_accepted filter_field time_zone to_includes_its_day "
    "to_includes_its_instant",
    "fields": "rows_without_an_id fields_not_in_the_reference values_of_another_type "
    "values_that_are_not_listed forms_of_dates",
    "transport": "headers_of_the_limit answers_are_compressed a_429_carries",
}
OPEN, UNTOLD = "What the API does where its reference says nothing", "could not tell"

Found = Iterator[tuple[t.Any, ...]]  # a question, its answer, and what there is to say of that


class Check(Probe):
    """What the reference leaves open: each method asks for some of it."""

    def order(self) -> Found:
        """Yield in which order rows come."""
        for name, column in TIMES.items():
            rows = self.ask(name, {}, strict=False).page.rows
            times = [one for row in rows if (one := parse_instant(getattr(row, column)))]
            rises = [b > a for a, b in itertools.pairwise(times) if a != b]
            part = sum(rises) / max(1, len(rises))
            words = {0.0: f"newest first by {column}", 1.0: f"oldest first by {column}"}
            note = f"{1 - part:.0%} of neighbours are newest first" if part not in words else ""
            if len(rises) < ENOUGH - 1:
                yield f"order_of_{name}", Untold("too few rows")
            else:
                yield f"order_of_{name}", words.get(part, f"not by {column}"), note

    def dates(self) -> Found:
        """Yield what dates in a query mean."""
        if not self.starts:
            raise Untold(self.first.error or "no sessions")
        if self.ignored:
            yield "dates_are_honoured", f"no, {self.ignored} ignored", "the tap copes, at a cost"
        else:
            yield "dates_are_honoured", True
        if self.ignored in IGNORED:
            raise Untold(f"{self.ignored} ignored")
        alive = self.readings()
        yield "times_are_accepted", self.takes_times, *([] if alive else ["maybe not honoured"])
        why = (
            "too few sessions"
            if alive
            else "no reading of startedAt or endedAt explains what comes"
        )
        zones: list[object] = [
            f"UTC{-one / 2:+g}" if one else "UTC" for one in sorted({r.zone for r in alive})
        ]
        if len(zones) > 1:
            zones = [Untold(f"from {zones[-1]} to {zones[0]}: too few sessions")]
        values: dict[str, t.Collection[object]] = {
            "filter_field": {one.field for one in alive},
            "time_zone": zones,
            "to_includes_its_day": {one.has_day for one in alive},
            "to_includes_its_instant": {one.has_instant for one in alive},
        }
        for name, found in values.items():
            value = next(iter(found)) if len(found) == 1 else Untold(why)
            is_near = value == "endedAt" and not self.takes_times
            yield name, "endedAt, or soon after it" if is_near else value

    def pages(self) -> Found:
        """Yield how pages are cut."""
        one, two, total = self.small(), self.small(2), self.total
        small, twice = min(10, total // 3), self.ask("sessions", TWICE)
        is_echo = twice.size == total and (twice.page.limit or 2 * LIMIT) < 2 * LIMIT
        largest = twice.size if twice.size < total else twice.page.limit if is_echo else None
        why: t.Any = Untold("all sessions fit on a page")
        why = f"{twice.size} or more" if LIMIT < twice.size == total else why
        yield "largest_limit", largest or why, "as it is echoed" if is_echo else ""
        is_same = bool({*one.ids} & {*two.ids})
        yield "page_is_honoured", not is_same, f"{LOST}pages after the first" if is_same else ""
        wrong = {
            name
            for a, n, limit in ((one, 1, small), (two, 2, small), (twice, 1, 2 * LIMIT))
            for name, is_right in (
                ("page", a.body.get("page") == n),
                ("limit", a.size <= (a.page.limit or 0) <= (limit if a.size == total else a.size)),
            )
            if not is_right
        }
        is_open = twice.size == total and twice.page.limit == 2 * LIMIT and not wrong
        why = Untold("no limit was lowered") if is_open else not wrong
        yield "page_and_limit_are_echoed_as_used", why, ", ".join(sorted(wrong))

    def counts(self) -> Found:
        """Yield what the API counts, and where its counts end."""
        one, twice = self.small(), self.ask("sessions", TWICE)
        total, size = self.total, self.first.size
        never = self.ask("sessions", NEVER, strict=False)
        day = self.starts[len(self.starts) // 2] if self.starts else self.run.started
        half = self.ask("sessions", {"to": day.date().isoformat()}, strict=False)
        problems = {
            "missing": self.first.page.total is None,
            OF_PAGE: one.page.total == one.size,
            "all rows, whatever the dates": (not never.size and never.page.total)
            or (half.size < min(size, half.page.total or 0)),
            "another on each page": one.page.total != self.first.page.total,
        }
        wrong = next((why for why, is_so in problems.items() if is_so), "")
        is_sure = half.size == half.page.total and half.size < total
        is_sure = is_sure or (never.page.total == 0 and bool(never.body))
        second = self.ask("sessions", {}, 2, strict=False) if wrong == OF_PAGE else None
        is_lost = second and total == size and {*second.ids} - {*self.first.ids}
        note = f"{LOST * bool(is_lost)}{wrong}"
        yield "total_is_true", False if wrong else is_sure or Untold("no page without rows"), note
        right = [a.page.pages == math.ceil(total / a.size) for a in (one, self.first, twice)]
        note = "missing" if one.page.pages is None else "that of another page size"
        why = Untold("total is wrong") if is_lost else all(right)
        yield "pages_is_true", why, "" if all(right) else note
        past = self.small(math.ceil(total / one.size) + 1)
        yield "a_page_past_the_last", past.form
        yield "a_page_without_rows", Untold("dates ignored") if never.size else never.form
        last = self.ask("sessions", {}, math.ceil(total / size), strict=False)
        beyond = "the last page is refused" if last.error else f"what lies beyond {total:,} rows"
        is_cut = bool(last.error)
        if not is_cut and is_sure and not wrong and self.ignored not in IGNORED:
            count = self.count("sessions", self.since(day + 2 * DAY))
            is_cut = self.count("sessions", {"to": day.date().isoformat()}) + count > total
        note = f"{LOST * (total < 10 * LIMIT)}{beyond}" if is_cut else ""
        yield "listings_are_capped", is_cut or Untold(f"not seen in {total:,} rows"), note

    def events(self) -> Found:
        """Yield what is special of events."""
        rows = sorted(self.seen, key=lambda row: (bool(row.endedAt), row.eventCount or 0))[:-3:-1]
        asked = [(row, self.ask("events", {"sessionId": row.id}, strict=False)) for row in rows]
        unknown = self.ask("events", UNKNOWN, strict=False)
        yield "an_unknown_session", unknown.form
        read = [one for one in asked if one[1].size]
        if not read:
            raise Untold((asked and asked[0][1].error) or "no session with events")
        (row, whole), *others = read
        one, two = (self.ask("events", {"sessionId": row.id, "limit": str(FEW)}, n) for n in (1, 2))
        is_paged = one.size <= FEW and two.size > 0 and not {*one.ids} & {*two.ids}
        is_lost = one.size <= FEW and not is_paged
        note = f"{LOST}pages after the first" if is_lost else "" if is_paged else "all come at once"
        why = Untold("too few events")
        yield "events_are_paged", is_paged if whole.size > FEW else why, note
        is_count = whole.page.limit == whole.size != LIMIT
        note = "it is the number of events" if is_count else ""
        yield "events_echo_the_limit", whole.page.limit == LIMIT, note
        ended = [(row.eventCount, a.size) for row, a in read if row.endedAt]
        why = Untold("no session with events has ended")
        yield "event_count_is_true", all(a == b for a, b in ended) if ended else why
        why = Untold("no other session with events")
        repeat = others and {*whole.ids} & {*others[0][1].ids}
        yield "event_ids_repeat", bool(repeat) if others else why

    def fields(self) -> Found:
        """Yield what rows hold that the reference does not."""
        found: dict[str, set[str]] = {
            name: set() for name in ("unknown", "misfits", "new", "forms")
        }
        lost = 0
        for (name, *_), answer in self.answers.items():
            lost += answer.size - len({*answer.ids})
            found["unknown"] |= {f"{name}.{one}" for one in answer.page.unknown}
            found["misfits"] |= {f"{name}.{one}" for one in answer.page.misfits}
            for row in answer.raw:
                if (
                    name in LISTED
                    and str(row.get("status") or "active") not in LISTED[name].split()
                ):
                    found["new"].add(f"{name}.status")
                for column in ("startedAt", "endedAt", "timestamp", "firstSeenAt", "lastSeenAt"):
                    if row.get(column):
                        match = INSTANT.fullmatch(str(row[column]))
                        digits = re.sub(r"\d", "s", (match and match[1]) or "")
                        zone = {"Z": "Z", None: ""}.get(match and match[2], "+hh:mm")
                        found["forms"].add(
                            f"YYYY-MM-DDThh:mm:ss{digits}{zone}" if match else "other"
                        )
        yield "rows_without_an_id", lost or False, f"{LOST}rows" if lost else ""
        for name, key in {
            "fields_not_in_the_reference": "unknown",
            "values_of_another_type": "misfits",
            "values_that_are_not_listed": "new",
            "forms_of_dates": "forms",
        }.items():
            # A name that may be no name, but what a user wrote, is not told.
            names = {
                one if re.fullmatch(r"[\w.:+-]{1,60}", one) else "others" for one in found[key]
            }
            none = Untold("no rows") if key == "forms" else False
            yield name, ", ".join(sorted(names)) or none

    def transport(self) -> Found:
        """Yield what comes beside the rows."""
        names = sorted(one for one in self.headers if "ratelimit" in one or "retry" in one)
        yield "headers_of_the_limit", ", ".join(names) or False
        yield "answers_are_compressed", "content-encoding" in self.headers
        if not self.provokes:
            raise Untold("--provoke-429 asks for one")
        stream = self.streams["crashes"]
        stream.run = replace(self.run, config={**self.run.config, "requests_per_minute": 60_000})
        for _ in range(MAX_PROVOKING):
            self.sent += 1
            try:
                stream.take(stream.fetch({"limit": "1"}, retries=False))
            except RetriableAPIError as error:
                given = error.response.headers if error.response is not None else {}
                name = next((one for one in RESETS if one in given), "")
                kind = "a number" if given.get(name, "").isdigit() else "a date"
                yield "a_429_carries", f"{name}, {kind}" if name else "nothing"
                return
            except FatalAPIError as error:
                raise Untold(str(error)) from None
        raise Untold(f"{MAX_PROVOKING} requests in a row were answered")

    def look(self) -> dict[str, dict[str, str]]:
        """Return what is found out of each question."""
        found: dict[str, dict[str, str]] = {}
        for group, names in QUESTIONS.items():
            why = ""
            try:
                for name, answer, *notes in getattr(self, group)():
                    is_told = not isinstance(answer, Untold)
                    words = {True: "yes", False: "no"}.get(answer, str(answer))
                    note = "".join(notes) if is_told else str(answer)
                    found[name] = {"answer": words if is_told else UNTOLD, "note": note}
            except Untold as error:
                why = str(error)
            for name in names.split():
                found.setdefault(name, {"answer": UNTOLD, "note": why})
        return found


def report(check: Check) -> dict[str, t.Any]:
    """Return all that is found, as --json prints it."""
    began = check.run.clock.seconds()
    rows, api, costs = check.rows(), check.look(), check.costs()
    no_answer = ("events", 1, *UNKNOWN.items())  # 404 is the right one
    answers = [
        (key[0], one.error)
        for key, one in check.answers.items()
        if key != no_answer or one.error[:3] not in {"", "404"}
    ]
    read = {name for name, error in answers if not error}
    refused = {name: error for name, error in answers[::-1] if name not in read}
    if "sessions" in refused:
        refused.setdefault("events", "they are found by /sessions")
    minutes = {name: check.run.minutes_for(one) for name, one in costs.items()}
    settings = {}
    if minutes[check.run.settings.events_for] > HOURLY:
        settings["TAP_BUGSPULSE_MAX_RUNTIME_MINUTES"] = str(HOURLY)
    if minutes["hourly"] > HOURLY:
        settings["TAP_BUGSPULSE_EVENTS_FOR"] = "crashed"
    if refused:
        settings["TAP_BUGSPULSE__SELECT"] = json.dumps(["*.*", *(f"!{one}.*" for one in refused)])
    starts = [one.date().isoformat() for one in check.starts]
    return {
        "usable": bool(read),
        "requests": check.sent,
        "seconds": round(check.run.clock.seconds() - began, 1),
        "rows": {name: count for name, count in rows.items() if name not in refused},
        "refused": refused,
        "oldest_session": starts[0] if starts else "none",
        "newest_session": starts[-1] if starts else "none",
        "sessions_a_day": round(check.per_day, 1),
        "load": {
            name: {"requests": cost, "minutes": round(minutes[name], 1)}
            for name, cost in costs.items()
        },
        "settings": settings,
        "api": api,
    }


def page(found: t.Mapping[str, t.Any]) -> str:
    """Return what is found, for a person."""
    if "api" not in found:
        return f"Not usable: {found['why']}"
    works = f"The key works: {found['requests']} requests, {found['seconds']:.0f} s"
    lines = [works if found["usable"] else "Not usable: nothing can be read", "", "What there is"]
    lines += [f"  {name:<16}{rows:>10,} rows" for name, rows in found["rows"].items()]
    lines += [f"  {name:<16}not readable: {why}" for name, why in found["refused"].items()]
    for name in ("oldest_session", "newest_session", "sessions_a_day"):
        lines.append(f"  {name.replace('_', ' '):<16}{found[name]:>10}")
    lines += ["", "What a load costs"]
    for name, cost in found["load"].items():
        what = "an hourly run" if name == "hourly" else f"a first load, events_for {name}"
        lines.append(f"  {what:<32}{cost['requests']:>9,} requests, {duration(cost['minutes'])}")
    settings = [f"  export {name}='{value}'" for name, value in found["settings"].items()]
    lines += ["", "Settings that follow", *(settings or ["  none"]), "", OPEN]
    for name, one in found["api"].items():
        note = f": {one['note']}" if one["note"] else ""
        lines.append(f"  {name.replace('_', ' '):<36}{one['answer']}{note}")
    return "\n".join(lines)


@click.command()
@click.option("--config", multiple=True, callback=TapBugsPulse.cb_config, help="A file, or ENV.")
@click.option("--json", "as_json", is_flag=True, help="Print the same for machines.")
@click.option("--provoke-429", "provokes", is_flag=True, help="Also exceed the rate limit.")
def main(config: t.Any, *, as_json: bool, provokes: bool) -> None:
    """Ask the API what this key may read, what a load costs, and how the API behaves."""
    with errors_as_one_line(TapBugsPulse.logger):
        end_on_signals()
        tap = TapBugsPulse(config=config.config, parse_env_config=config.parse_env)
        try:
            found = report(Check(tap, provokes=provokes))
        except FatalAPIError as error:
            found = {"usable": False, "why": str(error)}
        click.echo(json.dumps(found, indent=2) if as_json else page(found))
        sys.exit(not found["usable"])


if __name__ == "__main__":
    main()
