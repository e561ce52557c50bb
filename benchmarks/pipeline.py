"""How busy a task keeps an accelerator: images per second of the whole feed, without a GPU.

Processes stand for the Python workers of one executor. The accelerator is simulated: a forward
takes the device for a time in proportion to its rows, and no CPU. It is as fast as a share of what
the host can decode: 0.5, 1 or 2. Decoding is real (JPEG, 500 × 375), or a pause per image, so that
few cores do not hide faults of the pipeline itself. With either, the host's rate is measured first,
by the same threads without a model. A rate is compared with the ideal, min(device, host).

    .venv/bin/python benchmarks/pipeline.py [--seconds 4] [--decoding emulated] [--mode executor]
        [--shapes 1x16 2x8 4x4]
"""

import argparse
import ctypes
import itertools
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import torch
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from photographs import HEIGHT, WIDTH, jpeg_bytes
from random_checkpoints import VIT_PROCESSOR
from spark_vision import ImageViTEmbedding
from spark_vision.executor import embedding, model_access
from spark_vision.executor.columns import compute_columns
from spark_vision.executor.devices import use_one_core
from spark_vision.executor.embedding import ImageEmbeddings
from spark_vision.executor.image_rows import ImageRows
from spark_vision.executor.task import ExecutorProcess, Task
from spark_vision.model_server.model_calls import ModelCalls
from spark_vision.model_server.server import ModelServer
from spark_vision.model_server.start import listen
from spark_vision.models.checkpoints import resolve_checkpoint

SHAPES = ("1x2", "2x1", "4x1")
BATCH_SIZES = (32, 128)
SHARES = (0.5, 1.0, 2.0)
DIMENSION = 768
JOINED_ROW_COUNT = 256
PAUSE_SECONDS = 0.002
PHOTOGRAPH_COUNT = 256
WARM_UP_SECONDS = 1.5

# The processes of one measurement share these; forked and spawned ones get them by argument.
context = get_context("spawn")


@dataclass
class Device:
    """An accelerator that several processes share: it computes one batch after another."""

    lock: Any
    free_at: Any
    rows_per_second: Any

    device = torch.device("cpu")

    def compute(self, row_count: int) -> None:
        """Wait until the device has computed so many rows, after those that came before."""
        with self.lock:
            seconds = row_count / self.rows_per_second.value
            self.free_at.value = max(time.monotonic(), self.free_at.value) + seconds
            end = self.free_at.value
        time.sleep(max(0.0, end - time.monotonic()))

    def embed_images(self, pixels: torch.Tensor, scaling: Any, pooling: str) -> torch.Tensor:
        self.compute(len(pixels))
        return torch.ones(len(pixels), DIMENSION)


class EmulatedDecoding(ImageEmbeddings):
    """Pauses for each image as if a core decoded it, and then has the pixels at once."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._of_thread = threading.local()
        self._pixels = torch.zeros(224, 224, 3, dtype=torch.uint8).permute(2, 0, 1)

    def prepare(self, image: torch.Tensor, prompt: str | None) -> torch.Tensor:
        # A pause that lasted too long shortens the next one.
        now = time.monotonic()
        start = max(getattr(self._of_thread, "end", now), now - PAUSE_SECONDS)
        self._of_thread.end = start + PAUSE_SECONDS
        time.sleep(max(0.0, self._of_thread.end - now))
        return self._pixels


class EmulatedViT(ImageViTEmbedding):
    """Uses `EmulatedDecoding`."""

    def load_work(self) -> Any:
        return EmulatedDecoding


@dataclass(frozen=True)
class Feed:
    """What one process does in one measurement."""

    operator: ImageViTEmbedding
    task: Task
    photographs: list[bytes]
    seconds: float

    def batches(self) -> Iterator[pa.Array]:
        return itertools.repeat(pa.array(self.photographs, pa.binary()))

    def run(self, device: Device, barrier: Any, results: Any) -> None:
        """Measure the host's rate, then the rate of the whole feed for each device."""
        model_access.load_model = lambda *_: device  # for `worker`
        is_shared = self.operator.model_sharing == "executor"
        call_count = model_access.GPU_CALL_COUNT if is_shared else model_access.DEVICE_CALL_COUNT
        reach = embedding.reach_model
        embedding.reach_model = lambda *given: reach(*given)._replace(
            call_count=call_count, prepare_thread=use_one_core
        )
        work = self.operator.load_work()(self.operator, self.task)
        rows = ImageRows(
            self.operator,
            [work.prepare],
            cpu_count=self.task.cpus,
            ahead_count=self.operator.batch_size,
            portion_row_count=work.portion_row_count,
        )
        prepared = rows.prepare((array, None) for array in self.batches())
        self.measure((len(portion) for portion in prepared), barrier, results)
        for _ in SHARES:
            outputs = compute_columns(self.batches(), [self.operator], self.task)
            self.measure((len(vectors) for (vectors,) in outputs), barrier, results)

    def measure(self, counts: Iterator[int], barrier: Any, results: Any) -> None:
        barrier.wait(120)
        count_for(counts, WARM_UP_SECONDS)
        before, started = cpu_seconds(), time.monotonic()
        done = count_for(counts, self.seconds)
        elapsed = time.monotonic() - started
        results.put((done / elapsed, (cpu_seconds() - before) / elapsed))
        barrier.wait(120)


def count_for(counts: Iterator[int], seconds: float) -> int:
    end, done = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        done += next(counts)
    return done


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def serve(config: Any, device: Device, is_listening: Any) -> None:
    """Serve the device like a GPU, under the name at which the clients look for their model."""
    config = replace(config, call_count=model_access.DEVICE_CALL_COUNT)
    calls = ModelCalls(SimpleNamespace(model=device), torch.device("cpu"), 1, JOINED_ROW_COUNT)
    listener = listen(config.name)
    is_listening.set()
    ModelServer(config, listener, lambda _: calls).run()


def measure_cell(
    operator: ImageViTEmbedding, clients: int, cores: int, seconds: float
) -> list[str]:
    """Return the lines of the table for one operator and one number of processes."""
    executor = context.Process(target=time.sleep, args=(600,))
    executor.start()
    task = Task(
        gpu_addresses=(),
        cpus=cores,
        is_local=True,
        executor=ExecutorProcess.of(executor.pid),
        executor_cores=clients * cores,
    )
    device = Device(
        context.Lock(), *(context.Value(ctypes.c_double, 0.0, lock=False) for _ in range(2))
    )
    device.rows_per_second.value = 1e9
    size = (16, 16) if isinstance(operator, EmulatedViT) else (WIDTH, HEIGHT)
    photographs = [jpeg_bytes(seed, *size) for seed in range(PHOTOGRAPH_COUNT)]
    processes = []
    if operator.model_sharing == "executor":
        checkpoint = resolve_checkpoint(operator)
        is_listening = context.Event()
        config = model_access.server_config(
            checkpoint, operator, torch.device("cpu"), task, task.executor
        )
        processes.append(context.Process(target=serve, args=(config, device, is_listening)))
        processes[-1].start()
        is_listening.wait(120)
    barrier, results = context.Barrier(clients + 1), context.Queue()
    feed = Feed(operator, task, photographs, seconds)
    for _ in range(clients):
        processes.append(context.Process(target=feed.run, args=(device, barrier, results)))
        processes[-1].start()
    lines = []

    def all_results() -> tuple[float, float]:
        barrier.wait(120)
        found = [results.get(timeout=120) for _ in range(clients)]
        barrier.wait(120)
        return sum(rate for rate, _ in found), sum(used for _, used in found)

    try:
        host, _ = all_results()
        for share in SHARES:
            device.rows_per_second.value = share * host
            rate, used = all_results()
            busy = rate / device.rows_per_second.value
            ideal = min(share, 1.0) * host
            lines.append(
                f"{share:4} x host {host:8,.0f}/s  {rate:8,.0f}/s  {rate / ideal:5.2f} of ideal, "
                f"device busy {busy:4.0%}, cores {used:.2f}"
            )
    finally:
        executor.terminate()
        for process in processes:
            process.join(30)
            process.terminate()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--decoding", choices=["emulated", "real"], help="only this one")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="processes x cores of each")
    parser.add_argument("--mode", choices=["executor", "worker"], help="only this model_sharing")
    arguments = parser.parse_args()
    decodings = [arguments.decoding] if arguments.decoding else ["emulated", "real"]
    modes = [arguments.mode] if arguments.mode else ["executor", "worker"]
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        model = ViTConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2)
        ViTModel(model, add_pooling_layer=False).save_pretrained(folder)
        ViTImageProcessor(**VIT_PROCESSOR).save_pretrained(folder)
        for decoding, mode, batch_size, shape in itertools.product(
            decodings, modes, BATCH_SIZES, arguments.shapes
        ):
            clients, cores = map(int, shape.split("x"))
            kind = EmulatedViT if decoding == "emulated" else ImageViTEmbedding
            operator = kind(
                model_name=folder, device="cpu", batch_size=batch_size, model_sharing=mode
            )
            for line in measure_cell(operator, clients, cores, arguments.seconds):
                name = f"{decoding}, {mode}, {shape}, batch {batch_size}"
                print(f"{name:36} {line}", flush=True)


if __name__ == "__main__":
    main()
