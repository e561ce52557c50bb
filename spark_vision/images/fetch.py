"""Bytes of an image from where a string says: a local file, http(s), or any fsspec file system."""

import os
import stat
import threading
from collections.abc import Callable
from typing import Any

from spark_vision.errors import RowFailure
from spark_vision.images.addresses import AddressRules
from spark_vision.images.http_client import HttpClient
from spark_vision.images.transfer import Transfer
from spark_vision.images.urls import path_of_file_url, redact, scheme_of
from spark_vision.operators import ImageOperator
from spark_vision.options import FrozenMapping
from spark_vision.status import Status

_PIECE_BYTES = 2**20


class Fetcher:
    """Fetches images, from any number of threads.

    Args:
        operator: Says what may be reached, and what one image may cost. Its `storage_options` are
            for fsspec file systems; credentials for http(s) stand in the URL.
    """

    def __init__(self, operator: ImageOperator) -> None:
        self._limits = operator.limits
        self._rules = AddressRules(operator.allow_hosts, operator.allow_networks)
        options = operator.storage_options
        self._storage_options: dict[str, Any] = (
            options.thaw() if isinstance(options, FrozenMapping) else {}
        )
        self._http: HttpClient | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def fetch(self, url: str, on_bytes: Callable[[int], None] | None = None) -> bytes:
        """Read one image whole.

        Args:
            url: A local path, or a URL: `file:`, `http:`, `https:`, or a scheme of fsspec.
            on_bytes: Told the size of each piece before it is kept; it may block, and that time
                does not count against `limits.fetch_seconds`.

        Raises:
            RowFailure: `blocked`, `read_error`, `http_error`, `timeout`, `too_large` or
                `incomplete`. Its reason shows of the URL the host and the path only.
        """
        address = url.strip()
        transfer = Transfer(self._limits, on_bytes)
        scheme = scheme_of(address)
        if scheme in ("http", "https"):
            self._http_client().fetch(address, transfer)
        elif scheme is None:
            _read_local(url, transfer)
        elif scheme in ("file", "local"):
            self._read_file_url(address, transfer)
        elif "::http" in address.lower():
            # A file system around another would fetch it whole, by neither our limits nor rules.
            raise RowFailure(
                Status.READ_ERROR, f"http within another scheme is not read: {redact(address)}"
            )
        else:
            self._read_by_fsspec(address, transfer)
        return transfer.data()

    def close(self) -> None:
        """Close the connections that are kept; a fetch by a thread that is late then fails."""
        with self._lock:
            self._is_closed = True
            client, self._http = self._http, None
        if client is not None:
            client.close()

    def _http_client(self) -> HttpClient:
        with self._lock:
            if self._is_closed:
                raise RowFailure(Status.READ_ERROR, "the task has ended")
            if self._http is None:
                self._http = HttpClient(self._limits, self._rules)
            return self._http

    def _read_file_url(self, url: str, transfer: Transfer) -> None:
        try:
            path = path_of_file_url(url)
        except ValueError as error:
            raise RowFailure(Status.READ_ERROR, f"{error}: {redact(url)}") from None
        _read_local(path, transfer)

    def _read_by_fsspec(self, url: str, transfer: Transfer) -> None:
        import fsspec

        shown = redact(url)
        if "://" not in url:
            # Hadoop writes `hdfs:/path`, which fsspec takes for a local path.
            url = url.replace(":/", ":///", 1)
        # What a file system's exception says may hold credentials: only its kind is told.
        try:
            file_system, path = fsspec.core.url_to_fs(url, **self._storage_options)
        except ImportError as error:
            raise RowFailure(
                Status.READ_ERROR, f"a package is missing ({error}): {shown}"
            ) from None
        except Exception as error:
            if isinstance(error, ValueError) and "protocol not known" in str(error).lower():
                raise RowFailure(
                    Status.READ_ERROR, f"no file system has this scheme: {shown}"
                ) from None
            raise _read_error(error, shown) from None
        try:
            with file_system.open(path, "rb") as file:
                if isinstance(getattr(file, "size", None), int):
                    transfer.expect(file.size)
                _read_all(file.read, transfer)
        except RowFailure:
            raise
        except Exception as error:
            raise _read_error(error, shown) from None


def _read_local(path: str, transfer: Transfer) -> None:
    shown = redact(path)
    try:
        # Not to block: a pipe without a writer would, for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _read_error(error, shown) from None
    try:
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            raise RowFailure(Status.READ_ERROR, f"is a directory: {shown}")
        if not stat.S_ISREG(about.st_mode):
            raise RowFailure(Status.READ_ERROR, f"is not a regular file: {shown}")
        transfer.expect(about.st_size)
        _read_all(lambda size: os.read(descriptor, size), transfer)
    except OSError as error:
        raise _read_error(error, shown) from None
    finally:
        os.close(descriptor)


def _read_all(read: Callable[[int], bytes], transfer: Transfer) -> None:
    while True:
        # One byte more than is allowed shows that there is more.
        piece = read(min(_PIECE_BYTES, transfer.allowance + 1))
        if not piece:
            return
        transfer.keep(piece)


def _read_error(error: Exception, shown: str) -> RowFailure:
    if isinstance(error, TimeoutError):
        return RowFailure(Status.TIMEOUT, f"the file system did not answer in time: {shown}")
    kinds: dict[type[Exception], str] = {
        FileNotFoundError: "no such file",
        PermissionError: "permission denied",
        IsADirectoryError: "is a directory",
        NotADirectoryError: "no such file",
    }
    for kind, said in kinds.items():
        if isinstance(error, kind):
            return RowFailure(Status.READ_ERROR, f"{said}: {shown}")
    number = getattr(error, "errno", None)
    said = os.strerror(number) if isinstance(number, int) else type(error).__name__
    return RowFailure(Status.READ_ERROR, f"cannot be read ({said}): {shown}")
