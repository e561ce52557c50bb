"""Fetches images over HTTP(S): redirects, retries and bodies, all within one transfer's limits.

It uses httpx's URLs but not its client. So there are no cookies, no proxies or passwords from the
environment, and no redirects other than those followed here.
"""

import base64
import random
import ssl
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import httpcore
import httpx

from spark_vision.errors import RowFailure, Status
from spark_vision.images.addresses import AddressRefusedError, AddressRules, address_in
from spark_vision.images.http_transport import (
    NameNotResolvedError,
    RestrictedBackend,
    apply_deadline,
)
from spark_vision.images.transfer import Transfer, blocked_failure
from spark_vision.images.urls import redact
from spark_vision.operators import ImageLimits

MAX_REDIRECTS = 5
MAX_RETRIES = 2
_FIRST_DELAY_SECONDS = 0.2
_MAX_PORT = 65_535
_INFLATED_PIECE_BYTES = 2**16
_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32
_GZIP = zlib.MAX_WBITS | 16
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {
    "User-Agent": "spark-vision",
    "Accept": "*/*",
    # Images are already compressed, and an uncompressed response cannot be a decompression bomb.
    "Accept-Encoding": "identity",
}


class HttpClient:
    """A connection pool shared by all threads of a task.

    Args:
        limits: `fetch_concurrency` is the maximum number of open connections, `host_concurrency`
            the maximum of concurrent fetches from one host.
        rules: The addresses that may be connected to.
    """

    def __init__(self, limits: ImageLimits, rules: AddressRules) -> None:
        self._hosts = _HostSemaphores(limits.host_concurrency)
        self._is_closed = False
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=limits.fetch_concurrency,
            max_keepalive_connections=limits.fetch_concurrency,
            keepalive_expiry=5.0,
            network_backend=RestrictedBackend(rules),
        )

    def close(self) -> None:
        """Close all connections and open no further ones."""
        self._is_closed = True
        self._pool.close()

    def fetch(self, url: str, transfer: Transfer) -> None:
        """Fetch one image into its transfer.

        Raises:
            RowFailure: `blocked`, `http_error`, `timeout`, `too_large` or `incomplete`. The reason
                shows the row's own address, never a redirect's target.
        """
        shown = redact(url)
        try:
            with apply_deadline(transfer):
                self._follow(_parse(url), transfer, shown)
        except RowFailure:
            raise
        except AddressRefusedError:
            raise blocked_failure(shown) from None
        # No cause is kept: httpcore's exceptions may contain the request and its credentials.
        except httpcore.TimeoutException:
            raise RowFailure(Status.TIMEOUT, f"no response in time: {shown}") from None
        except httpcore.NetworkError as error:
            raise RowFailure(
                Status.HTTP_ERROR, f"cannot connect ({_cause(error)}): {shown}"
            ) from None
        except (httpx.InvalidURL, httpcore.LocalProtocolError):
            raise RowFailure(Status.HTTP_ERROR, f"is not a valid URL: {shown}") from None
        except httpcore.ProtocolError:
            raise RowFailure(
                Status.HTTP_ERROR, f"the response is not valid HTTP: {shown}"
            ) from None

    def _follow(self, url: httpx.URL, transfer: Transfer, shown: str) -> None:
        """Follow redirects and retry until a response has an image."""
        # Only the row's own URL may have a password: one in a redirect is never sent.
        headers = _HEADERS | _authorization(url)
        retries = redirects = 0
        while True:
            delay = _FIRST_DELAY_SECONDS * 2**retries * random.uniform(1, 1.5)
            try:
                with self._response(url, headers, transfer) as response:
                    code, received = response.status, httpx.Headers(response.headers)
                    if 200 <= code < 300:
                        released = partial(self._hosts.released, _host(url))
                        _read_body(response, received, transfer, shown, while_waiting=released)
                        return
            except (
                httpcore.ConnectTimeout,
                httpcore.NetworkError,
                httpcore.RemoteProtocolError,
            ) as error:
                if retries == MAX_RETRIES or _is_permanent(error):
                    if redirects and isinstance(error, NameNotResolvedError):
                        # A redirect must not reveal which names a network can resolve.
                        raise AddressRefusedError from None
                    raise
            else:
                if code in _REDIRECTS and "Location" in received:
                    redirects += 1
                    if redirects > MAX_REDIRECTS:
                        raise RowFailure(
                            Status.HTTP_ERROR, f"more than {MAX_REDIRECTS} redirects: {shown}"
                        )
                    target = _redirected(url, received["Location"], shown)
                    if _origin(target) != _origin(url):
                        # Credentials are not sent again, even if a later redirect leads back.
                        headers = _HEADERS
                    url = target
                    continue
                delay = _retry_after_seconds(received) or delay
                is_worth_a_retry = code == 429 or code >= 500
                if (
                    not is_worth_a_retry
                    or retries == MAX_RETRIES
                    or not transfer.has_time_for(delay)
                ):
                    raise RowFailure(Status.HTTP_ERROR, f"HTTP status {code}: {shown}")
            retries += 1
            time.sleep(min(delay, transfer.remaining_seconds()))

    @contextmanager
    def _response(
        self, url: httpx.URL, headers: dict[str, str], transfer: Transfer
    ) -> Iterator[httpcore.Response]:
        """Send one request within the host's limit, and keep the response open for the block."""
        host = _host(url)
        with transfer.pause_deadline():
            self._hosts.acquire(host)
        try:
            if self._is_closed:
                raise RowFailure(Status.READ_ERROR, "the task has ended")
            request = httpcore.Request(
                "GET",
                httpcore.URL(
                    scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                ),
                headers=[(b"Host", url.netloc), *headers.items()],
                # Waiting for a free connection counts too.
                extensions={"timeout": {"pool": transfer.remaining_seconds()}},
            )
            with closing(self._pool.handle_request(request)) as response:
                yield response
        finally:
            self._hosts.release(host)


class _HostSemaphores:
    """Limits how many threads of a task fetch from one host at the same time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._active: Counter[str] = Counter()

    def acquire(self, host: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._active[host] < self._limit)
            self._active[host] += 1

    def release(self, host: str) -> None:
        with self._changed:
            self._active[host] -= 1
            if not self._active[host]:
                del self._active[host]
            self._changed.notify_all()

    @contextmanager
    def released(self, host: str) -> Iterator[None]:
        """Release the host for the duration of the block.

        A thread that waits for memory sends nothing to the host, and may be waiting for a row that
        waits for this host. For the same reason it reacquires the host without waiting.
        """
        self.release(host)
        try:
            yield
        finally:
            with self._changed:
                self._active[host] += 1


def _read_body(
    response: httpcore.Response,
    headers: httpx.Headers,
    transfer: Transfer,
    shown: str,
    while_waiting: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Read a whole body, decompressed in pieces if a server compresses it unasked."""
    content_length = headers.get("Content-Length", "")
    if content_length.isdecimal():
        transfer.check_size(int(content_length))
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    pieces = response.iter_stream()
    if encoding in ("gzip", "x-gzip", "deflate"):
        pieces = _inflate(pieces, transfer, shown, may_have_members=encoding != "deflate")
    elif encoding not in ("identity", ""):
        raise RowFailure(Status.HTTP_ERROR, f"the response has an unrequested encoding: {shown}")
    try:
        for piece in pieces:
            transfer.append(piece, while_waiting())
    except (httpcore.RemoteProtocolError, httpcore.ReadError):
        raise RowFailure(Status.INCOMPLETE, f"the response is truncated: {shown}") from None
    except zlib.error:
        raise RowFailure(
            Status.HTTP_ERROR, f"the compressed response is corrupt: {shown}"
        ) from None


def _inflate(
    pieces: Iterator[bytes], transfer: Transfer, shown: str, *, may_have_members: bool
) -> Iterator[bytes]:
    """Decompress zlib, or the members of gzip one after another; nothing else may follow."""
    inflater = zlib.decompressobj(_ZLIB_OR_GZIP)
    compressed_bytes = 0
    for piece in pieces:
        compressed_bytes += len(piece)
        transfer.check_size(compressed_bytes)
        waiting = piece
        while waiting:
            if inflater.eof:
                if not may_have_members:
                    raise zlib.error("bytes after the end of the stream")
                inflater = zlib.decompressobj(_GZIP)
            inflated = inflater.decompress(waiting, _INFLATED_PIECE_BYTES)
            waiting = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            if inflated:
                yield inflated
    if not inflater.eof:
        raise RowFailure(Status.INCOMPLETE, f"the compressed response is truncated: {shown}")


def _parse(text: str) -> httpx.URL:
    """Parse the URL of a row or of a redirect.

    Raises:
        httpx.InvalidURL: It is not an HTTP(S) URL.
        AddressRefusedError: Its host is an address in a spelling that URLs do not allow.
    """
    try:
        url = httpx.URL(text)
        host = _host(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        if _is_address_spelt_oddly(text):
            raise AddressRefusedError from None
        raise httpx.InvalidURL(str(error)) from None
    if not host or (url.port is not None and not 0 <= url.port <= _MAX_PORT):
        raise httpx.InvalidURL("no host, or an invalid port")
    return url


def _host(url: httpx.URL) -> str:
    # As it is sent; httpx's `host` decodes IDNA names, and raises for invalid ones.
    return url.raw_host.decode("ascii")


def _is_address_spelt_oddly(text: str) -> bool:
    """Return whether a URL is invalid because of an address's spelling, as in `0127.0.0.1`."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - raises if the port is invalid
        host = parts.hostname or ""
    except ValueError:
        return False
    try:
        _host(httpx.URL(scheme="http", host=host))
    except (httpx.InvalidURL, UnicodeError):
        return address_in(host) is not None
    return False


def _redirected(url: httpx.URL, location: str, shown: str) -> httpx.URL:
    try:
        target = _parse(urljoin(str(url), location))
    except (httpx.InvalidURL, ValueError):
        raise RowFailure(Status.HTTP_ERROR, f"redirected to an invalid URL: {shown}") from None
    if target.scheme not in ("http", "https"):
        raise RowFailure(Status.HTTP_ERROR, f"redirected to the scheme {target.scheme!r}: {shown}")
    return target


def _authorization(url: httpx.URL) -> dict[str, str]:
    """Return the header for the user name and password of a row's own URL."""
    if not url.userinfo:
        return {}
    user, _, password = url.userinfo.partition(b":")
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return {"Authorization": f"Basic {base64.b64encode(pair).decode('ascii')}"}


def _origin(url: httpx.URL) -> tuple[str, bytes, int | None]:
    # httpx omits the default port of a scheme.
    return url.scheme, url.raw_host, url.port


def _retry_after_seconds(headers: httpx.Headers) -> float | None:
    """Return the delay that `Retry-After` requests, None without a valid one."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError, TypeError):
        # Not a date, or one out of Python's range.
        return None


def _is_permanent(error: Exception) -> bool:
    """Return whether a retry would fail in the same way: the certificate is rejected."""
    return isinstance(error.__cause__, ssl.SSLError) or "CERTIFICATE" in str(error)


def _cause(error: Exception) -> str:
    # The rest is the host name that the certificate lacks, perhaps a redirect's.
    message = str(error).partition(" for '")[0]
    return " ".join(message.split()) or type(error).__name__
