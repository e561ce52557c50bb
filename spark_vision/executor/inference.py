"""What an operator computes, and the model's run on a batch so that a bad row fails alone.

A batch that raises or runs out of memory is halved until the bad row is isolated. The other rows
get the same results as without it.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import torch

from spark_vision.errors import RowFailure, Status
from spark_vision.operators import Operator

Ready = TypeVar("Ready")
Result = TypeVar("Result")


class ImageWork(Protocol):
    """Computes one operator for the images of a task."""

    @property
    def portion_row_count(self) -> int:
        """Number of rows that one thread prepares at a time."""
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


def load_work(operator: Operator) -> Callable[..., Any]:
    """Import what computes an operator; see `Operator.work`."""
    module, _, name = operator.work.partition(":")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]


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
