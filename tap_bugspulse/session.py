"""The one HTTP session of the tap: paced, with a deadline, and true to its host."""

from __future__ import annotations

import io
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


class ApiSession(requests.Session):
    """Sends requests no faster than the API allows, all streams together.

    The adapter paces every attempt, retries included. It must not fill its bucket on an
    answer 429 by itself: what the answer tells is waited for instead.
    """

    def __init__(self, requests_per_minute: int, minute: float, clock: Clock) -> None:
        """Pace to a number of requests in a minute that takes some seconds."""
        super().__init__()
        self._clock = clock
        rate = Rate(requests_per_minute, round(minute * RATE_WINDOW * 1000))
        adapter = LimiterAdapter(
            limiter=Limiter(InMemoryBucket([rate])), per_host=False, limit_statuses=()
        )
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    @override
    def send(self, request: requests.PreparedRequest, **kwargs: t.Any) -> requests.Response:
        """Send a request and read its whole answer within ``timeout`` seconds.

        Raises:
            FatalAPIError: If the host's certificate cannot be trusted.
            requests.RequestException: If there is no whole answer in time.
        """
        # A prepared request knows nothing of proxy and CA variables by itself.
        environment = self.merge_environment_settings(
            request.url or "", proxies={}, stream=True, verify=None, cert=None
        )
        try:
            response = super().send(request, **{**environment, **kwargs, "stream": True})
        except requests.exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" not in str(error):
                raise
            msg = (
                "the API's TLS certificate cannot be verified: check api_url, or point "
                "REQUESTS_CA_BUNDLE to the file with your company's certificates"
            )
            raise FatalAPIError(msg) from None
        self._read(response, kwargs["timeout"])
        return response

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
