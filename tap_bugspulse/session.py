"""The one HTTP session of the tap: paced, with a deadline, and true to its host."""

from __future__ import annotations

import io
import math
import typing as t

import requests
import urllib3.exceptions
from requests_ratelimiter import InMemoryBucket, Limiter, LimiterAdapter, Rate
from singer_sdk.exceptions import FatalAPIError
from typing_extensions import override

if t.TYPE_CHECKING:
    from tap_bugspulse.run import Clock

RATE_WINDOW = 61 / 60  # of a minute: arrival times jitter at its edge
CHUNK = 1 << 16  # bytes
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

    The adapter paces every attempt, retries included. It must not fill its bucket on an
    answer 429 by itself: what the answer tells is waited for instead.
    """

    def __init__(self, requests_per_minute: int, minute: float, clock: Clock) -> None:
        """Pace to a number of requests in a minute that takes some seconds."""
        super().__init__()
        self._clock = clock
        self._window = minute * RATE_WINDOW
        self._deadline = math.inf  # of the answer whose headers are waited for
        rate = Rate(requests_per_minute, round(self._window * 1000))
        adapter = LimiterAdapter(
            limiter=Limiter(InMemoryBucket([rate])), per_host=False, limit_statuses=()
        )
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    @override
    def send(self, request: requests.PreparedRequest, **kwargs: t.Any) -> requests.Response:
        """Send a request and read its whole answer within ``timeout`` seconds.

        Raises:
            FatalAPIError: If no other try can help, such as where the host's
                certificate cannot be trusted.
            requests.RequestException: If there is no whole answer in time.
        """
        # A prepared request knows nothing of proxy and CA variables by itself.
        environment = self.merge_environment_settings(
            request.url or "", proxies={}, stream=True, verify=None, cert=None
        )
        seconds: float = kwargs["timeout"]
        # Its turn comes within a window; then connecting and each read have `timeout`.
        self._deadline = self._clock.seconds() + self._window + 2 * seconds
        try:
            response = super().send(request, **{**environment, **kwargs, "stream": True})
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
        finally:
            self._deadline = math.inf
        self._read(response, seconds)
        return response

    def check_deadline(self) -> None:
        """Stop waiting for the headers of an answer that is overdue.

        To be called now and then by a signal: each read has a timeout of its own, which
        an answer that comes byte by byte never meets.

        Raises:
            TimeoutError: If it is; this is what a socket raises whose timeout is over.
        """
        if self._clock.seconds() > self._deadline:
            self._deadline = math.inf
            msg = "the answer took too long"
            raise TimeoutError(msg)

    def _read(self, response: requests.Response, seconds: float) -> None:
        """Read the body; each read has a timeout of its own, and all have a deadline."""
        deadline = self._clock.seconds() + seconds
        raw, body = response.raw, io.BytesIO()
        try:
            while chunk := raw.read1(CHUNK, decode_content=True):
                body.write(chunk)
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
        body.seek(0)
        response.raw = body
