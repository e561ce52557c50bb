"""The body of `model_placement`: rows are computed, and what computed them says where it is."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch

from spark_vision.errors import RowFailure
from spark_vision.executor.image_columns import compute_images
from spark_vision.executor.placement import Placement
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
    """Compute every row, and give back the placement of the model that computed it.

    Args:
        batches: What the operator reads.
        operator: What to compute.
        task: What it may use.

    Yields:
        Structs of `PLACEMENT_TYPE`, null for rows that reached no model, in the input's order.

    Raises:
        SparkVisionError: The operator cannot run here.
    """
    # Whatever the operator makes of failed rows: here they have no model, and so no placement.
    operator = dataclasses.replace(operator, on_error="null", max_failure_rate=None)
    if reads_images(operator):
        for (array,) in compute_images(batches, [operator], task, look=PlacedWork):
            yield array
        return
    opened = load_work(operator)(batches, operator, task)
    for outcomes in opened.outcomes:
        yield _to_array(_place(outcomes, opened.placement))


class PlacedWork:
    """An operator's work on images, of whose outcomes only the placement is kept."""

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
        """Make structs of placements, whatever `with_status` says."""
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
