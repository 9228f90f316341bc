"""The one HTTP session of the tap: paced and patient."""

import contextlib
import math
import re
import threading
import time
import typing as t
from calendar import timegm
from collections import deque
from concurrent.futures import CancelledError, Future
from datetime import UTC, datetime
from email.utils import parsedate

import requests
from requests.adapters import HTTPAdapter
from singer_sdk.exceptions import FatalAPIError, RetriableAPIError
from typing_extensions import override

from tap_bugspulse.settings import Settings

RATE_WINDOW = 61 / 60  # of a minute: arrival times jitter at its edge
TOO_MANY = 429  # requests, as a status
MAX_TRIES, MAX_FAILING = 8, 5  # failures of one request, and minutes of them
LONGEST_ANSWER = 2  # times request_timeout, which is that of each read
MAX_REFUSED = 15  # minutes of nothing but 429
RESETS = ("Retry-After", "RateLimit-Reset", "X-RateLimit-Reset")  # seconds, a date, or since 1970
LONGEST_RETRY_AFTER = 86_400.0  # seconds; whoever runs the tap should hear of more
SECONDS_1970_TO_2001, MILLISECONDS_1970_TO_2001 = 1e9, 1e12
# What requests, urllib3 and OpenSSL say, and what it means: the first that comes up in an error.
REASONS = {
    "CERTIFICATE_VERIFY_FAILED": "the API's TLS certificate cannot be verified: check api_url, or "
    "point REQUESTS_CA_BUNDLE to the file with your company's certificates",
    "CA.certificate.bundle|X509": "the file of certificates that REQUESTS_CA_BUNDLE names "
    "cannot be read",
    "ProxyError": "no way through the proxy: check HTTPS_PROXY",
    "SSLError": "the TLS connection broke",
    "NameResolutionError": "the host's name is not known: check api_url",
    "NewConnectionError": "the host does not answer: check api_url and the network",
    "Timeout": "no answer in time",
    "ChunkedEncodingError": "the answer was cut short",
    "ContentDecodingError": "the answer cannot be decoded",
    "": "the connection broke",  # any other
}
HOPELESS = tuple(REASONS.values())[:2]  # trying again is of no use


class RefusedError(FatalAPIError):
    """The API refuses what was asked for: another request may well work."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Clock(t.NamedTuple):
    """The wall clock, in UTC, and the stopwatch the tap goes by; tests bring their own."""

    now: t.Callable[[], datetime] = lambda: datetime.now(UTC)
    seconds: t.Callable[[], float] = time.monotonic
    minute: float = 60.0  # seconds that one of the rate limit has


class Call(threading.Thread):
    """A request with all its tries, or one of them, in a thread that holds up no exit."""

    def __init__(self, job: t.Callable[[], requests.Response]) -> None:
        super().__init__(target=self._work, args=(job,), daemon=True)
        self.future: Future[requests.Response] = Future()
        self.notes: deque[str] = deque()  # why tries have failed
        self.is_sent = self._is_cancelled = False  # a try is on its way; no other is to be
        self._guard = threading.Lock()
        self.start()

    def _work(self, job: t.Callable[[], requests.Response]) -> None:
        try:
            self.future.set_result(job())
        except BaseException as error:  # noqa: BLE001 - raised where the result is taken
            self.future.set_exception(error)

    def cancel(self) -> bool:
        """Send no other try; return whether none is on its way, either."""
        with self._guard:
            self._is_cancelled = True
            return not self.is_sent

    def begin_try(self) -> None:
        """Note that a try is sent now, or raise CancelledError if nobody wants it."""
        with self._guard:
            if self._is_cancelled:
                raise CancelledError
            self.is_sent = True


class ApiSession(requests.Session):
    """Sends requests no faster than the API allows, all streams together."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self._settings = settings
        self._window = RATE_WINDOW * clock.minute
        self._turns: deque[float] = deque()  # when the requests of the last window were sent
        self._one_by_one = threading.Lock()  # turns come about in the order of asking
        self._on_their_way = threading.Semaphore(settings.concurrency)
        self.paused_until = -math.inf  # the stopwatch's reading from which all may send
        self._refused_since = math.inf  # since when all responses are 429
        # A prepared request knows nothing of proxy and CA variables by itself. All go to one
        # host, for which they are looked up once.
        self._environment = self.merge_environment_settings(settings.api_url, {}, None, None, None)
        self.mount(settings.api_url, HTTPAdapter(pool_maxsize=settings.concurrency))

    def _take_turn(self) -> None:
        """Wait until a request may be sent: at the set pace, and not during a pause."""
        with self._one_by_one:
            is_full = len(self._turns) >= self._settings.requests_per_minute
            free_at = self._turns.popleft() + self._window if is_full else -math.inf
            while (now := self.clock.seconds()) < (until := max(free_at, self.paused_until)):
                time.sleep(until - now)
            t.cast("Call", threading.current_thread()).begin_try()
            self._turns.append(now)

    @override
    def send(self, request: requests.PreparedRequest, **kwargs: t.Any) -> requests.Response:
        """Return the answer, or raise FatalAPIError; RequestException if another try may help."""
        timeout, send = self._settings.request_timeout, super().send
        options = {**kwargs, **self._environment, "timeout": timeout}
        try:
            with self._on_their_way:
                self._take_turn()
                # Each read has a timeout, which an answer that comes byte by byte never meets:
                # the thread of such a try is left behind.
                answer = Call(lambda: send(request, **options)).future
                response = answer.result(LONGEST_ANSWER * timeout)
        except ValueError:
            # Not the error's own text, which may hold a header or a proxy's password.
            raise FatalAPIError(
                "no request can be made: check HTTPS_PROXY, api_url and user_agent"
            ) from None
        except OSError as error:  # those of requests are, too
            if (why := reason(error)) in HOPELESS:
                raise FatalAPIError(why) from None
            raise requests.exceptions.ConnectionError(error) from None
        if response.status_code == TOO_MANY:
            self._pause(response)
        else:
            self._refused_since = math.inf
        return response

    def _pause(self, response: requests.Response) -> None:
        """Pause as a 429 response asks, or raise FatalAPIError where that leads nowhere."""
        now = self.clock.seconds()
        self._refused_since = min(self._refused_since, now)
        refused = now - self._refused_since
        asked = self._asked_by(response)
        why = ""
        if asked > LONGEST_RETRY_AFTER:
            why = "the API asks to wait for more than a day. Run again after that"
        elif refused >= MAX_REFUSED * self.clock.minute:
            why = f"nothing else for {refused:.0f} s. Is the key used elsewhere?"
        if why:
            raise FatalAPIError(f"429 {response.reason}: {why}; the next run goes on here")
        # Where no wait is asked for, asking at once would go on for ever.
        self.paused_until = max(self.paused_until, now + max(asked, self.clock.minute / 60))

    def _asked_by(self, response: requests.Response) -> float:
        """Return the seconds that a 429 response asks to wait, a minute where it does not."""
        now = self.clock.now().timestamp()
        for name in RESETS:
            with contextlib.suppress(ValueError, OverflowError):
                written = response.headers.get(name, "")
                date = parsedate(written)  # HTTP writes it in GMT
                number = timegm(date) if date else float(written)
                number = number / 1000 if number > MILLISECONDS_1970_TO_2001 else number
                seconds = number - now if date or number > SECONDS_1970_TO_2001 else number
                if math.isfinite(seconds):
                    return max(0.0, seconds)
        return self._window


def patience(path: str, session: ApiSession) -> t.Generator[float, Exception, None]:
    """Yield the seconds to wait after each failure of a request, which is sent in.

    They double up to a minute. After eight failures, or five minutes of them, it raises
    RetriableAPIError: another run may try again. A 429 is none, its pause is waited for.
    """
    failures: list[float] = []  # when they were
    wait = 0.0
    while True:
        error = yield wait
        now, response = session.clock.seconds(), getattr(error, "response", None)
        if response is not None and response.status_code == TOO_MANY:
            wait = max(0.0, session.paused_until - now)
            continue
        failures.append(now)
        passed = now - failures[0]
        left = MAX_FAILING * session.clock.minute - passed
        if len(failures) >= MAX_TRIES or left <= 0:
            raise RetriableAPIError(
                f"gave up on {path} after {len(failures)} failures in {passed:.0f} s, "
                f"the last one: {reason(error)}",
                response,
            ) from None
        wait = min(left, session.clock.minute / 60 * min(60.0, 2.0 ** len(failures)))


def reason(error: object) -> str:
    """Return in a few words why a request failed, without its address."""
    if not isinstance(error, OSError):  # those of requests are; ours say it themselves
        return str(error)
    text = f"{type(error).__name__} {error!r}"
    return next(words for signs, words in REASONS.items() if re.search(signs, text))
