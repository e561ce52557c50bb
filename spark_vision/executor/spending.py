"""What a Python worker spends: nanoseconds by step, and counts, added up until they are taken.

A worker runs one task at a time. All threads of the task add to one sum, once per batch or fetch;
the task's function takes the sum with each output batch.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")

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
