"""How much of the model's own speed a job reaches: ViT-B/16 from JPEG bytes in Parquet to vectors.

Beside it, in turn: a bare torch loop over ready pixels, in as many processes with as many threads
each as the job has slots and cores per slot. Both run Hugging Face's ViT at full size with random
weights.

    .venv/bin/python benchmarks/model_rate.py [--rows 256] [--dtype float32] [--rounds 5]
"""

import argparse
import statistics
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch
from pyspark.sql import SparkSession
from transformers import ViTModel

from photographs import write_parquet
from random_checkpoints import write_vit_base
from spark_vision import ImageViTEmbedding, configure, embed_image

SLOT_COUNT = 2
BATCH_SIZE = 32


def run_bare_loop(
    checkpoint: str, dtype: str, batch_count: int, rounds: int, barrier: Barrier
) -> None:
    """Wait for each round to start, then embed so many batches of ready pixels."""
    torch.set_num_threads(1)
    model = ViTModel.from_pretrained(
        checkpoint, dtype=getattr(torch, dtype), add_pooling_layer=False
    ).eval()
    pixels = torch.randint(0, 256, (BATCH_SIZE, 3, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        for _ in range(rounds):
            barrier.wait()
            for _ in range(batch_count):
                ready = (pixels.float() / 127.5 - 1).to(model.dtype)
                model(ready).last_hidden_state[:, 0].float().numpy()
            barrier.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256, help="images per round")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--model-sharing", default="worker", choices=["worker", "executor"])
    parser.add_argument("--rounds", type=int, default=5, help="alternated rounds")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "model-rate")
    arguments = parser.parse_args()

    photographs = arguments.data / f"photographs-{arguments.rows}"
    write_parquet(photographs, arguments.rows, file_count=SLOT_COUNT)
    checkpoint = str(write_vit_base(arguments.data / "vit"))
    operator = ImageViTEmbedding(
        model_name=checkpoint,
        dtype=arguments.dtype,
        batch_size=BATCH_SIZE,
        model_sharing=arguments.model_sharing,
    )
    builder = SparkSession.builder.master(f"local[{SLOT_COUNT}]").config("spark.ui.enabled", False)
    builder = builder.config("spark.sql.files.maxPartitionBytes", "1g")
    builder = builder.config("spark.sql.files.minPartitionNum", SLOT_COUNT)
    spark = configure(builder).getOrCreate()
    source = spark.read.parquet(str(photographs)).repartition(SLOT_COUNT).cache()
    assert source.count() == arguments.rows

    processes = get_context("spawn")
    barrier = processes.Barrier(SLOT_COUNT + 1)
    batch_count = arguments.rows // BATCH_SIZE // SLOT_COUNT
    loop_rows = batch_count * BATCH_SIZE * SLOT_COUNT
    loops = [
        processes.Process(
            target=run_bare_loop,
            args=(checkpoint, arguments.dtype, batch_count, arguments.rounds + 1, barrier),
        )
        for _ in range(SLOT_COUNT)
    ]
    for loop in loops:
        loop.start()

    ratios, job_rates, bare_rates = [], [], []
    for round_number in range(arguments.rounds + 1):
        started = time.perf_counter()
        embedded = source.select("id", embed_image("content", operator).alias("embedding"))
        embedded.write.mode("overwrite").parquet(str(arguments.data / "vectors"))
        job_rate = arguments.rows / (time.perf_counter() - started)

        barrier.wait()
        started = time.perf_counter()
        barrier.wait()
        bare_rate = loop_rows / (time.perf_counter() - started)
        if round_number == 0:  # loads the models and warms everything
            continue
        job_rates.append(job_rate)
        bare_rates.append(bare_rate)
        ratios.append(job_rate / bare_rate)
        print(
            f"round {round_number}: job {job_rate:.2f}/s, bare loop {bare_rate:.2f}/s", flush=True
        )
    for loop in loops:
        loop.join()
    print(f"median job {statistics.median(job_rates):.2f} images/s", end=", ")
    print(f"bare loop {statistics.median(bare_rates):.2f} images/s")
    print(f"job / bare loop: median {statistics.median(ratios):.3f}, rounds", end=" ")
    print(" ".join(f"{ratio:.3f}" for ratio in ratios))
    spark.stop()


if __name__ == "__main__":
    main()
