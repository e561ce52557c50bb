"""Computes operators over columns: each image is fetched and decoded once for all of them."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from spark_vision.executor.failures import Columns, CountStatuses, RowNames, check_rows
from spark_vision.executor.task import Task
from spark_vision.operators import ImageOperator, Operator, reads_images

if TYPE_CHECKING:
    import torch

    from spark_vision.executor.image_rows import Prepared


class ImageWork(Protocol):
    """Computes one operator for the images of a task."""

    @property
    def portion_row_count(self) -> int:
        """Number of rows that one thread prepares at a time."""
        ...

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size to which an image is resized; asked only with `fast_decode`."""
        ...

    def prepare(self, image: "torch.Tensor", prompt: str | None) -> Any:
        """Prepare one decoded image and its optional prompt for the model."""
        ...

    def compute(self, portions: Iterable[list[Any]]) -> Iterator[list[Any]]:
        """Run the model over prepared rows; yields outcomes in the order of the rows."""
        ...

    def build(self, outcomes: Sequence[Any], with_status: bool) -> pa.Array:
        """Build the Arrow array of some outcomes."""
        ...


def compute_columns(
    batches: Iterable[Columns],
    operators: Sequence[Operator],
    task: Task,
    *,
    with_status: bool = False,
    keys: Sequence[str] = (),
    counts: Sequence[CountStatuses] = (),
) -> Iterator[list[pa.Array]]:
    """Compute operators for each row.

    Args:
        batches: Of any length: images as `images.sources.open_column` reads them, or pairs of
            images and prompts (strings); texts; or vectors.
        operators: What to compute: one, or several that read images with the same options.
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
    images = [operator for operator in operators if reads_images(operator)]
    if images:
        yield from _compute_images(batches, images, task, with_status, keys, counts)
        return
    (operator,) = operators
    count = counts[0] if counts else None
    compute = operator.load_work()
    for array in compute(batches, operator, task, with_status=with_status, keys=keys, count=count):
        yield [array]


def _compute_images(
    batches: Iterable[Columns],
    operators: Sequence[ImageOperator],
    task: Task,
    with_status: bool,
    keys: Sequence[str],
    counts: Sequence[CountStatuses],
) -> Iterator[list[pa.Array]]:
    # Texts do not need this, whose import takes seconds.
    from spark_vision.executor.image_rows import ImageRows

    names = RowNames(operators, keys)
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
    for columns in check_rows(outcomes, operators, names, counts):
        yield [work.build(column, with_status) for work, column in zip(works, columns, strict=True)]


def _with_prompts(batch: Columns) -> tuple[pa.Array, pa.Array | None]:
    if not isinstance(batch, tuple):
        return batch, None
    images, prompts = batch
    return images, prompts


def _choose(portions: "Iterator[list[Prepared]]", index: int) -> Iterator[list[Any]]:
    return ([row[index] for row in portion] for portion in portions)
