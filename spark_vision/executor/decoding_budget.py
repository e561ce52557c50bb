"""How many bytes of pixels may be in memory at a time: large images wait for each other.

An image takes all that it needs at once and waits while holding nothing. So whoever holds bytes
ends and gives them back: there is no deadlock. An image that is alone goes on, whatever it takes.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class DecodingBudget:
    """A count of the bytes of images being decoded, shared by the threads of one task.

    Args:
        capacity_bytes: Most of all images together, but for one that is alone.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._changed = threading.Condition(threading.Lock())
        self._held_bytes = 0

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Wait until so many bytes fit, and hold them until the block ends."""
        with self._changed:
            while self._held_bytes and self._held_bytes + count > self._capacity_bytes:
                self._changed.wait()
            self._held_bytes += count
        try:
            yield
        finally:
            with self._changed:
                self._held_bytes -= count
                self._changed.notify_all()
