"""The one way to a table: `write_vision_columns` computes what a table lacks and appends it."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Observation
from pyspark.sql import functions as F

from spark_vision.checks import check_operator_on_driver, describe_operator
from spark_vision.errors import TableError
from spark_vision.operators import Operator
from spark_vision.session import check_delta
from spark_vision.status import Status
from spark_vision.tables.identity import check_same_models, table_properties
from spark_vision.tables.location import locate_table, quote, read_properties
from spark_vision.tables.pending import drop_rows_there, survey_keys
from spark_vision.tables.progress import (
    Progress,
    Report,
    reporting,
    status_accumulator,
    tell,
)
from spark_vision.tables.schema import (
    SOURCE_HASH,
    UPDATED_AT,
    add_constraints,
    check_schema,
    column_parts,
    create_table,
    table_schema,
)
from spark_vision.tables.source import SourceColumns, choose_columns, source_hash
from spark_vision.tables.structs import ColumnStruct, column_structs

_STRUCT = "__spark_vision_struct_"


@dataclass(frozen=True)
class WriteResult:
    """What a write did.

    Attributes:
        table: The table, as Spark SQL takes it.
        source_rows: Rows in the source.
        there: Those that the table had already.
        computed: Rows that were computed and appended.
        statuses: Of them, rows by status, for each column.
        seconds: What it all took.
    """

    table: str
    source_rows: int
    there: int
    computed: int
    statuses: Mapping[str, Mapping[str, int]]
    seconds: float


def write_vision_columns(
    source: DataFrame,
    table: str,
    keys: Sequence[str],
    columns: Mapping[str, Operator],
    *,
    image_column: str = "content",
    text_column: str = "text",
    prompt_column: str | None = None,
    keep: Sequence[str] = (),
    progress: Report | None = None,
) -> WriteResult:
    """Compute the columns of those rows that a Delta table does not have, and append them.

    The table is made if it is not there: keys, kept columns, `source_hash`, for each column
    `<name>`, `<name>_status` and `<name>_error` (and `<name>_truncated` for captions), and
    `updated_at`. Its properties name the models; rows of another model are refused. Where no row is
    missing, nothing is computed or written. Each image is fetched and decoded once for all columns.

    Args:
        source: The rows; it is read twice, the first time without images.
        table: A path, or a name in a catalog that persists.
        keys: Columns that tell the source's rows apart; unique and never null.
        columns: What to compute, by the name of its column.
        image_column: What image operators read.
        text_column: What text operators read.
        prompt_column: What is asked of each image; null and blank mean the operator's prompt, as
            everywhere without such a column.
        keep: Columns of the source that the table has as they are.
        progress: Told every two seconds how far the write is, and once at its end.

    Returns:
        The counts of this run; those by status are exact.

    Raises:
        TableError: The source's columns or keys, or the table that is there, do not allow it.
        InputTypeError: A column has a type that its operator cannot read.
        SessionError: The session has no Delta.
        SparkVisionError: An operator's checkpoint is missing or is not what it needs.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> write_vision_columns(
        ...     photos, "/data/vectors", keys=["path"], columns={"embedding": ImageViTEmbedding()}
        ... )
    """
    started = time.monotonic()
    spark = source.sparkSession
    _check_columns(columns)
    chosen = choose_columns(source, keys, columns, image_column, text_column, prompt_column, keep)
    check_delta(spark)
    location = locate_table(spark, table)
    counters = {name: status_accumulator(spark) if progress else None for name in columns}
    for operator in columns.values():
        check_operator_on_driver(operator)
    structs = column_structs(columns, chosen, counters)

    identities = {name: describe_operator(operator, spark) for name, operator in columns.items()}
    schema = table_schema(chosen, columns, identities)
    properties = table_properties(chosen.key_names, columns, identities, prompt_column)
    present = read_properties(spark, location)
    rows_there = None
    if present is not None:
        check_same_models(table, present, properties, columns)
        rows_there = spark.table(location.sql)
        check_schema(location, rows_there.schema, schema)
    survey = survey_keys(source, rows_there, chosen.key_names)
    if present is None:
        create_table(spark, location, schema, properties)
    add_constraints(spark, location, present or {}, columns, identities)

    statuses: dict[str, dict[str, int]] = {name: {} for name in columns}
    if survey.pending:
        # A join shuffles images where the keys are too many to broadcast: only where it is needed.
        pending = source
        if rows_there is not None and survey.there:
            pending = drop_rows_there(source, rows_there, chosen.key_names)
        observation = Observation()
        rows = _compute(pending, chosen, columns, structs).observe(
            observation, *_count_statuses(columns)
        )
        with reporting(spark, survey.pending, counters, progress):
            rows.writeTo(location.sql).append()
        statuses = _statuses_of(columns, observation)
    result = WriteResult(
        table=location.sql,
        source_rows=survey.source_rows,
        there=survey.there,
        computed=sum(next(iter(statuses.values())).values()),
        statuses=statuses,
        seconds=time.monotonic() - started,
    )
    if progress:
        tell(progress, lambda: _final_progress(result))
    return result


def _check_columns(columns: Mapping[str, Operator]) -> None:
    if not columns:
        raise TableError("columns got nothing; allowed: name: operator, one or more")
    for name in columns:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise TableError(f"columns got the name {name!r}; allowed: ASCII letters, digits and _")


def _compute(
    source: DataFrame,
    chosen: SourceColumns,
    columns: Mapping[str, Operator],
    structs: Sequence[ColumnStruct],
) -> DataFrame:
    """Each function is named once, and its struct taken apart above it: one call per row."""
    copied = [F.col(quote(field.name)) for field in (*chosen.keys, *chosen.kept)]
    named = [each.column.alias(f"{_STRUCT}{index}") for index, each in enumerate(structs)]
    computed = source.select(*copied, source_hash(chosen).alias(SOURCE_HASH), *named)
    places = {name: index for index, each in enumerate(structs) for name in each.names}
    fields = [
        F.col(f"{_STRUCT}{places[name]}")[name][part].alias(alias)
        for name, operator in columns.items()
        for part, alias in column_parts(name, operator).items()
    ]
    return computed.select(
        *copied, F.col(SOURCE_HASH), *fields, F.current_timestamp().alias(UPDATED_AT)
    )


def _count_statuses(columns: Mapping[str, Operator]) -> list[Column]:
    return [
        F.count_if(F.col(f"{name}_status") == status.value).alias(f"{name}:{status.value}")
        for name in columns
        for status in Status
    ]


def _statuses_of(
    columns: Mapping[str, Operator], observation: Observation
) -> dict[str, dict[str, int]]:
    counts = observation.get
    return {
        name: {
            status.value: counts[f"{name}:{status.value}"]
            for status in Status
            if counts[f"{name}:{status.value}"]
        }
        for name in columns
    }


def _final_progress(result: WriteResult) -> Progress:
    return Progress(
        done=result.computed,
        total=result.computed,
        seconds=result.seconds,
        rows_per_second=result.computed / result.seconds,
        statuses=result.statuses,
    )
