"""An ordered, bounded pipeline: threads prepare rows ahead of the model."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from spark_vision.errors import RowFailure

# An output batch is sent to Spark when it has this many rows or is this old.
OUTPUT_ROW_COUNT = 256
OUTPUT_WAIT_SECONDS = 1.0

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def thread_pool(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Create a thread pool in which torch uses one core per thread.

    A task that ends early (a `LIMIT`, an exception) does not wait for pending work.
    """
    pool = ThreadPoolExecutor(count, name, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def map_ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    may_add: Callable[[int], bool],
) -> Iterator[Result]:
    """Apply `work` to the items in threads, and yield the results in the order of the items.

    Args:
        pool: Runs the work.
        work: Called once per item. An exception is raised in place of the result.
        items: Read only as far as `may_add` allows.
        may_add: Returns whether to start another item, given the number of pending results.
    """
    waiting: deque[Future[Result]] = deque()
    source = iter(items)
    exhausted = False
    while True:
        while not exhausted and (not waiting or may_add(len(waiting))):
            try:
                waiting.append(pool.submit(work, next(source)))
            except StopIteration:
                exhausted = True
        if not waiting:
            return
        yield waiting.popleft().result()


def regroup(
    portions: Iterable[list[Item | RowFailure]], batch_size: int
) -> Iterator[list[Item | RowFailure]]:
    """Regroup portions of rows into batches for the model.

    Failed rows keep their place but do not count, so that batches are full even where rows fail.
    A batch has at most `8 * batch_size` rows, failed ones included.

    Args:
        portions: Rows in order, each ready for the model or failed.
        batch_size: Maximum number of ready rows in a batch.
    """
    batch: list[Item | RowFailure] = []
    ready_count = 0
    for portion in portions:
        for row in portion:
            batch.append(row)
            ready_count += not isinstance(row, RowFailure)
            if ready_count == batch_size or len(batch) == 8 * batch_size:
                yield batch
                batch, ready_count = [], 0
    if batch:
        yield batch


def gather(
    batches: Iterable[list[Item]], row_count: int, wait_seconds: float
) -> Iterator[list[Item]]:
    """Join batches until they hold `row_count` rows or are `wait_seconds` old.

    Each Arrow batch sent to Spark has a fixed cost, so small batches are joined. The time limit
    keeps Spark's metrics up to date when the model is slow.
    """
    joined: list[Item] = []
    started = time.monotonic()
    for batch in batches:
        joined.extend(batch)
        if len(joined) >= row_count or time.monotonic() - started >= wait_seconds:
            yield joined
            joined = []
            started = time.monotonic()
    if joined:
        yield joined
