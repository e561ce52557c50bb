"""The plan of a write: its columns, models and options, and what its table must have."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pyspark.sql import DataFrame
from pyspark.sql.types import DataType, StringType, StructField, StructType, TimestampType

from spark_vision.errors import TableError
from spark_vision.operators import Operator, reads_images
from spark_vision.session import check_delta
from spark_vision.spark.driver_checks import (
    ModelIdentity,
    check_operator_on_driver,
    describe_model,
)
from spark_vision.spark.udfs import value_type
from spark_vision.tables.identity import (
    FilledColumn,
    column_properties,
    deciding,
    filled_columns,
    table_properties,
)
from spark_vision.tables.location import TableLocation, locate_table, quote
from spark_vision.tables.progress import Report, StatusCounter, status_accumulator
from spark_vision.tables.source import INPUTS, SourceColumns, choose_columns
from spark_vision.tables.structs import column_structs
from spark_vision.tables.write_options import WriteOptions

SOURCE_HASH = "source_hash"
UPDATED_AT = "updated_at"


@dataclass(frozen=True)
class WritePlan:
    """What a write does, and what its table must be; each part is computed once.

    Attributes:
        location: The table.
        chosen: The columns of the source.
        columns: The operators by column.
        identities: Their models.
        options: The write's options.
        counters: Rows by status for each column, where progress is reported.
        progress: Called with the write's progress.
        spent: What the tasks spend, by the names of `executor.spending`; None in a Connect session.
        report: The table for a row about the run; None for no report.
    """

    location: TableLocation
    chosen: SourceColumns
    columns: Mapping[str, Operator]
    identities: Mapping[str, ModelIdentity]
    options: WriteOptions
    counters: Mapping[str, StatusCounter | None]
    progress: Report | None
    spent: StatusCounter | None
    report: TableLocation | None

    @cached_property
    def schema(self) -> StructType:
        """The table's columns: keys, kept columns, source_hash, each operator's, updated_at.

        Raises:
            TableError: Two columns would have the same name.
        """
        fields = [
            StructField(each.name, each.dataType, nullable=False) for each in self.chosen.keys
        ]
        fields += [StructField(each.name, each.dataType) for each in self.chosen.kept]
        hashes = StructType([StructField(name, StringType()) for name in INPUTS])
        fields.append(_described(SOURCE_HASH, hashes, "SHA-256 of what the models read"))
        for name, operator in self.columns.items():
            struct, identity = value_type(operator), self.identities[name]
            for part, column in column_parts(name, operator).items():
                comment = _comment(part, operator, identity)
                fields.append(_described(column, struct[part].dataType, comment))
        comment = "when the row was last computed, in UTC"
        fields.append(_described(UPDATED_AT, TimestampType(), comment))
        _check_names(fields)
        return StructType(fields)

    @cached_property
    def constraints(self) -> dict[str, str]:
        """The conditions, by constraint name, that reject vectors of the wrong length."""
        constraints = {}
        for name, operator in self.columns.items():
            if operator.returns_vectors:
                # Delta's constraints support no lambda: only the first token vector is checked.
                measured = f"{quote(name)}[0]" if _is_tokens(operator) else quote(name)
                constraints[constraint_name(name)] = (
                    f"{quote(name)} IS NULL OR size({measured}) = {self.identities[name].dimension}"
                )
        return constraints

    @cached_property
    def properties_by_column(self) -> dict[str, dict[str, str]]:
        """The table properties that describe each column and its model."""
        return {
            name: column_properties(
                name,
                operator,
                self.identities[name],
                column_parts(name, operator).values(),
                self.options.prompt_column,
            )
            for name, operator in self.columns.items()
        }

    @cached_property
    def properties(self) -> dict[str, str]:
        """The table properties that describe keys, inputs, and the columns of this write."""
        said = table_properties(self.chosen)
        for properties in self.properties_by_column.values():
            said |= properties
        return said

    @cached_property
    def filled(self) -> dict[str, FilledColumn]:
        """The columns of this write, as the table's properties record them."""
        found = filled_columns(self.properties)
        return {name: found[name] for name in self.columns}

    def deciding_properties(self, names: Sequence[str]) -> dict[str, str]:
        """The properties of columns that decide their values."""
        said: dict[str, str] = {}
        for name in names:
            said |= deciding(self.properties_by_column[name])
        return said

    @property
    def has_small_rows(self) -> bool:
        """Whether a row to be computed is a URL or a text: cheap to move to another task."""
        image = self.chosen.image
        is_url = image is not None and isinstance(image.dataType, StringType)
        return image is None or (
            is_url and all(each.reads_urls for each in self.columns.values() if reads_images(each))
        )


def plan_write(
    source: DataFrame,
    table: str,
    keys: Sequence[str],
    columns: Mapping[str, Operator],
    options: WriteOptions,
    progress: Report | None,
) -> WritePlan:
    """Check a write; the arguments are those of `write_vision_columns`.

    Raises:
        TableError: The source's columns or the table's name do not allow the write.
        InputTypeError: A column has a type that its operator cannot read.
        SessionError: The session has no Delta.
        SparkVisionError: An operator's checkpoint is missing, or does not suit it.
    """
    spark = source.sparkSession
    _check_columns(columns)
    chosen = choose_columns(source, keys, columns, options)
    check_delta(spark)
    location = locate_table(spark, table)
    report = locate_table(spark, options.report_table) if options.report_table else None
    if report is not None and report.sql.rstrip("/`") == location.sql.rstrip("/`"):
        raise TableError(
            f"report_table got {report.given!r}, the table to write; allowed: another table"
        )
    counters = {name: status_accumulator(spark) if progress else None for name in columns}
    for operator in columns.values():
        check_operator_on_driver(operator)
    # Raises what an operator cannot compute from these columns, before any task.
    column_structs(columns, chosen, counters)
    identities = {name: describe_model(each, spark) for name, each in columns.items()}
    plan = WritePlan(
        location=location,
        chosen=chosen,
        columns=columns,
        identities=identities,
        options=options,
        counters=counters,
        progress=progress,
        spent=status_accumulator(spark),
        report=report,
    )
    # Refuses two columns of the same name.
    _ = plan.schema
    return plan


def _check_columns(columns: Mapping[str, Operator]) -> None:
    if not columns:
        raise TableError(
            "columns got no operator; allowed: a mapping of one or more column names to operators"
        )
    for name in columns:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise TableError(f"columns got the name {name!r}; allowed: ASCII letters, digits and _")


def column_parts(name: str, operator: Operator) -> dict[str, str]:
    """Return the table's column for each field of an operator's struct."""
    value, *more = value_type(operator).names
    return {value: name, **{part: f"{name}_{part}" for part in more}}


def constraint_name(name: str) -> str:
    """Return the name of the constraint on a column of vectors."""
    return f"{name}_dimension"


def _comment(part: str, operator: Operator, identity: ModelIdentity) -> str:
    model = f"{operator.checkpoint_name} ({identity.model_type}); null where the row failed"
    if part == next(iter(operator.value_fields)):
        each = " per token" if _is_tokens(operator) else ""
        made = f"{identity.dimension} numbers{each}" if operator.returns_vectors else "written"
        return f"{made} by {model}"
    return {
        "status": "ok, or why the row has no value",
        "error": "the reason in one sentence; null where ok",
        "truncated": "whether the caption was cut at its maximum length; null where not ok",
    }.get(part, f"{part} of the value")


def _is_tokens(operator: Operator) -> bool:
    return operator.effective_pooling == "tokens"


def _described(name: str, kind: DataType, comment: str) -> StructField:
    return StructField(name, kind, metadata={"comment": comment})


def _check_names(fields: list[StructField]) -> None:
    seen: set[str] = set()
    for field in fields:
        if field.name.lower() in seen:
            raise TableError(
                f"the table would have two columns {field.name}: keys, kept columns, "
                f"{SOURCE_HASH}, {UPDATED_AT} and <name>, <name>_status, <name>_error, … of each "
                "operator need different names; rename one"
            )
        seen.add(field.name.lower())
