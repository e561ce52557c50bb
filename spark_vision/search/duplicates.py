"""Near-duplicates of a column of vectors: equal vectors become one, and blocks are compared.

There are two functions and not one with a switch, because their rows differ: a pair has two keys
and a score; a grouped row has its key and its group's. Groups also need no pairs: n copies of an
image are n rows of a group, but n (n - 1) / 2 pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    DoubleType,
    IntegerType,
    LongType,
    StructField,
    StructType,
)

from spark_vision.errors import InvalidOptionError, TableError
from spark_vision.search.batches import VECTOR
from spark_vision.search.blocks import (
    BLOCK,
    CODES,
    DIGEST,
    FIRST,
    LEFT,
    PART,
    RIGHT,
    SCORE,
    SECOND,
    assign_blocks,
    digest_vectors,
    find_pairs,
    link_groups,
    read_vectors,
)
from spark_vision.search.components import NODE, ROOT, connect_nodes
from spark_vision.search.hyperplanes import (
    NO_SAMPLE,
    Hyperplanes,
    choose_hyperplanes,
    measure_collisions,
)
from spark_vision.search.source import check_free, open_source
from spark_vision.tables.location import quote

MIN_THRESHOLD = 0.8
MIN_RECALL, MAX_RECALL = 0.5, 0.9999
# A task has the rows of two parts of a block in memory.
_PART_ROWS = 4096
_SAMPLE_ROWS = 1000
_SAMPLE_PARTS = 1 << 32
_KEY, _OTHER, _SIZE = "__spark_vision_key", "__spark_vision_other", "__spark_vision_size"

_LINK = [StructField(FIRST, BinaryType()), StructField(SECOND, BinaryType())]


def find_duplicates(
    source: str | DataFrame,
    column: str,
    threshold: float = 0.95,
    *,
    recall: float = 0.99,
    where: str | Column | None = None,
    keys: Sequence[str] | None = None,
    spark: SparkSession | None = None,
) -> DataFrame:
    """Find the pairs of rows whose vectors are similar.

    The number of vectors and a sample of them are read at once; the vectors are compared when the
    result is used. Random hyperplanes choose which vectors are compared (Charikar 2002): two
    vectors of angle θ are compared with the probability `1 - (1 - (1 - θ/π)**bits)**tables`. The
    bits and tables are chosen so that it is `recall` at the threshold, and the cost is least. It is
    higher for pairs that are more similar, and 1 for equal vectors. The scores are exact.

    Args:
        source: A table of `write_vision_columns`, by path or name; or a DataFrame with keys and a
            column of vectors.
        column: The column of vectors. Rows whose vector is null, zero or not finite are left out.
        threshold: The least cosine similarity of a pair, 0.8 to 1. Below, hyperplanes separate
            similar vectors so often that too little is saved.
        recall: The least probability to find a pair at the threshold, 0.5 to 0.9999.
        where: Only rows for which this SQL condition holds are compared.
        keys: Columns that identify a row of a DataFrame; a table knows its own.
        spark: The session; None means the active one.

    Returns:
        A row for each pair: the keys of both as `KEY_a`, the smaller one, and `KEY_b`, and `score`
        (the cosine similarity, double). Equal vectors are pairs, too: where an image may have many
        copies, use `group_duplicates`.

    Raises:
        TableError: There is no such table or column, or its vectors have several lengths.
        InputTypeError: The column has another type than array<float>.
        InvalidOptionError: `threshold`, `recall` or `keys` is not allowed.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
        >>> result = write_vision_columns(
        ...     photos, "/data/compared_vectors", ["path"], {"embedding": dino}
        ... )
        >>> pairs = find_duplicates("/data/compared_vectors", "embedding", threshold=0.98)
        >>> pairs.columns
        ['path_a', 'path_b', 'score']
    """
    opened = open_source(source, column, keys, where, spark)
    compared = _compare(opened.rows, opened.keys, column, threshold, recall)
    pairs = compared.run(find_pairs, StructType([*_LINK, StructField(SCORE, DoubleType())]))
    return _name_pairs(compared.keyed, pairs, opened.keys)


def group_duplicates(
    source: str | DataFrame,
    column: str,
    threshold: float = 0.95,
    *,
    recall: float = 0.99,
    where: str | Column | None = None,
    keys: Sequence[str] | None = None,
    spark: SparkSession | None = None,
) -> DataFrame:
    """Find the groups of rows whose vectors are similar.

    A group is a connected component of the pairs of `find_duplicates`: if `a` and `b` are a pair,
    and `b` and `c`, all three are in one group. The vectors are compared at once, and the groups
    stay on the executors for as long as the result is in use.

    Args:
        source: As in `find_duplicates`.
        column: As in `find_duplicates`.
        threshold: As in `find_duplicates`.
        recall: As in `find_duplicates`. A group has usually several pairs that connect it.
        where: As in `find_duplicates`.
        keys: As in `find_duplicates`.
        spark: The session; None means the active one.

    Returns:
        A row for each row of the source that is in a group: its keys, the smallest keys of its
        group as `group_KEY`, and `group_size` (bigint).

    Raises:
        TableError: As in `find_duplicates`, or a key has a name of the result's own.
        InputTypeError: The column has another type than array<float>.
        InvalidOptionError: `threshold`, `recall` or `keys` is not allowed.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
        >>> result = write_vision_columns(
        ...     photos, "/data/grouped_vectors", ["path"], {"embedding": dino}
        ... )
        >>> groups = group_duplicates("/data/grouped_vectors", "embedding")
        >>> copies = groups.filter("path <> group_path")
        >>> distinct = photos.join(copies, "path", "left_anti")
    """
    opened = open_source(source, column, keys, where, spark)
    check_free([*opened.keys, "group_size"], [f"group_{key}" for key in opened.keys])
    check_free(opened.keys, ["group_size"])
    compared = _compare(opened.rows, opened.keys, column, threshold, recall)
    links = compared.run(link_groups, StructType(_LINK))
    return _name_groups(compared.keyed, connect_nodes(links), opened.keys)


@dataclass(frozen=True)
class _Comparison:
    """How the vectors of some rows are compared.

    Attributes:
        keyed: `_KEY`, a struct of a row's keys, `DIGEST` and `VECTOR` as bytes.
        planes: The hyperplanes.
        threshold: The least cosine similarity.
    """

    keyed: DataFrame
    planes: Hyperplanes
    threshold: float

    def run(self, work: Any, schema: StructType) -> DataFrame:
        """Return what `find_pairs` or `link_groups` finds in the blocks."""
        threshold = self.threshold

        def find(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return work(batches, threshold)  # type: ignore[no-any-return]

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

        bytes_columns = [DIGEST, VECTOR, CODES] if with_vectors else []
        fields = [StructField(name, BinaryType()) for name in bytes_columns]
        schema = StructType([*fields, StructField(BLOCK, LongType())])
        distinct = self.keyed.select(DIGEST, VECTOR).dropDuplicates([DIGEST])
        return distinct.mapInArrow(assign, schema)


def _compare(
    rows: DataFrame, keys: list[str], column: str, threshold: float, recall: float
) -> _Comparison:
    _check_share("threshold", threshold, MIN_THRESHOLD, 1)
    _check_share("recall", recall, MIN_RECALL, MAX_RECALL)
    vectors = rows.select(
        F.struct(*map(quote, keys)).alias(_KEY),
        F.col(quote(column)).cast("array<float>").alias(VECTOR),
    )
    row_count, dimension = _count_vectors(vectors, column)
    keyed = _digest(vectors, dimension)
    share = min(1.0, _SAMPLE_ROWS / max(row_count, 1))
    sampled, collisions = _measure_sample(keyed, share)
    planes = choose_hyperplanes(dimension, sampled / share, collisions, threshold, recall)
    return _Comparison(keyed, planes, threshold)


def _check_share(name: str, given: Any, least: float, most: float) -> None:
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if not is_number or not least <= given <= most:
        raise InvalidOptionError(f"{name} got {given!r}; allowed: {least} to {most}")


def _count_vectors(vectors: DataFrame, column: str) -> tuple[int, int]:
    """Return the number of vectors that are not null, and their length."""
    size = F.when(F.col(VECTOR).isNotNull(), F.size(VECTOR))
    row_count, shortest, longest = vectors.agg(F.count(size), F.min(size), F.max(size)).collect()[0]
    if shortest != longest:
        raise TableError(
            f"the column {column} has vectors of {shortest} to {longest} numbers; they are of "
            "different models: choose one model's rows by where="
        )
    return row_count, longest or 0


def _digest(vectors: DataFrame, dimension: int) -> DataFrame:
    def digest(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return digest_vectors(batches, dimension)

    fields = [vectors.schema[_KEY], StructField(DIGEST, BinaryType())]
    return vectors.mapInArrow(digest, StructType([*fields, StructField(VECTOR, BinaryType())]))


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
    schema = StructType(
        [StructField("count", IntegerType()), StructField("shares", ArrayType(DoubleType()))]
    )
    measured = sample.mapInArrow(measure, schema).collect()
    return (measured[0]["count"], measured[0]["shares"]) if measured else (0, NO_SAMPLE)


def _name_pairs(keyed: DataFrame, pairs: DataFrame, keys: list[str]) -> DataFrame:
    """Return the keys of the rows of each pair of digests, and of the rows with one digest."""
    keyed = keyed.select(_KEY, DIGEST)
    several = keyed.groupBy(DIGEST).agg(F.count("*").alias(_SIZE)).filter(F.col(_SIZE) > 1)
    equal = several.select(
        F.col(DIGEST).alias(FIRST), F.col(DIGEST).alias(SECOND), F.lit(1.0).alias(SCORE)
    )
    first = keyed.select(F.col(_KEY), F.col(DIGEST).alias(FIRST))
    second = keyed.select(F.col(_KEY).alias(_OTHER), F.col(DIGEST).alias(SECOND))
    both = pairs.union(equal).join(first, FIRST).join(second, SECOND)
    both = both.filter((F.col(FIRST) != F.col(SECOND)) | (F.col(_KEY) < F.col(_OTHER)))
    smaller, larger = F.least(_KEY, _OTHER), F.greatest(_KEY, _OTHER)
    return both.select(
        *(smaller[key].alias(f"{key}_a") for key in keys),
        *(larger[key].alias(f"{key}_b") for key in keys),
        F.col(SCORE).alias("score"),
    )


def _name_groups(keyed: DataFrame, roots: DataFrame, keys: list[str]) -> DataFrame:
    """Return each row's keys with those of its group, where a group has several rows."""
    joined = keyed.select(_KEY, DIGEST).join(roots.withColumnRenamed(NODE, DIGEST), DIGEST, "left")
    rooted = joined.select(_KEY, F.coalesce(ROOT, DIGEST).alias(ROOT))
    groups = rooted.groupBy(ROOT).agg(F.count("*").alias(_SIZE), F.min(_KEY).alias(_OTHER))
    grouped = rooted.join(groups.filter(F.col(_SIZE) > 1), ROOT)
    return grouped.select(
        *(F.col(_KEY)[key].alias(key) for key in keys),
        *(F.col(_OTHER)[key].alias(f"group_{key}") for key in keys),
        F.col(_SIZE).alias("group_size"),
    )
