"""One image on its way into memory: the seconds and bytes that it may still take."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from spark_vision.errors import RowFailure, Status
from spark_vision.operators import ImageLimits

# Headers, redirects and the framing of chunks, beside an image of the greatest size.
_EXTRA_RECEIVED_BYTES = 2**20


class Transfer:
    """Collects the bytes of one image, and ends the fetch that takes too long or grows too big.

    Args:
        limits: Their `fetch_seconds` run from now; their `max_bytes` count what is kept.
        on_bytes: Told the size of each piece before it is kept. It may block; that time does not
            count.
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
    def allowance(self) -> int:
        """Bytes that may still come."""
        return self._max_bytes - self._size

    def remaining_seconds(self) -> float:
        """Return the seconds that are left, more than 0.

        Raises:
            RowFailure: `timeout`: none are.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise RowFailure(
                Status.TIMEOUT, f"the image did not arrive within {self._seconds:g} seconds"
            )
        return left

    def has_time_for(self, seconds: float) -> bool:
        """Say whether a pause would end before the deadline."""
        return time.monotonic() + seconds < self._deadline

    def expect(self, size: int) -> None:
        """Refuse a size of the whole image, before it is read.

        Raises:
            RowFailure: `too_large`.
        """
        if size > self._max_bytes:
            raise RowFailure(
                Status.TOO_LARGE, f"the image has more than the {self._max_bytes:,} bytes allowed"
            )

    def count_received(self, size: int) -> None:
        """Count what a server sends, of whatever meaning.

        Raises:
            RowFailure: `too_large`: much more than an image may have.
        """
        self._received_bytes += size
        if self._received_bytes > 2 * self._max_bytes + _EXTRA_RECEIVED_BYTES:
            raise RowFailure(
                Status.TOO_LARGE, f"far more than the {self._max_bytes:,} bytes allowed were sent"
            )

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Let the time of the block not count: what it waits for is not the server."""
        before = time.monotonic()
        try:
            yield
        finally:
            self._deadline += time.monotonic() - before

    def keep(self, piece: bytes, while_waiting: AbstractContextManager[Any] | None = None) -> None:
        """Add the next bytes.

        Args:
            piece: The bytes.
            while_waiting: Entered while `on_bytes` may block.

        Raises:
            RowFailure: `too_large` or `timeout`.
        """
        self.expect(self._size + len(piece))
        if self._on_bytes is not None:
            with while_waiting or nullcontext(), self.uncounted():
                self._on_bytes(len(piece))
        self.remaining_seconds()
        self._kept.write(piece)
        self._size += len(piece)

    def data(self) -> bytes:
        """Return what was kept."""
        return self._kept.getvalue()
