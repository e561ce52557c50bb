"""Searches images by text and by image, and asks questions about them, with Spark."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from spark_vision.functions import caption_image, embed_text
from spark_vision.operators import ClipTextEmbedding, QwenVLImageUnderstanding


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
    asked = table.sparkSession.createDataFrame([(text,) for text in texts], "asked string")
    queries = asked.select("asked", embed_text("asked", operator).alias("query"))
    return _search(queries, table, column, texts, count)


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
    chosen = table.where(F.col("path").isin(list(paths)))
    queries = chosen.select(F.col("path").alias("asked"), F.col(column).alias("query"))
    searches = _search(queries, table, column, paths, count)
    return [replace(search, by_picture=True) for search in searches]


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


def _search(
    queries: DataFrame, table: DataFrame, column: str, asked: Sequence[str], count: int
) -> list[Search]:
    score = _product(F.col("query"), F.col(column))
    best = Window.partitionBy("asked").orderBy(F.desc("score"), "path")
    ranked = (
        table.where(F.col(column).isNotNull())
        .crossJoin(F.broadcast(queries))
        .where(F.col("path") != F.col("asked"))
        .select("asked", "path", score.alias("score"))
        .withColumn("rank", F.row_number().over(best))
        .where(F.col("rank") <= count)
        .orderBy("asked", "rank")
    )
    hits: dict[str, list[Hit]] = {text: [] for text in asked}
    for row in ranked.collect():
        hits[row.asked].append(Hit(row.path, row.score))
    return [Search(text, tuple(found)) for text, found in hits.items()]


def _product(left: Column, right: Column) -> Column:
    products = F.zip_with(left, right, lambda one, other: one * other)
    return F.aggregate(products, F.lit(0.0), lambda total, value: total + value)
