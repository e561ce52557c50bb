"""A table grows: by its owner's columns, by kept ones, by wider keys; what is there stays."""

import pytest
from pyspark.sql import functions as F

from encoded_images import encode, photo
from spark_vision import write_vision_columns
from spark_vision.errors import TableError
from spark_vision.tables import table_layout as layout


@pytest.fixture
def rows(spark):
    """Three images with numbers and names."""
    data = [
        (number, f"name {number}", encode(photo(48, 40, seed=number), "JPEG"))
        for number in range(3)
    ]
    return spark.createDataFrame(data, "id int, name string, content binary")


def rows_of(spark, table):
    return {row["id"]: row for row in spark.read.format("delta").load(table).collect()}


@pytest.mark.slow
def test_columns_of_the_tables_owner_are_left_alone(spark, rows, dino, table):
    columns = {"embedding": dino}
    write_vision_columns(rows.filter("id < 2"), table, ["id"], columns)
    spark.sql(f"ALTER TABLE delta.`{table}` ADD COLUMNS (label string)")
    spark.sql(f"UPDATE delta.`{table}` SET label = 'mine'")
    changed = rows.withColumn("content", F.when(F.col("id") > 0, F.col("content")))
    assert write_vision_columns(changed, table, ["id"], columns).computed_rows == 2
    assert {key: row["label"] for key, row in rows_of(spark, table).items()} == {
        0: "mine", 1: "mine", 2: None,
    }  # fmt: skip
    with pytest.raises(TableError, match="has the column label as string"):
        write_vision_columns(rows, table, ["id"], {"label": dino})


@pytest.mark.slow
def test_kept_columns_are_added_renamed_and_refreshed_without_a_model(
    spark, rows, dino, table, count_forwards
):
    columns = {"embedding": dino}
    write_vision_columns(rows, table, ["id"], columns)
    before = rows_of(spark, table)
    assert count_forwards() == 3

    added = write_vision_columns(rows, table, ["id"], columns, keep=["name"])
    assert (added.computed_rows, added.refreshed_rows, added.statuses) == (0, 3, {"embedding": {}})
    after = rows_of(spark, table)
    assert {row["name"] for row in after.values()} == {"name 0", "name 1", "name 2"}
    assert all(after[key]["embedding"] == row["embedding"] for key, row in before.items())

    renamed = rows.withColumnRenamed("name", "title")
    again = write_vision_columns(renamed, table, ["id"], columns, keep=["title"])
    assert again.refreshed_rows == 3
    changed = renamed.withColumn("title", F.when(F.col("id") > 0, F.lit("new")))
    assert write_vision_columns(changed, table, ["id"], columns, keep=["title"]).refreshed_rows == 0
    options = {"keep": ["title"], "refresh_kept": True}
    assert write_vision_columns(changed, table, ["id"], columns, **options).refreshed_rows == 3
    assert write_vision_columns(changed, table, ["id"], columns, **options).refreshed_rows == 0
    found = {key: (row["name"], row["title"]) for key, row in rows_of(spark, table).items()}
    assert found == {0: ("name 0", None), 1: ("name 1", "new"), 2: ("name 2", "new")}
    assert count_forwards() == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"), [("int", "bigint"), pytest.param("bigint", "int", marks=pytest.mark.slow)]
)
def test_whole_number_keys_of_another_width_are_the_same_keys(
    spark, rows, dino, table, first, second
):
    columns = {"embedding": dino}
    write_vision_columns(rows.withColumn("id", F.col("id").cast(first)), table, ["id"], columns)
    other = rows.withColumn("id", F.col("id").cast(second))
    assert write_vision_columns(other, table, ["id"], columns).computed_rows == 0
    assert dict(spark.read.format("delta").load(table).dtypes)["id"] == first
    if second == "bigint":
        large = other.withColumn("id", F.lit(1 << 40))
        with pytest.raises(Exception, match=f"key id is int in the table.*{1 << 40}"):
            write_vision_columns(large.limit(1), table, ["id"], columns)


@pytest.mark.parametrize(
    "layout", ["partition_by", pytest.param("cluster_by", marks=pytest.mark.slow)]
)
def test_a_new_table_is_laid_out_as_it_is_asked_for(spark, rows, dino, table, layout):
    properties = {"delta.enableChangeDataFeed": "false", "team": "search"}
    options = {layout: ["name"], "table_properties": properties, "keep": ["name"]}
    write_vision_columns(rows, table, ["id"], {"embedding": dino}, **options)
    detail = spark.sql(f"DESCRIBE DETAIL delta.`{table}`").first()
    listed = "partitionColumns" if layout == "partition_by" else "clusteringColumns"
    assert detail[listed] == ["name"]
    assert detail["properties"].items() >= properties.items()
    assert detail["properties"]["delta.isolationLevel"] == "Serializable"
    assert (
        write_vision_columns(rows, table, ["id"], {"embedding": dino}, **options).computed_rows == 0
    )


@pytest.mark.slow
def test_a_tables_files_are_compacted_when_it_is_asked_for(spark, rows, dino, table):
    def write(**options):
        write_vision_columns(
            rows.filter("id < 2"), table, ["id"], {"embedding": dino}, rows_per_commit=1, **options
        )
        detail = spark.sql(f"DESCRIBE DETAIL delta.`{table}`").first()
        last = spark.sql(f"DESCRIBE HISTORY delta.`{table}` LIMIT 1").first()
        return detail["numFiles"], last["version"]

    file_count, version = write()
    assert file_count == rows.filter("id < 2").count() > 1
    # Nothing was written, so nothing is compacted.
    assert write(optimize=True) == (file_count, version)
    spark.sql(f"DELETE FROM delta.`{table}` WHERE id = 0")
    assert write(optimize=True)[0] == 1
    assert sorted(rows_of(spark, table)) == [0, 1]


def test_a_kept_time_is_copied_again_where_its_microseconds_have_changed(spark, rows, dino, table):
    def write(time):
        timed = rows.withColumn("taken", F.lit(f"2026-01-01 10:00:{time}").cast("timestamp"))
        return write_vision_columns(
            timed, table, ["id"], {"embedding": dino}, keep=["taken"], refresh_kept=True
        )

    assert write("00.123").computed_rows == 3
    assert write("00.123456").refreshed_rows == 3
    assert write("00.123456").refreshed_rows == 0


@pytest.mark.parametrize("is_killed", [False, True])
def test_an_empty_table_that_its_owner_made_is_filled(
    spark, rows, dino, table, is_killed, monkeypatch, kill_at
):
    spark.sql(f"CREATE TABLE delta.`{table}` (id int, name string, mine date) USING delta")
    columns = {"embedding": dino}
    if is_killed:
        # The table has this write's properties, and not yet its columns.
        kill_at(layout, "_ddl", SystemError("killed"))
        with pytest.raises(SystemError, match="killed"):
            write_vision_columns(rows, table, ["id"], columns, keep=["name"])
        monkeypatch.undo()
    result = write_vision_columns(rows, table, ["id"], columns, keep=["name"])
    assert result.computed_rows == 3
    found = rows_of(spark, table)
    assert {row["name"] for row in found.values()} == {"name 0", "name 1", "name 2"}
    assert all(row["embedding"] and row["mine"] is None for row in found.values())
    assert write_vision_columns(rows, table, ["id"], columns, keep=["name"]).computed_rows == 0
