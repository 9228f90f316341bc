"""The one HTTP session of the tap: paced and patient."""

from __future__ import annotations

import contextlib
import math
import threading
import time
import typing as t
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import requests
from requests.adapters import HTTPAdapter
from singer_sdk.exceptions import FatalAPIError
from typing_extensions import override

from tap_bugspulse.settings import Settings

RATE_WINDOW = 61 / 60  # of a minute: arrival times jitter at its edge
TOO_MANY = HTTPStatus.TOO_MANY_REQUESTS
MAX_TRIES = 8
MAX_FAILING = 5  # minutes of failures of one request
LONGEST_ANSWER = 2  # times request_timeout, which is that of each read
MAX_REFUSED = 15  # minutes of nothing but 429
LONGEST_RETRY_AFTER = 86_400.0  # seconds; whoever runs the tap should hear of more
SECONDS_1970_TO_2001, MILLISECONDS_1970_TO_2001 = 1e9, 1e12
# What urllib3, OpenSSL and requests say where trying again is of no use.
UNTRUSTED = (
    "the API's TLS certificate cannot be verified: check api_url, or point "
    "REQUESTS_CA_BUNDLE to the file with your company's certificates"
)
UNREADABLE = "the file of certificates that REQUESTS_CA_BUNDLE names cannot be read"
HOPELESS = {
    "CERTIFICATE_VERIFY_FAILED": UNTRUSTED,
    "TLS CA certificate bundle": UNREADABLE,
    "NO_CERTIFICATE_OR_CRL_FOUND": UNREADABLE,
    "[X509] PEM lib": UNREADABLE,
}
# What the names of errors of requests and urllib3 mean, the first that comes up in one.
REASONS = {
    "ProxyError": "no way through the proxy: check HTTPS_PROXY",
    "SSLError": "the TLS connection broke",
    "NameResolutionError": "the host's name is not known: check api_url",
    "NewConnectionError": "the host does not answer: check api_url and the network",
    "Timeout": "no answer in time",
    "ChunkedEncodingError": "the answer was cut short",
    "ContentDecodingError": "the answer cannot be decoded",
    "": "the connection broke",  # any other
}


class PatienceError(FatalAPIError):
    """A request failed again and again, for longer than a rate window lasts."""


class UnreachableError(PatienceError):
    """The same, and the last time the API did not even answer with an error."""


class RefusedError(FatalAPIError):
    """The API refuses what was asked for: another request may well work."""


class NotFoundError(RefusedError):
    """The API does not know what was asked for."""


class BadRequestError(RefusedError):
    """The API cannot make sense of what was asked for."""


class Clock:
    """The wall clock and the stopwatch the tap goes by; tests bring their own."""

    def now(self) -> datetime:
        """Return the current instant, in UTC."""
        return datetime.now(UTC)

    def seconds(self) -> float:
        """Return the reading of a stopwatch, in seconds."""
        return time.monotonic()


class Call(threading.Thread):
    """One request on its way, with all the tries that it takes.

    ``future`` has the response in the end. ``sent_at`` is the stopwatch's reading when the
    current try was sent, None while none is; ``notes`` say why others failed.
    """

    def __init__(
        self, stream: str, job: Callable[[], requests.Response], *, retries: bool = True
    ) -> None:
        super().__init__(target=self._work, daemon=True)
        self.stream = stream
        self.job = job
        self.retries = retries
        self.future: Future[requests.Response] = Future()
        self.sent_at: float | None = None
        self.notes: deque[str] = deque()
        self._is_cancelled = False
        self._places: threading.Semaphore | None = None  # where it has one, while it is sent
        self._guard = threading.Lock()
        self.start()

    def _work(self) -> None:
        try:
            self.future.set_result(self.job())
        except BaseException as error:  # noqa: BLE001 - raised where the result is taken
            self.future.set_exception(error)

    def cancel(self, *, if_unsent: bool = False) -> bool:
        """Return whether the request is not sent any more; ``if_unsent`` leaves one on its way."""
        with self._guard:
            is_waiting = self.sent_at is None and not self.future.done()
            self._is_cancelled = is_waiting or not if_unsent
            return self._is_cancelled

    def begin_try(self, seconds: float) -> None:
        """Note that a try is sent now, or raise CancelledError if nobody wants it."""
        with self._guard:
            if self._is_cancelled:
                raise CancelledError
            self.sent_at = seconds

    def enter(self, places: threading.Semaphore, seconds: float) -> None:
        """Take one of the places of those that are on their way, or go without after a while."""
        # Those who hold them for longer than any answer takes will hold them for ever.
        if places.acquire(timeout=seconds):
            self._places = places

    def leave(self) -> None:
        """Leave it to another, once; the answer may never end."""
        with self._guard:
            places, self._places = self._places, None
        if places is not None:
            places.release()

    def end_try(self, why: str) -> None:
        """Leave a note why a try has failed, for whoever waits."""
        self.sent_at = None
        self.notes.append(why)


class ApiSession(requests.Session):
    """Sends requests no faster than the API allows, all streams together."""

    def __init__(self, settings: Settings, minute: float, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.minute = minute
        self._settings = settings
        self._turns: deque[float] = deque()  # when the requests of the last minute were sent
        self._one_by_one = threading.Lock()  # turns come about in the order of asking
        self._on_their_way = threading.BoundedSemaphore(settings.concurrency)
        self._paused_until = -math.inf
        self._refused: float | None = None  # since when all responses are 429
        # A prepared request knows nothing of proxy and CA variables by itself. All go to one
        # host, for which they are looked up once.
        self._environment = self.merge_environment_settings(
            settings.api_url, proxies={}, stream=None, verify=None, cert=None
        )
        self.mount(settings.api_url, HTTPAdapter(pool_maxsize=settings.concurrency))

    def paused_for(self) -> float:
        """Return the seconds for which nobody may send, 0 or less where all may."""
        return self._paused_until - self.clock.seconds()

    def _take_turn(self) -> None:
        """Wait until a request may be sent: at the set pace, and not during a pause."""
        with self._one_by_one:
            is_full = len(self._turns) >= self._settings.requests_per_minute
            free_at = self._turns.popleft() + self.minute * RATE_WINDOW if is_full else -math.inf
            while (now := self.clock.seconds()) < max(free_at, self._paused_until):
                time.sleep(max(free_at, self._paused_until) - now)
            t.cast("Call", threading.current_thread()).begin_try(now)
            self._turns.append(now)

    @override
    def send(self, request: requests.PreparedRequest, **kwargs: t.Any) -> requests.Response:
        """Return the answer to a request.

        Raises FatalAPIError if no other try can help, RequestException if one may.
        """
        options = {**kwargs, **self._environment, "timeout": self._settings.request_timeout}
        call = t.cast("Call", threading.current_thread())
        call.enter(self._on_their_way, LONGEST_ANSWER * self._settings.request_timeout)
        try:
            self._take_turn()
            response = super().send(request, **options)
        except ValueError:
            # Not the error's own text, which may hold a header or a proxy's password.
            raise FatalAPIError(
                "no request can be made: check HTTPS_PROXY, api_url and user_agent"
            ) from None
        except OSError as error:  # those of requests are, too
            for sign, msg in HOPELESS.items():
                if sign in str(error):
                    raise FatalAPIError(msg) from None
            raise requests.exceptions.ConnectionError(error) from None
        finally:
            call.leave()
        now = self.clock.seconds()
        self._refused = self._refused or now if response.status_code == TOO_MANY else None
        if self._refused:
            self._pause(response, now - self._refused)
        return response

    def _pause(self, response: requests.Response, refused: float) -> None:
        """Pause as a 429 response asks; nothing has been answered otherwise for ``refused`` s."""
        asked = retry_after(response, self.clock.now())
        asked = self.minute * RATE_WINDOW if asked is None else asked
        why = ""
        if asked > LONGEST_RETRY_AFTER:
            why = "the API asks to wait for more than a day. Run again after that"
        elif refused >= MAX_REFUSED * self.minute:
            why = f"nothing else for {refused:.0f} s. Is the key used elsewhere?"
        if why:
            raise FatalAPIError(f"429 {response.reason}: {why}; the next run goes on here")
        # Where no wait is asked for, asking at once would go on for ever.
        until = self.clock.seconds() + max(asked, self.minute / 60)
        self._paused_until = max(self._paused_until, until)


def patience(path: str, session: ApiSession) -> Generator[float, Exception, None]:
    """Yield the seconds to wait after each failure of a request, which is sent in.

    They double up to a minute. Raises PatienceError after eight failures, or five minutes of
    them. A 429 is none: the pause that it asks for is waited for.
    """
    failures, began, wait = 0, 0.0, 0.0
    while True:
        error = yield wait
        now, response = session.clock.seconds(), getattr(error, "response", None)
        if response is not None and response.status_code == TOO_MANY:
            wait = max(0.0, session.paused_for())
            continue
        failures += 1
        began = now if failures == 1 else began
        left = MAX_FAILING * session.minute - (now - began)
        if failures >= MAX_TRIES or left <= 0:
            raise (UnreachableError if response is None else PatienceError)(
                f"gave up on {path} after {failures} failures in {now - began:.0f} s, "
                f"the last one: {reason(error)}"
            ) from None
        wait = min(left, session.minute / 60 * min(60.0, 2.0**failures))


def retry_after(response: requests.Response, now: datetime) -> float | None:
    """Return the seconds that a 429 response asks to wait, None where it does not.

    A header holds seconds, an HTTP date, or the instant as seconds or milliseconds since 1970.
    """
    for name in ("Retry-After", "RateLimit-Reset", "X-RateLimit-Reset"):
        written = response.headers.get(name, "")
        with contextlib.suppress(ValueError):
            number = float(written)
            number = number / 1000 if number > MILLISECONDS_1970_TO_2001 else number
            seconds = number - now.timestamp() if number > SECONDS_1970_TO_2001 else number
            if math.isfinite(seconds):
                return max(0.0, seconds)
        with contextlib.suppress(ValueError):  # it is no date
            date = parsedate_to_datetime(written)
            return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())
    return None


def reason(error: object) -> str:
    """Return in a few words why a request failed, without its address."""
    if not isinstance(error, OSError):  # those of requests are; ours say it themselves
        return str(error)
    text = f"{type(error).__name__} {error!r}"
    return next(words for sign, words in REASONS.items() if sign in text)
