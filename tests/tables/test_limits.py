"""A run says before what it will do, and ends where it is told to, with what is left."""

from pathlib import Path

from encoded_images import encode, photo
from spark_vision import plan_vision_columns, write_vision_columns
from spark_vision.tables import waves
from spark_vision.tables.waves import Pace
from spark_vision.tables.write_options import WriteOptions
from spark_vision.tables.write_plan import plan_write


def test_a_dry_run_counts_rows_by_reason_and_changes_nothing(
    spark, photos, read_photos, dino, table, tmp_path, count_forwards, count_decodes
):
    columns = {"embedding": dino}
    before = plan_vision_columns(read_photos(), table, ["path"], columns, rows_per_commit=3)
    assert before.is_new
    assert before.reasons == {"embedding": {"new": 7}}
    assert (before.pending_rows, before.wave_count, before.existing_rows) == (7, 3, 0)
    assert before.source_bytes == sum(file.stat().st_size for file in photos.iterdir())
    assert not Path(table).exists()
    assert count_forwards() == count_decodes() == 0

    write_vision_columns(read_photos(), table, ["path"], columns)
    (photos / "1.jpg").write_bytes(encode(photo(80, 70, seed=77), "JPEG"))
    (photos / "2.jpg").unlink()
    (photos / "new.jpg").write_bytes(encode(photo(50, 50, seed=99), "JPEG"))
    both = {"embedding": dino, "other": dino}
    after = plan_vision_columns(read_photos(), table, ["path"], both, retry="failed")
    assert after.reasons == {
        "embedding": {"new": 1, "changed": 1, "failed": 1},
        "other": {"new": 1, "not filled in": 6},
    }
    assert (after.pending_rows, after.wave_count, after.existing_rows, after.missing_rows) == (
        7,
        None,
        6,
        1,
    )
    assert "other" not in spark.read.format("delta").load(table).columns


def test_a_run_ends_after_as_many_rows_as_it_may_have(
    spark, read_photos, dino, table, count_forwards
):
    def write(**options):
        result = write_vision_columns(
            read_photos(), table, ["path"], {"embedding": dino}, rows_per_commit=2, **options
        )
        return result.computed_rows, result.remaining_rows

    assert write(max_rows=3) == (3, 4)
    # The wave at work is done.
    assert write(max_seconds=0.001) == (2, 2)
    assert write() == (2, 0)
    assert count_forwards() == 6


def test_a_wave_takes_a_minute_and_a_half_by_the_rate_so_far(read_photos, dino, table):
    def pace_of(**options):
        write = plan_write(
            read_photos(), table, ["path"], {"embedding": dino}, WriteOptions(**options), None
        )
        return Pace(write)

    sized = pace_of()
    assert sized.rows == waves.FIRST_ROWS
    sized.take_account(sized.rows, 60.0)
    assert sized.rows == waves.FIRST_ROWS * 1.5
    sized.take_account(sized.rows, 0.5)
    assert sized.rows == waves.FIRST_ROWS * 1.5 * 8
    sized.take_account(10, 900.0)
    assert sized.rows == 1
    fixed = pace_of(rows_per_commit=5, max_rows=7)
    assert fixed.rows == 5
    fixed.take_account(5, 1.0)
    assert (fixed.rows, fixed.is_over) == (2, False)
    fixed.take_account(2, 1.0)
    assert fixed.is_over


def test_a_table_of_an_older_version_is_written_on(spark, read_photos, dino, table):
    columns = {"embedding": dino}
    write_vision_columns(read_photos().filter("path LIKE '%/1.jpg'"), table, ["path"], columns)
    # What this package once set, and the folder where it once kept rows.
    spark.sql(
        f"ALTER TABLE delta.`{table}` SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true', "
        "'delta.autoOptimize.optimizeWrite' = 'true', 'delta.autoOptimize.autoCompact' = 'true')"
    )
    stage = Path(table) / "_spark_vision" / "0123"
    stage.mkdir(parents=True)
    (stage / "wave-0.json").write_text("{}")
    assert write_vision_columns(read_photos(), table, ["path"], columns).computed_rows == 6
    again = write_vision_columns(
        read_photos(), table, ["path"], {**columns, "other": dino}, rows_per_commit=2
    )
    assert again.statuses == {"embedding": {}, "other": {"ok": 6, "not_an_image": 1}}
    rows = spark.read.format("delta").load(table).collect()
    assert len(rows) == 7
    assert all(row["embedding"] == row["other"] for row in rows)
