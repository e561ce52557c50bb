"""Pending rows cut into waves: each is computed and committed before the next one begins.

A wave has as many rows as are asked for, or as take a minute and a half at the rate so far.

Rows lie in a wave as they lie in files, the table's first, then the source's: a wave reads few
files of either. Rows that are in the table are cut where its files end, so that an update writes
each file anew once. A wave's keys are on the driver, from where Spark broadcasts them: what is
computed of them then depends on nothing that a commit or a lost executor takes away.
"""

import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DateType, DecimalType, IntegralType, StringType, StructType

from spark_vision.tables.location import literal, quote
from spark_vision.tables.survey import BASE, SOURCE_FILE, TABLE_FILE, Pending, Survey
from spark_vision.tables.write_plan import WritePlan

WAVE_SECONDS = 90.0
# Nothing is known of the first wave's rate. A caption takes as long as hundreds of vectors.
FIRST_ROWS = 4096
FIRST_CAPTIONS = 64
# The first wave also loads the model: its rate says too little.
_GROWTH = 8
_WAVE_BYTES = 4_000_000_000
_TOKENS = 256

_NUMBER = "__spark_vision_number"
# What `monotonically_increasing_id` puts a row's place within its partition into.
_PLACE_BITS = 33
# How many times as large as asked a wave may be, to end where a file of the table ends.
_LONGEST_FILE = 4


class Pace:
    """Sizes a run's waves, and ends the run where it may take no more.

    Args:
        write: Its options say what is asked for; its columns, how many bytes a row takes.
    """

    def __init__(self, write: WritePlan) -> None:
        options = write.options
        self._fixed = options.rows_per_commit
        self._started = time.monotonic()
        self._left = options.max_rows
        self._has_begun = False
        self._deadline = (
            None if options.max_seconds is None else self._started + options.max_seconds
        )
        is_slow = any(each.is_slow for each in write.columns.values())
        self._rows = FIRST_CAPTIONS if is_slow else FIRST_ROWS
        self._most = max(1, _WAVE_BYTES // _row_bytes(write))

    @property
    def is_over(self) -> bool:
        """Whether the run has done all that it may, which is a wave at least."""
        is_late = (
            self._has_begun and self._deadline is not None and time.monotonic() >= self._deadline
        )
        return is_late or self._left == 0

    @property
    def rows(self) -> int:
        """Rows of the next wave, at most."""
        wanted = min(self._rows, self._most) if self._fixed is None else self._fixed
        return wanted if self._left is None else min(wanted, self._left)

    def take_account(self, rows: int, seconds: float) -> None:
        """Learn what a wave had, and how long it took."""
        self._has_begun = True
        if self._left is not None:
            self._left = max(0, self._left - rows)
        if rows:
            wanted = int(rows / max(seconds, 0.001) * WAVE_SECONDS)
            self._rows = max(1, min(wanted, _GROWTH * self._rows))


def _row_bytes(write: WritePlan) -> int:
    """Say about how many bytes a row takes in the table."""
    size = 1000
    for name, operator in write.columns.items():
        vectors = _TOKENS if operator.effective_pooling == "tokens" else 1
        size += 4 * (write.identities[name].dimension or 0) * vectors
    return size


@dataclass(frozen=True)
class Wave:
    """Rows that are computed and committed together.

    Attributes:
        is_new: Whether the table lacks them.
        columns: What is computed of each.
        rows: Their keys and `BASE`.
        schema: Of `rows`, as Spark has it.
        source_files: The source's files that hold them; None where that is not known.
    """

    is_new: bool
    columns: tuple[str, ...]
    rows: pa.Table
    schema: StructType
    source_files: tuple[str, ...] | None

    @property
    def count(self) -> int:
        """Of rows."""
        return int(self.rows.num_rows)

    def select_from(self, source: DataFrame, keys: Sequence[str]) -> DataFrame:
        """Leave this wave's rows of a source, with `BASE`; reads no other file."""
        if self.source_files is not None:
            # As text: thousands of values given one by one would take the driver a minute.
            listed = ", ".join(map(literal, self.source_files))
            source = source.filter(F.expr(f"_metadata.file_path IN ({listed})"))
        rows = source.sparkSession.createDataFrame(self.rows, self.schema)
        # Without the broadcast, a join would shuffle images.
        return source.join(F.broadcast(rows), list(keys))

    def key_bounds(self, key: str) -> tuple[str, str] | None:
        """Say in SQL the least and the greatest value of a key; None for types without a text."""
        kind = self.schema[key].dataType
        # Of a string with a collation, Spark's order is another one than that of its bytes.
        is_ordered = isinstance(kind, IntegralType | DateType | DecimalType) or kind == StringType()
        if not is_ordered or not self.count:
            return None
        bounds = pc.min_max(self.rows[key]).as_py()
        low, high = (
            f"CAST({literal(str(bounds[end]))} AS {kind.simpleString()})" for end in bounds
        )
        return low, high


def count_slots(spark: SparkSession) -> int:
    """Say how many tasks run at once, which is what Spark cuts a range of numbers into."""
    return spark.range(1 << 16).select(F.spark_partition_id()).distinct().count()


def cut_waves(survey: Survey, keys: Sequence[str], pace: Pace) -> Iterator[Wave]:
    """Cut a survey's pending rows, until there is none left or the pace says that it is over.

    Args:
        survey: Of the source and the table.
        keys: The key columns' names.
        pace: Asked for each wave's rows; one of rows that are in the table may have fewer or more,
            to end with a file.
    """
    for pending in survey.pending:
        for cut in _cut(pending, keys, pace):
            columns = [F.col(quote(name)) for name in (*keys, BASE, SOURCE_FILE)]
            taken = cut.select(*columns)
            rows = taken.toArrow()
            files = None
            if survey.has_source_files:
                files = tuple(pc.unique(rows[SOURCE_FILE]).to_pylist())
            yield Wave(
                is_new=pending.is_new,
                columns=pending.columns,
                rows=rows.drop_columns([SOURCE_FILE]),
                schema=taken.drop(SOURCE_FILE).schema,
                source_files=files,
            )


def _cut(pending: Pending, keys: Sequence[str], pace: Pace) -> Iterator[DataFrame]:
    if pace.is_over:
        return
    if pending.count <= pace.rows:
        yield pending.rows
        return
    ordered = (
        pending.rows.sort(TABLE_FILE, SOURCE_FILE, *(F.col(quote(key)) for key in keys))
        .withColumn(_NUMBER, F.monotonically_increasing_id())
        .persist()
    )
    try:
        partition = F.shiftright(_NUMBER, _PLACE_BITS)
        counts = ordered.groupBy(partition.alias("partition")).count().collect()
        sizes = {row["partition"]: row["count"] for row in counts}
        file_ends = [] if pending.is_new else _file_ends(ordered)
        start = 0
        while start < pending.count and not pace.is_over:
            end = _end_of_wave(start, pace.rows, pending.count, file_ends)
            yield ordered.filter(_between(sizes, start, end))
            start = end
    finally:
        ordered.unpersist()


def _file_ends(ordered: DataFrame) -> list[int]:
    """Give the places in the order where files of the table end."""
    counts = ordered.groupBy(TABLE_FILE).count().sort(TABLE_FILE).collect()
    ends, end = [], 0
    for row in counts:
        end += row["count"]
        ends.append(end)
    return ends


def _end_of_wave(start: int, rows: int, total: int, file_ends: Sequence[int]) -> int:
    wanted = min(start + rows, total)
    place = bisect_right(file_ends, wanted)
    if place and file_ends[place - 1] > start:
        return file_ends[place - 1]
    # The file is longer than a wave.
    if place < len(file_ends) and file_ends[place] <= start + _LONGEST_FILE * rows:
        return file_ends[place]
    return wanted


def _between(sizes: dict[int, int], start: int, end: int) -> Column:
    """Rows by their place in the whole order, which is that of partitions and places in them."""
    spans, before = [], 0
    for partition in sorted(sizes):
        first, last = max(start - before, 0), min(end - before, sizes[partition])
        if first < last:
            offset = partition << _PLACE_BITS
            spans.append(F.col(_NUMBER).between(offset + first, offset + last - 1))
        before += sizes[partition]
    return reduce(or_, spans)
