"""How many threads of a task may fetch from one host at a time."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class HostTurns:
    """A count of the fetches from each host; those above it wait.

    Args:
        most: Fetches from one host at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = threading.Condition()
        self._active: Counter[str] = Counter()

    def begin(self, host: str) -> None:
        """Wait for a turn, and take it."""
        with self._changed:
            self._changed.wait_for(lambda: self._active[host] < self._most)
            self._active[host] += 1

    def end(self, host: str) -> None:
        """Give a turn back."""
        with self._changed:
            self._active[host] -= 1
            if not self._active[host]:
                del self._active[host]
            self._changed.notify_all()

    @contextmanager
    def lent(self, host: str) -> Iterator[None]:
        """Give a turn to others for the time of the block.

        Whoever waits for memory meanwhile asks nothing of the host, and may wait for just the row
        that waits for this turn. Having it back takes no waiting, for the same reason.
        """
        self.end(host)
        try:
            yield
        finally:
            with self._changed:
                self._active[host] += 1
