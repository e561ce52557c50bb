"""The job that the kill harness kills: photographs into a table, its phases in a log.

python killed_job.py MASTER PHOTOS TABLE CHECKPOINT LOG ROWS_PER_COMMIT
"""

import logging
import sys

from pyspark.sql import SparkSession

from spark_vision import ImageViTEmbedding, configure, write_vision_columns


def main(master, photos, table, checkpoint, log, rows_per_commit):
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
    source = spark.read.format("binaryFile").load(photos)
    write_vision_columns(
        source,
        table,
        ["path"],
        {"embedding": ImageViTEmbedding(model_name=checkpoint, batch_size=4)},
        rows_per_commit=int(rows_per_commit),
    )
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
