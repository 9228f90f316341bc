"""The one HTTP session of the tap: its pace, its retries and its time limits."""

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

RATE_WINDOW = 61 / 60  # of a minute: a bit longer, as requests do not arrive evenly
TOO_MANY = 429  # the status "Too Many Requests"
MAX_TRIES, MAX_FAILING = 8, 5  # tries of one request that fail, and minutes from first to last
LONGEST_ANSWER = 2  # times request_timeout, which limits each read, not the whole answer
MAX_REFUSED = 15  # minutes of nothing but 429
RESETS = ("Retry-After", "RateLimit-Reset", "X-RateLimit-Reset")  # seconds, Unix time or a date
LONGEST_RETRY_AFTER = 86_400.0  # seconds; a longer wait ends the run with an error
UNIX_TIME, UNIX_TIME_MS = 1e9, 1e12  # larger numbers are a point in time, not a wait
# Patterns in errors of requests, urllib3 and OpenSSL, and what they mean. The first match counts.
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
HOPELESS = tuple(REASONS.values())[:2]  # a retry is of no use


class RefusedError(FatalAPIError):
    """The API refuses this request; other requests may still work."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Clock(t.NamedTuple):
    """The wall clock in UTC, and the monotonic clock that measures waits; tests have their own."""

    now: t.Callable[[], datetime] = lambda: datetime.now(UTC)
    seconds: t.Callable[[], float] = time.monotonic
    minute: float = 60.0  # seconds in a minute of the rate limit


class Call(threading.Thread):
    """A request with all its tries, or a single try, in a thread that never delays the exit."""

    def __init__(self, job: t.Callable[[], requests.Response]) -> None:
        super().__init__(target=self._work, args=(job,), daemon=True)
        self.future: Future[requests.Response] = Future()
        self.notes: deque[str] = deque()  # why tries have failed
        self.is_sent = self._is_cancelled = False  # a try is in flight; no further try may start
        self._guard = threading.Lock()
        self.start()

    def _work(self, job: t.Callable[[], requests.Response]) -> None:
        try:
            self.future.set_result(job())
        except BaseException as error:  # noqa: BLE001 - raised where the result is taken
            self.future.set_exception(error)

    def cancel(self) -> bool:
        """Allow no further try; return whether none is in flight, either."""
        with self._guard:
            self._is_cancelled = True
            return not self.is_sent

    def begin_try(self) -> None:
        """Note that a try is sent now, or raise CancelledError if the call is cancelled."""
        with self._guard:
            if self._is_cancelled:
                raise CancelledError
            self.is_sent = True


class ApiSession(requests.Session):
    """Sends the requests of all streams, together no faster than the API allows."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self._settings = settings
        self._window = RATE_WINDOW * clock.minute
        self._sent_at: deque[float] = deque()  # times of the requests in the last rate window
        self._turn_lock = threading.Lock()  # one thread at a time waits for its turn
        self._in_flight = threading.Semaphore(settings.concurrency)
        self.paused_until = -math.inf  # by the monotonic clock: until then, nothing is sent
        self._refused_since = math.inf  # when the first 429 came after any other status
        # Prepared requests ignore the environment's proxy and CA bundle. All of them go to one
        # host, so these are looked up once.
        self._environment = self.merge_environment_settings(settings.api_url, {}, None, None, None)
        self.mount(settings.api_url, HTTPAdapter(pool_maxsize=settings.concurrency))

    def _wait_for_turn(self) -> None:
        """Wait until a request may be sent: at the set pace, and not during a pause."""
        with self._turn_lock:
            is_full = len(self._sent_at) >= self._settings.requests_per_minute
            free_at = self._sent_at.popleft() + self._window if is_full else -math.inf
            while (now := self.clock.seconds()) < (until := max(free_at, self.paused_until)):
                time.sleep(until - now)
            t.cast("Call", threading.current_thread()).begin_try()
            self._sent_at.append(now)

    @override
    def send(self, request: requests.PreparedRequest, **kwargs: t.Any) -> requests.Response:
        """Return the response, or raise FatalAPIError; RequestException if a retry may help."""
        timeout, send = self._settings.request_timeout, super().send
        options = {**kwargs, **self._environment, "timeout": timeout}
        try:
            with self._in_flight:
                self._wait_for_turn()
                # An answer that comes byte by byte never runs into the timeout of a read. So the
                # whole answer has a limit, too; the thread of a try that exceeds it is left alone.
                answer = Call(lambda: send(request, **options)).future
                response = answer.result(LONGEST_ANSWER * timeout)
        except ValueError:
            # Not the error's own text: it may hold a header or the password of a proxy.
            raise FatalAPIError(
                "no request can be made: check HTTPS_PROXY, api_url and user_agent"
            ) from None
        except OSError as error:  # or an error of requests, a subclass
            if (why := reason(error)) in HOPELESS:
                raise FatalAPIError(why) from None
            raise requests.exceptions.ConnectionError(error) from None
        if response.status_code == TOO_MANY:
            self._pause(response)
        else:
            self._refused_since = math.inf
        return response

    def _pause(self, response: requests.Response) -> None:
        """Pause as a 429 response asks, or raise FatalAPIError if there is no point in waiting."""
        now = self.clock.seconds()
        self._refused_since = min(self._refused_since, now)
        refused = now - self._refused_since
        wait = self._retry_after(response)
        why = ""
        if wait > LONGEST_RETRY_AFTER:
            why = "the API asks to wait for more than a day. Run again after that"
        elif refused >= MAX_REFUSED * self.clock.minute:
            why = f"nothing else for {refused:.0f} s. Is the key used elsewhere?"
        if why:
            raise FatalAPIError(f"429 {response.reason}: {why}; the next run goes on here")
        # At least a second: a wait of 0 would send the same request again without end.
        self.paused_until = max(self.paused_until, now + max(wait, self.clock.minute / 60))

    def _retry_after(self, response: requests.Response) -> float:
        """Return how many seconds a 429 response asks to wait, a minute if it does not say."""
        now = self.clock.now().timestamp()
        for name in RESETS:
            with contextlib.suppress(ValueError, OverflowError):
                written = response.headers.get(name, "")
                date = parsedate(written)  # always in GMT
                number = timegm(date) if date else float(written)
                number = number / 1000 if number > UNIX_TIME_MS else number
                seconds = number - now if date or number > UNIX_TIME else number
                if math.isfinite(seconds):
                    return max(0.0, seconds)
        return self._window


def patience(path: str, session: ApiSession) -> t.Generator[float, Exception, None]:
    """Yield the seconds to wait after each error of a request; the errors are sent in.

    They double up to a minute. After eight failures, or five minutes of them, it raises
    RetriableAPIError: the next run may try again. A 429 is not a failure, it only adds a wait.
    """
    failures: list[float] = []  # their times
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
    """Return in a few words why a request failed, without its URL."""
    if not isinstance(error, OSError):  # an error of the tap, not of requests
        return str(error)
    text = f"{type(error).__name__} {error!r}"
    return next(words for pattern, words in REASONS.items() if re.search(pattern, text))
