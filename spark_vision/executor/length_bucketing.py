"""Batches of rows that are alike in length, although the order that rows leave in is theirs.

A batch is padded to its longest row. So the oldest row that waits goes next, together with those of
a bounded window that are nearest to it; no row waits for longer than the window lasts.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from spark_vision.errors import RowFailure

WINDOW_BATCH_COUNT = 8
WINDOW_BYTES = 256 * 2**20


class Sized(Protocol):
    """A row that knows what it takes in memory."""

    @property
    def nbytes(self) -> int:
        """In bytes."""
        ...


Ready = TypeVar("Ready", bound=Sized)


def compute_alike(
    portions: Iterable[list[Ready | RowFailure]],
    compute: Callable[[list[Ready]], list[Any]],
    length: Callable[[Ready], int],
    batch_size: int,
) -> Iterator[list[Any]]:
    """Compute rows in batches of similar length, and give their outcomes in the rows' order.

    Args:
        portions: Rows in order, each ready for the model or failed.
        compute: From a batch of ready rows to one outcome each.
        length: What a batch is padded to the greatest of.
        batch_size: Most rows of one batch.

    Yields:
        Outcomes of neighbouring rows as soon as they are there; a failed row is its own outcome.
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
            # Failed rows are held back by an older one that waits, and must not become too many.
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
