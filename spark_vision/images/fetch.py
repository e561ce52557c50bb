"""Fetches the bytes of an image from HTTP(S), a local file, or an object store.

`operators/locations.py` has the allow-list of schemes; anything else is `blocked`.
"""

import threading
from collections.abc import Callable

from spark_vision.errors import RowFailure, Status
from spark_vision.images.addresses import AddressRules
from spark_vision.images.http_client import HttpClient
from spark_vision.images.local_files import LocalFiles
from spark_vision.images.stores import Stores
from spark_vision.images.transfer import Transfer, blocked_failure
from spark_vision.images.urls import redact
from spark_vision.operators import ImageOperator
from spark_vision.operators.locations import (
    LOCAL_SCHEMES,
    WEB_SCHEMES,
    parse_file_url,
    parse_scheme,
)
from spark_vision.operators.options import FrozenMapping

# More than any file system or web server accepts.
MAX_ADDRESS_CHARACTERS = 8192


class Fetcher:
    """Fetches images, from any number of threads.

    Args:
        operator: Its limits, and the locations that it allows. `storage_options` apply to stores,
            not to HTTP(S), where credentials are part of the URL.
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
        """Read one image in full.

        Args:
            url: A local path, or a URL: `file:`, `http:`, `https:`, or of a store.
            on_bytes: Called with the size of each piece before it is kept. It may block; that time
                does not count against `limits.fetch_seconds`.

        Raises:
            RowFailure: `blocked`, `read_error`, `http_error`, `timeout`, `too_large` or
                `incomplete`. The reason shows only host and path of the URL.
        """
        if len(url) > MAX_ADDRESS_CHARACTERS:
            raise address_too_long()
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
            # The column's reader handles base64; fsspec's `data` file system is not used.
            raise blocked_failure(redact(address))
        else:
            self._stores.read(address, transfer)
        return transfer.data()

    def close(self) -> None:
        """Close all connections; fetches that are still running then fail."""
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
            # Hadoop, and so binaryFile, does not percent-encode file names.
            as_written = parse_file_url(url, is_encoded=False)
            is_missing = failure.status == Status.READ_ERROR and not transfer.data()
            if as_written == path or not is_missing:
                raise
            self._files.read(as_written, transfer)


def address_too_long() -> RowFailure:
    """Return the failure of a row whose string is too long to be a path or URL."""
    return RowFailure(
        Status.READ_ERROR, f"the address has more than {MAX_ADDRESS_CHARACTERS:,} characters"
    )
