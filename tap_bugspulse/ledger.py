"""Which sessions were emitted, or their events fetched: fingerprints by day."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import date
from hashlib import blake2b

import msgspec

from tap_bugspulse.replication import DAY, FINGERPRINT

MAX_AHEAD = 1000  # sessions in the future of the run that are remembered
KEY = 8  # bytes that stand for the id of a session
_encode = msgspec.json.Encoder(order="sorted").encode


def fingerprint(value: object) -> bytes:
    """Return four bytes that tell a value, anything JSON can write, from others."""
    return blake2b(_encode(value), digest_size=FINGERPRINT - KEY).digest()


def _key(session: str) -> bytes:
    return blake2b(session.encode(), digest_size=KEY).digest()


class Ledger:
    """A fingerprint for each session that may still change, and the day it is filed under.

    A state holds one string a day, 12 bytes or 16 characters a session.
    """

    def __init__(self, days: Mapping[date, bytes] | None = None) -> None:
        self._entries = {
            text[i : i + KEY]: (day, text[i + KEY : i + FINGERPRINT])
            for day, text in (days or {}).items()
            for i in range(0, len(text), FINGERPRINT)
        }

    def get(self, session: str) -> bytes | None:
        """Return the fingerprint of a session."""
        return self._entries.get(_key(session), (None, None))[1]

    def put(self, session: str, day: date, mark: bytes) -> None:
        """Note the fingerprint of a session filed under a day, and under no other."""
        self._entries[_key(session)] = (day, mark)

    def pack(self) -> dict[date, bytes]:
        """Return the ledger for a bookmark."""
        days: dict[date, bytearray] = defaultdict(bytearray)
        for key, (day, mark) in self._entries.items():
            days[day] += key + mark
        return {day: bytes(days[day]) for day in sorted(days)}

    def prune(self, keep: Callable[[date], bool], today: date) -> int:
        """Forget the days that are not to be kept; return how much of the future, too."""
        self._entries = {key: one for key, one in self._entries.items() if keep(one[0])}
        ahead = sorted((day, key) for key, (day, _) in self._entries.items() if day > today + DAY)
        for _, key in ahead[MAX_AHEAD:]:
            del self._entries[key]
        return len(ahead[MAX_AHEAD:])
