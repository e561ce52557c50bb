"""Identifies the rows of a commit by their `updated_at`, which no two commits share."""

import threading
import time
from collections import Counter

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from spark_vision.tables.conflicts import retry_conflicts
from spark_vision.tables.location import TableLocation, quote
from spark_vision.tables.schema import UPDATED_AT

_stamp_lock = threading.Lock()
_last_stamp = 0


def new_stamp() -> str:
    """Return the current time in SQL, to the microsecond, and never the same one twice."""
    global _last_stamp
    with _stamp_lock:
        _last_stamp = max(time.time_ns() // 1000, _last_stamp + 1)
        return f"timestamp_micros({_last_stamp})"


def count_statuses(
    spark: SparkSession, location: TableLocation, stamp: str, columns: tuple[str, ...]
) -> dict[str, Counter[str]]:
    """Count the rows of a commit by status, for each column.

    Args:
        spark: The session.
        location: The table.
        stamp: The `updated_at` of these rows and no others, in SQL.
        columns: The columns that were computed.
    """
    names = [quote(f"{name}_status") for name in columns]
    rows = spark.table(location.sql).filter(F.col(UPDATED_AT) == F.expr(stamp))
    counts = {name: Counter[str]() for name in columns}
    for row in rows.groupBy(*names).agg(F.count("*").alias("rows")).collect():
        for place, name in enumerate(columns):
            counts[name][row[place]] += row["rows"]
    return counts


def find_examples(
    spark: SparkSession, location: TableLocation, stamp: str, column: str
) -> dict[str, str]:
    """Return an example error from a commit's rows for each status of a column."""
    status, error = F.col(quote(f"{column}_status")), F.col(quote(f"{column}_error"))
    rows = spark.table(location.sql).filter(F.col(UPDATED_AT) == F.expr(stamp))
    found = rows.groupBy(status).agg(F.first(error, ignorenulls=True)).dropna()
    return {row[0]: row[1] for row in found.collect()}


def remove_wave(spark: SparkSession, location: TableLocation, stamp: str) -> None:
    """Delete an inserted wave from the table again."""
    statement = f"DELETE FROM {location.sql} WHERE {UPDATED_AT} = {stamp}"
    retry_conflicts(location, lambda: spark.sql(statement).collect())
