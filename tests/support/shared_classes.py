"""Writes an archive of the classes that Spark loads, which all JVMs of the tests map into memory.

    PYTHONPATH=tests/support python -m shared_classes

Without it, each JVM reads, checks and links them again, which is a third of what a short one
takes. A JVM with other JARs, or of another version, does without the archive.
"""

import os
import tempfile
from pathlib import Path

import quick_spark


def main() -> None:
    """Run a session that writes a Delta table, and leaves the archive behind when it ends."""
    archive = quick_spark.CLASSES
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        partial = Path(folder) / archive.name
        # Classes that cannot be archived are of no concern.
        quiet = "-Xlog:cds=off -Xlog:cds+dynamic=off"
        os.environ["SPARK_SUBMIT_OPTS"] = (
            f"{quick_spark.COMPILER_OPTIONS} -XX:ArchiveClassesAtExit={partial} {quiet}"
        )
        _use_spark(f"{folder}/table")
        partial.replace(archive)


def _use_spark(table: str) -> None:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    from spark_vision.session import configure

    spark = configure(quick_spark.quickly(SparkSession.builder.master("local[2]"))).getOrCreate()
    rows = spark.createDataFrame([(key, "text") for key in range(4)], "id int, text string")
    rows.write.format("delta").save(table)
    rows.createOrReplaceTempView("rows")
    spark.sql(
        f"MERGE INTO delta.`{table}` AS t USING rows AS s ON t.id = s.id + 2 "
        "WHEN MATCHED THEN UPDATE SET text = s.text WHEN NOT MATCHED THEN INSERT *"
    ).collect()
    spark.read.format("delta").load(table).groupBy("text").count().toPandas()
    gateway = SparkContext._gateway
    spark.stop()
    # The archive is written when the JVM ends, and that ends with its input.
    gateway.proc.stdin.close()
    gateway.proc.wait()


if __name__ == "__main__":
    main()
