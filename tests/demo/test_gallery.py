"""A search finds what NumPy finds, in its order."""

import numpy as np
import pytest

from spark_vision import ClipTextEmbedding, embed_text
from spark_vision.demo.gallery import search_by_picture, search_by_text

DIMENSION = 24


@pytest.fixture
def vectors():
    vectors = np.random.default_rng(0).normal(size=(30, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def table(spark, vectors):
    rows = [(f"p{index:02}", vector.tolist()) for index, vector in enumerate(vectors)]
    return spark.createDataFrame([*rows, ("broken", None)], "path string, vector array<float>")


def ranked(scores, count):
    return [
        (f"p{index:02}", pytest.approx(scores[index], abs=1e-5))
        for index in np.argsort(-scores, kind="stable")[:count]
    ]


def test_pictures_like_a_picture_are_the_nearest_but_itself(table, vectors):
    searches = search_by_picture(table, "vector", ["p07", "p03"], 4)
    assert [search.asked for search in searches] == ["p07", "p03"]
    for search, index in zip(searches, (7, 3), strict=True):
        scores = vectors @ vectors[index]
        scores[index] = -2
        assert [(hit.path, hit.score) for hit in search.hits] == ranked(scores, 4)


def test_pictures_for_a_text_are_the_nearest_to_its_vector(spark, table, vectors, checkpoints):
    clip = ClipTextEmbedding(model_name=str(checkpoints / "clip"))
    texts = ["a red circle", "一个红色的圆形"]
    asked = spark.createDataFrame([(text,) for text in texts], "t string")
    queries = [np.array(row[0]) for row in asked.select(embed_text("t", clip)).collect()]
    searches = search_by_text(table, "vector", clip, texts, 3)
    for search, text, query in zip(searches, texts, queries, strict=True):
        assert search.asked == text
        assert [(hit.path, hit.score) for hit in search.hits] == ranked(vectors @ query, 3)
