"""Calls that may never return, each with a deadline: a thread that misses it is left behind.

Python cannot end a thread. So one that a file system holds is abandoned with what it holds, and
their number in this process is bounded: once so many hang, nobody waits for another.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from spark_vision.errors import RowFailure, Status

Result = TypeVar("Result")

MOST_ABANDONED = 32

_lock = threading.Lock()
_hanging: set["PatientThread"] = set()


class PatientThread:
    """A thread that makes one call at a time for another, which waits for a bounded time.

    Attributes:
        is_abandoned: A call has missed its deadline; no other may be made.

    Raises:
        RowFailure: `timeout`: too many threads of this process hang already.
    """

    def __init__(self) -> None:
        with _lock:
            if len(_hanging) >= MOST_ABANDONED:
                raise RowFailure(
                    Status.TIMEOUT,
                    f"{MOST_ABANDONED} earlier reads still hang, and no further one is begun",
                )
        self.is_abandoned = False
        self._calls: SimpleQueue[tuple[Callable[[], Any], Any] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        threading.Thread(target=self._work, name="spark-vision-store", daemon=True).start()

    def call(
        self,
        work: Callable[[], Result],
        seconds: float,
        undo: Callable[[Result], None] | None = None,
    ) -> Result:
        """Return what the call returns, or raise what it raises.

        Args:
            work: The call.
            seconds: How long it is waited for.
            undo: Gets what the call returns when nobody waits any more.

        Raises:
            TimeoutError: It has not returned within the time.
        """
        self._calls.put((work, undo))
        try:
            result, error = self._outcomes.get(timeout=seconds)
        except Empty:
            with _lock:
                # The thread takes the same lock before it says an outcome.
                if self._outcomes.empty():
                    self.is_abandoned = True
                    _hanging.add(self)
                    raise TimeoutError from None
            result, error = self._outcomes.get_nowait()
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def leave(self, work: Callable[[], object]) -> None:
        """Have an abandoned thread make one more call when it comes back; nobody waits for it."""
        self._calls.put((work, None))

    def end(self) -> None:
        """Let the thread end when it has made its calls."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            work, undo = call
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:
                error = raised
            with _lock:
                is_late = self.is_abandoned
                if not is_late:
                    self._outcomes.put((result, error))
                else:
                    _hanging.discard(self)
            if is_late and undo is not None and error is None:
                undo(result)
            # What a call has made is not held until the next one.
            del call, work, undo, result, error


class PatientThreads:
    """Threads that wait for the next call, so that not every call starts one."""

    def __init__(self) -> None:
        self._waiting: list[PatientThread] = []
        self._is_closed = False
        self._lock = threading.Lock()

    @contextmanager
    def take(self) -> Iterator[PatientThread]:
        """Give a thread for some calls, one after the other.

        Raises:
            RowFailure: `timeout`: too many threads of this process hang already.
        """
        with self._lock:
            thread = self._waiting.pop() if self._waiting else None
        thread = thread or PatientThread()
        try:
            yield thread
        finally:
            with self._lock:
                is_kept = not (thread.is_abandoned or self._is_closed)
                if is_kept:
                    self._waiting.append(thread)
            if not is_kept:
                thread.end()

    def close(self) -> None:
        """End the threads that wait, and each other one when it is given back."""
        with self._lock:
            self._is_closed = True
            waiting, self._waiting = self._waiting, []
        for thread in waiting:
            thread.end()
