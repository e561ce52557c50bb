"""Finds the pending rows of a write, in one pass over the keys and hashes of source and table.

A row is pending where the table lacks it, where what a model reads has changed, where a column has
not been filled in yet, or where it failed and is to be retried.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_vision.errors import TableError
from spark_vision.tables.identity import FilledColumn
from spark_vision.tables.location import quote, read_version
from spark_vision.tables.source import INPUTS, SourceColumns, source_hash
from spark_vision.tables.source_files import file_column
from spark_vision.tables.write_options import WriteOptions
from spark_vision.tables.write_plan import SOURCE_HASH, UPDATED_AT, WritePlan

BASE = "__spark_vision_base"
SOURCE_FILE = "__spark_vision_source_file"
TABLE_FILE = "__spark_vision_table_file"
_IN_SOURCE = "__spark_vision_in_source"
_IN_TABLE = "__spark_vision_in_table"
_SOURCE_HASH = "__spark_vision_source_hash"
_TABLE_HASH = "__spark_vision_table_hash"
_STATUSES = "__spark_vision_statuses"
_NEEDED = "__spark_vision_needed"
_REASONS = "__spark_vision_reasons"
_SOURCE_KEPT = "__spark_vision_source_kept"
_TABLE_KEPT = "__spark_vision_table_kept"
# The entry among the columns that a row needs which means that kept columns are copied.
_REFRESH = ""
_HASH_TYPE = "struct<" + ", ".join(f"{name}: string" for name in INPUTS) + ">"
_EXAMPLE_COUNT = 3
# Spark's default formats stop at milliseconds.
_JSON_OPTIONS = {
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
}


@dataclass(frozen=True)
class Pending:
    """Rows of one kind that are to be computed.

    Attributes:
        is_new: Whether the table lacks them.
        columns: What is to be computed for each; empty where only kept columns have changed.
        count: The number of rows.
        rows: Their keys, with `BASE` (the table's `updated_at` of an existing row) and, where they
            are known, the files of the source and of the table that hold them.
    """

    is_new: bool
    columns: tuple[str, ...]
    count: int
    rows: DataFrame


@dataclass(frozen=True)
class Survey:
    """The comparison of a source with a table, by keys and hashes.

    Attributes:
        source_rows: Rows in the source.
        existing_rows: Source rows whose keys the table has.
        missing_rows: Rows of the table that the source does not have.
        pending: What is to be computed, by kind; empty where nothing is.
        missing_keys: The keys of the `missing_rows`, and `BASE`.
        has_source_files: Whether the rows know their files in the source.
        matched: All keys, with what was found for each.
    """

    source_rows: int
    existing_rows: int
    missing_rows: int
    pending: tuple[Pending, ...]
    missing_keys: DataFrame
    has_source_files: bool
    matched: DataFrame

    @property
    def pending_rows(self) -> int:
        """Rows that are to be computed."""
        return sum(each.count for each in self.pending)

    def count_reasons(self, names: Sequence[str]) -> dict[str, dict[str, int]]:
        """Count pending rows by column and reason.

        Args:
            names: The columns, in the order in which they were surveyed.
        """
        counts: dict[str, dict[str, int]] = {name: {} for name in names}
        rows = self.matched.filter(F.col(_IN_SOURCE) > 0).groupBy(_REASONS).count().collect()
        for row in rows:
            for name, reason in zip(names, row[_REASONS], strict=True):
                if reason is not None:
                    counts[name][reason] = counts[name].get(reason, 0) + row["count"]
        return counts

    def source_files(self) -> DataFrame:
        """Return the files of the source that hold pending rows."""
        pending = self.matched.filter(F.size(_NEEDED) > 0)
        return pending.select(F.col(SOURCE_FILE)).distinct()

    def release(self) -> None:
        """Release the cached keys."""
        self.matched.unpersist()


def survey_source(
    spark: SparkSession, write: WritePlan, source: DataFrame, *, has_table: bool
) -> Survey:
    """Compare a source with the newest version of the table, by their keys and hashes.

    With `version_columns`, column pruning ensures that no image is read; without them, images are
    read to be hashed.

    Raises:
        TableError: A key is null, or occurs twice; the message names examples.
    """
    chosen, options, wanted = write.chosen, write.options, write.filled
    table, refresh = None, list[str]()
    if has_table:
        # At a fixed version: Spark invalidates what it caches of the newest version at each commit,
        # and would read it all again.
        version = read_version(spark, write.location)
        table = spark.read.option("versionAsOf", version).table(write.location.sql)
        refresh += [
            name for name in chosen.kept_names if options.refresh_kept or name not in table.columns
        ]
    keys = [F.col(quote(name)) for name in chosen.key_names]
    file = file_column(source)
    no_hash = F.lit(None).cast(_HASH_TYPE)
    sides = source.select(
        *keys,
        F.lit(1).alias(_IN_SOURCE),
        F.lit(0).alias(_IN_TABLE),
        # Where all rows are new, nothing is compared, and no image is read.
        (no_hash if table is None else source_hash(chosen)).alias(_SOURCE_HASH),
        no_hash.alias(_TABLE_HASH),
        F.lit(None).cast("array<string>").alias(_STATUSES),
        F.lit(None).cast("timestamp").alias(BASE),
        (F.lit(None).cast("string") if file is None else file).alias(SOURCE_FILE),
        F.lit(None).cast("string").alias(TABLE_FILE),
        _hash_of(refresh, source).alias(_SOURCE_KEPT),
        F.lit(None).cast("bigint").alias(_TABLE_KEPT),
    )
    if table is not None:
        sides = sides.unionByName(_table_side(table, keys, wanted, refresh))
    columns = [_SOURCE_HASH, _TABLE_HASH, _STATUSES, BASE, SOURCE_FILE, TABLE_FILE]
    columns += [_SOURCE_KEPT, _TABLE_KEPT]
    matched = sides.groupBy(*keys).agg(
        F.sum(_IN_SOURCE).alias(_IN_SOURCE),
        F.sum(_IN_TABLE).alias(_IN_TABLE),
        *(F.max(name).alias(name) for name in columns),
    )
    reasons = [
        _reason(index, column.reads, options) for index, column in enumerate(wanted.values())
    ]
    needed = [
        F.when(reason.isNotNull(), F.lit(name))
        for name, reason in zip(wanted, reasons, strict=True)
    ]
    if refresh:
        differs = (F.col(_IN_TABLE) > 0) & ~F.col(_SOURCE_KEPT).eqNullSafe(F.col(_TABLE_KEPT))
        needed.append(F.when(differs, F.lit(_REFRESH)))
    needs = F.when(F.col(_IN_SOURCE) > 0, F.array_compact(F.array(*needed)))
    matched = matched.select(
        *keys,
        _IN_SOURCE,
        _IN_TABLE,
        BASE,
        SOURCE_FILE,
        TABLE_FILE,
        needs.alias(_NEEDED),
        F.array(*reasons).alias(_REASONS),
    ).persist()
    try:
        return _count(matched, keys, chosen, has_source_files=file is not None)
    except BaseException:
        matched.unpersist()
        raise


def _table_side(
    table: DataFrame,
    keys: Sequence[Column],
    wanted: Mapping[str, FilledColumn],
    refresh: Sequence[str],
) -> DataFrame:
    nothing = F.lit(None).cast("string")
    statuses = [
        F.col(quote(f"{name}_status")) if f"{name}_status" in table.columns else nothing
        for name in wanted
    ]
    return table.select(
        *keys,
        F.lit(0).alias(_IN_SOURCE),
        F.lit(1).alias(_IN_TABLE),
        F.lit(None).cast(_HASH_TYPE).alias(_SOURCE_HASH),
        F.col(SOURCE_HASH).alias(_TABLE_HASH),
        F.array(*statuses).alias(_STATUSES),
        F.col(UPDATED_AT).alias(BASE),
        nothing.alias(SOURCE_FILE),
        F.col("_metadata.file_path").alias(TABLE_FILE),
        F.lit(None).cast("bigint").alias(_SOURCE_KEPT),
        _hash_of(refresh, table).alias(_TABLE_KEPT),
    )


def _hash_of(names: Sequence[str], rows: DataFrame) -> Column:
    """Hash kept columns of any type; JSON omits null values, and so missing columns."""
    there = [F.col(quote(name)) for name in names if name in rows.columns]
    return F.xxhash64(F.to_json(F.struct(*there), _JSON_OPTIONS) if there else F.lit("{}"))


def _reason(index: int, reads: Sequence[str], options: WriteOptions) -> Column:
    """Return why a source row needs a column; null where it does not."""
    status = F.get(F.col(_STATUSES), F.lit(index))
    same = [F.col(_TABLE_HASH)[name].eqNullSafe(F.col(_SOURCE_HASH)[name]) for name in reads]
    reason = (
        F.when(F.col(_IN_TABLE) == 0, F.lit("new"))
        .when(status.isNull(), F.lit("not filled in"))
        .when(~reduce(and_, same), F.lit("changed"))
    )
    if options.retry:
        reason = reason.when(status.isin(*options.retry), F.lit("failed"))
    return reason.otherwise(F.lit("recomputed")) if options.recompute else reason


def _count(
    matched: DataFrame, keys: Sequence[Column], chosen: SourceColumns, *, has_source_files: bool
) -> Survey:
    null_key = reduce(or_, (key.isNull() for key in keys))
    bad = (F.col(_IN_SOURCE) > 0) & (null_key | (F.col(_IN_SOURCE) > 1))
    is_new = F.col(_IN_TABLE) == 0
    counts = (
        matched.groupBy(_NEEDED, is_new.alias("is_new"))
        .agg(
            F.count("*").alias("keys"),
            F.sum(_IN_SOURCE).alias("rows"),
            F.count_if(bad).alias("bad"),
        )
        .collect()
    )
    bad_count = sum(row["bad"] for row in counts)
    if bad_count:
        examples = matched.filter(bad).orderBy(F.desc(_IN_SOURCE)).limit(_EXAMPLE_COUNT).collect()
        shown = "; ".join(
            ", ".join(f"{key}={each[key]!r}" for key in chosen.key_names)
            + f" in {each[_IN_SOURCE]} row(s)"
            for each in examples
        )
        raise TableError(
            f"keys must be unique and not null; {bad_count} are not, such as {shown}; nothing was "
            "computed: drop these rows, or choose other keys"
        )
    pending = []
    for row in counts:
        if row[_NEEDED]:
            of_kind = (is_new == row["is_new"]) & (
                F.col(_NEEDED) == F.array(*map(F.lit, row[_NEEDED]))
            )
            rows = matched.filter(of_kind).select(*keys, BASE, SOURCE_FILE, TABLE_FILE)
            columns = tuple(name for name in row[_NEEDED] if name != _REFRESH)
            pending.append(Pending(row["is_new"], columns, row["keys"], rows))
    pending.sort(key=lambda each: (each.is_new, each.columns))
    in_source = [row for row in counts if row[_NEEDED] is not None]
    return Survey(
        source_rows=sum(row["rows"] for row in counts),
        existing_rows=sum(row["keys"] for row in in_source if not row["is_new"]),
        missing_rows=sum(row["keys"] for row in counts if row[_NEEDED] is None),
        pending=tuple(pending),
        missing_keys=matched.filter(F.col(_NEEDED).isNull()).select(*keys, BASE),
        has_source_files=has_source_files,
        matched=matched,
    )
