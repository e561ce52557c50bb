"""The fetch of one image into memory: its limits in seconds and bytes, and how it fails.

A failure shows no details that could leak anything: an exception's text may hold credentials.
"""

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from spark_vision.errors import RowFailure, Status
from spark_vision.operators import ImageLimits

# For headers, redirects and chunk framing, in addition to an image of the maximum size.
_EXTRA_RECEIVED_BYTES = 2**20
_REASONS: dict[type[Exception], str] = {
    FileNotFoundError: "no such file",
    PermissionError: "permission denied",
    IsADirectoryError: "is a directory",
    NotADirectoryError: "no such file",
}


class Transfer:
    """Collects the bytes of one image, and fails if the fetch takes too long or gets too large.

    Args:
        limits: `fetch_seconds` start now; `max_bytes` limits the bytes that are kept.
        on_bytes: Called with the size of each piece before it is kept. It may block; that time
            does not count.
    """

    def __init__(self, limits: ImageLimits, on_bytes: Callable[[int], None] | None = None) -> None:
        self._seconds = limits.fetch_seconds
        self._max_bytes = limits.max_bytes
        self._on_bytes = on_bytes
        self._deadline = time.monotonic() + limits.fetch_seconds
        # Not a list of pieces: a server may send single bytes.
        self._kept = io.BytesIO()
        self._size = 0
        self._received_bytes = 0

    @property
    def remaining_bytes(self) -> int:
        """Bytes that may still be kept."""
        return self._max_bytes - self._size

    def remaining_seconds(self) -> float:
        """Return the seconds until the deadline, above 0.

        Raises:
            RowFailure: `timeout` if the deadline has passed.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise RowFailure(
                Status.TIMEOUT, f"the image did not arrive within {self._seconds:g} seconds"
            )
        return left

    def has_time_for(self, seconds: float) -> bool:
        """Return whether a delay would end before the deadline."""
        return time.monotonic() + seconds < self._deadline

    def check_size(self, size: int) -> None:
        """Check the size of the whole image before it is read.

        Raises:
            RowFailure: `too_large`.
        """
        if size > self._max_bytes:
            raise RowFailure(
                Status.TOO_LARGE, f"the image has more than the {self._max_bytes:,} bytes allowed"
            )

    def count_received(self, size: int) -> None:
        """Count all bytes that a server sends, including headers.

        Raises:
            RowFailure: `too_large` for far more than the maximum size of an image.
        """
        self._received_bytes += size
        if self._received_bytes > 2 * self._max_bytes + _EXTRA_RECEIVED_BYTES:
            raise RowFailure(
                Status.TOO_LARGE,
                f"the server sent far more than the {self._max_bytes:,} bytes allowed",
            )

    @contextmanager
    def pause_deadline(self) -> Iterator[None]:
        """Exclude the block's time from the deadline: it does not wait for the server."""
        before = time.monotonic()
        try:
            yield
        finally:
            self._deadline += time.monotonic() - before

    def append(
        self, piece: bytes, while_waiting: AbstractContextManager[Any] | None = None
    ) -> None:
        """Add the next bytes.

        Args:
            piece: The bytes.
            while_waiting: Entered while `on_bytes` may block.

        Raises:
            RowFailure: `too_large` or `timeout`.
        """
        self.check_size(self._size + len(piece))
        if self._on_bytes is not None:
            with while_waiting or nullcontext(), self.pause_deadline():
                self._on_bytes(len(piece))
        self.remaining_seconds()
        self._kept.write(piece)
        self._size += len(piece)

    def data(self) -> bytes:
        """Return the bytes kept so far."""
        return self._kept.getvalue()


def read_failure(error: Exception, shown: str) -> RowFailure:
    """Return the failure of a row from a file system's exception, without the exception's text.

    Args:
        error: The file system's exception.
        shown: The row's address, redacted.
    """
    if isinstance(error, TimeoutError):
        return RowFailure(Status.TIMEOUT, f"the file system did not respond in time: {shown}")
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return RowFailure(Status.READ_ERROR, f"{reason}: {shown}")
    number = getattr(error, "errno", None)
    reason = os.strerror(number) if isinstance(number, int) else type(error).__name__
    return RowFailure(Status.READ_ERROR, f"cannot be read ({reason}): {shown}")


def blocked_failure(shown: str) -> RowFailure:
    """Return the failure of a row whose address may not be read.

    It must not map a network: it does not distinguish a private address from a metadata service, a
    redirect's target from the row's own address, or an existing folder from a missing one.

    Args:
        shown: The row's own address, redacted; never what it resolves or redirects to.
    """
    return RowFailure(
        Status.BLOCKED,
        "the address may not be read; "
        f"see allow_paths, allow_hosts, allow_networks, allow_schemes: {shown}",
    )
