"""Exact search in Spark: a text, a picture or a vector in, the nearest rows of a table out."""

import numpy as np
import pyspark
import pytest
from pyspark.sql import functions as F

from encoded_images import encode, photo
from spark_vision import (
    ClipImageEmbedding,
    ClipTextEmbedding,
    ImageViTEmbedding,
    embed_text,
    register_functions,
    search_images,
    write_vision_columns,
)
from spark_vision.errors import InputTypeError, InvalidOptionError, TableError

PHOTO_COUNT = 12


@pytest.fixture(scope="module")
def clip(checkpoints):
    return ClipImageEmbedding(model_name=str(checkpoints / "clip"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched") / "photos"
    folder.mkdir()
    for number in range(PHOTO_COUNT):
        (folder / f"{number}.jpg").write_bytes(encode(photo(60 + number, 50, seed=number), "JPEG"))
    (folder / "text.jpg").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def table(spark, clip, checkpoints, folder):
    """A table with vectors of CLIP and of DINOv2, and a kept column."""
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    place = str(folder.parent / "vectors")
    photos = spark.read.format("binaryFile").load(str(folder))
    columns = {"embedding": clip, "dino": dino}
    write_vision_columns(photos, place, ["path"], columns, keep=["length"])
    return place


@pytest.fixture(scope="module")
def vectors(spark, table):
    """The table's vectors by path."""
    rows = spark.read.format("delta").load(table).filter("embedding IS NOT NULL").collect()
    return {row["path"]: np.array(row["embedding"]) for row in rows}


def paths_of(found):
    return [row["path"].rsplit("/")[-1] for row in found.collect()]


def test_a_picture_finds_itself_first_and_the_others_by_cosine(table, folder, vectors):
    rows = search_images(table, "embedding", folder / "3.jpg", k=5, keep=["length"]).collect()
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    query = next(vector for path, vector in vectors.items() if path.endswith("/3.jpg"))
    scores = {path: float(query @ vector) for path, vector in vectors.items()}
    assert rows[0]["path"].endswith("/3.jpg")
    assert [row["path"] for row in rows] == sorted(scores, key=scores.get, reverse=True)[:5]
    np.testing.assert_allclose(
        [row["score"] for row in rows], [scores[row["path"]] for row in rows], atol=1e-5
    )
    assert rows[0]["length"] == (folder / "3.jpg").stat().st_size


def test_texts_pictures_and_vectors_may_be_asked_together(spark, table, folder, clip, vectors):
    path, vector = next(iter(vectors.items()))
    text = ClipTextEmbedding(model_name=clip.model_name)
    asked = ["a red circle", (folder / "5.jpg").read_bytes(), vector, vector.tolist()]
    rows = search_images(table, "embedding", asked, k=2).collect()
    assert [(row["query"], row["rank"]) for row in rows] == [
        (query, rank) for query in range(4) for rank in (1, 2)
    ]
    assert rows[2]["path"].endswith("/5.jpg")
    assert rows[4]["path"] == rows[6]["path"] == path
    embedded = spark.range(1).select(embed_text(F.lit("a red circle"), text)).head()[0]
    scores = {path: float(np.array(embedded) @ vector) for path, vector in vectors.items()}
    assert rows[0]["path"] == max(scores, key=scores.get)
    assert rows[0]["score"] == pytest.approx(max(scores.values()), abs=1e-5)
    one = search_images(table, "embedding", "a red circle", clip, k=1).head()
    assert (one["query"], one["path"]) == (0, rows[0]["path"])


@pytest.mark.skipif(
    tuple(map(int, pyspark.__version__.split(".")[:2])) < (4, 2), reason="needs Spark 4.2"
)
def test_sparks_own_vector_function_ranks_alike(spark, table, clip, vectors):
    register_functions(spark, {"embed_query": ClipTextEmbedding(model_name=clip.model_name)})
    ranked = spark.sql(
        f"""SELECT path, vector_cosine_similarity(embedding, asked) AS score
        FROM delta.`{table}` CROSS JOIN (SELECT embed_query('a red circle') AS asked)
        WHERE embedding IS NOT NULL ORDER BY score DESC"""
    ).collect()
    rows = search_images(table, "embedding", "a red circle", k=len(vectors)).collect()
    assert [row["path"] for row in ranked] == [row["path"] for row in rows]
    scores = [[row["score"] for row in each] for each in (ranked, rows)]
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_a_failed_query_has_a_row_that_says_why(spark, table, folder):
    good = (folder / "4.jpg").read_bytes()
    asked = spark.createDataFrame(
        [("broken", b"no image"), ("good", good), ("none", None)], "name string, picture binary"
    )
    rows = search_images(table, "embedding", asked, k=1).collect()
    assert [(row["query"], row["status"], row["rank"]) for row in rows] == [
        ("broken", "not_an_image", None),
        ("good", "ok", 1),
        ("none", "null_input", None),
    ]
    assert rows[0]["error"]
    assert rows[1]["path"].endswith("/4.jpg")
    (row,) = search_images(table, "embedding", [b"no image"], k=1).collect()
    assert (row["status"], row["path"]) == ("not_an_image", None)


def test_only_rows_that_hold_a_condition_are_searched(table, folder):
    found = search_images(table, "embedding", folder / "3.jpg", where="path NOT LIKE '%/3.jpg'")
    assert found.count() == PHOTO_COUNT - 1
    where = F.col("path").endswith("/7.jpg")
    assert paths_of(search_images(table, "embedding", folder / "3.jpg", where=where)) == ["7.jpg"]
    assert search_images(table, "embedding", folder / "3.jpg", where="false").collect() == []


def test_a_dataframe_is_searched_by_the_keys_and_operator_that_are_given(
    spark, table, folder, clip
):
    rows = spark.read.format("delta").load(table)
    rows = rows.union(rows).withColumn("id", F.monotonically_increasing_id())
    found = search_images(
        rows, "embedding", folder / "3.jpg", clip, k=2, keys=["id"], keep=["path"]
    )
    assert paths_of(found) == ["3.jpg", "3.jpg"]
    ids = [row["id"] for row in found.collect()]
    assert ids == sorted(ids)
    with pytest.raises(InvalidOptionError, match="operator got none"):
        search_images(rows, "embedding", "a text", keys=["id"])
    with pytest.raises(InvalidOptionError, match="keys got none"):
        search_images(rows, "embedding", [1.0])


def test_texts_need_a_space_that_images_share_with_them(table, folder):
    assert paths_of(search_images(table, "dino", folder / "2.jpg", k=1)) == ["2.jpg"]
    with pytest.raises(TableError, match="no space that it shares with texts"):
        search_images(table, "dino", "a red circle")


def test_another_model_than_the_columns_is_refused(table, folder, checkpoints):
    for name, column in (("dinov2-other", "dino"), ("dinov2", "embedding")):
        other = ImageViTEmbedding(model_name=str(checkpoints / name))
        with pytest.raises(TableError, match="vectors of two models do not compare"):
            search_images(table, column, folder / "2.jpg", other)
    pooled = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"), pooling="mean")
    with pytest.raises(TableError, match="with the pooling mean"):
        search_images(table, "dino", folder / "2.jpg", pooled)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("embedding", "a"), {"k": 0}, InvalidOptionError, "k got 0; allowed: 1 to 10,000"),
        (("embedding", "a"), {"k": True}, InvalidOptionError, "k got True"),
        (("embedding", []), {}, InvalidOptionError, "queries got none"),
        (("embedding", [0.5] * 3), {}, InvalidOptionError, "a vector of 3 numbers"),
        (("embedding", 7), {}, InputTypeError, "queries got int"),
        (("embedding", [{}]), {}, InputTypeError, "queries got dict"),
        (("lost", "a"), {}, TableError, "no column 'lost' of vectors"),
        (("path", "a"), {}, TableError, "no column 'path' of vectors"),
        (("embedding", "a"), {"keep": ["lost"]}, TableError, "has no column 'lost'"),
    ],
)
def test_what_cannot_be_asked_is_refused(table, arguments, options, error, message):
    with pytest.raises(error, match=message):
        search_images(table, *arguments, **options)


def test_a_zero_vector_and_an_empty_text_have_their_rows(table):
    zero = search_images(table, "embedding", [[0.0] * 24], k=1)
    (row,) = zero.collect()
    assert (row["status"], row["rank"]) == ("nonfinite", None)
    (row,) = search_images(table, "embedding", " ", k=1).collect()
    assert (row["status"], row["rank"]) == ("null_input", None)


def test_columns_of_the_result_cannot_be_the_sources(spark, table):
    rows = spark.read.format("delta").load(table).withColumnRenamed("path", "score")
    with pytest.raises(TableError, match="rename the source's"):
        search_images(rows, "embedding", [1.0], keys=["score"])
