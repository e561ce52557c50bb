"""The job that the kill harness kills: photographs into a table, with points that it stops at.

python killed_job.py MASTER PHOTOS TABLE CHECKPOINT LOG POINTS ROWS_PER_COMMIT [STREAM'S_CHECKPOINT]

With a folder for a stream's checkpoint it reads the photographs as a stream, in batches of as many
files as a commit takes rows.
"""

import logging
import os
import sys
from functools import partial
from pathlib import Path

from pyspark.sql import SparkSession

from quick_spark import quickly
from spark_vision import (
    ImageViTEmbedding,
    configure,
    stream_vision_columns,
    write_vision_columns,
)
from spark_vision.cli.inputs import stream_images
from spark_vision.tables import named_points as points

WORKER_SITE = Path(__file__).parent / "worker_site"
sys.path.append(str(WORKER_SITE))
from reached_points import stop_at  # noqa: E402 - it lies beside what workers import


def main(
    master, photos, table, checkpoint, log, points_folder, rows_per_commit, stream_checkpoint=None
):
    logging.basicConfig(filename=log, format="%(message)s")
    logging.getLogger("spark_vision.tables").setLevel(logging.INFO)
    points.at_point = partial(stop_at, Path(points_folder))
    package = Path(points.__file__).parents[2]
    builder = (
        SparkSession.builder.master(master)
        .config("spark.executor.memory", "640m")
        .config("spark.driver.memory", "640m")
        .config("spark.executorEnv.PYTHONPATH", os.pathsep.join(map(str, [WORKER_SITE, package])))
        .config("spark.python.daemon.module", "warm_daemon")
        .config("spark.executorEnv.REACHED_POINTS", points_folder)
        # A killed executor or worker fails tasks, which are tried again.
        .config("spark.task.maxFailures", "20")
        .config("spark.stage.maxConsecutiveAttempts", "20")
    )
    spark = configure(quickly(builder)).getOrCreate()
    columns = {"embedding": ImageViTEmbedding(model_name=checkpoint, batch_size=4)}
    if stream_checkpoint is None:
        source = spark.read.format("binaryFile").load(photos)
        write_vision_columns(source, table, ["path"], columns, rows_per_commit=int(rows_per_commit))
    else:
        source = stream_images(spark, photos, max_files=int(rows_per_commit))
        stream_vision_columns(
            source, table, ["path"], columns, checkpoint_location=stream_checkpoint
        ).awaitTermination()
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
