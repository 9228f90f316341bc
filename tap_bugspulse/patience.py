"""How often and how long a request that fails is tried again."""

from __future__ import annotations

import typing as t
from datetime import timedelta
from http import HTTPStatus

import requests
from singer_sdk.exceptions import FatalAPIError, RetriableAPIError

from tap_bugspulse.session import LONGEST_TOLD, RATE_WINDOW, answered_at, told_wait

if t.TYPE_CHECKING:
    from tap_bugspulse.run import Clock

MOST_FAILING = 5  # minutes


class PatienceError(FatalAPIError):
    """A request failed again and again, for longer than a rate window lasts."""


class Patience:
    """How long to wait after each failure of one request, and when to give up.

    Waits double up to a minute. Eight failures, or five minutes of them, are enough;
    an answer 429 is waited out for as long as it tells and does not count.
    """

    def __init__(self, path: str, tries: int, minute: float, clock: Clock) -> None:
        """Begin before the first failure of a request to a path."""
        self._path = path
        self._tries = tries
        self._minute = minute
        self._clock = clock
        self._failures = 0
        self._refusals = 0  # answers 429 in a row
        self._failing_since: float | None = None

    def wait_after(self, error: Exception) -> float:
        """Give the seconds to wait after a failure.

        Raises:
            PatienceError: If it was the last one that is tolerated.
            FatalAPIError: If the API tells to wait for more than a day.
        """
        now = self._clock.seconds()
        response = error.response if isinstance(error, RetriableAPIError) else None
        # An answer that was asked for ahead may have come some time ago.
        age = now - answered_at(error if response is None else response, now)
        if response is not None and response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
            wait = max(0.0, self._wait_told(response, age) - age)
            if self._failing_since is not None:
                self._failing_since += wait  # waiting as told is no failing
            return wait
        self._refusals = 0
        if self._failing_since is None:
            self._failing_since = now
        self._failures += 1
        failing = now - self._failing_since
        if self._failures >= self._tries or failing >= MOST_FAILING * self._minute:
            msg = (
                f"gave up on {self._path} after {self._failures} failures in "
                f"{failing:.0f} s, the last one: {reason(error)}"
            )
            raise PatienceError(msg) from None
        wait = self._minute / 60 * min(60.0, 2.0**self._failures) - age
        return max(0.0, min(wait, MOST_FAILING * self._minute - failing))

    def _wait_told(self, response: requests.Response, age: float) -> float:
        told = told_wait(response, self._clock.now() - timedelta(seconds=age))
        if told is None:
            return self._minute * RATE_WINDOW
        if told > LONGEST_TOLD:
            msg = (
                f"429 {response.reason} for {self._path}: the API tells to wait for "
                "more than a day. Run again after that; the next run goes on here"
            )
            raise FatalAPIError(msg)
        self._refusals += 1
        # Refused again after no wait at all: asking at once would go on for ever.
        if told == 0 and self._refusals > 1:
            return self._minute / 60 * min(60.0, 2.0 ** min(6, self._refusals - 1))
        return told


def reason(error: object) -> str:
    """Say in a few words why a request failed, without its address."""
    for kind, words in REASONS:
        if isinstance(error, kind):
            return words
    if isinstance(error, requests.exceptions.ConnectionError):
        text = repr(error)
        for sign, words in SIGNS:
            if sign in text:
                return words
        return "the connection broke"
    return str(error)


REASONS = (
    (requests.exceptions.ProxyError, "no way through the proxy: check HTTPS_PROXY"),
    (requests.exceptions.SSLError, "the TLS connection broke"),
    (requests.exceptions.Timeout, "no answer in time"),
    (requests.exceptions.ChunkedEncodingError, "the answer was cut short"),
    (requests.exceptions.ContentDecodingError, "the answer cannot be decoded"),
    (ConnectionResetError, "the connection broke"),
)
# What urllib3 wraps in an error of no kind of its own.
SIGNS = (
    ("NameResolutionError", "the host's name is not known: check api_url"),
    ("NewConnectionError", "the host does not answer: check api_url and the network"),
)
