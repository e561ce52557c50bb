"""Ends a Python worker in which a decoder hangs, so that Spark retries the task.

A decoder cannot be stopped within this process, and Spark has no time limit for a task. The next
attempt decodes each image in a separate process, which isolates the image at fault.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A multiple of the time limit of one image, since ending the worker costs the whole task attempt.
PATIENCE = 5
EXIT_CODE = 75


class DecodeWatchdog:
    """Watches the decoding threads of one task.

    Args:
        seconds: The time limit of one image; None disables the watchdog.
        end: Called when an image takes `PATIENCE` times as long; ends the process.
    """

    def __init__(self, seconds: float | None, end: Callable[[int], object] = os._exit) -> None:
        self._seconds = None if seconds is None else PATIENCE * seconds
        self._end = end
        self._started: dict[int, float] = {}
        self._is_over = threading.Event()

    def __enter__(self) -> "DecodeWatchdog":
        if self._seconds is not None:
            threading.Thread(target=self._watch, name="spark-vision-watch", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Watch the calling thread while it decodes one image."""
        thread = threading.get_ident()
        self._started[thread] = time.monotonic()
        try:
            yield
        finally:
            del self._started[thread]

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
