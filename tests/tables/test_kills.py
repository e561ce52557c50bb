"""A job that is killed with -9 and started again ends with the table of an undisturbed one."""

import pytest

import kill_harness
from encoded_images import encode, photo
from spark_vision import write_vision_columns


@pytest.mark.timeout(600)
def test_a_killed_job_goes_on_and_doubles_nothing(spark, tmp_path, dino):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(8):
        (photos / f"{index}.jpg").write_bytes(encode(photo(64, 48, seed=index), "JPEG"))
    source = spark.read.format("binaryFile").load(str(photos))
    undisturbed, table = tmp_path / "undisturbed", tmp_path / "table"
    write_vision_columns(source, str(undisturbed), ["path"], {"embedding": dino})
    completed = []

    def start():
        log = tmp_path / "phases.log"
        return kill_harness.Job(
            photos, table, dino.model_name, log, rows_per_commit=4, master="local[1,20]"
        )

    def on_complete():
        rows = kill_harness.rows_of(table)
        kill_harness.check_rows(rows, kill_harness.rows_of(undisturbed))
        assert not (table / "_spark_vision").exists()
        completed.append(len(rows))

    plan = [("worker", "infer"), ("driver", "commit")]
    kills = kill_harness.kill_at_random(start, plan, seed=0, on_complete=on_complete)
    assert [kill.kind for kill in kills] == ["worker", "driver"]
    assert {kill.phase for kill in kills} <= set(kill_harness.PHASES)
    assert completed == [8]
