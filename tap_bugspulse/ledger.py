"""Which sessions were emitted, or their events fetched: fingerprints by day."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Mapping
from datetime import date
from hashlib import blake2b

import msgspec

from tap_bugspulse.replication import DAY

MAX_AHEAD = 1000  # sessions in the future of the run that are remembered
_ENTRY = struct.Struct("8s4s")
_encode = msgspec.json.Encoder(order="sorted").encode


def fingerprint(value: object) -> bytes:
    """Return four bytes that tell a value, anything JSON can write, from others."""
    return blake2b(_encode(value), digest_size=4).digest()


def session_key(session: str) -> bytes:
    """Return eight bytes that stand for the id of a session."""
    return blake2b(session.encode(), digest_size=8).digest()


class Ledger:
    """A fingerprint for each session that may still change, by the day it is filed under.

    A state holds one string a day, 16 characters a session.
    """

    def __init__(self, days: Mapping[date, bytes] | None = None) -> None:
        size = _ENTRY.size
        self._packed: dict[date, str] = {}
        self._days = {
            day: {text[i : i + 8]: text[i + 8 : i + size] for i in range(0, len(text), size)}
            for day, text in (days or {}).items()
        }

    def get(self, session: str, day: date) -> bytes | None:
        """Return the fingerprint of a session, which may be filed under another day."""
        key = session_key(session)
        known = self._days.get(day, {}).get(key)
        if known is None:
            known = next((one[key] for one in self._days.values() if key in one), None)
        return known

    def put(self, session: str, day: date, mark: bytes) -> None:
        """Note the fingerprint of a session filed under a day, and under no other."""
        key = session_key(session)
        for other, entries in self._days.items():
            if other != day and entries.pop(key, None) is not None:
                self._packed.pop(other, None)
        self._days.setdefault(day, {})[key] = mark
        self._packed.pop(day, None)

    def pack(self) -> dict[str, str]:
        """Return the ledger for a state; only days that changed are written anew."""
        for day, entries in self._days.items():
            if entries and day not in self._packed:
                content = b"".join(map(_ENTRY.pack, entries, entries.values()))
                self._packed[day] = base64.b64encode(content).decode()
        return {day.isoformat(): self._packed[day] for day in sorted(self._packed)}

    def prune(self, keep: Callable[[date], bool], today: date) -> int:
        """Forget the days that are not to be kept; return how much of the future, too."""
        for day in [day for day in self._days if not keep(day)]:
            del self._days[day]
            self._packed.pop(day, None)
        ahead = [
            (day, key) for day in sorted(self._days) if day > today + DAY for key in self._days[day]
        ]
        for day, key in ahead[MAX_AHEAD:]:
            del self._days[day][key]
            self._packed.pop(day, None)
        return len(ahead[MAX_AHEAD:])
