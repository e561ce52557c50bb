"""Running the model on a batch so that a row at fault fails alone.

A batch that raises or runs out of memory is halved until the row at fault is by itself; its
neighbours get what they would have got without it.
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
    """Compute the rows that are ready, and give every row its outcome in its place.

    Args:
        rows: What the model takes, or why a row has failed before it.
        compute: From n ready rows of one kind to n outcomes.
        kind: Rows of different kinds, such as shapes, never meet in a batch.

    Raises:
        torch.AcceleratorError: The device itself is broken: no row can be computed on it.
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
    # Out of the handler, whose traceback would keep the failed batch's tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(ready) // 2
    return _compute(ready[:middle], compute) + _compute(ready[middle:], compute)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is short: torch has no class for a CPU's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _failure(error: Exception) -> RowFailure:
    if is_out_of_memory(error):
        return RowFailure(Status.OUT_OF_MEMORY, "the model has no memory for this row alone")
    return RowFailure(Status.MODEL_ERROR, f"{type(error).__name__}: {error}")
