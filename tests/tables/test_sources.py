"""What a wave reads: its source's files and no other, once, by all slots, also while it changes."""

import pytest
from pyspark.sql import Window
from pyspark.sql import functions as F

from encoded_images import encode, photo
from spark_vision import write_vision_columns
from spark_vision.tables import wave_writer
from spark_vision.tables.source_files import file_column, is_narrowed
from spark_vision.tables.waves import count_slots


@pytest.fixture
def images(spark):
    """Makes rows with images."""

    def make(*numbers):
        data = [(number, encode(photo(48, 40, seed=number), "JPEG")) for number in numbers]
        return spark.createDataFrame(data, "id int, content binary")

    return make


@pytest.fixture
def between_waves(monkeypatch):
    """Runs something once, after the first wave's commit."""

    def run_between(work):
        commit_wave = wave_writer.commit_wave

        def commit(*args):
            count = commit_wave(*args)
            monkeypatch.undo()
            work()
            return count

        monkeypatch.setattr(wave_writer, "commit_wave", commit)

    return run_between


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("OPTIMIZE delta.`{}`", id="optimized", marks=pytest.mark.slow),
        pytest.param(
            "UPDATE delta.`{}` SET content = unhex('00') WHERE id = {}",
            id="updated",
            marks=pytest.mark.slow,
        ),
        pytest.param("DELETE FROM delta.`{}` WHERE id = {}", id="deleted from"),
    ],
)
def test_a_delta_source_may_be_rewritten_between_waves(
    spark, images, dino, table, tmp_path, between_waves, count_forwards, statement
):
    place = str(tmp_path / "source")
    for number in range(0, 6, 2):
        images(number, number + 1).coalesce(1).write.format("delta").mode("append").save(place)
    source = spark.read.format("delta").load(place)
    changed = []

    def change():
        # A row that is not in the table yet.
        written = {row["id"] for row in spark.read.format("delta").load(table).collect()}
        changed.append(max(set(range(6)) - written))
        spark.sql(statement.format(place, changed[0])).collect()

    between_waves(change)
    result = write_vision_columns(source, table, ["id"], {"embedding": dino}, rows_per_commit=2)
    expected = {row["id"] for row in spark.read.format("delta").load(place).collect()}
    statuses = {
        row["id"]: row["embedding_status"]
        for row in spark.read.format("delta").load(table).collect()
    }
    assert set(statuses) == expected
    assert result.computed_rows == len(expected)
    assert statuses.get(changed[0]) == (
        "not_an_image" if "UPDATE" in statement else None if "DELETE" in statement else "ok"
    )
    assert count_forwards() == len(expected) - ("UPDATE" in statement)


@pytest.mark.slow
def test_a_source_that_is_rewritten_is_recomputed_once(
    spark, images, dino, table, tmp_path, between_waves, count_forwards
):
    place = str(tmp_path / "source")
    for number in range(0, 6, 2):
        images(number, number + 1).coalesce(1).write.format("delta").mode("append").save(place)
    source = spark.read.format("delta").load(place)
    columns = {"embedding": dino}
    write_vision_columns(source, table, ["id"], columns)
    # Each file of the table is a wave of its own.
    between_waves(lambda: spark.sql(f"OPTIMIZE delta.`{place}`").collect())
    result = write_vision_columns(source, table, ["id"], columns, rows_per_commit=1, recompute=True)
    assert result.computed_rows == 6
    assert count_forwards() == 12
    assert spark.read.format("delta").load(table).filter("embedding IS NULL").count() == 0


@pytest.mark.slow
def test_a_source_that_the_session_holds_fills_in_a_second_column(
    spark, images, dino, table, tmp_path
):
    place = str(tmp_path / "source")
    images(*range(4)).write.parquet(place)
    source = spark.read.parquet(place).cache()
    try:
        assert source.count() == 4
        write_vision_columns(source, table, ["id"], {"embedding": dino})
        both = {"embedding": dino, "other": dino}
        assert write_vision_columns(source, table, ["id"], both).computed_rows == 4
    finally:
        source.unpersist()


def test_many_urls_in_one_file_are_computed_by_all_slots(
    spark, photos, dino, table, tmp_path, forwards_folder, monkeypatch
):
    place = str(tmp_path / "urls")
    urls = [(str(file),) for file in sorted(photos.iterdir())]
    spark.createDataFrame(urls, "content string").coalesce(1).write.parquet(place)
    tasks = []
    compute_rows = wave_writer.compute_rows

    def watched(*args):
        rows = compute_rows(*args)
        tasks.append(rows.select(F.spark_partition_id()).distinct().count())
        return rows

    monkeypatch.setattr(wave_writer, "compute_rows", watched)
    source = spark.read.parquet(place)
    assert source.rdd.getNumPartitions() == 1
    result = write_vision_columns(source, table, ["content"], {"embedding": dino})
    assert result.computed_rows == len(urls)
    # Several tasks per slot, so that progress is reported as they end: here a row for each.
    assert tasks == [min(4 * count_slots(spark), len(urls))] == [7]


def test_sources_of_several_sides_do_not_name_files(spark, images, tmp_path, capfd):
    place = str(tmp_path / "source")
    images(1, 2).write.parquet(place)
    left = spark.read.parquet(place)
    right = spark.read.parquet(place).withColumnRenamed("id", "other").drop("content")
    joined = left.join(right, left["id"] == right["other"], "left").select("id", "content")
    assert file_column(joined) is None
    assert file_column(left.union(left)) is None
    assert file_column(left.groupBy("id").count()) is None
    for of_several_rows in (
        left.distinct(),
        left.dropDuplicates(["id"]),
        left.limit(1),
        left.sample(0.5),
        left.withColumn("place", F.row_number().over(Window.orderBy("id"))),
        spark.sql(f"SELECT DISTINCT id FROM parquet.`{place}`"),
    ):
        assert file_column(of_several_rows) is None
    for of_one_row in (
        left,
        left.filter("id > 1").select("id").orderBy("id"),
        left.repartition(2).withColumn("part", F.explode(F.lit([1, 2]))),
        left.alias("named"),
    ):
        assert file_column(of_one_row) is not None
    # An error that is caught is not printed.
    assert not capfd.readouterr().err


def test_a_source_says_whether_rows_are_left_out(spark, images, tmp_path):
    place = str(tmp_path / "source")
    images(1, 2).write.parquet(place)
    rows = spark.read.parquet(place)
    some = rows.filter("id > 1")
    some.createOrReplaceTempView("some_images")
    for narrowed in (
        some,
        some.select("id"),
        rows.limit(1),
        rows.sample(0.5),
        rows.dropna(),
        rows.union(some),
        spark.sql(f"SELECT id FROM parquet.`{place}` WHERE id > 1"),
    ):
        assert is_narrowed(narrowed)
    for whole in (rows, rows.select("id"), rows.dropDuplicates(), spark.table("some_images")):
        assert not is_narrowed(whole)


def test_what_the_user_has_cached_stays_cached(spark, images, dino, table, tmp_path):
    images(1, 2, 3).write.parquet(str(tmp_path / "source"))
    source = spark.read.parquet(str(tmp_path / "source"))
    source = source.union(source.filter("id < 0")).withColumn("key", F.expr("uuid()")).cache()
    columns = {"embedding": dino}
    for computed in (3, 0):
        result = write_vision_columns(source, table, ["key"], columns, rows_per_commit=1)
        assert result.computed_rows == computed
    source.unpersist()


@pytest.mark.parametrize("kind", ["join", pytest.param("union", marks=pytest.mark.slow)])
def test_a_source_of_several_sides_is_computed_in_waves_and_read_once(
    spark, images, dino, table, tmp_path, kind, count_forwards
):
    places = [str(tmp_path / name) for name in ("one", "other")]
    read = tmp_path / "read"
    read.mkdir()
    folder = str(read)
    images(*range(3)).write.parquet(places[0])
    images(*range(3, 6)).write.parquet(places[1])

    @F.udf("binary")
    def counted(content):
        import uuid
        from pathlib import Path

        (Path(folder) / uuid.uuid4().hex).touch()
        return content

    counted = counted.asNondeterministic()
    one, other = (spark.read.parquet(place) for place in places)
    if kind == "union":
        source = one.union(other).select("id", counted("content").alias("content"))
        count = 6
    else:
        ids = other.select((F.col("id") - 3).alias("other"))
        source = one.join(ids, one["id"] == ids["other"], "left")
        source = source.select("id", counted("content").alias("content"))
        count = 3
    result = write_vision_columns(source, table, ["id"], {"embedding": dino}, rows_per_commit=1)
    assert result.computed_rows == count_forwards() == count
    # The survey of a new table reads no image.
    assert len(list(read.iterdir())) == count


def test_a_wave_looks_for_keys_in_its_own_range_alone(
    spark, images, dino, table, tmp_path, monkeypatch
):
    write_vision_columns(images(*range(100, 104)), table, ["id"], {"embedding": dino})
    folder = tmp_path / "vectors"
    hidden = list(folder.glob("*.parquet"))
    commit_wave = wave_writer.commit_wave

    def commit(*args):
        # What a wave does not read may as well be gone.
        for file in hidden:
            file.rename(file.with_suffix(".hidden"))
        try:
            return commit_wave(*args)
        finally:
            for file in hidden:
                file.with_suffix(".hidden").rename(file)

    monkeypatch.setattr(wave_writer, "commit_wave", commit)
    source = images(*range(4), *range(100, 104))
    result = write_vision_columns(source, table, ["id"], {"embedding": dino}, rows_per_commit=2)
    assert (result.existing_rows, result.computed_rows) == (4, 4)
    assert spark.read.format("delta").load(table).count() == 8
