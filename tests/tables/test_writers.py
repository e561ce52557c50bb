"""Two writers write no key twice and lose no row; bad storage and sources are told plainly."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from pyspark.sql import functions as F

from spark_vision import ImageViTEmbedding, write_vision_columns
from spark_vision.errors import CommitConflictError, TableError
from spark_vision.tables import commit, layout, run
from spark_vision.tables.location import locate_table

WAIT_SECONDS = 120


@pytest.fixture
def table(tmp_path):
    return str(tmp_path / "vectors")


def test_two_writers_at_once_write_no_key_twice_and_infer_each_wave_once(
    spark, read_photos, dino, table, monkeypatch, caplog, count_forwards
):
    together = threading.Barrier(2)
    commit_wave = run.commit_wave

    def commit_together(*args):
        together.wait(WAIT_SECONDS)
        commit_wave(*args)

    def write(names):
        source = read_photos().filter(F.regexp_extract("path", r"(\w+)\.jpg", 1).isin(names))
        return write_vision_columns(source, table, ["path"], {"embedding": dino}).computed

    # The table is there, so that both meet in their commits.
    assert write([]) == 0
    monkeypatch.setattr(run, "commit_wave", commit_together)
    caplog.set_level(logging.INFO, logger="spark_vision.tables")
    with ThreadPoolExecutor(2) as pool:
        computed = list(pool.map(write, [["0", "1", "2", "3"], ["2", "3", "4", "5", "text"]]))
    assert computed == [4, 5]
    assert count_forwards() == 8
    assert "met another writer" in caplog.text
    names = [
        row["path"].rsplit("/")[-1] for row in spark.read.format("delta").load(table).collect()
    ]
    assert sorted(names) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "text.jpg"]


@pytest.mark.parametrize("is_there", [False, True])
def test_two_writers_make_a_table_or_add_their_columns_at_once(
    spark, read_photos, dino, table, monkeypatch, is_there
):
    if is_there:
        write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    together = threading.Barrier(2)
    make = layout._make_table
    waited = threading.local()

    def make_together(*args):
        if not hasattr(waited, "once"):
            waited.once = True
            together.wait(WAIT_SECONDS)
        return make(*args)

    monkeypatch.setattr(layout, "_make_table", make_together)

    def write(name):
        return write_vision_columns(read_photos(), table, ["path"], {name: dino}).computed

    with ThreadPoolExecutor(2) as pool:
        computed = list(pool.map(write, ["one", "other"]))
    # Where both insert the same rows, the later one's column is left for the next run.
    monkeypatch.undo()
    again = write_vision_columns(
        read_photos(), table, ["path"], dict.fromkeys(["one", "other"], dino)
    )
    rows = spark.read.format("delta").load(table).collect()
    assert computed == [7, 7]
    assert again.computed in ((0, 7) if is_there else (7,))
    assert len({row["path"] for row in rows}) == len(rows) == 7
    for row in rows:
        assert row["one"] == row["other"]
        assert {row["one_status"], row["other_status"]} <= {"ok", "not_an_image"}


def test_rows_of_a_model_that_the_column_no_longer_has_are_not_committed(
    spark, read_photos, dino, table, checkpoints, monkeypatch
):
    other = ImageViTEmbedding(model_name=str(checkpoints / "dinov2-other"))
    write = partial(write_vision_columns, read_photos(), table, ["path"])
    commit_wave = run.commit_wave

    def commit_late(*args):
        monkeypatch.undo()
        write({"embedding": other}, recompute=True)
        commit_wave(*args)

    write({"embedding": dino})
    before = spark.read.format("delta").load(table).collect()
    monkeypatch.setattr(run, "commit_wave", commit_late)
    with pytest.raises(TableError, match=r"another model's while this write.*fingerprint"):
        write({"embedding": dino}, recompute=True)
    after = spark.read.format("delta").load(table).collect()
    assert len(after) == len(before) == 7
    vectors = [{row["path"]: row["embedding"] for row in rows} for rows in (before, after)]
    assert all(vectors[0][path] != vectors[1][path] for path in vectors[0] if vectors[0][path])
    assert write({"embedding": other}).computed == 0


def test_a_column_that_another_model_has_taken_meanwhile_is_refused(
    spark, read_photos, dino, table, checkpoints, monkeypatch
):
    other = ImageViTEmbedding(model_name=str(checkpoints / "dinov2-other"))
    write = partial(write_vision_columns, read_photos(), table, ["path"])
    write({"embedding": dino})
    survey = run._survey

    def survey_slowly(*args, **kwargs):
        monkeypatch.undo()
        write({"later": other})
        return survey(*args, **kwargs)

    monkeypatch.setattr(run, "_survey", survey_slowly)
    with pytest.raises(TableError, match=r"later.*fingerprint"):
        write({"later": dino})
    assert write({"later": other}).computed == 0


def test_a_row_that_came_back_meanwhile_is_not_removed(
    spark, read_photos, dino, table, monkeypatch
):
    write = partial(write_vision_columns, keys=["path"], columns={"embedding": dino})
    write(read_photos(), table)
    is_third = F.col("path").like("%/3.jpg")
    delete_rows = run.delete_rows

    def delete_late(*args, **kwargs):
        monkeypatch.undo()
        write(read_photos().filter(is_third), table, recompute=True)
        delete_rows(*args, **kwargs)

    monkeypatch.setattr(run, "delete_rows", delete_late)
    some = read_photos().filter(~is_third & ~F.col("path").like("%/4.jpg"))
    write(some, table, delete_missing=True)
    rows = spark.read.format("delta").load(table).collect()
    names = [row["path"].rsplit("/")[-1] for row in rows]
    assert sorted(names) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "5.jpg", "text.jpg"]


def test_conflicts_are_met_a_bounded_number_of_times(spark, tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(commit, "_LONGEST_PAUSE_SECONDS", 0.001)
    attempts = []

    def change():
        attempts.append(1)
        raise RuntimeError("[DELTA_CONCURRENT_APPEND] files were added by a concurrent update")

    location = locate_table(spark, str(tmp_path))
    with pytest.raises(CommitConflictError, match=r"10 attempts to commit; nothing was changed"):
        commit.retry_conflicts(location, change, "nothing was changed")
    assert len(attempts) == commit.ATTEMPT_COUNT

    def fail():
        attempts.append(1)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        commit.retry_conflicts(location, fail)
    assert len(attempts) == commit.ATTEMPT_COUNT + 1


def test_a_source_that_shrinks_while_it_is_read_is_an_error_and_the_table_as_it_was(
    spark, photos, read_photos, dino, table, monkeypatch, tmp_path
):
    write_vision_columns(read_photos().filter("length < 0"), table, ["path"], {"embedding": dino})
    stage_wave = run._stage_wave

    def shrink(*args):
        (photos / "1.jpg").unlink()
        return stage_wave(*args)

    monkeypatch.setattr(run, "_stage_wave", shrink)
    spark.conf.set("spark.sql.files.ignoreMissingFiles", "true")
    try:
        with pytest.raises(TableError, match="gave 6 rows where it had 7"):
            write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    finally:
        spark.conf.unset("spark.sql.files.ignoreMissingFiles")
    assert spark.read.format("delta").load(table).count() == 0
    assert not (tmp_path / "vectors" / "_spark_vision").exists()


def test_a_place_that_cannot_be_written_is_named(read_photos, dino):
    with pytest.raises(TableError, match="could not make the table /proc/vectors: the storage"):
        write_vision_columns(read_photos(), "/proc/vectors", ["path"], {"embedding": dino})


def test_a_disk_without_space_is_named_and_the_table_stays(
    spark, read_photos, dino, table, monkeypatch
):
    write_vision_columns(read_photos().filter("length < 0"), table, ["path"], {"embedding": dino})

    def full(*_):
        raise OSError("java.io.IOException: No space left on device")

    monkeypatch.setattr(run, "_stage_wave", full)
    with pytest.raises(TableError, match=r"there is no space left .*; make room and run again"):
        write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    assert spark.read.format("delta").load(table).count() == 0
