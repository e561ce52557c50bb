"""What the demonstration asks: pictures for a text, pictures like a picture, answers about one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from spark_vision.functions import caption_image, embed_text
from spark_vision.operators import ClipTextEmbedding, QwenVLImageUnderstanding


@dataclass(frozen=True)
class Hit:
    """A picture that was found.

    Attributes:
        path: The picture's file, as the table has it.
        score: Its vector's cosine to what was asked; of vectors of length one, their product.
    """

    path: str
    score: float


@dataclass(frozen=True)
class Search:
    """What was asked, and what came.

    Attributes:
        asked: A text, or the path of a picture.
        hits: The best first.
        by_picture: Which of the two it is.
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
    """Find the pictures nearest to texts.

    Args:
        table: `path` and a column of vectors of length one, of the operator's own checkpoint.
        column: That column's name.
        operator: Embeds the texts.
        texts: What to look for.
        count: Pictures per text.

    Returns:
        A search per text, in the order of the texts.
    """
    asked = table.sparkSession.createDataFrame([(text,) for text in texts], "asked string")
    queries = asked.select("asked", embed_text("asked", operator).alias("query"))
    return _search(queries, table, column, texts, count)


def search_by_picture(
    table: DataFrame, column: str, paths: Sequence[str], count: int
) -> list[Search]:
    """Find the pictures nearest to pictures of the same table, themselves left out.

    Args:
        table: `path` and a column of vectors of length one.
        column: That column's name.
        paths: The pictures to start from.
        count: Pictures for each.

    Returns:
        A search per path, in the order of the paths.
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
    """Ask about pictures.

    Args:
        files: `path` and `content`, as `binaryFile` gives them.
        operator: What answers.
        questions: The path of a picture and a question about it, no two of them equal.

    Returns:
        The answers in the order of the questions; None where there is none.
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
