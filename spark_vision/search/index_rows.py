"""Selects the rows that a vector index accepts, and reports the rules that other rows break."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, FloatType, StringType, StructType

from spark_vision.errors import TableError
from spark_vision.search.column_model import ColumnModel, open_vectors
from spark_vision.search.index_targets import TARGETS, IndexTarget
from spark_vision.tables.location import quote

_EXAMPLE_COUNT = 3
REPEATED = "__spark_vision_repeated"
PROBLEM = "__spark_vision_problem"
NO_VECTOR = "no_vector"
FEED_PROPERTY = "delta.enableChangeDataFeed"


@dataclass(frozen=True)
class IndexProblem:
    """A rule that rows, or the table itself, break.

    Attributes:
        rule: Its name, such as `finite` or `id_length`.
        affected_rows: Rows that break it; 0 where the table itself does.
        examples: The keys of a few of those rows.
        advice: The rule in words, and what to change.

    Example:
        >>> report = index_ready("/data/photo_vectors", "embedding", "databricks_ai_search")
        >>> problems: tuple[IndexProblem, ...] = report.problems
        >>> for problem in problems:
        ...     print(problem.rule, problem.affected_rows, problem.advice)
    """

    rule: str
    affected_rows: int
    examples: tuple[str, ...]
    advice: str


@dataclass(frozen=True)
class IndexReport:
    """What an index accepts of a table.

    Attributes:
        target: The index.
        rows: `id`, `vector` and the metadata columns of the rows that keep all rules; empty where
            the table itself breaks one.
        ready_rows: The number of those rows.
        not_computed: Rows without a vector, by status; `pending` are not computed yet.
        problems: What is wrong with the other rows, or with the table.

    Example:
        >>> report: IndexReport = index_ready("/data/photo_vectors", "embedding", "milvus")
        >>> report.is_ready
        True
        >>> report.rows.columns
        ['id', 'vector']
    """

    target: str
    rows: DataFrame
    ready_rows: int
    not_computed: Mapping[str, int]
    problems: tuple[IndexProblem, ...]

    @property
    def is_ready(self) -> bool:
        """Whether every row that has a vector can be indexed."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{self.target}: {self.ready_rows:,} rows can be indexed"]
        lines += [f"without a vector, {name}: {n:,}" for name, n in self.not_computed.items()]
        for each in self.problems:
            shown = f", such as {'; '.join(each.examples)}" if each.examples else ""
            lines.append(f"{each.rule}: {each.affected_rows:,} rows{shown}: {each.advice}")
        return "\n".join(lines)


def index_ready(
    table: str,
    column: str,
    target: str | IndexTarget,
    *,
    metadata: Sequence[str] = (),
    spark: SparkSession | None = None,
) -> IndexReport:
    """Return the rows of a table that a vector index accepts, and what excludes the others.

    Args:
        table: A table made by `write_vision_columns`.
        column: Its column of vectors.
        target: databricks_ai_search, pinecone or milvus, or what another index accepts.
        metadata: Columns of the table to include in the index.
        spark: The session; None means the active one.

    Returns:
        The rows, and for each broken rule a count and examples. Rows whose image failed have no
        vector: they are counted by status, and are not a problem of the index.

    Raises:
        TableError: There is no such table, column or target.

    Example:
        >>> report = index_ready("/data/photo_vectors", "embedding", "milvus")
        >>> print(report)
        milvus: 4 rows can be indexed
    """
    session = spark or SparkSession.active()
    metadata = [metadata] if isinstance(metadata, str) else metadata
    if isinstance(target, str) and target not in TARGETS:
        raise TableError(f"target got {target!r}; allowed: {', '.join(TARGETS)}")
    rules = TARGETS[target] if isinstance(target, str) else target
    rows, model = open_vectors(session, table, column)
    problems = table_problems(model, rows.schema, rules, metadata)
    if problems:
        # No row can be indexed before the table is changed.
        nothing = rows.select(F.col(quote(column)).alias("vector")).limit(0)
        return IndexReport(rules.name, nothing, 0, _without_vector(rows, column), tuple(problems))
    key, vectors = model.keys[0], rows_with_vectors(rows, model)
    checks = _row_checks(model, rows.schema, rules, metadata)
    broken = {name: _is_broken(kept) for name, (kept, _) in checks.items()}
    ready = ~reduce(or_, broken.values())
    counts = vectors.agg(
        F.count_if(ready).alias("ready"),
        *(F.count_if(condition).alias(name) for name, condition in broken.items()),
    ).head()
    if counts is None:
        raise AssertionError("an aggregate without groups has one row")
    for name, (_, advice) in checks.items():
        if counts[name]:
            examples = vectors.filter(broken[name]).select(quote(key)).limit(_EXAMPLE_COUNT)
            shown = tuple(f"{key}={row[0]!r}" for row in examples.collect())
            problems.append(IndexProblem(name, counts[name], shown, advice))
    given = vectors.filter(ready).select(
        _id(rules, key).alias("id"),
        F.col(quote(column)).alias("vector"),
        *map(quote, metadata),
    )
    return IndexReport(
        rules.name, given, counts["ready"], _without_vector(rows, column), tuple(problems)
    )


def rows_with_vectors(rows: DataFrame, model: ColumnModel) -> DataFrame:
    """Return the rows that have a vector; `REPEATED` is true where two have one key, else null."""
    name = F.col(quote(model.keys[0]))
    # Only keys are shuffled for it.
    repeated = (
        rows.groupBy(name).count().filter("count > 1").select(name, F.lit(True).alias(REPEATED))
    )
    vectors = rows.filter(F.col(quote(model.column)).isNotNull())
    return vectors.join(F.broadcast(repeated), model.keys[0], "left")


def index_records(
    rows: DataFrame,
    model: ColumnModel,
    rules: IndexTarget,
    metadata: Sequence[str],
    also: Sequence[str] = (),
) -> DataFrame:
    """Return rows as records of an index, with the rule that each breaks.

    Args:
        rows: The table's columns, and `REPEATED`.
        model: The table's key and its column of vectors.
        rules: What the index accepts.
        metadata: Columns to include.
        also: Further columns of the rows in the result.

    Returns:
        `id`, `vector`, the metadata, and `PROBLEM`: null, or the name of the first rule that the
        row breaks; `no_vector` where it has none.
    """
    checks = _row_checks(model, rows.schema, rules, metadata)
    vector = F.col(quote(model.column))
    problems = [F.when(vector.isNull(), NO_VECTOR)]
    problems += [F.when(_is_broken(kept), name) for name, (kept, _) in checks.items()]
    return rows.select(
        _id(rules, model.keys[0]).alias("id"),
        vector.alias("vector"),
        *map(quote, metadata),
        F.coalesce(*problems).alias(PROBLEM),
        *also,
    )


def _is_broken(kept: Column) -> Column:
    # A rule whose result is null counts as broken.
    return ~F.coalesce(kept, F.lit(False))


def table_problems(
    model: ColumnModel, schema: StructType, rules: IndexTarget, metadata: Sequence[str]
) -> list[IndexProblem]:
    """Return the rules that the table itself breaks, whatever its rows are.

    Raises:
        TableError: The column does not have one vector per row, or the metadata columns cannot be
            used.
    """
    _check_columns(model, schema, metadata)
    keys, dimension = model.keys, model.dimension
    least, most = rules.dimensions
    checks = [
        (
            len(keys) == 1,
            "one_id",
            f"an index has one id column, but the table has the keys {', '.join(keys)}; write a "
            "table whose key is one column, such as concat_ws('#', ...)",
        ),
        (
            schema[keys[0]].dataType.typeName() in rules.ids,
            "id_type",
            f"the key {keys[0]} has the type {schema[keys[0]].dataType.simpleString()}; allowed: "
            "whole numbers and strings; cast it in the source",
        ),
        (
            least <= dimension <= most,
            "dimension",
            f"a vector has {dimension} numbers; allowed: {least} to {most}",
        ),
        (
            model.properties.get(FEED_PROPERTY) == "true" or not rules.needs_feed,
            "change_data_feed",
            "the index is updated from the change data feed; set the table property "
            f"{FEED_PROPERTY} to true",
        ),
    ]
    for name in metadata:
        kind = schema[name].dataType
        is_list = isinstance(kind, ArrayType) and kind.elementType != StringType()
        advice = (
            f"{name} has the type {kind.simpleString()}; leave it out, or make it a number, a "
            "string, a boolean or a list of strings"
        )
        is_known = kind.typeName() in rules.metadata and not is_list
        checks.append((is_known, "metadata_type", advice))
    for name in (*keys, *metadata):
        advice = f"the index reserves the name {name}; rename the column in the source"
        checks.append((name not in rules.reserved, "reserved_name", advice))
    return [IndexProblem(rule, 0, (), advice) for kept, rule, advice in checks if not kept]


def _check_columns(model: ColumnModel, schema: StructType, metadata: Sequence[str]) -> None:
    table, column = model.table, model.column
    if column not in schema.names:
        raise TableError(f"{table} has no column {column!r}; it has {', '.join(schema.names)}")
    if schema[column].dataType != ArrayType(FloatType()):
        raise TableError(
            f"{column} of {table} has a vector per token; an index takes one per row: embed with "
            "another pooling"
        )
    for name in metadata:
        if name not in schema.names:
            raise TableError(f"{table} has no column {name!r}; it has {', '.join(schema.names)}")
        if name in ("id", "vector", column, *model.keys):
            raise TableError(
                f"metadata got {name!r}, a name that an index's records have already; the key "
                f"{', '.join(model.keys)} becomes the id: leave it out, or rename the column"
            )
    if len({*metadata}) < len(metadata):
        raise TableError(f"metadata got a column twice: {', '.join(metadata)}")


def _row_checks(
    model: ColumnModel, schema: StructType, rules: IndexTarget, metadata: Sequence[str]
) -> dict[str, tuple[Column, str]]:
    """The condition that each row must meet, by the rule's name, and the rule in words."""
    key, dimension = model.keys[0], model.dimension
    vector = F.col(quote(model.column))
    checks = {
        "unique_id": (F.col(REPEATED).isNull(), "ids must be unique"),
        "one_dimension": (F.size(vector) == dimension, f"a vector must have {dimension} numbers"),
        "finite": (F.forall(vector, _is_finite), "a vector must not contain null, NaN or infinity"),
        "no_zero_vector": (
            F.exists(vector, lambda number: number != 0),
            "a zero vector has no direction; use on_error='null'",
        ),
    }
    if isinstance(schema[key].dataType, StringType) or rules.text_ids:
        text = F.col(quote(key)).cast("string")
        checks["id_length"] = (
            (F.octet_length(text) >= 1) & (F.octet_length(text) <= (rules.id_bytes or 2**31 - 1)),
            f"an id must have 1 to {rules.id_bytes or 'any number of'} bytes; hash longer ids",
        )
        if rules.ascii_ids:
            checks["ascii_id"] = (text.rlike(r"^[\x00-\x7F]*$"), "an id must be ASCII; encode it")
    if metadata:
        size = F.octet_length(F.to_json(F.struct(*map(quote, metadata))))
        if rules.metadata_bytes:
            checks["metadata_size"] = (
                size <= rules.metadata_bytes,
                f"the metadata may be at most {rules.metadata_bytes:,} bytes; use fewer columns",
            )
        if rules.row_bytes:
            checks["row_size"] = (
                size + 4 * dimension <= rules.row_bytes,
                f"a row may be at most {rules.row_bytes:,} bytes; use fewer columns",
            )
        if not rules.nulls:
            named = [F.col(quote(name)).isNotNull() for name in metadata]
            checks["no_null_metadata"] = (
                reduce(and_, named),
                "metadata must not be null; leave the column out, or fill it",
            )
    return checks


def _is_finite(number: Column) -> Column:
    return number.isNotNull() & ~F.isnan(number) & (F.abs(number) < float("inf"))


def _id(rules: IndexTarget, key: str) -> Column:
    return F.col(quote(key)).cast("string") if rules.text_ids else F.col(quote(key))


def _without_vector(rows: DataFrame, column: str) -> dict[str, int]:
    status = F.coalesce(F.col(quote(f"{column}_status")), F.lit("pending"))
    lacking = rows.filter(F.col(quote(column)).isNull()).groupBy(status.alias("status")).count()
    return {row["status"]: row["count"] for row in lacking.orderBy("status").collect()}
