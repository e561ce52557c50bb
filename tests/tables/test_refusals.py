"""What Spark or Delta would refuse in its own words is said in ours: what was given, what to do."""

import logging
from functools import partial

import pytest
from pyspark.errors import PySparkException
from pyspark.logger import PySparkLogger
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import functions as F
from pyspark.sql.types import LongType, StructField, StructType

from encoded_images import encode, photo
from spark_vision import (
    ImageViTEmbedding,
    plan_vision_columns,
    write_vision_batch,
    write_vision_columns,
)
from spark_vision.errors import TableError


@pytest.fixture
def rows(spark):
    return make_rows(spark)


def make_rows(spark):
    """Two images, and a text that claims to be one."""
    data = [(number, 10 * number, encode(photo(48, 40, seed=number), "JPEG")) for number in (1, 2)]
    return spark.createDataFrame([*data, (3, 30, b"no image")], "id int, size int, content binary")


@pytest.fixture
def printed():
    """What pyspark has printed of errors, as JSON, also of those that are caught."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    loggers = [
        PySparkLogger.getLogger(f"{kind}QueryContextLogger") for kind in ("DataFrame", "SQL")
    ]
    for logger in loggers:
        logging.Logger.addHandler(logger, handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture
def refused(printed):
    """Expects an error of ours, with these words in it, and nothing printed beside it."""

    def check(call, *said):
        with pytest.raises(TableError) as raised:
            call()
        message = str(raised.value)
        for each in said:
            assert each in message
        assert "\n" not in message
        assert "org.apache" not in message
        assert not printed

    return check


def test_what_pyspark_prints_of_an_error_is_seen_here(spark, printed):
    with pytest.raises(PySparkException):
        _ = spark.range(1).select(F.col("nowhere")).schema
    assert [record.levelname for record in printed] == ["ERROR"]


NEW_TYPES = pytest.mark.skipif(not hasattr(F, "st_geomfromwkb"), reason="this Spark lacks the type")
UPDATES = {
    "a row is tried again": {"retry": "failed"},
    "all rows are computed again": {"recompute": True},
    "a row has changed": {"change": "content"},
    "a kept column has changed": {"change": "size", "refresh_kept": True},
    "a row is missing": {"change": "fewer rows", "delete_missing": True},
    "a column is filled in": {"change": "second column"},
}


@pytest.fixture(scope="module")
def growing_table(spark, checkpoints, tmp_path_factory):
    """A table of `rows` that only takes new ones."""
    table = str(tmp_path_factory.mktemp("growing") / "vectors")
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    write_vision_columns(make_rows(spark), table, ["id"], {"embedding": dino}, keep=["size"])
    spark.sql(f"ALTER TABLE delta.`{table}` SET TBLPROPERTIES ('delta.appendOnly' = 'true')")
    return table


@pytest.mark.parametrize("options", UPDATES.values(), ids=UPDATES)
def test_a_table_that_only_takes_new_rows_refuses_to_change_some(
    spark, rows, dino, growing_table, refused, options
):
    table, columns = growing_table, {"embedding": dino}
    options = {"keep": ["size"], **options}
    before = spark.read.format("delta").load(table).collect()
    change = options.pop("change", None)
    if change in rows.columns:
        rows = rows.withColumn(change, F.lit(None).cast(dict(rows.dtypes)[change]))
    elif change == "fewer rows":
        rows = rows.limit(2)
    elif change:
        columns["other"] = dino
    refused(
        lambda: write_vision_columns(rows, table, ["id"], columns, **options),
        table,
        "delta.appendOnly",
        "retry, recompute, delete_missing",
    )
    left = spark.read.format("delta").load(table).select(*before[0].asDict()).collect()
    assert sorted(left) == sorted(before)


def test_a_table_that_only_takes_new_rows_takes_them(spark, rows, dino, table):
    columns = {"embedding": dino}
    options = {"table_properties": {"delta.appendOnly": "true"}}
    write_vision_columns(rows.filter("id < 2"), table, ["id"], columns, **options)
    assert write_vision_columns(rows, table, ["id"], columns, **options).computed_rows == 2


@pytest.mark.parametrize(
    "is_there",
    [
        pytest.param(False, id="new rows"),
        pytest.param(True, id="changed rows", marks=pytest.mark.slow),
    ],
)
def test_a_row_that_a_constraint_of_the_owner_forbids_is_named_with_it(
    spark, rows, dino, table, refused, is_there
):
    columns = {"embedding": dino}
    there = rows if is_there else rows.filter("size < 25")
    write_vision_columns(there, table, ["id"], columns, keep=["size"])
    if is_there:
        spark.sql(f"ALTER TABLE delta.`{table}` ADD CONSTRAINT small CHECK (size < 35)")
        rows = rows.withColumn("size", F.col("size") + 10).withColumn("content", F.lit(b"changed"))
    else:
        spark.sql(f"ALTER TABLE delta.`{table}` ADD CONSTRAINT small CHECK (size < 25)")
    refused(
        lambda: write_vision_columns(rows, table, ["id"], columns, keep=["size"]),
        table,
        "a row violates a constraint of the table ([DELTA_VIOLATE_CONSTRAINT_WITH_VALUES] "
        f"CHECK constraint small (size < {35 if is_there else 25}) violated); leave such rows out "
        "of the source, or drop the constraint: ALTER TABLE … DROP CONSTRAINT",
    )


def test_a_column_of_the_owner_that_takes_no_null_is_named(spark, rows, dino, table, refused):
    spark.sql(f"CREATE TABLE delta.`{table}` (id int, size int, mine int NOT NULL) USING delta")
    refused(
        lambda: write_vision_columns(rows, table, ["id"], {"embedding": dino}),
        table,
        "mine",
        "DROP NOT NULL",
    )


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("make_interval(0, 1)", "interval"),
        ("INTERVAL '1' MONTH", "interval month"),
        ("INTERVAL '1' DAY", "interval day"),
        ("array(INTERVAL '1' DAY)", "interval day"),
        ("named_struct('a', map('b', NULL))", "void"),
        ("NULL", "void"),
        pytest.param("TIME '12:00:00'", "time(6)", marks=NEW_TYPES),
    ],
)
def test_a_kept_column_of_a_type_that_delta_lacks_is_named(
    rows, dino, table, refused, expression, kind
):
    source = rows.withColumn("mine", F.expr(expression))
    for write in (write_vision_columns, plan_vision_columns):
        refused(
            lambda write=write: write(source, table, ["id"], {"embedding": dino}, keep=["mine"]),
            f"the kept column mine has the type {kind}, which Delta does not store; cast it",
        )


def test_a_kept_column_of_a_class_of_python_is_named(spark, dino, table, refused):
    kinds = StructType([StructField("id", LongType()), StructField("mine", VectorUDT())])
    source = spark.createDataFrame([], kinds).withColumn("content", F.lit(b"x"))
    refused(
        lambda: write_vision_columns(source, table, ["id"], {"embedding": dino}, keep=["mine"]),
        "the kept column mine has the type vector, which Delta does not store; cast it",
    )


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("CAST('a' AS STRING COLLATE UNICODE)", "mine: StringType(UNICODE)"),
        pytest.param("ST_GEOMFROMWKB(NULL)", "Geospatial types", marks=NEW_TYPES),
    ],
)
def test_a_type_that_this_delta_lacks_is_said(rows, dino, table, refused, expression, said):
    source = rows.withColumn("mine", F.expr(expression))
    refused(
        lambda: write_vision_columns(source, table, ["id"], {"embedding": dino}, keep=["mine"]),
        f"could not make the table {table}: this version of Delta does not store a type",
        said,
        "cast the column, or leave it out",
    )


def test_columns_that_differ_in_case_alone_are_named(rows, dino, table, refused):
    source = rows.withColumnsRenamed({"size": "ID"})
    for write in (write_vision_columns, plan_vision_columns):
        refused(
            lambda write=write: write(source, table, ["id"], {"embedding": dino}),
            "the source has the columns id and ID, which Spark does not distinguish; rename one",
        )


def test_a_stream_is_refused_where_rows_are_asked_for(spark, dino, table, tmp_path, refused):
    stream = spark.readStream.format("rate").load().withColumn("content", F.lit(b"x"))
    columns = {"embedding": dino}
    for write in (
        write_vision_columns,
        plan_vision_columns,
        partial(write_vision_batch, batch_id=0, app_id="mine"),
    ):
        refused(
            lambda write=write: write(stream, table=table, keys=["value"], columns=columns),
            "the source is a stream; call stream_vision_columns, or write_vision_batch in its "
            "foreachBatch",
        )
    assert not (tmp_path / "vectors").exists()
