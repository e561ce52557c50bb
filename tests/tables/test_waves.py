"""How pending rows are cut into waves, and when."""

import threading

import pytest
from pyspark.sql import functions as F

from spark_vision import write_vision_columns
from spark_vision.tables import wave_writer, waves
from spark_vision.tables.survey import survey_source
from spark_vision.tables.waves import Pace, cut_waves
from spark_vision.tables.write_options import WriteOptions
from spark_vision.tables.write_plan import plan_write


@pytest.fixture
def cut(spark, dino, table, tmp_path, monkeypatch):
    """Cut three files of six rows into waves of a size."""
    folder = str(tmp_path / "source")
    rows = spark.range(0, 18, 1, 3).select("id", F.lit(b"a photo").alias("content"))
    rows.write.parquet(folder)
    source = spark.read.parquet(folder)

    def cut(first_rows=waves.FIRST_ROWS, **options):
        monkeypatch.setattr(waves, "FIRST_ROWS", first_rows)
        plan = plan_write(source, table, ["id"], {"embedding": dino}, WriteOptions(**options), None)
        survey = survey_source(spark, plan, source, has_table=False)
        try:
            return list(cut_waves(survey, ["id"], Pace(plan)))
        finally:
            survey.release()

    return cut


def test_waves_of_new_rows_end_where_a_file_of_the_source_ends(cut):
    made = cut(first_rows=8)
    assert [(wave.count, len(wave.source_files)) for wave in made] == [(6, 1)] * 3
    assert {file for wave in made for file in wave.source_files} == {
        file for wave in cut() for file in wave.source_files
    }
    ids = [number for wave in made for number in wave.rows["id"].to_pylist()]
    assert sorted(ids) == list(range(18))


def test_a_wave_ends_within_a_file_that_is_longer_than_half_of_it(cut):
    assert [wave.count for wave in cut(first_rows=5)] == [5, 5, 5, 3]


def test_a_chosen_number_of_rows_is_kept(cut):
    assert [wave.count for wave in cut(rows_per_commit=8)] == [8, 8, 2]


def test_the_next_wave_is_prepared_before_this_one_is_written(
    read_photos, dino, table, monkeypatch
):
    compute_rows = wave_writer.compute_rows
    prepared = threading.Semaphore(0)
    # The first of three waves waits for its own rows and the second's, which waits for the third's.
    counts, was_prepared = iter([2, 1, 0]), []

    def compute(*arguments):
        rows = compute_rows(*arguments)
        prepared.release()
        return rows

    def reach(point):
        if point == "before merge":
            was_prepared.extend(prepared.acquire(timeout=120) for _ in range(next(counts)))

    monkeypatch.setattr(wave_writer, "compute_rows", compute)
    monkeypatch.setattr(wave_writer, "reach", reach)
    result = write_vision_columns(
        read_photos(), table, ["path"], {"embedding": dino}, rows_per_commit=3
    )
    assert result.computed_rows == 7
    assert was_prepared == [True] * 3
