"""What changed in a table since a version, as records of an index: by its change data feed."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_vision.errors import TableError
from spark_vision.search.column_model import ColumnModel
from spark_vision.search.index_rows import NO_VECTOR, PROBLEM, REPEATED, index_records
from spark_vision.search.index_targets import IndexTarget
from spark_vision.tables.location import TableLocation, quote

DELETED = "deleted"
_TYPE, _VERSION = "_change_type", "_commit_version"
_FIRST, _LAST, _NET = (f"__spark_vision_{name}" for name in ("first", "last", "net"))
_HAD_VECTOR, _IS_DELETED, _IS_UNCHANGED = (
    f"__spark_vision_{name}" for name in ("had_vector", "is_deleted", "is_unchanged")
)
# Files that VACUUM removed, a log that was cleaned up, a feed that was switched on later.
_GONE = re.compile(
    r"FILE_NOT_EXIST|FileNotFoundException|DELTA_CHANGE_DATA_FILE_NOT_FOUND|"
    r"DELTA_MISSING_CHANGE_DATA|DELTA_TRUNCATED_TRANSACTION_LOG|DELTA_LOG_FILE_NOT_FOUND|"
    r"DELTA_VERSION_NOT_FOUND|DELTA_VERSIONS_NOT_CONTIGUOUS|DELTA_STATE_RECOVER_ERROR|"
    r"DELTA_CHANGE_DATA_FEED_INCOMPATIBLE"
)


def changed_records(
    spark: SparkSession,
    location: TableLocation,
    versions: tuple[int, int],
    model: ColumnModel,
    rules: IndexTarget,
    metadata: Sequence[str],
    *,
    include_unchanged: bool,
) -> DataFrame:
    """Return a record for each row whose vector or metadata changed within some versions.

    Only the feed is read, not the table, so the cost grows with the changes. The first change of a
    key shows its state before, and the last one its state after; a row that has come back to its
    first state is left out.

    Args:
        spark: The session.
        location: The table.
        versions: The first and the last version to read.
        model: The table's key and its column of vectors.
        rules: What the index accepts.
        metadata: Columns to include.
        include_unchanged: Also return the keys whose state is the same before and after.

    Returns:
        What `index_records` does; `PROBLEM` is `deleted` where the table no longer has the row.
    """
    key, column = model.keys[0], model.column
    feed = spark.read.option("readChangeFeed", "true")
    feed = feed.option("startingVersion", versions[0]).option("endingVersion", versions[1])
    is_after = F.when(F.col(_TYPE).isin("update_preimage", "delete"), 0).otherwise(1)
    vector = F.col(quote(column))
    content = F.struct(vector.alias(column), *map(quote, metadata))
    fingerprint = _fingerprint([column, *metadata]).alias("fingerprint")
    first = F.struct(
        F.col(_VERSION).alias("version"),
        is_after.alias("is_after"),
        vector.isNotNull().alias("has_vector"),
        fingerprint,
    )
    last = F.struct(content.alias("row"), fingerprint)
    # Of one version, what a row was comes before what it became.
    changes = (
        feed.table(location.sql)
        .groupBy(F.col(quote(key)).alias(key))
        .agg(
            F.min(first).alias(_FIRST),
            F.max_by(last, F.struct(_VERSION, is_after)).alias(_LAST),
            F.sum(is_after * 2 - 1).alias(_NET),
        )
    )
    was_there = F.col(f"{_FIRST}.is_after") == 0
    row_count = F.col(_NET) + was_there.cast("int")
    is_deleted = row_count < 1
    is_equal = F.col(f"{_FIRST}.fingerprint") == F.col(f"{_LAST}.fingerprint")
    rows = changes.select(
        quote(key),
        F.col(f"{_LAST}.row.*"),
        F.when(row_count > 1, True).alias(REPEATED),
        is_deleted.alias(_IS_DELETED),
        (was_there & F.col(f"{_FIRST}.has_vector")).alias(_HAD_VECTOR),
        (was_there & ~is_deleted & is_equal).alias(_IS_UNCHANGED),
    )
    flags = [_IS_DELETED, _HAD_VECTOR, _IS_UNCHANGED]
    records = index_records(rows, model, rules, metadata, also=flags)
    problem = F.when(F.col(_IS_DELETED), DELETED).otherwise(F.col(PROBLEM))
    records = records.withColumn(PROBLEM, problem)
    if not include_unchanged:
        # What was not there and is not to be there is no change.
        is_absent = F.coalesce(F.col(PROBLEM).isin(DELETED, NO_VECTOR), F.lit(False))
        records = records.filter(~F.col(_IS_UNCHANGED) & (F.col(_HAD_VECTOR) | ~is_absent))
    return records.drop(*flags)


def _fingerprint(columns: Sequence[str]) -> Column:
    # The hash of a null is that of its neighbour.
    parts = [part for name in columns for part in (F.col(quote(name)).isNull(), quote(name))]
    return F.xxhash64(*parts)


@contextmanager
def explaining_lost_versions(table: str, since: int, way_out: str) -> Iterator[None]:
    """Raise an error that says what to do where the block cannot read a table's old versions.

    Args:
        table: The table's name in messages.
        since: The oldest version that is needed.
        way_out: What to do.

    Raises:
        TableError: A file or a part of the feed is gone.
    """
    try:
        yield
    except Exception as error:
        if not _GONE.search(str(error)):
            raise
        raise TableError(
            f"{table} no longer has all versions since {since}: its change data feed was off, a "
            "column was renamed or dropped, or VACUUM or the log's retention removed files; "
            f"{way_out}"
        ) from error
