"""What bounds a model on a GPU: images per second of one server, or of a context per process.

Needs neither Java nor Spark. Processes stand for the Python workers of one executor, and feed a ViT
of random weights, from JPEG bytes or from ready pixels, through one model server
(`model_sharing="executor"`) or each with a model of its own (`"worker"`). Beside them runs a bare
loop of the same model over pixels that lie on the device already, at its best batch size.
`--device cpu --model tiny` tries it out.

    .venv/bin/python benchmarks/gpu_serving.py [--model vit-l] [--processes 4] [--seconds 10]
"""

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pyarrow as pa
import torch
from transformers import AutoModel, Dinov2Config, ViTConfig, ViTImageProcessor

from photographs import jpeg_bytes
from random_checkpoints import VIT_PROCESSOR
from spark_vision import ImageViTEmbedding
from spark_vision.executor.batching import map_ahead, thread_pool
from spark_vision.executor.columns import compute_columns
from spark_vision.executor.model_access import reach_model
from spark_vision.executor.task import ExecutorProcess, Task
from spark_vision.models.checkpoints import resolve_checkpoint
from spark_vision.models.preprocessing import load_preprocessor

MODELS = {
    "vit-b": ViTConfig(),
    "vit-l": ViTConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        patch_size=14,
    ),
    "dinov2-l": Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16),
    "tiny": ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
    ),
}
MODES = ("executor", "worker")
SOURCES = ("JPEG", "pixels")
PHOTOGRAPH_COUNT = 256
BARE_BATCH_SIZES = (32, 128, 512)
WARM_UP_SECONDS = 3.0
SAMPLE_SECONDS = 0.2


def feed(
    source: str,
    operator: ImageViTEmbedding,
    task: Task,
    seconds: float,
    photographs: list[bytes],
    barrier: Any,
    rates: Any,
) -> None:
    """Compute without a pause for so long, and put the rows per second."""
    # The model is loaded, and all is warm, before anybody measures.
    counts = from_jpeg(operator, task, photographs) if source == "JPEG" else ready(operator, task)
    next(counts)
    barrier.wait()
    rates.put(count_per_second(counts, seconds))


def count_per_second(counts: Iterator[int], seconds: float) -> float:
    """Sum counts for so long, after a warm-up."""
    warm_until = time.perf_counter() + WARM_UP_SECONDS
    while time.perf_counter() < warm_until:
        next(counts)
    started, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        done += next(counts)
    return done / elapsed


def from_jpeg(operator: ImageViTEmbedding, task: Task, photographs: list[bytes]) -> Iterator[int]:
    """Give the lengths of what comes of an endless column of JPEG bytes."""

    def batches() -> Iterator[pa.Array]:
        while True:
            yield pa.array(photographs, pa.binary())

    for (vectors,) in compute_columns(batches(), [operator], task):
        yield len(vectors)


def ready(operator: ImageViTEmbedding, task: Task) -> Iterator[int]:
    """Give the lengths of what the model makes of ready pixels."""
    device = torch.device(operator.device)
    checkpoint = resolve_checkpoint(operator)
    reached = reach_model(checkpoint, operator, device, task)
    scaling = load_preprocessor(checkpoint, None).scaling
    pixels = random_pixels(operator.batch_size)

    def embed(_: None) -> int:
        return len(reached.model.embed_images(pixels, scaling, "cls"))

    with thread_pool(reached.call_count, "calls", reached.prepare_thread) as pool:
        yield from map_ahead(
            pool, embed, itertools.repeat(None), lambda waiting: waiting <= reached.call_count
        )


def random_pixels(count: int) -> torch.Tensor:
    pixels = torch.randint(0, 256, (count, 3, 224, 224), dtype=torch.uint8)
    return pixels.contiguous(memory_format=torch.channels_last)


def bare_loop(operator: ImageViTEmbedding, seconds: float) -> float:
    """Images per second of the model alone, its input on the device and its output left there."""
    device = torch.device(operator.device)
    dtype = getattr(torch, operator.dtype)
    folder = resolve_checkpoint(operator).folder
    model = AutoModel.from_pretrained(folder, dtype=dtype).eval()
    model = model.to(device)

    def batches(batch_size: int) -> Iterator[int]:
        pixels = random_pixels(batch_size).to(device, dtype) / 255
        while True:
            model(pixel_values=pixels)
            if device.type == "cuda":
                torch.cuda.synchronize()
            yield batch_size

    with torch.inference_mode():
        return max(count_per_second(batches(size), seconds) for size in BARE_BATCH_SIZES)


def measure(source: str, operator: ImageViTEmbedding, arguments: argparse.Namespace) -> list[float]:
    """Images per second in all, and the GPU's busy share meanwhile (nan without one)."""
    context = get_context("spawn")
    barrier, rates = context.Barrier(arguments.processes + 1), context.Queue()
    cores = len(os.sched_getaffinity(0))
    task = Task(
        gpu_addresses=("0",) if operator.device == "cuda" else (),
        cpus=max(1, cores // arguments.processes),
        is_local=True,
        executor=ExecutorProcess.of(os.getpid()),
        executor_cores=cores,
    )
    photographs = [jpeg_bytes(seed) for seed in range(PHOTOGRAPH_COUNT)] if source == "JPEG" else []
    given = (source, operator, task, arguments.seconds, photographs, barrier, rates)
    processes = [context.Process(target=feed, args=given) for _ in range(arguments.processes)]
    for process in processes:
        process.start()
    barrier.wait(600)
    busy, stop = [], threading.Event()
    watcher = threading.Thread(target=watch_gpu, args=(busy, stop))
    time.sleep(WARM_UP_SECONDS)
    watcher.start()
    found = [rates.get(timeout=arguments.seconds + 120) for _ in processes]
    stop.set()
    watcher.join()
    for process in processes:
        process.join()
        if process.exitcode:
            sys.exit(f"a feeding process ended with {process.exitcode}")
    return [sum(found), statistics.mean(busy) if busy else float("nan")]


def watch_gpu(busy: list[float], stop: threading.Event) -> None:
    """Sample the share of time in which the GPU computed anything."""
    while shutil.which("nvidia-smi") and not stop.wait(SAMPLE_SECONDS):
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        said = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        busy.append(float(said.split()[0]) / 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="vit-b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--processes", type=int, default=4, help="that feed at once")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpu-serving-") as folder:
        torch.manual_seed(0)
        AutoModel.from_config(MODELS[arguments.model]).save_pretrained(folder)
        ViTImageProcessor(**VIT_PROCESSOR).save_pretrained(folder)
        operators = {
            mode: ImageViTEmbedding(
                model_name=folder,
                device=arguments.device,
                dtype=arguments.dtype,
                batch_size=arguments.batch_size,
                model_sharing=mode,
            )
            for mode in MODES
        }
        bare = bare_loop(operators["worker"], arguments.seconds)
        print(f"{'bare loop':28} {bare:10.1f} images/s", flush=True)
        for source in SOURCES:
            for mode in MODES:
                # The server ends with this process: the next measurement finds an empty GPU.
                with ProcessPoolExecutor(1, get_context("spawn")) as executor:
                    given = (source, operators[mode], arguments)
                    rate, busy = executor.submit(measure, *given).result()
                what = f"{source}, {mode}"
                print(
                    f"{what:28} {rate:10.1f} images/s  {rate / bare:5.2f} of the bare loop, "
                    f"GPU busy {busy:.0%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
