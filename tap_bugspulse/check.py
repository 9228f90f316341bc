"""A check of the API, which tells counts, forms and names of fields, and nothing else of a row."""

import json
import math
import re
import typing as t
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import click
from requests import RequestException
from singer_sdk.exceptions import FatalAPIError, RetriableAPIError

from tap_bugspulse.http import RESETS, TOO_MANY, RefusedError, reason
from tap_bugspulse.pages import Page, page_of
from tap_bugspulse.replication import DAY, FAR, Window, format_instant, midnight, parse_instant
from tap_bugspulse.run import duration
from tap_bugspulse.settings import EVENTS_FOR
from tap_bugspulse.streams import is_wanted
from tap_bugspulse.tap import TapBugsPulse, errors_as_one_line

MAX_REQUESTS, MAX_PROVOKING = 40, 70  # in all, but for those that provoke a 429
MAX_DAYS, MAX_PAGES = 12, 2  # to find out what dates mean
MAX_PAUSE, HOURLY = 61.0, 50  # seconds that a 429 may ask to wait; minutes of an hourly run
LIMIT, FEW, ENOUGH = 1000, 2, 6  # rows of a page; those that tell something
NEVER = Window(FAR, FAR + DAY).query()
ZONES = [half / 2 for half in range(-28, 29)]  # hours from UTC to the beginning of a day
TIMES = {"sessions": "startedAt", "network": "timestamp", "crashes": "lastSeenAt"}
INSTANTS = ("startedAt", "endedAt", "timestamp", "firstSeenAt", "lastSeenAt")
LISTED = {"sessions": "active completed crashed", "crashes": "open acknowledged resolved ignored"}
LOST = "THE TAP DOES NOT HANDLE THIS"
NO_PAGES = f"no: {LOST}, pages after the first"

Query = t.Mapping[str, str]
Found = t.Iterator[tuple[str, object]]  # questions with their answers: yes, no, Untold or a text


class Untold(Exception):  # noqa: N818 - no error, but why a question stays open
    """The answers do not tell."""


class Answer:
    """One response, or why there is none."""

    def __init__(self, page: Page, error: str = "") -> None:
        self.page, self.error = page, error
        self.ids = {row.id for row in page.rows}
        self.size = len(page.rows) + page.without_key


class Check:
    """Asks the API each question once, by the tap's own client, and keeps the answers."""

    def __init__(self, tap: TapBugsPulse, *, provokes: bool = False) -> None:
        self.run, self.streams = tap.run, t.cast("dict[str, t.Any]", tap.streams)
        self.provokes, self.sent, self.began = provokes, 0, self.run.clock.seconds()
        self.headers: set[str] = set()
        self.raw: list[tuple[str, t.Any]] = []  # rows as they came, and their stream
        self.answers: dict[tuple[t.Any, ...], Answer] = {}
        # What there is, what is refused, and which dates make no difference.
        self.first = self.ask("sessions", {})
        self.rows = {name: self._count(name, {}) for name in TIMES}
        self.total = self.rows["sessions"]
        pages = math.ceil(self.total / max(1, self.first.size))
        self.last = self.ask("sessions", {}, max(1, pages), strict=False)
        self.seen = [*{row.id: row for row in self.first.page.rows + self.last.page.rows}.values()]
        events = sum(row.eventCount or 0 for row in self.seen) / max(1, len(self.seen))
        self.rows["events"] = round(events * self.total)
        full = sorted(self.seen, key=lambda row: (bool(row.endedAt), row.eventCount or 0))[:-3:-1]
        self.sample = [(r, self.ask("events", {"sessionId": r.id}, strict=False)) for r in full]
        errors = {name: self.ask(name, {}, strict=False).error for name in TIMES}
        errors["events"] = min((one.error for _, one in self.sample), default="")
        self.refused = {name: error for name, error in errors.items() if error}
        dated = {"from": NEVER, "to": {"to": "1970-01-02"}}
        dated["from without a to"] = {"from": f"{FAR}"}
        ignored = [n for n in dated if self.ask("sessions", dated[n], strict=False).size]
        self.blind = [n for n in ("from", "to") if n in ignored]
        self.ignored = " and ".join(self.blind or ignored)
        now, instants = self.run.started, [parse_instant(row.startedAt) for row in self.seen]
        self.starts = sorted(one for one in instants if one and one <= now) or [now]
        begin = self.starts[0] if self.blind else self.starts[-1] - 7 * DAY
        begin = midnight(max(self.starts[0], begin))
        number = self._count("sessions", Window(begin.date()).query())
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
            except (RefusedError, RetriableAPIError, RequestException) as error:
                # Without the dates, which may be those of a row.
                why = reason(error).partition(" from ")[0]
                if isinstance(error, RefusedError):
                    break
                is_dead = is_last and isinstance(error, RequestException)
                if is_dead or self.run.http.paused_until > self.run.clock.seconds() + MAX_PAUSE:
                    raise FatalAPIError(why) from None
            else:
                self.headers |= {one.lower() for one in response.headers}
                with suppress(ValueError, RecursionError):  # it is no JSON, or strange
                    rows = response.json()["data"] or ()
                    self.raw += [(name, row) for row in rows if isinstance(row, dict)]
                return Answer(page_of(response))
        return Answer(Page([]), why)

    def _count(self, name: str, query: Query) -> int:
        first = self.ask(name, query, strict=False)
        page, pages = first.page, first.page.pages or 1
        if pages > 1 and page.total == first.size:  # that of the page, if there is a last one
            last = self.ask(name, query, pages, strict=False)
            return (pages - 1) * first.size + last.size if last.ids - first.ids else first.size
        return first.size if first.size < self.first.size else page.rows_in_all

    def _ids_of(self, query: Query) -> set[str]:
        size = self.ask("sessions", query).size
        if (pages := math.ceil(self._count("sessions", query) / max(1, size))) > MAX_PAGES:
            raise Untold(f"more than {MAX_PAGES} pages of sessions in some days")
        return {id_ for n in range(pages) for id_ in self.ask("sessions", query, n + 1).ids}

    def costs(self) -> dict[str, int]:
        """Return the requests of a first load for each events_for, and of an hourly run."""
        settings, rows = self.run.settings, dict(self.rows)
        if settings.start_date and not self.ignored:
            query = Window((settings.start_date - DAY).date()).query()
            rows |= {name: self._count(name, query) for name in ("sessions", "network")}
        recent, size, day = settings.lookback_days + 2, settings.page_size, self.per_day
        listed = recent + sum(math.ceil(rows[name] / size) or 1 for name in TIMES)
        due = Counter(one for row in self.seen for one in EVENTS_FOR if is_wanted(row, one))
        parts = {name: due[name] / max(1, len(self.seen)) for name in EVENTS_FOR}
        costs = {n: listed + math.ceil(part * rows["sessions"]) for n, part in parts.items()}
        events = parts[settings.events_for] * day / 24
        each = rows["crashes"] / size or 1, day * recent / size, events
        return {**costs, "hourly": recent + sum(map(math.ceil, each))}

    def _order(self) -> Found:
        for name, column in TIMES.items():
            rows = self.ask(name, {}, strict=False).page.rows
            times = [one for row in rows if (one := parse_instant(getattr(row, column)))]
            orders = {"newest first by": sorted(times)[::-1], "oldest first by": sorted(times)}
            order = next((words for words, one in orders.items() if one == times), "not by")
            is_told = len(set(times)) >= ENOUGH
            yield f"order_of_{name}", f"{order} {column}" if is_told else Untold("too few rows")

    def _counts(self) -> Found:
        if len(self.starts) < ENOUGH:
            raise Untold(f"fewer than {ENOUGH} sessions")
        total, size = self.total, min(10, len(self.starts) // 3)
        one, two = (self.ask("sessions", {"limit": str(size)}, number) for number in (1, 2))
        most = self.ask("sessions", {"limit": str(2 * LIMIT)}, strict=False)
        echo, why = most.page.limit or 2 * LIMIT, most.error or "all fit on a page"
        echoed = f"{echo}: as it is echoed" if echo < 2 * LIMIT else Untold(why)
        yield "largest_limit", str(most.size) if 0 < most.size < total else echoed
        yield "page_is_honoured", NO_PAGES if one.ids & two.ids else True
        day = self.starts[len(self.starts) // 2].date()
        before, after = Window(end=day).query(), Window(day + 2 * DAY).query()
        parts = [self.ask("sessions", query, strict=False) for query in (NEVER, before)]
        is_lost = not one.page.pages or self.first.size < min(total, self.first.page.limit or 0)
        is_all = (part.size < min(self.first.size, part.page.total or 0) for part in parts)
        reasons = {
            "missing": one.page.total is None,
            f"that of the page{f', {LOST}' * is_lost}": one.page.total == one.size,
            "all rows, whatever the dates": any(is_all),
        }
        wrong = next(filter(reasons.get, reasons), "")
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
        is_true = [one.eventCount == answer.page.rows_in_all for one, answer in read if one.endedAt]
        yield "event_count_is_true", all(is_true) if is_true else Untold("no session has ended")
        is_again = bool(whole.ids & read[-1][1].ids)
        yield "event_ids_repeat", is_again if read[1:] else Untold("too few sessions")

    def _dates(self) -> Found:
        yield "dates_are_honoured", not self.ignored or f"no, {self.ignored} ignored: the tap copes"
        if self.blind:
            raise Untold(f"{self.ignored} ignored")
        instants = {r.id: [parse_instant(r.startedAt), parse_instant(r.endedAt)] for r in self.seen}
        ended: dict[str, list[t.Any]] = {id_: one for id_, one in instants.items() if all(one)}
        if not ended:
            raise Untold("no session that has ended")
        # The longest session begins in its first half, and ends in the second.
        id_, (start, end) = max(ended.items(), key=lambda one: one[1][1] - one[1][0])
        near, middle = timedelta(milliseconds=10), start + (end - start) / 2
        halves = (start - near, middle), (middle, end + near)
        queries = [{"from": format_instant(a), "to": format_instant(b)} for a, b in halves]
        is_taken = not self.ask("sessions", queries[0], strict=False).error
        yield "times_are_accepted", is_taken
        fields = [n for n in (0, 1) if not is_taken or id_ in self._ids_of(queries[n])]
        readings = [(n, zone, days) for n in fields for zone in ZONES for days in (1, 2)]
        for day, _ in Counter(start.date() for start, _ in ended.values()).most_common(MAX_DAYS):
            came = self._ids_of(Window(day, day + DAY).query()) & ended.keys()
            hours = {i: [(at - midnight(day)) * 24 / DAY for at in one] for i, one in ended.items()}
            readings = [
                (n, zone, days)
                for n, zone, days in readings
                if came == {i for i, at in hours.items() if zone <= at[n] < zone + 24 * days}
            ]
            if not readings:
                raise Untold("no reading of startedAt or endedAt explains what comes")
        by, zones, days = (sorted(set(one)) for one in zip(*readings, strict=True))
        few = "too few sessions"
        yield "filter_field", Untold(few) if by[1:] else ("startedAt", "endedAt")[by[0]]
        utc = [f"UTC{-one:+g}" if one else "UTC" for one in zones]
        yield "time_zone", Untold(f"from {utc[-1]} to {utc[0]}: {few}") if utc[1:] else utc[0]
        yield "to_includes_its_day", Untold(few) if days[1:] else days[0] > 1

    def _fields(self) -> Found:
        counts = self.run.counts.items()
        yield "rows_without_an_id", any(of.without_key for _, of in counts) and f"yes: {LOST}"
        dates = [str(row[n]) for _, row in self.raw for n in INSTANTS if row.get(n)]
        states = [(n, row["status"]) for n, row in self.raw if n in LISTED and row.get("status")]
        new = {f"{n}.status" for n, state in states if state not in LISTED[n].split()}
        found = {
            "fields_not_in_the_reference": {f"{n}.{one}" for n, of in counts for one in of.unknown},
            "values_of_another_type": {f"{n}.{one}" for n, of in counts for one in of.misfits},
            "values_that_are_not_listed": new,
            "forms_of_dates": {re.sub("[^TZ:.+-]", "0", one) for one in dates},
        }
        for name, names in found.items():
            # A name that may be no name, but what a user wrote, is not told.
            safe = {one if re.fullmatch(r"[\w.:+-]{1,60}", one) else "others" for one in names}
            yield name, ", ".join(sorted(safe)) or (False if self.raw else Untold("no rows"))
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
            call = stream.fetch({"limit": "1"}, retries=False)
            response = getattr(call.future.exception(), "response", None)
            if response is not None and response.status_code == TOO_MANY:
                found = [f"{n} {response.headers[n]}" for n in RESETS if n in response.headers]
                yield "a_429_carries", re.sub(r"\d", "0", ", ".join(found)) or "nothing"
                return
        raise Untold(f"{MAX_PROVOKING} requests in a row were answered")


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
    answers: dict[str, object] = {}
    for kind in ("order", "counts", "events", "dates", "fields", "a_429_carries"):
        try:
            answers.update(getattr(check, f"_{kind}")())
        except Untold as error:  # some of a kind cannot be asked
            answers[kind] = error
    api = {}
    for name, answer in answers.items():
        words = f"could not tell: {answer}" if isinstance(answer, Untold) else str(answer)
        words, _, note = {"True": "yes", "False": "no"}.get(words, words).partition(": ")
        api[name] = {"answer": words, "note": note}
    return {
        "usable": True,
        "requests": check.sent,
        "seconds": round(run.clock.seconds() - check.began, 1),
        "rows": {name: count for name, count in check.rows.items() if name not in refused},
        "refused": refused,
        "oldest_session": check.starts[0].date().isoformat() if check.total else "none",
        "newest_session": check.starts[-1].date().isoformat() if check.total else "none",
        "sessions_a_day": round(check.per_day, 1),
        "load": load,
        "settings": settings,
        "api": api,
    }


def page(found: t.Mapping[str, t.Any]) -> str:
    """Return what is found, for a person."""
    if not found["usable"]:
        return f"Not usable: {found['why']}"
    lines = [f"The key works: {found['requests']} requests, {found['seconds']:.0f} s"]
    lines += ["", "What there is"]
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
        lines.append(f"  {name.replace('_', ' '):<36}{': '.join(filter(None, one.values()))}")
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
        raise SystemExit(not found["usable"])
