"""An image that ends the decoder in a Python worker, or hangs it: the job ends with its row failed.

PNG is decoded in the worker itself. The poisoned decoders are real: the worker dies of them.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import checkpoints
from spark_vision.executor.resource_limits import EXIT_CODE, PATIENCE, DecodeWatchdog

TESTS = Path(__file__).parents[1]
PROGRAM = """
import json, sys
import numpy as np
from pyspark.sql import SparkSession
from encoded_images import encode, photo
from spark_vision import ImageLimits, ImageViTEmbedding, configure, embed_image

ABORTS, SLEEPS = 261, 265
builder = SparkSession.builder.master("local[2,2]").config("spark.ui.enabled", "false")
builder = builder.config("spark.log.level", "OFF").config("spark.driver.memory", "1g")
builder = builder.config("spark.executorEnv.PYTHONPATH", sys.argv[1])
spark = configure(builder).getOrCreate()
operator = ImageViTEmbedding(
    model_name=sys.argv[2], model_sharing="worker", limits=ImageLimits(decode_seconds=4)
)

def embed(widths):
    rows = [(row, bytearray(encode(photo(width, 40), "PNG"))) for row, width in enumerate(widths)]
    images = spark.createDataFrame(
        spark.sparkContext.parallelize(rows, 2), "row int, content binary"
    )
    made = images.select("row", embed_image("content", operator, with_status=True).alias("made"))
    # Spark would compute the rows twice to sort them.
    return [row.made for row in sorted(made.collect())]

widths = list(range(30, 70))
widths[7], widths[33] = ABORTS, SLEEPS
poisoned = embed(widths)
widths[7] = widths[33] = 50
clean = embed(widths)
furthest = max(
    np.abs(np.subtract(one.embedding, other.embedding)).max()
    for one, other in zip(poisoned, clean)
    if one.status == "ok"
)
failed = {
    row: [made.status, made.error] for row, made in enumerate(poisoned) if made.status != "ok"
}
print(json.dumps([float(furthest), {made.status for made in clean} == {"ok"}, failed]))
spark.stop()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_image_that_ends_or_hangs_its_worker_fails_only_its_row(tmp_path):
    checkpoints.write_dinov2(tmp_path / "dinov2")
    path = os.pathsep.join([str(TESTS.parent), str(TESTS / "support")])
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, TESTS / "support" / "poisoned_site", tmp_path / "dinov2"],
        capture_output=True,
        text=True,
        timeout=580,
        env={**os.environ, "PYTHONPATH": path, "PYSPARK_PYTHON": sys.executable},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    furthest, clean_is_ok, failed = json.loads(run.stdout.splitlines()[-1])
    assert failed == {
        "7": ["decode_error", "the decoder ended with signal 6 on this PNG"],
        "33": ["timeout", "the PNG was not decoded within 4 s"],
    }
    assert clean_is_ok
    assert furthest < 1e-5
    assert "this Python worker exits" in run.stderr


def test_a_decoder_that_hangs_ends_its_process():
    ended = threading.Event()
    codes = []

    def end(code):
        codes.append(code)
        ended.set()

    watch = DecodeWatchdog(0.2 / PATIENCE, end)
    with watch.running(), watch:
        assert ended.wait(60)
    assert codes == [EXIT_CODE]


@pytest.mark.parametrize("seconds", [None, 3600.0])
def test_nothing_ends_while_images_come_and_go(seconds):
    watch = DecodeWatchdog(seconds, pytest.fail)
    with watch.running():
        for _ in range(1000):
            with watch:
                pass
    assert not watch._started
