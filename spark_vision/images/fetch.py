"""Bytes of an image from where a string says: http(s), a local file, or an object of a store.

A string is one of these by an allow-list (`operators/locations.py`); anything else is `blocked`.
"""

import threading
from collections.abc import Callable

from spark_vision.errors import RowFailure, Status
from spark_vision.images.addresses import AddressRules
from spark_vision.images.http_client import HttpClient
from spark_vision.images.local_files import LocalFiles
from spark_vision.images.refusal import refuse
from spark_vision.images.stores import Stores
from spark_vision.images.transfer import Transfer
from spark_vision.images.urls import redact
from spark_vision.operators import ImageOperator
from spark_vision.operators.locations import (
    LOCAL_SCHEMES,
    WEB_SCHEMES,
    parse_file_url,
    parse_scheme,
)
from spark_vision.operators.options import FrozenMapping

# More than any file system's path, and than servers take of a URL.
MAX_ADDRESS_CHARACTERS = 8192


class Fetcher:
    """Fetches images, from any number of threads.

    Args:
        operator: Says what an image may cost, and what its string may reach; its `storage_options`
            are for stores, not for http(s), whose credentials stand in the URL.
    """

    def __init__(self, operator: ImageOperator) -> None:
        self._limits = operator.limits
        self._rules = AddressRules(operator.allow_hosts, operator.allow_networks)
        roots = operator.allow_paths
        options = operator.storage_options
        self._files = LocalFiles(root for root in roots if root.startswith("/"))
        self._stores = Stores(
            (root for root in roots if not root.startswith("/")),
            operator.allow_schemes,
            options.thaw() if isinstance(options, FrozenMapping) else {},
        )
        self._http: HttpClient | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def fetch(self, url: str, on_bytes: Callable[[int], None] | None = None) -> bytes:
        """Read one image whole.

        Args:
            url: A local path, or a URL: `file:`, `http:`, `https:`, or of a store.
            on_bytes: Told the size of each piece before it is kept; it may block, and that time
                does not count against `limits.fetch_seconds`.

        Raises:
            RowFailure: `blocked`, `read_error`, `http_error`, `timeout`, `too_large` or
                `incomplete`. Its reason shows of the URL the host and the path only.
        """
        if len(url) > MAX_ADDRESS_CHARACTERS:
            raise too_long()
        address = url.strip()
        transfer = Transfer(self._limits, on_bytes)
        scheme = parse_scheme(address)
        if scheme in WEB_SCHEMES:
            self._http_client().fetch(address, transfer)
        elif scheme is None:
            self._files.read(url, transfer)
        elif scheme in LOCAL_SCHEMES:
            self._read_file_url(address, transfer)
        elif scheme == "data":
            # The column's reader takes those with base64; fsspec's own would be a file system.
            raise refuse(redact(address))
        else:
            self._stores.read(address, transfer)
        return transfer.data()

    def close(self) -> None:
        """Close the connections that are kept; a fetch by a thread that is late then fails."""
        with self._lock:
            self._is_closed = True
            client, self._http = self._http, None
        self._files.close()
        self._stores.close()
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
            path = parse_file_url(url)
        except ValueError as error:
            raise RowFailure(Status.READ_ERROR, f"{error}: {redact(url)}") from None
        try:
            self._files.read(path, transfer)
        except RowFailure as failure:
            # Hadoop, and with it binaryFile, writes a file's name as it is, `%` included.
            as_written = parse_file_url(url, is_encoded=False)
            is_missing = failure.status == Status.READ_ERROR and not transfer.data()
            if as_written == path or not is_missing:
                raise
            self._files.read(as_written, transfer)


def too_long() -> RowFailure:
    """Return the failure of a row whose string is no address at all; nothing of it is shown."""
    return RowFailure(
        Status.READ_ERROR, f"the address has more than {MAX_ADDRESS_CHARACTERS:,} characters"
    )
