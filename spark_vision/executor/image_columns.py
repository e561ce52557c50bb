"""Computes operators over image columns: each image is fetched and decoded once for all of them."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa
import torch

from spark_vision.executor.batching import OUTPUT_ROW_COUNT, OUTPUT_WAIT_SECONDS, gather
from spark_vision.executor.failures import FailurePolicy, RowNames, count_statuses
from spark_vision.executor.image_rows import ImageRows, Prepared
from spark_vision.executor.task import Task
from spark_vision.operators import ImageOperator

CountStatuses = Callable[[dict[str, int]], None]


class ImageWork(Protocol):
    """Computes one operator for the images of a task."""

    @property
    def portion_row_count(self) -> int:
        """Number of rows that one thread prepares at a time."""
        ...

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size to which an image is resized; asked only with `fast_decode`."""
        ...

    def prepare(self, image: torch.Tensor, prompt: str | None) -> Any:
        """Prepare one decoded image and its optional prompt for the model."""
        ...

    def compute(self, portions: Iterable[list[Any]]) -> Iterator[list[Any]]:
        """Run the model over prepared rows; yields outcomes in the order of the rows."""
        ...

    def build(self, outcomes: Sequence[Any], with_status: bool) -> pa.Array:
        """Build the Arrow array of some outcomes."""
        ...


def compute_images(
    batches: Iterable[pa.Array | tuple[pa.Array, ...]],
    operators: Sequence[ImageOperator],
    task: Task,
    *,
    with_status: bool = False,
    keys: Sequence[str] = (),
    counts: Sequence[CountStatuses] = (),
) -> Iterator[list[pa.Array]]:
    """Compute each operator for each image.

    Args:
        batches: Images as `images.sources.open_column` reads them, of any length; or pairs of
            images and prompts (strings).
        operators: What to compute; all of them read images with the same options.
        task: Its resources.
        with_status: Yield structs of value, status and error instead of values.
        keys: Names of key values by which an error identifies a row. With keys, each batch has one
            more array, of lists of strings, with their values.
        counts: One callback per operator, called with the number of rows by status.

    Yields:
        One array per operator. Lengths differ from the input's; elements are in the order of the
        input.

    Raises:
        SparkVisionError: An operator cannot run here; a row failed with `on_error="raise"`; more
            rows failed than `max_failure_rate` allows.
    """
    names = RowNames(operators, keys)
    policies = [FailurePolicy(operator, names) for operator in operators]
    works = [operator.load_work()(operator, task) for operator in operators]
    rows = ImageRows(
        operators[0],
        [work.prepare for work in works],
        cpu_count=task.cpus,
        ahead_count=max(operator.batch_size for operator in operators),
        portion_row_count=min(work.portion_row_count for work in works),
        resized_sizes=[work.resized_size for work in works] if operators[0].fast_decode else (),
        attempt_number=task.attempt_number,
    )
    prepared = itertools.tee(rows.prepare(map(_with_prompts, names.watch(batches))), len(works))
    outcomes = [
        work.compute(_choose(portions, index))
        for index, (work, portions) in enumerate(zip(works, prepared, strict=True))
    ]
    done = 0
    for given in gather(_align(outcomes), OUTPUT_ROW_COUNT, OUTPUT_WAIT_SECONDS):
        columns = list(zip(*given, strict=True))
        for count, column in zip(counts, columns, strict=False):
            count(count_statuses(column))
        for policy, column in zip(policies, columns, strict=True):
            policy.check(column)
        done += len(given)
        names.forget(done)
        yield [work.build(column, with_status) for work, column in zip(works, columns, strict=True)]


def _with_prompts(batch: pa.Array | tuple[pa.Array, ...]) -> tuple[pa.Array, pa.Array | None]:
    if not isinstance(batch, tuple):
        return batch, None
    images, prompts = batch
    return images, prompts


def _align(streams: Sequence[Iterator[list[Any]]]) -> Iterator[list[tuple[Any, ...]]]:
    """Zip streams of lists row by row, whatever the lengths of their lists."""
    held: list[deque[Any]] = [deque() for _ in streams]
    while True:
        for rows, stream in zip(held, streams, strict=True):
            while not rows:
                portion = next(stream, None)
                if portion is None:
                    return
                rows.extend(portion)
        count = min(map(len, held))
        yield [tuple(rows.popleft() for rows in held) for _ in range(count)]


def _choose(portions: Iterator[list[Prepared]], index: int) -> Iterator[list[Any]]:
    return ([row[index] for row in portion] for portion in portions)
