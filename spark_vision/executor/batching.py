"""An ordered, bounded pipeline: threads work ahead of the model, never too far or out of order."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from spark_vision.errors import RowFailure

# What leaves for Spark at a time: so many rows, or as many as there are after so long.
OUTPUT_ROW_COUNT = 256
OUTPUT_WAIT_SECONDS = 1.0

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def working_threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Keep a pool of threads in which torch computes on one core per thread.

    A task that ends early (a `LIMIT`, an exception) does not wait for work that nobody needs.
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
    """Apply `work` to the items in threads, and give the results in the items' order.

    Args:
        pool: Where the work runs.
        work: Called once per item; its exception is raised where its result would come.
        items: Read only as far as `may_add` allows.
        may_add: Given the count of results that are not taken yet, whether to start another.
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
    """Cut portions of rows into batches that the model computes at once, across their borders.

    Failed rows ride along in their place and do not count, so that a model's batches are full even
    where rows fail; a batch ends all the same when it has eight times as many rows as it may
    compute.

    Args:
        portions: Rows in order, each ready for the model or failed.
        batch_size: Most ready rows of one batch.
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

    Each Arrow batch that goes back to Spark has a fixed cost, which small ones would multiply; a
    slow model's rows still leave soon, so that Spark's metrics show progress.
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
