"""What a Python worker spends: nanoseconds by step, and counts, added up until they are taken.

A worker runs one task at a time. All threads of the task add to one sum, once per batch or fetch;
the task's function takes the sum with each output batch.
"""

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")

BUSY_PREFIX = "busy_ns of "

_lock = threading.Lock()
_spent: Counter[str] = Counter()


def spend(**amounts: int) -> None:
    """Add amounts by name."""
    with _lock:
        for name, amount in amounts.items():
            _spent[name] += amount


def take_spent() -> dict[str, int]:
    """Return the amounts since the last call."""
    with _lock:
        taken = dict(_spent)
        _spent.clear()
    return taken


class BusyTime:
    """The time in which this process computes with a model, where calls that overlap count once.

    In amounts, its name is that of the process, so that the processes can be counted.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running_count = 0
        self._counted_until = 0
        self._nanoseconds = 0

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Count the block's time."""
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    def take(self) -> dict[str, int]:
        """Return the amount since the last call."""
        with self._lock:
            self._count()
            taken, self._nanoseconds = self._nanoseconds, 0
        return {f"{BUSY_PREFIX}{socket.gethostname()}:{os.getpid()}": taken}

    def _change(self, difference: int) -> None:
        with self._lock:
            self._count()
            self._running_count += difference

    def _count(self) -> None:
        now = time.perf_counter_ns()
        if self._running_count:
            self._nanoseconds += now - self._counted_until
        self._counted_until = now


busy_time = BusyTime()


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Add the block's nanoseconds to a step."""
    started = time.perf_counter_ns()
    try:
        yield
    finally:
        spend(**{step: time.perf_counter_ns() - started})


def count_spent(
    outputs: Callable[[Iterator[Item]], Iterable[Item]],
    inputs: Iterable[Item],
    count: Callable[[dict[str, int]], None] | None,
) -> Iterator[Item]:
    """Yield a task's outputs, and count what the task spends.

    Args:
        outputs: Computes the outputs from the inputs.
        inputs: The time until Spark passes each is `read_ns`.
        count: Called with what has been spent, once per output and at the end; None forgets it.
    """

    def take() -> None:
        spent = take_spent()
        if count is not None:
            count(spent)

    take_spent()  # Of a task that ended early.
    for output in outputs(_timed_items(inputs)):
        take()
        # Meanwhile Spark takes the output, and writes what it took before.
        with timed("write_ns"):
            yield output
    take()


def _timed_items(items: Iterable[Item]) -> Iterator[Item]:
    source = iter(items)
    while True:
        with timed("read_ns"):
            try:
                item = next(source)
            except StopIteration:
                return
        yield item
