"""What one model per executor costs and saves, beside a model per Python worker, on the same cores.

Both modes have a session of their own, in a process of its own, and compute in turn. ViT-B/16 of
random weights stands for a model, a CLIP whose own cost is next to nothing for the feeding of one.

    .venv/bin/python benchmarks/model_sharing.py [--cores 2] [--rounds 5] [--dtype float32]
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch
from pyspark.sql import SparkSession

from photographs import write_parquet
from random_checkpoints import write_feather_clip, write_vit_base
from spark_vision import ClipImageEmbedding, ImageViTEmbedding, configure, embed_image
from spark_vision.executor.model_access import server_config
from spark_vision.executor.task import ExecutorProcess, Task
from spark_vision.functions import model_placement
from spark_vision.model_server.client import ModelProxy
from spark_vision.models.checkpoints import resolve_checkpoint
from spark_vision.models.preprocessing import load_preprocessor
from spark_vision.operators import ImageOperator

MODES = ("executor", "worker")
JOB_COUNT = 10
MEMORY_SLOT_COUNT = 4
CLIENT_COUNT = 4
MODEL_BATCH_SIZE = 8
FEED_BATCH_SIZE = 128
MIB = 2**20


class Session:
    """A Spark session in a process of its own."""

    def __init__(self, slot_count: int, data: Path) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))
        self.run(_start, slot_count, data)

    def run(self, function: Any, *arguments: Any) -> Any:
        """Run a function there, and return what it does."""
        return self._pool.submit(function, *arguments).result()

    def stop(self) -> None:
        """End it."""
        self.run(_stop)
        self._pool.shutdown()


_spark: Any = None
_images: Any = None


def _start(slot_count: int, data: Path) -> None:
    global _spark, _images
    builder = SparkSession.builder.master(f"local[{slot_count}]").config("spark.ui.enabled", False)
    builder = builder.config("spark.log.level", "OFF").config("spark.driver.memory", "3g")
    _spark = configure(builder).getOrCreate()
    _images = _spark.read.parquet(str(data / "photographs")).repartition(slot_count).cache()
    _images.count()


def _stop() -> None:
    _spark.stop()


def _rate(operator: ImageOperator, row_count: int) -> float:
    """Rows per second of one job."""
    slots = _spark.sparkContext.defaultParallelism
    frame = _images.limit(row_count).repartition(slots) if row_count < 1000 else _images
    started = time.perf_counter()
    vectors = frame.select(embed_image("content", operator).alias("v"))
    vectors.write.format("noop").mode("overwrite").save()
    return float(frame.count() / (time.perf_counter() - started))


def _loads(operator: ImageOperator) -> set[tuple[int, float, float]]:
    """Process, moment and seconds of the loads whose models have served a small job."""
    slots = _spark.sparkContext.defaultParallelism
    frame = _images.limit(2 * slots).repartition(slots)
    rows = frame.select(model_placement("content", operator).alias("p")).select("p.*").collect()
    return {(row.server_pid, row.loaded_at.timestamp(), row.load_seconds) for row in rows}


def _memory(operator: ImageOperator, row_count: int) -> dict[str, int]:
    """Peaks of the Python processes below this session's JVM while it computes."""
    jvm = _spark.sparkContext._gateway.proc.pid
    peak = {"processes": 0, "rss": 0, "pss": 0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            for name, value in _python_memory(jvm).items():
                peak[name] = max(peak[name], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _rate(operator, row_count)
    stop.set()
    watcher.join()
    return peak


def _python_memory(jvm: int) -> dict[str, int]:
    found = {"processes": 0, "rss": 0, "pss": 0}
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        is_server = "spark_vision.model_server" in words and f'"pid": {jvm},' in words
        try:
            is_worker = "pyspark.daemon" in words and jvm in [
                parent.pid for parent in process.parents()
            ]
            if is_server or is_worker:
                memory = process.memory_full_info()
                found["processes"] += 1
                found["rss"] += memory.rss
                found["pss"] += memory.pss
        except psutil.NoSuchProcess:
            continue
    return found


def _call_seconds(operator: ImageViTEmbedding, core_count: int, client_count: int) -> float:
    """Median time of a call while so many clients of one server call without a pause."""
    checkpoint = resolve_checkpoint(operator)
    scaling = load_preprocessor(checkpoint, None).scaling
    task = Task(gpu_addresses=(), cpus=1, executor_cores=core_count, idle_seconds=0)
    executor = ExecutorProcess.of(os.getpid())
    config = server_config(checkpoint, operator, torch.device("cpu"), task, executor)
    pixels = torch.randint(0, 256, (MODEL_BATCH_SIZE, 3, 224, 224), dtype=torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)

    def call(_: int) -> list[float]:
        served = ModelProxy(config)
        served.embed_images(pixels, scaling, "cls")
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            served.embed_images(pixels, scaling, "cls")
            seconds.append(time.perf_counter() - started)
        return seconds

    with ThreadPoolExecutor(client_count) as pool:
        return statistics.median(
            seconds for each in pool.map(call, range(client_count)) for seconds in each
        )


def _say(what: str, executor: float, worker: float, unit: str) -> None:
    ratio = executor / worker
    print(f"{what:34} {executor:9.2f} {worker:9.2f} {unit:9} {ratio:5.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=2, help="tasks at a time, where rates count")
    parser.add_argument("--rows", type=int, default=4096, help="images of a round of feeding")
    parser.add_argument("--model-rows", type=int, default=64, help="images of a round of ViT-B")
    parser.add_argument("--rounds", type=int, default=5, help="of each mode, in turn")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "model-sharing")
    arguments = parser.parse_args()
    data: Path = arguments.data
    if not (data / "vit").exists():
        write_vit_base(data / "vit")
        write_feather_clip(data / "feather", 112)
    write_parquet(data / "photographs", arguments.rows)
    vit = {
        mode: ImageViTEmbedding(
            model_name=str(data / "vit"),
            dtype=arguments.dtype,
            batch_size=MODEL_BATCH_SIZE,
            model_sharing=mode,
        )
        for mode in MODES
    }
    feather = {
        mode: ClipImageEmbedding(
            model_name=str(data / "feather"), batch_size=FEED_BATCH_SIZE, model_sharing=mode
        )
        for mode in MODES
    }
    print(f"{'':34} {'executor':>9} {'worker':>9} {'':9} ratio")

    sessions = {mode: Session(arguments.cores, data) for mode in MODES}
    loads = {
        mode: set().union(*(sessions[mode].run(_loads, vit[mode]) for _ in range(JOB_COUNT)))
        for mode in MODES
    }
    _say(f"loads in {JOB_COUNT} jobs", *(len(loads[mode]) for mode in MODES), "")
    per_job = [sum(seconds for _, _, seconds in loads[mode]) / JOB_COUNT for mode in MODES]
    _say("load per job", *per_job, "s")
    for what, operators, row_count in (
        ("ViT-B/16", vit, arguments.model_rows),
        ("feed", feather, arguments.rows),
    ):
        for mode in MODES:
            sessions[mode].run(_rate, operators[mode], row_count)
        rounds = [
            [sessions[mode].run(_rate, operators[mode], row_count) for mode in MODES]
            for _ in range(arguments.rounds)
        ]
        medians = [statistics.median(rates) for rates in zip(*rounds, strict=True)]
        _say(f"{what}, {arguments.cores} slots", *medians, "images/s")
        ratios = sorted(executor / worker for executor, worker in rounds)
        print(f"{'':34} ratio of each round: {' '.join(f'{each:.2f}' for each in ratios)}")
    for mode in MODES:
        sessions[mode].stop()

    peaks = {}
    for mode in MODES:
        session = Session(MEMORY_SLOT_COUNT, data)
        peaks[mode] = session.run(_memory, vit[mode], arguments.model_rows)
        session.stop()
    slots = f"{MEMORY_SLOT_COUNT} slots"
    for name in ("rss", "pss"):
        mib = [peaks[mode][name] / MIB for mode in MODES]
        _say(f"{name.upper()} of Python processes, {slots}", *mib, "MiB")
    _say(f"Python processes, {slots}", *(peaks[mode]["processes"] for mode in MODES), "")

    alone, crowded = (
        _call_seconds(vit["executor"], arguments.cores, count) for count in (1, CLIENT_COUNT)
    )
    print(f"a call of {MODEL_BATCH_SIZE} images: one client {alone:.2f} s, {CLIENT_COUNT} clients")
    print(f"{crowded:.2f} s, of which a task waits {crowded - alone:.2f} s for its turn")


if __name__ == "__main__":
    main()
