"""Runs the model on batches: several calls at a time, and a bad row fails alone.

A batch that raises or runs out of memory is halved until the bad row is isolated. The other rows
get the same results as without it.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from spark_vision.errors import FatalBatchError, RowFailure, Status
from spark_vision.executor.batching import Ready, map_ahead, thread_pool
from spark_vision.executor.model_access import ReachedModel

# Of the batches whose results are awaited, as long as there are two.
CALLS_BYTES = 256 * 2**20

Row = TypeVar("Row")
Result = TypeVar("Result")


def compute_batches(
    reached: ReachedModel,
    batches: Iterable[list[Ready | RowFailure]],
    compute: Callable[[list[Ready]], list[Result | RowFailure]],
    kind: Callable[[Ready], Hashable],
) -> Iterator[list[Result | RowFailure]]:
    """Compute batches with several calls in flight; yield their outcomes in order.

    So the rows of one batch are prepared and sent while the model computes another one.

    Args:
        reached: The model.
        batches: As for `compute_rows`.
        compute: As for `compute_rows`; called by several threads.
        kind: As for `compute_rows`.
    """
    largest_bytes = 1
    fitting: dict[Hashable, int] = {}

    def measured() -> Iterator[list[Ready | RowFailure]]:
        nonlocal largest_bytes
        for batch in batches:
            ready = [row for row in batch if not isinstance(row, RowFailure)]
            largest_bytes = max(largest_bytes, sum(row.nbytes for row in ready))
            yield batch

    def may_add(waiting_count: int) -> bool:
        # One batch more than there are threads: the next call begins when one ends.
        allowed_count = min(reached.call_count, max(1, CALLS_BYTES // largest_bytes - 1))
        return waiting_count <= allowed_count

    with thread_pool(reached.call_count, "spark-vision-calls", reached.prepare_thread) as pool:
        yield from map_ahead(
            pool, lambda batch: compute_rows(batch, compute, kind, fitting), measured(), may_add
        )


def compute_rows(
    rows: Sequence[Row | RowFailure],
    compute: Callable[[list[Row]], list[Result | RowFailure]],
    kind: Callable[[Row], Hashable],
    fitting: dict[Hashable, int] | None = None,
) -> list[Result | RowFailure]:
    """Compute the rows that are ready; return one outcome per row, in order.

    Args:
        rows: Model inputs, or failures of earlier steps.
        compute: Computes one outcome for each of several ready rows of one kind.
        kind: Rows of different kinds, such as shapes, are never in one batch.
        fitting: For each kind other than None, the number of rows that fitted into memory after
            more did not; updated. Larger batches are divided without another attempt.

    Raises:
        torch.AcceleratorError: The device is broken: no row can be computed on it.
        ModelServerError: The model server does not respond, or fails whatever it computes.
    """
    outcomes: list[Any] = list(rows)
    places: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        if not isinstance(row, RowFailure):
            places.setdefault(kind(row), []).append(place)
    fitting = {} if fitting is None else fitting
    for of_kind, group in places.items():
        ready = [outcomes[place] for place in group]
        computed = _compute_in_parts(ready, compute, of_kind, fitting)
        for place, outcome in zip(group, computed, strict=True):
            outcomes[place] = outcome
    return outcomes


def _compute_in_parts(
    ready: list[Row],
    compute: Callable[[list[Row]], list[Result | RowFailure]],
    kind: Hashable,
    fitting: dict[Hashable, int],
) -> list[Result | RowFailure]:
    outcomes: list[Result | RowFailure] = []
    parts = [ready]
    while parts:
        part = parts.pop()
        count = fitting.get(kind, len(part))
        if count >= len(part):
            try:
                outcomes += compute(part)
                continue
            except torch.AcceleratorError:
                raise
            except (RuntimeError, ValueError, IndexError, MemoryError, FatalBatchError) as error:
                if len(part) == 1:
                    outcomes.append(_failure(error))
                    continue
                count = len(part) // 2
                # Rows without a kind have various sizes: the next ones may take less memory.
                if kind is not None and is_out_of_memory(error):
                    fitting[kind] = count
            # Outside the handler, whose traceback would keep the tensors of the batch alive.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        parts += [part[count:], part[:count]]
    return outcomes


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means out of memory; torch has no class for that on CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _failure(error: Exception) -> RowFailure:
    if is_out_of_memory(error):
        return RowFailure(Status.OUT_OF_MEMORY, "the model ran out of memory on this row alone")
    if isinstance(error, FatalBatchError):
        return RowFailure(Status.MODEL_ERROR, "the model's process ended on this row alone")
    return RowFailure(Status.MODEL_ERROR, f"{type(error).__name__}: {error}")
