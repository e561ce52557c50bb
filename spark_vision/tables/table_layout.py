"""Prepares the table of a write: an existing one is checked, a missing one is created."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    DataType,
    IntegralType,
    MapType,
    StructField,
    StructType,
)

from spark_vision.errors import TableError
from spark_vision.tables.identity import (
    KEYS_PROPERTY,
    PREFIX,
    VERSIONS_PROPERTY,
    FilledColumn,
    differing_model,
    filled_columns,
    input_property,
)
from spark_vision.tables.location import TableDetail, literal, quote, quoted_path, read_detail
from spark_vision.tables.storage_errors import explaining, retry_conflicts
from spark_vision.tables.write_plan import SOURCE_HASH, UPDATED_AT, WritePlan, constraint_name

_CONSTRAINTS = "delta.constraints."
_SETTINGS = {
    # An index is updated from the table's changes.
    "delta.enableChangeDataFeed": "true",
    # Any reader of Delta can read the table; updates rewrite whole files.
    "delta.enableDeletionVectors": "false",
    # Two writers that insert the same key conflict, even where the default level is weaker.
    "delta.isolationLevel": "Serializable",
}


def check_table(write: WritePlan, detail: TableDetail) -> None:
    """Check that a write fits an existing table; changes nothing.

    Raises:
        TableError: Another tool made it, or it has other keys, columns or models.
    """
    filled = filled_columns(detail.properties, detail.columns)
    if not is_blank(detail):
        _check_same_table(write, detail, filled)
    _check_schema(write, detail, filled)
    if not write.options.recompute:
        _check_same_models(write, detail)


def fit_keys(
    write: WritePlan, source: DataFrame, detail: TableDetail
) -> tuple[WritePlan, DataFrame]:
    """Cast a source's integer keys to the width that they have in the table."""
    present = {field.name: field.dataType for field in detail.schema.fields}
    keys = []
    for key in write.chosen.keys:
        there, given = present.get(key.name, key.dataType), source.schema[key.name].dataType
        if there != given and isinstance(there, IntegralType) and isinstance(given, IntegralType):
            source = source.withColumn(key.name, _fit(key.name, there))
            key = StructField(key.name, there, key.nullable)
        keys.append(key)
    return replace(write, chosen=replace(write.chosen, keys=tuple(keys))), source


def _fit(name: str, kind: DataType) -> Column:
    """Cast an integer to another width; one that does not fit ends the run."""
    column, fitted = F.col(quote(name)), F.expr(f"try_cast({quote(name)} AS {kind.simpleString()})")
    too_large = F.concat(
        F.lit(f"the key {name} is {kind.simpleString()} in the table, too narrow for "),
        column.cast("string"),
    )
    return F.when(column.isNull() | fitted.isNotNull(), fitted).otherwise(
        F.raise_error(too_large).cast(kind)
    )


def is_blank(detail: TableDetail) -> bool:
    """Whether a table is empty, made by its owner, and still without computed columns."""
    return detail.is_empty and SOURCE_HASH not in detail.columns


def make_table(spark: SparkSession, write: WritePlan) -> None:
    """Create the table, or extend an existing one with what the write needs.

    Args:
        spark: The session.
        write: The write's plan.

    Raises:
        TableError: Its place is taken, an existing one does not fit, or the storage refuses.
    """
    with explaining(f"make the table {write.location.given}"):
        retry_conflicts(write.location, lambda: _make_table(spark, write))


def _make_table(spark: SparkSession, write: WritePlan) -> None:
    # Another writer may have changed the table since it was checked: the survey takes time.
    detail = read_detail(spark, write.location) or _create(spark, write)
    check_table(write, detail)
    if write.options.recompute:
        _empty_columns(spark, write, detail)
        detail = _read(spark, write)
    if _extend(spark, write, detail):
        detail = _read(spark, write)
        # If two writers add the same column at once, the one that set its properties last wins.
        check_table(write, detail)
    _add_constraints(spark, write, detail)


def _create(spark: SparkSession, write: WritePlan) -> TableDetail:
    """Create an empty table with change data feed, unless another writer does so."""
    location, options = write.location, write.options
    columns = ", ".join(_ddl(field) for field in write.schema.fields)
    checks = {f"{_CONSTRAINTS}{name}": condition for name, condition in write.constraints.items()}
    asked = options.table_properties or {}
    listed = _property_list({**_SETTINGS, **asked, **write.properties, **checks})
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


def _empty_columns(spark: SparkSession, write: WritePlan, detail: TableDetail) -> None:
    filled = filled_columns(detail.properties, detail.columns)
    for name, wanted in write.properties_by_column.items():
        parts = filled[name].parts if name in filled else ()
        _empty_column(spark, write, name, parts)
        if differing_model(name, detail.properties, wanted):
            _set_properties(spark, write, wanted)
            # What another writer committed in between is by the former model.
            _empty_column(spark, write, name, parts)


def _empty_column(spark: SparkSession, write: WritePlan, name: str, parts: tuple[str, ...]) -> None:
    """Set a column to null, so that it counts as not filled in, and drop its constraint."""
    if not parts:
        return
    table, status = write.location.sql, quote(f"{name}_status")
    emptied = ", ".join(f"{quote(part)} = NULL" for part in parts)
    spark.sql(f"UPDATE {table} SET {emptied} WHERE {status} IS NOT NULL")
    spark.sql(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {quote(constraint_name(name))}")


def _extend(spark: SparkSession, write: WritePlan, detail: TableDetail) -> bool:
    """Add the properties and columns that a table lacks; return whether there were any.

    The properties are set first: after a kill in between, the next run continues.
    """
    said = {
        name: value for name, value in write.properties.items() if name not in detail.properties
    }
    if said:
        _set_properties(spark, write, said)
    there = spark.table(write.location.sql).columns
    added = [field for field in write.schema.fields if field.name not in there]
    if added:
        columns = ", ".join(_ddl(field) for field in added)
        spark.sql(f"ALTER TABLE {write.location.sql} ADD COLUMNS ({columns})")
    return bool(said or added)


def _set_properties(spark: SparkSession, write: WritePlan, properties: Mapping[str, str]) -> None:
    spark.sql(f"ALTER TABLE {write.location.sql} SET TBLPROPERTIES ({_property_list(properties)})")


def _add_constraints(spark: SparkSession, write: WritePlan, detail: TableDetail) -> None:
    """Add the constraints that a table lacks.

    A constraint is a commit of its own, so that a run may have ended between the column's commit
    and this one.
    """
    there = {each.lower() for each in detail.properties}
    for name, condition in write.constraints.items():
        if f"{_CONSTRAINTS}{name}".lower() not in there:
            spark.sql(
                f"ALTER TABLE {write.location.sql} ADD CONSTRAINT {quote(name)} CHECK ({condition})"
            )


def _read(spark: SparkSession, write: WritePlan) -> TableDetail:
    detail = read_detail(spark, write.location)
    if detail is None:
        raise TableError(f"{write.location.given} was dropped during this write; run again")
    return detail


def _check_same_table(write: WritePlan, detail: TableDetail, filled: Iterable[str]) -> None:
    """Check that this package made a table, with these keys and the same way to notice changes."""
    table, present, chosen = write.location.given, detail.properties, write.chosen
    if KEYS_PROPERTY not in present or not filled:
        raise TableError(f"{table} was not made by spark_vision; choose another table")
    was, now = sorted(json.loads(present[KEYS_PROPERTY])), sorted(chosen.key_names)
    if was != now:
        raise TableError(
            f"{table} has the keys {', '.join(was)}, but this write has {', '.join(now)}; "
            "use the same keys, or choose another table"
        )
    for name, column in chosen.input_names.items():
        read = present.get(input_property(name), column)
        if read != column:
            raise TableError(
                f"{table} has columns that read the {name} of a row from {read}, but this write "
                f"reads it from {column}; a table has one {name} per row: choose another table, or "
                f"rename the source's column to {read}"
            )
    versions: list[str] = json.loads(present.get(VERSIONS_PROPERTY, "[]"))
    if (
        chosen.image is not None
        and VERSIONS_PROPERTY in present
        and versions != list(chosen.version_names)
    ):
        raise TableError(
            f"{table} detects that an image changed by {', '.join(versions) or 'its bytes'}, but "
            f"this write by {', '.join(chosen.version_names) or 'its bytes'}, so every row would "
            f"count as changed; use version_columns={versions!r}"
        )


def _check_schema(
    write: WritePlan, detail: TableDetail, filled: Mapping[str, FilledColumn]
) -> None:
    """Check that a table has the columns of this write, or that they can be added.

    Columns that no write filled belong to the table's owner, and are not changed.
    """
    table = write.location.given
    was = {field.name: field.dataType.simpleString() for field in detail.schema.fields}
    now = {field.name: field.dataType.simpleString() for field in write.schema.fields}
    computed = {part for column in write.filled.values() for part in column.parts}
    ours = {part for column in filled.values() for part in column.parts}
    may_lack = {*computed, *write.chosen.kept_names}
    if is_blank(detail):
        may_lack |= {SOURCE_HASH, UPDATED_AT}
    spelled = {name.lower(): name for name in was}
    for name, kind in now.items():
        if spelled.get(name.lower(), name) != name:
            raise TableError(
                f"{table} has the column {spelled[name.lower()]}, but this write calls it {name}; "
                "Delta does not distinguish case: use one spelling, or choose another name"
            )
        is_added = name not in was and name in may_lack
        taken = name in was and (name in computed) != (name in ours)
        if (was.get(name) != kind and not is_added) or taken:
            raise TableError(
                f"{table} has the column {name} as {was.get(name, 'nothing')}, but this write has "
                f"it as {kind}; keep the same columns, or choose another name or another table"
            )


def _check_same_models(write: WritePlan, detail: TableDetail) -> None:
    """Check that existing columns were filled by the models of this write."""
    table, present = write.location.given, detail.properties
    for name, wanted in write.properties_by_column.items():
        differs = differing_model(name, present, wanted)
        if differs is not None:
            key, was, now = differs
            raise TableError(
                f"{table} has the column {name} by {present.get(f'{PREFIX}{name}.model_name')} "
                f"with {key} {was}, but this write has {key} {now}; values of different models "
                "cannot be compared: use another column name, or pass recompute=True, which "
                f"empties {name} and computes it again"
            )


def _property_list(properties: Mapping[str, str]) -> str:
    return ", ".join(f"{literal(name)} = {literal(value)}" for name, value in properties.items())


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
