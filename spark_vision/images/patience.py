"""Calls that may never return, each with a deadline: a thread that misses it is left behind.

Python cannot end a thread. So one that a file system holds is abandoned with what it holds, and
their number in this process is bounded: once so many hang, nobody waits for another.
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from spark_vision.errors import RowFailure
from spark_vision.status import Status

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
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        threading.Thread(target=self._work, name="spark-vision-store", daemon=True).start()

    def call(self, work: Callable[[], Result], seconds: float) -> Result:
        """Return what the call returns, or raise what it raises.

        Raises:
            TimeoutError: It has not returned within the time.
        """
        self._calls.put(work)
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

    def end(self) -> None:
        """Let the thread end when it has made its call."""
        self._calls.put(None)

    def _work(self) -> None:
        while (work := self._calls.get()) is not None:
            outcome: tuple[Any, BaseException | None]
            try:
                outcome = work(), None
            except BaseException as error:
                outcome = None, error
            del work
            with _lock:
                if self.is_abandoned:
                    _hanging.discard(self)
                    return
                self._outcomes.put(outcome)
            del outcome
