"""What the demonstration shows of its tables: pictures for a text, and pictures like a picture."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from spark_vision.functions import embed_text
from spark_vision.operators import ClipTextEmbedding

TRUTH_FILE = "scenes.jsonl"


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
    """

    asked: str
    hits: tuple[Hit, ...]


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
    return _search(queries, table, column, paths, count)


@dataclass(frozen=True)
class Truth:
    """What `write_scenes` noted of a picture, as far as the demonstration shows it."""

    file: str
    caption: str
    caption_zh: str
    object_count: int


def read_truth(images: str) -> list[Truth]:
    """Read what `write_scenes` noted beside its pictures.

    Args:
        images: The pictures' folder, or a glob of files in it.

    Returns:
        The truths in the order of the files; none where nobody noted any.
    """
    folder = Path(images)
    path = (folder if folder.is_dir() else folder.parent) / TRUTH_FILE
    if not path.is_file():
        return []
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return [
        Truth(line["file"], line["caption"], line["caption_zh"], len(line["objects"]))
        for line in lines
    ]


def example_texts(truths: Sequence[Truth]) -> list[str]:
    """Choose texts to look for: a scene of each size in English, and one in Chinese."""
    by_count = {truth.object_count: truth for truth in reversed(truths)}
    examples = [truth for _, truth in sorted(by_count.items())]
    return [truth.caption for truth in examples] + [truth.caption_zh for truth in examples[1:2]]


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
