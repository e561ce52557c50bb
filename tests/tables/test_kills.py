"""A job that is killed with -9 and started again ends with the table of an undisturbed one."""

import shutil

import pytest

import kill_harness
from encoded_images import encode, photo
from kill_harness import Kill
from spark_vision import write_vision_columns

ONE_OF_EACH = [
    Kill("worker", "batch 1"),
    Kill("server", "batch 2"),
    Kill("executor", "before merge"),
    Kill("driver", "after commit"),
]


@pytest.mark.timeout(600)
def test_a_killed_job_goes_on_and_doubles_nothing(spark, tmp_path, dino):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(12):
        (photos / f"{index}.jpg").write_bytes(encode(photo(64, 48, seed=index), "JPEG"))
    source = spark.read.format("binaryFile").load(str(photos))
    undisturbed, table = tmp_path / "undisturbed", tmp_path / "table"
    write_vision_columns(source, str(undisturbed), ["path"], {"embedding": dino})
    completed = []

    def start():
        return kill_harness.Job(photos, table, dino.model_name, tmp_path, rows_per_commit=4)

    def on_complete():
        rows = kill_harness.rows_of(table)
        kill_harness.check_rows(rows, kill_harness.rows_of(undisturbed))
        completed.append(len(rows))
        shutil.rmtree(table)

    kill_harness.kill_as_planned(start, ONE_OF_EACH, on_complete)
    assert completed
    assert set(completed) == {12}
