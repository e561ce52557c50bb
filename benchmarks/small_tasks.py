"""What a Spark task costs beyond its images: a job of many tasks with a few images each.

Spark collects a Python worker's garbage after each task. The package exempts the modules of torch
and transformers from it; the second variant does without that.

    .venv/bin/python benchmarks/small_tasks.py [--tasks 400] [--rows-per-task 4] [--rounds 3]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from pyspark.sql import SparkSession

from photographs import write_parquet
from random_checkpoints import write_feather_clip
from spark_vision import ClipImageEmbedding, configure, embed_image

CORE_COUNT = 2
VARIANTS = {"modules exempt": "", "modules collected": "import gc\ngc.freeze = lambda: None\n"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--rows-per-task", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="alternated rounds")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "feed-rate")
    arguments = parser.parse_args()
    row_count = arguments.tasks * arguments.rows_per_task
    photographs = arguments.data / f"photographs-{row_count}"
    write_parquet(photographs, row_count)
    checkpoint = write_feather_clip(arguments.data / "clip-112", 112)
    operator = ClipImageEmbedding(model_name=str(checkpoint), model_sharing="worker")
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.rounds):
        for name, start in VARIANTS.items():
            seconds[name].append(measure(photographs, operator, arguments.tasks, start))
            per_task = 1000 * seconds[name][-1] * CORE_COUNT / arguments.tasks
            print(f"{name}: {seconds[name][-1]:.1f} s, {per_task:.0f} ms of a core per task")
    ratios = [with_it / without for with_it, without in zip(*seconds.values(), strict=True)]
    print(f"time with / without the exemption: {statistics.median(ratios):.3f} {ratios}")


def measure(photographs: Path, operator: ClipImageEmbedding, tasks: int, start: str) -> float:
    """Time a job in a session whose Python workers start with a piece of code."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(start)
        builder = (
            SparkSession.builder.master(f"local[{CORE_COUNT}]")
            .config("spark.ui.enabled", "false")
            .config("spark.log.level", "ERROR")
            .config("spark.executorEnv.PYTHONPATH", folder)
        )
        spark = configure(builder).getOrCreate()
        try:
            rows = spark.read.parquet(str(photographs)).repartition(tasks).cache()
            rows.count()
            job = rows.select(embed_image("content", operator))
            # The workers start, import and load.
            job.limit(CORE_COUNT).collect()
            started = time.monotonic()
            job.write.format("noop").mode("overwrite").save()
            return time.monotonic() - started
        finally:
            spark.stop()


if __name__ == "__main__":
    main()
