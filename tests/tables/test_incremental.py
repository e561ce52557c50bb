"""Only what is new, changed, not filled in yet, or to be tried again is computed, each row once."""

import json
from dataclasses import replace

import pytest
from pyspark.sql import functions as F

from encoded_images import encode, photo
from spark_vision import ClipTextEmbedding, plan_vision_columns, write_vision_columns
from spark_vision.errors import SparkVisionError, TableError
from spark_vision.tables.session_settings import METADATA, labelled


@pytest.fixture
def read_rows(spark, table):
    """The table's rows by the file name of their path."""

    def rows():
        read = spark.read.format("delta").load(table).collect()
        return {row["path"].rsplit("/")[-1]: row for row in read}

    return rows


def operations(spark, table):
    rows = spark.sql(f"DESCRIBE HISTORY delta.`{table}`").orderBy("version").collect()
    return [row["operation"] for row in rows]


def labels(spark, table, start=0):
    """Operation and `userMetadata` of each commit."""
    rows = spark.sql(f"DESCRIBE HISTORY delta.`{table}`").orderBy("version").collect()
    return [(row["operation"], row["userMetadata"]) for row in rows[start:]]


def files_of(folder):
    return sorted(str(file) for file in folder.rglob("*") if file.is_file())


def test_a_run_with_nothing_to_do_computes_and_writes_nothing(
    spark, read_photos, dino, table, tmp_path, count_forwards, count_decodes
):
    write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    files, done = files_of(tmp_path / "vectors"), operations(spark, table)
    forwards, decodes = count_forwards(), count_decodes()
    again = write_vision_columns(
        read_photos(), table, ["path"], {"embedding": dino}, delete_missing=True, retry=["timeout"]
    )
    assert (again.computed_rows, again.deleted_rows, again.statuses) == (0, 0, {"embedding": {}})
    assert (count_forwards(), count_decodes()) == (forwards, decodes)
    assert files_of(tmp_path / "vectors") == files
    assert operations(spark, table) == done


def test_changed_and_failed_rows_are_computed_again_and_missing_ones_removed(
    photos, read_photos, read_rows, dino, table, count_forwards
):
    columns = {"embedding": dino}
    write_vision_columns(read_photos(), table, ["path"], columns)
    before = read_rows()
    (photos / "1.jpg").write_bytes(encode(photo(80, 70, seed=77), "JPEG"))
    (photos / "2.jpg").unlink()
    assert count_forwards() == 6

    changed = write_vision_columns(read_photos(), table, ["path"], columns)
    assert (changed.source_rows, changed.existing_rows, changed.computed_rows) == (6, 6, 1)
    assert count_forwards() == 7
    after = read_rows()
    assert set(after) == set(before)
    for name, row in after.items():
        assert (row == before[name]) == (name != "1.jpg")
    assert after["1.jpg"]["embedding"] != before["1.jpg"]["embedding"]
    assert after["1.jpg"]["updated_at"] > before["1.jpg"]["updated_at"]

    for retry, computed in ((["timeout", "http_error"], 0), (["not_an_image"], 1), ("failed", 1)):
        tried = write_vision_columns(read_photos(), table, ["path"], columns, retry=retry)
        assert tried.computed_rows == computed
    assert tried.statuses == {"embedding": {"not_an_image": 1}}
    assert count_forwards() == 7

    removed = write_vision_columns(read_photos(), table, ["path"], columns, delete_missing=True)
    assert (removed.computed_rows, removed.deleted_rows) == (0, 1)
    assert set(read_rows()) == set(before) - {"2.jpg"}
    assert count_forwards() == 7


@pytest.mark.slow
def test_rows_that_a_filter_leaves_out_are_removed_with_a_warning(
    read_photos, read_rows, dino, table, caplog
):
    columns = {"embedding": dino}
    write_vision_columns(read_photos(), table, ["path"], columns)
    some = read_photos().filter("path NOT LIKE '%/2.jpg'")
    said = (
        "delete_missing: the source (path, modificationTime, length, content) is filtered, limited "
        f"or sampled; 1 rows of {table} whose keys it does not have are deleted"
    )

    def warnings():
        found = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
        caplog.clear()
        return [each[: len(said)] for each in found]

    write_vision_columns(some, table, ["path"], columns)
    write_vision_columns(read_photos(), table, ["path"], columns, delete_missing=True)
    assert warnings() == []
    plan_vision_columns(some, table, ["path"], columns, delete_missing=True)
    assert warnings() == [said]
    result = write_vision_columns(some, table, ["path"], columns, delete_missing=True)
    assert warnings() == [said]
    assert (result.deleted_rows, "2.jpg" in read_rows()) == (1, False)
    # Nothing is left to remove.
    write_vision_columns(some, table, ["path"], columns, delete_missing=True)
    assert warnings() == []


def test_a_column_added_later_is_filled_in_in_waves_without_computing_the_others(
    spark, photos, read_photos, read_rows, dino, checkpoints, table, count_forwards
):
    other = replace(dino, model_name=str(checkpoints / "dinov2-other"))
    first = write_vision_columns(
        read_photos(), table, ["path"], {"embedding": dino}, rows_per_commit=4
    )
    assert first.computed_rows == 7
    assert operations(spark, table) == ["CREATE TABLE", "MERGE", "MERGE"]
    before = read_rows()
    assert count_forwards() == 6

    # Alone: the column that is there is not touched, except where its image has changed.
    (photos / "1.jpg").write_bytes(encode(photo(80, 70, seed=77), "JPEG"))
    (photos / "new.jpg").write_bytes(encode(photo(50, 50, seed=99), "JPEG"))
    added = write_vision_columns(
        read_photos(), table, ["path"], {"other": other}, rows_per_commit=3
    )
    assert added.computed_rows == 8
    assert added.statuses == {"other": {"ok": 7, "not_an_image": 1}}
    assert count_forwards() == 6 + 7
    after = read_rows()
    for name, row in after.items():
        assert (row["other"] is not None) == (name != "text.jpg")
        assert row["embedding"] == (
            before[name]["embedding"] if name in before and name != "1.jpg" else None
        )
    assert after["1.jpg"]["embedding_status"] is None
    properties = dict(spark.sql(f"SHOW TBLPROPERTIES delta.`{table}`").collect())
    assert properties["delta.constraints.other_dimension"].endswith("= 48")

    # Both: what the other write could not compute is filled in, and nothing else.
    both = write_vision_columns(read_photos(), table, ["path"], {"embedding": dino, "other": other})
    assert both.statuses == {"embedding": {"ok": 2}, "other": {}}
    assert count_forwards() == 6 + 7 + 2
    filled = read_rows()
    assert all(
        row["embedding"] and row["other"] for name, row in filled.items() if name != "text.jpg"
    )


@pytest.mark.slow
def test_each_commit_says_which_run_and_wave_made_it(spark, photos, read_photos, dino, table):
    def label(result, **more):
        return json.dumps({"spark_vision": {"run": result.run_id, **more}})

    def write(**options):
        return write_vision_columns(
            read_photos(), table, ["path"], {"embedding": dino}, rows_per_commit=4, **options
        )

    first = write()
    assert labels(spark, table) == [
        ("CREATE TABLE", label(first)),
        ("MERGE", label(first, wave=1)),
        ("MERGE", label(first, wave=2)),
    ]
    assert spark.conf.get(METADATA, None) is None
    (photos / "1.jpg").unlink()
    second = write(delete_missing=True, retry="failed")
    assert second.run_id != first.run_id
    assert labels(spark, table, 3) == [
        ("MERGE", label(second, wave=1)),
        ("MERGE", label(second)),
    ]
    spark.conf.set(METADATA, "mine")
    try:
        write(retry="failed")
        assert spark.conf.get(METADATA) == "mine"
    finally:
        spark.conf.unset(METADATA)
    assert labels(spark, table, 5) == [("MERGE", "mine")]


def test_runs_of_one_session_at_once_never_have_each_others_label(spark):
    def said():
        return spark.conf.get(METADATA, None)

    with labelled(spark, "one", 1):
        assert json.loads(said()) == {"spark_vision": {"run": "one", "wave": 1}}
        other = labelled(spark, "other", 7)
        with other:
            assert said() is None
        assert json.loads(said())["spark_vision"]["run"] == "one"
        other = labelled(spark, "other", 7)
        other.__enter__()
    assert json.loads(said())["spark_vision"] == {"run": "other", "wave": 7}
    other.__exit__(None, None, None)
    assert said() is None


def test_another_model_fills_a_column_again_when_asked_to(
    spark, read_photos, read_rows, dino, checkpoints, table, count_forwards
):
    write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    before = read_rows()
    other = replace(dino, model_name=str(checkpoints / "dinov2-other"), pooling="mean")
    with pytest.raises(TableError, match="another column name, or pass recompute=True"):
        write_vision_columns(read_photos(), table, ["path"], {"embedding": other})
    assert read_rows() == before

    again = write_vision_columns(
        read_photos(), table, ["path"], {"embedding": other}, recompute=True
    )
    assert again.computed_rows == 7
    assert count_forwards() == 12
    after = read_rows()
    changed = [name for name, row in after.items() if row["embedding"] != before[name]["embedding"]]
    assert len(changed) == 6
    properties = dict(spark.sql(f"SHOW TBLPROPERTIES delta.`{table}`").collect())
    assert properties["spark_vision.embedding.pooling"] == "mean"
    assert "delta.constraints.embedding_dimension" in properties
    assert write_vision_columns(
        read_photos(), table, ["path"], {"embedding": other}
    ).computed_rows == 0  # fmt: skip


@pytest.mark.slow
def test_a_column_of_images_decoded_in_full_is_not_continued_with_scaled_ones(
    spark, read_photos, dino, table
):
    fast = replace(dino, fast_decode=True)
    write_vision_columns(read_photos(), table, ["path"], {"full": dino})
    with pytest.raises(TableError, match="fast_decode false, but this write has fast_decode true"):
        write_vision_columns(read_photos(), table, ["path"], {"full": fast})
    write_vision_columns(read_photos(), table, ["path"], {"scaled": fast})
    with pytest.raises(TableError, match="fast_decode true, but this write has fast_decode false"):
        write_vision_columns(read_photos(), table, ["path"], {"scaled": dino})


def test_changes_are_noticed_by_bytes_or_by_columns_that_say_so(
    spark, dino, table, tmp_path, count_decodes
):
    image = encode(photo(40, 40), "JPEG")
    rows = spark.createDataFrame([(1, image), (2, image)], "id int, content binary")
    for year in ("2026", "2027"):
        changed = F.lit(f"{year}-01-01 00:00:00").cast("timestamp")
        rows.withColumn("changed", changed).write.parquet(str(tmp_path / year))

    def write(year, place, **options):
        source = spark.read.parquet(str(tmp_path / year))
        return write_vision_columns(
            source, place, ["id"], {"embedding": dino}, **options
        ).computed_rows

    assert write("2026", table) == 2
    assert write("2027", table) == 0

    marked, by_column = f"{table}-marked", {"version_columns": ["changed"]}
    assert write("2026", marked, **by_column) == 2
    zone = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", "Asia/Tokyo")
    try:
        assert write("2026", marked, **by_column) == 0
    finally:
        spark.conf.set("spark.sql.session.timeZone", zone)
    assert write("2027", marked, **by_column) == 2
    assert count_decodes() == 6
    with pytest.raises(TableError, match=r"use version_columns=\['changed'\]"):
        write("2027", marked)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"retry": ["ok"]}, "retry got 'ok'; allowed: 'failed'"),
        ({"retry": "timeouts"}, "retry got 'timeouts'"),
        ({"rows_per_commit": 0}, "rows_per_commit got 0"),
        ({"rows_per_comit": 5}, "no option 'rows_per_comit'; allowed: image_column"),
        ({"version_columns": ["nowhere"]}, "no column 'nowhere', the version column"),
        ({"version_columns": ["content"]}, "version column content has the type binary"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused(read_photos, dino, table, option, said):
    with pytest.raises(SparkVisionError, match=said):
        write_vision_columns(read_photos(), table, ["path"], {"embedding": dino}, **option)


@pytest.mark.parametrize(("option", "said"), [("delete_missing", "remove"), ("recompute", "empty")])
def test_an_empty_source_does_not_empty_the_table(
    read_photos, read_rows, dino, table, option, said
):
    write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    before = read_rows()
    nothing = read_photos().filter("false")
    with pytest.raises(TableError, match=f"the source has no rows, .* would {said} all 7"):
        write_vision_columns(nothing, table, ["path"], {"embedding": dino}, **{option: True})
    assert read_rows() == before


@pytest.mark.slow
def test_recompute_says_which_rows_it_leaves_empty(read_photos, read_rows, dino, table, caplog):
    write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    some = read_photos().filter(F.col("path").like("%/1.jpg"))
    result = write_vision_columns(some, table, ["path"], {"embedding": dino}, recompute=True)
    assert result.computed_rows == 1
    assert "6 rows of" in caplog.text
    assert [name for name, row in read_rows().items() if row["embedding"]] == ["1.jpg"]


def test_a_row_has_one_image_in_a_table(spark, dino, table):
    data = [(1, encode(photo(40, 40), "PNG"), encode(photo(50, 40), "PNG"))]
    source = spark.createDataFrame(data, "id int, front binary, back binary")
    write_vision_columns(source, table, ["id"], {"front_vector": dino}, image_column="front")
    with pytest.raises(TableError, match=r"read the image of a row from front.*from back"):
        write_vision_columns(source, table, ["id"], {"back_vector": dino}, image_column="back")
    (row,) = spark.read.format("delta").load(table).collect()
    assert row["front_vector"]


@pytest.mark.slow
def test_images_join_a_table_that_texts_have_made(spark, read_photos, checkpoints, dino, table):
    rows = read_photos().filter(F.col("path").like("%/1.jpg")).withColumn("text", F.lit("a circle"))
    clip = ClipTextEmbedding(model_name=str(checkpoints / "clip"))
    write_vision_columns(rows, table, ["path"], {"words": clip})
    assert write_vision_columns(rows, table, ["path"], {"embedding": dino}).computed_rows == 1
    (row,) = spark.read.format("delta").load(table).collect()
    assert len(row["words"])
    assert len(row["embedding"])
    with pytest.raises(TableError, match="detects that an image changed by modificationTime"):
        write_vision_columns(rows, table, ["path"], {"embedding": dino}, version_columns=["length"])


def test_a_name_that_differs_in_case_alone_is_refused_and_leaves_nothing(
    spark, read_photos, dino, table
):
    write_vision_columns(read_photos(), table, ["path"], {"embedding": dino})
    with pytest.raises(TableError, match="has the column embedding, but this write calls it Emb"):
        write_vision_columns(read_photos(), table, ["path"], {"Embedding": dino})
    properties = spark.sql(f"SHOW TBLPROPERTIES delta.`{table}`").collect()
    assert not [row["key"] for row in properties if "Embedding" in row["key"]]
