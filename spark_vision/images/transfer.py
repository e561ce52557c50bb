"""One image on its way into memory: the seconds and bytes that it may still take."""

import time
from collections.abc import Callable

from spark_vision.errors import RowFailure
from spark_vision.operators import ImageLimits
from spark_vision.status import Status


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
        self._pieces: list[bytes] = []
        self._size = 0

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
        """Refuse an announced size, before anything is read.

        Raises:
            RowFailure: `too_large`.
        """
        if size > self.allowance:
            raise RowFailure(
                Status.TOO_LARGE, f"the image has more than the {self._max_bytes:,} bytes allowed"
            )

    def keep(self, piece: bytes) -> None:
        """Add the next bytes.

        Raises:
            RowFailure: `too_large` or `timeout`.
        """
        self.expect(len(piece))
        if self._on_bytes is not None:
            before = time.monotonic()
            self._on_bytes(len(piece))
            self._deadline += time.monotonic() - before
        self.remaining_seconds()
        self._pieces.append(piece)
        self._size += len(piece)

    def data(self) -> bytes:
        """Return what was kept."""
        return b"".join(self._pieces)
