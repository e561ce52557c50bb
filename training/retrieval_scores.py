"""Measures how often a search finds the right scene, and compares it with a shuffled control."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession

from spark_vision.demo.checkpoint_folders import checkpoint_path
from spark_vision.demo.scenes import OPPOSITES, SIZES
from spark_vision.functions import embed_image, embed_text
from spark_vision.operators import ClipImageEmbedding, ClipTextEmbedding, ImageViTEmbedding


@dataclass(frozen=True)
class RetrievalScore:
    """One score.

    Attributes:
        name: The kind of query and of result.
        share: The share of correct results.
        control: The same share with the image vectors shuffled among scenes.
    """

    name: str
    share: float
    control: float


def retrieval_scores(session: SparkSession, folder: Path | str) -> list[RetrievalScore]:
    """Embed scenes and their captions with the demo's checkpoints, and search.

    Args:
        session: The Spark session.
        folder: A folder of `write_scenes`, with two renderings of each scene.

    Returns:
        Recall at 1 of captions, Chinese captions, captions without sizes and other renderings, by
        clip and, for the last, by dinov2; and how often an image is nearer to its caption than to
        the same caption with its first relation reversed.
    """
    folder = Path(folder)
    lines = (folder / "scenes.jsonl").read_text(encoding="utf-8").splitlines()
    truths = [json.loads(line) for line in lines]
    first, second = truths[0::2], truths[1::2]
    if [truth["scene"] for truth in first] != [truth["scene"] for truth in second]:
        raise ValueError(f"{folder} does not have two renderings of each scene")
    names = [truth["file"] for truth in [*first, *second]]
    clip = checkpoint_path("clip")
    by_clip, by_dinov2 = (
        np.split(vectors, 2)
        for vectors in _image_vectors(
            session,
            folder,
            names,
            embed_image("content", ClipImageEmbedding(model_name=clip)),
            embed_image("content", ImageViTEmbedding(model_name=checkpoint_path("dinov2"))),
        )
    )
    captions = [truth["caption"] for truth in first]
    related = [index for index, truth in enumerate(first) if truth["relations"]]
    kinds = {
        "captions": captions,
        "captions_zh": [truth["caption_zh"] for truth in first],
        "sizeless": [_sizeless(caption) for caption in captions],
        "turned": [_turned(captions[index], first[index]) for index in related],
    }
    vectors = _text_vectors(session, [*chain(*kinds.values())], ClipTextEmbedding(model_name=clip))
    starts = np.cumsum([len(texts) for texts in kinds.values()])[:-1]
    texts = dict(zip(kinds, np.split(vectors, starts), strict=True))
    pictures, others = by_clip
    # A shift assigns the vector of each image to another scene.
    shuffled = np.roll(pictures, 1, axis=0)
    groups = np.unique(np.array(kinds["sizeless"]), return_inverse=True)[1]
    distinct = np.arange(len(first))
    searches: dict[str, Callable[[np.ndarray], float]] = {
        "clip: caption to picture": lambda these: _recall(texts["captions"], these, distinct),
        "clip: picture to caption": lambda these: _recall(these, texts["captions"], distinct),
        "clip: Chinese caption to picture": lambda these: _recall(
            texts["captions_zh"], these, distinct
        ),
        "clip: picture to Chinese caption": lambda these: _recall(
            these, texts["captions_zh"], distinct
        ),
        "clip: caption without sizes to picture": lambda these: _recall(
            texts["sizeless"], these, groups
        ),
        "clip: picture to another of its scene": lambda these: _recall(others, these, distinct),
        "clip: caption before its turned relation": lambda these: _preferred(
            these[related], texts["captions"][related], texts["turned"]
        ),
    }
    scores = [
        RetrievalScore(name, search(pictures), search(shuffled))
        for name, search in searches.items()
    ]
    ours, theirs = by_dinov2
    return [
        *scores,
        RetrievalScore(
            "dinov2: picture to another of its scene",
            _recall(theirs, ours, distinct),
            _recall(theirs, np.roll(ours, 1, axis=0), distinct),
        ),
    ]


def _recall(queries: np.ndarray, found: np.ndarray, groups: np.ndarray) -> float:
    """Return the share of queries whose nearest vector is in their group; vectors have length 1."""
    nearest = (queries @ found.T).argmax(axis=1)
    return float((groups[nearest] == groups).mean())


def _preferred(pictures: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> float:
    return float(((pictures * right).sum(axis=1) > (pictures * wrong).sum(axis=1)).mean())


def _sizeless(caption: str) -> str:
    words = [word for word in caption.split() if word not in SIZES]
    return " ".join(words).replace("a orange", "an orange")


def _turned(caption: str, truth: dict[str, list[dict[str, str]]]) -> str:
    relation = truth["relations"][0]["relation"]
    return caption.replace(relation, OPPOSITES[relation], 1)


def _image_vectors(
    session: SparkSession, folder: Path, names: Sequence[str], *columns: Column
) -> list[np.ndarray]:
    """Return float32 `[names, dimension]` for each column, in the order of the names."""
    files = session.read.format("binaryFile").load([str(folder / name) for name in names])
    embedded = files.select(
        "path", *(column.alias(str(index)) for index, column in enumerate(columns))
    )
    table = _collect(embedded)
    rows = {Path(path).name: row for row, path in enumerate(table["path"].to_pylist())}
    order = [rows[name] for name in names]
    return [_matrix(table[str(index)])[order] for index in range(len(columns))]


def _text_vectors(
    session: SparkSession, texts: Sequence[str], operator: ClipTextEmbedding
) -> np.ndarray:
    numbered = session.createDataFrame(list(enumerate(texts)), "number int, text string")
    table = _collect(numbered.select("number", embed_text("text", operator).alias("vector")))
    return _matrix(table["vector"])[np.argsort(table["number"].to_numpy())]


def _collect(frame: DataFrame) -> pa.Table:
    table: pa.Table = frame.toArrow()
    return table


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    vectors = column.combine_chunks()
    if vectors.null_count:
        raise ValueError(f"{vectors.null_count} of {len(vectors)} rows have no vector")
    matrix: np.ndarray = vectors.flatten().to_numpy().reshape(len(vectors), -1)
    return matrix
