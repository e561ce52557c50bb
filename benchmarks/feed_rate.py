"""How fast rows reach a model and come back: JPEG bytes in Parquet to 768 floats in Parquet.

The model's own cost is small, so what is measured is everything around it. In the same run, in
turn: our job, a UDF that computes nothing (one prebuilt buffer through the same Arrow shell), and
decoding and resizing alone. A job cannot beat 1 / (1/decode + 1/no-op) without overlapping the two.

No model is free on a CPU: to write an image of 224 × 224 pixels as 600 kB of floats and to read
them once in a convolution of 16 channels is a tenth of the whole. So the model's time, scaling
included, is measured too, and a second limit counts it.

    .venv/bin/python benchmarks/feed_rate.py [--image-size 112] [--rows 8192] [--rounds 5]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torchvision.io import ImageReadMode

from photographs import write_parquet
from random_checkpoints import write_feather_clip
from spark_vision import ClipImageEmbedding, configure, embed_image
from spark_vision.executor.devices import keep_freed_memory
from spark_vision.models.checkpoints import resolve_checkpoint
from spark_vision.models.families import load_model
from spark_vision.models.preprocessing import load_preprocessor
from spark_vision.models.protocols import ImageEmbedder, ImagePreprocessor

CORE_COUNT = 2
DIMENSION = 768
BATCH_SIZE = 128


def decode_and_resize(parquet_file: str, checkpoint: str) -> int:
    """Do the least that any reader of these images has to do, by the best code known."""
    preprocess = preprocessor_of(checkpoint)
    contents = pq.read_table(parquet_file, columns=["content"])["content"]
    for chunk in contents.chunks:
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)
        data = torch.frombuffer(bytearray(chunk.buffers()[2]), dtype=torch.uint8)
        for row in range(len(chunk)):
            content = data[offsets[row] : offsets[row + 1]]
            preprocess(torch.ops.image.decode_jpeg(content, ImageReadMode.RGB.value, False))
    return len(contents)


@cache
def preprocessor_of(checkpoint: str) -> ImagePreprocessor:
    """Load once per process, and keep to one core."""
    torch.set_num_threads(1)
    keep_freed_memory()
    operator = ClipImageEmbedding(model_name=checkpoint)
    return load_preprocessor(resolve_checkpoint(operator), None)


def model_milliseconds(checkpoint: str, image_size: int) -> float:
    """Measure what the model itself takes of a core per image: scaling, and its forward."""
    scaling = preprocessor_of(checkpoint).scaling
    resolved = resolve_checkpoint(ClipImageEmbedding(model_name=checkpoint))
    model = cast(ImageEmbedder, load_model(resolved, "float32", torch.device("cpu")))
    shape = (BATCH_SIZE, image_size, image_size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8).permute(0, 3, 1, 2)
    seconds = [
        seconds_of(lambda: model.embed_images(pixels, scaling, "projection")) for _ in range(30)
    ]
    return 1000 * statistics.median(seconds[10:]) / BATCH_SIZE


def no_op_udf() -> Callable[[str], object]:
    """Make a UDF that gives back slices of one prebuilt array of vectors."""

    def give_back(arrays: Iterator[pa.Array]) -> Iterator[pa.Array]:
        count = 20_000
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * DIMENSION)
        values = pa.array(np.random.default_rng(0).random(count * DIMENSION, np.float32))
        kind = pa.list_(pa.field("element", pa.float32()))
        vectors = pa.ListArray.from_arrays(offsets, values, kind)
        for array in arrays:
            yield vectors.slice(0, len(array))

    return F.arrow_udf(give_back, "array<float>").asNondeterministic()


def seconds_of(work: Callable[[], object]) -> float:
    """Time one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192, help="distinct images")
    parser.add_argument("--image-size", type=int, default=112, help="pixels of the model's input")
    parser.add_argument("--repeat", type=int, default=4, help="times each image is read per round")
    parser.add_argument("--model-sharing", default="worker", choices=["worker", "executor"])
    parser.add_argument("--rounds", type=int, default=5, help="alternated rounds")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "feed-rate")
    arguments = parser.parse_args()

    photographs = arguments.data / f"photographs-{arguments.rows}"
    write_parquet(photographs, arguments.rows)
    checkpoint = str(
        write_feather_clip(arguments.data / f"clip-{arguments.image_size}", arguments.image_size)
    )
    operator = ClipImageEmbedding(
        model_name=checkpoint, batch_size=BATCH_SIZE, model_sharing=arguments.model_sharing
    )
    builder = SparkSession.builder.master(f"local[{CORE_COUNT}]").config("spark.ui.enabled", False)
    spark = configure(builder).getOrCreate()

    images = spark.read.parquet(str(photographs))
    source: DataFrame = images
    for _ in range(arguments.repeat - 1):
        source = source.unionAll(images)
    row_count = arguments.rows * arguments.repeat
    files = [str(path) for path in sorted(photographs.glob("*.parquet"))] * arguments.repeat

    def write(column: object) -> None:
        vectors = source.select("id", column.alias("embedding"))
        vectors.write.mode("overwrite").parquet(str(arguments.data / "vectors"))

    no_op = no_op_udf()
    with ProcessPoolExecutor(CORE_COUNT, mp_context=get_context("spawn")) as pool:
        contenders: dict[str, Callable[[], object]] = {
            "job": lambda: write(embed_image("content", operator)),
            "no-op": lambda: write(no_op("content")),
            "decode": lambda: list(pool.map(decode_and_resize, files, repeat(checkpoint))),
        }
        for work in contenders.values():
            work()
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for round_number in range(arguments.rounds):
            for name, work in contenders.items():
                rates[name].append(row_count / seconds_of(work))
            print(
                f"round {round_number + 1}: "
                + ", ".join(f"{name} {values[-1]:,.0f}/s" for name, values in rates.items()),
                flush=True,
            )
    milliseconds = model_milliseconds(checkpoint, arguments.image_size)
    print(f"   model: {milliseconds:.3f} ms a row")
    for name, values in rates.items():
        print(f"{name:>8}: median {statistics.median(values):,.0f} rows/s")
    model_seconds = milliseconds / 1000 / CORE_COUNT
    for limit, seconds in [("limit", 0.0), ("limit with the model", model_seconds)]:
        ratios = [
            job * (1 / decode + 1 / no_op_rate + seconds)
            for job, no_op_rate, decode in zip(*rates.values(), strict=True)
        ]
        print(f"job / additive {limit}: median {statistics.median(ratios):.3f}, rounds", end=" ")
        print(" ".join(f"{ratio:.3f}" for ratio in ratios))
    spark.stop()


if __name__ == "__main__":
    main()
