"""Runs calls that may never return on threads with a deadline, and abandons threads that miss it.

Python cannot kill a thread. So a thread that hangs in a file system is abandoned with all that it
holds. The number of abandoned threads per process is limited; above it further calls fail at once.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

from spark_vision.errors import RowFailure, Status

Result = TypeVar("Result")

MAX_ABANDONED = 32

# What to call, where its outcome goes, and what undoes a result that nobody waits for.
_Call = tuple[Callable[[], Any], Future[Any], Callable[[Any], None] | None]

_hanging: set["DeadlineThread"] = set()


class DeadlineThread:
    """A thread that makes one call at a time, while the caller waits with a timeout.

    Attributes:
        is_abandoned: Whether a call missed its deadline; no other call may be made.

    Raises:
        RowFailure: `timeout` if too many threads of this process already hang.
    """

    def __init__(self) -> None:
        if len(_hanging) >= MAX_ABANDONED:
            raise RowFailure(
                Status.TIMEOUT,
                f"{MAX_ABANDONED} earlier reads still hang; no further one is started",
            )
        self.is_abandoned = False
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        threading.Thread(target=self._work, name="spark-vision-store", daemon=True).start()

    def call(
        self,
        work: Callable[[], Result],
        seconds: float,
        undo: Callable[[Result], None] | None = None,
    ) -> Result:
        """Make a call; return its result or raise its exception.

        Args:
            work: The function to call.
            seconds: The timeout.
            undo: Called with a result that arrives after the timeout.

        Raises:
            TimeoutError: The call did not return in time.
        """
        future: Future[Result] = Future()
        self._calls.put((work, future, undo))
        if not wait([future], seconds).done:
            # Before the thread can see that its call was cancelled.
            _hanging.add(self)
            if future.cancel():
                self.is_abandoned = True
                raise TimeoutError
            _hanging.discard(self)
        return future.result()

    def enqueue(self, work: Callable[[], object]) -> None:
        """Let an abandoned thread make one more call if it returns, without waiting for it."""
        self._calls.put((work, Future(), None))

    def end(self) -> None:
        """Let the thread end after its queued calls."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            work, future, undo = call
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:
                error = raised
            try:
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)
            except InvalidStateError:  # the caller has cancelled it
                _hanging.discard(self)
                if undo is not None and error is None:
                    undo(result)
            # Do not keep the result alive until the next call.
            del call, work, future, undo, result, error


class DeadlineThreadPool:
    """A pool of such threads."""

    def __init__(self) -> None:
        self._waiting: list[DeadlineThread] = []
        self._is_closed = False
        self._lock = threading.Lock()

    @contextmanager
    def take(self) -> Iterator[DeadlineThread]:
        """Lend a thread for calls, one after another.

        Raises:
            RowFailure: `timeout` if too many threads of this process already hang.
        """
        with self._lock:
            thread = self._waiting.pop() if self._waiting else None
        thread = thread or DeadlineThread()
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
        """End the idle threads, and each other thread when it is returned."""
        with self._lock:
            self._is_closed = True
            waiting, self._waiting = self._waiting, []
        for thread in waiting:
            thread.end()
