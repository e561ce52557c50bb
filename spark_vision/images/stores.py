"""Reads objects from stores with fsspec: a row chooses the object, the operator everything else.

The connection is made from the allowed root and `storage_options`. So a row cannot choose a host,
an account, a user or a chained file system; fsspec never gets a row's URL. Every call that may hang
runs on a thread that is abandoned at the deadline.
"""

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from spark_vision.errors import RowFailure, Status
from spark_vision.images.deadline_threads import DeadlineThread, DeadlineThreadPool
from spark_vision.images.transfer import Transfer, blocked_failure, read_failure
from spark_vision.images.urls import redact
from spark_vision.operators.locations import STORE_SCHEMES, StoreLocation, parse_store_location

# Most stores get a separate request per piece.
_PIECE_BYTES = 8 * 2**20
_CLOSE_SECONDS = 5.0
_VERSION = re.compile(r"\?version_?id=", re.IGNORECASE)
_HADOOP = ("hdfs", "webhdfs")


class Stores:
    """Reads objects below roots, from any number of threads.

    Args:
        roots: URLs of stores, optionally with a prefix.
        allowed_schemes: Schemes in addition to the known ones.
        options: For fsspec; a mapping under a scheme's name applies to that scheme only.
    """

    def __init__(
        self, roots: Iterable[str], allowed_schemes: Iterable[str], options: Mapping[str, Any]
    ) -> None:
        self._allowed_schemes = tuple(allowed_schemes)
        locations = (parse_store_location(root, self._allowed_schemes) for root in roots)
        self._roots = [location for location in locations if location is not None]
        self._options = options
        self._idle: dict[tuple[str, str], list[Any]] = {}
        self._threads = DeadlineThreadPool()
        self._lock = threading.Lock()

    def read(self, address: str, transfer: Transfer) -> None:
        """Read one object into its transfer.

        Raises:
            RowFailure: `blocked` for an address that is not below a root; `read_error`,
                `too_large` or `timeout`.
        """
        shown = redact(address)
        location = parse_store_location(address, self._allowed_schemes)
        root = next((root for root in self._roots if location and location.is_below(root)), None)
        if location is None or root is None:
            raise blocked_failure(shown)
        options = self._options_for(location.scheme)
        if _VERSION.search(location.path) and not options.get("version_aware"):
            raise RowFailure(
                Status.READ_ERROR,
                f"reading a version requires version_aware in storage_options: {shown}",
            )
        try:
            with self._threads.take() as thread:
                self._read(location, options, thread, transfer)
        except RowFailure:
            raise
        # A file system's message may contain credentials, so only the kind of error is reported.
        except _NoFileSystemError as error:
            raise RowFailure(Status.READ_ERROR, f"{error}: {shown}") from None
        except Exception as error:
            raise read_failure(error, shown) from None

    def close(self) -> None:
        """End the idle threads, and drop the connected file systems."""
        self._threads.close()
        with self._lock:
            self._idle.clear()

    def _read(
        self,
        location: StoreLocation,
        options: dict[str, Any],
        thread: DeadlineThread,
        transfer: Transfer,
    ) -> None:
        def call(work: Callable[[], Any]) -> Any:
            return thread.call(work, transfer.remaining_seconds())

        key = location.scheme, location.authority
        with self._lock:
            idle = self._idle.setdefault(key, [])
            file_system = idle.pop() if idle else None
        if file_system is None:
            file_system = call(lambda: _connect(location.scheme, location.authority, options))
        if file_system.async_impl:
            # Asynchronous file systems are thread-safe; others are used by one thread at a time.
            idle.append(file_system)
        file, is_usable = None, False
        try:
            block_size = min(_PIECE_BYTES, transfer.remaining_bytes + 1)
            file = call(lambda: _open(file_system, location, block_size))
            size = call(lambda: getattr(file, "size", None))
            if isinstance(size, int):
                transfer.check_size(size)
            while piece := call(lambda: file.read(min(_PIECE_BYTES, transfer.remaining_bytes + 1))):
                transfer.append(piece)
            is_usable = True
        except (RowFailure, FileNotFoundError, IsADirectoryError, PermissionError):
            is_usable = True
            raise
        finally:
            if file is not None and not thread.is_abandoned:
                # The file was only read, so a failed close loses nothing.
                with suppress(Exception):
                    thread.call(file.close, _CLOSE_SECONDS)
            # After other errors its connection may be lost, and the next row gets a new one.
            if is_usable and not thread.is_abandoned and not file_system.async_impl:
                idle.append(file_system)

    def _options_for(self, scheme: str) -> dict[str, Any]:
        names = {*STORE_SCHEMES, *self._allowed_schemes}
        options = {
            name: value
            for name, value in self._options.items()
            if not (name in names and isinstance(value, Mapping))
        }
        for name, value in self._options.items():
            if STORE_SCHEMES.get(name, name) == scheme and isinstance(value, Mapping):
                options |= value
        return options


class _NoFileSystemError(Exception):
    """No file system is available for a scheme; the message has no credentials."""


def _connect(scheme: str, authority: str, options: dict[str, Any]) -> Any:
    import fsspec
    from fsspec.archive import AbstractArchiveFileSystem
    from fsspec.dircache import DirCache
    from fsspec.implementations.chained import ChainedFileSystem

    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise _NoFileSystemError(f"a package is missing ({error})") from None
    except ValueError:
        raise _NoFileSystemError("no file system has this scheme") from None
    if issubclass(kind, ChainedFileSystem | AbstractArchiveFileSystem):
        raise _NoFileSystemError("chained and archive file systems are not supported")
    chosen = kind._get_kwargs_from_urls(f"{scheme}://{authority}/")
    # fsspec would cache it, with its credentials, for the worker's next job.
    file_system = kind(**{**chosen, **options, "skip_instance_cache": True})
    listings: Any = getattr(file_system, "dircache", None)
    if isinstance(listings, DirCache):
        # The cache grows with each folder read, and misses new files.
        listings.use_listings_cache = False
    return file_system


def _open(file_system: Any, location: StoreLocation, block_size: int) -> Any:
    # In Hadoop everything after the host is part of the path, including `?` and `#`.
    is_hadoop = location.scheme in _HADOOP
    path = location.path if is_hadoop else file_system._strip_protocol(str(location))
    if location.scheme in STORE_SCHEMES.values():
        return file_system.open(path, "rb", block_size=block_size, cache_type="none")
    return file_system.open(path, "rb", block_size=block_size)
