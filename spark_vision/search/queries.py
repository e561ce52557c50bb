"""What is searched for: texts, images and vectors, as unit vectors with an id each."""

from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    DataType,
    FractionalType,
    IntegerType,
    StringType,
)

from spark_vision.errors import InputTypeError, InvalidOptionError, Status
from spark_vision.functions import embed_image, embed_text
from spark_vision.operators import Operator
from spark_vision.search.batches import Floats

Kind = Literal["text", "image", "vector"]

MAX_QUERIES = 10_000
_ID, _QUERY, _POSITION = "id", "query", "__spark_vision_position"


# An id, the `Status` of a query, and one sentence where it has no vector.
Asked = tuple[Any, str, str | None]


def embed_queries(
    spark: SparkSession,
    queries: Any,
    operator_for: Callable[[str], Operator],
    dimension: int | None,
) -> tuple[list[Asked], DataType, Floats]:
    """Embed queries by Spark, and collect their vectors.

    Args:
        spark: The session.
        queries: As documented at `search_images`.
        operator_for: Returns the operator for `text` or `image`.
        dimension: The length of the column's vectors; None where it is not known.

    Returns:
        The queries, the Spark type of their ids, and the vectors of those that have one: float32,
        (queries with a vector, dimension), each of length 1.

    Raises:
        InputTypeError: A query has another type.
        InvalidOptionError: There are none, or more than 10,000; or a vector has another length.
    """
    parts, id_type = _rows(spark, queries)
    embedded = [
        row
        for kind, part in parts
        for row in part.withColumn(_QUERY, _embed(kind, operator_for)).collect()
    ]
    embedded.sort(key=lambda row: row[_POSITION])
    answers = [(row[_ID], *row[_QUERY]) for row in embedded]
    lengths = {len(vector) for _, vector, _, _ in answers if vector is not None}
    wanted = dimension or max(lengths, default=0)
    for length in lengths - {wanted}:
        raise InvalidOptionError(
            f"queries got a vector of {length} numbers; allowed: the {wanted} of the column's"
        )
    asked, vectors = list[Asked](), []
    for each, vector, status, error in answers:
        norm = 0.0 if vector is None else float(np.linalg.norm(vector))
        has_direction = norm > 0 and np.isfinite(norm)
        if has_direction:
            vectors.append(np.asarray(vector, np.float64) / norm)
        elif vector is not None:
            status, error = Status.NONFINITE.value, "the query's vector has no direction"
        asked.append((each, status, error))
    return asked, id_type, np.asarray(vectors, np.float32).reshape(len(vectors), wanted)


def _embed(kind: Kind, operator_for: Callable[[str], Operator]) -> Column:
    if kind == "vector":
        value = F.col(_QUERY).cast("array<float>")
        status = F.when(value.isNull(), Status.NULL_INPUT.value).otherwise(Status.OK.value)
        return F.struct(value, status, F.lit(None).cast("string"))
    operator: Any = operator_for(kind)
    if kind == "image":
        return embed_image(_QUERY, operator, with_status=True)
    # A blank text has a vector, which means nothing.
    text = F.when(F.trim(_QUERY) != "", F.col(_QUERY))
    return embed_text(text, operator, with_status=True)


def _rows(spark: SparkSession, queries: Any) -> tuple[list[tuple[Kind, DataFrame]], DataType]:
    """Return the queries of each kind, with an id and a position."""
    if hasattr(queries, "sparkSession"):
        return _rows_of(queries)
    listed = [queries] if _is_one(queries) or not isinstance(queries, Iterable) else [*queries]
    _check_count(len(listed))
    types = {"text": "string", "image": "binary", "vector": "array<float>"}
    made: dict[Kind, list[tuple[int, int, Any]]] = {}
    for place, query in enumerate(listed):
        kind, value = _read(query)
        made.setdefault(kind, []).append((place, place, value))
    return [
        (
            kind,
            spark.createDataFrame(rows, f"{_POSITION} int, {_ID} int, {_QUERY} {types[kind]}"),
        )
        for kind, rows in made.items()
    ], IntegerType()


def _rows_of(queries: DataFrame) -> tuple[list[tuple[Kind, DataFrame]], DataType]:
    if len(queries.columns) != 2:
        raise InputTypeError(
            f"queries got a DataFrame with the columns {', '.join(queries.columns)}; allowed: two "
            "columns, an id and a text, an image or a vector"
        )
    id_type, query_type = (field.dataType for field in queries.schema.fields)
    kind: Kind
    if isinstance(query_type, StringType):
        kind = "text"
    elif isinstance(query_type, BinaryType):
        kind = "image"
    elif isinstance(query_type, ArrayType) and isinstance(query_type.elementType, FractionalType):
        kind = "vector"
    else:
        raise InputTypeError(
            f"queries got a column of type {query_type.simpleString()}; allowed: string (texts), "
            "binary (images), array<float> (vectors)"
        )
    rows = queries.toDF(_ID, _QUERY).limit(MAX_QUERIES + 1)
    # As values: the positions of a DataFrame that is computed twice could differ.
    table = rows.toArrow()
    _check_count(table.num_rows)
    positions = pa.array(range(table.num_rows), pa.int32())
    numbered = table.append_column(_POSITION, positions)
    return [(kind, queries.sparkSession.createDataFrame(numbered))], id_type


def _is_one(queries: Any) -> bool:
    if isinstance(queries, np.ndarray):
        return queries.ndim == 1
    if isinstance(queries, str | bytes | bytearray | Path):
        return True
    return (
        isinstance(queries, Sequence)
        and bool(queries)
        and all(isinstance(each, Real) for each in queries)
    )


def _read(query: Any) -> tuple[Kind, Any]:
    if isinstance(query, str):
        return "text", query
    if isinstance(query, Path):
        return "image", query.read_bytes()
    if isinstance(query, bytes | bytearray):
        return "image", bytes(query)
    is_vector = isinstance(query, np.ndarray | Sequence)
    if is_vector and all(isinstance(each, Real | np.floating) for each in query):
        return "vector", [float(each) for each in query]
    raise InputTypeError(
        f"queries got {type(query).__name__}; allowed: a str (text), bytes or pathlib.Path "
        "(image), a sequence of numbers (vector), a list of them, or a DataFrame with an id and "
        "one such column"
    )


def _check_count(count: int) -> None:
    if not 0 < count <= MAX_QUERIES:
        raise InvalidOptionError(
            f"queries got {'none' if not count else 'more'}; allowed: 1 to {MAX_QUERIES:,}"
        )
