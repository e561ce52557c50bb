"""A few rows of a table for a screen: keys, status, dimension and the first numbers."""

from collections.abc import Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_vision.status import Status
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
        column: One of its columns of vectors.
        count: Rows at most.

    Returns:
        The keys, `status`, `dimension`, `first_values` and `error`; null where there is none.
    """
    vector = F.col(quote(column))
    status = F.col(quote(f"{column}_status"))
    named = [F.col(quote(key)) for key in keys]
    numbers = F.slice(vector, 1, _SHOWN_NUMBERS)
    return (
        spark.table(table)
        .orderBy(status == Status.OK.value, *named)
        .limit(count)
        .select(
            *named,
            status.alias("status"),
            # A length is null for a null vector, whatever the session's ANSI settings are.
            F.when(vector.isNotNull(), F.size(vector)).alias("dimension"),
            F.transform(numbers, lambda number: F.round(number, 4)).alias("first_values"),
            F.col(quote(f"{column}_error")).alias("error"),
        )
    )
