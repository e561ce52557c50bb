"""A table on HDFS, the storage of a cluster, to which two drivers write at once."""

import pytest
from pyspark.sql import functions as F

import kill_harness
from encoded_images import encode, photo
from hdfs_cluster import Hdfs
from spark_vision import write_vision_columns
from spark_vision.errors import CommitConflictError
from spark_vision.tables import run
from spark_vision.tables.hadoop_folder import HadoopFolder


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
    assert write_vision_columns(source.filter("length < 0"), table, ["path"], columns).computed == 0
    logs = [tmp_path / "one.log", tmp_path / "other.log"]
    jobs = [
        kill_harness.Job(f"{photos}/{names}.jpg", table, dino.model_name, log, 1, master="local[1]")
        for names, log in zip(["[0-6]", "[3-9]"], logs, strict=True)
    ]
    try:
        assert [job.wait() for job in jobs] == [0, 0]
    finally:
        for job in jobs:
            job.end()
    assert "met another writer" in "".join(log.read_text() for log in logs)
    kill_harness.check_rows(
        kill_harness.rows_of(table), kill_harness.rows_of(tmp_path / "undisturbed")
    )
    again = write_vision_columns(source, table, ["path"], columns)
    assert (again.there, again.computed, again.recovered) == (10, 0, 0)


@pytest.mark.slow
def test_stages_and_second_columns_are_on_any_hadoop_file_system(spark, hdfs, read_photos, dino):
    table = f"{hdfs.url}/lake/photos"
    write_vision_columns(read_photos(), table, ["path"], {"one": dino}, rows_per_commit=3)
    columns = dict.fromkeys(["one", "other"], dino)
    filled = write_vision_columns(read_photos(), table, ["path"], columns, rows_per_commit=3)
    rows = spark.read.format("delta").load(table)
    assert filled.computed == rows.count() == 7
    assert rows.filter(F.col("one_status") == "ok").filter("one = other").count() == 6


@pytest.mark.slow
def test_a_stage_on_hdfs_waits_for_the_next_run(
    spark, hdfs, read_photos, dino, monkeypatch, count_forwards
):
    table = f"{hdfs.url}/lake/waiting"

    def refuse(*_):
        raise CommitConflictError("others write")

    monkeypatch.setattr(run, "commit_wave", refuse)
    with pytest.raises(CommitConflictError):
        write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    monkeypatch.undo()
    result = write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    assert (result.recovered, result.computed, count_forwards()) == (7, 0, 6)
    assert not HadoopFolder(spark, f"{table}/_spark_vision").exists()
