"""From Arrow arrays of images to what the models take, by threads ahead of them.

What is in flight is bounded twice: by rows, those that a model batch and the threads need, or more
where they are fetched; and by bytes. Decoded images live only until they are resized, one per
thread; large ones wait for each other, so that all of them together take no more memory than one
may.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import torch

from spark_vision.errors import RowFailure, Status
from spark_vision.executor.batching import map_ahead, working_threads
from spark_vision.executor.byte_budget import ByteBudget
from spark_vision.executor.decode_watch import DecodeWatch
from spark_vision.executor.decoding_budget import DecodingBudget
from spark_vision.executor.fetched_once import FetchedOnce, KeptBytes
from spark_vision.executor.inference import is_out_of_memory
from spark_vision.executor.texts import check_texts, read_texts
from spark_vision.images.cost import max_decode_bytes
from spark_vision.images.decoding import decode_inspected, inspect_image
from spark_vision.images.fetch import Fetcher
from spark_vision.images.sources import ImageColumn, open_column
from spark_vision.operators import ImageOperator

IN_FLIGHT_BYTES = 256 * 2**20
# A row that is late holds back only what is so far behind it.
FETCHED_AHEAD_COUNT = 1024
# Beside them: what was fetched for rows to come that have the same address.
KEPT_BYTES = 64 * 2**20

# What each operator takes of one row, or why it takes nothing.
Prepared = tuple[Any, ...]
Prepare = Callable[[torch.Tensor, str | None], Any]


_Column = tuple[ImageColumn, list[str | None] | None]
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Portion:
    """A few neighbouring rows of one Arrow array: what one thread prepares at a time."""

    column: ImageColumn
    prompts: list[str | None] | None
    rows: range
    order: int


class ImageRows:
    """Prepares the rows of one task for the models.

    Args:
        operator: Says how to read a row, and what it may cost.
        prepares: Bring a decoded image (uint8 `[3, height, width]` RGB) and its prompt to what each
            model takes: something with a number of bytes, `nbytes`.
        cpu_count: How many images are decoded at a time.
        ahead_count: Rows that shall be ready when a model asks for them.
        portion_row_count: Rows that one thread prepares at a time.
        attempt_number: How often Spark has tried the task before; None outside of Spark. If an
            image ended the worker, it is found by decoding each in a process of its own.
    """

    def __init__(
        self,
        operator: ImageOperator,
        prepares: Sequence[Prepare],
        *,
        cpu_count: int,
        ahead_count: int,
        portion_row_count: int,
        attempt_number: int | None = None,
    ) -> None:
        self._operator = operator
        self._prepares = tuple(prepares)
        self._ahead_count = ahead_count
        self._portion_row_count = portion_row_count
        self._cpu_count = max(1, cpu_count)
        self._decoding = threading.Semaphore(self._cpu_count)
        self._isolate = bool(attempt_number)
        in_spark = attempt_number is not None
        self._watch = DecodeWatch(operator.limits.decode_seconds if in_spark else None)
        self._pixels = DecodingBudget(max_decode_bytes(operator.limits))
        self._fetched = ByteBudget(IN_FLIGHT_BYTES)
        self._kept = KeptBytes(KEPT_BYTES)
        self._fetcher = Fetcher(operator)
        self._largest_portion_bytes = 0

    def prepare(
        self, batches: Iterable[tuple[pa.Array, pa.Array | None]]
    ) -> Iterator[list[Prepared]]:
        """Give portions of rows, in order: what each model takes, or why it takes nothing.

        Args:
            batches: Images, with a prompt each where there are prompts.

        Raises:
            InputTypeError: The arrays have a type that the operator cannot read.
        """
        source = iter(batches)
        first = next(source, None)
        if first is None:
            return
        columns = map(self._open, itertools.chain([first], source))
        head = next(columns)
        # A fetch waits for a server, so each row has a thread; decoding keeps a core busy.
        fetches = head[0].needs_fetch
        thread_count = self._operator.limits.fetch_concurrency if fetches else self._cpu_count
        row_count = 1 if fetches else self._portion_row_count
        ahead_count = max(self._ahead_count, FETCHED_AHEAD_COUNT if fetches else 0)
        in_flight_count = -(-ahead_count // row_count) + thread_count

        def may_add(waiting_count: int) -> bool:
            waiting_bytes = waiting_count * self._largest_portion_bytes
            return waiting_count < in_flight_count and waiting_bytes < IN_FLIGHT_BYTES

        portions = _portions(itertools.chain([head], columns), row_count)
        with self._watch, working_threads(thread_count, "spark-vision-images") as pool:
            try:
                yield from map_ahead(pool, self._prepare_portion, portions, may_add)
            finally:
                self._fetched.close()
                self._fetcher.close()

    def _open(self, batch: tuple[pa.Array, pa.Array | None]) -> _Column:
        images, prompts = batch
        column = open_column(images, self._operator, self._fetcher)
        if column.needs_fetch:
            column = FetchedOnce(column, images, self._kept)
        if prompts is None:
            return column, None
        return column, read_texts(check_texts(prompts, "caption_image"))

    def _prepare_portion(self, portion: _Portion) -> list[Prepared]:
        prepared = [
            self._prepare_row(portion, row, portion.order + index)
            for index, row in enumerate(portion.rows)
        ]
        ready = [each for row in prepared for each in row if not isinstance(each, RowFailure)]
        portion_bytes = sum(each.nbytes for each in ready)
        self._largest_portion_bytes = max(self._largest_portion_bytes, portion_bytes)
        return prepared

    def _prepare_row(self, portion: _Portion, row: int, order: int) -> Prepared:
        column = portion.column
        prompt = portion.prompts[row] if portion.prompts is not None else None
        if not column.needs_fetch:
            prepared = _or_failure(lambda: self._for_models(column, row, prompt))
        else:
            with self._fetched.hold(order) as on_bytes:
                prepared = _or_failure(lambda: self._for_models(column, row, prompt, on_bytes))
        return (prepared,) * len(self._prepares) if isinstance(prepared, RowFailure) else prepared

    def _for_models(
        self,
        column: ImageColumn,
        row: int,
        prompt: str | None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Prepared:
        image = column.read(row, on_bytes)
        with self._decoding:
            inspected = inspect_image(image, self._operator.limits)
            with self._pixels.hold(inspected.peak_bytes):
                with self._watch.decoding():
                    pixels = decode_inspected(
                        inspected, self._operator.limits, isolate=self._isolate
                    )
                return tuple(
                    _or_failure(partial(prepare, pixels, prompt)) for prepare in self._prepares
                )


def _or_failure(work: Callable[[], Result]) -> Result | RowFailure:
    try:
        return work()
    except RowFailure as failure:
        return failure.without_traceback()
    except Exception as error:
        if is_out_of_memory(error):
            return RowFailure(Status.OUT_OF_MEMORY, "no memory to decode and resize this image")
        # Whatever one image can provoke in a codec or a processor is that row's affair.
        return RowFailure(Status.MODEL_ERROR, f"preparing: {type(error).__name__}: {error}")


def _portions(columns: Iterable[_Column], row_count: int) -> Iterator[_Portion]:
    order = 0
    for column, prompts in columns:
        for start in range(0, len(column), row_count):
            rows = range(start, min(start + row_count, len(column)))
            yield _Portion(column, prompts, rows, order)
            order += len(rows)
