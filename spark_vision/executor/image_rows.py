"""From Arrow arrays of images to pixels at the model's size, by threads ahead of the model.

What is in flight is bounded twice: by the rows that a model batch and the threads need, and by
bytes. Decoded images live only until they are resized, one per thread.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import torch

from spark_vision.errors import RowFailure
from spark_vision.executor.batching import map_ahead, working_threads
from spark_vision.executor.byte_budget import ByteBudget
from spark_vision.images.decoding import decode
from spark_vision.images.fetch import Fetcher
from spark_vision.images.sources import ImageColumn, open_column
from spark_vision.models.protocols import ImagePreprocessor
from spark_vision.operators import ImageOperator
from spark_vision.status import Status

PORTION_ROW_COUNT = 32
IN_FLIGHT_BYTES = 256 * 2**20

Pixels = torch.Tensor


@dataclass(frozen=True)
class _Portion:
    """A few neighbouring rows of one Arrow array: what one thread prepares at a time."""

    column: ImageColumn
    rows: range
    order: int


class ImageRows:
    """Prepares the rows of one task for the model.

    Args:
        operator: Says how to read a row, and what it may cost.
        preprocessor: Brings a decoded image to the model's size.
        cpu_count: How many images are decoded at a time.
    """

    def __init__(
        self, operator: ImageOperator, preprocessor: ImagePreprocessor, cpu_count: int
    ) -> None:
        self._operator = operator
        self._preprocessor = preprocessor
        self._cpu_count = max(1, cpu_count)
        self._decoding = threading.Semaphore(self._cpu_count)
        self._fetched = ByteBudget(IN_FLIGHT_BYTES)
        self._fetcher = Fetcher(operator.limits, operator.storage_options)
        self._largest_portion_bytes = 0

    def prepare(self, arrays: Iterable[pa.Array]) -> Iterator[list[Pixels | RowFailure]]:
        """Give portions of rows, in order: uint8 `[3, height, width]` pixels, or the failure.

        Raises:
            InputTypeError: The arrays have a type that the operator cannot read.
        """
        source = iter(arrays)
        first = next(source, None)
        if first is None:
            return
        columns = map(self._open, itertools.chain([first], source))
        head = next(columns)
        # A fetch waits for a server, so each row has a thread; decoding keeps a core busy.
        fetches = head.needs_fetch
        thread_count = self._operator.limits.fetch_concurrency if fetches else self._cpu_count
        row_count = 1 if fetches else PORTION_ROW_COUNT
        in_flight_count = -(-self._operator.batch_size // row_count) + thread_count

        def may_add(waiting_count: int) -> bool:
            waiting_bytes = waiting_count * self._largest_portion_bytes
            return waiting_count < in_flight_count and waiting_bytes < IN_FLIGHT_BYTES

        portions = _portions(itertools.chain([head], columns), row_count)
        with working_threads(thread_count, "spark-vision-images") as pool:
            try:
                yield from map_ahead(pool, self._prepare_portion, portions, may_add)
            finally:
                self._fetched.close()
                self._fetcher.close()

    def _open(self, array: pa.Array) -> ImageColumn:
        return open_column(array, self._operator, self._fetcher)

    def _prepare_portion(self, portion: _Portion) -> list[Pixels | RowFailure]:
        prepared = [
            self._prepare_row(portion.column, row, portion.order + index)
            for index, row in enumerate(portion.rows)
        ]
        pixel_bytes = sum(row.nbytes for row in prepared if isinstance(row, torch.Tensor))
        self._largest_portion_bytes = max(self._largest_portion_bytes, pixel_bytes)
        return prepared

    def _prepare_row(self, column: ImageColumn, row: int, order: int) -> Pixels | RowFailure:
        try:
            if not column.needs_fetch:
                return self._to_pixels(column, row)
            with self._fetched.hold(order) as on_bytes:
                return self._to_pixels(column, row, on_bytes)
        except RowFailure as failure:
            return failure
        except MemoryError:
            return RowFailure(Status.OUT_OF_MEMORY, "no memory to decode and resize this image")
        except Exception as error:
            # Whatever one image can provoke in a codec or a processor is that row's affair.
            return RowFailure(Status.MODEL_ERROR, f"preparing: {type(error).__name__}: {error}")

    def _to_pixels(
        self, column: ImageColumn, row: int, on_bytes: Callable[[int], None] | None = None
    ) -> Pixels:
        image = column.read(row, on_bytes)
        with self._decoding:
            return self._preprocessor(decode(image, self._operator.limits))


def _portions(columns: Iterable[ImageColumn], row_count: int) -> Iterator[_Portion]:
    order = 0
    for column in columns:
        for start in range(0, len(column), row_count):
            rows = range(start, min(start + row_count, len(column)))
            yield _Portion(column, rows, order)
            order += len(rows)
