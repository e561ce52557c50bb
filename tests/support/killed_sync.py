"""A sync that kills its own process at a point: python killed_sync.py TABLE FILE POINT TIMES."""

import os
import signal
import sys

from pyspark.sql import SparkSession

from quick_spark import quickly
from spark_vision import MilvusIndex, configure, sync_index
from spark_vision.tables import named_points


def main(table, file, point, times):
    left = int(times)

    def kill_at(name):
        nonlocal left
        left -= name == point
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    named_points.at_point = kill_at
    builder = SparkSession.builder.master("local[2]").config("spark.driver.memory", "1g")
    spark = configure(quickly(builder)).getOrCreate()
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "100")
    sync_index(table, "embedding", MilvusIndex(file, "photos"), metadata=["label"])
    raise SystemExit(f"the point {point!r} was not reached {times} times")


if __name__ == "__main__":
    main(*sys.argv[1:])
