"""A source's rows become a table's: by as few functions as there are ways to read a row.

Operators that read an image alike share a function, which fetches and decodes it once for them.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructField

from spark_vision.operators import ImageOperator, Operator, reads_images
from spark_vision.spark.udfs import images_udf, operator_udf
from spark_vision.tables.location import quote
from spark_vision.tables.progress import StatusCounter
from spark_vision.tables.schema import SOURCE_HASH, UPDATED_AT, column_parts
from spark_vision.tables.source import SourceColumns, source_hash

_STRUCT = "__spark_vision_struct_"


@dataclass(frozen=True)
class ColumnStruct:
    """One function over a source's rows.

    Attributes:
        names: The table's columns that it computes.
        column: A struct with a field for each of them.
    """

    names: tuple[str, ...]
    column: Column


def column_structs(
    columns: Mapping[str, Operator],
    chosen: SourceColumns,
    counters: Mapping[str, StatusCounter | None],
) -> list[ColumnStruct]:
    """Make the functions that compute the columns.

    Args:
        columns: The operators by column.
        chosen: What they read.
        counters: Told the rows by status of each column, where there is one.
    """
    groups: dict[Hashable, dict[str, ImageOperator]] = {}
    structs = []
    for name, operator in columns.items():
        if reads_images(operator):
            # What one operator lets its strings reach, another's must not.
            groups.setdefault(operator.reading_options, {})[name] = operator
        else:
            keys = _naming_keys(chosen, [operator])
            udf = operator_udf(operator, with_status=True, statuses=counters[name], keys=keys)
            value = udf(*_columns(chosen.text), *_key_column(keys))
            structs.append(ColumnStruct((name,), F.struct(value.alias(name))))
    for operators in groups.values():
        keys = _naming_keys(chosen, operators.values())
        udf = images_udf(operators, counters, keys=keys)
        made = udf(*_columns(chosen.image, chosen.prompt), *_key_column(keys))
        structs.append(ColumnStruct(tuple(operators), made))
    return structs


def compute_rows(
    source: DataFrame,
    chosen: SourceColumns,
    columns: Mapping[str, Operator],
    counters: Mapping[str, StatusCounter | None],
    passed: Sequence[str],
    stamp: str,
) -> DataFrame:
    """Compute the columns of a source's rows: each function is called once per row.

    Args:
        source: The rows.
        chosen: What is read of them, and what is copied.
        columns: The operators by column.
        counters: As for `column_structs`.
        passed: Columns of the source that go through as they are.
        stamp: What `updated_at` is to be, in SQL.

    Returns:
        Keys, kept columns, `source_hash`, the columns with their statuses, `updated_at`.
    """
    structs = column_structs(columns, chosen, counters)
    names = [field.name for field in (*chosen.keys, *chosen.kept)]
    copied = [F.col(quote(name)) for name in (*names, *passed)]
    # Each function is named once, and its struct taken apart above it.
    named = [each.column.alias(f"{_STRUCT}{index}") for index, each in enumerate(structs)]
    computed = source.select(*copied, source_hash(chosen).alias(SOURCE_HASH), *named)
    places = {name: index for index, each in enumerate(structs) for name in each.names}
    fields = [
        F.col(f"{_STRUCT}{places[name]}")[name][part].alias(alias)
        for name, operator in columns.items()
        for part, alias in column_parts(name, operator).items()
    ]
    return computed.select(*copied, F.col(SOURCE_HASH), *fields, F.expr(stamp).alias(UPDATED_AT))


def _naming_keys(chosen: SourceColumns, operators: Iterable[Operator]) -> tuple[str, ...]:
    """The keys for functions that may have to name a row; to others they would be a cost."""
    is_asked = any(operator.on_error == "raise" for operator in operators)
    return chosen.key_names if is_asked else ()


def _key_column(keys: tuple[str, ...]) -> list[Column]:
    """Their values as texts in one column, where there are keys."""
    return [F.array(*(F.col(quote(key)).cast("string") for key in keys))] if keys else []


def _columns(*fields: StructField | None) -> list[Column]:
    return [F.col(quote(field.name)) for field in fields if field is not None]
