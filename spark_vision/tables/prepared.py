"""A write before its first row: its columns, models and settings, checked on the driver."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql.types import StringType

from spark_vision.checks import ModelIdentity, check_operator_on_driver, describe_operator
from spark_vision.errors import TableError
from spark_vision.operators import ImageOperator, Operator
from spark_vision.session import check_delta
from spark_vision.status import Status
from spark_vision.tables.identity import column_properties, deciding, table_properties
from spark_vision.tables.location import TableLocation, locate_table
from spark_vision.tables.progress import Report, StatusCounter, status_accumulator
from spark_vision.tables.schema import column_parts, table_schema
from spark_vision.tables.source import SourceColumns, choose_columns
from spark_vision.tables.structs import column_structs

FAILED = tuple(status.value for status in Status if status is not Status.OK)


@dataclass(frozen=True)
class PreparedWrite:
    """What a write is to do.

    Attributes:
        location: The table.
        chosen: The columns of the source.
        columns: The operators by column.
        identities: Their models.
        prompt_column: As given.
        rows_per_commit: Rows of a wave.
        retry: The statuses of rows that are computed again.
        recompute: Whether all rows are.
        delete_missing: Whether rows that left the source leave the table.
        counters: Rows by status of each column, where there is a progress to tell.
        progress: Told how far the write is.
    """

    location: TableLocation
    chosen: SourceColumns
    columns: Mapping[str, Operator]
    identities: Mapping[str, ModelIdentity]
    prompt_column: str | None
    rows_per_commit: int
    retry: tuple[str, ...]
    recompute: bool
    delete_missing: bool
    counters: Mapping[str, StatusCounter | None]
    progress: Report | None

    @property
    def table_properties(self) -> dict[str, str]:
        """What the table says of its rows."""
        return table_properties(self.chosen)

    @property
    def has_small_rows(self) -> bool:
        """Whether a row to be computed is a URL or a text: cheap to be moved to another slot."""
        image = self.chosen.image
        is_url = image is not None and isinstance(image.dataType, StringType)
        operators = [each for each in self.columns.values() if isinstance(each, ImageOperator)]
        return image is None or (
            is_url and all(each.image_src_type == "image_url" for each in operators)
        )

    def column_properties(self, *names: str) -> dict[str, str]:
        """What the table says of columns, and of who fills them."""
        said: dict[str, str] = {}
        for name in names or self.columns:
            operator = self.columns[name]
            parts = column_parts(name, operator).values()
            said |= column_properties(
                name, operator, self.identities[name], parts, self.prompt_column
            )
        return said

    def deciding_properties(self, *names: str) -> dict[str, str]:
        """Those of `column_properties` that decide the values."""
        return deciding(self.column_properties(*names))


def prepare_write(
    source: DataFrame,
    table: str,
    keys: Sequence[str],
    columns: Mapping[str, Operator],
    *,
    image_column: str,
    text_column: str,
    prompt_column: str | None,
    keep: Sequence[str],
    version_columns: Sequence[str] | None,
    rows_per_commit: int,
    retry: str | Sequence[str],
    recompute: bool,
    delete_missing: bool,
    progress: Report | None,
) -> PreparedWrite:
    """Check a write; the arguments are those of `write_vision_columns`.

    Raises:
        TableError: The source's columns, the table's name or a setting does not allow it.
        InputTypeError: A column has a type that its operator cannot read.
        SessionError: The session has no Delta.
        SparkVisionError: An operator's checkpoint is missing or is not what it needs.
    """
    spark = source.sparkSession
    _check_columns(columns)
    if (
        isinstance(rows_per_commit, bool)
        or not isinstance(rows_per_commit, int)
        or rows_per_commit < 1
    ):
        raise TableError(
            f"rows_per_commit got {rows_per_commit!r}; allowed: a whole number, 1 or more"
        )
    statuses = parse_retry(retry)
    chosen = choose_columns(
        source, keys, columns, image_column, text_column, prompt_column, keep, version_columns
    )
    check_delta(spark)
    location = locate_table(spark, table)
    counters = {name: status_accumulator(spark) if progress else None for name in columns}
    for operator in columns.values():
        check_operator_on_driver(operator)
    # What an operator cannot compute of these columns is said before any task.
    column_structs(columns, chosen, counters)
    identities = {name: describe_operator(each, spark) for name, each in columns.items()}
    table_schema(chosen, columns, identities)
    return PreparedWrite(
        location=location,
        chosen=chosen,
        columns=columns,
        identities=identities,
        prompt_column=prompt_column,
        rows_per_commit=rows_per_commit,
        retry=statuses,
        recompute=recompute,
        delete_missing=delete_missing,
        counters=counters,
        progress=progress,
    )


def parse_retry(retry: str | Sequence[str]) -> tuple[str, ...]:
    """Understand which failed rows are to be computed again.

    Args:
        retry: `failed` for all of them, or statuses such as `["http_error", "timeout"]`.

    Raises:
        TableError: Something in it is not the status of a failed row.
    """
    if retry == "failed":
        return FAILED
    named = (retry,) if isinstance(retry, str) else tuple(retry)
    for status in named:
        if status not in FAILED:
            raise TableError(
                f"retry got {status!r}; allowed: 'failed', or a list of {', '.join(FAILED)}"
            )
    return named


def _check_columns(columns: Mapping[str, Operator]) -> None:
    if not columns:
        raise TableError("columns got nothing; allowed: name: operator, one or more")
    for name in columns:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise TableError(f"columns got the name {name!r}; allowed: ASCII letters, digits and _")
