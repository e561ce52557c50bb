"""Limits the bytes of pixels in memory: large images wait for each other.

An image takes all its bytes at once and holds nothing while it waits, so there is no deadlock. If
no other image is being decoded, it proceeds whatever its size.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class DecodingBudget:
    """The bytes of images being decoded, shared by the threads of one task.

    Args:
        capacity_bytes: Maximum of all images together; a single image may exceed it.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._changed = threading.Condition(threading.Lock())
        self._held_bytes = 0

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Wait until `count` bytes are free, and hold them until the block ends."""
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
