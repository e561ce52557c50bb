"""Two writers write no key twice and lose no row; bad storage and sources are told plainly."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from pyspark.sql import functions as F

from encoded_images import encode, photo
from meeting import WAIT_SECONDS, meet_after
from spark_vision import ImageViTEmbedding, write_vision_columns
from spark_vision.errors import CommitConflictError, TableError
from spark_vision.tables import commit, storage_errors, wave_writer
from spark_vision.tables import named_points as points
from spark_vision.tables import table_layout as layout
from spark_vision.tables import write as write_module
from spark_vision.tables.location import locate_table


def test_two_writers_at_once_write_no_key_twice_and_compute_one_wave_twice_at_most(
    spark, read_photos, dino, table, monkeypatch, caplog, count_forwards
):
    def write(names):
        source = read_photos().filter(F.regexp_extract("path", r"(\w+)\.jpg", 1).isin(names))
        return write_vision_columns(
            source, table, ["path"], {"embedding": dino}, rows_per_commit=2
        ).computed_rows

    # The table is there, so that both meet in their commits.
    assert write([]) == 0
    # Both look at the table before either has changed it.
    monkeypatch.setattr(commit, "_check_models", meet_after(commit._check_models))
    caplog.set_level(logging.INFO, logger="spark_vision.tables")
    with ThreadPoolExecutor(2) as pool:
        computed = list(pool.map(write, [["0", "1", "2"], ["3", "4", "5", "text"]]))
    assert computed == [3, 4]
    assert "conflict with another writer" in caplog.text
    # Of six images, the two of a wave have been computed once more for each writer at most.
    assert 6 < count_forwards() <= 6 + 2 + 2
    names = [
        row["path"].rsplit("/")[-1] for row in spark.read.format("delta").load(table).collect()
    ]
    assert sorted(names) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "text.jpg"]


def test_rows_that_another_writer_was_first_with_are_counted_for_that_one(
    spark, read_photos, dino, table, monkeypatch, count_forwards
):
    commit_wave = wave_writer.commit_wave
    write = partial(write_vision_columns, keys=["path"], columns={"embedding": dino})

    def commit_late(*args):
        monkeypatch.undo()
        some = read_photos().filter(F.col("path").rlike("/[0-3].jpg"))
        assert write(some, table).computed_rows == 4
        return commit_wave(*args)

    monkeypatch.setattr(wave_writer, "commit_wave", commit_late)
    result = write(read_photos(), table)
    assert result.computed_rows == 3
    assert result.statuses == {"embedding": {"ok": 2, "not_an_image": 1}}
    assert spark.read.format("delta").load(table).count() == 7


@pytest.mark.slow
def test_a_run_that_met_a_conflict_keeps_its_rows_and_computes_no_further_one_twice(
    spark, read_photos, dino, table, monkeypatch, count_forwards
):
    write = partial(write_vision_columns, table=table, keys=["path"], columns={"embedding": dino})
    source = read_photos().filter(F.col("path").rlike("/[0-5].jpg"))
    write(source.filter(F.col("path").like("%/0.jpg")))
    assert count_forwards() == 1
    attempts = []
    merge = spark.sql

    def sql(statement, *args, **kwargs):
        if statement.startswith("MERGE"):
            attempts.append(statement)
            if len(attempts) in (1, 3):
                # What MERGE says where others have committed since it read the table.
                merge(statement.replace(f"delta.`{table}`", f"delta.`{copy}`")).collect()
                raise RuntimeError("[DELTA_CONCURRENT_APPEND] files were added")
        return merge(statement, *args, **kwargs)

    copy = f"{table}-copy"
    spark.read.format("delta").load(table).write.format("delta").save(copy)
    monkeypatch.setattr(spark, "sql", sql)
    assert write(source, rows_per_commit=2).computed_rows == 5
    monkeypatch.undo()
    # Waves of 2, 2 and 1; the first and the second one each met another writer once.
    assert len(attempts) == 5
    assert count_forwards() == 1 + 5 + 2


@pytest.mark.slow
def test_a_schema_that_changed_after_the_analysis_is_a_conflict_like_others(
    spark, read_photos, dino, table, tmp_path, monkeypatch, count_forwards
):
    place = str(tmp_path / "changing")
    spark.sql(f"CREATE TABLE delta.`{place}` (one int) USING delta")
    analysed = spark.read.format("delta").load(place)
    (
        spark.createDataFrame([], "other string").write.format("delta").mode("overwrite")
        .option("overwriteSchema", True).save(place)
    )  # fmt: skip
    merges = []
    run_sql = spark.sql

    def sql(statement, *args, **kwargs):
        if statement.startswith("MERGE"):
            merges.append(statement)
            if len(merges) == 1:
                spark.sql(f"ALTER TABLE delta.`{table}` ADD COLUMNS (mine int)")
                # Delta's own error.
                analysed.collect()
        return run_sql(statement, *args, **kwargs)

    write_vision_columns(read_photos().filter("length < 0"), table, ["path"], {"embedding": dino})
    monkeypatch.setattr(spark, "sql", sql)
    with pytest.raises(Exception, match="DELTA_SCHEMA_CHANGE_SINCE_ANALYSIS"):
        analysed.collect()
    assert (
        write_vision_columns(read_photos(), table, ["path"], {"embedding": dino}).computed_rows == 7
    )
    assert len(merges) == 2
    assert count_forwards() == 6


def test_a_table_whose_creation_cannot_be_read_yet_is_read_again(
    read_photos, dino, table, monkeypatch
):
    read, unread = layout.read_detail, [None, None]

    def read_later(*where):
        return unread.pop() if unread else read(*where)

    # The first finds no table to extend; the second, no table after its creation.
    monkeypatch.setattr(layout, "read_detail", read_later)
    result = write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    assert not unread
    assert result.statuses == {"embedding": {"ok": 6, "not_an_image": 1}}


@pytest.mark.slow
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
        return write_vision_columns(read_photos(), table, ["path"], {name: dino}).computed_rows

    with ThreadPoolExecutor(2) as pool:
        computed = list(pool.map(write, ["one", "other"]))
    # Where both insert the same rows, the later one fills in its column in a second pass.
    monkeypatch.undo()
    again = write_vision_columns(
        read_photos(), table, ["path"], dict.fromkeys(["one", "other"], dino)
    )
    rows = spark.read.format("delta").load(table).collect()
    assert computed == [7, 7]
    assert again.computed_rows == 0
    assert len({row["path"] for row in rows}) == len(rows) == 7
    for row in rows:
        assert row["one"] == row["other"]
        assert {row["one_status"], row["other_status"]} <= {"ok", "not_an_image"}


@pytest.mark.slow
def test_rows_of_a_model_that_the_column_no_longer_has_are_not_committed(
    spark, read_photos, dino, table, checkpoints, monkeypatch
):
    other = ImageViTEmbedding(model_name=str(checkpoints / "dinov2-other"))
    write = partial(write_vision_columns, read_photos(), table, ["path"])
    commit_wave = wave_writer.commit_wave

    def commit_late(*args):
        monkeypatch.undo()
        write({"embedding": other}, recompute=True)
        commit_wave(*args)

    write({"embedding": dino})
    before = spark.read.format("delta").load(table).collect()
    monkeypatch.setattr(wave_writer, "commit_wave", commit_late)
    with pytest.raises(TableError, match=r"given another model during this write.*fingerprint"):
        write({"embedding": dino}, recompute=True)
    after = spark.read.format("delta").load(table).collect()
    assert len(after) == len(before) == 7
    vectors = [{row["path"]: row["embedding"] for row in rows} for rows in (before, after)]
    assert all(vectors[0][path] != vectors[1][path] for path in vectors[0] if vectors[0][path])
    assert write({"embedding": other}).computed_rows == 0


@pytest.mark.slow
def test_a_column_that_another_model_has_taken_meanwhile_is_refused(
    spark, read_photos, dino, table, checkpoints, monkeypatch
):
    other = ImageViTEmbedding(model_name=str(checkpoints / "dinov2-other"))
    write = partial(write_vision_columns, read_photos(), table, ["path"])
    write({"embedding": dino})
    survey = write_module.survey_source

    def survey_slowly(*args, **kwargs):
        monkeypatch.undo()
        write({"later": other})
        return survey(*args, **kwargs)

    monkeypatch.setattr(write_module, "survey_source", survey_slowly)
    with pytest.raises(TableError, match=r"later.*fingerprint"):
        write({"later": dino})
    assert write({"later": other}).computed_rows == 0


@pytest.mark.slow
def test_a_row_that_came_back_meanwhile_is_not_removed(
    spark, read_photos, dino, table, monkeypatch
):
    write = partial(write_vision_columns, keys=["path"], columns={"embedding": dino})
    write(read_photos(), table)
    is_third = F.col("path").like("%/3.jpg")
    delete_rows = write_module.delete_rows

    def delete_late(*args, **kwargs):
        monkeypatch.undo()
        write(read_photos().filter(is_third), table, recompute=True)
        return delete_rows(*args, **kwargs)

    monkeypatch.setattr(write_module, "delete_rows", delete_late)
    some = read_photos().filter(~is_third & ~F.col("path").like("%/4.jpg"))
    assert write(some, table, delete_missing=True).deleted_rows == 1
    rows = spark.read.format("delta").load(table).collect()
    names = [row["path"].rsplit("/")[-1] for row in rows]
    assert sorted(names) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "5.jpg", "text.jpg"]


def test_conflicts_are_met_a_bounded_number_of_times(spark, tmp_path, monkeypatch):
    monkeypatch.setattr(storage_errors, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(storage_errors, "_LONGEST_PAUSE_SECONDS", 0.001)
    attempts = []

    def change():
        attempts.append(1)
        raise RuntimeError("[DELTA_CONCURRENT_APPEND] files were added by a concurrent update")

    location = locate_table(spark, str(tmp_path))
    with pytest.raises(CommitConflictError, match=r"10 commit attempts; nothing was changed"):
        storage_errors.retry_conflicts(location, change, "nothing was changed")
    assert len(attempts) == storage_errors.ATTEMPT_COUNT

    def fail():
        attempts.append(1)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        storage_errors.retry_conflicts(location, fail)
    assert len(attempts) == storage_errors.ATTEMPT_COUNT + 1


@pytest.mark.slow
def test_of_a_source_that_shrinks_while_it_is_read_the_rest_is_written_with_a_warning(
    spark, photos, read_photos, dino, table, monkeypatch, caplog
):
    def shrink(point):
        if point == "after survey":
            (photos / "1.jpg").unlink(missing_ok=True)

    monkeypatch.setattr(points, "at_point", shrink)
    spark.conf.set("spark.sql.files.ignoreMissingFiles", "true")
    try:
        result = write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    finally:
        spark.conf.unset("spark.sql.files.ignoreMissingFiles")
    assert result.computed_rows == 6
    assert "1 of 7 rows of a wave" in caplog.text
    assert spark.read.format("delta").load(table).count() == 6


@pytest.mark.slow
def test_keys_that_come_twice_while_a_source_is_read_are_taken_out_again(
    spark, dino, table, tmp_path, monkeypatch
):
    place = str(tmp_path / "source")
    images = [(number, encode(photo(48, 40, seed=number), "JPEG")) for number in range(3)]
    rows = spark.createDataFrame(images, "id int, content binary")
    rows.write.format("delta").save(place)
    source = spark.read.format("delta").load(place).groupBy("id", "content").count()
    source = source.select(
        "id", F.explode(F.expr("array_repeat(content, int(count))")).alias("content")
    )

    def grow(point):
        if point == "after survey":
            rows.limit(1).write.format("delta").mode("append").save(place)

    monkeypatch.setattr(points, "at_point", grow)
    with pytest.raises(TableError, match="returned 4 rows for 3 keys"):
        write_vision_columns(source, table, ["id"], {"embedding": dino})
    assert spark.read.format("delta").load(table).count() == 0


def test_a_place_that_cannot_be_written_is_named(read_photos, dino):
    with pytest.raises(TableError, match="could not make the table /proc/vectors: the storage"):
        write_vision_columns(read_photos(), "/proc/vectors", ["path"], {"embedding": dino})


def test_a_disk_without_space_is_named_and_the_table_stays(
    spark, read_photos, dino, table, monkeypatch
):
    write_vision_columns(read_photos().filter("length < 0"), table, ["path"], {"embedding": dino})

    def full(*_):
        raise OSError("java.io.IOException: No space left on device")

    monkeypatch.setattr(wave_writer, "commit_wave", full)
    with pytest.raises(TableError, match=r"no space left .*; free some space and run again"):
        write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    assert spark.read.format("delta").load(table).count() == 0
