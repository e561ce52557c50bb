"""An ordered, bounded pipeline: threads prepare rows ahead of the model, which computes batches."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from spark_vision.errors import RowFailure
from spark_vision.executor.devices import use_one_core

# An output batch is sent to Spark when it has this many rows or is this old.
OUTPUT_ROW_COUNT = 256
OUTPUT_WAIT_SECONDS = 1.0
WINDOW_BATCH_COUNT = 8
WINDOW_BYTES = 256 * 2**20

Item = TypeVar("Item")
Result = TypeVar("Result")


class Sized(Protocol):
    """A row with a known size in memory."""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        ...


Ready = TypeVar("Ready", bound=Sized)


@contextmanager
def thread_pool(
    count: int, name: str, prepare_thread: Callable[[], None] = use_one_core
) -> Iterator[ThreadPoolExecutor]:
    """Create a thread pool in which torch uses one core per thread, unless said otherwise.

    A task that ends early (a `LIMIT`, an exception) does not wait for pending work.

    Args:
        count: Number of threads.
        name: Prefix of their names.
        prepare_thread: Called once in each thread.
    """
    pool = ThreadPoolExecutor(count, name, initializer=prepare_thread)
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


def compute_in_length_buckets(
    portions: Iterable[list[Ready | RowFailure]],
    compute: Callable[[Iterable[list[Ready | RowFailure]]], Iterator[list[Any]]],
    length: Callable[[Ready], int],
    batch_size: int,
) -> Iterator[list[Any]]:
    """Compute rows in batches of similar length, and yield their outcomes in order.

    A batch is padded to its longest row. Each batch takes the oldest waiting row and the rows of a
    bounded window that are closest to it in length, so no row waits longer than the window.

    Args:
        portions: Rows in order, each ready for the model or failed.
        compute: Computes batches; yields one outcome for each row of a batch, batch by batch. It
            may take further batches before it yields, as many as it likes.
        length: Returns the length of a row; a batch is padded to the maximum.
        batch_size: Maximum number of rows in a batch.

    Yields:
        Outcomes of consecutive rows as soon as they are available. A failed row is its own outcome.
    """
    rows = itertools.chain.from_iterable(portions)
    window_rows = WINDOW_BATCH_COUNT * batch_size
    waiting: dict[int, Ready] = {}
    outcomes: dict[int, Any] = {}
    computed_places: deque[list[int]] = deque()
    taken_count = given_count = 0

    def batches() -> Iterator[list[Ready | RowFailure]]:
        nonlocal taken_count
        held_bytes = 0
        is_exhausted = False
        while waiting or not is_exhausted:
            while (
                not is_exhausted
                and len(waiting) < window_rows
                and held_bytes < WINDOW_BYTES
                # Failed rows wait for older rows, and their number must be bounded too.
                and taken_count - given_count < WINDOW_BATCH_COUNT * window_rows
            ):
                row = next(rows, None)
                if row is None:
                    is_exhausted = True
                else:
                    if isinstance(row, RowFailure):
                        outcomes[taken_count] = row
                    else:
                        waiting[taken_count] = row
                        held_bytes += row.nbytes
                    taken_count += 1
            # An empty batch lets the outcomes so far be yielded.
            oldest = length(next(iter(waiting.values()))) if waiting else 0
            nearest = sorted(waiting, key=lambda place: abs(length(waiting[place]) - oldest))
            computed_places.append(nearest[:batch_size])
            batch = [waiting.pop(place) for place in computed_places[-1]]
            held_bytes -= sum(row.nbytes for row in batch)
            yield [*batch]

    for computed in compute(batches()):
        outcomes.update(zip(computed_places.popleft(), computed, strict=True))
        ready = []
        while given_count in outcomes:
            ready.append(outcomes.pop(given_count))
            given_count += 1
        if ready:
            yield ready


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
