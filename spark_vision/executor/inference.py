"""Runs the model on a batch so that a bad row fails alone.

A batch that raises or runs out of memory is halved until the bad row is isolated. The other rows
get the same results as without it.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch

from spark_vision.errors import RowFailure, Status

Ready = TypeVar("Ready")
Result = TypeVar("Result")


def compute_rows(
    rows: Sequence[Ready | RowFailure],
    compute: Callable[[list[Ready]], list[Result | RowFailure]],
    kind: Callable[[Ready], Hashable],
) -> list[Result | RowFailure]:
    """Compute the rows that are ready; return one outcome per row, in order.

    Args:
        rows: Model inputs, or failures of earlier steps.
        compute: Computes one outcome for each of several ready rows of one kind.
        kind: Rows of different kinds, such as shapes, are never in one batch.

    Raises:
        torch.AcceleratorError: The device is broken: no row can be computed on it.
    """
    outcomes: list[Any] = list(rows)
    places: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        if not isinstance(row, RowFailure):
            places.setdefault(kind(row), []).append(place)
    for group in places.values():
        computed = _compute([outcomes[place] for place in group], compute)
        for place, outcome in zip(group, computed, strict=True):
            outcomes[place] = outcome
    return outcomes


def _compute(
    ready: list[Ready], compute: Callable[[list[Ready]], list[Result | RowFailure]]
) -> list[Result | RowFailure]:
    try:
        return compute(ready)
    except torch.AcceleratorError:
        raise
    except (RuntimeError, ValueError, IndexError, MemoryError) as error:
        if len(ready) == 1:
            return [_failure(error)]
    # Outside the handler, whose traceback would keep the tensors of the failed batch alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(ready) // 2
    return _compute(ready[:middle], compute) + _compute(ready[middle:], compute)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means out of memory; torch has no class for that on CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _failure(error: Exception) -> RowFailure:
    if is_out_of_memory(error):
        return RowFailure(Status.OUT_OF_MEMORY, "the model ran out of memory on this row alone")
    return RowFailure(Status.MODEL_ERROR, f"{type(error).__name__}: {error}")
