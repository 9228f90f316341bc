"""A project's data as the Export API returns it, and the ways it changes."""

import pickle
import random
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import cache
from threading import RLock
from typing import Annotated, Any

from tests.sandbox.world import (
    DAY,
    HOUR,
    HOURS,
    MESSAGES,
    SECOND,
    Crash,
    Draft,
    Row,
    World,
    iso,
    millis,
)

# The field that says when a row happened.
TIME_FIELDS = {"sessions": "startedAt", "crashes": "lastSeenAt", "network": "timestamp"}


class Project:
    """The rows of one project; made by `generate`, or empty.

    `sessions`, `crashes` and `network` map ids to rows exactly as the API returns them,
    in order of arrival; `events` maps a session's id to its events in sequence order.
    `received` maps ids of sessions and network rows to the instant they arrived, and
    `devices` ids of sessions to their device: neither is part of a row. `now` is the
    project's own clock, which arrivals are stamped with.

    Methods may be called from any thread, while a sandbox serves the project. Who edits
    the dictionaries directly holds `lock` and calls `changed` afterwards.
    """

    def __init__(self, now: datetime, world: World) -> None:
        """Start with no rows; `world` makes up those that are asked for later."""
        self.sessions: dict[str, Row] = {}
        self.crashes: dict[str, Row] = {}
        self.network: dict[str, Row] = {}
        self.events: dict[str, list[Row]] = {}
        self.received: dict[str, str] = {}
        self.devices: dict[str, str] = {}
        self.now = now
        self.lock = RLock()
        self.revision: Counter[str] = Counter()
        self._world = world
        self._groups: dict[tuple[str, str, str], str] = {}
        self._crashed_devices: dict[str, set[str]] = {}

    def __getstate__(self) -> dict[str, object]:
        """All but the lock, which is of one process; a copy has its own."""
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Be a copy that shares nothing and goes on, with the same chances, by itself."""
        vars(self).update(state, lock=RLock())

    @property
    def counts(self) -> dict[str, int]:
        """How many rows there are, by endpoint."""
        counts = {name: len(self.table(name)) for name in TIME_FIELDS}
        return counts | {"events": sum(map(len, self.events.values()))}

    def table(self, name: str) -> dict[str, Row]:
        """The rows of `sessions`, `crashes` or `network` by id."""
        return {"sessions": self.sessions, "crashes": self.crashes, "network": self.network}[name]

    def when(self, table: str, row_id: str, field: str | None = None) -> str:
        """The instant that a row is ordered and filtered by, as ISO text in UTC.

        A field without a value, such as the end of a session, gives the time of the row.
        """
        row = self.table(table)[row_id]
        text: str = row[field or TIME_FIELDS[table]] or row[TIME_FIELDS[table]]
        is_iso = len(text) == len("2026-01-15T10:00:00.000Z") and text.endswith("Z")
        return text if is_iso else iso(millis(text))

    def changed(self, *tables: str) -> None:
        """Say that rows were edited directly, so that a sandbox sorts them afresh."""
        with self.lock:
            self.revision.update(tables or tuple(TIME_FIELDS))

    def grow(self, session_id: str, events: int = 3) -> None:
        """Return a session more events after its last; without an end it is active.

        In a session that has ended they come before its end: it was uploaded in parts.
        """
        with self.lock:
            row, rows = self.sessions[session_id], self.events[session_id]
            stamps = [self._next_instant(session_id)]
            while len(stamps) < events:
                stamps.append(stamps[-1] + self._world.rng.randrange(SECOND, 9 * SECOND))
            if row["endedAt"] is None:
                row["status"] = "active"
            else:
                end = millis(row["endedAt"])
                stamps = [min(stamp, end) for stamp in stamps]
            self._world.journey(rows, stamps[:events])
            row["eventCount"] = len(rows)

    def end(self, session_id: str) -> None:
        """End a session a moment after its last event; one that has ended keeps its end."""
        with self.lock:
            row = self.sessions[session_id]
            row["status"] = "completed"
            if row["endedAt"] is None:
                self._end_at(row, self._next_instant(session_id))
            self.changed("sessions")

    def crash(self, session_id: str) -> str:
        """Crash a session: its end, a crash event, one more of a group, whose id it returns."""
        with self.lock:
            row, rows = self.sessions[session_id], self.events[session_id]
            at = self._next_instant(session_id)
            if row["endedAt"] is None:
                self._end_at(row, at)
            else:
                at = min(at, millis(row["endedAt"]))
            drawn = self._world.draw_crash(row["platform"], row["appVersion"], at)
            message = drawn.message if drawn else MESSAGES[0][0]
            crash = Crash(message, fatal=True, at=at)
            self._world.crash_event(rows, crash)
            row.update(status="crashed", hasCrash=True, eventCount=len(rows))
            self.changed("sessions")
            return self._count_crash(row, crash)

    def add(
        self,
        session_row: Row,
        events: Iterable[Row],
        network_rows: Iterable[Row] = (),
        *,
        received: datetime | None = None,
    ) -> str:
        """Add rows just as they are, arriving at `received` (default: `now`); return the id."""
        with self.lock:
            session_id, arrival = str(session_row["id"]), iso(millis(received or self.now))
            self.sessions[session_id] = session_row
            self.events[session_id] = list(events)
            self.received[session_id] = arrival
            for row in network_rows:
                self.network[str(row["id"])] = row
                self.received[str(row["id"])] = arrival
            self.changed("sessions", "network")
            return session_id

    def new_session(self, started_at: datetime, *, active: bool = False) -> str:
        """Make up a session with events that began at `started_at`, add it, return its id.

        It is whole unless `active`, and arrives when it has ended, at `now` the
        earliest; `now` moves there.
        """
        with self.lock:
            draft = self._world.session(millis(started_at), endless=active)
            arrival = max(draft.last_instant, millis(self.now))
            self.now += timedelta(milliseconds=arrival - millis(self.now))
            return self._store(draft, arrival)

    def new_network(self, timestamp: datetime) -> str:
        """Make up a successful call by some session, arriving at `now`; return its id."""
        with self.lock:
            session_id = self._world.rng.choice(list(self.sessions) or ["sess_0_gone"])
            row = self._world.call(session_id, "Home", millis(timestamp), fails=False)
            self.network[row["id"]] = row
            self.received[row["id"]] = iso(millis(self.now))
            self.changed("network")
            return str(row["id"])

    def purge(self, before: datetime) -> None:
        """Delete sessions, their events and network rows older than `before`.

        Crash groups stay, with their counts.
        """
        with self.lock:
            limit = iso(millis(before))
            for name in ("sessions", "network"):
                table = self.table(name)
                for row_id in [i for i in table if self.when(name, i) < limit]:
                    del table[row_id]
                    for extra in (self.events, self.received, self.devices):
                        extra.pop(row_id, None)
            self.changed("sessions", "network")

    def step(self, kind: str) -> None:
        """Change by itself, as a running server's project does.

        `kind` is `late` (a session of the last days arrives), `purge` (the oldest day
        goes) or `new`.
        """
        with self.lock:
            rng = self._world.rng
            if kind == "late":
                self.new_session(self.now - timedelta(hours=rng.uniform(3, 100)))
            elif kind == "purge" and self.sessions:
                oldest = min(self.when("sessions", i) for i in self.sessions)
                self.purge(datetime.fromisoformat(f"{oldest[:10]}T00:00:00Z") + timedelta(days=1))
            elif kind == "new":
                began = self.now - timedelta(minutes=10)
                self.new_session(began, active=rng.random() < 0.5)

    def _next_instant(self, session_id: str) -> int:
        rows = self.events[session_id]
        last = rows[-1]["timestamp"] if rows else self.sessions[session_id]["startedAt"]
        return millis(last) + self._world.rng.randrange(SECOND, 9 * SECOND)

    @staticmethod
    def _end_at(row: Row, end: int) -> None:
        row["endedAt"] = iso(end)
        row["duration"] = end - millis(row["startedAt"])

    def _store(self, draft: Draft, arrival: int) -> str:
        received = datetime.fromisoformat(iso(arrival))
        session_id = self.add(draft.row, draft.events, draft.network, received=received)
        self.devices[session_id] = draft.device
        if draft.crash:
            self._count_crash(draft.row, draft.crash)
        return session_id

    def _count_crash(self, session: Row, crash: Crash) -> str:
        """Add one occurrence to the group of its message, platform and version."""
        key = (crash.message, session["platform"], session["appVersion"])
        group_id, text = self._groups.get(key), iso(crash.at)
        if group_id is None:
            group_id = self._groups[key] = self._world.name("crash")
            self._crashed_devices[group_id] = set()
            self.crashes[group_id] = {
                "id": group_id,
                "message": crash.message,
                "status": self._world.group_status(session["appVersion"]),
                "isFatal": crash.fatal,
                "handled": not crash.fatal,
                "occurrenceCount": 0,
                "affectedDevices": 0,
                "platform": session["platform"],
                "appVersion": session["appVersion"],
                "osVersion": session["osVersion"],
                "firstSeenAt": text,
                "lastSeenAt": text,
            }
        row, devices = self.crashes[group_id], self._crashed_devices[group_id]
        devices.add(self.devices.get(session["id"]) or str(session["id"]))
        row["occurrenceCount"] += 1
        row["affectedDevices"] = len(devices)
        row["firstSeenAt"] = min(row["firstSeenAt"], text)
        row["lastSeenAt"] = max(row["lastSeenAt"], text)
        self.changed("crashes")
        return group_id

    def fill_crash_groups(self) -> None:
        """Let each crash that can happen and has not have happened before the data.

        Such groups stem from sessions that retention has deleted since.
        """
        with self.lock:
            world = self._world
            for (platform, version), crashes in world.pool.items():
                for crash in crashes:
                    if (crash.message, platform, version) in self._groups:
                        continue
                    for _ in range(world.rng.randint(1, 5)):
                        at = world.start - world.rng.randrange(120 * DAY)
                        draft = world.session(at, clock_error=0, empty=True)
                        gone = draft.row | {"platform": platform, "appVersion": version}
                        self._count_crash(gone, crash._replace(at=at))


def generate(  # noqa: PLR0913 - each is one fact of the data, and all have defaults
    seed: Annotated[int, "whatever is random follows from it"] = 1,
    sessions: Annotated[int, "how many sessions"] = 500,
    days: Annotated[float, "over how many days before `until` they are spread"] = 30,
    until: Annotated[datetime | None, "the end of the data, in UTC where it has no zone"] = None,
    *,
    events_per_session: Annotated[
        float, "the average, 0 for none at all; one session in 25 has none"
    ] = 12,
    network_per_session: Annotated[float, "the average number of network rows"] = 1.5,
    crash_groups: Annotated[
        int | None,
        "exactly so many crash groups, of which those that no session belongs to were seen "
        "before the data; None: as many as the sessions cause",
    ] = None,
    lying_clocks: Annotated[
        bool,
        "two sessions in 300, which never crash, have a clock that is wrong: one is ahead by "
        "up to a year, one is years behind",
    ] = True,
) -> Project:
    """Make up a project; the same arguments give the same rows.

    Its end is 2026-03-01 where `until` is None; the command line has the present instead.
    """
    end = millis(until or "2026-03-01T00:00:00Z")
    start = end - round(days * DAY)
    rng = random.Random(f"bugspulse {seed}")
    world = World(
        rng,
        max(5, sessions // 8),
        start,
        end,
        events_per_session=events_per_session,
        network_per_session=network_per_session,
        crash_groups=crash_groups,
    )
    drafts: list[tuple[int, int, Draft]] = []
    for number, begin in enumerate(_starts(rng, sessions, start, end)):
        error = 0
        if lying_clocks and number % 300 == 150:
            error = rng.randrange(2 * DAY, 365 * DAY)
        elif lying_clocks and number % 300 == 299:
            error = -rng.randrange(2 * 365 * DAY, 9 * 365 * DAY)
        draft = world.session(
            begin, until=end, clock_error=error, empty=number % 25 == 7, endless=number % 33 == 20
        )
        late = rng.randrange(2 * HOUR, 5 * DAY) if number % 50 == 31 else 0
        arrival = draft.last_instant + late + rng.randrange(20 * SECOND)
        drafts.append((min(arrival, end), number, draft))
    project = Project(datetime.fromisoformat(iso(end)), world)
    for arrival, _, draft in sorted(drafts, key=lambda item: item[:2]):
        project._store(draft, arrival)  # noqa: SLF001 - generate is its constructor
    if crash_groups is not None:
        project.fill_crash_groups()
    return project


def generate_once(**arguments: Any) -> Project:
    """Return what `generate` does: a copy that takes a quarter of the time."""
    pickled = _generated(tuple(arguments.items()))
    project: Project = pickle.loads(pickled)  # noqa: S301 - it is our own
    return project


@cache
def _generated(arguments: tuple[tuple[str, Any], ...]) -> bytes:
    return pickle.dumps(generate(**dict(arguments)))


def _starts(rng: random.Random, sessions: int, start: int, end: int) -> list[int]:
    """Instants between `start` and `end`, more of them by day than by night."""
    hours = range(start, max(end, start + 1), HOUR)
    shares = [HOURS[hour // HOUR % 24] for hour in hours]
    chosen = rng.choices(hours, shares, k=sessions) if sessions else []
    return sorted(min(hour + rng.randrange(HOUR), end - 1) for hour in chosen)
