"""How much of `generate`'s own speed captions reach: JPEG bytes in Spark to texts in Parquet.

Beside the job, in turn: a bare loop of transformers' `generate` over ready-made full batches of the
same rows, sorted by their number of tokens, in a process with as many threads as the job's model.
Both run a small Qwen2.5-VL with random weights. `equal` has images of one size, one prompt and
captions of one length; `mixed` has all of them different.

    .venv/bin/python benchmarks/captioning.py [--rows 64] [--rounds 5] [--rows-of equal|mixed]
"""

import argparse
import io
import statistics
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from PIL import Image
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from transformers import AutoModelForImageTextToText, AutoProcessor

from photographs import jpeg_bytes
from random_checkpoints import write_qwen_vl
from spark_vision import QwenVLImageUnderstanding, caption_image, configure

BATCH_SIZE = 4
NEW_TOKENS = 32
MAX_PIXELS = 448 * 336
SIZES = {"equal": [(500, 375)], "mixed": [(500, 375), (200, 150), (640, 160), (375, 500), (90, 90)]}
PROMPTS = {
    "equal": ["Describe it."],
    "mixed": ["What is it?", "Describe it in all of its details, please. " * 3, "Where?"],
}


def make_rows(kind: str, count: int) -> list[tuple[int, bytes, str]]:
    """Make (id, JPEG, prompt) rows; sizes and prompts take turns."""
    sizes, prompts = SIZES[kind], PROMPTS[kind]
    return [
        (row, jpeg_bytes(row, *sizes[row % len(sizes)]), prompts[row % len(prompts)])
        for row in range(count)
    ]


def run_bare_loop(folder: str, rows: list[tuple[int, bytes, str]], channel: Connection) -> None:
    """Make the batches ready, then generate them all at each word from the channel."""
    torch.set_num_threads(1)
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    def inputs_of(batch):
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}]
            )
            for _, _, asked in batch
        ]
        images = [Image.open(io.BytesIO(data)).convert("RGB") for _, data, _ in batch]
        return processor(text=texts, images=images, padding=True, return_tensors="pt")

    rows = sorted(rows, key=lambda row: inputs_of([row])["input_ids"].shape[1])
    batches = [inputs_of(rows[at : at + BATCH_SIZE]) for at in range(0, len(rows), BATCH_SIZE)]
    channel.send("ready")
    while channel.recv():
        token_count = 0
        with torch.inference_mode():
            for batch in batches:
                output = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
                new = output[:, batch["input_ids"].shape[1] :]
                token_count += int((new != model.generation_config.pad_token_id).sum())
        channel.send(token_count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64, help="images per round")
    parser.add_argument("--model-sharing", default="worker", choices=["worker", "executor"])
    parser.add_argument("--rounds", type=int, default=5, help="alternated rounds")
    parser.add_argument("--rows-of", default="mixed", choices=list(SIZES))
    arguments = parser.parse_args()

    folder = Path(tempfile.mkdtemp(prefix="captioning-"))
    stops = arguments.rows_of == "mixed"
    checkpoint = str(write_qwen_vl(folder / "qwen", MAX_PIXELS, stops=stops))
    rows = make_rows(arguments.rows_of, arguments.rows)
    operator = QwenVLImageUnderstanding(
        model_name=checkpoint,
        dtype="float32",
        batch_size=BATCH_SIZE,
        model_sharing=arguments.model_sharing,
        max_caption_length=NEW_TOKENS,
        use_flash_attention_2=False,
    )
    ours, theirs = get_context("spawn").Pipe()
    loop = get_context("spawn").Process(target=run_bare_loop, args=(checkpoint, rows, theirs))
    loop.start()
    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", False)
    spark = configure(builder).getOrCreate()
    source = spark.createDataFrame(rows, "id int, content binary, asked string").coalesce(1).cache()
    assert source.count() == arguments.rows
    assert ours.recv() == "ready"

    ratios, job_rates, bare_rates = [], [], []
    for round_number in range(arguments.rounds + 1):
        started = time.perf_counter()
        captions = source.select(
            "id", caption_image("content", operator, F.col("asked")).alias("c")
        )
        captions.write.mode("overwrite").parquet(str(folder / "captions"))
        job_rate = arguments.rows / (time.perf_counter() - started)

        started = time.perf_counter()
        ours.send(True)
        token_count = ours.recv()
        bare_rate = arguments.rows / (time.perf_counter() - started)
        if round_number == 0:  # loads the models and warms everything
            continue
        job_rates.append(job_rate)
        bare_rates.append(bare_rate)
        ratios.append(job_rate / bare_rate)
        print(f"round {round_number}: job {job_rate:.2f}/s, bare {bare_rate:.2f}/s", flush=True)
    ours.send(False)
    loop.join()
    tokens = token_count / arguments.rows
    for name, rates in (("job", job_rates), ("bare loop", bare_rates)):
        rate = statistics.median(rates)
        print(f"{name}: median {rate:.2f} images/s, {rate * tokens:.0f} tokens/s")
    print(f"job / bare loop: median {statistics.median(ratios):.3f}, rounds", end=" ")
    print(" ".join(f"{ratio:.3f}" for ratio in ratios))
    spark.stop()


if __name__ == "__main__":
    main()
