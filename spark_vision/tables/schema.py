"""The schema of a table, and the table made from it."""

from collections.abc import Mapping

from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession
from pyspark.sql.types import (
    ArrayType,
    DataType,
    MapType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from spark_vision.checks import ModelIdentity
from spark_vision.errors import TableError
from spark_vision.operators import EmbeddingOperator, Operator
from spark_vision.tables.location import TableLocation, quote
from spark_vision.tables.source import SourceColumns
from spark_vision.udfs import value_type

SOURCE_HASH = "source_hash"
UPDATED_AT = "updated_at"
_CHANGE_DATA_FEED = "delta.enableChangeDataFeed"
_CONSTRAINTS = "delta.constraints."


def table_schema(
    source: SourceColumns,
    columns: Mapping[str, Operator],
    identities: Mapping[str, ModelIdentity],
) -> StructType:
    """Lay out a table: keys, kept columns, source_hash, the columns of each operator, updated_at.

    Raises:
        TableError: Two columns would have one name.
    """
    fields = [StructField(field.name, field.dataType, nullable=False) for field in source.keys]
    fields += [StructField(field.name, field.dataType) for field in source.kept]
    fields.append(_described(SOURCE_HASH, StringType(), "SHA-256 of what the models read"))
    for name, operator in columns.items():
        struct = value_type(operator)
        for part, column in column_parts(name, operator).items():
            kind = struct[part].dataType
            fields.append(_described(column, kind, _say(part, operator, identities[name])))
    fields.append(_described(UPDATED_AT, TimestampType(), "when the row was computed"))
    _check_names(fields)
    return StructType(fields)


def column_parts(name: str, operator: Operator) -> dict[str, str]:
    """Name the table's columns that hold the fields of an operator's struct."""
    value, *more = value_type(operator).names
    return {value: name, **{part: f"{name}_{part}" for part in more}}


def create_table(
    spark: SparkSession,
    location: TableLocation,
    schema: StructType,
    properties: Mapping[str, str],
) -> None:
    """Create an empty table with change data feed.

    Raises:
        TableError: Something that is not a Delta table is in its place.
    """
    columns = ", ".join(_ddl(field) for field in schema.fields)
    said = {_CHANGE_DATA_FEED: "true", **properties}
    listed = ", ".join(f"{_literal(name)} = {_literal(value)}" for name, value in said.items())
    try:
        spark.sql(f"CREATE TABLE {location.sql} ({columns}) USING delta TBLPROPERTIES ({listed})")
    except AnalysisException as error:
        condition = error.getCondition() or ""
        if condition == "TABLE_OR_VIEW_ALREADY_EXISTS" or "NON_EMPTY_LOCATION" in condition:
            raise TableError(
                f"{location.given} holds something that is not a Delta table; choose another place"
            ) from error
        raise


def add_constraints(
    spark: SparkSession,
    location: TableLocation,
    present: Mapping[str, str],
    columns: Mapping[str, Operator],
    identities: Mapping[str, ModelIdentity],
) -> None:
    """Let a table hold no vector of a wrong length.

    Args:
        spark: The session.
        location: An existing table.
        present: Its properties: a constraint that is there is not added again. It is a commit of
            its own, so that a run may have ended between it and the table's creation.
        columns: The operators by column.
        identities: Their models.
    """
    for name, operator in columns.items():
        if not isinstance(operator, EmbeddingOperator):
            continue
        constraint = f"{name}_dimension"
        if f"{_CONSTRAINTS}{constraint}".lower() in {each.lower() for each in present}:
            continue
        # Delta's constraints know no lambda: of token vectors, the first stands for all.
        measured = f"{quote(name)}[0]" if _is_tokens(operator) else quote(name)
        dimension = identities[name].dimension
        spark.sql(
            f"ALTER TABLE {location.sql} ADD CONSTRAINT {quote(constraint)} "
            f"CHECK ({quote(name)} IS NULL OR size({measured}) = {dimension})"
        )


def check_schema(location: TableLocation, present: StructType, wanted: StructType) -> None:
    """Make sure that a table has the columns of this write, and none that it would leave null.

    Raises:
        TableError: Naming the column that differs.
    """
    was = {field.name: field.dataType.simpleString() for field in present.fields}
    now = {field.name: field.dataType.simpleString() for field in wanted.fields}
    for name in [*now, *was]:
        if was.get(name) != now.get(name):
            raise TableError(
                f"{location.given} has the column {name} as {was.get(name, 'nothing')}, and this "
                f"write has it as {now.get(name, 'nothing')}; keep the same columns, or choose "
                "another table"
            )


def _say(part: str, operator: Operator, identity: ModelIdentity) -> str:
    model = f"{operator.checkpoint_name} ({identity.model_type}); null where the row failed"
    if part == "embedding":
        return (
            f"{identity.dimension} numbers{' per token' if _is_tokens(operator) else ''} by {model}"
        )
    return {
        "caption": f"written by {model}",
        "status": "ok, or what kept the row from a value",
        "error": "why, in a sentence; null where ok",
        "truncated": "whether the caption was cut at its greatest length; null where not ok",
    }[part]


def _is_tokens(operator: Operator) -> bool:
    return isinstance(operator, EmbeddingOperator) and operator.effective_pooling == "tokens"


def _described(name: str, kind: DataType, comment: str) -> StructField:
    return StructField(name, kind, metadata={"comment": comment})


def _check_names(fields: list[StructField]) -> None:
    seen: set[str] = set()
    for field in fields:
        if field.name.lower() in seen:
            raise TableError(
                f"the table would have two columns {field.name}: keys, kept columns, "
                f"{SOURCE_HASH}, {UPDATED_AT} and <name>, <name>_status, <name>_error, … of each "
                "operator need names of their own; rename one"
            )
        seen.add(field.name.lower())


def _ddl(field: StructField) -> str:
    text = f"{quote(field.name)} {_type_ddl(field.dataType)}"
    if not field.nullable:
        text += " NOT NULL"
    comment = (field.metadata or {}).get("comment")
    return f"{text} COMMENT {_literal(comment)}" if comment else text


def _type_ddl(kind: DataType) -> str:
    """Write a type with its field names quoted, which `simpleString` leaves bare."""
    if isinstance(kind, StructType):
        fields = (f"{quote(each.name)}: {_type_ddl(each.dataType)}" for each in kind.fields)
        return f"struct<{', '.join(fields)}>"
    if isinstance(kind, ArrayType):
        return f"array<{_type_ddl(kind.elementType)}>"
    if isinstance(kind, MapType):
        return f"map<{_type_ddl(kind.keyType)}, {_type_ddl(kind.valueType)}>"
    return kind.simpleString()


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    # Spark would put a variable in the place of ${...}, even inside of a literal.
    return "'" + escaped.replace("$", "\\u0024") + "'"
