"""Batches rows of similar length, and yields their outcomes in the original order.

A batch is padded to its longest row. Each batch takes the oldest waiting row and the rows of a
bounded window that are closest to it in length, so no row waits longer than the window.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from spark_vision.errors import RowFailure

WINDOW_BATCH_COUNT = 8
WINDOW_BYTES = 256 * 2**20


class Sized(Protocol):
    """A row with a known size in memory."""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        ...


Ready = TypeVar("Ready", bound=Sized)


def compute_in_length_buckets(
    portions: Iterable[list[Ready | RowFailure]],
    compute: Callable[[list[Ready]], list[Any]],
    length: Callable[[Ready], int],
    batch_size: int,
) -> Iterator[list[Any]]:
    """Compute rows in batches of similar length, and yield their outcomes in order.

    Args:
        portions: Rows in order, each ready for the model or failed.
        compute: Computes one outcome for each row of a batch.
        length: Returns the length of a row; a batch is padded to the maximum.
        batch_size: Maximum number of rows in a batch.

    Yields:
        Outcomes of consecutive rows as soon as they are available. A failed row is its own outcome.
    """
    rows = itertools.chain.from_iterable(portions)
    window_rows = WINDOW_BATCH_COUNT * batch_size
    waiting: dict[int, Ready] = {}
    outcomes: dict[int, Any] = {}
    taken_count = given_count = held_bytes = 0
    is_exhausted = False
    while True:
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
        if waiting:
            oldest = length(next(iter(waiting.values())))
            nearest = sorted(waiting, key=lambda place: abs(length(waiting[place]) - oldest))
            places = nearest[:batch_size]
            batch = [waiting.pop(place) for place in places]
            held_bytes -= sum(row.nbytes for row in batch)
            outcomes.update(zip(places, compute(batch), strict=True))
        ready = []
        while given_count in outcomes:
            ready.append(outcomes.pop(given_count))
            given_count += 1
        if ready:
            yield ready
        elif is_exhausted and not waiting:
            return
