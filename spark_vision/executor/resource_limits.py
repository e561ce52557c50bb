"""Limits what the images of a task take while they are in flight: bytes, and time to decode."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A multiple of the time limit of one image, since ending the worker costs the whole task attempt.
PATIENCE = 5
EXIT_CODE = 75


class Budget:
    """Bytes that the threads of one task share, each taken at once.

    A thread holds nothing while it waits, so there is no deadlock.

    Args:
        capacity_bytes: Maximum of all together; a single `hold` may exceed it.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._changed = threading.Condition()
        self._held_bytes = 0

    def try_take(self, count: int) -> bool:
        """Take `count` bytes; return False if they do not fit."""
        with self._changed:
            if not self._fits(count):
                return False
            self._held_bytes += count
            return True

    def release(self, count: int) -> None:
        """Give bytes back."""
        with self._changed:
            self._held_bytes -= count
            self._changed.notify_all()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Wait until `count` bytes are free or no others are held; hold them for the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held_bytes or self._fits(count))
            self._held_bytes += count
        try:
            yield
        finally:
            self.release(count)

    def _fits(self, count: int) -> bool:
        return self._held_bytes + count <= self._capacity_bytes


class OrderedBudget:
    """Bytes of rows, which threads take and which are released in any order.

    A thread waits when the budget is used up, except the one with the oldest row: it always
    proceeds, and its bytes are then released. So there is no deadlock.

    Args:
        capacity_bytes: Maximum of all rows together, beyond those of the oldest.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._changed = threading.Condition()
        self._held_bytes: dict[int, int] = {}
        self._total_bytes = 0
        self._closed = False

    @contextmanager
    def hold(self, order: int) -> Iterator[Callable[[int], None]]:
        """Hold bytes for one row until the block ends.

        Args:
            order: The row's position in the input. The smallest one held never waits.

        Yields:
            A function that takes the given number of bytes, waiting if necessary.
        """
        self.enter(order)
        try:
            yield lambda count: self.take(order, count)
        finally:
            self.leave(order)

    def enter(self, order: int) -> None:
        """Begin with a row, which holds no bytes yet."""
        with self._changed:
            self._held_bytes[order] = 0

    def leave(self, order: int) -> None:
        """Release what a row holds."""
        with self._changed:
            self._total_bytes -= self._held_bytes.pop(order)
            self._changed.notify_all()

    def close(self) -> None:
        """Release every waiting thread, because the task has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, order: int, count: int) -> None:
        """Take bytes for a row, waiting for room."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or self._total_bytes + count <= self._capacity_bytes
                    or order == min(self._held_bytes)
                )
            )
            self._held_bytes[order] += count
            self._total_bytes += count

    def settle(self, order: int, count: int) -> None:
        """Note how many bytes a row holds indeed, in the place of those that it has taken."""
        with self._changed:
            self._total_bytes += count - self._held_bytes[order]
            self._held_bytes[order] = count
            self._changed.notify_all()


class DecodeWatchdog:
    """Ends a Python worker in which a decoder hangs, so that Spark retries the task.

    A decoder cannot be stopped within this process, and Spark has no time limit for a task. The
    next attempt decodes each image in a separate process, which isolates the image at fault.

    Args:
        seconds: The time limit of one image; None disables the watchdog.
        end: Called when an image takes `PATIENCE` times as long; ends the process.
    """

    def __init__(self, seconds: float | None, end: Callable[[int], object] = os._exit) -> None:
        self._seconds = None if seconds is None else PATIENCE * seconds
        self._end = end
        self._started: dict[int, float] = {}
        self._is_over = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch the images of a task."""
        if self._seconds is not None:
            threading.Thread(target=self._watch, name="spark-vision-watch", daemon=True).start()
        try:
            yield
        finally:
            self._is_over.set()

    def __enter__(self) -> None:
        """Watch the calling thread while it decodes one image."""
        self._started[threading.get_ident()] = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        del self._started[threading.get_ident()]

    def _watch(self) -> None:
        seconds = self._seconds or 0.0
        while not self._is_over.wait(min(1.0, seconds / PATIENCE)):
            now = time.monotonic()
            if any(now - since > seconds for since in list(self._started.values())):
                print(
                    f"spark_vision: decoding an image took more than {seconds:g} s; this Python "
                    "worker exits, so that Spark retries the task with each image isolated",
                    file=sys.stderr,
                    flush=True,
                )
                self._end(EXIT_CODE)
                return
