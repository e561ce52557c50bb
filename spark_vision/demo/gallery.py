"""Searches images by text and by image, and asks questions about them, with Spark."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_vision.functions import caption_image
from spark_vision.operators import ClipTextEmbedding, QwenVLImageUnderstanding
from spark_vision.search.exact import search_images


@dataclass(frozen=True)
class Hit:
    """A search result.

    Attributes:
        path: The path of the image, as in the table.
        score: The cosine similarity to the query.
    """

    path: str
    score: float


@dataclass(frozen=True)
class Search:
    """A query and its results.

    Attributes:
        asked: The query: a text, or the path of an image.
        hits: The results, best first.
        by_picture: Whether the query is an image.
    """

    asked: str
    hits: tuple[Hit, ...]
    by_picture: bool = False


def search_by_text(
    table: DataFrame,
    column: str,
    operator: ClipTextEmbedding,
    texts: Sequence[str],
    count: int,
) -> list[Search]:
    """Find the images nearest to texts.

    Args:
        table: `path` and a column of unit-length vectors of the operator's checkpoint.
        column: The name of that column.
        operator: Embeds the texts.
        texts: The queries.
        count: Maximum number of images per text.

    Returns:
        One search per text, in the order of the texts.
    """
    if not texts:
        return []
    found = search_images(table, column, list(texts), operator, k=count, keys=["path"])
    hits = _collect(found.where("rank IS NOT NULL"))
    return [Search(text, tuple(hits.get(place, []))) for place, text in enumerate(texts)]


def search_by_picture(
    table: DataFrame, column: str, paths: Sequence[str], count: int
) -> list[Search]:
    """Find the images nearest to images of the same table, without the query itself.

    Args:
        table: `path` and a column of unit-length vectors.
        column: The name of that column.
        paths: The query images.
        count: Maximum number of images per query.

    Returns:
        One search per path, in the order of the paths.
    """
    if not paths:
        return []
    queries = table.where(F.col("path").isin(list(paths))).select("path", column)
    # An image is the nearest to itself.
    found = search_images(table, column, queries, k=count + 1, keys=["path"])
    hits = _collect(found.where("path <> query"))
    return [Search(path, tuple(hits.get(path, [])[:count]), by_picture=True) for path in paths]


def answer_questions(
    files: DataFrame,
    operator: QwenVLImageUnderstanding,
    questions: Sequence[tuple[str, str]],
) -> list[str | None]:
    """Ask questions about images.

    Args:
        files: `path` and `content`, as from `binaryFile`.
        operator: Answers the questions.
        questions: Distinct pairs of the path of an image and a question about it.

    Returns:
        The answers in the order of the questions; None for a failed row.
    """
    asked = files.sparkSession.createDataFrame(list(questions), "path string, question string")
    answer = caption_image("content", operator, F.col("question"))
    answered = files.join(F.broadcast(asked), "path").select(
        "path", "question", answer.alias("answer")
    )
    answers = {(row.path, row.question): row.answer for row in answered.collect()}
    return [answers.get(question) for question in questions]


def _collect(found: DataFrame) -> dict[int | str, list[Hit]]:
    """Return the results of `search_images` by query, best first."""
    hits: dict[int | str, list[Hit]] = {}
    for row in found.collect():
        hits.setdefault(row.query, []).append(Hit(row.path, row.score))
    return hits
