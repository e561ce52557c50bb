"""A table on HDFS, the storage of a cluster, to which two drivers write at once."""

import pytest
from pyspark.sql import functions as F

import kill_harness
from encoded_images import encode, photo
from hdfs_cluster import Hdfs
from spark_vision import write_vision_columns


@pytest.fixture(scope="module")
def hdfs(tmp_path_factory):
    with Hdfs(tmp_path_factory.mktemp("hdfs") / "cluster") as cluster:
        yield cluster


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_drivers_write_to_one_table_at_once(spark, hdfs, tmp_path, dino):
    photos, table = tmp_path / "photos", f"{hdfs.url}/lake/vectors"
    photos.mkdir()
    for index in range(10):
        (photos / f"{index}.jpg").write_bytes(encode(photo(64, 48, seed=index), "JPEG"))
    source = spark.read.format("binaryFile").load(str(photos))
    columns = {"embedding": dino}
    write_vision_columns(source, str(tmp_path / "undisturbed"), ["path"], columns)
    # The table is there, so that the two meet in their commits.
    assert (
        write_vision_columns(source.filter("length < 0"), table, ["path"], columns).computed_rows
        == 0
    )
    jobs = []
    for name, chosen in (("one", "[0-6]"), ("other", "[3-9]")):
        (tmp_path / name).mkdir()
        images = f"{photos}/{chosen}.jpg"
        job = kill_harness.Job(
            images, table, dino.model_name, tmp_path / name, 1, master="local[1]"
        )
        jobs.append(job)
    try:
        assert [job.wait() for job in jobs] == [0, 0]
    finally:
        for job in jobs:
            job.end()
    assert "conflict with another writer" in "".join(job.log.read_text() for job in jobs)
    kill_harness.check_rows(
        kill_harness.rows_of(table), kill_harness.rows_of(tmp_path / "undisturbed")
    )
    again = write_vision_columns(source, table, ["path"], columns)
    assert (again.existing_rows, again.computed_rows) == (10, 0)


@pytest.mark.slow
def test_second_columns_are_on_any_hadoop_file_system(spark, hdfs, read_photos, dino):
    table = f"{hdfs.url}/lake/photos"
    write_vision_columns(read_photos(), table, ["path"], {"one": dino}, rows_per_commit=3)
    columns = dict.fromkeys(["one", "other"], dino)
    filled = write_vision_columns(read_photos(), table, ["path"], columns, rows_per_commit=3)
    rows = spark.read.format("delta").load(table)
    assert filled.computed_rows == rows.count() == 7
    assert rows.filter(F.col("one_status") == "ok").filter("one = other").count() == 6
