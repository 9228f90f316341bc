"""The one HTTP session of the tap: paced, asking ahead, and true to its host."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
import typing as t
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import requests
import urllib3.exceptions
from requests_ratelimiter import InMemoryBucket, Limiter, LimiterAdapter, Rate
from singer_sdk.exceptions import FatalAPIError
from typing_extensions import override

if t.TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterator

    from tap_bugspulse.run import Clock
    from tap_bugspulse.settings import Settings

    Then = Callable[[requests.Response | Exception], None]

RATE_WINDOW = 61 / 60  # of a minute: arrival times jitter at its edge
CHUNK = 1 << 16  # bytes
LONG = 5.0  # seconds of waiting for all that a person should know of
TICK = 1.0  # seconds after which a wait looks for signals and deadlines
LONGEST_TOLD = 86_400.0  # seconds; whoever runs the tap should hear of more
SECONDS_1970_TO_2001 = 1e9
MILLISECONDS_1970_TO_2001 = 1e12
# What urllib3, OpenSSL and requests say where trying again is of no use.
UNTRUSTED = (
    "the API's TLS certificate cannot be verified: check api_url, or point "
    "REQUESTS_CA_BUNDLE to the file with your company's certificates"
)
UNREADABLE = "the file of certificates that REQUESTS_CA_BUNDLE names cannot be read"
HOPELESS = (
    ("CERTIFICATE_VERIFY_FAILED", UNTRUSTED),
    ("TLS CA certificate bundle", UNREADABLE),
    ("NO_CERTIFICATE_OR_CRL_FOUND", UNREADABLE),
    ("[X509] PEM lib", UNREADABLE),
)


class ApiSession(requests.Session):
    """Sends requests no faster than the API allows, all streams together.

    Attempts are made by threads of the session. :meth:`ask` starts one whose answer is
    wanted soon, and :meth:`send` waits for it, or starts one where none was started:
    who sends need not know. Answers are taken in the order in which they are wanted, so
    rows come out as if one request were made after the other.
    """

    def __init__(
        self, settings: Settings, minute: float, clock: Clock, logger: logging.Logger
    ) -> None:
        """Pace to a number of requests in a minute that takes some seconds."""
        super().__init__()
        self._clock = clock
        self._logger = logger
        self._has_said = False
        self._timeout = settings.request_timeout
        self._concurrency = settings.concurrency
        # A prepared request knows nothing of proxy and CA variables by itself. All go to
        # one host, for which they are looked up once.
        self._environment = self.merge_environment_settings(
            settings.api_url, proxies={}, stream=True, verify=None, cert=None
        )
        self._asked: dict[requests.PreparedRequest, Attempt] = {}
        self._to_do: queue.SimpleQueue[Attempt | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Attempt] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)  # threads that wait for something to do
        self._is_closed = False
        self._minute = minute
        rate = Rate(settings.requests_per_minute, round(minute * RATE_WINDOW * 1000))
        self._turns = Turns(InMemoryBucket([rate]), clock)
        # The adapter paces every attempt, retries included. It must not fill its bucket
        # on an answer 429 by itself: what the answer tells is waited for instead.
        adapter = LimiterAdapter(
            limiter=self._turns,
            per_host=False,
            limit_statuses=(),
            pool_maxsize=self._concurrency,
        )
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    # --- Asking ahead ------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether one more request may be asked ahead."""
        return self._concurrency > 1 and len(self._asked) < self._concurrency

    def ask(self, request: requests.PreparedRequest, then: Then | None = None) -> None:
        """Start an attempt at a request that is sent soon, if there is room.

        Args:
            request: What is to be sent.
            then: What to do with its answer as soon as it has come and others are waited
                for, such as to ask for what comes after it.
        """
        if self.has_room:
            self._asked[request] = self._start(request, then)

    def take_back(self, request: requests.PreparedRequest) -> bool:
        """Give up a request unless it is on its way; tell whether it was given up.

        One that an answer 429 has refused is not on its way any more.
        """
        attempt = self._asked.get(request)
        if attempt is not None and not attempt.give_up() and not attempt.is_refused():
            return False
        self._asked.pop(request, None)
        return True

    def forget(self, request: requests.PreparedRequest) -> None:
        """Give up a request, be it on its way or not."""
        attempt = self._asked.pop(request, None)
        if attempt is not None:
            attempt.give_up()

    @override
    def send(self, request: requests.PreparedRequest, **kwargs: t.Any) -> requests.Response:
        """Give the whole answer to a request, within ``request_timeout`` seconds.

        Raises:
            FatalAPIError: If no other try can help, such as where the host's
                certificate cannot be trusted.
            requests.RequestException: If there is no whole answer in time.
        """
        attempt = self._asked.pop(request, None) or self._start(request)
        self._go_on_with_others()
        while not attempt.done.is_set():
            self._go_on_with_others(wait=TICK)
            self._say_why_it_waits()
            # Each read has a timeout of its own, which an answer that comes byte by
            # byte never meets. The thread is left behind: it holds up nothing.
            if self._clock.seconds() > attempt.sent_at + self._timeout:
                msg = "the answer took too long"
                raise requests.exceptions.ReadTimeout(msg)
        vars(attempt.outcome)["answered_at"] = attempt.ended_at
        if isinstance(attempt.outcome, Exception):
            raise attempt.outcome
        return attempt.outcome

    def _go_on_with_others(self, wait: float = 0.0) -> None:
        """Do what is to be done with answers that have come, after a wait for one."""
        with contextlib.suppress(queue.Empty):
            while True:
                attempt = self._done.get(block=wait > 0, timeout=wait or None)
                wait = 0.0
                if attempt.then is not None and attempt.request in self._asked:
                    attempt.then(attempt.outcome)

    def _say_why_it_waits(self) -> None:
        wait = self._turns.held_for()
        if wait > LONG and not self._has_said:
            self._logger.info("waiting %.0f s, as an answer 429 has told", wait)
        self._has_said = wait > 0

    def _start(
        self, request: requests.PreparedRequest, then: Then | None = None
    ) -> Attempt:
        attempt = Attempt(request, then)
        if not self._idle.acquire(blocking=False):
            # A daemon: the end of the process waits for none. One whose answer came too
            # late is left behind until it comes.
            threading.Thread(target=self._work, daemon=True).start()
        self._to_do.put(attempt)
        return attempt

    @override
    def close(self) -> None:
        """Close all connections and let the threads end, once they are idle."""
        super().close()
        self._is_closed = True
        while self._idle.acquire(blocking=False):
            self._to_do.put(None)

    # --- One attempt, in a thread ------------------------------------------------------

    def _work(self) -> None:
        """Make one attempt after the other, until the session is closed."""
        is_wanted = True
        while is_wanted and (attempt := self._to_do.get()):
            is_wanted = self._make(attempt)
            del attempt  # an idle thread holds no answer

    def _make(self, attempt: Attempt) -> bool:
        """Make an attempt and say that it is done; tell whether another may come."""
        _here.attempt = attempt
        try:
            attempt.outcome = self._exchange(attempt.request)
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            attempt.outcome = error
        del _here.attempt
        attempt.ended_at = self._clock.seconds()
        is_wanted = not self._is_closed
        if is_wanted:
            self._idle.release()
        attempt.done.set()
        self._done.put(attempt)  # wakes whoever waits, for this one or for another
        return is_wanted

    def _exchange(self, request: requests.PreparedRequest) -> requests.Response:
        """Send a request and read its whole answer."""
        try:
            response = super().send(
                request, **self._environment, timeout=self._timeout, allow_redirects=False
            )
        except ValueError:
            # Not the error's own text, which may hold a header or a proxy's password.
            msg = "no request can be made: check HTTPS_PROXY, api_url and user_agent"
            raise FatalAPIError(msg) from None
        except OSError as error:  # those of requests are, too
            for sign, msg in HOPELESS:
                if sign in str(error):
                    raise FatalAPIError(msg) from None
            if isinstance(error, requests.RequestException):
                raise
            raise requests.exceptions.ConnectionError(error) from None
        self._read(response)
        if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
            told = told_wait(response, self._clock.now())
            self._turns.hold(self._minute * RATE_WINDOW if told is None else told)
        return response

    def _read(self, response: requests.Response) -> None:
        """Read the body; each read has a timeout of its own, and all have a deadline."""
        deadline = self._clock.seconds() + self._timeout
        body = Body()
        try:
            while chunk := response.raw.read1(CHUNK, decode_content=True):
                body.append(chunk)
                if self._clock.seconds() > deadline:
                    msg = "the answer took too long"
                    raise requests.exceptions.ReadTimeout(msg)
        except urllib3.exceptions.ReadTimeoutError as error:
            raise requests.exceptions.ReadTimeout(error) from None
        except urllib3.exceptions.DecodeError as error:
            raise requests.exceptions.ContentDecodingError(error) from None
        except urllib3.exceptions.HTTPError as error:
            raise requests.exceptions.ChunkedEncodingError(error) from None
        finally:
            response.close()
        response.raw = body


class Body(list[bytes]):
    """The parts of a body that has been read, for its response to put together."""

    def stream(self, *_: t.Any, **__: t.Any) -> Iterator[bytes]:
        """Give the parts as they are, and not copied piece by piece, as of a file."""
        return iter(self)

    def close(self) -> None:
        """Do nothing: the connection is free already."""


_here = threading.local()  # the attempt that a thread makes


class Attempt:
    """One attempt at a request, and its outcome once it is done."""

    outcome: requests.Response | Exception

    def __init__(self, request: requests.PreparedRequest, then: Then | None) -> None:
        """Prepare the attempt; ``sent_at``, ``ended_at`` are readings of the stopwatch."""
        self.request = request
        self.then = then
        self.done = threading.Event()
        self.sent_at = self.ended_at = math.inf
        self._given_up = False
        self._turn = threading.Lock()

    def give_up(self) -> bool:
        """Keep the request from being sent; False if it is on its way already."""
        with self._turn:
            self._given_up = True
            return math.isinf(self.sent_at)

    def is_refused(self) -> bool:
        """Tell whether it was answered with 429."""
        status = getattr(self.outcome, "status_code", None) if self.done.is_set() else None
        return status == HTTPStatus.TOO_MANY_REQUESTS

    def is_given_up(self) -> bool:
        """Tell whether nobody waits for the answer any more."""
        return self._given_up

    def begin(self, seconds: float) -> None:
        """Note that the request is sent now.

        Raises:
            requests.RequestException: If nobody waits for its answer any more.
        """
        with self._turn:
            if self._given_up:
                msg = "given up"
                raise requests.RequestException(msg)
            self.sent_at = seconds


class Turns(Limiter):
    """Gives each attempt its turn: no faster than the pace, and none while all wait."""

    def __init__(self, bucket: InMemoryBucket, clock: Clock) -> None:
        """Begin with the whole allowance of a window."""
        super().__init__(bucket)
        self._clock = clock
        self._one_by_one = threading.Lock()  # turns come about in the order of asking
        self._held_until = -math.inf

    def hold(self, seconds: float) -> None:
        """Let nobody send for some seconds, as an answer 429 has told."""
        # More than a day is an error, said by whoever takes that answer.
        if seconds <= LONGEST_TOLD:
            self._held_until = max(self._held_until, self._clock.seconds() + seconds)

    def held_for(self) -> float:
        """Give the seconds for which nobody may send, 0 or less where all may."""
        return self._held_until - self._clock.seconds()

    @override
    def try_acquire(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        attempt: Attempt = _here.attempt
        with self._one_by_one:
            # A turn that comes while all are told to wait is lost, and another is taken.
            acquired = attempt.is_given_up() or super().try_acquire(*args, **kwargs)
            while (wait := self.held_for()) > 0:
                time.sleep(wait)
                acquired = super().try_acquire(*args, **kwargs)
            attempt.begin(self._clock.seconds())
        return acquired


# --- What an answer 429 tells -------------------------------------------------------


def answered_at(outcome: requests.Response | Exception, now: float) -> float:
    """Give the stopwatch's reading when an attempt had ended, ``now`` if not known."""
    return float(vars(outcome).get("answered_at", now))


def told_wait(response: requests.Response, now: datetime) -> float | None:
    """Give the seconds that an answer 429 tells to wait, None where it does not.

    ``Retry-After`` holds seconds or an HTTP date; a reset header holds seconds or the
    instant as seconds since 1970.
    """
    headers = response.headers
    told = headers.get("Retry-After", "")
    seconds = _number(told)
    if seconds is not None:
        return max(0.0, seconds)
    date = _http_date(told)
    if date is not None:
        return max(0.0, (date - now).total_seconds())
    for name in ("RateLimit-Reset", "X-RateLimit-Reset"):
        reset = _number(headers.get(name, ""))
        if reset is not None:
            if reset > MILLISECONDS_1970_TO_2001:
                reset /= 1000
            is_instant = reset > SECONDS_1970_TO_2001
            return max(0.0, reset - now.timestamp() if is_instant else reset)
    return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _http_date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
