"""Near-duplicates of a column of vectors: pairs of rows, and groups of them.

There are two functions and not one with a switch, because their rows differ: a pair has two keys
and a score; a grouped row has its key and its group's. Groups also need no pairs: n copies of an
image are n rows of a group, but n (n - 1) / 2 pairs.
"""

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_vision.search.blocks import (
    DIGEST,
    FIRST,
    SCORE,
    SECOND,
    find_pairs,
    link_groups,
)
from spark_vision.search.comparison import KEY, compare_vectors
from spark_vision.search.components import NODE, ROOT, connect_nodes
from spark_vision.search.source import check_free, open_source

_OTHER, _SIZE = "__spark_vision_other", "__spark_vision_size"

_LINK = f"{FIRST} binary, {SECOND} binary"


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
    rows, row_keys, _ = open_source(source, column, keys, where, spark)
    compared = compare_vectors(rows, row_keys, column, threshold, recall)
    pairs = compared.run(find_pairs, f"{_LINK}, {SCORE} double")
    return _name_pairs(compared.keyed, pairs, row_keys)


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
    rows, row_keys, _ = open_source(source, column, keys, where, spark)
    check_free([*row_keys, "group_size"], [f"group_{key}" for key in row_keys])
    check_free(row_keys, ["group_size"])
    compared = compare_vectors(rows, row_keys, column, threshold, recall)
    links = compared.run(link_groups, _LINK)
    return _name_groups(compared.keyed, connect_nodes(links), row_keys)


def _name_pairs(keyed: DataFrame, pairs: DataFrame, keys: list[str]) -> DataFrame:
    """Return the keys of the rows of each pair of digests, and of the rows with one digest."""
    keyed = keyed.select(KEY, DIGEST)
    several = keyed.groupBy(DIGEST).agg(F.count("*").alias(_SIZE)).filter(F.col(_SIZE) > 1)
    equal = several.select(
        F.col(DIGEST).alias(FIRST), F.col(DIGEST).alias(SECOND), F.lit(1.0).alias(SCORE)
    )
    first = keyed.select(F.col(KEY), F.col(DIGEST).alias(FIRST))
    second = keyed.select(F.col(KEY).alias(_OTHER), F.col(DIGEST).alias(SECOND))
    both = pairs.union(equal).join(first, FIRST).join(second, SECOND)
    both = both.filter((F.col(FIRST) != F.col(SECOND)) | (F.col(KEY) < F.col(_OTHER)))
    smaller, larger = F.least(KEY, _OTHER), F.greatest(KEY, _OTHER)
    return both.select(
        *(smaller[key].alias(f"{key}_a") for key in keys),
        *(larger[key].alias(f"{key}_b") for key in keys),
        F.col(SCORE).alias("score"),
    )


def _name_groups(keyed: DataFrame, roots: DataFrame, keys: list[str]) -> DataFrame:
    """Return each row's keys with those of its group, where a group has several rows."""
    joined = keyed.select(KEY, DIGEST).join(roots.withColumnRenamed(NODE, DIGEST), DIGEST, "left")
    rooted = joined.select(KEY, F.coalesce(ROOT, DIGEST).alias(ROOT))
    groups = rooted.groupBy(ROOT).agg(F.count("*").alias(_SIZE), F.min(KEY).alias(_OTHER))
    grouped = rooted.join(groups.filter(F.col(_SIZE) > 1), ROOT)
    return grouped.select(
        *(F.col(KEY)[key].alias(key) for key in keys),
        *(F.col(_OTHER)[key].alias(f"group_{key}") for key in keys),
        F.col(_SIZE).alias("group_size"),
    )
