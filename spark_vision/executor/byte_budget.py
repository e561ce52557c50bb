"""Limits the fetched bytes in memory, without deadlocks.

Threads take bytes while they fetch and release them once the image is decoded. A thread waits when
the budget is used up, except the one with the oldest row: it always proceeds, and then releases its
bytes.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ByteBudget:
    """The bytes in flight, shared by the fetching threads of one task."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._changed = threading.Condition()
        self._held_bytes: dict[int, int] = {}
        self._closed = False

    @contextmanager
    def hold(self, order: int) -> Iterator[Callable[[int], None]]:
        """Hold bytes for one row until the block ends.

        Args:
            order: The row's position in the input. The smallest one held never waits.

        Yields:
            A function that takes the given number of bytes, waiting if necessary.
        """
        with self._changed:
            self._held_bytes[order] = 0
        try:
            yield lambda count: self._take(order, count)
        finally:
            with self._changed:
                del self._held_bytes[order]
                self._changed.notify_all()

    def close(self) -> None:
        """Release every waiting thread, because the task has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self, order: int, count: int) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or order == min(self._held_bytes)
                    or sum(self._held_bytes.values()) + count <= self._capacity_bytes
                )
            )
            self._held_bytes[order] += count
