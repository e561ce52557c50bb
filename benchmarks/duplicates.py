"""Near-duplicates among pictures with planted copies: recall, compared pairs and seconds.

    .venv/bin/python benchmarks/duplicates.py [--scenes 4000] [--model dinov2] [--folder FOLDER]

Each scene has four copies: encoded again, smaller, cropped, and cropped and smaller. They are
embedded by a checkpoint of the demonstration; a folder keeps the vectors for the next run.
"""

import argparse
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyspark.sql import SparkSession

from spark_vision import (
    ClipImageEmbedding,
    ImageViTEmbedding,
    configure,
    embed_image,
    find_duplicates,
    group_duplicates,
)
from spark_vision.demo.rendering import render
from spark_vision.demo.scenes import draw_scenes
from spark_vision.search.comparison import compare_vectors

CORE_COUNT = 2
SEED = 4714
FILE_SCENES = 250
TILE_ROWS = 1000
CHECKPOINTS = Path(__file__).parents[1] / "spark_vision" / "demo" / "checkpoints"
OPERATORS = {"dinov2": ImageViTEmbedding, "clip": ClipImageEmbedding}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--model", choices=OPERATORS, default="dinov2")
    parser.add_argument("--threshold", type=float, action="append")
    parser.add_argument("--folder", type=Path, default=None, help="keeps pictures and vectors")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    spark = start_session()
    with tempfile.TemporaryDirectory(prefix="duplicates-") as temporary:
        folder = arguments.folder or Path(temporary)
        vectors = folder / f"{arguments.model}-{arguments.scenes}"
        if not vectors.exists():
            pictures = folder / f"pictures-{arguments.scenes}"
            if not pictures.exists():
                write_pictures(pictures, arguments.scenes)
            embed(spark, pictures, vectors, arguments.model)
        for threshold in arguments.threshold or [0.99, 0.98, 0.95, 0.9]:
            compare(spark, vectors, threshold)
    spark.stop()


def write_pictures(folder: Path, count: int) -> None:
    """Draw scenes, and write them with their copies into Parquet files."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(SEED)
    rows: list[dict] = []
    for number, scene in enumerate(draw_scenes(count, SEED, "train")):
        image = render(scene, random).image
        for copy, data in enumerate(copies_of(image, random)):
            rows.append({"id": number * 5 + copy, "content": data})
        if len(rows) == 5 * FILE_SCENES or number + 1 == count:
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{number:06d}.parquet")
            rows = []


def copies_of(image: Image.Image, random: np.random.Generator) -> list[bytes]:
    width, height = image.size
    sides = random.uniform(0.01, 0.05, 4)
    box = (sides[0] * width, sides[1] * height, (1 - sides[2]) * width, (1 - sides[3]) * height)
    cropped = image.crop([round(side) for side in box])
    scale = random.uniform(0.5, 0.8)

    def smaller(picture: Image.Image) -> Image.Image:
        return picture.resize([round(side * scale) for side in picture.size])

    return [
        encoded(image, 95),
        encoded(image, int(random.integers(50, 80))),
        encoded(smaller(image), 90),
        encoded(cropped, 90),
        encoded(smaller(cropped), 80),
    ]


def encoded(image: Image.Image, quality: int) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def embed(spark: SparkSession, pictures: Path, vectors: Path, model: str) -> None:
    operator = OPERATORS[model](model_name=str(CHECKPOINTS / model))
    rows = spark.read.parquet(str(pictures))
    embedding = embed_image("content", operator).alias("embedding")
    rows.select("id", embedding).write.parquet(str(vectors))


def compare(spark: SparkSession, folder: Path, threshold: float) -> None:
    rows = spark.read.parquet(str(folder))
    table = pq.read_table(folder).sort_by("id")
    vectors = np.stack(table["embedding"].to_numpy()).astype(np.float32)
    all_count = len(vectors) * (len(vectors) - 1) // 2
    started = time.monotonic()
    wanted = pairs_by_numpy(vectors, threshold)
    numpy_seconds = time.monotonic() - started
    find_duplicates(rows.limit(100), "embedding", threshold, keys=["id"]).count()
    started = time.monotonic()
    found = find_duplicates(rows, "embedding", threshold, keys=["id"]).toPandas()
    seconds = time.monotonic() - started
    ids = found["id_a"].to_numpy() * len(vectors) + found["id_b"].to_numpy()
    groups, group_seconds = count_groups(rows, threshold)
    planes = compare_vectors(rows, ["id"], "embedding", threshold, 0.99).planes
    sizes = [np.unique(codes, return_counts=True)[1] for codes in planes.encode(vectors).T]
    compared = sum(int(size @ (size - 1)) // 2 for size in sizes)
    largest = max(int(size.max()) for size in sizes)
    planted = is_planted(wanted, len(vectors))
    planted_found = np.isin(wanted[planted], ids).mean() if planted.any() else float("nan")
    print(
        f"{len(vectors):,} vectors of {vectors.shape[1]}, threshold {threshold}: "
        f"{len(wanted):,} pairs, {planted.sum():,} of them planted; "
        f"recall {np.isin(wanted, ids).mean():.4f}, of planted {planted_found:.4f}; "
        f"{np.isin(ids, wanted, invert=True).sum()} wrong; "
        f"{planes.tables} tables of {planes.bits} bits, largest block {largest:,}; compared "
        f"{compared / all_count:.4f} of all pairs; pairs {seconds:.1f} s, groups "
        f"{group_seconds:.1f} s ({groups:,}), NumPy {numpy_seconds:.1f} s"
    )


def pairs_by_numpy(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Return all pairs, as the smaller id times the number of vectors plus the larger id."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = []
    for start in range(0, len(units), TILE_ROWS):
        cosines = units[start : start + TILE_ROWS] @ units[start:].T
        first, second = np.nonzero(np.triu(cosines >= threshold, 1))
        found.append((first + start) * len(units) + second + start)
    return np.concatenate(found)


def is_planted(pairs: np.ndarray, count: int) -> np.ndarray:
    return pairs // count // 5 == pairs % count // 5


def count_groups(rows, threshold: float) -> tuple[int, float]:
    started = time.monotonic()
    groups = group_duplicates(rows, "embedding", threshold, keys=["id"])
    count = groups.select("group_id").distinct().count()
    return count, time.monotonic() - started


def start_session() -> SparkSession:
    builder = (
        SparkSession.builder.master(f"local[{CORE_COUNT}]")
        .config("spark.driver.memory", "4g")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.log.level", "ERROR")
        .config("spark.sql.shuffle.partitions", "8")
    )
    return configure(builder).getOrCreate()


if __name__ == "__main__":
    main()
