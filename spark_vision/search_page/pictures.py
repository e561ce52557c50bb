"""Which pictures a browser may fetch, and their thumbnails.

A picture is named by a token that only this process can make. Behind it is a row that a search has
found; its file is read by the same rules as a row of a job. The browser gets pixels that were
decoded and encoded here, and never a file's own bytes.
"""

import hashlib
import hmac
import os
import secrets
import threading
from collections import OrderedDict
from pathlib import Path

import pyarrow as pa

from spark_vision.images.byte_rows import tensor_view
from spark_vision.images.decoding import decode
from spark_vision.images.fetch import Fetcher
from spark_vision.images.sources import RawImage, open_column
from spark_vision.images.thumbnails import encode_thumbnail
from spark_vision.operators import ImageOperator
from spark_vision.search_page.gallery_source import FoundPicture

THUMBNAIL_PIXELS = 256
PICTURE_PIXELS = 2048
_MAX_THUMBNAIL_BYTES = 256 * 2**20
_MAX_ROWS = 100_000
_LOCK_COUNT = 64


class Pictures:
    """The pictures of the rows that were found, for any number of threads.

    Args:
        operator: Its limits, and the locations that it allows.
        folder: For thumbnails; an empty folder of this process.
        max_bytes: The maximum size of all thumbnails; those not used for longest are removed.
    """

    def __init__(
        self, operator: ImageOperator, folder: Path, max_bytes: int = _MAX_THUMBNAIL_BYTES
    ) -> None:
        self._operator = operator
        self._fetcher = Fetcher(operator)
        self._folder = folder
        self._max_bytes = max_bytes
        self._secret = secrets.token_bytes(32)
        self._rows: OrderedDict[str, FoundPicture] = OrderedDict()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()
        self._making = [threading.Lock() for _ in range(_LOCK_COUNT)]
        # Large pictures take memory while they are decoded.
        self._decoding = threading.Semaphore(os.cpu_count() or 1)

    def add(self, row: FoundPicture) -> str:
        """Return the token of a row's picture; equal rows have equal ones."""
        named = repr((row.id, row.address)).encode("utf-8", "surrogatepass")
        token = hmac.new(self._secret, named, hashlib.sha256).hexdigest()
        with self._lock:
            self._rows[token] = row
            self._rows.move_to_end(token)
            while len(self._rows) > _MAX_ROWS:
                self._rows.popitem(last=False)
        return token

    def find(self, token: str) -> FoundPicture | None:
        """Return the row of a token; None for one that this process has not made."""
        with self._lock:
            return self._rows.get(token)

    def read(self, row: FoundPicture) -> bytes:
        """Read a row's file.

        Raises:
            RowFailure: Why it cannot be read.
        """
        image = open_column(
            pa.array([row.address], pa.string()), self._operator, self._fetcher
        ).read(0)
        if isinstance(image, RawImage):
            raise AssertionError("a string leads to a file")
        return image.numpy().tobytes()

    def full(self, row: FoundPicture) -> bytes:
        """Return a row's picture as JPEG, at most 2,048 pixels wide and high.

        Raises:
            RowFailure: Why there is none.
        """
        return self._make(row, PICTURE_PIXELS)

    def thumbnail(self, token: str, row: FoundPicture) -> bytes:
        """Return a row's picture as JPEG, at most 256 pixels wide and high; made once.

        Raises:
            RowFailure: Why there is none.
        """
        path = self._folder / f"{token}.jpg"
        with self._making[int(token[:8], 16) % _LOCK_COUNT]:
            with self._lock:
                if token in self._sizes:
                    self._sizes.move_to_end(token)
                    return path.read_bytes()
            data = self._make(row, THUMBNAIL_PIXELS)
            with self._lock:
                path.write_bytes(data)
                self._sizes[token] = len(data)
                while sum(self._sizes.values()) > self._max_bytes and len(self._sizes) > 1:
                    oldest, _ = self._sizes.popitem(last=False)
                    (self._folder / f"{oldest}.jpg").unlink(missing_ok=True)
        return data

    def close(self) -> None:
        """Close the connections."""
        self._fetcher.close()

    def _make(self, row: FoundPicture, pixels: int) -> bytes:
        encoded = self.read(row)
        with self._decoding:
            # A file that crashes a decoder ends that decoder's process, and not this one.
            decoded = decode(tensor_view(encoded), self._operator.limits, isolate=True)
            return encode_thumbnail(decoded, pixels)
