"""Exact search: one pass over a column of vectors for all queries, without an index."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, StructType

from spark_vision.errors import InvalidOptionError, Status
from spark_vision.operators import Operator
from spark_vision.search.batches import VECTOR, Floats
from spark_vision.search.column_model import other_side
from spark_vision.search.nearest import QUERY, SCORE, find_nearest
from spark_vision.search.queries import Asked, embed_queries
from spark_vision.search.source import check_free, open_source
from spark_vision.tables.location import quote

MAX_K = 10_000
_POSITION = "__spark_vision_position"
_OWN_NAMES = ("query", "status", "error", "rank", "score")


def search_images(
    source: str | DataFrame,
    column: str,
    queries: Any,
    operator: Operator | None = None,
    *,
    k: int = 16,
    where: str | Column | None = None,
    keep: Sequence[str] = (),
    keys: Sequence[str] | None = None,
    spark: SparkSession | None = None,
) -> DataFrame:
    """Find the rows whose vectors are nearest to each query, by comparing all of them.

    Queries are embedded at once, by Spark; the search itself runs when the result is used. It
    reads the vectors once for all queries, and each task keeps its best `k` rows for each.

    Args:
        source: A table of `write_vision_columns`, by path or name; or a DataFrame with keys and a
            column of vectors.
        column: The column of vectors.
        queries: A text (`str`), an image (`bytes`, or a `pathlib.Path` on the driver), a vector (a
            sequence of numbers), a list of these, or a DataFrame with an id and a column of texts
            (string), images (binary) or vectors (array<float>). At most 10,000.
        operator: What embeds the queries: the column's own model, on either side of a CLIP-like
            checkpoint. None: it is made from the table's properties. Vectors need none.
        k: The maximum of rows for each query.
        where: Only rows for which this SQL condition holds are searched.
        keep: Further columns of the source in the result.
        keys: Columns that identify a row of a DataFrame; a table knows its own.
        spark: The session; None means the active one.

    Returns:
        For each query, ordered by `query` and `rank`: `query` (its position in the list, or its id
        in the DataFrame), `status` and `error` as of `embed_image`, `rank` (from 1), `score` (the
        cosine similarity), the keys and the kept columns. Equal scores are ordered by key. A query
        that failed has one row, without a rank.

    Raises:
        TableError: There is no such table or column; the column is another model's, or its model
            does not embed texts.
        InputTypeError: A query or the column has another type.
        InvalidOptionError: `k`, `keys` or the number of queries is not allowed.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> clip = ClipImageEmbedding(model_name="openai/clip-vit-base-patch32")
        >>> result = write_vision_columns(
        ...     photos, "/data/searched_vectors", ["path"], {"embedding": clip}
        ... )
        >>> found = search_images("/data/searched_vectors", "embedding", "a red bicycle", k=3)
        >>> found.select("rank", "score", "path").count()
        3
    """
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MAX_K:
        raise InvalidOptionError(f"k got {k!r}; allowed: 1 to {MAX_K:,}")
    rows, row_keys, model = open_source(source, column, keys, where, spark, keep)
    session, names = rows.sparkSession, list(dict.fromkeys([*row_keys, *keep]))
    check_free(names, _OWN_NAMES)

    def operator_for(what: str) -> Operator:
        if model is not None:
            return model.operator_for(what, operator, session)
        if operator is None:
            raise InvalidOptionError(
                "operator got none; allowed: the operator that filled the DataFrame's column"
            )
        return other_side(operator, what)

    dimension = model.dimension if model else None
    asked, id_type, sought = embed_queries(session, queries, operator_for, dimension)
    vectors = rows.select(*map(quote, names), F.col(quote(column)).alias(VECTOR))
    return _name_queries(asked, id_type, _search(vectors, sought, k, row_keys), names)


def _search(vectors: DataFrame, queries: Floats, k: int, keys: list[str]) -> DataFrame:
    """Return the best rows of each query with `QUERY`, `SCORE` and `rank`."""

    def find(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return find_nearest(batches, queries, k, keys)

    schema = StructType([field for field in vectors.schema.fields if field.name != VECTOR])
    if not len(queries):
        vectors = vectors.limit(0)
    best = vectors.mapInArrow(find, schema.add(QUERY, "integer").add(SCORE, "float"))
    order = [F.desc(SCORE), *(F.asc(quote(key)) for key in keys)]
    rank = F.row_number().over(Window.partitionBy(QUERY).orderBy(*order))
    return best.withColumn("rank", rank).filter(F.col("rank") <= k)


def _name_queries(
    asked: Sequence[Asked], id_type: DataType, nearest: DataFrame, names: Sequence[str]
) -> DataFrame:
    """Join each query's id and status to its rows."""
    schema = StructType().add(_POSITION, "integer").add(QUERY, "integer").add("query", id_type)
    schema = schema.add("status", "string").add("error", "string")
    places = count()
    rows = [
        (position, next(places) if status == Status.OK else None, each, status, error)
        for position, (each, status, error) in enumerate(asked)
    ]
    joined = nearest.sparkSession.createDataFrame(rows, schema).join(nearest, QUERY, "left")
    return (
        joined.filter(F.col("rank").isNotNull() | F.col(QUERY).isNull())
        .orderBy(_POSITION, "rank")
        .select("query", "status", "error", "rank", F.col(SCORE).alias("score"), *map(quote, names))
    )
