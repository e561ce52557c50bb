"""A job's input is understood by what is there."""

import pytest

from spark_vision.cli.inputs import read_images
from spark_vision.errors import TableError


@pytest.fixture
def rows(spark):
    return spark.createDataFrame([(1, b"x")], "id int, image binary")


def test_a_folder_of_files_is_read_to_its_depths(spark, photos):
    (photos / "deeper").mkdir()
    (photos / "deeper" / "more.jpg").write_bytes(b"x")
    names = {row["path"].rsplit("/")[-1] for row in read_images(spark, str(photos)).collect()}
    assert names == {"more.jpg", "text.jpg", *(f"{index}.jpg" for index in range(6))}


def test_a_glob_chooses_files(spark, photos):
    assert read_images(spark, f"{photos}/[0-2].jpg").count() == 3


def test_delta_and_parquet_folders_are_read_as_tables(spark, rows, tmp_path):
    rows.write.format("delta").save(str(tmp_path / "delta"))
    rows.write.partitionBy("id").parquet(str(tmp_path / "parquet"))
    for place in (f"{tmp_path}/delta", f"delta.`{tmp_path}/delta`", f"{tmp_path}/parquet"):
        assert read_images(spark, place).select("id", "image").collect() == rows.collect()


def test_a_name_is_a_table(spark, rows):
    rows.createOrReplaceTempView("my_photos")
    assert read_images(spark, "my_photos").collect() == rows.collect()
    with pytest.raises(TableError, match="there is no table or folder named 'nobodys_photos'"):
        read_images(spark, "nobodys_photos")


def test_an_empty_folder_is_an_error(spark, tmp_path):
    with pytest.raises(TableError, match="no file"):
        read_images(spark, str(tmp_path))
