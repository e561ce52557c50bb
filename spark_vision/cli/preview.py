"""A few rows of a table for a screen: keys, status, and the start of each value."""

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType

from spark_vision.errors import Status
from spark_vision.tables.location import quote

_SHOWN_NUMBERS = 3


def preview_table(
    spark: SparkSession, table: str, keys: Sequence[str], column: str, count: int
) -> DataFrame:
    """Choose rows of a table to look at; those that failed come first.

    Args:
        spark: The session.
        table: As `WriteResult.table` names it.
        keys: Its key columns, which also order the rows.
        column: One of its columns of vectors or captions.
        count: Rows at most.

    Returns:
        The keys, `status`, `error` and, for vectors, `dimension` and `first_values`, for captions
        `caption`; null where there is none.
    """
    value = F.col(quote(column))
    status = F.col(quote(f"{column}_status"))
    named = [F.col(quote(key)) for key in keys]
    rows = spark.table(table)
    is_text = isinstance(rows.schema[column].dataType, StringType)
    shown = [value.alias("caption")] if is_text else _vector(value)
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
        # A length is null for a null vector, whatever the session's ANSI settings are.
        F.when(value.isNotNull(), F.size(value)).alias("dimension"),
        F.transform(numbers, lambda number: F.round(number, 4)).alias("first_values"),
    ]
