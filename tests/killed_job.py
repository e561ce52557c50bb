"""The job that the kill harness kills: photographs into a table, its phases in a log.

python killed_job.py MASTER PHOTOS TABLE CHECKPOINT LOG ROWS_PER_COMMIT [STREAM'S_CHECKPOINT]

With a folder for a stream's checkpoint it reads the photographs as a stream, in batches of as many
files as a commit takes rows.
"""

import logging
import sys

from pyspark.sql import SparkSession

from spark_vision import (
    ImageViTEmbedding,
    configure,
    stream_vision_columns,
    write_vision_columns,
)
from spark_vision.tables.inputs import stream_images


def main(master, photos, table, checkpoint, log, rows_per_commit, stream_checkpoint=None):
    logging.basicConfig(filename=log, format="%(message)s")
    logging.getLogger("spark_vision.tables").setLevel(logging.INFO)
    builder = (
        SparkSession.builder.master(master)
        .config("spark.executor.memory", "640m")
        .config("spark.driver.memory", "640m")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.log.level", "OFF")
        # A killed executor or worker fails tasks, which are tried again.
        .config("spark.task.maxFailures", "20")
        .config("spark.stage.maxConsecutiveAttempts", "20")
    )
    spark = configure(builder).getOrCreate()
    logging.getLogger("spark_vision.tables").info("start")
    columns = {"embedding": ImageViTEmbedding(model_name=checkpoint, batch_size=4)}
    if stream_checkpoint is None:
        source = spark.read.format("binaryFile").load(photos)
        write_vision_columns(source, table, ["path"], columns, rows_per_commit=int(rows_per_commit))
    else:
        source = stream_images(spark, photos, max_files=int(rows_per_commit))
        stream_vision_columns(
            source, table, ["path"], columns, checkpoint=stream_checkpoint
        ).awaitTermination()
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
