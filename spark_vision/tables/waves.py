"""Splits pending rows into waves: each is computed and committed before the next one begins.

A wave has `rows_per_commit` rows, or as many as take a minute and a half at the current rate.

Waves are ordered by file, the table's first, then the source's, so that each reads few files of
either. Existing rows are cut where the table's files end, so that an update rewrites each file
once; new rows where the source's end, so that few of these are read twice. A wave's keys are held
on the driver, which broadcasts them: so they do not depend on anything that a commit or a lost
executor removes.
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
# The rate is unknown before the first wave. A caption takes as long as hundreds of vectors.
FIRST_ROWS = 4096
FIRST_CAPTIONS = 64
# The first wave also loads the model, so that its rate is too low.
_GROWTH = 8
_WAVE_BYTES = 4_000_000_000
_TOKENS = 256

_NUMBER = "__spark_vision_number"
# The bits in which `monotonically_increasing_id` has a row's place within its partition.
_PLACE_BITS = 33
# How many times larger than its target a wave may be, to end where a file of the table ends.
_LONGEST_FILE = 4


class Pace:
    """Sizes a run's waves, and ends the run at its maximum of rows or seconds.

    Args:
        write: Its options have the maximums; its columns decide the size of a row.
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
        """Whether the run has reached a maximum; it runs at least one wave."""
        return self.is_late or self._left == 0

    @property
    def is_late(self) -> bool:
        """Whether the run has reached its maximum of seconds."""
        has_passed = self._deadline is not None and time.monotonic() >= self._deadline
        return self._has_begun and has_passed

    @property
    def is_fixed(self) -> bool:
        """Whether each wave has the number of rows that the user chose."""
        return self._fixed is not None

    @property
    def is_known(self) -> bool:
        """Whether the size of the next wave is known before this one has ended."""
        return self._left is None and (self.is_fixed or self._has_begun)

    @property
    def rows(self) -> int:
        """The maximum of rows in the next wave."""
        wanted = min(self._rows, self._most) if self._fixed is None else self._fixed
        return wanted if self._left is None else min(wanted, self._left)

    def take_account(self, rows: int, seconds: float) -> None:
        """Record how many rows a wave had, and how long it took."""
        self._has_begun = True
        if self._left is not None:
            self._left = max(0, self._left - rows)
        if rows:
            wanted = int(rows / max(seconds, 0.001) * WAVE_SECONDS)
            self._rows = max(1, min(wanted, _GROWTH * self._rows))


def _row_bytes(write: WritePlan) -> int:
    """Estimate the size of a row in the table, in bytes."""
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
        columns: The columns that are computed.
        rows: Their keys and `BASE`.
        schema: The Spark schema of `rows`.
        source_files: The source's files that hold them; None where they are not known.
    """

    is_new: bool
    columns: tuple[str, ...]
    rows: pa.Table
    schema: StructType
    source_files: tuple[str, ...] | None

    @property
    def count(self) -> int:
        """The number of rows."""
        return int(self.rows.num_rows)

    def select_from(self, source: DataFrame, keys: Sequence[str]) -> DataFrame:
        """Return this wave's rows of a source, with `BASE`; reads no other file."""
        if self.source_files is not None:
            # As SQL text: thousands of literal columns would take the driver a minute.
            listed = ", ".join(map(literal, self.source_files))
            source = source.filter(F.expr(f"_metadata.file_path IN ({listed})"))
        rows = source.sparkSession.createDataFrame(self.rows, self.schema)
        # Without the broadcast, a join would shuffle images.
        return source.join(F.broadcast(rows), list(keys))

    def key_bounds(self, key: str) -> tuple[str, str] | None:
        """Return the minimum and maximum of a key in SQL; None for types without a SQL literal."""
        kind = self.schema[key].dataType
        # With a collation, Spark does not order strings by their bytes.
        is_ordered = isinstance(kind, IntegralType | DateType | DecimalType) or kind == StringType()
        if not is_ordered or not self.count:
            return None
        bounds = pc.min_max(self.rows[key]).as_py()
        low, high = (
            f"CAST({literal(str(bounds[end]))} AS {kind.simpleString()})" for end in bounds
        )
        return low, high


def count_slots(spark: SparkSession) -> int:
    """Return how many tasks run at once: the number of partitions of a range."""
    return spark.range(1 << 16).select(F.spark_partition_id()).distinct().count()


def cut_waves(survey: Survey, keys: Sequence[str], pace: Pace) -> Iterator[Wave]:
    """Cut a survey's pending rows into waves, until none is left or the pace is over.

    Args:
        survey: The comparison of the source with the table.
        keys: The key columns' names.
        pace: Sizes each wave, which may have fewer rows, or of existing rows more, to end with a
            file.
    """
    for pending in survey.pending:
        if pace.is_over:
            return
        if pending.count <= pace.rows:
            taken = _take(pending.rows, keys)
            yield _wave(survey, pending, taken.toArrow(), taken.schema)
        else:
            yield from _cut(survey, pending, keys, pace)


def _take(rows: DataFrame, keys: Sequence[str]) -> DataFrame:
    return rows.select(*(F.col(quote(name)) for name in (*keys, BASE, SOURCE_FILE)))


def _wave(survey: Survey, pending: Pending, rows: pa.Table, schema: StructType) -> Wave:
    is_known = survey.has_source_files
    return Wave(
        is_new=pending.is_new,
        columns=pending.columns,
        rows=rows.drop_columns([SOURCE_FILE]),
        schema=StructType([field for field in schema if field.name != SOURCE_FILE]),
        source_files=tuple(pc.unique(rows[SOURCE_FILE]).to_pylist()) if is_known else None,
    )


def _cut(survey: Survey, pending: Pending, keys: Sequence[str], pace: Pace) -> Iterator[Wave]:
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
        ends_with_file = pending.is_new and survey.has_source_files and not pace.is_fixed
        start = 0
        while start < pending.count and not pace.is_over:
            end = _end_of_wave(start, pace.rows, pending.count, file_ends)
            taken = _take(ordered.filter(_between(sizes, start, end)), keys)
            rows = taken.toArrow()
            if ends_with_file and end < pending.count:
                rows = _whole_files(rows)
            start += rows.num_rows
            yield _wave(survey, pending, rows, taken.schema)
    finally:
        ordered.unpersist()


def _whole_files(rows: pa.Table) -> pa.Table:
    """Leave the rows of the last file to the next wave, where they are less than half of all."""
    files = rows[SOURCE_FILE]
    end = pc.index(files, files[-1]).as_py()
    return rows.slice(0, end) if 2 * end >= rows.num_rows else rows


def _file_ends(ordered: DataFrame) -> list[int]:
    """Return the positions in the order at which files of the table end."""
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
    """Select rows by their position in the order of partitions and of rows within them."""
    spans, before = [], 0
    for partition in sorted(sizes):
        first, last = max(start - before, 0), min(end - before, sizes[partition])
        if first < last:
            offset = partition << _PLACE_BITS
            spans.append(F.col(_NUMBER).between(offset + first, offset + last - 1))
        before += sizes[partition]
    return reduce(or_, spans)
