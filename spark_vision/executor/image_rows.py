"""Prepares Arrow arrays of images for the models, in threads that work ahead of them.

Rows in flight are bounded by number (enough for a model batch and the threads, more for fetched
images) and by bytes. Decoded images live only until they are resized, one per thread. Large ones
wait for each other, so that together they need no more memory than the largest allowed image.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import torch

from spark_vision.errors import RowFailure, Status
from spark_vision.executor.arrays import check_texts, read_texts
from spark_vision.executor.batching import map_ahead, thread_pool
from spark_vision.executor.fetch_deduplication import DeduplicatedFetches
from spark_vision.executor.inference import is_out_of_memory
from spark_vision.executor.resource_limits import Budget, DecodeWatchdog, OrderedBudget
from spark_vision.executor.spending import spend, timed
from spark_vision.images.cost import max_decode_bytes
from spark_vision.images.decoding import (
    InspectedImage,
    ResizedSize,
    decode_inspected,
    inspect_image,
)
from spark_vision.images.fetch import Fetcher
from spark_vision.images.sources import EncodedImage, ImageColumn, RawImage, open_column
from spark_vision.operators import ImageOperator

IN_FLIGHT_BYTES = 256 * 2**20
# A slow fetch does not delay the fetches of this many rows after it.
FETCHED_AHEAD_COUNT = 1024
# In addition, of images that are decoded without a wait.
SMALL_BYTES = 64 * 2**20
# In addition: images cached for later rows with the same URL.
KEPT_BYTES = 64 * 2**20

# For one row: the model input of each operator, or its failure.
Prepared = tuple[Any, ...]
Prepare = Callable[[torch.Tensor, str | None], Any]


_Column = tuple[ImageColumn, list[str | None] | None]
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Portion:
    """Consecutive rows of one Arrow array that one thread prepares at a time."""

    column: ImageColumn
    prompts: list[str | None] | None
    rows: range
    order: int


class ImageRows:
    """Prepares the rows of one task for the models.

    Args:
        operator: Defines how to read a row, and its limits.
        prepares: For each operator, turns a decoded image (uint8 `[3, height, width]` RGB) and its
            prompt into the model input, which has its size in bytes as `nbytes`.
        cpu_count: Number of images decoded at a time.
        ahead_count: Number of rows to keep ready for the models.
        portion_row_count: Number of rows that one thread prepares at a time.
        resized_sizes: Of the models, where a large JPEG may be scaled down for them.
        attempt_number: Spark's attempt number of the task, from 0; None outside Spark. After a
            failed attempt, which an image may have crashed, each image is decoded in a separate
            process.
    """

    def __init__(
        self,
        operator: ImageOperator,
        prepares: Sequence[Prepare],
        *,
        cpu_count: int,
        ahead_count: int,
        portion_row_count: int,
        resized_sizes: Sequence[ResizedSize] = (),
        attempt_number: int | None = None,
    ) -> None:
        self._cpu_count = max(1, cpu_count)
        operator = replace(operator, limits=operator.limits.for_cores(self._cpu_count))
        self._operator = operator
        self._prepares = tuple(prepares)
        self._ahead_count = ahead_count
        self._portion_row_count = portion_row_count
        self._resized_sizes = tuple(resized_sizes)
        self._decoding = threading.Semaphore(self._cpu_count)
        self._isolate = operator.isolates_decoding or bool(attempt_number)
        in_spark = attempt_number is not None
        self._watch = DecodeWatchdog(operator.limits.decode_seconds if in_spark else None)
        self._pixels = Budget(max_decode_bytes(operator.limits))
        # Smaller images need not wait for others: together they take less than SMALL_BYTES.
        self._free_bytes = SMALL_BYTES // self._cpu_count
        self._fetched = OrderedBudget(IN_FLIGHT_BYTES)
        self._kept = Budget(KEPT_BYTES)
        self._fetcher = Fetcher(operator)
        self._ready = OrderedBudget(IN_FLIGHT_BYTES)
        self._largest_portion_bytes = 0

    def prepare(
        self, batches: Iterable[tuple[pa.Array, pa.Array | None]]
    ) -> Iterator[list[Prepared]]:
        """Yield portions of prepared rows, in order.

        Args:
            batches: Arrays of images, each with an array of prompts or None.

        Raises:
            InputTypeError: The operator cannot read arrays of this type.
        """
        source = iter(batches)
        first = next(source, None)
        if first is None:
            return
        columns = map(self._open, itertools.chain([first], source))
        head = next(columns)
        # Fetching is I/O-bound, so each row has its own thread; decoding is CPU-bound.
        fetches = head[0].needs_fetch
        thread_count = self._operator.limits.fetch_concurrency if fetches else self._cpu_count
        row_count = 1 if fetches else self._portion_row_count
        ahead_count = max(self._ahead_count, FETCHED_AHEAD_COUNT if fetches else 0)
        # Each thread has a portion and finds another one when it is done.
        in_flight_count = -(-ahead_count // row_count) + 2 * thread_count

        def may_add(waiting_count: int) -> bool:
            waiting_bytes = waiting_count * self._largest_portion_bytes
            return waiting_count < in_flight_count and waiting_bytes < IN_FLIGHT_BYTES

        portions = _portions(itertools.chain([head], columns), row_count)
        with self._watch.running(), thread_pool(thread_count, "spark-vision-images") as pool:
            try:
                for order, prepared in map_ahead(pool, self._prepare_portion, portions, may_add):
                    self._ready.leave(order)
                    yield prepared
            finally:
                self._ready.close()
                self._fetched.close()
                self._fetcher.close()

    def _open(self, batch: tuple[pa.Array, pa.Array | None]) -> _Column:
        images, prompts = batch
        column = open_column(images, self._operator, self._fetcher)
        if column.needs_fetch:
            column = DeduplicatedFetches(column, images, self._kept)
        if prompts is None:
            return column, None
        return column, read_texts(check_texts(prompts, "caption_image"))

    def _prepare_portion(self, portion: _Portion) -> tuple[int, list[Prepared]]:
        """Return the portion's order and its rows, whose bytes are held until they are taken."""
        self._ready.enter(portion.order)
        if not portion.column.needs_fetch:
            self._take_room(portion.order)
        started = time.perf_counter_ns()
        prepared = [
            self._prepare_row(portion, row, portion.order + index)
            for index, row in enumerate(portion.rows)
        ]
        if not portion.column.needs_fetch:
            spend(decode_ns=time.perf_counter_ns() - started)
        ready = [each for row in prepared for each in row if not isinstance(each, RowFailure)]
        portion_bytes = sum(each.nbytes for each in ready)
        self._ready.settle(portion.order, portion_bytes)
        self._largest_portion_bytes = max(self._largest_portion_bytes, portion_bytes)
        return portion.order, prepared

    def _prepare_row(self, portion: _Portion, row: int, order: int) -> Prepared:
        column = portion.column
        prompt = portion.prompts[row] if portion.prompts is not None else None
        if not column.needs_fetch:
            prepared = _or_failure(lambda: self._for_models(column, row, order, prompt))
        else:
            with self._fetched.hold(order) as on_bytes:
                prepared = _or_failure(
                    lambda: self._for_models(column, row, order, prompt, on_bytes)
                )
        return (prepared,) * len(self._prepares) if isinstance(prepared, RowFailure) else prepared

    def _for_models(
        self,
        column: ImageColumn,
        row: int,
        order: int,
        prompt: str | None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Prepared:
        if not column.needs_fetch:  # There are as many threads as cores.
            return self._decode(column.read(row), prompt)
        with timed("fetch_ns"):
            image = column.read(row, on_bytes)
        # Its portion is this row. A slow model may leave no room for more pixels for a while.
        self._take_room(order)
        with self._decoding, timed("decode_ns"):
            return self._decode(image, prompt)

    def _take_room(self, order: int) -> None:
        """Wait for the bytes that a portion is expected to take; the first ones may be large."""
        expected_bytes = self._largest_portion_bytes or IN_FLIGHT_BYTES // (2 * self._cpu_count)
        self._ready.take(order, expected_bytes)

    def _decode(self, image: EncodedImage | RawImage, prompt: str | None) -> Prepared:
        inspected = inspect_image(image, self._operator.limits, self._resized_sizes)
        if inspected.peak_bytes <= self._free_bytes:
            return self._decode_inspected(inspected, prompt)
        with self._pixels.hold(inspected.peak_bytes):
            return self._decode_inspected(inspected, prompt)

    def _decode_inspected(self, inspected: InspectedImage, prompt: str | None) -> Prepared:
        pixels = decode_inspected(
            inspected, self._operator.limits, isolate=self._isolate, watch=self._watch
        )
        return tuple(_or_failure(partial(prepare, pixels, prompt)) for prepare in self._prepares)


def _or_failure(work: Callable[[], Result]) -> Result | RowFailure:
    try:
        return work()
    except RowFailure as failure:
        return failure.without_traceback()
    except Exception as error:
        if is_out_of_memory(error):
            return RowFailure(Status.OUT_OF_MEMORY, "no memory to decode and resize this image")
        # Whatever error an image causes in a codec or a processor fails only its row.
        return RowFailure(Status.MODEL_ERROR, f"preparing: {type(error).__name__}: {error}")


def _portions(columns: Iterable[_Column], row_count: int) -> Iterator[_Portion]:
    order = 0
    for column, prompts in columns:
        for start in range(0, len(column), row_count):
            rows = range(start, min(start + row_count, len(column)))
            yield _Portion(column, prompts, rows, order)
            order += len(rows)
