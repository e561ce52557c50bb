"""One Spark session for the contenders that are a column of Spark."""

from collections.abc import Callable

from contender import CORE_COUNT, Work
from pyspark.sql import Column, SparkSession

from spark_vision import configure


def write_column(work: Work, embed: Callable[[str], Column]) -> Callable[[], None]:
    """Return the job that writes a column of vectors; its session has small batches of rows."""
    builder = SparkSession.builder.master(f"local[{CORE_COUNT}]").config("spark.ui.enabled", False)
    spark = configure(builder, log_level="ERROR").getOrCreate()

    def run() -> None:
        rows = spark.read.parquet(work.source).select("id", embed("content").alias("embedding"))
        rows.write.mode("overwrite").parquet(work.output)

    return run
