"""Which vectors are compared: equal ones become one, and random hyperplanes choose the pairs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from spark_vision.errors import InvalidOptionError, TableError
from spark_vision.search.batches import VECTOR
from spark_vision.search.blocks import (
    BLOCK,
    CODES,
    DIGEST,
    LEFT,
    PART,
    RIGHT,
    assign_blocks,
    digest_vectors,
    read_vectors,
)
from spark_vision.search.hyperplanes import (
    NO_SAMPLE,
    Hyperplanes,
    choose_hyperplanes,
    measure_collisions,
)
from spark_vision.tables.location import quote

KEY = "__spark_vision_key"

# Below, a million vectors need more than 70 tables, and too little is saved.
MIN_THRESHOLD = 0.8
MIN_RECALL, MAX_RECALL = 0.5, 0.9999
# A task has the rows of two parts of a block in memory.
_PART_ROWS = 4096
_SAMPLE_ROWS = 1000
_SAMPLE_PARTS = 1 << 32
_OTHER, _SIZE = "__spark_vision_other", "__spark_vision_size"

_Work = Callable[[Iterator[pa.RecordBatch], float], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class Comparison:
    """How the vectors of some rows are compared.

    Attributes:
        keyed: `KEY`, a struct of a row's keys, `DIGEST` and `VECTOR` as bytes.
        planes: The hyperplanes.
        threshold: The least cosine similarity.
    """

    keyed: DataFrame
    planes: Hyperplanes
    threshold: float

    def run(self, work: _Work, schema: str) -> DataFrame:
        """Return what `find_pairs` or `link_groups` finds in the blocks."""
        threshold = self.threshold

        def find(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return work(batches, threshold)

        blocks = self._parted.repartition(BLOCK, LEFT, RIGHT)
        return blocks.sortWithinPartitions(BLOCK, LEFT, RIGHT).mapInArrow(find, schema)

    @property
    def _parted(self) -> DataFrame:
        """The rows of all blocks; those of a large block for each two of its parts."""
        sizes = self._assign(with_vectors=False).groupBy(BLOCK).agg(F.count("*").alias(_SIZE))
        # Few blocks are large, if any.
        large = F.broadcast(sizes.filter(F.col(_SIZE) > _PART_ROWS))
        count = F.ceil(F.coalesce(_SIZE, F.lit(1)) / _PART_ROWS).cast("int")
        rows = self._assign(with_vectors=True).join(large, BLOCK, "left")
        rows = rows.withColumn(PART, F.pmod(F.xxhash64(DIGEST), count).cast("int"))
        rows = rows.withColumn(_OTHER, F.explode(F.sequence(F.lit(0), count - 1)))
        return rows.select(
            BLOCK,
            F.least(PART, _OTHER).alias(LEFT),
            F.greatest(PART, _OTHER).alias(RIGHT),
            PART,
            DIGEST,
            CODES,
            VECTOR,
        )

    def _assign(self, with_vectors: bool) -> DataFrame:
        planes = self.planes

        def assign(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return assign_blocks(batches, planes, with_vectors)

        carried = f"{DIGEST} binary, {VECTOR} binary, {CODES} binary, " if with_vectors else ""
        distinct = self.keyed.select(DIGEST, VECTOR).dropDuplicates([DIGEST])
        return distinct.mapInArrow(assign, f"{carried}{BLOCK} bigint")


def compare_vectors(
    rows: DataFrame, keys: list[str], column: str, threshold: float, recall: float
) -> Comparison:
    """Choose how to compare a column of vectors, by their number and a sample of them.

    Args:
        rows: The rows.
        keys: The columns that identify a row.
        column: The column of vectors.
        threshold: The least cosine similarity of a pair, 0.8 to 1.
        recall: The least probability to find a pair at the threshold.

    Raises:
        TableError: The vectors have several lengths.
        InvalidOptionError: The threshold or the recall is not allowed.
    """
    _check_share("threshold", threshold, MIN_THRESHOLD, 1)
    _check_share("recall", recall, MIN_RECALL, MAX_RECALL)
    vectors = rows.select(
        F.struct(*map(quote, keys)).alias(KEY),
        F.col(quote(column)).cast("array<float>").alias(VECTOR),
    )
    distinct_count, dimension = _count_vectors(vectors, column)
    keyed = _digest(vectors, dimension)
    share = min(1.0, _SAMPLE_ROWS / max(distinct_count, 1))
    sampled, collisions = _measure_sample(keyed, share)
    planes = choose_hyperplanes(dimension, sampled / share, collisions, threshold, recall)
    return Comparison(keyed, planes, threshold)


def _check_share(name: str, given: Any, least: float, most: float) -> None:
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if not is_number or not least <= given <= most:
        raise InvalidOptionError(f"{name} got {given!r}; allowed: {least} to {most}")


def _count_vectors(vectors: DataFrame, column: str) -> tuple[int, int]:
    """Return about how many different vectors there are, and their length."""
    size = F.when(F.col(VECTOR).isNotNull(), F.size(VECTOR))
    different = F.approx_count_distinct(F.xxhash64(VECTOR))
    counted = vectors.agg(different, F.min(size), F.max(size)).collect()
    distinct_count, shortest, longest = counted[0]
    if longest == 0:
        raise TableError(f"the column {column} has only empty vectors; choose another column")
    if shortest != longest:
        raise TableError(
            f"the column {column} has vectors of {shortest} to {longest} numbers; they are of "
            "different models: choose one model's rows by where="
        )
    return distinct_count, longest or 0


def _digest(vectors: DataFrame, dimension: int) -> DataFrame:
    def digest(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return digest_vectors(batches, dimension)

    schema = StructType([vectors.schema[KEY]]).add(DIGEST, "binary").add(VECTOR, "binary")
    return vectors.mapInArrow(digest, schema)


def _measure_sample(keyed: DataFrame, share: float) -> tuple[int, list[float]]:
    """Return the size of a sample of the distinct vectors, and how often two share a block."""

    def measure(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = pa.Table.from_batches(batches, pa.schema([(VECTOR, pa.binary())]))
        if rows.num_rows:
            found = measure_collisions(read_vectors(rows[VECTOR]))
            columns = [pa.array([rows.num_rows], pa.int32()), pa.array([found])]
            yield pa.RecordBatch.from_arrays(columns, ["count", "shares"])

    # A digest is in the sample or is not: copies do not count.
    is_sampled = F.pmod(F.xxhash64(DIGEST), F.lit(_SAMPLE_PARTS)) < int(share * _SAMPLE_PARTS)
    sample = keyed.filter(is_sampled).dropDuplicates([DIGEST]).select(VECTOR).repartition(1)
    measured = sample.mapInArrow(measure, "count int, shares array<double>").collect()
    return (measured[0]["count"], measured[0]["shares"]) if measured else (0, NO_SAMPLE)
