"""What a run that was killed left behind is committed or removed by the next one, never doubled."""

import json
from types import SimpleNamespace

import pytest

from encoded_images import encode, photo
from spark_vision import write_vision_columns
from spark_vision.tables import run, schema, stage
from spark_vision.tables.commit import StagedWave


@pytest.fixture
def table(tmp_path):
    return str(tmp_path / "vectors")


@pytest.fixture
def staged(tmp_path):
    """The table's stage folder."""
    return tmp_path / "vectors" / "_spark_vision"


class KilledError(BaseException):
    """Takes the place of kill -9: no `except Exception` stops it."""


def rows_of(spark, table):
    return sorted(row["path"] for row in spark.read.format("delta").load(table).collect())


@pytest.mark.parametrize(
    ("owner", "name", "after", "recovered", "forwards"),
    [
        (stage.RunFolder, "finish", False, 0, 12),
        (run, "commit_wave", False, 7, 6),
        (run, "commit_wave", True, 0, 6),
    ],
    ids=["before the stage is complete", "before the commit", "after the commit"],
)
def test_a_wave_that_was_left_is_committed_once_or_computed_again(
    spark, read_photos, dino, table, staged, monkeypatch, kill_at, count_forwards,
    owner, name, after, recovered, forwards,
):  # fmt: skip
    columns = {"embedding": dino}
    kill_at(owner, name, KilledError, after=after)
    with pytest.raises(KilledError):
        write_vision_columns(read_photos(), table, ["path"], columns)
    monkeypatch.undo()
    assert staged.exists()
    monkeypatch.setattr(stage, "DEAD_SECONDS", 0.1)
    result = write_vision_columns(read_photos(), table, ["path"], columns)
    assert (result.recovered, result.computed) == (recovered, 0 if forwards == 6 else 7)
    assert count_forwards() == forwards
    paths = rows_of(spark, table)
    assert len(paths) == len(set(paths)) == 7
    assert not staged.exists()


def test_a_wave_whose_mark_is_damaged_is_dropped_and_computed_again(
    spark, read_photos, dino, table, staged, monkeypatch, kill_at, caplog
):
    columns = {"embedding": dino}
    kill_at(run, "commit_wave", KilledError, after=False)
    with pytest.raises(KilledError):
        write_vision_columns(read_photos(), table, ["path"], columns)
    monkeypatch.undo()
    (mark,) = staged.glob("*/wave-0.json")
    mark.write_bytes(mark.read_bytes()[:40])
    monkeypatch.setattr(stage, "DEAD_SECONDS", 0.1)
    result = write_vision_columns(read_photos(), table, ["path"], columns)
    assert (result.recovered, result.computed) == (0, 7)
    assert "wave-0.json was dropped" in caplog.text
    assert not staged.exists()


WAVE = StagedWave(True, ("path",), (), ("embedding",), ("image",), {"spark_vision.x": "y"}, 7)
MARK = json.dumps(WAVE.to_json())


@pytest.mark.parametrize(
    "text",
    [
        *("", MARK[:40], "[" * 100_000, "null", "[]", "{}", '{"identity": {}}'),
        json.dumps({**WAVE.to_json(), "compression": "of a newer version"}),
        json.dumps({**WAVE.to_json(), "keys": "path"}),
        json.dumps({**WAVE.to_json(), "count": "7"}),
        json.dumps({**WAVE.to_json(), "columns": [["embedding"]]}),
        json.dumps({**WAVE.to_json(), "identity": {"spark_vision.x": None}}),
    ],
)
def test_a_mark_that_this_version_does_not_write_keeps_no_other_wave_from_the_table(text, caplog):
    marks = {"wave-0.json": text, "wave-1.json": MARK}
    folder = SimpleNamespace(path="/stage/run", names=lambda: sorted(marks), read=marks.get)
    assert list(stage.staged_waves(folder)) == [(WAVE, "/stage/run/wave-1")]
    assert "/stage/run/wave-0.json was dropped" in caplog.text


def vectors_of(spark, table):
    rows = spark.read.format("delta").load(table).collect()
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"].rsplit("/")[-1]: row["embedding"] for row in rows}


@pytest.mark.parametrize("after", [False, True], ids=["before the commit", "after the commit"])
def test_changed_rows_of_a_wave_that_was_left_are_updated_once_and_newer_ones_stay(
    spark, photos, read_photos, dino, table, staged, monkeypatch, kill_at, count_forwards, after
):
    columns = {"embedding": dino}
    write_vision_columns(read_photos(), table, ["path"], columns)
    for index in (1, 2):
        (photos / f"{index}.jpg").write_bytes(encode(photo(60, 50, seed=20 + index), "JPEG"))
    kill_at(run, "commit_wave", KilledError, after=after)
    with pytest.raises(KilledError):
        write_vision_columns(read_photos(), table, ["path"], columns)
    monkeypatch.undo()
    assert staged.exists()
    # Another writer, who does not meet the stage, has written one of the rows since.
    (photos / "2.jpg").write_bytes(encode(photo(70, 50, seed=99), "JPEG"))
    newer = read_photos().filter("path LIKE '%/2.jpg'")
    monkeypatch.setattr(run, "recover_waves", lambda *_: 0)
    assert write_vision_columns(newer, table, ["path"], columns).computed == 1
    monkeypatch.undo()
    before = vectors_of(spark, table)
    monkeypatch.setattr(stage, "DEAD_SECONDS", 0.1)
    result = write_vision_columns(read_photos(), table, ["path"], columns)
    assert (result.recovered, result.computed) == (0 if after else 1, 0)
    after_all = vectors_of(spark, table)
    changed = {name for name in before if before[name] != after_all[name]}
    assert changed == (set() if after else {"1.jpg"})
    assert count_forwards() == 6 + 2 + 1
    assert not staged.exists()


def test_a_column_that_was_announced_and_not_added_keeps_no_other_write_from_its_work(
    spark, photos, read_photos, dino, table, monkeypatch
):
    write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    both = {"embedding": dino, "other": dino}

    def killed(field):
        raise KilledError

    monkeypatch.setattr(schema, "_ddl", killed)
    with pytest.raises(KilledError):
        write_vision_columns(read_photos(), table, ["path"], both)
    monkeypatch.undo()
    properties = spark.sql(f"SHOW TBLPROPERTIES delta.`{table}`").collect()
    assert [row for row in properties if row["key"] == "spark_vision.other.operator"]
    (photos / "1.jpg").write_bytes(encode(photo(60, 50, seed=21), "JPEG"))
    result = write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    assert result.computed == 1
    result = write_vision_columns(read_photos(), table, ["path"], both, recompute=True)
    assert result.computed == 7
    for row in spark.read.format("delta").load(table).collect():
        assert row["other"] == row["embedding"]
