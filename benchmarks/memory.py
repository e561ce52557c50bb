"""How much memory a worker needs beyond the Arrow batch itself: 10,000 images of 5 MB in one batch.

Such a batch holds 50 GB, more than a machine like this one has, so the rows are Arrow views of a
few distinct images, which the code reads as it reads any other bytes; with `--source url` they are
paths. With `--captions` photographs of 4000×3000 pixels are captioned, 4 at a time, by a small
Qwen2.5-VL of so many pixels at most.

    .venv/bin/python benchmarks/memory.py [--rows 10000] [--source binary|url] [--cpus 2]
    .venv/bin/python benchmarks/memory.py --rows 64 --captions 1003520
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from photographs import jpeg_bytes
from random_checkpoints import write_feather_clip, write_qwen_vl
from spark_vision import ClipImageEmbedding, QwenVLImageUnderstanding
from spark_vision.executor.columns import compute_columns
from spark_vision.executor.task import Task

DISTINCT_COUNT = 4


def view_array(contents: list[bytes], count: int) -> pa.Array:
    """Make a binary_view array of `count` rows over the buffers of a few contents."""
    views = np.zeros(
        count, [("length", "<i4"), ("prefix", "S4"), ("buffer", "<i4"), ("offset", "<i4")]
    )
    chosen = np.arange(count) % len(contents)
    views["length"] = np.array([len(content) for content in contents])[chosen]
    views["prefix"] = np.array([content[:4] for content in contents], "S4")[chosen]
    views["buffer"] = chosen
    buffers = [None, pa.py_buffer(views.tobytes()), *map(pa.py_buffer, contents)]
    return pa.Array.from_buffers(pa.binary_view(), count, buffers)


class PeakMemory:
    """The most resident memory of this process while the block runs, in bytes."""

    def __enter__(self) -> "PeakMemory":
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._ended.wait(0.01):
            self.peak_bytes = max(self.peak_bytes, process.memory_info().rss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--source", default="binary", choices=["binary", "url"])
    parser.add_argument("--cpus", type=int, default=2, help="cores of the task")
    parser.add_argument("--captions", type=int, metavar="MAX_PIXELS", help="of the Qwen2.5-VL")
    arguments = parser.parse_args()
    size = (4000, 3000) if arguments.captions else (3000, 2250)
    with tempfile.TemporaryDirectory() as folder:
        contents = [jpeg_bytes(seed, *size, 94, grain=17) for seed in range(DISTINCT_COUNT)]
        print("bytes of the distinct images:", [len(content) for content in contents])
        if arguments.source == "url":
            for seed, content in enumerate(contents):
                (Path(folder) / f"{seed}.jpg").write_bytes(content)
            names = [f"{folder}/{row % DISTINCT_COUNT}.jpg" for row in range(arguments.rows)]
            batch = pa.array(names)
        else:
            batch = view_array(contents, arguments.rows)
        operator: ClipImageEmbedding | QwenVLImageUnderstanding
        if arguments.captions:
            checkpoint = write_qwen_vl(
                Path(folder) / "qwen", arguments.captions, hidden_size=96, stops=False
            )
            operator = QwenVLImageUnderstanding(
                model_name=str(checkpoint),
                dtype="float32",
                max_caption_length=2,
                allow_paths=folder,
            )
        else:
            name = str(write_feather_clip(Path(folder) / "clip", 224))
            operator = ClipImageEmbedding(model_name=name, allow_paths=folder)
        task = Task(gpu_addresses=(), cpus=arguments.cpus)
        small = pa.array([jpeg_bytes(0)] * 8, pa.binary())
        list(compute_columns([small], [operator], task))
        baseline_bytes = psutil.Process().memory_info().rss
        started = time.monotonic()
        with PeakMemory() as memory:
            done = sum(len(array) for (array,) in compute_columns([batch], [operator], task))
    assert done == arguments.rows
    print(f"{done} rows in {time.monotonic() - started:.0f} s from one {arguments.source} batch")
    print(f"resident before {baseline_bytes / 2**20:.0f} MiB, ", end="")
    print(f"peak beyond that {(memory.peak_bytes - baseline_bytes) / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
