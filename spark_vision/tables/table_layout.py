"""Prepares the table of a write: an existing one is checked, a missing one is created."""

from dataclasses import replace

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, IntegralType, StructField

from spark_vision.errors import TableError
from spark_vision.tables.conflicts import retry_conflicts
from spark_vision.tables.identity import (
    check_same_models,
    check_same_table,
    differing_model,
    filled_columns,
)
from spark_vision.tables.location import TableDetail, quote, read_detail
from spark_vision.tables.schema import (
    SOURCE_HASH,
    UPDATED_AT,
    add_constraints,
    check_schema,
    create_table,
    empty_column,
    extend_table,
    set_properties,
)
from spark_vision.tables.storage_errors import explaining
from spark_vision.tables.write_plan import WritePlan


def check_table(write: WritePlan, detail: TableDetail) -> None:
    """Check that a write fits an existing table; changes nothing.

    Raises:
        TableError: Another tool made it, or it has other keys, columns or models.
    """
    given, present = write.location.given, detail.properties
    filled = filled_columns(present, detail.columns)
    may_lack = set(write.chosen.kept_names)
    if is_blank(detail):
        may_lack |= {SOURCE_HASH, UPDATED_AT}
    else:
        check_same_table(given, present, write.chosen, filled)
    check_schema(write.location, detail.schema, write.schema, filled, write.columns, may_lack)
    if not write.options.recompute:
        check_same_models(given, present, write.column_properties, list(write.columns))


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


def make_table(spark: SparkSession, write: WritePlan) -> TableDetail:
    """Create the table, or extend an existing one with what the write needs.

    Args:
        spark: The session.
        write: The write's plan.

    Raises:
        TableError: Its place is taken, an existing one does not fit, or the storage refuses.
    """
    with explaining(f"make the table {write.location.given}"):
        return retry_conflicts(write.location, lambda: _make_table(spark, write))


def _make_table(spark: SparkSession, write: WritePlan) -> TableDetail:
    location = write.location
    # Another writer may have changed the table since it was checked: the survey takes time.
    detail = read_detail(spark, location)
    properties = write.table_properties | write.column_properties
    if detail is None:
        detail = create_table(
            spark, location, write.schema, properties, write.constraints, write.options
        )
    check_table(write, detail)
    if write.options.recompute:
        _empty_columns(spark, write, detail)
        detail = _read(spark, write)
    if extend_table(spark, location, detail.properties, write.schema, properties):
        detail = _read(spark, write)
        # If two writers add the same column at once, the one that set its properties last wins.
        check_table(write, detail)
    add_constraints(spark, location, detail.properties, write.constraints)
    return detail


def _empty_columns(spark: SparkSession, write: WritePlan, detail: TableDetail) -> None:
    filled = filled_columns(detail.properties, detail.columns)
    for name in write.columns:
        parts = filled[name].parts if name in filled else ()
        wanted = write.properties_by_column[name]
        empty_column(spark, write.location, name, parts)
        if differing_model(name, detail.properties, wanted):
            set_properties(spark, write.location, wanted)
            # What another writer committed in between is by the former model.
            empty_column(spark, write.location, name, parts)


def _read(spark: SparkSession, write: WritePlan) -> TableDetail:
    detail = read_detail(spark, write.location)
    if detail is None:
        raise TableError(f"{write.location.given} was dropped during this write; run again")
    return detail
