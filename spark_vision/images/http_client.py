"""Images over http and https: redirects, retries and bodies, all within one transfer's limits.

No client of httpx is used, only its URLs: so there are no cookies, no proxies or passwords from the
environment, and no redirect but the ones followed here.
"""

import base64
import random
import ssl
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import httpcore
import httpx

from spark_vision.errors import RowFailure, Status
from spark_vision.images.addresses import AddressRefusedError, AddressRules, address_in
from spark_vision.images.host_limits import HostTurns
from spark_vision.images.http_body import read_body
from spark_vision.images.http_transport import Dialer, NameNotResolvedError, bounded_by
from spark_vision.images.refusal import refuse
from spark_vision.images.transfer import Transfer
from spark_vision.images.urls import redact
from spark_vision.operators import ImageLimits

MAX_REDIRECTS = 5
MAX_RETRIES = 2
_FIRST_PAUSE_SECONDS = 0.2
_MAX_PORT = 65_535
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {
    "User-Agent": "spark-vision",
    "Accept": "*/*",
    # Images are compressed already, and what is not compressed again cannot inflate.
    "Accept-Encoding": "identity",
}


class HttpClient:
    """A pool of connections, shared by all threads of a task.

    Args:
        limits: Their `fetch_concurrency` is the most connections that are open at a time, and their
            `host_concurrency` the most fetches from one host.
        rules: Say which addresses may be dialled.
    """

    def __init__(self, limits: ImageLimits, rules: AddressRules) -> None:
        self._turns = HostTurns(limits.host_concurrency)
        self._is_closed = False
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=limits.fetch_concurrency,
            max_keepalive_connections=limits.fetch_concurrency,
            keepalive_expiry=5.0,
            network_backend=Dialer(rules),
        )

    def close(self) -> None:
        """Close all connections, and make no further ones."""
        self._is_closed = True
        self._pool.close()

    def fetch(self, url: str, transfer: Transfer) -> None:
        """Fetch one image into its transfer.

        Raises:
            RowFailure: `blocked`, `http_error`, `timeout`, `too_large` or `incomplete`. Its reason
                shows the row's own address, never what it redirects to.
        """
        shown = redact(url)
        try:
            with bounded_by(transfer):
                self._follow(_parse(url), transfer, shown)
        except RowFailure:
            raise
        except AddressRefusedError:
            raise refuse(shown) from None
        # No cause is kept: httpcore's exceptions may tell of the request and its credentials.
        except httpcore.TimeoutException:
            raise RowFailure(Status.TIMEOUT, f"no answer in time: {shown}") from None
        except httpcore.NetworkError as error:
            raise RowFailure(
                Status.HTTP_ERROR, f"cannot connect ({_cause(error)}): {shown}"
            ) from None
        except (httpx.InvalidURL, httpcore.LocalProtocolError):
            raise RowFailure(Status.HTTP_ERROR, f"is not a valid URL: {shown}") from None
        except httpcore.ProtocolError:
            raise RowFailure(Status.HTTP_ERROR, f"the answer is not valid HTTP: {shown}") from None

    def _follow(self, url: httpx.URL, transfer: Transfer, shown: str) -> None:
        """Ask again, or where an answer redirects to, until there is an image."""
        # Only the row's own URL has a password: what a redirect names is never sent.
        headers = _HEADERS | _authorization(url)
        retries = redirects = 0
        while True:
            pause = _FIRST_PAUSE_SECONDS * 2**retries * random.uniform(1, 1.5)
            try:
                with self._answer(url, headers, transfer) as answer:
                    code, said = answer.status, httpx.Headers(answer.headers)
                    if 200 <= code < 300:
                        lent = partial(self._turns.lent, _host(url))
                        read_body(answer, said, transfer, shown, while_waiting=lent)
                        return
            except (
                httpcore.ConnectTimeout,
                httpcore.NetworkError,
                httpcore.RemoteProtocolError,
            ) as error:
                if retries == MAX_RETRIES or _is_permanent(error):
                    if redirects and isinstance(error, NameNotResolvedError):
                        # Which names a network knows is not to be learnt by redirects.
                        raise AddressRefusedError from None
                    raise
            else:
                if code in _REDIRECTS and "Location" in said:
                    redirects += 1
                    if redirects > MAX_REDIRECTS:
                        raise RowFailure(
                            Status.HTTP_ERROR, f"more than {MAX_REDIRECTS} redirects: {shown}"
                        )
                    target = _redirected(url, said["Location"], shown)
                    if _origin(target) != _origin(url):
                        # Not even where a later hop leads back.
                        headers = _HEADERS
                    url = target
                    continue
                pause = _asked_pause(said) or pause
                is_worth_a_retry = code == 429 or code >= 500
                if (
                    not is_worth_a_retry
                    or retries == MAX_RETRIES
                    or not transfer.has_time_for(pause)
                ):
                    raise RowFailure(Status.HTTP_ERROR, f"HTTP status {code}: {shown}")
            retries += 1
            time.sleep(min(pause, transfer.remaining_seconds()))

    @contextmanager
    def _answer(
        self, url: httpx.URL, headers: dict[str, str], transfer: Transfer
    ) -> Iterator[httpcore.Response]:
        """Send one request when the host's turn comes, and keep its answer open for the block."""
        host = _host(url)
        with transfer.uncounted():
            self._turns.begin(host)
        try:
            if self._is_closed:
                raise RowFailure(Status.READ_ERROR, "the task has ended")
            request = httpcore.Request(
                "GET",
                httpcore.URL(
                    scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                ),
                headers=[(b"Host", url.netloc), *_encode(headers)],
                # Waiting for a free connection is part of the time, too.
                extensions={"timeout": {"pool": transfer.remaining_seconds()}},
            )
            with closing(self._pool.handle_request(request)) as answer:
                yield answer
        finally:
            self._turns.end(host)


def _parse(text: str) -> httpx.URL:
    """Read a URL of a row or of a redirect.

    Raises:
        httpx.InvalidURL: It is none, or not one of http and https.
        AddressRefusedError: Its host is an address in a spelling that is not for a URL.
    """
    try:
        url = httpx.URL(text)
        host = _host(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        if _is_address_spelt_oddly(text):
            raise AddressRefusedError from None
        raise httpx.InvalidURL(str(error)) from None
    if not host or (url.port is not None and not 0 <= url.port <= _MAX_PORT):
        raise httpx.InvalidURL("no host, or a port that is none")
    return url


def _host(url: httpx.URL) -> str:
    # As it is sent; httpx's own property decodes names, and fails where they are no IDNA.
    return url.raw_host.decode("ascii")


def _is_address_spelt_oddly(text: str) -> bool:
    """Say whether what is wrong with a URL is the spelling of an address, as in `0127.0.0.1`."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - it raises where the port is what is wrong
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
    """Make the header for the user and password of a row's own URL; a redirect's have none."""
    if not url.userinfo:
        return {}
    user, _, password = url.userinfo.partition(b":")
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return {"Authorization": f"Basic {base64.b64encode(pair).decode('ascii')}"}


def _encode(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]


def _origin(url: httpx.URL) -> tuple[str, bytes, int | None]:
    # httpx leaves out the port that a scheme has anyway.
    return url.scheme, url.raw_host, url.port


def _asked_pause(headers: httpx.Headers) -> float | None:
    """Return the seconds that the server asks to wait for, None where it asks for nothing."""
    asked = headers.get("Retry-After", "").strip()
    if asked.isdecimal():
        return float(asked)
    try:
        moment = parsedate_to_datetime(asked)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError, TypeError):
        # No date, or one beyond those that Python has.
        return None


def _is_permanent(error: Exception) -> bool:
    """Say whether a connection fails in the same way next time: its certificate is refused."""
    return isinstance(error.__cause__, ssl.SSLError) or "CERTIFICATE" in str(error)


def _cause(error: Exception) -> str:
    # What follows is the name that a certificate lacks, perhaps a redirect's.
    said = str(error).partition(" for '")[0]
    return " ".join(said.split()) or type(error).__name__
