"""What a made-up shopping app's users do: sessions, journeys, calls and crashes.

`World` makes rows up from a seeded random generator and keeps none of them. Instants
are milliseconds since 1970 (UTC) here and ISO 8601 text with milliseconds in rows.
"""

import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

Row = dict[str, Any]

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

# Traffic by hour of the day, UTC: more by day than by night.
HOURS = (2, 1, 1, 1, 1, 2, 4, 7, 9, 9, 9, 10, 11, 10, 9, 9, 10, 12, 14, 16, 16, 13, 8, 4)
BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
HOST = "https://api.shopnest.example"

PLATFORMS = {
    "ios": ("17.4", "17.5.1", "18.1"),
    "android": ("12", "13", "14", "15"),
    "macos": ("14.5", "15.1"),
    "windows": ("10", "11"),
}
PLATFORM_SHARES = (42, 45, 6, 7)

# Message and whether it is fatal. The app is written once for all platforms, so the
# first ones happen on each; the version in which they happen differs.
MESSAGES = (
    ("TypeError: Cannot read properties of undefined (reading 'price')", True),
    ("RangeError: Maximum call stack size exceeded", True),
    ("Error: Payment sheet presented twice", True),
    ("OutOfMemoryError: Failed to allocate a 48 MB bitmap", True),
    ("SyntaxError: Unexpected token < in JSON at position 0", False),
    ("Error: Cart is out of sync with the server", False),
)
MESSAGE_SHARES = (40, 20, 14, 10, 9, 7)
CRASH_RATE = 0.02
BAD_RELEASE_CRASH_RATE = 0.12
STATUSES = ("open", "acknowledged", "resolved", "ignored")
SEARCHES = ("running shoes", "desk lamp", "rain jacket", "mug", "headphones", "tent")


class Call(NamedTuple):
    """One endpoint that the app calls, its usual latency (ms) and its failure rate."""

    method: str
    path: str
    latency: int
    failures: float


# What there is on each screen: where one goes next, what one can tap, do, and what it loads.
ONWARD = {
    "Home": ("Search", "Search", "Product", "Cart", "Profile"),
    "Search": ("Product", "Product", "Product", "Home"),
    "Product": ("Cart", "Cart", "Search", "Home"),
    "Cart": ("Checkout", "Checkout", "Home"),
    "Checkout": ("Confirmation", "Confirmation", "Cart"),
    "Confirmation": ("Home",),
    "Profile": ("Home",),
}
TAPS = {
    "Home": ("banner", "product_card", "tab_bar"),
    "Search": ("search_field", "result_row", "filter_button"),
    "Product": ("photo", "size_picker", "buy_button"),
    "Cart": ("quantity_stepper", "checkout_button"),
    "Checkout": ("card_field", "pay_button"),
    "Confirmation": ("share_button",),
    "Profile": ("avatar", "settings_row"),
}
ACTIONS = dict.fromkeys(ONWARD, ("button_press",)) | {
    "Search": ("search",),
    "Product": ("add_to_cart", "button_press"),
    "Confirmation": ("purchase",),
}
SLOW_CALL = Call("GET", "/v2/recommendations?limit=20", 1900, 0.04)
CALLS = {
    "Home": (Call("GET", "/v2/feed?page=1", 180, 0.01), SLOW_CALL),
    "Search": (Call("GET", "/v2/search?q={q}", 320, 0.02),),
    "Product": (Call("GET", "/v2/products/{n}", 140, 0.01),),
    "Cart": (Call("POST", "/v2/cart/items", 210, 0.02),),
    "Checkout": (Call("POST", "/v2/checkout", 850, 0.08),),
    "Confirmation": (Call("GET", "/v2/orders/{n}", 160, 0.01),),
    "Profile": (Call("GET", "/v2/users/me", 110, 0.02),),
}
FAILURES = (
    (500, "Internal Server Error"),
    (503, "Service Unavailable"),
    (404, "Not Found"),
    (429, "Too Many Requests"),
    (None, "The request timed out"),
)


class Person(NamedTuple):
    """One user with one device; `user_id` is None for those who never sign in."""

    user_id: str | None
    device: str
    platform: str
    os_version: str
    network_type: str
    update_lag: int


class Crash(NamedTuple):
    """One crash as a device reports it."""

    message: str
    fatal: bool
    at: int


@dataclass
class Draft:
    """A made-up session with all that belongs to it."""

    row: Row
    events: list[Row]
    network: list[Row]
    device: str
    crash: Crash | None
    last_instant: int


def iso(instant: int) -> str:
    """Milliseconds since 1970 as the API writes them: `2026-01-15T10:00:00.000Z`."""
    seconds, thousandths = divmod(instant, 1000)
    minutes, seconds = divmod(seconds, 60)
    return f"{_minute(minutes)}:{seconds:02}.{thousandths:03}Z"


@lru_cache(maxsize=100_000)  # what happens in a session does so in a few minutes
def _minute(minutes: int) -> str:
    """Minutes since 1970 as text: `2026-01-15T10:00`."""
    return datetime.fromtimestamp(minutes * 60, UTC).isoformat()[:16]


def millis(moment: datetime | str) -> int:
    """Milliseconds since 1970 of a date-time, or of its text; UTC where no zone is given.

    Raises:
        ValueError: the text is no ISO 8601 date-time.
    """
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def failed(call: Row) -> bool:
    """Whether a network row is an error, which its session's `hasNetworkErrors` says."""
    status = call["statusCode"]
    return call["error"] is not None or status is None or status >= 400


@dataclass
class World:
    """One app, its releases and users, from which sessions are made up.

    `start` and `end` bound the time that releases are spread over (ms), `crash_groups`
    is how many different crash groups can happen (None: six per platform and version).
    """

    rng: random.Random
    people: int
    start: int
    end: int
    events_per_session: float
    network_per_session: float
    crash_groups: int | None

    def __post_init__(self) -> None:
        """Make up the releases, the users and what can crash."""
        self.releases = _releases(self.start, self.end)
        self._bad_version, _ = self.releases[len(self.releases) // 2]
        self._people = [self._person() for _ in range(self.people)]
        self.pool = self._crash_pool()

    def name(self, prefix: str) -> str:
        """A fresh id such as `usr_k3v9x0aa`."""
        return f"{prefix}_{''.join(self.rng.choices(BASE36, k=8))}"

    def session(
        self,
        start: int,
        *,
        until: int | None = None,
        clock_error: int = 0,
        empty: bool = False,
        endless: bool = False,
    ) -> Draft:
        """Make up the session that begins at `start` (true time, ms).

        It is still active when it would last beyond `until`, or when `endless`. Its
        device's clock is wrong by `clock_error` ms; such sessions do not crash, so that
        crash groups keep believable dates. An `empty` one has no events.
        """
        rng = self.rng
        # Few users make most of the sessions.
        person = self._people[int(len(self._people) * rng.random() ** 2.2)]
        version = self._version(person, start)
        begin = start + clock_error
        stamps = [] if empty or not self.events_per_session else self._stamps(begin)
        quiet = rng.randrange(2 * SECOND, 40 * SECOND)
        end = (stamps[-1] if stamps else begin) + quiet
        active = endless or (until is not None and end - clock_error > until)
        if until is not None:
            stamps = [stamp for stamp in stamps if stamp - clock_error <= until]
            end = min(end, until + clock_error)
        crash = None
        rate = BAD_RELEASE_CRASH_RATE if version == self._bad_version else CRASH_RATE
        if not (active or empty or clock_error) and rng.random() < rate:
            crash = self.draw_crash(person.platform, version, stamps[-1] if stamps else end)
        fatal = crash is not None and crash.fatal
        if fatal and stamps:
            end = stamps[-1]
        session_id = f"sess_{begin // 1000}_{''.join(rng.choices(BASE36, k=6))}"
        events: list[Row] = []
        self.journey(events, stamps[:-1] if crash else stamps)
        if crash and stamps:
            self.crash_event(events, crash)
        network = self._calls(session_id, events, begin, end)
        row = {
            "id": session_id,
            "userId": person.user_id,
            "status": "active" if active else "crashed" if fatal else "completed",
            "platform": person.platform,
            "osVersion": person.os_version,
            "appVersion": version,
            "networkType": person.network_type,
            "eventCount": len(events),
            "hasCrash": crash is not None,
            "hasNetworkErrors": any(map(failed, network)),
            "duration": None if active else end - begin,
            "startedAt": iso(begin),
            "endedAt": None if active else iso(end),
        }
        return Draft(row, events, network, person.device, crash, end - clock_error)

    def journey(self, events: list[Row], stamps: list[int]) -> None:
        """Append one event per instant of `stamps`, going on from where `events` ends."""
        rng = self.rng
        screen = self.screen(events)
        for stamp in stamps:
            chance = rng.random()
            if screen is None or chance < 0.5:
                onward = rng.choice(ONWARD[screen]) if screen else "Home"
                kind = "navigate"
                data: Row = {"from": screen, "to": onward}
                screen = onward
            elif chance < 0.8:
                target = rng.choice(TAPS[screen])
                kind, data = "tap", {"target": target, "screen": screen}
            else:
                action = rng.choice(ACTIONS[screen])
                properties = self._properties(action, screen)
                kind, data = "custom", {"name": action, "properties": properties}
            events.append(self._event(len(events), kind, stamp, data))

    def crash_event(self, events: list[Row], crash: Crash) -> None:
        """Append the event of a crash, or of an error that the app handled."""
        data = {"message": crash.message, "isFatal": crash.fatal}
        kind = "crash" if crash.fatal else "error"
        events.append(self._event(len(events), kind, crash.at, data))

    def call(self, session_id: str, screen: str, at: int, *, fails: bool | None) -> Row:
        """One network row; `fails` None leaves success to the endpoint's failure rate."""
        rng = self.rng
        method, path, latency, failures = rng.choice(CALLS[screen])
        if fails is None:
            fails = rng.random() < failures
        status, error = rng.choice(FAILURES) if fails else (200, None)
        duration = 30 * SECOND if status is None else round(latency * math.exp(rng.gauss(0, 0.4)))
        query = rng.choice(SEARCHES).replace(" ", "%20")
        return {
            "id": f"req_{rng.getrandbits(60):015x}",
            "sessionId": session_id,
            "method": method,
            "url": HOST + path.format(n=rng.randrange(1000, 9999), q=query),
            "statusCode": status,
            "duration": duration,
            "error": error,
            "timestamp": iso(at),
        }

    def group_status(self, version: str) -> str:
        """A triage status; groups of old versions are mostly resolved."""
        newest = version == self.releases[-1][0]
        shares = (70, 20, 5, 5) if newest else (30, 15, 45, 10)
        return self.rng.choices(STATUSES, shares)[0]

    @staticmethod
    def screen(events: list[Row]) -> str | None:
        """The screen that a journey is on, None before the first."""
        for event in reversed(events):
            if event["type"] == "navigate" and event["data"]["to"] in ONWARD:
                return str(event["data"]["to"])
        return None

    def _person(self) -> Person:
        rng = self.rng
        platform = rng.choices(tuple(PLATFORMS), PLATFORM_SHARES)[0]
        desktop = platform in {"macos", "windows"}
        networks = ("ethernet", "wifi") if desktop else ("wifi", "wifi", "cellular")
        return Person(
            None if rng.random() < 0.15 else self.name("usr"),
            self.name("dev"),
            platform,
            rng.choice(PLATFORMS[platform]),
            rng.choice(networks),
            round(rng.expovariate(1 / (4 * DAY))),
        )

    def _version(self, person: Person, at: int) -> str:
        for version, released in reversed(self.releases):
            if released + person.update_lag <= at:
                return version
        return self.releases[0][0]

    def _stamps(self, begin: int) -> list[int]:
        rng = self.rng
        stamps = [begin + rng.randrange(200, 1500)]
        for _ in range(_geometric(rng, self.events_per_session - 1)):
            gap = min(rng.expovariate(1 / (9 * SECOND)), 4 * MINUTE)
            stamps.append(stamps[-1] + SECOND // 2 + round(gap))
        return stamps

    def _crash_pool(self) -> dict[tuple[str, str], list[Crash]]:
        """What can crash, by platform and version: as many groups as asked for."""
        places = [(p, version) for version, _ in reversed(self.releases) for p in PLATFORMS]
        pool: dict[tuple[str, str], list[Crash]] = {}
        groups = self.crash_groups
        for number in range(len(places) * len(MESSAGES) if groups is None else groups):
            variant, place = divmod(number, len(places))
            line, kind = divmod(variant, len(MESSAGES))
            message, fatal = MESSAGES[kind]
            text = f"{message} (bundle.js:{1000 + 17 * line})" if line else message
            pool.setdefault(places[place], []).append(Crash(text, fatal, 0))
        return pool

    def draw_crash(self, platform: str, version: str, at: int) -> Crash | None:
        """One of the crashes that can happen there, None where none can."""
        candidates = self.pool.get((platform, version))
        if not candidates:
            return None
        kinds = len(MESSAGES)
        shares = [MESSAGE_SHARES[i % kinds] / (1 + i // kinds) for i in range(len(candidates))]
        return self.rng.choices(candidates, shares)[0]._replace(at=at)

    def _calls(self, session_id: str, events: list[Row], begin: int, end: int) -> list[Row]:
        rng = self.rng
        screens = [e["data"]["to"] for e in events if e["type"] == "navigate"] or ["Home"]
        stamps = sorted(
            rng.randint(begin, end) for _ in range(_geometric(rng, self.network_per_session))
        )
        return [self.call(session_id, rng.choice(screens), at, fails=None) for at in stamps]

    def _event(self, number: int, kind: str, at: int, data: Row) -> Row:
        return {
            "id": f"evt_{number + 1:03d}",
            "type": kind,
            "timestamp": iso(at),
            "sequenceNumber": number,
            "data": data,
        }

    def _properties(self, action: str, screen: str) -> Row:
        rng = self.rng
        price = rng.randrange(400, 25_000) / 100
        match action:
            case "search":
                return {"query": rng.choice(SEARCHES), "results": rng.randrange(60)}
            case "add_to_cart":
                return {"sku": f"SKU-{rng.randrange(1000, 9999)}", "price": price}
            case "purchase":
                return {"order": self.name("ord"), "value": price, "currency": "EUR"}
        return {"screen": screen.lower()}


def _releases(start: int, end: int) -> list[tuple[str, int]]:
    """Versions of the app and when they came out, one about every two weeks.

    The first is older than the data.
    """
    count = max(4, min(26, (end - start) // (14 * DAY)))
    step = (end - start) // count
    return [
        (f"2.{number // 2}.{number % 2}", start + (number * step if number else -90 * DAY))
        for number in range(count)
    ]


def _geometric(rng: random.Random, mean: float) -> int:
    """A number of things, 0 or more, `mean` on average."""
    if mean <= 0:
        return 0
    return int(math.log(1 - rng.random()) / math.log(mean / (1 + mean)))
