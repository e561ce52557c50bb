"""Images over http and https: redirects, retries and bodies, all within one transfer's limits."""

import logging
import random
import ssl
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpcore
import httpx

from spark_vision.errors import RowFailure
from spark_vision.images.dialing import Dialer, bounded_by
from spark_vision.images.transfer import Transfer
from spark_vision.images.urls import redact
from spark_vision.status import Status

MAX_REDIRECTS = 5
MAX_RETRIES = 2
_FIRST_PAUSE_SECONDS = 0.2
_INFLATED_PIECE_BYTES = 2**16
_EITHER_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32
_HEADERS = {
    "User-Agent": "spark-vision",
    "Accept": "*/*",
    # Images are compressed already, and what is not compressed again cannot inflate.
    "Accept-Encoding": "identity",
}

# httpx logs whole URLs, query strings included, for each request at INFO.
logging.getLogger("httpx").setLevel(logging.WARNING)


class HttpClient:
    """A pool of connections, shared by all threads of a task.

    Args:
        connections: The most that are open at a time; further fetches wait for one.
    """

    def __init__(self, connections: int) -> None:
        self._client = httpx.Client(
            transport=_DialingTransport(connections),
            headers=_HEADERS,
            # One row's cookies are no business of another's.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def fetch(self, url: str, transfer: Transfer) -> None:
        """Fetch one image into its transfer.

        Raises:
            RowFailure: `http_error`, `timeout`, `too_large` or `incomplete`.
        """
        shown = redact(url)
        try:
            request = self._client.build_request("GET", url)
            with bounded_by(transfer):
                self._follow(request, transfer)
        except RowFailure:
            raise
        # No cause is kept: httpx's exceptions hold the request, with its URL and credentials.
        except httpcore.TimeoutException:
            raise RowFailure(Status.TIMEOUT, f"no answer in time: {shown}") from None
        except httpcore.NetworkError as error:
            raise RowFailure(
                Status.HTTP_ERROR, f"cannot connect ({_cause(error)}): {shown}"
            ) from None
        except (httpx.InvalidURL, httpcore.UnsupportedProtocol, ValueError, OverflowError):
            raise RowFailure(Status.HTTP_ERROR, f"is not a valid URL: {shown}") from None
        except (httpcore.ProtocolError, httpx.HTTPError):
            raise RowFailure(Status.HTTP_ERROR, f"the answer is not valid HTTP: {shown}") from None

    def _follow(self, request: httpx.Request, transfer: Transfer) -> None:
        """Send the request, again or to where it is redirected, until it has an answer."""
        retries = redirects = 0
        while True:
            shown = redact(str(request.url))
            pause = _FIRST_PAUSE_SECONDS * 2**retries * random.uniform(1, 1.5)
            # Waiting for a free connection is part of the time, too.
            request.extensions["timeout"] = {"pool": transfer.remaining_seconds()}
            try:
                response = self._client.send(request, stream=True, follow_redirects=False)
            except (httpcore.NetworkError, httpcore.RemoteProtocolError) as error:
                if retries == MAX_RETRIES or _is_permanent(error):
                    raise
            else:
                with closing(response):
                    if response.is_success:
                        _read_body(response, transfer, shown)
                        return
                    if response.next_request is not None:
                        redirects += 1
                        request = _check_redirect(response.next_request, redirects, shown)
                        continue
                    pause = _asked_pause(response) or pause
                    code = response.status_code
                    is_worth_a_retry = code == 429 or code >= 500
                if (
                    not is_worth_a_retry
                    or retries == MAX_RETRIES
                    or not transfer.has_time_for(pause)
                ):
                    raise RowFailure(Status.HTTP_ERROR, f"HTTP status {code}: {shown}")
            retries += 1
            time.sleep(min(pause, transfer.remaining_seconds()))


class _DialingTransport(httpx.BaseTransport):
    """httpx over connections that `Dialer` makes."""

    def __init__(self, connections: int) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=5.0,
            network_backend=Dialer(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._pool.handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


def _check_redirect(request: httpx.Request, redirects: int, shown: str) -> httpx.Request:
    if redirects > MAX_REDIRECTS:
        raise RowFailure(Status.HTTP_ERROR, f"more than {MAX_REDIRECTS} redirects: {shown}")
    if request.url.scheme not in ("http", "https"):
        raise RowFailure(
            Status.HTTP_ERROR, f"redirected to the scheme {request.url.scheme!r}: {shown}"
        )
    return request


def _read_body(response: httpx.Response, transfer: Transfer, shown: str) -> None:
    announced = response.headers.get("Content-Length", "")
    if announced.isdecimal():
        transfer.expect(int(announced))
    try:
        for piece in _inflate(response, shown):
            transfer.keep(piece)
    except (httpcore.RemoteProtocolError, httpcore.ReadError):
        raise RowFailure(Status.INCOMPLETE, f"the answer broke off: {shown}") from None
    except zlib.error:
        raise RowFailure(Status.HTTP_ERROR, f"the compression is corrupt: {shown}") from None


def _inflate(response: httpx.Response, shown: str) -> Iterator[bytes]:
    """Yield the body in small pieces, even where a server compresses it unasked."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        yield from response.iter_raw()
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise RowFailure(Status.HTTP_ERROR, f"the answer has an encoding not asked for: {shown}")
    inflater = zlib.decompressobj(_EITHER_ZLIB_OR_GZIP)
    for piece in response.iter_raw():
        waiting = piece
        while waiting:
            inflated = inflater.decompress(waiting, _INFLATED_PIECE_BYTES)
            waiting = inflater.unconsumed_tail
            if inflated:
                yield inflated
    if not inflater.eof:
        raise RowFailure(Status.INCOMPLETE, f"the compressed answer broke off: {shown}")


def _asked_pause(response: httpx.Response) -> float | None:
    """Return the seconds that the server asks to wait for, None where it asks for nothing."""
    asked = response.headers.get("Retry-After", "").strip()
    if asked.isdecimal():
        return float(asked)
    try:
        moment = parsedate_to_datetime(asked)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _is_permanent(error: Exception) -> bool:
    """Say whether a connection fails in the same way next time: its certificate is refused."""
    return isinstance(error.__cause__, ssl.SSLError) or "CERTIFICATE" in str(error)


def _cause(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
