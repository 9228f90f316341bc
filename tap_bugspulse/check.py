"""A check of the API: what a key may read, what a load costs, what the reference leaves open.

It tells nothing of any row but counts, forms and names of fields.
"""

from __future__ import annotations

import json
import math
import re
import sys
import typing as t
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product

import click
from requests import RequestException
from singer_sdk.exceptions import FatalAPIError, RetriableAPIError

from tap_bugspulse.http import RefusedError, reason
from tap_bugspulse.pages import Page, page_of
from tap_bugspulse.replication import DAY, format_instant, midnight, parse_instant
from tap_bugspulse.run import duration
from tap_bugspulse.settings import EVENTS_FOR
from tap_bugspulse.tap import TapBugsPulse, errors_as_one_line

MAX_REQUESTS, MAX_PROVOKING = 40, 70  # in all, but for those that provoke a 429
MAX_DAYS, MAX_PAGES = 6, 2  # to find out what dates mean
MAX_PAUSE, HOURLY = 61.0, 50  # seconds that a 429 may ask to wait; minutes of an hourly run
LIMIT, FEW, ENOUGH = 1000, 2, 6  # rows of a page; those that tell something
FAR = "2999-01-02"
NEVER, IGNORED = {"from": "2999-01-01", "to": FAR}, {"from", "to", "from and to"}
HOUR, SURE = timedelta(hours=1), timedelta(hours=34)  # two days reach so far in each zone
ZONES = [number / 2 for number in range(-28, 29)]  # hours from UTC to the beginning of a day
TIMES = {"sessions": "startedAt", "network": "timestamp", "crashes": "lastSeenAt"}
INSTANTS = ("startedAt", "endedAt", "timestamp", "firstSeenAt", "lastSeenAt")
LISTED = {
    "sessions": (None, "active", "completed", "crashed"),
    "crashes": (None, "open", "acknowledged", "resolved", "ignored"),
}
RESETS = ("Retry-After", "RateLimit-Reset", "X-RateLimit-Reset")
LOST = "THE TAP DOES NOT HANDLE THIS"
NO_PAGES = f"no: {LOST}, pages after the first"
QUESTIONS = ("order", "pages", "counts", "events", "dates", "fields", "a_429_carries")

Query = t.Mapping[str, str]
Found = Iterator[tuple[str, object]]  # questions with their answers: yes, no, Untold or a text


class Untold(Exception):  # noqa: N818 - no error, but why a question stays open
    """The answers do not tell."""


class Answer(t.NamedTuple):
    """One response, or why there is none."""

    page: Page
    error: str = ""
    raw: t.Sequence[t.Mapping[str, t.Any]] = ()
    ids: t.AbstractSet[str] = frozenset()
    size: int = 0  # of all rows, also those that have no id


class Check:
    """Asks the API each question once, by the tap's own client, and keeps the answers."""

    def __init__(self, tap: TapBugsPulse, *, provokes: bool = False) -> None:
        self.run, self.streams = tap.run, t.cast("dict[str, t.Any]", tap.streams)
        self.provokes, self.sent, self.began = provokes, 0, self.run.clock.seconds()
        self.headers: set[str] = set()
        self.answers: dict[tuple[t.Any, ...], Answer] = {}
        # What there is, what is refused, and which dates make no difference.
        self.first = self.ask("sessions", {})
        self.rows = {name: self._count(name, {}) for name in TIMES}
        self.total = self.rows["sessions"]
        pages = math.ceil(self.total / max(1, self.first.size)) or 1
        self.last = self.ask("sessions", {}, pages, strict=False)
        rows = {row.id: row for one in (self.first, self.last) for row in one.page.rows}
        self.seen = list(rows.values())
        events = sum(row.eventCount or 0 for row in self.seen) / max(1, len(self.seen))
        self.rows["events"] = round(events * self.total)
        full = sorted(self.seen, key=lambda row: (bool(row.endedAt), row.eventCount or 0))[:-3:-1]
        self.sample = [(r, self.ask("events", {"sessionId": r.id}, strict=False)) for r in full]
        errors = {name: self.ask(name, {}, strict=False).error for name in TIMES}
        errors["events"] = min((one.error for _, one in self.sample), default="")
        self.refused = {name: error for name, error in errors.items() if error}
        asked = {"from": NEVER, "to": {"to": "1970-01-02"}, "from without a to": {"from": FAR}}
        sizes = {n: self.ask("sessions", one, strict=False).size for n, one in asked.items()}
        is_both = sizes["from"] and sizes["to"]
        self.ignored = "from and to" if is_both else next((n for n in sizes if sizes[n]), "")
        instants = (parse_instant(row.startedAt) for row in self.seen)
        starts = sorted(one for one in instants if one and one <= self.run.started)
        self.starts = starts or [self.run.started]
        begin = max(self.starts[0], midnight(self.starts[-1] - 7 * DAY))
        is_blind, here = self.ignored in IGNORED, sum(one >= begin for one in starts)
        number = here if is_blind else self._count("sessions", days(begin))
        self.per_day = number / max(1.0, (self.starts[-1] - begin) / DAY)

    def ask(self, name: str, query: Query, number: int = 1, *, strict: bool = True) -> Answer:
        """Return a page; a strict question raises Untold where it is refused."""
        key = (name, number, *sorted(query.items()))
        if key not in self.answers:
            self.answers[key] = self._send(name, {"limit": str(LIMIT), **query}, number)
        if strict and self.answers[key].error:
            raise Untold(self.answers[key].error)
        return self.answers[key]

    def _send(self, name: str, query: Query, number: int) -> Answer:
        stream, why = self.streams[name], f"the {MAX_REQUESTS} requests of a check are used up"
        for is_last in (False, True)[: MAX_REQUESTS - self.sent]:
            self.sent += 1
            try:
                response = stream.take(stream.fetch(query, number, retries=False))
            except RefusedError as error:
                # Without the dates, which may be those of a row.
                return Answer(Page([]), error=str(error).partition(" from ")[0])
            except (RetriableAPIError, RequestException) as error:
                why = reason(error)
                is_dead = is_last and isinstance(error, RequestException)
                if is_dead or self.run.http.paused_until > self.run.clock.seconds() + MAX_PAUSE:
                    raise FatalAPIError(why) from None
            else:
                self.headers |= {one.lower() for one in response.headers}
                raw: t.Any = ()
                with suppress(ValueError, RecursionError):  # it is no JSON, or strange
                    raw = [row for row in response.json()["data"] or () if isinstance(row, dict)]
                page = page_of(response)
                ids = {row.id for row in page.rows}
                return Answer(page, "", raw, ids, len(page.rows) + page.without_key)
        return Answer(Page([]), error=why)

    def _count(self, name: str, query: Query) -> int:
        first = self.ask(name, query, strict=False)
        page, pages = first.page, first.page.pages or 1
        if pages > 1 and page.total == first.size:  # that of the page, if there is a last one
            last = self.ask(name, query, pages, strict=False)
            return (pages - 1) * first.size + last.size if last.ids - first.ids else first.size
        return first.size if first.size < self.first.size else page.rows_in_all

    def _small(self, number: int) -> Answer:
        if len(self.starts) < ENOUGH:
            raise Untold(f"fewer than {ENOUGH} sessions")
        return self.ask("sessions", {"limit": str(min(10, len(self.starts) // 3))}, number)

    def _ids_of(self, query: Query) -> set[str]:
        size = self.ask("sessions", query).size
        if (pages := math.ceil(self._count("sessions", query) / max(1, size))) > MAX_PAGES:
            raise Untold(f"more than {MAX_PAGES} pages of sessions in some days")
        return {id_ for n in range(pages) for id_ in self.ask("sessions", query, n + 1).ids}

    def costs(self) -> dict[str, int]:
        """Return the requests of a first load for each events_for, and of an hourly run."""
        settings, rows = self.run.settings, dict(self.rows)
        if settings.start_date and not self.ignored:
            query = days(settings.start_date - DAY)
            rows |= {name: self._count(name, query) for name in ("sessions", "network")}
        recent, size = settings.lookback_days + 2, settings.page_size
        listed = recent + sum(math.ceil(rows[name] / size) or 1 for name in TIMES)
        due = [row for row in self.seen if row.eventCount != 0]
        crashed = [row for row in due if row.hasCrash]
        errors = [row for row in due if row.hasCrash or row.hasNetworkErrors]
        parts = [len(one) / max(1, len(self.seen)) for one in (due, errors, crashed)]
        costs = [listed + math.ceil(part * rows["sessions"]) for part in parts]
        crashes, day = max(1, rows["crashes"]) / size, self.per_day
        events = parts[EVENTS_FOR.index(settings.events_for)] * day / 24
        hourly = recent + sum(map(math.ceil, (crashes, day * recent / size, events)))
        return dict(zip((*EVENTS_FOR, "hourly"), [*costs, hourly], strict=True))

    def look(self) -> dict[str, dict[str, str]]:
        """Return the answer to each question, or why some of a kind cannot be asked."""
        found: dict[str, object] = {}
        for kind in QUESTIONS:
            try:
                found.update(getattr(self, f"_{kind}")())
            except Untold as error:
                found[kind] = error
        return {name: told(answer) for name, answer in found.items()}

    def _order(self) -> Found:
        for name, column in TIMES.items():
            rows = self.ask(name, {}, strict=False).page.rows
            times = [one for row in rows if (one := parse_instant(getattr(row, column)))]
            orders = {"newest first by": sorted(times)[::-1], "oldest first by": sorted(times)}
            order = next((words for words, one in orders.items() if one == times), "not by")
            is_told = len(set(times)) >= ENOUGH
            yield f"order_of_{name}", f"{order} {column}" if is_told else Untold("too few rows")

    def _pages(self) -> Found:
        one, two, twice = self._small(1), self._small(2), self.ask("sessions", {"limit": "2000"})
        echo, is_whole = twice.page.limit or 2 * LIMIT, twice.size == self.total
        echoed = f"{echo}: as it is echoed" if echo < 2 * LIMIT else Untold("all fit on a page")
        yield "largest_limit", echoed if is_whole else str(twice.size)
        yield "page_is_honoured", NO_PAGES if one.ids & two.ids else True

    def _counts(self) -> Found:
        one, total, day = self._small(1), self.total, self.starts[len(self.starts) // 2]
        before, after = {"to": days(day)["from"]}, days(day + 2 * DAY)
        parts = [self.ask("sessions", query, strict=False) for query in (NEVER, before)]
        is_more = any(part.size < min(self.first.size, part.page.total or 0) for part in parts)
        wrong = "all rows, whatever the dates" * is_more
        is_lost = not one.page.pages or self.first.size < min(total, self.first.page.limit or 0)
        lost = f"that of the page{f', {LOST}' * is_lost}"
        wrong = lost if one.page.total == one.size else wrong
        wrong = "missing" if one.page.total is None else wrong
        is_sure = any(part.page.limit and part.size == part.page.total != total for part in parts)
        yield "total_is_true", f"no: {wrong}" if wrong else is_sure or Untold("dates ignored")
        is_true = all(a.page.pages == math.ceil(total / max(1, a.size)) for a in (one, self.first))
        why = "missing" if one.page.pages is None else "that of another page size"
        yield "pages_is_true", is_true or f"no: {why}"
        cut = "the last page is refused" if self.last.error else ""
        if is_sure and not (wrong or self.ignored or cut):
            is_cut = sum(self._count("sessions", one) for one in (before, after)) > total
            cut = f"what lies beyond {total:,} rows" * is_cut
        cut = f"{LOST}, {cut}" if cut and total < 10 * LIMIT else cut
        yield "listings_are_capped", f"yes: {cut}" if cut else Untold(f"not in {total:,} rows")

    def _events(self) -> Found:
        read = [(row, answer) for row, answer in self.sample if answer.size > FEW]
        if not read:
            raise Untold(self.refused.get("events", "too few events"))
        row, whole = read[0]
        query = {"sessionId": row.id, "limit": str(FEW)}
        one, two = self.ask("events", query), self.ask("events", query, 2)
        is_paged = NO_PAGES if one.ids & two.ids or not two.ids else True
        yield "events_are_paged", "no: all come at once" if one.size > FEW else is_paged
        note = ": it is the number of events" * (whole.page.limit == whole.size)
        yield "events_echo_the_limit", whole.page.limit == LIMIT or f"no{note}"
        is_true = [row.eventCount == answer.page.rows_in_all for row, answer in read if row.endedAt]
        yield "event_count_is_true", all(is_true) if is_true else Untold("no session has ended")
        ids = [answer.ids for _, answer in read]
        yield "event_ids_repeat", bool(ids[0] & ids[1]) if ids[1:] else Untold("too few sessions")

    def _dates(self) -> Found:
        yield "dates_are_honoured", not self.ignored or f"no, {self.ignored} ignored: the tap copes"
        if self.ignored in IGNORED:
            raise Untold(f"{self.ignored} ignored")
        fields = ("startedAt", "endedAt")
        times = {row.id: [parse_instant(getattr(row, n)) for n in fields] for row in self.seen}
        ended: dict[str, list[t.Any]] = {id_: one for id_, one in times.items() if all(one)}
        if not ended:
            raise Untold("no session that has ended")
        id_, (start, end) = max(ended.items(), key=lambda one: one[1][1] - one[1][0])
        near, middle = timedelta(milliseconds=10), start + (end - start) / 2
        spans = (start - near, middle), (middle, end + near)
        queries = [{"from": format_instant(a), "to": format_instant(b)} for a, b in spans]
        is_taken = not self.ask("sessions", queries[0], strict=False).error
        yield "times_are_accepted", is_taken
        found = {
            (fields[n], *reading)
            for n, query in enumerate(queries)
            if not is_taken or id_ in self._ids_of(query)
            for reading in self._readings({i: one[n] for i, one in ended.items()})
        }
        if not found:
            raise Untold("no reading of startedAt or endedAt explains what comes")
        by, zones, has_day = (sorted(set(one)) for one in zip(*found, strict=True))
        few = Untold("too few sessions")
        yield "filter_field", few if by[1:] else by[0]
        names = [f"UTC{-one:+g}" if one else "UTC" for one in zones]
        span = Untold(f"from {names[-1]} to {names[0]}: too few sessions")
        yield "time_zone", span if zones[1:] else names[0]
        yield "to_includes_its_day", few if has_day[1:] else has_day[0]

    def _readings(self, instants: dict[str, datetime]) -> set[tuple[float, bool]]:
        """Return the zones that dates may be in, and whether ``to`` may include its day."""
        found = set(product(ZONES, (False, True)))
        for day, _ in Counter(map(midnight, instants.values())).most_common(MAX_DAYS):
            after, until = map(self._ids_of, (days(day, day + 2 * DAY), days(day - 2 * DAY, day)))
            near = [(i, (one - day) / HOUR) for i, one in instants.items() if abs(one - day) < SURE]
            found = {
                (zone, has_day)
                for zone, has_day in found
                if all((hours >= zone) == (i in after) for i, hours in near)
                and all((hours < zone + 24 * has_day) == (i in until) for i, hours in near)
            }
        return found

    def _fields(self) -> Found:
        counts = self.run.counts.items()
        lost = sum(one.without_key for _, one in counts)
        yield "rows_without_an_id", f"{lost}: {LOST}" if lost else False
        rows = [(key[0], row) for key, answer in self.answers.items() for row in answer.raw]
        forms = {re.sub("[^TZ:.+-]", "0", str(r[n])) for _, r in rows for n in INSTANTS if r.get(n)}
        new = {f"{n}.status" for n, r in rows if n in LISTED and r.get("status") not in LISTED[n]}
        found = {
            "fields_not_in_the_reference": {f"{n}.{one}" for n, of in counts for one in of.unknown},
            "values_of_another_type": {f"{n}.{one}" for n, of in counts for one in of.misfits},
            "values_that_are_not_listed": new,
            "forms_of_dates": forms,
        }
        for name, names in found.items():
            # A name that may be no name, but what a user wrote, is not told.
            safe = {one if re.fullmatch(r"[\w.:+-]{1,60}", one) else "others" for one in names}
            yield name, ", ".join(sorted(safe)) or (False if rows else Untold("no rows"))
        headers = sorted(one for one in self.headers if "ratelimit" in one or "retry" in one)
        yield "headers_of_the_limit", ", ".join(headers) or False
        yield "answers_are_compressed", "content-encoding" in self.headers

    def _a_429_carries(self) -> Found:
        if not self.provokes:
            raise Untold("--provoke-429 asks for one")
        stream = self.streams["sessions"]
        stream.run = replace(self.run, config={**self.run.config, "requests_per_minute": 60_000})
        for _ in range(MAX_PROVOKING):
            self.sent += 1
            try:
                stream.take(stream.fetch({"limit": "1"}, retries=False))
            except RetriableAPIError as error:
                given = error.response.headers if error.response is not None else {}
                found = [re.sub(r"\d", "0", f"{n} {given[n]}") for n in RESETS if n in given]
                yield "a_429_carries", ", ".join(found) or "nothing"
                return
        raise Untold(f"{MAX_PROVOKING} requests in a row were answered")


def days(start: datetime, end: datetime | None = None) -> dict[str, str]:
    """Return the query for some days; an API may ignore a ``from`` without a ``to``."""
    return {"from": start.date().isoformat(), "to": end.date().isoformat() if end else FAR}


def told(answer: object) -> dict[str, str]:
    """Return an answer in words, with its note."""
    words = f"could not tell: {answer}" if isinstance(answer, Untold) else str(answer)
    words, _, note = {"True": "yes", "False": "no"}.get(words, words).partition(": ")
    return {"answer": words, "note": note}


def report(check: Check) -> dict[str, t.Any]:
    """Return all that is found, as --json prints it."""
    run, refused, costs, settings = check.run, check.refused, check.costs().items(), {}
    load = {n: {"requests": k, "minutes": round(run.minutes_for(k), 1)} for n, k in costs}
    if load[run.settings.events_for]["minutes"] > HOURLY:
        settings["TAP_BUGSPULSE_MAX_RUNTIME_MINUTES"] = str(HOURLY)
    if load["hourly"]["minutes"] > HOURLY:
        settings["TAP_BUGSPULSE_EVENTS_FOR"] = "crashed"
    if refused:
        settings["TAP_BUGSPULSE__SELECT"] = json.dumps(["*.*", *(f"!{one}.*" for one in refused)])
    api = check.look()
    starts = [one.date().isoformat() if check.total else "none" for one in check.starts]
    return {
        "usable": True,
        "requests": check.sent,
        "seconds": round(run.clock.seconds() - check.began, 1),
        "rows": {name: count for name, count in check.rows.items() if name not in refused},
        "refused": refused,
        "oldest_session": starts[0],
        "newest_session": starts[-1],
        "sessions_a_day": round(check.per_day, 1),
        "load": load,
        "settings": settings,
        "api": api,
    }


def page(found: t.Mapping[str, t.Any]) -> str:
    """Return what is found, for a person."""
    if not found["usable"]:
        return f"Not usable: {found['why']}"
    lines = [f"The key works: {found['requests']} requests, {found['seconds']:.0f} s", ""]
    lines += ["What there is"]
    lines += [f"  {name:<16}{rows:>10,} rows" for name, rows in found["rows"].items()]
    lines += [f"  {name:<16}not readable: {why}" for name, why in found["refused"].items()]
    names = ("oldest_session", "newest_session", "sessions_a_day")
    lines += [f"  {name.replace('_', ' '):<16}{found[name]:>10}" for name in names]
    lines += ["", "What a load costs"]
    for name, cost in found["load"].items():
        what = "an hourly run" if name == "hourly" else f"a first load, events_for {name}"
        lines.append(f"  {what:<32}{cost['requests']:>9,} requests, {duration(cost['minutes'])}")
    lines += ["", "Settings that follow"] + ["  none"] * (not found["settings"])
    lines += [f"  export {name}='{value}'" for name, value in found["settings"].items()]
    lines += ["", "What the API does where its reference says nothing"]
    for name, one in found["api"].items():
        words = ": ".join(filter(None, one.values()))
        lines.append(f"  {name.replace('_', ' '):<36}{words}")
    return "\n".join(lines)


@click.command()
@click.option("--config", multiple=True, callback=TapBugsPulse.cb_config, help="A file, or ENV.")
@click.option("--json", "as_json", is_flag=True, help="Print the same for machines.")
@click.option("--provoke-429", "provokes", is_flag=True, help="Also exceed the rate limit.")
def main(config: t.Any, *, as_json: bool, provokes: bool) -> None:
    """Ask the API what this key may read, what a load costs, and how the API behaves."""
    with errors_as_one_line():
        tap = TapBugsPulse(config=config.config, parse_env_config=config.parse_env)
        try:
            found = report(Check(tap, provokes=provokes))
        except (FatalAPIError, Untold) as error:
            found = {"usable": False, "why": str(error)}
        click.echo(json.dumps(found, indent=2) if as_json else page(found))
        sys.exit(not found["usable"])


if __name__ == "__main__":
    main()
