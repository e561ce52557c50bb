"""A write in which rows fail: which row ends it, and when a wrong source does."""

import dataclasses

import pytest
from pyspark.sql import functions as F

from spark_vision import write_vision_columns
from spark_vision.cli.job import one_line_message
from spark_vision.errors import FailureRateError
from spark_vision.tables.source import choose_columns
from spark_vision.tables.structs import column_structs
from spark_vision.tables.write_options import WriteOptions

ROW_COUNT = 150


def texts(spark, partition_count):
    rows = spark.range(0, ROW_COUNT, 1, partition_count)
    return rows.selectExpr("id", "concat('k', id) AS name", "CAST('no image' AS BINARY) AS content")


def test_the_key_of_the_first_bad_row_is_named(spark, read_photos, photos, dino, table):
    strict = dataclasses.replace(dino, on_error="raise")
    with pytest.raises(Exception, match="not_an_image") as raised:
        write_vision_columns(read_photos(), table, ["path", "length"], {"embedding": strict})
    said = one_line_message(raised.value)
    assert said.startswith(f"path=file:{photos}/text.jpg, length=12: not_an_image: ")


@pytest.mark.parametrize("shell", ["arrow", "pandas"])
def test_keys_of_any_type_and_name_reach_the_error(spark, dino, monkeypatch, shell):
    if shell == "pandas":
        monkeypatch.delattr(F, "arrow_udf", raising=False)
    source = (
        texts(spark, 1)
        .limit(1)
        .selectExpr("DATE '2024-02-29' AS data", "name AS mode", "id", "content")
    )
    strict = {"embedding": dataclasses.replace(dino, on_error="raise")}
    chosen = choose_columns(source, ["data", "mode", "id"], strict, WriteOptions())
    (struct,) = column_structs(strict, chosen, {"embedding": None})
    with pytest.raises(Exception, match="not_an_image") as raised:
        source.select(struct.column).collect()
    assert one_line_message(raised.value).startswith(
        "data=2024-02-29, mode=k0, id=0: not_an_image: "
    )


def test_a_write_ends_where_too_many_rows_of_its_waves_failed(spark, dino, table):
    operator = dataclasses.replace(dino, max_failure_rate=0.5)
    # No task has enough rows to judge them by itself.
    source = texts(spark, partition_count=5)
    with pytest.raises(FailureRateError) as raised:
        write_vision_columns(source, table, ["id"], {"embedding": operator})
    assert str(raised.value).startswith(
        "150 of 150 rows failed, more than max_failure_rate=0.5 allows: not_an_image 150 ("
    )
    statuses = spark.read.format("delta").load(table).groupBy("embedding_status").count()
    assert [tuple(row) for row in statuses.collect()] == [("not_an_image", 150)]


def test_a_task_that_ends_a_write_says_why_in_one_line(spark, dino, table):
    operator = dataclasses.replace(dino, max_failure_rate=0.5)
    with pytest.raises(Exception, match="max_failure_rate") as raised:
        write_vision_columns(texts(spark, 1), table, ["id"], {"embedding": operator})
    said = one_line_message(raised.value)
    assert said.startswith("1")
    assert "rows failed, more than max_failure_rate=0.5 allows: not_an_image " in said
