"""Rows of one Arrow array with the same URL share one fetch and its result or failure.

The first of these rows fetches, and the others wait for it: a row only waits for an older one. The
bytes cached for later rows are bounded; above the limit, later rows fetch again.
"""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pyarrow as pa

from spark_vision.errors import RowFailure
from spark_vision.executor.resource_limits import Budget
from spark_vision.images.sources import EncodedImage, ImageColumn, RawImage


class DeduplicatedFetches(ImageColumn):
    """A column of URLs that fetches each distinct URL once.

    Rows must be started in order, because a row waits for the first one with its URL.

    Args:
        column: Fetches a row.
        array: The strings of that column.
        kept: Limits the bytes cached for later rows.
    """

    needs_fetch = True

    def __init__(self, column: ImageColumn, array: pa.Array, kept: Budget) -> None:
        self._column = column
        self._kept = kept
        self._lock = threading.Lock()
        self._firsts = _first_rows(array)
        # Number of rows that still need a fetch, by the row that fetches.
        self._due_counts = {
            row: count - 1 for row, count in Counter(self._firsts).items() if count > 1
        }
        self._fetches: dict[int, Future[EncodedImage | RawImage]] = {
            row: Future() for row in self._due_counts
        }

    def __len__(self) -> int:
        return len(self._column)

    def read(
        self, row: int, on_bytes: Callable[[int], None] | None = None
    ) -> EncodedImage | RawImage:
        """Return the image of one row, fetched for it or for an older row."""
        first = self._firsts[row]
        with self._lock:
            fetch = self._fetches.get(first)
        if fetch is None:
            return self._column.read(row, on_bytes)
        if row == first:
            return self._fetch_for_all(row, fetch, on_bytes)
        try:
            image = fetch.result()
        except RowFailure as failure:
            raise failure.without_traceback() from None
        finally:
            self._count_down(first)
        if on_bytes is not None:
            on_bytes(_size_of(image))
        return image

    def _fetch_for_all(
        self,
        row: int,
        fetch: Future[EncodedImage | RawImage],
        on_bytes: Callable[[int], None] | None,
    ) -> EncodedImage | RawImage:
        try:
            image = self._column.read(row, on_bytes)
        except RowFailure as failure:
            # A copy: the traceback of this one refers to this frame and so to `fetch`. That cycle
            # would keep the fetched bytes alive until the garbage collector runs.
            fetch.set_exception(failure.without_traceback())
            raise
        except BaseException as error:
            fetch.set_exception(error)
            raise
        with self._lock:
            # Waiting rows already hold the future; later rows find none and fetch again.
            if not self._kept.try_take(_size_of(image)):
                del self._fetches[row]
        fetch.set_result(image)
        return image

    def _count_down(self, first: int) -> None:
        with self._lock:
            self._due_counts[first] -= 1
            if self._due_counts[first] or first not in self._fetches:
                return
            fetch = self._fetches.pop(first)
        if fetch.exception() is None:
            self._kept.release(_size_of(fetch.result()))


def _first_rows(array: pa.Array) -> list[int]:
    """Return for each row the first row with the same string."""
    codes = array.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    _, firsts, which = np.unique(codes, return_index=True, return_inverse=True)
    rows: list[int] = firsts[which].tolist()
    return rows


def _size_of(image: EncodedImage | RawImage) -> int:
    return image.data.nbytes if isinstance(image, RawImage) else image.nbytes
