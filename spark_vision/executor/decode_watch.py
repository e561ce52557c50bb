"""Ends a Python worker in which a decoder hangs, so that Spark tries its task again.

Nothing can stop a decoder that runs in this process, and Spark has no time limit for a task. The
next attempt decodes each image in a process of its own, and finds the one.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Far beyond what any image takes, isolated or not: the worker and its task are lost.
PATIENCE = 5
EXIT_CODE = 75


class DecodeWatch:
    """Watches the threads of one task that decode.

    Args:
        seconds: What one image may take where it can be stopped; None watches nothing.
        end: Called when one takes far longer; it ends the process.
    """

    def __init__(self, seconds: float | None, end: Callable[[int], object] = os._exit) -> None:
        self._seconds = None if seconds is None else PATIENCE * seconds
        self._end = end
        self._started: dict[int, float] = {}
        self._is_over = threading.Event()

    def __enter__(self) -> "DecodeWatch":
        if self._seconds is not None:
            threading.Thread(target=self._watch, name="spark-vision-watch", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Say that the calling thread decodes one image meanwhile."""
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
                    f"spark_vision: an image has been decoded for {seconds:g} s; this Python "
                    "worker ends, so that Spark tries the task again with each image isolated",
                    file=sys.stderr,
                    flush=True,
                )
                self._end(EXIT_CODE)
                return
