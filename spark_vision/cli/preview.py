"""Selects a few rows of a table to print: keys, status, and the start of each value."""

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StringType, StructType

from spark_vision.errors import Status
from spark_vision.tables.location import quote

_SHOWN_NUMBERS = 3


def preview_table(
    spark: SparkSession, table: str, keys: Sequence[str], column: str, count: int
) -> DataFrame:
    """Select rows of a table to print, failed rows first.

    Args:
        spark: The session.
        table: The table, as in `WriteResult.table`.
        keys: Its key columns, by which rows are sorted.
        column: A column of vectors, captions or tags.
        count: Maximum number of rows.

    Returns:
        The keys, `status`, `error` and, for vectors, `dimension` and `first_values`, for captions
        `caption`, or for tags `tags`; null if there is no value.
    """
    value = F.col(quote(column))
    status = F.col(quote(f"{column}_status"))
    named = [F.col(quote(key)) for key in keys]
    rows = spark.table(table)
    kind = rows.schema[column].dataType
    if isinstance(kind, StringType):
        shown = [value.alias("caption")]
    elif isinstance(kind, ArrayType) and isinstance(kind.elementType, StructType):
        shown = [value.alias("tags")]
    else:
        shown = _vector(value)
    return (
        rows.orderBy(status == Status.OK.value, *named)
        .limit(count)
        .select(
            *named, status.alias("status"), *shown, F.col(quote(f"{column}_error")).alias("error")
        )
    )


def _vector(value: Column) -> list[Column]:
    numbers = F.slice(value, 1, _SHOWN_NUMBERS)
    return [
        # The size of a null vector is null, whatever the session's ANSI mode is.
        F.when(value.isNotNull(), F.size(value)).alias("dimension"),
        F.transform(numbers, lambda number: F.round(number, 4)).alias("first_values"),
    ]
