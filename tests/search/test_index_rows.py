"""What an index takes of a table, and what it does not, by rule with counts and examples."""

from functools import reduce

import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from encoded_images import encode, photo
from spark_vision import ImageViTEmbedding, index_ready, write_vision_columns
from spark_vision.errors import TableError


@pytest.fixture(scope="module")
def table(spark, checkpoints, tmp_path_factory):
    """Six good rows, one without a vector, and rows that others wrote with what no index takes."""
    place = str(tmp_path_factory.mktemp("index") / "vectors")
    images = [encode(photo(48, 40, seed=number), "JPEG") for number in range(6)]
    rows = [(f"id-{number}", image, "a label") for number, image in enumerate([*images, b"text"])]
    source = spark.createDataFrame(rows, "id string, content binary, label string")
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    write_vision_columns(source, place, ["id"], {"embedding": dino}, keep=["label"])

    good = spark.read.format("delta").load(place).filter("id = 'id-0'")
    value, label = F.col("embedding"), F.col("label")

    def filled_with(number):
        return F.transform(value, lambda _: F.lit(number).cast("float"))

    bad = [
        ("nan", filled_with(float("nan")), label),
        ("infinite", filled_with(float("inf")), label),
        ("zero", filled_with(0.0), label),
        ("x" * 600, value, label),
        ("grün", value, label),
        ("id-1", value, label),
        ("long", value, F.repeat(label, 20_000)),
        ("unlabelled", value, F.lit(None).cast("string")),
    ]
    changed = [
        good.withColumns({"id": F.lit(name), "embedding": vector, "label": said})
        for name, vector, said in bad
    ]
    reduce(DataFrame.unionByName, changed).write.format("delta").mode("append").save(place)
    return place


BROKEN = {"unique_id": 2, "finite": 2, "no_zero_vector": 1}
METADATA = {"metadata_size": 1, "no_null_metadata": 1}
TARGETS = {
    "databricks_ai_search": {**BROKEN, "row_size": 1},
    "pinecone": {
        **BROKEN,
        "id_length": 1,
        "ascii_id": 1,
        "metadata_size": 1,
        "no_null_metadata": 1,
    },
    "milvus": {**BROKEN, "metadata_size": 1, "no_null_metadata": 1},
}


@pytest.mark.parametrize("target", TARGETS)
def test_what_fails_is_listed_by_rule_and_the_rest_can_be_indexed(table, target):
    report = index_ready(table, "embedding", target, metadata=["label"])
    assert {each.rule: each.affected_rows for each in report.problems} == TARGETS[target]
    assert not report.is_ready
    assert report.not_computed == {"not_an_image": 1}
    ids = {row["id"] for row in report.rows.collect()}
    assert len(ids) == report.ready_rows == report.rows.count()
    assert {"id-0", "id-2", "id-3", "id-4", "id-5"} <= ids
    assert not ids & {"id-1", "id-6", "nan", "infinite", "zero", "long"}
    assert "finite: 2 rows, such as id=" in str(report)
    assert report.rows.columns == ["id", "vector", "label"]


def test_a_table_that_an_index_cannot_take_gives_no_rows(spark, table, checkpoints, tmp_path):
    place = str(tmp_path / "vectors")
    source = spark.createDataFrame([(1, True, b"x")], "_id int, part boolean, content binary")
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    write_vision_columns(source, place, ["_id", "part"], {"embedding": dino})
    spark.sql(
        f"ALTER TABLE delta.`{place}` SET TBLPROPERTIES ('delta.enableChangeDataFeed'='false')"
    )
    report = index_ready(place, "embedding", "databricks_ai_search", metadata=["source_hash"])
    assert {each.rule for each in report.problems} == {
        "one_id", "change_data_feed", "metadata_type", "reserved_name",
    }  # fmt: skip
    assert report.rows.count() == report.ready_rows == 0


def test_the_change_data_feed_gives_an_index_only_what_changed(
    spark, dino, photos, read_photos, tmp_path
):
    place = str(tmp_path / "vectors")
    write_vision_columns(read_photos(), place, ["path"], {"embedding": dino})
    version = spark.sql(f"DESCRIBE HISTORY delta.`{place}`").agg(F.max("version")).first()[0]
    (photos / "1.jpg").write_bytes(encode(photo(80, 70, seed=77), "JPEG"))
    (photos / "2.jpg").unlink()
    (photos / "new.jpg").write_bytes(encode(photo(50, 50, seed=99), "JPEG"))
    write_vision_columns(read_photos(), place, ["path"], {"embedding": dino}, delete_missing=True)
    feed = spark.read.option("readChangeFeed", True).option("startingVersion", version + 1)
    changes = feed.format("delta").load(place).filter("_change_type != 'update_preimage'")
    assert {(row["path"].rsplit("/")[-1], row["_change_type"]) for row in changes.collect()} == {
        ("1.jpg", "update_postimage"), ("2.jpg", "delete"), ("new.jpg", "insert"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"target": "faiss"}, "allowed: databricks_ai_search, pinecone, milvus"),
        ({"column": "caption"}, "no column 'caption' of vectors"),
        ({"metadata": ["nowhere"]}, "no column 'nowhere'"),
        ({"table": "/nowhere"}, "was not written by write_vision_columns"),
    ],
    ids=str,
)
def test_what_is_not_there_is_refused(table, arguments, said):
    given = {"table": table, "column": "embedding", "target": "milvus", **arguments}
    with pytest.raises(TableError, match=said):
        index_ready(**given)
