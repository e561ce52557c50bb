"""The schema of a table, and the statements that create and extend the table."""

from collections.abc import Collection, Mapping

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

from spark_vision.errors import TableError
from spark_vision.operators import Operator
from spark_vision.spark.driver_checks import ModelIdentity
from spark_vision.spark.udfs import value_type
from spark_vision.tables.identity import FilledColumn
from spark_vision.tables.location import (
    TableDetail,
    TableLocation,
    literal,
    quote,
    quoted_path,
    read_detail,
)
from spark_vision.tables.source import INPUTS, SourceColumns
from spark_vision.tables.write_options import WriteOptions

SOURCE_HASH = "source_hash"
UPDATED_AT = "updated_at"
_CONSTRAINTS = "delta.constraints."
_SETTINGS = {
    # An index is updated from the table's changes.
    "delta.enableChangeDataFeed": "true",
    # Any reader of Delta can read the table; updates rewrite whole files.
    "delta.enableDeletionVectors": "false",
    # Two writers that insert the same key conflict, even where the default level is weaker.
    "delta.isolationLevel": "Serializable",
}


def table_schema(
    source: SourceColumns,
    columns: Mapping[str, Operator],
    identities: Mapping[str, ModelIdentity],
) -> StructType:
    """Return a table's schema: keys, kept columns, source_hash, each operator's, updated_at.

    Raises:
        TableError: Two columns would have the same name.
    """
    fields = [StructField(field.name, field.dataType, nullable=False) for field in source.keys]
    fields += [StructField(field.name, field.dataType) for field in source.kept]
    hashes = StructType([StructField(name, StringType()) for name in INPUTS])
    fields.append(_described(SOURCE_HASH, hashes, "SHA-256 of what the models read"))
    for name, operator in columns.items():
        struct = value_type(operator)
        for part, column in column_parts(name, operator).items():
            kind = struct[part].dataType
            fields.append(_described(column, kind, _comment(part, operator, identities[name])))
    fields.append(_described(UPDATED_AT, TimestampType(), "when the row was last computed, in UTC"))
    _check_names(fields)
    return StructType(fields)


def column_parts(name: str, operator: Operator) -> dict[str, str]:
    """Return the table's column for each field of an operator's struct."""
    value, *more = value_type(operator).names
    return {value: name, **{part: f"{name}_{part}" for part in more}}


def create_table(
    spark: SparkSession,
    location: TableLocation,
    schema: StructType,
    properties: Mapping[str, str],
    constraints: Mapping[str, str],
    options: WriteOptions,
) -> TableDetail:
    """Create an empty table with change data feed, unless another writer does so.

    Raises:
        TableError: Something that is not a Delta table is in its place, or another writer is
            creating it.
    """
    columns = ", ".join(_ddl(field) for field in schema.fields)
    checks = {f"{_CONSTRAINTS}{name}": condition for name, condition in constraints.items()}
    asked = options.table_properties or {}
    listed = _property_list({**_SETTINGS, **asked, **properties, **checks})
    layout = ""
    for clause, names in (
        ("PARTITIONED BY", options.partition_by),
        ("CLUSTER BY", options.cluster_by),
    ):
        if names:
            layout += f"{clause} ({', '.join(map(quote, names))}) "
    is_refused = False
    try:
        spark.sql(
            f"CREATE TABLE IF NOT EXISTS {location.sql} ({columns}) USING delta "
            f"{layout}TBLPROPERTIES ({listed})"
        )
    except AnalysisException as error:
        condition = error.getCondition() or ""
        if condition != "TABLE_OR_VIEW_ALREADY_EXISTS" and "NON_EMPTY_LOCATION" not in condition:
            raise
        is_refused = True
    # Spark leaves any folder that has files as it is, without an error.
    detail = read_detail(spark, location)
    if detail is not None:
        return detail
    folder = quoted_path(location.sql)
    if is_refused if folder is None else not _has_log(spark, folder):
        raise TableError(
            f"{location.given} holds something that is not a Delta table; choose another place"
        )
    # A conflict: its first commit cannot be read yet.
    raise TableError(f"another writer is creating {location.given}; run again")


def _has_log(spark: SparkSession, folder: str) -> bool:
    try:
        _ = spark.read.text(f"{folder}/_delta_log").schema
    except AnalysisException:
        return False
    return True


def extend_table(
    spark: SparkSession,
    location: TableLocation,
    present: Mapping[str, str],
    schema: StructType,
    properties: Mapping[str, str],
) -> bool:
    """Add columns to an existing table.

    The properties are set first: after a kill in between, the next run continues.

    Args:
        spark: The session.
        location: The table.
        present: Its properties.
        schema: The columns that it must have, among others.
        properties: The properties that it must have; existing ones are not changed.

    Returns:
        Whether the table was changed.
    """
    said = {name: value for name, value in properties.items() if name not in present}
    if said:
        set_properties(spark, location, said)
    there = spark.table(location.sql).columns
    added = [field for field in schema.fields if field.name not in there]
    if added:
        columns = ", ".join(_ddl(field) for field in added)
        spark.sql(f"ALTER TABLE {location.sql} ADD COLUMNS ({columns})")
    return bool(said or added)


def set_properties(
    spark: SparkSession, location: TableLocation, properties: Mapping[str, str]
) -> None:
    """Set properties of a table."""
    spark.sql(f"ALTER TABLE {location.sql} SET TBLPROPERTIES ({_property_list(properties)})")


def empty_column(
    spark: SparkSession, location: TableLocation, name: str, parts: Collection[str]
) -> None:
    """Set a column to null, so that it counts as not filled in, and drop its constraint."""
    if not parts:
        return
    emptied = ", ".join(f"{quote(part)} = NULL" for part in parts)
    spark.sql(f"UPDATE {location.sql} SET {emptied} WHERE {quote(f'{name}_status')} IS NOT NULL")
    spark.sql(f"ALTER TABLE {location.sql} DROP CONSTRAINT IF EXISTS {quote(_constraint(name))}")


def add_constraints(
    spark: SparkSession,
    location: TableLocation,
    present: Mapping[str, str],
    constraints: Mapping[str, str],
) -> None:
    """Add the constraints that a table lacks.

    Args:
        spark: The session.
        location: An existing table.
        present: Its properties: an existing constraint is not added again. A constraint is a commit
            of its own, so that a run may have ended between the column's commit and this one.
        constraints: As `vector_constraints` returns them.
    """
    there = {each.lower() for each in present}
    for name, condition in constraints.items():
        if f"{_CONSTRAINTS}{name}".lower() not in there:
            spark.sql(
                f"ALTER TABLE {location.sql} ADD CONSTRAINT {quote(name)} CHECK ({condition})"
            )


def vector_constraints(
    columns: Mapping[str, Operator], identities: Mapping[str, ModelIdentity]
) -> dict[str, str]:
    """Return the conditions, by constraint name, that reject vectors of the wrong length."""
    constraints = {}
    for name, operator in columns.items():
        if operator.returns_vectors:
            # Delta's constraints support no lambda: only the first token vector is checked.
            measured = f"{quote(name)}[0]" if _is_tokens(operator) else quote(name)
            constraints[_constraint(name)] = (
                f"{quote(name)} IS NULL OR size({measured}) = {identities[name].dimension}"
            )
    return constraints


def check_schema(
    location: TableLocation,
    present: StructType,
    wanted: StructType,
    filled: Mapping[str, FilledColumn],
    columns: Mapping[str, Operator],
    may_lack: Collection[str],
) -> None:
    """Check that a table has the columns of this write, or that they can be added.

    Columns that no write filled belong to the table's owner, and are not changed.

    Args:
        location: The table.
        present: Its columns.
        wanted: The columns of this write.
        filled: Its columns that models filled.
        columns: This write's computed columns, which the table may lack.
        may_lack: Other columns that it may lack.

    Raises:
        TableError: A column differs; the message names it.
    """
    was = {field.name: field.dataType.simpleString() for field in present.fields}
    now = {field.name: field.dataType.simpleString() for field in wanted.fields}
    computed = {part for name in columns for part in column_parts(name, columns[name]).values()}
    ours = {part for column in filled.values() for part in column.parts}
    spelled = {name.lower(): name for name in was}
    for name, kind in now.items():
        if spelled.get(name.lower(), name) != name:
            raise TableError(
                f"{location.given} has the column {spelled[name.lower()]}, but this write calls it "
                f"{name}; Delta does not distinguish case: use one spelling, or choose another name"
            )
        is_added = name not in was and (name in computed or name in may_lack)
        taken = name in was and (name in computed) != (name in ours)
        if (was.get(name) != kind and not is_added) or taken:
            raise TableError(
                f"{location.given} has the column {name} as {was.get(name, 'nothing')}, but this "
                f"write has it as {kind}; keep the same columns, or choose another name or another "
                "table"
            )


def _constraint(name: str) -> str:
    return f"{name}_dimension"


def _property_list(properties: Mapping[str, str]) -> str:
    return ", ".join(f"{literal(name)} = {literal(value)}" for name, value in properties.items())


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


def _ddl(field: StructField) -> str:
    text = f"{quote(field.name)} {_type_ddl(field.dataType)}"
    if not field.nullable:
        text += " NOT NULL"
    comment = (field.metadata or {}).get("comment")
    return f"{text} COMMENT {literal(comment)}" if comment else text


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
