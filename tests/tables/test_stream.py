"""A stream writes each row once: files as they come, and a table's inserts, updates and deletes."""

from pathlib import Path

import pytest
from pyspark.sql import functions as F

from encoded_images import encode, photo
from spark_vision import stream_vision_columns, write_vision_batch, write_vision_columns
from spark_vision.cli.inputs import stream_images
from spark_vision.errors import InvalidOptionError, TableError
from spark_vision.tables import named_points as points
from spark_vision.tables import stream, wave_writer, write

SECONDS = 600


@pytest.fixture
def follow(spark, dino, table, tmp_path):
    """Streams what there is of a source into the table; gives the batches' sizes."""

    def run(source, key="path"):
        query = stream_vision_columns(
            source,
            table,
            [key],
            {"embedding": dino},
            checkpoint_location=str(tmp_path / "checkpoint"),
        )
        try:
            assert query.awaitTermination(SECONDS)
        finally:
            query.stop()
        return [each.numInputRows for each in query.recentProgress if each.numInputRows]

    return run


@pytest.fixture
def place(spark, tmp_path):
    """Where an empty table of images is that says what changes in it."""
    place = str(tmp_path / "source")
    spark.sql(
        f"CREATE TABLE delta.`{place}` (id int, content binary) USING delta "
        "TBLPROPERTIES ('delta.enableChangeDataFeed' = 'true')"
    )
    return place


def rows_of(spark, table, key):
    rows = spark.read.format("delta").load(table).collect()
    found = {row[key]: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_folder_of_files_is_followed_in_batches_each_row_once(
    spark, photos, follow, table, count_forwards, monkeypatch, kill_at
):
    def source():
        return stream_images(spark, str(photos), max_files=4)

    # The batch is in the table, and Spark does not know it.
    error = SystemError("killed between the commit and the checkpoint")
    kill_at(stream, "_write_batch", error, after=True)
    with pytest.raises(Exception, match="killed between"):
        follow(source())
    monkeypatch.undo()
    before = rows_of(spark, table, "path")
    assert len(before) == 4
    # The batch that comes again is not even read.
    assert follow(source()) == [3]
    after = rows_of(spark, table, "path")
    assert len(after) == 7
    assert {path: after[path] for path in before} == before
    assert count_forwards() == 6

    (photos / "new.jpg").write_bytes(encode(photo(50, 50, seed=99), "JPEG"))
    assert follow(source()) == [1]
    assert len(rows_of(spark, table, "path")) == 8
    assert count_forwards() == 7


def test_a_tables_updates_and_deletes_reach_the_vectors(
    spark, follow, table, place, count_forwards
):

    def images(*numbers):
        data = [(number, encode(photo(48, 40, seed=number), "JPEG")) for number in numbers]
        return spark.createDataFrame(data, "id int, content binary")

    def source():
        return stream_images(spark, place, max_files=100)

    images(1, 2, 3, 4).write.format("delta").mode("append").save(place)
    follow(source(), "id")
    before = rows_of(spark, table, "id")
    assert sorted(before) == [1, 2, 3, 4]
    assert count_forwards() == 4

    # Each row meets several changes before the next run: only its last state counts.
    images(5).write.format("delta").mode("append").save(place)
    spark.sql(f"DELETE FROM delta.`{place}` WHERE id IN (2, 5)")
    images(2).write.format("delta").mode("append").save(place)
    spark.sql(f"DELETE FROM delta.`{place}` WHERE id = 3")
    images(77).createOrReplaceTempView("other_image")
    spark.sql(
        f"MERGE INTO delta.`{place}` t USING other_image s ON t.id = 1 "
        "WHEN MATCHED THEN UPDATE SET t.content = s.content"
    )
    follow(source(), "id")
    after = rows_of(spark, table, "id")
    assert sorted(after) == [1, 2, 4]
    assert after[1]["embedding"] != before[1]["embedding"]
    assert (after[2], after[4]) == (before[2], before[4])
    assert count_forwards() == 5


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param("after the commit", marks=pytest.mark.slow),
        "before the commit, and after it",
    ],
)
def test_a_batch_that_is_in_the_table_is_not_written_over_what_came_after_it(
    spark, dino, follow, table, place, count_forwards, monkeypatch, kill_at, killed
):

    def images(**numbers):
        data = [
            (int(key[1:]), encode(photo(48, 40, seed=number), "JPEG"))
            for key, number in numbers.items()
        ]
        return spark.createDataFrame(data, "id int, content binary")

    def source():
        return stream_images(spark, place, max_files=100)

    def write(rows):
        return write_vision_columns(rows, table, ["id"], {"embedding": dino})

    def kill(owner, name, *, after):
        kill_at(owner, name, SystemError("killed"), after=after)
        with pytest.raises(Exception, match="killed"):
            follow(source(), "id")
        monkeypatch.undo()

    images(i1=1, i2=2, i3=3).write.format("delta").mode("append").save(place)
    if killed == "after the commit":
        # A batch that ends with a removal, and one that ends with a wave.
        follow(source(), "id")
        spark.sql(f"DELETE FROM delta.`{place}` WHERE id = 2")
        kill(stream, "_write_batch", after=True)
        write(images(i2=2))
        follow(source(), "id")
        assert sorted(rows_of(spark, table, "id")) == [1, 2, 3]
        images(i4=4).write.format("delta").mode("append").save(place)
    else:
        kill(wave_writer, "commit_wave", after=False)
    kill(stream, "_write_batch", after=True)
    write(images(i1=1, i4=44) if killed == "after the commit" else images(i1=11))
    before, forwards = rows_of(spark, table, "id"), count_forwards()
    follow(source(), "id")
    assert rows_of(spark, table, "id") == before
    assert count_forwards() == forwards
    # The stream goes on.
    images(i5=5).write.format("delta").mode("append").save(place)
    follow(source(), "id")
    assert sorted(rows_of(spark, table, "id")) == sorted({*before, 5})
    assert count_forwards() == forwards + 1


@pytest.mark.slow
@pytest.mark.parametrize("has_feed", [True, False])
def test_a_key_that_comes_twice_in_a_batch_ends_it_or_leaves_its_latest_row(
    spark, dino, table, place, tmp_path, has_feed, count_forwards
):
    if not has_feed:
        spark.sql(
            f"ALTER TABLE delta.`{place}` SET TBLPROPERTIES "
            "('delta.enableChangeDataFeed' = 'false')"
        )
    spark.sql(f"ALTER TABLE delta.`{place}` ADD COLUMNS (at int)")
    data = [
        (number, encode(photo(48, 40, seed=seed), "JPEG"), at)
        for number, seed, at in [(1, 1, 5), (1, 2, 7), (1, 3, 6), (2, 4, 1)]
    ]
    rows = spark.createDataFrame(data, "id int, content binary, at int")
    rows.coalesce(1).write.format("delta").mode("append").save(place)

    def follow(**options):
        stream_vision_columns(
            stream_images(spark, place, max_files=10),
            table,
            ["id"],
            {"embedding": dino},
            checkpoint_location=str(tmp_path / "checkpoint"),
            keep=["at"],
            **options,
        ).awaitTermination(SECONDS)

    with pytest.raises(Exception, match=r"keys must be unique and not null.*id=1"):
        follow()
    # The batch that has failed comes again.
    follow(on_duplicate_keys="latest", latest_by=["at"])
    found = rows_of(spark, table, "id")
    assert {key: row["at"] for key, row in found.items()} == {1: 7, 2: 1}
    assert count_forwards() == 2
    with pytest.raises(InvalidOptionError, match="allowed: 'latest' with the columns"):
        follow(on_duplicate_keys="latest")
    with pytest.raises(TableError, match="no column 'nowhere', the latest_by column"):
        follow(on_duplicate_keys="latest", latest_by=["nowhere"])


@pytest.mark.slow
def test_a_key_that_changes_takes_its_row_along_and_a_null_key_is_refused(
    spark, follow, table, place
):
    data = [(number, encode(photo(48, 40, seed=number), "JPEG")) for number in (1, 2, 3)]
    images = spark.createDataFrame(data, "id int, content binary")
    images.write.format("delta").mode("append").save(place)
    follow(stream_images(spark, place, max_files=100), "id")
    before = rows_of(spark, table, "id")

    # 1 becomes 10, and 2 becomes 1, in one commit.
    spark.sql(f"UPDATE delta.`{place}` SET id = IF(id = 1, 10, 1) WHERE id IN (1, 2)")
    follow(stream_images(spark, place, max_files=100), "id")
    after = rows_of(spark, table, "id")
    assert sorted(after) == [1, 3, 10]
    assert after[10]["embedding"] == pytest.approx(before[1]["embedding"], abs=1e-6)
    assert after[1]["embedding"] == pytest.approx(before[2]["embedding"], abs=1e-6)
    assert after[3] == before[3]

    spark.sql(f"UPDATE delta.`{place}` SET id = NULL WHERE id = 3")
    with pytest.raises(Exception, match=r"keys must be unique and not null.*id=None"):
        follow(stream_images(spark, place, max_files=100), "id")


def test_a_batch_of_ones_own_stream_is_written_once(spark, dino, table, place, count_forwards):
    data = [(number, encode(photo(48, 40, seed=number), "JPEG")) for number in range(4)]
    images = spark.createDataFrame(data, "id int, content binary")

    def write(rows, number):
        session = rows.sparkSession
        write_vision_batch(rows, number, table, ["id"], {"embedding": dino}, app_id="mine")
        return rows_of(session, table, "id")

    assert sorted(write(images.filter("id < 2"), 0)) == [0, 1]
    assert count_forwards() == 2
    spark.sql(f"DELETE FROM delta.`{table}` WHERE id = 0")
    assert sorted(write(images.filter("id < 2"), 0)) == [1]
    assert sorted(write(images.filter("id >= 2"), 1)) == [1, 2, 3]
    assert count_forwards() == 4


@pytest.mark.slow
def test_a_batch_is_written_whole_where_another_writer_has_a_row_of_it_first(
    spark, dino, table, monkeypatch
):
    data = [(key, encode(photo(48, 40, seed=key), "JPEG")) for key in range(4)]
    images = spark.createDataFrame(data, "id int, content binary")
    columns = {"embedding": dino}
    write_vision_columns(images.filter("id = 0"), table, ["id"], columns)
    others = images.filter("id > 0")
    feed = others.select("*", F.lit("insert").alias("_change_type")).union(
        spark.createDataFrame([(0, b"", "delete")], "id int, content binary, _change_type string")
    )
    feed = feed.select("*", F.lit(1).alias("_commit_version"), F.now().alias("_commit_timestamp"))

    def come_first(point):
        if point == "before merge":
            monkeypatch.undo()
            write_vision_columns(others.filter("id = 1"), table, ["id"], columns)

    monkeypatch.setattr(points, "at_point", come_first)
    write_vision_batch(feed, 0, table, ["id"], columns, app_id="mine", rows_per_commit=1)
    assert sorted(rows_of(spark, table, "id")) == [1, 2, 3]


@pytest.mark.slow
def test_a_batch_fills_its_column_where_another_writer_inserts_its_rows_first(
    spark, dino, table, monkeypatch, count_forwards
):
    data = [(key, encode(photo(48, 40, seed=key), "JPEG")) for key in range(2)]
    images = spark.createDataFrame(data, "id int, content binary")
    # Both columns are there, and no rows.
    for name in ("embedding", "other"):
        write_vision_columns(images.filter("id > 9"), table, ["id"], {name: dino})

    def come_first(point):
        if point == "before merge":
            monkeypatch.undo()
            write_vision_columns(images, table, ["id"], {"other": dino})

    monkeypatch.setattr(points, "at_point", come_first)
    batch = {"batch_id": 0, "app_id": "mine"}
    write_vision_batch(images, table=table, keys=["id"], columns={"embedding": dino}, **batch)
    rows = rows_of(spark, table, "id")
    for key in range(2):
        assert rows[key].embedding == rows[key].other is not None
    # Spark repeats it.
    before = count_forwards()
    write_vision_batch(images, table=table, keys=["id"], columns={"embedding": dino}, **batch)
    assert count_forwards() == before


@pytest.mark.slow
def test_where_transactions_cannot_be_read_delta_skips_a_batch_that_is_repeated(
    spark, dino, table, monkeypatch
):
    # As with Spark Connect and on Databricks.
    monkeypatch.setattr(write, "reads_transactions", lambda spark: False)
    monkeypatch.setattr(write, "is_committed", lambda *_: False)
    data = [(key, encode(photo(48, 40, seed=key), "JPEG")) for key in range(2)]
    images = spark.createDataFrame(data, "id int, content binary")
    for _ in range(2):
        write_vision_batch(images, 0, table, ["id"], {"embedding": dino}, app_id="mine")
        spark.sql(f"DELETE FROM delta.`{table}` WHERE id = 1")
    assert sorted(rows_of(spark, table, "id")) == [0]


def test_a_streams_own_columns_are_not_kept(spark, dino, table, tmp_path, place):
    with pytest.raises(TableError, match=r"own columns _commit_version describe no row"):
        stream_vision_columns(
            stream_images(spark, place, max_files=1),
            table,
            ["id"],
            {"embedding": dino},
            checkpoint_location=str(tmp_path / "c"),
            version_columns=["_commit_version"],
        )


def test_what_is_no_stream_is_refused(read_photos, dino, table, tmp_path):
    with pytest.raises(TableError, match=r"read it with spark\.readStream"):
        stream_vision_columns(
            read_photos(),
            table,
            ["path"],
            {"embedding": dino},
            checkpoint_location=str(tmp_path / "c"),
        )


@pytest.mark.parametrize(
    ("trigger", "said"),
    [
        ({"processing_time": "1 minute", "available_now": True}, "processing_time='1 minute' and"),
        ({"available_now": False}, "processing_time=None and available_now=False"),
        ({"processing_time": "1 fortnight"}, "got '1 fortnight'; allowed: an interval"),
        ({"processing_time": " "}, "got ' '; allowed: an interval"),
    ],
)
def test_a_trigger_that_is_not_allowed_is_refused_before_the_table_is_made(
    spark, photos, dino, table, tmp_path, trigger, said
):
    with pytest.raises(InvalidOptionError, match=said):
        stream_vision_columns(
            stream_images(spark, str(photos), max_files=4),
            table,
            ["path"],
            {"embedding": dino},
            checkpoint_location=str(tmp_path / "c"),
            **trigger,
        )
    assert not Path(table).exists()


@pytest.mark.slow
def test_a_stream_with_a_processing_time_runs_until_it_is_stopped(
    spark, photos, dino, table, tmp_path
):
    query = stream_vision_columns(
        stream_images(spark, str(photos), max_files=4),
        table,
        ["path"],
        {"embedding": dino},
        checkpoint_location=str(tmp_path / "c"),
        processing_time="10 milliseconds",
    )
    try:
        query.processAllAvailable()
        assert len(rows_of(spark, table, "path")) == 7
        assert query.isActive
    finally:
        query.stop()
