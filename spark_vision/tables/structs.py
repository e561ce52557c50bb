"""Which functions compute a table's columns: as few as there are ways to read a row.

Operators that read an image alike share a function, which fetches and decodes it once for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import StructField

from spark_vision.operators import ImageOperator, Operator
from spark_vision.tables.location import quote
from spark_vision.tables.progress import StatusCounter
from spark_vision.tables.source import SourceColumns
from spark_vision.udfs import images_udf, operator_udf


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
    groups: dict[Any, dict[str, ImageOperator]] = {}
    structs = []
    for name, operator in columns.items():
        if isinstance(operator, ImageOperator):
            reads = (operator.image_src_type, operator.limits, operator.storage_options)
            groups.setdefault(reads, {})[name] = operator
        else:
            udf = operator_udf(operator, with_status=True, statuses=counters[name])
            value = udf(*_columns(chosen.text))
            structs.append(ColumnStruct((name,), F.struct(value.alias(name))))
    for operators in groups.values():
        made = images_udf(operators, counters)(*_columns(chosen.image, chosen.prompt))
        structs.append(ColumnStruct(tuple(operators), made))
    return structs


def _columns(*fields: StructField | None) -> list[Column]:
    return [F.col(quote(field.name)) for field in fields if field is not None]
