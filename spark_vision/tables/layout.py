"""A table that fits a write: one that is there is checked, one that is not is made."""

from pyspark.sql import SparkSession

from spark_vision.errors import TableError
from spark_vision.tables.commit import retry_conflicts
from spark_vision.tables.identity import (
    check_same_models,
    check_same_table,
    differing_model,
    filled_columns,
)
from spark_vision.tables.location import TableDetail, read_detail
from spark_vision.tables.prepared import PreparedWrite
from spark_vision.tables.schema import (
    add_constraints,
    check_schema,
    create_table,
    empty_column,
    extend_table,
    set_properties,
    table_schema,
    vector_constraints,
)
from spark_vision.tables.storage_errors import explaining


def check_table(spark: SparkSession, write: PreparedWrite, detail: TableDetail) -> None:
    """Make sure that a write fits the table that is there; changes nothing.

    Raises:
        TableError: It is not ours, or has other keys, columns or models.
    """
    given, present = write.location.given, detail.properties
    filled = filled_columns(present, detail.columns)
    check_same_table(given, present, write.chosen, filled)
    wanted = write.column_properties()
    schema = spark.table(write.location.sql).schema
    check_schema(
        write.location,
        schema,
        table_schema(write.chosen, write.columns, write.identities),
        filled,
        write.columns,
    )
    if not write.recompute:
        check_same_models(given, present, wanted, list(write.columns))


def make_table(spark: SparkSession, write: PreparedWrite) -> TableDetail:
    """Make the table, or bring the one that is there to what the write needs.

    Args:
        spark: The session.
        write: What is to be done.

    Raises:
        TableError: Its place is taken, one is there that does not fit, or the storage refuses.
    """
    with explaining(f"make the table {write.location.given}"):
        return retry_conflicts(write.location, lambda: _make_table(spark, write))


def _make_table(spark: SparkSession, write: PreparedWrite) -> TableDetail:
    location = write.location
    # Another writer may have been here since the table was checked: the survey takes its time.
    detail = read_detail(spark, location)
    schema = table_schema(write.chosen, write.columns, write.identities)
    properties = write.table_properties | write.column_properties()
    constraints = vector_constraints(write.columns, write.identities)
    if detail is None:
        create_table(spark, location, schema, properties, constraints)
        detail = _read(spark, write)
    check_table(spark, write, detail)
    if write.recompute:
        _empty_columns(spark, write, detail)
        detail = _read(spark, write)
    if extend_table(spark, location, detail.properties, schema, properties):
        detail = _read(spark, write)
        # Of two writers who add one column at once, one has said last whose it is.
        check_table(spark, write, detail)
    add_constraints(spark, location, detail.properties, constraints)
    return detail


def _empty_columns(spark: SparkSession, write: PreparedWrite, detail: TableDetail) -> None:
    filled = filled_columns(detail.properties, detail.columns)
    for name in write.columns:
        parts = filled[name].parts if name in filled else ()
        wanted = write.column_properties(name)
        empty_column(spark, write.location, name, parts)
        if differing_model(name, detail.properties, wanted):
            set_properties(spark, write.location, wanted)
            # What another writer committed in between is by the model that was.
            empty_column(spark, write.location, name, parts)


def _read(spark: SparkSession, write: PreparedWrite) -> TableDetail:
    detail = read_detail(spark, write.location)
    if detail is None:
        raise TableError(
            f"{write.location.given} holds something that is not a Delta table; choose another "
            "place"
        )
    return detail
