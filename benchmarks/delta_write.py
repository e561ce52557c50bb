"""What a Delta table costs beyond the model: its write, a run with nothing to do, a second column.

A first write is compared with one to plain Parquet, and with `df.write.format("delta")` of the same
vectors by the same function in the same waves.

Vectors are made of random numbers on the executors, without a model; all else is the package's own.
The source holds blobs and a column that says when one changed.

    .venv/bin/python benchmarks/delta_write.py [--rows 1000000] [--distinct 100000]
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from random_checkpoints import write_feather_clip
from spark_vision import ClipImageEmbedding, configure, write_vision_columns
from spark_vision.tables import structs
from spark_vision.udfs import value_type
from spark_vision.vectorized import vectorized_udf

DIMENSION = 768
ADDED_ROWS = 1000
KEYS = ["id"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--distinct", type=int, default=100_000)
    parser.add_argument("--blob-bytes", type=int, default=20_000)
    parser.add_argument("--rows-per-commit", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, default=None, help="where there is room")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    folder = Path(tempfile.mkdtemp(prefix="delta-write-", dir=arguments.folder))
    spark = start_session()
    try:
        measure(spark, folder, arguments)
    finally:
        spark.stop()
        shutil.rmtree(folder)


def measure(spark: SparkSession, folder: Path, arguments: argparse.Namespace) -> None:
    structs.images_udf = random_vectors
    clip = ClipImageEmbedding(model_name=str(write_feather_clip(folder / "clip", 28)))
    source, table = str(folder / "source"), str(folder / "table")
    write_blobs(spark, source, 0, arguments.rows, arguments)

    def write(*columns: str) -> int:
        rows = spark.read.parquet(source)
        return write_vision_columns(
            rows,
            table,
            KEYS,
            dict.fromkeys(columns, clip),
            version_columns=["etag"],
            rows_per_commit=arguments.rows_per_commit,
        ).computed

    def write_plain() -> None:
        vector = random_vectors({"first": clip}, {})("content")["first"]["embedding"]
        spark.read.parquet(source).select("id", vector.alias("first")).write.parquet(
            str(folder / "plain")
        )

    def write_delta() -> None:
        vector = random_vectors({"first": clip}, {})("content")["first"]
        rows = spark.read.parquet(source)
        for start in range(0, arguments.rows, arguments.rows_per_commit):
            wave = rows.filter(F.col("id").between(start, start + arguments.rows_per_commit - 1))
            made = wave.select("id", vector.alias("first")).select("id", "first.*")
            made.write.format("delta").mode("append").save(str(folder / "delta"))

    # Workers and code are warm before anything is measured.
    warm = spark.read.parquet(source).limit(100)
    write_vision_columns(warm, str(folder / "warm"), KEYS, {"first": clip})
    plain = report(spark, "plain Parquet", write_plain)
    first = report(spark, "first write", lambda: write("first"))
    delta = report(spark, "plain Delta, in waves", write_delta)
    print(
        f"write overhead: {first['seconds'] / plain['seconds']:.2f} times plain Parquet, "
        f"{first['seconds'] / delta['seconds']:.2f} times plain Delta"
    )
    print(f"bytes per row: {table_bytes(spark, table) / arguments.rows:,.0f}")
    report(spark, "run with nothing to do", lambda: write("first"))
    write_blobs(spark, source, arguments.rows, ADDED_ROWS, arguments)
    report(spark, f"{ADDED_ROWS:,} rows added", lambda: write("first"))
    filled = report(spark, "second column", lambda: write("first", "second"))
    after = table_bytes(spark, table)
    print(f"write amplification: {filled['written'] / after:.2f}, change feed included")
    detail = spark.sql(f"DESCRIBE DETAIL delta.`{table}`").first()
    print(f"files: {detail['numFiles']}, bytes per row: {after / arguments.rows:,.0f}")


def start_session() -> SparkSession:
    builder = (
        SparkSession.builder.master("local[2]")
        .config("spark.driver.memory", "6g")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "true")
        .config("spark.ui.retainedStages", "100000")
        .config("spark.ui.retainedTasks", "1000")
        .config("spark.log.level", "ERROR")
        .config("spark.sql.shuffle.partitions", "8")
    )
    return configure(builder).getOrCreate()


def random_vectors(operators, counters, *, keys=()):
    """Take the place of the function that runs the models: it reads the images, and no more."""
    import pyspark.cloudpickle as cloudpickle
    from pyspark.sql.types import StructField, StructType

    cloudpickle.register_pickle_by_value(__import__(__name__))
    names = list(operators)

    def compute(batches):
        random = np.random.default_rng()
        for batch in batches:
            count = len(batch)
            numbers = random.standard_normal(count * DIMENSION, dtype=np.float32) / 28
            offsets = np.arange(count + 1, dtype=np.int32) * DIMENSION
            vectors = pa.ListArray.from_arrays(pa.array(offsets), pa.array(numbers))
            said = pa.array(["ok"] * count), pa.nulls(count, pa.string())
            value = pa.StructArray.from_arrays(
                [vectors, *said], names=["embedding", "status", "error"]
            )
            yield pa.StructArray.from_arrays([value] * len(names), names=names)

    fields = [StructField(name, value_type(each)) for name, each in operators.items()]
    return vectorized_udf(compute, StructType(fields), "random_vectors").asNondeterministic()


def write_blobs(
    spark: SparkSession, place: str, start: int, count: int, arguments: argparse.Namespace
) -> None:
    """Write rows of random bytes, and a text that says when they changed."""
    size, distinct = arguments.blob_bytes, arguments.distinct

    def blobs(batches):
        for ids in batches:
            seeds = [number % distinct for number in ids.to_pylist()]
            yield pa.array([np.random.default_rng(seed).bytes(size) for seed in seeds], pa.binary())

    make = vectorized_udf(blobs, "binary", "blobs")
    rows = spark.range(start, start + count, 1, max(1, count // 10_000))
    rows.select(
        "id", make("id").alias("content"), F.sha1(F.col("id").cast("string")).alias("etag")
    ).write.mode("append").parquet(place)


def report(spark: SparkSession, name: str, work) -> dict[str, float]:
    """Measure seconds, and the bytes that Spark's tasks read and wrote."""
    read, written = moved_bytes(spark)
    started = time.monotonic()
    work()
    seconds = time.monotonic() - started
    read, written = (
        now - then for now, then in zip(moved_bytes(spark), (read, written), strict=True)
    )
    print(f"{name}: {seconds:,.1f} s, {read / 1e6:,.1f} MB read, {written / 1e6:,.1f} MB written")
    return {"seconds": seconds, "read": read, "written": written}


def moved_bytes(spark: SparkSession) -> tuple[int, int]:
    """Bytes that the JVM has read, from files and workers, and that tasks have written to files."""
    time.sleep(1)  # Spark's own counts come a moment after the tasks.
    context = spark.sparkContext
    address = f"{context.uiWebUrl}/api/v1/applications/{context.applicationId}/stages"
    with urllib.request.urlopen(address) as answer:
        stages = json.load(answer)
    # Spark does not count what is read in the thread that feeds a Python worker.
    process = spark._jvm.java.lang.ProcessHandle.current().pid()
    counts = dict(line.split(": ") for line in Path(f"/proc/{process}/io").read_text().splitlines())
    return int(counts["rchar"]), sum(each["outputBytes"] for each in stages)


def table_bytes(spark: SparkSession, table: str) -> int:
    """The size of the table's latest version."""
    return int(spark.sql(f"DESCRIBE DETAIL delta.`{table}`").first()["sizeInBytes"])


if __name__ == "__main__":
    main()
