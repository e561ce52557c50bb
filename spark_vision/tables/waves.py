"""Pending rows cut into waves: each is inferred, staged and committed before the next one begins.

Rows lie in a wave as they lie in files, the table's first, then the source's: a wave reads few
files of either, and an update touches few files of the table.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import or_

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_vision.tables.location import literal, quote
from spark_vision.tables.pending import BASE, SOURCE_FILE, TABLE_FILE, Pending, Survey

_NUMBER = "__spark_vision_number"
# What `monotonically_increasing_id` puts a row's place within its partition into.
_PLACE_BITS = 33


@dataclass(frozen=True)
class Wave:
    """Rows that are inferred, staged and committed together.

    Attributes:
        is_new: Whether the table lacks them.
        columns: What is computed of each.
        count: Of rows.
        rows: Their keys and `BASE`.
        source_files: The source's files that hold them; None where that is not known.
    """

    is_new: bool
    columns: tuple[str, ...]
    count: int
    rows: DataFrame
    source_files: list[str] | None

    def select_from(self, source: DataFrame, keys: tuple[str, ...]) -> DataFrame:
        """Leave this wave's rows of a source, with `BASE`; reads no other file."""
        if self.source_files is not None:
            # As text: thousands of values given one by one would take the driver a minute.
            listed = ", ".join(map(literal, self.source_files))
            source = source.filter(F.expr(f"_metadata.file_path IN ({listed})"))
        # Without the broadcast, a join would shuffle images.
        return source.join(F.broadcast(self.rows), list(keys))


def count_waves(survey: Survey, rows_per_commit: int) -> int:
    """Say how many waves `cut_waves` will give."""
    return sum(-(-each.count // rows_per_commit) for each in survey.pending)


def cut_waves(survey: Survey, keys: tuple[str, ...], rows_per_commit: int) -> Iterator[Wave]:
    """Cut a survey's pending rows.

    Args:
        survey: Of the source and the table.
        keys: The key columns' names.
        rows_per_commit: Rows of a wave; the last one of a kind may have fewer.
    """
    for pending in survey.pending:
        for rows, count in _cut(pending, keys, rows_per_commit):
            files = None
            if survey.has_source_files:
                files = [row[0] for row in rows.select(SOURCE_FILE).distinct().collect()]
            named = [F.col(quote(key)) for key in keys]
            yield Wave(
                pending.is_new, pending.columns, count, rows.select(*named, F.col(BASE)), files
            )


def _cut(
    pending: Pending, keys: tuple[str, ...], rows_per_commit: int
) -> Iterator[tuple[DataFrame, int]]:
    if pending.count <= rows_per_commit:
        yield pending.rows, pending.count
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
        for start in range(0, pending.count, rows_per_commit):
            end = min(start + rows_per_commit, pending.count)
            yield ordered.filter(_between(sizes, start, end)), end - start
    finally:
        ordered.unpersist()


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
