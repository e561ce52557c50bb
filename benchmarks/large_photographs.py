"""What `fast_decode` gains on photographs that are much larger than the model's input.

JPEG bytes in Parquet to 768 floats in Parquet on one core, with the option and without, in turn.
The model's own cost is next to nothing. The grain of the generated photographs decides how many
bytes a pixel takes, and all bytes have to be decompressed in either case.

    .venv/bin/python benchmarks/large_photographs.py [--grain 6] [--image-size 224]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import torch
from pyspark.sql import SparkSession

from photographs import write_parquet
from random_checkpoints import write_feather_clip
from spark_vision import ClipImageEmbedding, configure, embed_image


def seconds_of(work: Callable[[], object]) -> float:
    """Time one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def vectors_in(folder: Path) -> torch.Tensor:
    """Read the vectors in the order of their rows."""
    table = pq.read_table(folder).sort_by("id")
    return torch.tensor(table["embedding"].to_pylist(), dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--quality", type=int, default=85, help="of the JPEG files")
    parser.add_argument("--grain", type=float, default=6, help="noise, in levels")
    parser.add_argument("--image-size", type=int, default=224, help="pixels of the model's input")
    parser.add_argument("--rows", type=int, default=32, help="distinct photographs")
    parser.add_argument("--repeat", type=int, default=4, help="times each is read per round")
    parser.add_argument("--rounds", type=int, default=5, help="alternated rounds")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "large")
    arguments = parser.parse_args()

    shape = {name: getattr(arguments, name) for name in ("width", "height", "quality", "grain")}
    name = "-".join(f"{value:g}" for value in shape.values())
    photographs = arguments.data / f"{name}-{arguments.rows}"
    write_parquet(photographs, arguments.rows, file_count=4, **shape)
    size = arguments.image_size
    checkpoint = str(write_feather_clip(arguments.data / f"clip-{size}", size))
    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", False)
    spark = configure(builder).getOrCreate()
    images = spark.read.parquet(str(photographs))
    source = images
    for _ in range(arguments.repeat - 1):
        source = source.unionAll(images)

    def write(fast_decode: bool) -> None:
        operator = ClipImageEmbedding(
            model_name=checkpoint, model_sharing="worker", fast_decode=fast_decode
        )
        vectors = source.select("id", embed_image("content", operator).alias("embedding"))
        vectors.write.mode("overwrite").parquet(str(arguments.data / f"vectors-{fast_decode}"))

    contenders = {"full": partial(write, False), "fast": partial(write, True)}
    for work in contenders.values():
        work()
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, work in contenders.items():
            rates[name].append(arguments.rows * arguments.repeat / seconds_of(work))
    spark.stop()

    full, fast = (vectors_in(arguments.data / f"vectors-{each}") for each in (False, True))
    mean = full.mean(dim=0)
    cosines = torch.nn.functional.cosine_similarity(full - mean, fast - mean)
    byte_count = sum(map(len, pq.read_table(photographs)["content"].to_pylist()))
    print(f"bytes of a photograph: {byte_count / arguments.rows:,.0f}")
    for name, values in rates.items():
        print(f"{name}: median {statistics.median(values):.2f} rows/s")
    ratios = [fast / full for full, fast in zip(*rates.values(), strict=True)]
    print(f"fast / full: median {statistics.median(ratios):.2f}, rounds", end=" ")
    print(" ".join(f"{ratio:.2f}" for ratio in ratios))
    print(f"least cosine after the mean is subtracted: {cosines.min():.5f}")


if __name__ == "__main__":
    main()
