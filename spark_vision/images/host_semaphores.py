"""Limits how many threads of a task fetch from one host at the same time."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class HostSemaphores:
    """A semaphore per host.

    Args:
        limit: Maximum concurrent fetches from one host.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._active: Counter[str] = Counter()

    def acquire(self, host: str) -> None:
        """Wait until a fetch from the host may start, and count it."""
        with self._changed:
            self._changed.wait_for(lambda: self._active[host] < self._limit)
            self._active[host] += 1

    def release(self, host: str) -> None:
        """End a fetch from the host."""
        with self._changed:
            self._active[host] -= 1
            if not self._active[host]:
                del self._active[host]
            self._changed.notify_all()

    @contextmanager
    def released(self, host: str) -> Iterator[None]:
        """Release the host for the duration of the block.

        A thread that waits for memory sends nothing to the host, and may be waiting for a row that
        waits for this host. For the same reason it reacquires the host without waiting.
        """
        self.release(host)
        try:
            yield
        finally:
            with self._changed:
                self._active[host] += 1
