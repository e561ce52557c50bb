"""What is searched: a table of this package or a DataFrame, with its keys and its vectors."""

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.types import ArrayType, FractionalType

from spark_vision.errors import InputTypeError, InvalidOptionError, TableError
from spark_vision.search.column_model import ColumnModel, open_vectors


def open_source(
    source: str | DataFrame,
    column: str,
    keys: Sequence[str] | None,
    where: str | Column | None,
    spark: SparkSession | None,
    keep: Sequence[str] = (),
) -> tuple[DataFrame, list[str], ColumnModel | None]:
    """Open a table by path or name, or a DataFrame.

    Args:
        source: The table or the DataFrame.
        column: The column of vectors.
        keys: Columns that identify a row of a DataFrame; a table knows its own.
        where: Only rows for which this SQL condition holds.
        spark: The session; None means the active one.
        keep: Further columns that are needed.

    Returns:
        The rows for which the condition holds, the columns that identify a row, and the model that
        filled the column; None for a DataFrame.

    Raises:
        TableError: There is no such table or column.
        InputTypeError: The column has another type than array<float>.
        InvalidOptionError: A DataFrame comes without keys.
    """
    if isinstance(source, str):
        rows, model = open_vectors(spark or SparkSession.active(), source, column)
        keys = keys or model.keys
    else:
        rows, model = source, None
    if not keys:
        raise InvalidOptionError("keys got none; allowed: the columns that identify a row")
    _check_columns(rows, column, [*keys, *keep])
    return rows if where is None else rows.filter(where), list(keys), model


def check_free(names: Sequence[str], own_names: Sequence[str]) -> None:
    """Check that the names of the source's columns, in any case, are not those the result adds.

    Raises:
        TableError: One is.
    """
    taken = {name.lower() for name in names}
    for name in own_names:
        if name.lower() in taken:
            raise TableError(f"the result has a column {name} of its own; rename the source's")


def _check_columns(rows: DataFrame, column: str, names: Sequence[str]) -> None:
    fields = {field.name: field.dataType for field in rows.schema.fields}
    for name in (column, *names):
        if name not in fields:
            raise TableError(f"the source has no column {name!r}; it has {', '.join(fields)}")
    kind = fields[column]
    if not (isinstance(kind, ArrayType) and isinstance(kind.elementType, FractionalType)):
        raise InputTypeError(
            f"the column {column} has the type {kind.simpleString()}; allowed: array<float>, one "
            "vector per row"
        )
