"""An operator from outside of the package is one class, and what computes it."""

import sys

import pytest
from PIL import Image

from conftest import WORKER_SITE
from encoded_images import encode
from spark_vision import caption_image, register_functions, write_vision_columns

COLOURS = {"red": (200, 30, 20), "green": (10, 180, 40), "blue": (20, 60, 220)}


@pytest.fixture
def operator(checkpoints, monkeypatch):
    monkeypatch.syspath_prepend(WORKER_SITE)
    from image_colour import ImageColour

    yield ImageColour(model_name=str(checkpoints / "dinov2"), image_src_type="image_binary")
    del sys.modules["image_colour"]


@pytest.fixture
def images(spark):
    rows = [
        (name, encode(Image.new("RGB", (40, 30), rgb), "JPEG")) for name, rgb in COLOURS.items()
    ]
    return spark.createDataFrame([*rows, ("none", b"no image")], "name string, content binary")


EXPECTED = {**{name: name for name in COLOURS}, "none": None}


def test_it_is_a_spark_column(images, operator):
    rows = images.select("name", caption_image("content", operator).alias("colour")).collect()
    assert {row["name"]: row["colour"] for row in rows} == EXPECTED


def test_it_is_a_function_of_sql(spark, images, operator):
    register_functions(spark, {"colour_of": operator}, with_status=True)
    images.createOrReplaceTempView("images_with_colours")
    query = "SELECT name, c.colour, c.status FROM (SELECT name, colour_of(content) AS c FROM {})"
    rows = spark.sql(query.format("images_with_colours")).collect()
    assert {row["name"]: row["colour"] for row in rows} == EXPECTED
    assert {row["status"] for row in rows if row["colour"] is None} == {"not_an_image"}


def test_it_is_a_column_of_a_table(spark, images, operator, tmp_path):
    table = str(tmp_path / "table")
    result = write_vision_columns(images, table, ["name"], {"colour": operator})
    assert result.statuses == {"colour": {"ok": 3, "not_an_image": 1}}
    written = spark.read.format("delta").load(table)
    assert {row["name"]: row["colour"] for row in written.collect()} == EXPECTED
    assert {"colour_status", "colour_error"} < set(written.columns)
    assert write_vision_columns(images, table, ["name"], {"colour": operator}).computed_rows == 0
