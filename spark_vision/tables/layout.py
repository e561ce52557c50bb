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
    filled = filled_columns(present)
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


def open_table(spark: SparkSession, write: PreparedWrite) -> TableDetail:
    """Check the table, or make it, before there are any rows.

    Raises:
        TableError: As `check_table` and `make_table` do.
    """
    detail = read_detail(spark, write.location)
    if detail is not None:
        check_table(spark, write, detail)
    return make_table(spark, write, detail)


def make_table(
    spark: SparkSession, write: PreparedWrite, detail: TableDetail | None
) -> TableDetail:
    """Make the table, or bring the one that is there to what the write needs.

    Args:
        spark: The session.
        write: What is to be done.
        detail: What is known of the table, and has been checked; None where it is not there.

    Raises:
        TableError: Its place is taken, another writer made one that does not fit, or the storage
            refuses.
    """
    known = [detail]

    def attempt() -> TableDetail:
        # Where another writer came in between, what is known is no longer true.
        present = known.pop() if known else read_detail(spark, write.location)
        return _make_table(spark, write, present)

    with explaining(f"make the table {write.location.given}"):
        return retry_conflicts(write.location, attempt)


def _make_table(
    spark: SparkSession, write: PreparedWrite, detail: TableDetail | None
) -> TableDetail:
    location = write.location
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
    add_constraints(spark, location, detail.properties, constraints)
    return detail


def _empty_columns(spark: SparkSession, write: PreparedWrite, detail: TableDetail) -> None:
    filled = filled_columns(detail.properties)
    for name in write.columns:
        if name in filled:
            wanted = write.column_properties(name)
            empty_column(spark, write.location, name, filled[name].parts)
            if differing_model(name, detail.properties, wanted):
                set_properties(spark, write.location, wanted)


def _read(spark: SparkSession, write: PreparedWrite) -> TableDetail:
    detail = read_detail(spark, write.location)
    if detail is None:
        raise TableError(
            f"{write.location.given} holds something that is not a Delta table; choose another "
            "place"
        )
    return detail
