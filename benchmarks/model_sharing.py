"""What one model per executor costs and saves, beside a model per Python worker, on the same cores.

Each mode runs in a session of its own on `local[slots]`, in turn, with ViT-B/16 of random weights:
loads and seconds of load over ten jobs, the memory of all Python processes while they compute, and
images per second. The feed rate is that of a checkpoint whose own cost is next to nothing.

    .venv/bin/python benchmarks/model_sharing.py [--slots 4] [--rows 256] [--rounds 3] [--memory]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from pyspark.sql import SparkSession

from photographs import write_parquet
from random_checkpoints import write_feather_clip, write_vit_base
from spark_vision import ClipImageEmbedding, ImageViTEmbedding, configure, embed_image
from spark_vision.functions import model_placement

MODES = ("executor", "worker")
JOB_COUNT = 10


def python_memory(root: int) -> dict[str, int]:
    """Sum RSS and PSS of the Python processes below a JVM, the model servers among them."""
    found = {"processes": 0, "rss": 0, "pss": 0}
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        is_server = "spark_vision.executor.model_server" in words and f'"pid": {root},' in words
        try:
            is_worker = "pyspark.daemon" in words and root in map(_pid, process.parents())
            if is_server or is_worker:
                memory = process.memory_full_info()
                found["processes"] += 1
                found["rss"] += memory.rss
                found["pss"] += memory.pss
        except psutil.NoSuchProcess:
            continue
    return found


def _pid(process: psutil.Process) -> int:
    return process.pid


def measure(mode: str, arguments: argparse.Namespace) -> None:
    """Print one mode's figures as JSON; runs in a process of its own."""
    slots = arguments.slots
    builder = SparkSession.builder.master(f"local[{slots}]").config("spark.ui.enabled", False)
    builder = builder.config("spark.log.level", "OFF")
    spark = configure(builder.config("spark.driver.memory", "3g")).getOrCreate()
    jvm = spark.sparkContext._gateway.proc.pid
    vit = ImageViTEmbedding(
        model_name=str(arguments.data / "vit"),
        dtype=arguments.dtype,
        batch_size=16,
        model_sharing=mode,
    )
    feather = ClipImageEmbedding(
        model_name=str(arguments.data / "feather"), batch_size=64, model_sharing=mode
    )
    images = spark.read.parquet(str(arguments.data / "photographs")).repartition(slots).cache()
    row_count = images.count()

    def seconds(operator: ImageViTEmbedding | ClipImageEmbedding, count: int) -> float:
        frame = images if count >= row_count else images.limit(count).repartition(slots)
        started = time.perf_counter()
        vectors = frame.select(embed_image("content", operator).alias("v"))
        vectors.write.format("noop").mode("overwrite").save()
        return time.perf_counter() - started

    peak: dict[str, int] = {}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            now = python_memory(jvm)
            if now["pss"] > peak.get("pss", 0):
                peak.update(now)

    watcher = threading.Thread(target=watch)
    if arguments.memory:
        watcher.start()
    first = seconds(vit, 2 * slots)
    jobs = [seconds(vit, slots) for _ in range(JOB_COUNT)]
    placed = images.limit(8 * slots).repartition(4 * slots)
    placements = {
        (row.p.server_pid, row.p.load_seconds)
        for row in placed.select(model_placement("content", vit).alias("p")).collect()
    }
    model_rates = [row_count / seconds(vit, row_count) for _ in range(arguments.rounds)]
    stop.set()
    if arguments.memory:
        watcher.join()
    seconds(feather, row_count)
    feed_rates = [row_count / seconds(feather, row_count) for _ in range(arguments.rounds)]
    spark.stop()
    print(
        json.dumps(
            {
                "mode": mode,
                "loads": len(placements),
                "load_seconds": round(sum(load for _, load in placements), 2),
                "first_job_s": round(first, 2),
                "later_jobs_s": round(statistics.median(jobs), 2),
                "memory_mib": {
                    name: value if name == "processes" else value // 2**20
                    for name, value in peak.items()
                },
                "model_images_per_s": round(statistics.median(model_rates), 2),
                "feed_rows_per_s": round(statistics.median(feed_rates), 1),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=2, help="tasks at a time")
    parser.add_argument("--rows", type=int, default=256, help="images per round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each mode's session")
    parser.add_argument("--sessions", type=int, default=1, help="sessions of each mode, in turn")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--memory", action="store_true", help="watch memory, which takes time")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "model-sharing")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mode:
        measure(arguments.mode, arguments)
        return
    if not (arguments.data / "vit").exists():
        write_vit_base(arguments.data / "vit")
        write_feather_clip(arguments.data / "feather")
    write_parquet(arguments.data / "photographs", arguments.rows, file_count=arguments.slots)
    for _ in range(arguments.sessions):
        for mode in MODES:
            done = subprocess.run(
                [sys.executable, *sys.argv, "--mode", mode], stdout=subprocess.PIPE, check=True
            )
            print(done.stdout.decode().strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
