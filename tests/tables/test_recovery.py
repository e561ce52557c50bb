"""What a run that was killed did not commit is computed by the next one, never doubled."""

import pytest

from encoded_images import encode, photo
from spark_vision import write_vision_columns
from spark_vision.tables import table_layout as layout
from spark_vision.tables import wave_writer


class KilledError(BaseException):
    """Takes the place of kill -9: no `except Exception` stops it."""


def vectors_of(spark, table):
    rows = spark.read.format("delta").load(table).collect()
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"].rsplit("/")[-1]: row["embedding"] for row in rows}


@pytest.mark.parametrize(
    ("after", "computed", "forwards"),
    [(False, 7, 6), (True, 0, 6)],
    ids=["before the commit", "after the commit"],
)
def test_a_wave_that_was_left_is_computed_by_the_next_run_and_leaves_nothing_behind(
    spark, tmp_path, read_photos, dino, table, monkeypatch, kill_at, count_forwards,
    after, computed, forwards,
):  # fmt: skip
    columns = {"embedding": dino}
    kill_at(wave_writer, "commit_wave", KilledError, after=after)
    with pytest.raises(KilledError):
        write_vision_columns(read_photos(), table, ["path"], columns)
    monkeypatch.undo()
    result = write_vision_columns(read_photos(), table, ["path"], columns)
    assert result.computed_rows == computed
    assert count_forwards() == forwards
    assert len(vectors_of(spark, table)) == 7
    assert {file.name for file in (tmp_path / "vectors").iterdir() if file.is_dir()} <= {
        "_delta_log", "_change_data",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before the commit", "after the commit"])
def test_changed_rows_of_a_wave_that_was_left_are_updated_once_and_newer_ones_stay(
    spark, photos, read_photos, dino, table, monkeypatch, kill_at, count_forwards, after
):
    columns = {"embedding": dino}
    write_vision_columns(read_photos(), table, ["path"], columns)
    for index in (1, 2):
        (photos / f"{index}.jpg").write_bytes(encode(photo(60, 50, seed=20 + index), "JPEG"))
    kill_at(wave_writer, "commit_wave", KilledError, after=after)
    with pytest.raises(KilledError):
        write_vision_columns(read_photos(), table, ["path"], columns)
    monkeypatch.undo()
    # Another writer has written one of the rows since.
    (photos / "2.jpg").write_bytes(encode(photo(70, 50, seed=99), "JPEG"))
    newer = read_photos().filter("path LIKE '%/2.jpg'")
    assert write_vision_columns(newer, table, ["path"], columns).computed_rows == 1
    before = vectors_of(spark, table)
    result = write_vision_columns(read_photos(), table, ["path"], columns)
    assert result.computed_rows == (0 if after else 1)
    after_all = vectors_of(spark, table)
    changed = {name for name in before if before[name] != after_all[name]}
    assert changed == (set() if after else {"1.jpg"})
    assert count_forwards() == 6 + (2 + 1 if after else 1 + 1)


def test_a_row_that_left_source_and_table_after_a_kill_does_not_come_back(
    spark, photos, read_photos, dino, table, monkeypatch, kill_at
):
    columns = {"embedding": dino}
    kill_at(wave_writer, "count_statuses", KilledError)
    with pytest.raises(KilledError):
        write_vision_columns(read_photos(), table, ["path"], columns, rows_per_commit=4)
    monkeypatch.undo()
    gone = sorted(vectors_of(spark, table))[0]
    (photos / gone).unlink()
    spark.sql(f"DELETE FROM delta.`{table}` WHERE path LIKE '%/{gone}'")
    write_vision_columns(read_photos(), table, ["path"], columns, rows_per_commit=4)
    there = {file.name for file in photos.iterdir()}
    assert gone not in there
    assert set(vectors_of(spark, table)) == there


@pytest.mark.slow
def test_a_column_that_was_announced_and_not_added_keeps_no_other_write_from_its_work(
    spark, photos, read_photos, dino, table, monkeypatch
):
    write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    both = {"embedding": dino, "other": dino}

    def killed(field):
        raise KilledError

    monkeypatch.setattr(layout, "_ddl", killed)
    with pytest.raises(KilledError):
        write_vision_columns(read_photos(), table, ["path"], both)
    monkeypatch.undo()
    properties = spark.sql(f"SHOW TBLPROPERTIES delta.`{table}`").collect()
    assert [row for row in properties if row["key"] == "spark_vision.other.operator"]
    (photos / "1.jpg").write_bytes(encode(photo(60, 50, seed=21), "JPEG"))
    result = write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    assert result.computed_rows == 1
    result = write_vision_columns(read_photos(), table, ["path"], both, recompute=True)
    assert result.computed_rows == 7
    for row in spark.read.format("delta").load(table).collect():
        assert row["other"] == row["embedding"]
