"""The functions that compute a table's columns: one for each way to read a row.

Operators that read an image in the same way share a function, which fetches and decodes it once.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import StructField

from spark_vision.operators import ImageOperator, Operator, reads_images
from spark_vision.spark.udfs import images_udf, operator_udf
from spark_vision.tables.location import quote
from spark_vision.tables.progress import StatusCounter
from spark_vision.tables.source import SourceColumns


class ColumnStruct(NamedTuple):
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
    spent: StatusCounter | None = None,
) -> list[ColumnStruct]:
    """Make the functions that compute the columns.

    Args:
        columns: The operators by column.
        chosen: The source's columns.
        counters: Count rows by status for each column, where there is one.
        spent: Counts what the tasks spend, where there is one.
    """
    groups: dict[Hashable, dict[str, ImageOperator]] = {}
    structs = []
    for name, operator in columns.items():
        if reads_images(operator):
            # Operators that allow different paths or hosts must not share a function.
            groups.setdefault(operator.reading_options, {})[name] = operator
        else:
            keys = _naming_keys(chosen, [operator])
            udf = operator_udf(
                operator, with_status=True, statuses=counters[name], spent=spent, keys=keys
            )
            value = udf(*_columns(chosen.text), *_key_column(keys))
            structs.append(ColumnStruct((name,), F.struct(value.alias(name))))
    for operators in groups.values():
        keys = _naming_keys(chosen, operators.values())
        udf = images_udf(operators, counters, spent=spent, keys=keys)
        made = udf(*_columns(chosen.image, chosen.prompt), *_key_column(keys))
        structs.append(ColumnStruct(tuple(operators), made))
    return structs


def _naming_keys(chosen: SourceColumns, operators: Iterable[Operator]) -> tuple[str, ...]:
    """Return the keys for functions that may have to name a row; others do without their cost."""
    is_asked = any(operator.on_error == "raise" for operator in operators)
    return chosen.key_names if is_asked else ()


def _key_column(keys: tuple[str, ...]) -> list[Column]:
    """Return the keys' values as strings in one array column, where there are keys."""
    return [F.array(*(F.col(quote(key)).cast("string") for key in keys))] if keys else []


def _columns(*fields: StructField | None) -> list[Column]:
    return [F.col(quote(field.name)) for field in fields if field is not None]
