"""Sequences of real runs against a project that changes, held against the truth.

Each example is a small project, the way its API reads what the reference leaves open,
and some runs with changes, time, other settings and cuts between them. What the tap
emits is upserted into a warehouse, as a target does. `make test` runs the same examples
each time; `HYPOTHESIS_PROFILE=long` looks at many others.
"""

from __future__ import annotations

import json
import typing as t
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import NOW
from tests.running import PRIMARY_KEYS, Output, Row, select, sync
from tests.sandbox import Options, Project, Sandbox, generate

DAY = timedelta(days=1)
LONG_AGO = datetime.min.replace(tzinfo=UTC)
FAR_AWAY = datetime.max.replace(tzinfo=UTC)
# For each value of `events_for`, those that take at least as many sessions.
WIDER = {"all": ("all",), "errors": ("all", "errors"), "crashed": ("all", "errors", "crashed")}
STREAMS = ("sessions", "network")  # that are read by date
# What a listing may read beyond a bound: a day for time zones on either side, and one
# for whole days.
SLACK = 3 * DAY
LateEvents = t.Literal["zero", "no-rows", "204", "part", "404"]


# --- What an example is made of -----------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """The settings of a run, and the streams that its catalog selects."""

    start: datetime | None
    end: datetime | None
    lookback: int
    events_for: str
    streams: tuple[str, ...]
    page_size: int

    def config(self) -> Row:
        """Return the settings as the tap takes them."""
        return {
            "lookback_days": self.lookback,
            "events_for": self.events_for,
            "page_size": self.page_size,
            "start_date": self.start and self.start.isoformat(),
            "end_date": self.end and self.end.isoformat(),
        }

    def needs(self, instant: datetime) -> bool:
        """Return whether an instant lies from start_date to end_date."""
        return (self.start or LONG_AGO) <= instant < (self.end or FAR_AWAY)

    def in_order(self) -> Asked:
        """Return the same with a start_date before the end_date."""
        if self.start is None or self.end is None or self.start < self.end:
            return self
        if self.start == self.end:
            return replace(self, start=None)
        return replace(self, start=self.end, end=self.start)


@dataclass(frozen=True)
class Change:
    """One thing that happens to the project; ``number`` chooses the session it meets."""

    kind: str
    number: int
    hours: float


@dataclass(frozen=True)
class Step:
    """What happens after a run, and the next run.

    ``cut`` None is a run that ends by itself. Else it is killed after that share of
    its messages, and the run after it gets the state that stands ``back`` states
    before its last. The events of the session that ``late`` chooses come short in this run,
    as ``late_events`` says, and not in the next.
    """

    hours: float = 0.0
    changes: tuple[Change, ...] = ()
    asked: Asked | None = None  # None: as before
    cut: float | None = None
    back: int = 0
    late: int | None = None
    late_events: LateEvents = "zero"


def instants(days: int) -> st.SearchStrategy[datetime]:
    """Return instants of the last days, whole days or to the second."""
    return st.one_of(
        st.integers(0, days).map(lambda day: NOW.replace(hour=0) - day * DAY),
        st.integers(0, days * 86_400).map(lambda second: NOW - timedelta(seconds=second)),
    )


# Dates within the life of the project and around it.
asked = st.builds(
    Asked,
    start=st.none() | instants(40),
    end=st.none() | st.none() | instants(35),
    lookback=st.sampled_from((7, 0, 1, 2, 3, 10)),
    events_for=st.sampled_from(("all", "all", "errors", "crashed")),
    streams=st.sampled_from(
        (
            *[tuple(PRIMARY_KEYS)] * 3,
            ("crashes", "sessions", "network"),
            ("crashes", "events"),
            ("sessions", "events"),
            ("network",),
        )
    ),
    page_size=st.sampled_from((20, 5, 50)),
).map(Asked.in_order)
# The instant of a call that comes.
CALLS: dict[str, t.Callable[[datetime, Change], datetime]] = {
    "new_network": lambda now, change: now - timedelta(minutes=change.number),
    "late_network": lambda now, change: now - timedelta(hours=change.hours),
    "midnight_network": lambda now, change: (now - timedelta(hours=change.hours)).replace(
        hour=0, minute=0, second=0, microsecond=0
    ),
}
changes = st.lists(
    st.builds(
        Change,
        st.sampled_from(("grow", "end", "crash", "new", "late", *CALLS, "ahead", "purge")),
        st.integers(0, 30),
        st.floats(0, 400, allow_nan=False).map(lambda hours: round(hours, 2)),
    ),
    max_size=6,
).map(tuple)
steps = st.lists(
    st.builds(
        Step,
        hours=st.sampled_from((0.0, 0.0, 0.2, 1.0, 5.0, 13.0, 24.0, 60.0, 300.0)),
        changes=changes,
        asked=st.none() | st.none() | asked,
        cut=st.none() | st.none() | st.floats(0, 1),
        back=st.integers(0, 3),
        late=st.none() | st.none() | st.integers(0, 30),
        late_events=st.sampled_from(t.get_args(LateEvents)),
    ),
    max_size=5,
)
options = st.builds(
    Options,
    requests_per_minute=st.none(),
    order=st.sampled_from(("newest", "oldest", "arbitrary")),
    to_means=st.sampled_from(("before", "midnight", "end")),
    utc_offset_hours=st.sampled_from((0, 0, -12, -5, 5.5, 14)),
    filter_on=st.sampled_from(("startedAt", "startedAt", "endedAt", "received")),
    events_paging=st.sampled_from(("all", "pages")),
    max_limit=st.sampled_from((1000, 7)),
    omit_pages=st.booleans(),
)


# --- What a state claims ------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """The instants, both ends included, that a state says are complete."""

    start: datetime
    end: datetime

    def holds(self, *instants: datetime) -> bool:
        """Return whether one of the instants lies in the claim."""
        return any(self.start <= instant <= self.end for instant in instants)


def claim_of(bookmark: t.Mapping[str, t.Any], mark: str) -> Claim | None:
    """Read a claim, None where there is none; a mark without a beginning is an error."""
    if mark not in bookmark:
        return None
    begins = bookmark["complete_from"]
    start = LONG_AGO if begins == "beginning" else datetime.fromisoformat(begins)
    return Claim(start, datetime.fromisoformat(bookmark[mark]))


class Claims:
    """What a state says of each stream."""

    def __init__(self, state: Row | None) -> None:
        bookmarks = (state or {}).get("bookmarks", {})
        events = bookmarks.get("events", {})
        self.streams = {
            stream: claim_of(bookmarks.get(stream, {}), "replication_key_value")
            for stream in STREAMS
        }
        complete = {
            events_for: claim_of(bookmark, "complete_to")
            for events_for, bookmark in events.get("complete", {}).items()
        }
        # By the value of `events_for`.
        self.events = {name: claim for name, claim in complete.items() if claim is not None}
        # Sessions whose events came short or failed.
        self.asked_again = {*events.get("short", ()), *events.get("set_aside", ())}

    def serving(self, events_for: str) -> Claim | None:
        """Return what is complete for a value of ``events_for``: a wider one serves, too."""
        best: Claim | None = None
        for claim in (self.events[name] for name in WIDER[events_for] if name in self.events):
            if best is None:
                best = claim
            elif claim.start <= best.end and best.start <= claim.end:
                best = Claim(min(best.start, claim.start), max(best.end, claim.end))
            else:
                best = max(best, claim, key=lambda one: one.end)
        return best


# --- The warehouse and the truth ----------------------------------------------------


@dataclass
class Load:
    """A project, the warehouse that is loaded from it, and what holds after each run."""

    sandbox: Sandbox
    asked: Asked
    now: datetime = NOW
    state: Row | None = None
    # Rows by their id, for events by that of their session first.
    tables: dict[str, dict[str, Row]] = field(
        default_factory=lambda: {stream: {} for stream in PRIMARY_KEYS}
    )
    is_whole: bool = False  # the last run ended by itself
    known: dict[str, Row] = field(default_factory=dict)  # sessions as that run met them
    ran: datetime | None = None  # when that run was
    added: list[str] = field(default_factory=list)  # network rows since then
    purges: list[datetime] = field(default_factory=list)
    purged: list[datetime] = field(default_factory=list)  # where deleted calls were listed
    # Sessions whose events came before the state of the last run, as they were then.
    fetched: dict[str, Row] = field(default_factory=dict)

    @property
    def project(self) -> Project:
        """What the API holds."""
        return self.sandbox.project

    # --- Instants of rows

    def when(self, stream: str, row_id: str) -> datetime:
        """Return the instant of a row."""
        return datetime.fromisoformat(self.project.when(stream, row_id))

    def listed(self, stream: str, row_id: str) -> datetime:
        """Return the instant that ``from`` and ``to`` filter a row on."""
        on = self.sandbox.options.filter_on
        if on == "received":
            return datetime.fromisoformat(self.project.received[row_id])
        if on == "endedAt" and stream == "sessions":
            return datetime.fromisoformat(self.project.when(stream, row_id, on))
        return self.when(stream, row_id)

    def stamps(self, stream: str, row_id: str) -> set[datetime]:
        """Return both."""
        return {self.when(stream, row_id), self.listed(stream, row_id)}

    # --- What happens between runs

    def change(self, change: Change) -> None:
        """Let one thing happen to the project, a second before the next run."""
        project = self.project
        project.now = self.now - timedelta(seconds=1)
        then = self.now - timedelta(hours=change.hours)
        newest = sorted(project.sessions, key=lambda i: self.when("sessions", i))
        before = {one: self.listed("network", one) for one in project.network}
        match change.kind:
            case "new":
                project.new_session(self.now - timedelta(hours=1), active=change.number % 2 == 0)
            case "late":
                project.new_session(then)
            case "ahead":
                self.add_ahead(timedelta(hours=change.hours))
            case "purge":
                self.purges.append(then)
                project.purge(then)
                self.purged += [before[one] for one in before.keys() - project.network]
            case "grow" | "end" | "crash" as happens:
                if newest:
                    getattr(project, happens)(newest[-1 - change.number % len(newest)])
            case call:
                project.new_network(CALLS[call](self.now, change))
        self.added += [row for row in project.network if row not in before]

    def add_ahead(self, ahead: timedelta) -> None:
        """Add a session, with a call, by a device whose clock is ahead."""
        project = self.project
        with project.lock:
            session = project.sessions[project.new_session(self.now - timedelta(hours=1))]
            call = project.network[project.new_network(self.now - timedelta(minutes=50))]
            for row, name in ((session, "startedAt"), (session, "endedAt"), (call, "timestamp")):
                instant = datetime.fromisoformat(row[name]) + ahead
                # As the API writes it.
                row[name] = instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            project.changed()

    # --- One run

    def run(self, step: Step) -> None:
        """Let time pass and things happen, run the tap, and check what it did."""
        self.now += timedelta(hours=step.hours)
        for change in step.changes:
            self.change(change)
        same = step.asked is None or step.asked == self.asked
        self.asked = step.asked or self.asked
        start = Start(self)
        self.choose_late(step, start)
        self.sandbox.reset()
        catalog = select(self.now, *self.asked.streams)
        output = sync(self.sandbox, self.now, self.state, catalog, **self.asked.config())
        start.check_requests(output, same=same)
        messages = output.messages
        if step.cut is not None:
            messages = messages[: int(len(messages) * step.cut)]
        # Each state with the sessions whose events came before it, as they were then.
        states = [(self.state, self.fetched if same else {})]
        fetched = dict(states[0][1])
        for message in messages:
            if message["type"] == "RECORD":
                self.write(message["stream"], message["record"])
                if message["stream"] == "events":
                    session = message["record"]["sessionId"]
                    fetched[session] = dict(self.project.sessions[session])
            elif message["type"] == "STATE":
                start.check_state(message["value"])
                states.append((message["value"], dict(fetched)))
        if step.cut is None:
            start.check_end()
        chosen = -1 if step.cut is None else max(-len(states), -1 - step.back)
        self.state, self.fetched = states[chosen]
        self.is_whole, self.ran = step.cut is None, self.now
        self.known = json.loads(json.dumps(self.project.sessions))
        self.added = []

    def choose_late(self, step: Step, start: Start) -> None:
        """Let the events of a session come short that the run is to bring up to date."""
        # Twice in the same way would be believed.
        some = self.project.events.keys() - start.claims.asked_again
        sessions = sorted(
            one for one in some if self.project.events[one] and start.owes_events(one)
        )
        is_late = step.late is not None and sessions
        number = (step.late or 0) % max(1, len(sessions))
        self.sandbox.options.late_sessions = {sessions[number]} if is_late else set()
        self.sandbox.options.late_events = step.late_events

    def write(self, stream: str, row: Row) -> None:
        """Upsert a row."""
        table = self.tables[stream]
        if stream == "events":
            table = table.setdefault(row["sessionId"], {})
        table[row["id"]] = row

    # --- What is up to date

    def is_latest(self, stream: str, row_id: str) -> bool:
        """Return whether the warehouse has a row as the API shows it."""
        truth = {**self.project.table(stream)[row_id], "_extra": None}
        return self.tables[stream].get(row_id) == truth

    def has_events(self, session: str) -> bool:
        """Return whether the warehouse has the events of a session as the API shows them."""
        truth = {
            event["id"]: {"sessionId": session, **event, "_extra": None}
            for event in self.project.events[session]
        }
        return self.tables["events"].get(session, {}) == truth

    def wants(self, session: str, events_for: str) -> bool:
        """Return whether a session has events and ``events_for`` takes them."""
        row = self.project.sessions[session]
        if row["eventCount"] == 0 and row["status"] != "active":
            return False
        crashed = row["hasCrash"] or row["status"] == "crashed"
        takes = {"all": True, "errors": crashed or row["hasNetworkErrors"], "crashed": crashed}
        return bool(takes[events_for])


class Start:
    """What a run starts from, and what it therefore owes."""

    def __init__(self, load: Load) -> None:
        self.load, self.claims = load, Claims(load.state)
        # What is complete for the `events_for` of the run.
        self.events_claim = self.claims.serving(load.asked.events_for)
        rows = {stream: set(load.project.table(stream)) for stream in STREAMS}
        # Rows that are not there, and those that are there as the API shows them.
        self.missing = {stream: rows[stream] - load.tables[stream].keys() for stream in STREAMS}
        self.fresh = {
            stream: {one for one in rows[stream] if load.is_latest(stream, one)}
            for stream in STREAMS
        }
        # Sessions whose events are not there as the API shows them.
        self.stale = {one for one in rows["sessions"] if not load.has_events(one)}

    def owes(self, stream: str, row_id: str, claim: Claim | None) -> bool:
        """Return whether the run is to bring a row of sessions or network up to date.

        It is if the API can list it under the dates, and it lies outside of what was
        complete or inside the lookback. Where the API filters on another instant than
        the row's, both count: a row that lies by one of them in what is complete, or
        outside of the dates asked for, cannot be known to be missing.
        """
        asked, stamps = self.load.asked, self.load.stamps(stream, row_id)
        if not all(map(asked.needs, stamps)):
            return False
        if claim is None or (asked.start is not None and asked.start > claim.end):
            return True
        return not claim.holds(*stamps) or self.is_in_lookback(claim, stamps)

    def owes_events(self, session: str) -> bool:
        """Return whether the run is to bring the events of a session up to date."""
        asked = self.load.asked
        is_owed = self.load.wants(session, asked.events_for) and "events" in asked.streams
        return is_owed and self.owes("sessions", session, self.events_claim)

    def is_in_lookback(self, claim: Claim, stamps: set[datetime]) -> bool:
        """Return whether a row lies in the lookback before the end of what is complete."""
        return min(stamps) >= claim.end - timedelta(days=self.load.asked.lookback)

    # --- Invariants

    def check_end(self) -> None:
        """All that a run owed is there when it has ended."""
        load, streams = self.load, self.load.asked.streams
        for stream in set(STREAMS).intersection(streams):
            for row_id in load.project.table(stream):
                is_owed = self.owes(stream, row_id, self.claims.streams[stream])
                if is_owed and not (stream == "network" and self.is_near_a_purge(row_id)):
                    assert load.is_latest(stream, row_id), (
                        f"{stream} {row_id} of {load.when(stream, row_id)} is not up to date"
                    )
        for session in load.project.sessions if "events" in streams else ():
            is_due = self.owes_events(session) or session in self.claims.asked_again
            if is_due and session not in load.sandbox.options.late_sessions:
                assert load.has_events(session), (
                    f"events of {session} of {load.when('sessions', session)}"
                )
        if "crashes" in streams:
            assert all(load.is_latest("crashes", one) for one in load.project.crashes)

    def is_near_a_purge(self, row_id: str) -> bool:
        """Return whether a call came late into a day of which retention has deleted calls.

        An insert and a purge that cancel exactly go unseen, as the design says.
        """
        # What lies in the future counts with today.
        when = min(self.load.listed("network", row_id), self.load.now)
        is_near = any(when - purge < SLACK for purge in self.load.purges)
        return row_id in self.missing["network"] and (is_near or self.may_cancel(row_id))

    def may_cancel(self, row_id: str) -> bool:
        """Return whether a call came into a day of the API's of which one was deleted."""
        zone = timedelta(hours=self.load.sandbox.options.utc_offset_hours)
        day = (self.load.listed("network", row_id) + zone).date()
        return any((one + zone).date() == day for one in self.load.purged)

    def check_state(self, state: Row) -> None:
        """A state claims no instant of which a row is not there.

        Rows that came late into what was complete before the run are found by the
        lookback, or are not promised.
        """
        load, asked, now = self.load, self.load.asked, Claims(state)
        for stream in STREAMS:
            claim = now.streams[stream]
            if claim is None:
                continue
            assert claim.end <= load.now
            for row_id in self.missing[stream] - load.tables[stream].keys():
                assert self.may_lack(
                    stream,
                    row_id,
                    claim,
                    self.claims.streams[stream],
                    is_claimed=stream in asked.streams,
                ), f"{stream} {row_id} of {load.when(stream, row_id)} is claimed: {claim}"
        for events_for, claim in now.events.items():
            before = self.claims.serving(events_for)
            if claim == self.claims.events.get(events_for):
                before = claim  # the run has left it as it was
            for session in self.stale - now.asked_again:  # those the next run asks for
                if load.wants(session, events_for) and not load.has_events(session):
                    assert self.may_lack(
                        "sessions",
                        session,
                        claim,
                        before,
                        is_claimed="events" in asked.streams and events_for == asked.events_for,
                    ), f"events of {session} of {load.when('sessions', session)}: {claim}"

    def may_lack(
        self, stream: str, row_id: str, claim: Claim, before: Claim | None, *, is_claimed: bool
    ) -> bool:
        """Return whether a state's claim goes with a row that is not there."""
        stamps = self.load.stamps(stream, row_id)
        if not all(map(claim.holds, stamps)):
            return True
        if before is None or not before.holds(*stamps):
            # Where the API's day is not over when UTC's is, also a new one may cancel another.
            return stream == "network" and self.may_cancel(row_id)
        if not is_claimed or not self.owes(stream, row_id, before):
            return True
        if stream == "network" and self.is_near_a_purge(row_id):
            return True
        # It came late, and this run has not met it yet: the next one still looks there.
        return self.is_in_lookback(claim, stamps)

    def check_requests(self, output: Output, *, same: bool) -> None:
        """Nothing is emitted or asked for that the warehouse has already."""
        load, asked_again = self.load, self.claims.asked_again
        requested = Counter(
            request.query["sessionId"]
            for request in load.sandbox.requests
            if request.path == "/events" and request.query["page"] == "1"
        )
        late = load.sandbox.options.late_sessions  # a listing without rows may be a glitch
        assert {session for session, times in requested.items() if times > 1} <= late
        for stream in PRIMARY_KEYS:
            assert output.repeated(stream) == [], f"{stream} twice"
        for stream in STREAMS:
            emitted = self.fresh[stream].intersection(output.ids(stream))
            self.check_not_long_complete(stream, emitted, self.claims.streams[stream])
        known = requested.keys() - self.stale - asked_again
        self.check_not_long_complete("sessions", known, self.events_claim)
        elsewhere = self.filed_elsewhere("sessions")
        if same:
            sessions = load.project.sessions
            there = requested.keys() & sessions.keys()
            again = {one for one in there if load.fetched.get(one) == sessions[one]}
            assert again <= elsewhere | asked_again, "events were fetched before the state"
        if same and load.is_whole and self.moves_marks():
            may_come = self.changed() | elsewhere
            assert requested.keys() <= may_come | asked_again, "events did not change"
            assert set(output.ids("sessions")) <= may_come, "sessions did not change"
            self.check_network(output)

    def check_not_long_complete(self, stream: str, rows: set[str], claim: Claim | None) -> None:
        """Rows do not lie, by all of their instants, in what was complete before the lookback."""
        if claim is None:
            return
        edge = claim.end - timedelta(days=self.load.asked.lookback) - SLACK
        for row_id in rows:
            stamps = self.load.stamps(stream, row_id)
            assert not all(claim.holds(stamp) and stamp < edge for stamp in stamps), (
                f"{stream} {row_id} of {min(stamps)} again"
            )

    def check_network(self, output: Output) -> None:
        """Only new calls come, and those of days in which one came late."""
        load = self.load
        added = [row for row in load.added if row in load.project.network]
        may_come = self.filed_elsewhere("network").union(added)
        stamps = [load.listed("network", row) for row in added]
        if load.sandbox.options.utc_offset_hours > 0 and load.ran is not None:
            # Where the API's days begin before UTC's, the calls of the last day that a run
            # asked for come once more when it has turned: it ends before the latest of them.
            stamps.append(min(load.ran, load.asked.end or load.ran))
        if load.purges:
            # Of a day that start_date or end_date cuts, any other number may hide a late call.
            stamps += [edge for edge in (load.asked.start, load.asked.end) if edge]
        for row_id in set(output.ids("network")) - may_come:
            when = load.listed("network", row_id)
            # What lay in the future comes again until its time has come.
            was_ahead = load.ran is not None and load.when("network", row_id) > load.ran
            assert was_ahead or any(abs(when - stamp) < SLACK for stamp in stamps), (
                f"network {row_id} of {when} did not change"
            )

    def filed_elsewhere(self, stream: str) -> set[str]:
        """Return the rows that the API lists under another day than that of their instant.

        The state forgets them by their instant, so they come once more when they are
        listed after that; README says so.
        """
        rows = self.load.project.table(stream)
        return {one for one in rows if len({at.date() for at in self.load.stamps(stream, one)}) > 1}

    def changed(self) -> set[str]:
        """Return the sessions that are new or changed since the last run."""
        known = self.load.known
        return {one for one, row in self.load.project.sessions.items() if known.get(one) != row}

    def moves_marks(self) -> bool:
        """Return whether the dates asked for do not end before what is complete."""
        end = self.load.asked.end
        claims = [*self.claims.streams.values(), self.events_claim]
        return end is None or not any(claim and end < claim.start for claim in claims)


# 24 of the 36 that `make test` looks at otherwise, for each is some runs of the tap; the
# long profile has 2,000 of them.
@settings(max_examples=settings().max_examples * 2 // 3)
@given(
    seed=st.integers(0, 10_000),
    sessions=st.integers(0, 60),
    days=st.sampled_from((1, 5, 20, 35)),
    options=options,
    first=asked,
    cut=st.none() | st.floats(0, 1),
    steps=steps,
)
def test_any_sequence_of_runs_ends_with_the_truth(  # noqa: PLR0913, PLR0917 - what varies
    seed: int,
    sessions: int,
    days: int,
    options: Options,
    first: Asked,
    cut: float | None,
    steps: list[Step],
) -> None:
    """Nothing is lost, repeated or claimed without being there, whatever happens."""
    project = generate(
        seed=seed,
        sessions=sessions,
        days=days,
        until=NOW - timedelta(hours=1),
        events_per_session=3,
        network_per_session=1,
    )
    with Sandbox(project, replace(options)) as sandbox:
        load = Load(sandbox, first)
        for step in (Step(cut=cut), *steps, Step()):
            load.run(step)  # and look whether what it owed is there
    # The last run was let to its end, so that all it owed was looked for.
    assert load.is_whole
