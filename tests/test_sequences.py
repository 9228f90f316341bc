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

from tests.running import PRIMARY_KEYS, Output, Row, expected, select, sync
from tests.sandbox import Options, Project, Sandbox, generate

if t.TYPE_CHECKING:
    from collections.abc import Mapping

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
LONG_AGO = datetime.min.replace(tzinfo=UTC)
WIDER = {"all": ("all",), "errors": ("all", "errors")} | {"crashed": ("all", "errors", "crashed")}
INSTANT = {"sessions": "startedAt", "network": "timestamp"}
# What a listing may read beyond a bound: a day for time zones on either side, and one
# for whole days.
SLACK = 3 * DAY


# --- What an example is made of -----------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """The settings of a run, and the streams that its catalog selects."""

    start: datetime | None = None
    end: datetime | None = None
    lookback: int = 7
    events_for: str = "all"
    streams: tuple[str, ...] = tuple(PRIMARY_KEYS)
    page_size: int = 20

    def config(self) -> dict[str, t.Any]:
        """Return the settings as the tap takes them."""
        config: dict[str, t.Any] = {
            "lookback_days": self.lookback,
            "events_for": self.events_for,
            "page_size": self.page_size,
        }
        for name, instant in (("start_date", self.start), ("end_date", self.end)):
            if instant is not None:
                config[name] = instant.isoformat()
        return config

    def needs(self, instant: datetime) -> bool:
        """Return whether an instant lies from start_date to end_date."""
        return (self.start is None or instant >= self.start) and (
            self.end is None or instant < self.end
        )


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
    late_events: t.Literal["zero", "no-rows", "204", "part", "404"] = "zero"


def instants(days: int) -> st.SearchStrategy[datetime]:
    """Return instants of the last days, whole days or to the second."""
    return st.one_of(
        st.integers(0, days).map(lambda day: NOW.replace(hour=0) - day * DAY),
        st.integers(0, days * 86_400).map(lambda second: NOW - timedelta(seconds=second)),
    )


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    """Return settings, dates within the life of the project and around it."""
    start = draw(st.none() | instants(40))
    end = draw(st.none() | st.none() | instants(35))
    if start is not None and end is not None and end <= start:
        start, end = (end, start) if end != start else (None, end)
    return Asked(
        start,
        end,
        draw(st.sampled_from((7, 0, 1, 2, 3, 10))),
        draw(st.sampled_from(("all", "all", "errors", "crashed"))),
        draw(
            st.sampled_from(
                (
                    tuple(PRIMARY_KEYS),
                    tuple(PRIMARY_KEYS),
                    tuple(PRIMARY_KEYS),
                    ("crashes", "sessions", "network"),
                    ("crashes", "events"),
                    ("sessions", "events"),
                    ("network",),
                )
            )
        ),
        draw(st.sampled_from((20, 5, 50))),
    )


# The instant of a call that comes.
CALLS: dict[str, t.Callable[[datetime, Change], datetime]] = {
    "new_network": lambda now, change: now - timedelta(minutes=change.number),
    "late_network": lambda now, change: now - timedelta(hours=change.hours),
    "midnight_network": lambda now, change: (now - timedelta(hours=change.hours)).replace(
        hour=0, minute=0, second=0, microsecond=0
    ),
}
KINDS = ("grow", "end", "crash", "new", "late", "new_network", "late_network", "ahead", "purge")
changes = st.lists(
    st.builds(
        Change,
        st.sampled_from((*KINDS, "midnight_network")),
        st.integers(0, 30),
        st.floats(0, 400, allow_nan=False).map(lambda hours: round(hours, 2)),
    ),
    max_size=6,
).map(tuple)
steps = st.lists(
    st.builds(
        Step,
        st.sampled_from((0.0, 0.0, 0.2, 1.0, 5.0, 13.0, 24.0, 60.0, 300.0)),
        changes,
        st.none() | st.none() | asked(),
        st.none() | st.none() | st.floats(0, 1),
        st.integers(0, 3),
        st.none() | st.none() | st.integers(0, 30),
        st.sampled_from(("zero", "no-rows", "204", "part", "404")),
    ),
    min_size=0,
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


def claim_of(bookmark: Mapping[str, t.Any], mark: str) -> Claim | None:
    """Read a claim, None where there is none; a mark without a beginning is an error."""
    if mark not in bookmark:
        return None
    begins = bookmark["complete_from"]
    start = LONG_AGO if begins == "beginning" else datetime.fromisoformat(begins)
    return Claim(start, datetime.fromisoformat(bookmark[mark]))


def claims_of(state: Row, stream: str) -> Claim | None:
    """Read what a state claims of sessions or network."""
    bookmark = state.get("bookmarks", {}).get(stream, {})
    return claim_of(bookmark, "replication_key_value")


def claims_of_events(state: Row) -> dict[str, Claim]:
    """Read what a state claims of events, by the value of ``events_for``."""
    complete = state.get("bookmarks", {}).get("events", {}).get("complete", {})
    claims = {name: claim_of(bookmark, "complete_to") for name, bookmark in complete.items()}
    return {name: claim for name, claim in claims.items() if claim is not None}


def asked_again(state: Row | None) -> set[str]:
    """Return the sessions whose events a state says came short or failed."""
    events = (state or {}).get("bookmarks", {}).get("events", {})
    return {*events.get("short", ()), *events.get("set_aside", ())}


def serving(claims: Mapping[str, Claim], events_for: str) -> Claim | None:
    """Return what is complete for a value of ``events_for``: a wider one serves, too."""
    best: Claim | None = None
    for claim in (claims[name] for name in WIDER[events_for] if name in claims):
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
    tables: dict[str, dict[tuple[str, ...], Row]] = field(
        default_factory=lambda: {stream: {} for stream in PRIMARY_KEYS}
    )
    events: dict[str, dict[str, Row]] = field(default_factory=dict)
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
        return datetime.fromisoformat(self.project.table(stream)[row_id][INSTANT[stream]])

    def listed(self, stream: str, row_id: str) -> datetime:
        """Return the instant that ``from`` and ``to`` filter a row on."""
        on = self.sandbox.options.filter_on
        if on == "received":
            return datetime.fromisoformat(self.project.received[row_id])
        if on == "endedAt" and stream == "sessions":
            return datetime.fromisoformat(self.project.when(stream, row_id, on))
        return self.when(stream, row_id)

    # --- What happens between runs

    def change(self, change: Change) -> None:
        """Let one thing happen to the project, a second before the next run."""
        project = self.project
        project.now = self.now - timedelta(seconds=1)
        then = self.now - timedelta(hours=change.hours)
        newest = sorted(project.sessions, key=lambda i: self.when("sessions", i))
        session = newest[-1 - change.number % len(newest)] if newest else None
        before = set(project.network)
        if change.kind == "new":
            project.new_session(self.now - timedelta(hours=1), active=change.number % 2 == 0)
        elif change.kind == "late":
            project.new_session(then)
        elif change.kind in CALLS:
            project.new_network(CALLS[change.kind](self.now, change))
        elif change.kind == "ahead":
            self.add_ahead(timedelta(hours=change.hours))
        elif change.kind == "purge":
            listed = {row_id: self.listed("network", row_id) for row_id in before}
            self.purges.append(then)
            project.purge(then)
            self.purged += [listed[row_id] for row_id in before - set(project.network)]
        elif session is not None and change.kind == "grow":
            project.grow(session)
        elif session is not None and change.kind == "end":
            project.end(session)
        elif session is not None:
            project.crash(session)
        self.added += [row for row in project.network if row not in before]

    def add_ahead(self, ahead: timedelta) -> None:
        """Add a session, with a call, by a device whose clock is ahead."""
        project = self.project
        with project.lock:
            session = project.new_session(self.now - timedelta(hours=1))
            call = project.new_network(self.now - timedelta(minutes=50))
            row = project.sessions[session]
            for name in ("startedAt", "endedAt"):
                row[name] = written(datetime.fromisoformat(row[name]) + ahead)
            stamp = project.network[call]["timestamp"]
            project.network[call]["timestamp"] = written(datetime.fromisoformat(stamp) + ahead)
            project.changed()

    # --- One run

    def run(self, step: Step) -> None:
        """Let time pass and things happen, run the tap, and check what it did."""
        self.now += timedelta(hours=step.hours)
        for change in step.changes:
            self.change(change)
        same = step.asked is None or step.asked == self.asked
        self.asked = step.asked or self.asked
        # Twice in the same way would be believed.
        events = self.project.events
        may_be_late = sorted({one for one in events if events[one]} - asked_again(self.state))
        is_late = step.late is not None and may_be_late
        number = (step.late or 0) % max(1, len(may_be_late))
        self.sandbox.options.late_sessions = {may_be_late[number]} if is_late else set()
        self.sandbox.options.late_events = step.late_events
        start = Start.of(self)
        self.sandbox.reset()
        catalog = select(self.now, *self.asked.streams)
        output = sync(self.sandbox, self.now, self.state, catalog, **self.asked.config())
        start.check_requests(output, same=same)
        messages = output.messages
        if step.cut is not None:
            messages = messages[: int(len(messages) * step.cut)]
        states: list[Row | None] = [self.state]
        fetched = [self.fetched if same else {}]
        done = dict(fetched[0])
        for message in messages:
            if message["type"] == "RECORD":
                self.write(message["stream"], message["record"])
                if message["stream"] == "events":
                    session = message["record"]["sessionId"]
                    done[session] = dict(self.project.sessions[session])
            elif message["type"] == "STATE":
                start.check_state(message["value"])
                states.append(message["value"])
                fetched.append(dict(done))
        if step.cut is None:
            start.check_end()
        chosen = -1 if step.cut is None else max(-len(states), -1 - step.back)
        self.state, self.fetched = states[chosen], fetched[chosen]
        self.is_whole, self.ran = step.cut is None, self.now
        self.known = json.loads(json.dumps(self.project.sessions))
        self.added = []

    def write(self, stream: str, row: Row) -> None:
        """Upsert a row."""
        self.tables[stream][tuple(row[key] for key in PRIMARY_KEYS[stream])] = row
        if stream == "events":
            self.events.setdefault(row["sessionId"], {})[row["id"]] = row

    # --- What is up to date

    def is_there(self, stream: str, row_id: str) -> bool:
        """Return whether the warehouse has a row."""
        return (row_id,) in self.tables[stream]

    def is_latest(self, stream: str, row_id: str) -> bool:
        """Return whether the warehouse has a row as the API shows it."""
        row = self.tables[stream].get((row_id,))
        return row == {**self.project.table(stream)[row_id], "_extra": None}

    def has_events(self, session: str) -> bool:
        """Return whether the warehouse has the events of a session as the API shows them."""
        truth = {
            event["id"]: {"sessionId": session, **event, "_extra": None}
            for event in self.project.events[session]
        }
        return self.events.get(session, {}) == truth

    def wants(self, session: str, events_for: str) -> bool:
        """Return whether a session has events and ``events_for`` takes them."""
        row = self.project.sessions[session]
        if row["eventCount"] == 0 and row["status"] != "active":
            return False
        crashed = row["hasCrash"] or row["status"] == "crashed"
        return bool(
            {"all": True, "errors": crashed or row["hasNetworkErrors"], "crashed": crashed}[
                events_for
            ]
        )


def written(instant: datetime) -> str:
    """Write an instant as the API does."""
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class Start:
    """What a run starts from, and what it therefore owes."""

    load: Load
    claims: dict[str, Claim | None]
    claims_of_events: dict[str, Claim]
    missing: dict[str, set[str]]  # rows of sessions and network that are not there
    stale: set[str]  # sessions whose events are not there as the API shows them
    fresh: dict[str, set[str]]  # rows that are there as the API shows them

    @classmethod
    def of(cls, load: Load) -> Start:
        """Look at the state and the warehouse before a run."""
        state = load.state or {}
        return cls(
            load,
            {stream: claims_of(state, stream) for stream in INSTANT},
            claims_of_events(state),
            {
                stream: {
                    row_id
                    for row_id in load.project.table(stream)
                    if not load.is_there(stream, row_id)
                }
                for stream in INSTANT
            },
            {session for session in load.project.sessions if not load.has_events(session)},
            {
                stream: {
                    row_id
                    for row_id in load.project.table(stream)
                    if load.is_latest(stream, row_id)
                }
                for stream in INSTANT
            },
        )

    @property
    def asked_again(self) -> set[str]:
        """Sessions whose events came short in the run before, or failed."""
        return asked_again(self.load.state)

    @property
    def events_claim(self) -> Claim | None:
        """What is complete for the ``events_for`` of the run."""
        return serving(self.claims_of_events, self.load.asked.events_for)

    def owes(self, stream: str, row_id: str, claim: Claim | None) -> bool:
        """Return whether the run is to bring a row of sessions or network up to date.

        It is if the API can list it under the dates, and it lies outside of what was
        complete or inside the lookback. Where the API filters on another instant than
        the row's, both count: a row that lies by one of them in what is complete, or
        outside of the dates asked for, cannot be known to be missing.
        """
        load, asked = self.load, self.load.asked
        stamps = {load.when(stream, row_id), load.listed(stream, row_id)}
        if not all(asked.needs(stamp) for stamp in stamps):
            return False
        if claim is None or (asked.start is not None and asked.start > claim.end):
            return True
        edge = claim.end - timedelta(days=asked.lookback)
        return not claim.holds(*stamps) or all(stamp >= edge for stamp in stamps)

    # --- Invariants

    def check_end(self) -> None:
        """All that a run owed is there when it has ended."""
        load = self.load
        asked = load.asked
        for stream in INSTANT:
            if stream not in asked.streams:
                continue
            for row_id in load.project.table(stream):
                if not self.owes(stream, row_id, self.claims[stream]):
                    continue
                if stream == "network" and self.is_near_a_purge(row_id):
                    continue
                assert load.is_latest(stream, row_id), (
                    f"{stream} {row_id} of {load.when(stream, row_id)} is not up to date"
                )
        if "events" in asked.streams:
            for session in load.project.sessions:
                is_owed = self.owes("sessions", session, self.events_claim)
                is_owed = is_owed and load.wants(session, asked.events_for)
                is_late = session in load.sandbox.options.late_sessions
                if (is_owed or session in self.asked_again) and not is_late:
                    assert load.has_events(session), (
                        f"events of {session} of {load.when('sessions', session)}"
                    )
        if "crashes" in asked.streams:
            truth = expected(load.project, "crashes")
            assert {key: load.tables["crashes"][key] for key in truth} == truth

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
        load, asked = self.load, self.load.asked
        for stream in INSTANT:
            claim = claims_of(state, stream)
            if claim is None:
                continue
            assert claim.end <= load.now
            for row_id in self.missing[stream]:
                if load.is_there(stream, row_id):
                    continue
                assert self.may_lack(
                    stream, row_id, claim, self.claims[stream], is_claimed=stream in asked.streams
                ), f"{stream} {row_id} of {load.when(stream, row_id)} is claimed: {claim}"
        for events_for, claim in claims_of_events(state).items():
            before = serving(self.claims_of_events, events_for)
            if claim == self.claims_of_events.get(events_for):
                before = claim  # the run has left it as it was
            for session in self.stale:
                if not load.wants(session, events_for) or load.has_events(session):
                    continue
                if session in asked_again(state):
                    continue  # the next run asks for it
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
        load, asked = self.load, self.load.asked
        stamps = {load.when(stream, row_id), load.listed(stream, row_id)}
        if not all(claim.holds(stamp) for stamp in stamps):
            return True
        if before is None or not before.holds(*stamps):
            # Where the API's day is not over when UTC's is, also a new one may cancel another.
            return stream == "network" and self.may_cancel(row_id)
        if not is_claimed or not self.owes(stream, row_id, before):
            return True
        if stream == "network" and self.is_near_a_purge(row_id):
            return True
        # It came late, and this run has not met it yet: the next one still looks there.
        edge = claim.end - timedelta(days=asked.lookback)
        return all(stamp >= edge for stamp in stamps)

    def check_requests(self, output: Output, *, same: bool) -> None:
        """Nothing is emitted or asked for that the warehouse has already."""
        load, asked = self.load, self.load.asked
        requested = Counter(
            request.query["sessionId"]
            for request in load.sandbox.requests
            if request.path == "/events" and request.query["page"] == "1"
        )
        late = load.sandbox.options.late_sessions  # a listing without rows may be a glitch
        assert {session for session, times in requested.items() if times > 1} <= late
        for stream in PRIMARY_KEYS:
            assert output.repeated(stream) == [], f"{stream} twice"
        lookback = timedelta(days=asked.lookback)
        for stream in INSTANT:
            claim = self.claims[stream]
            if claim is None:
                continue
            for row_id in {row["id"] for row in output.rows(stream)} & self.fresh[stream]:
                stamps = load.when(stream, row_id), load.listed(stream, row_id)
                assert not all(
                    claim.holds(stamp) and stamp < claim.end - lookback - SLACK for stamp in stamps
                ), f"{stream} {row_id} of {stamps[0]} again"
        claim = self.events_claim
        for session in requested.keys() - self.stale - self.asked_again:
            stamps = load.when("sessions", session), load.listed("sessions", session)
            assert claim is None or not all(
                claim.holds(stamp) and stamp < claim.end - lookback - SLACK for stamp in stamps
            ), f"events of {session} of {stamps[0]} again"
        if same:
            there = requested.keys() & load.project.sessions.keys()
            again = {i for i in there if load.fetched.get(i) == load.project.sessions[i]}
            may_come = self.filed_elsewhere("sessions") | self.asked_again
            assert again <= may_come, "events were fetched before the state"
        if same and load.is_whole and self.moves_marks():
            may_come = self.changed() | self.filed_elsewhere("sessions")
            assert requested.keys() <= may_come | self.asked_again, "events did not change"
            emitted = {row["id"] for row in output.rows("sessions")}
            assert emitted <= may_come, "sessions did not change"
            self.check_network(output)

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
        for row in output.rows("network"):
            when = load.listed("network", row["id"])
            # What lay in the future comes again until its time has come.
            was_ahead = load.ran is not None and load.when("network", row["id"]) > load.ran
            assert (
                was_ahead
                or row["id"] in may_come
                or any(abs(when - stamp) < SLACK for stamp in stamps)
            ), f"network {row['id']} of {when} did not change"

    def filed_elsewhere(self, stream: str) -> set[str]:
        """Return the rows that the API lists under another day than that of their instant.

        The state forgets them by their instant, so they come once more when they are
        listed after that; README says so.
        """
        load = self.load
        return {
            row_id
            for row_id in load.project.table(stream)
            if load.when(stream, row_id).date() != load.listed(stream, row_id).date()
        }

    def changed(self) -> set[str]:
        """Return the sessions that are new or changed since the last run."""
        load = self.load
        return {
            session
            for session, row in load.project.sessions.items()
            if load.known.get(session) != row
        }

    def moves_marks(self) -> bool:
        """Return whether the dates asked for do not end before what is complete."""
        end = self.load.asked.end
        claims = [*self.claims.values(), self.events_claim]
        return end is None or not any(claim and end < claim.start for claim in claims)


# 24 of the 36 that `make test` looks at otherwise, for each is some runs of the tap; the
# long profile has 2,000 of them.
@settings(max_examples=settings().max_examples * 2 // 3)
@given(
    seed=st.integers(0, 10_000),
    sessions=st.integers(0, 60),
    days=st.sampled_from((1, 5, 20, 35)),
    options=options,
    first=asked(),
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
