"""Implements `model_placement`: computes rows and returns the placement of the model."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch

from spark_vision.errors import RowFailure
from spark_vision.executor.image_columns import compute_images
from spark_vision.executor.loaded_model import Placement
from spark_vision.executor.task import Task
from spark_vision.executor.work import ImageWork, load_work
from spark_vision.operators import Operator, reads_images

PLACEMENT_TYPE = pa.struct(
    {
        "host": pa.string(),
        "executor": pa.string(),
        "device": pa.string(),
        "server_pid": pa.int64(),
        "loaded_at": pa.timestamp("us", tz="UTC"),
        "load_seconds": pa.float64(),
        "dtype": pa.string(),
        "fingerprint": pa.string(),
    }
)

Row = Placement | RowFailure


def place_rows(
    batches: Iterable[pa.Array | tuple[pa.Array, ...]], operator: Operator, task: Task
) -> Iterator[pa.Array]:
    """Compute every row, and yield the placement of the model that computed it.

    Args:
        batches: The operator's input.
        operator: What to compute.
        task: Its resources.

    Yields:
        Structs of `PLACEMENT_TYPE` in the order of the input, null for failed rows.

    Raises:
        SparkVisionError: The operator cannot run here.
    """
    # A failed row has no placement, whatever the operator's failure options are.
    operator = dataclasses.replace(operator, on_error="null", max_failure_rate=None)
    if reads_images(operator):
        for (array,) in compute_images(batches, [operator], task, look=PlacedWork):
            yield array
        return
    opened = load_work(operator)(batches, operator, task)
    for outcomes in opened.outcomes:
        yield _to_array(_place(outcomes, opened.placement))


class PlacedWork:
    """Wraps an operator's work on images to return placements instead of its outcomes."""

    def __init__(self, work: ImageWork) -> None:
        self._work = work
        self.placement = work.placement
        self.portion_row_count = work.portion_row_count

    def prepare(self, image: torch.Tensor, prompt: str | None) -> Any:
        """Prepare as the operator does."""
        return self._work.prepare(image, prompt)

    def compute(self, portions: Iterable[list[Any]]) -> Iterator[list[Row]]:
        """Compute as the operator does."""
        for outcomes in self._work.compute(portions):
            yield _place(outcomes, self.placement)

    def build(self, outcomes: Sequence[Row], with_status: bool) -> pa.Array:
        """Build structs of placements; `with_status` has no effect."""
        return _to_array(outcomes)


def _place(outcomes: Sequence[Any], placement: Callable[[], Placement]) -> list[Row]:
    if all(isinstance(outcome, RowFailure) for outcome in outcomes):
        return list(outcomes)
    placed = placement()
    return [outcome if isinstance(outcome, RowFailure) else placed for outcome in outcomes]


def _to_array(rows: Sequence[Row]) -> pa.Array:
    given = [None if isinstance(row, RowFailure) else dataclasses.asdict(row) for row in rows]
    for row in given:
        if row is not None:
            row["loaded_at"] = int(row["loaded_at"] * 1_000_000)
    return pa.array(given, PLACEMENT_TYPE)
