"""What a Delta table costs beyond the model: writes, a run with nothing to do, a second column.

Each part stands alone and alternates what it compares:

    write   a first write, beside plain Parquet and beside `df.write.format("delta")` of the same
            vectors by the same function in the same waves; then a run with nothing to do, 1,000
            rows more, and a second column, in the same table
    fill    a second column with and without a change data feed, beside a table of its own
    device  ten waves by a simulated accelerator, which sleeps and uses no CPU: how busy it is
    images  photographs through the package's own function, beside plain Parquet by it
    keys    what a wave costs where the table has ten million keys already

Vectors are made of random numbers on the executors, without a model, except in `images`.

    .venv/bin/python benchmarks/delta_write.py [--part write] [--rows 100000] [--rounds 3]
"""

import argparse
import json
import logging
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from photographs import write_parquet
from random_checkpoints import write_feather_clip
from spark_vision import ClipImageEmbedding, configure, embed_image, write_vision_columns
from spark_vision.spark.arrow_udf import make_arrow_udf
from spark_vision.spark.udfs import value_type
from spark_vision.tables import structs

CORE_COUNT = 2
DIMENSION = 768
KEY_COUNT = 10_000_000
ADDED_ROWS = 1000
FILE_PHOTOGRAPHS = 6000
KEYS = ["id"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", default="write", choices=list(PARTS))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--distinct", type=int, default=20_000, help="blobs, or photographs")
    parser.add_argument("--blob-bytes", type=int, default=20_000)
    parser.add_argument("--rows-per-commit", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device-rate", type=int, default=2_000, help="rows per second")
    parser.add_argument("--folder", type=Path, default=None, help="where there is room")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    folder = Path(tempfile.mkdtemp(prefix="delta-write-", dir=arguments.folder))
    spark = start_session()
    try:
        PARTS[arguments.part](Bench(spark, folder, arguments))
    finally:
        spark.stop()
        shutil.rmtree(folder)


class Bench:
    """A session, a source of rows, and ways to write them."""

    def __init__(self, spark: SparkSession, folder: Path, arguments: argparse.Namespace) -> None:
        self.spark, self.folder, self.arguments = spark, folder, arguments
        self.rows, self.wave = arguments.rows, arguments.rows_per_commit
        self.source = str(folder / "source")
        self.operator = ClipImageEmbedding(
            model_name=str(write_feather_clip(folder / "clip", 112)), batch_size=128
        )

    def make_source(self) -> None:
        """Write the source, and warm workers and code."""
        write_blobs(self.spark, self.source, 0, self.rows, self.arguments)
        self.write("warm", ["first"], source=self.read().limit(100))

    def read(self) -> DataFrame:
        """Read the source anew."""
        return self.spark.read.parquet(self.source)

    def table(self, name: str) -> str:
        """Give the folder of a table."""
        return str(self.folder / name)

    def write(self, name: str, columns: Sequence[str], **options: Any) -> None:
        """Write a table by the package's own way."""
        options = {"version_columns": ["etag"], "rows_per_commit": self.wave, **options}
        source = options.pop("source", None) or self.read()
        operators = dict.fromkeys(columns, self.operator)
        write_vision_columns(source, self.table(name), KEYS, operators, **options)

    def write_parquet(self, column: Column) -> None:
        """Write the same vectors to plain Parquet, in one piece."""
        rows = self.read().select("id", column.alias("first"))
        rows.write.mode("overwrite").parquet(self.table("plain"))

    def write_plain_delta(self) -> None:
        """Append the same vectors to a plain Delta table, in the same waves."""
        value = random_vectors({"first": self.operator}, {})("content")["first"]
        shutil.rmtree(self.table("delta"), ignore_errors=True)
        for start in range(0, self.rows, self.wave):
            wave = self.read().filter(F.col("id").between(start, start + self.wave - 1))
            made = wave.select("id", value.alias("first")).select("id", "first.*")
            made.write.format("delta").mode("append").save(self.table("delta"))

    def bytes_of(self, name: str) -> int:
        """Say how large a table's latest version is."""
        detail = self.spark.sql(f"DESCRIBE DETAIL delta.`{self.table(name)}`").first()
        return int(detail["sizeInBytes"])


def measure_write(bench: Bench) -> None:
    structs.images_udf = random_vectors
    bench.make_source()
    vector = random_vectors({"first": bench.operator}, {})("content")["first"]["embedding"]
    ratios: dict[str, list[float]] = {"plain Parquet": [], "plain Delta": []}
    for number in range(bench.arguments.rounds):
        table = f"table-{number}"
        plain = report(bench.spark, "plain Parquet", bench.write_parquet, vector)
        first = report(bench.spark, "first write", bench.write, table, ["first"])
        delta = report(bench.spark, "plain Delta, in waves", bench.write_plain_delta)
        ratios["plain Parquet"].append(first["seconds"] / plain["seconds"])
        ratios["plain Delta"].append(first["seconds"] / delta["seconds"])
    for name, each in ratios.items():
        print(f"first write / {name}: {describe(each)}")
    print(f"bytes per row: {bench.bytes_of(table) / bench.rows:,.0f}")
    report(bench.spark, "run with nothing to do", bench.write, table, ["first"])
    write_blobs(bench.spark, bench.source, bench.rows, ADDED_ROWS, bench.arguments)
    report(bench.spark, f"{ADDED_ROWS:,} rows added", bench.write, table, ["first"])
    fill(bench, table, "second column")


def fill(bench: Bench, table: str, name: str) -> None:
    """Fill in a second column, and say how often its table is written for it."""
    filled = report(bench.spark, name, bench.write, table, ["first", "second"])
    after = bench.bytes_of(table)
    print(f"  {bench.rows / filled['seconds']:,.0f} rows/s; written / size of the table after it:")
    print(f"  {filled['written'] / after:.2f}; {after / bench.rows:,.0f} bytes per row")


def measure_fill(bench: Bench) -> None:
    structs.images_udf = random_vectors
    bench.make_source()
    no_feed = {"delta.enableChangeDataFeed": "false"}
    for number in range(bench.arguments.rounds):
        bench.write(f"fed-{number}", ["first"])
        fill(bench, f"fed-{number}", "second column, change data feed")
        bench.write(f"unfed-{number}", ["first"], table_properties=no_feed)
        fill(bench, f"unfed-{number}", "second column, no change data feed")
        own = f"own-{number}"
        report(bench.spark, "a table of its own", bench.write, own, ["second"])


def measure_device(bench: Bench) -> None:
    rate = bench.arguments.device_rate
    bench.make_source()
    structs.images_udf = partial(random_vectors, row_seconds=CORE_COUNT / rate)
    for number in range(bench.arguments.rounds):
        wave_count = -(-bench.rows // bench.wave)
        taken = report(
            bench.spark, f"{wave_count} waves", bench.write, f"table-{number}", ["first"]
        )
        print(f"  the device was busy {bench.rows / rate / taken['seconds']:.3f} of the time")


def measure_images(bench: Bench) -> None:
    photographs = bench.folder / "photographs"
    write_parquet(photographs, bench.arguments.distinct)
    images = bench.spark.read.parquet(str(photographs))
    repeat = max(1, bench.rows // bench.arguments.distinct)
    made = images.crossJoin(bench.spark.range(repeat).withColumnRenamed("id", "copy"))
    made = made.select(
        (F.col("id") * repeat + F.col("copy")).alias("id"), "content", F.lit("1").alias("etag")
    )
    # Files of about 128 MB, as tables have.
    made.repartition(-(-bench.rows // FILE_PHOTOGRAPHS)).write.parquet(bench.source)
    vector = embed_image("content", bench.operator)
    bench.write("warm", ["first"], source=bench.read().limit(1000))
    rates = []
    for number in range(bench.arguments.rounds):
        plain = report(bench.spark, "plain Parquet", bench.write_parquet, vector)
        table = f"table-{number}"
        ours = report(bench.spark, "table", bench.write, table, ["first"], rows_per_commit=None)
        rates.append(plain["seconds"] / ours["seconds"])
    print(f"rate of the table / rate of plain Parquet: {describe(rates)}")


def measure_keys(bench: Bench) -> None:
    """Put keys into a table by plain SQL, then write waves beyond them."""
    structs.images_udf = random_vectors
    bench.make_source()
    bench.write("empty", ["first"], source=bench.read().limit(0))
    bench.write("full", ["first"], source=bench.read().limit(0))
    keys = bench.spark.range(1_000_000_000, 1_000_000_000 + KEY_COUNT, 1, 20)
    hashed = F.sha2(F.col("id").cast("string"), 256)
    keys.select(
        "id",
        F.struct(
            hashed.alias("image"),
            *(F.lit(None).cast("string").alias(n) for n in ("text", "prompt")),
        ).alias("source_hash"),
        F.lit(None).cast("array<float>").alias("first"),
        F.lit("timeout").alias("first_status"),
        F.lit("simulated").alias("first_error"),
        F.current_timestamp().alias("updated_at"),
    ).write.format("delta").mode("append").save(bench.table("full"))
    waves = Waves()
    rows = bench.read()
    for number in range(bench.arguments.rounds):
        for table in ("empty", "full"):
            waves.begin(table)
            part = rows.filter(F.col("id") % bench.arguments.rounds == number)
            bench.write(table, ["first"], source=part)
    for table, seconds in waves.seconds.items():
        print(f"seconds of a wave of {bench.wave:,} rows, {table} table: {describe(seconds)}")


class Waves(logging.Handler):
    """Takes the time of each wave from what a run logs."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, list[float]] = {}
        log = logging.getLogger("spark_vision.tables")
        log.setLevel(logging.INFO)
        log.addHandler(self)

    def begin(self, name: str) -> None:
        """Take what follows under this name."""
        self._name = name

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line of the log."""
        text = record.getMessage()
        if ": computing" in text:
            self._started = time.monotonic()
        elif ": committed" in text:
            self.seconds.setdefault(self._name, []).append(time.monotonic() - self._started)


PARTS = {
    "write": measure_write,
    "fill": measure_fill,
    "device": measure_device,
    "images": measure_images,
    "keys": measure_keys,
}


def describe(values: list[float]) -> str:
    """Say the median, and all values."""
    return f"{statistics.median(values):.3f} ({', '.join(f'{each:.3f}' for each in values)})"


def start_session() -> SparkSession:
    builder = (
        SparkSession.builder.master(f"local[{CORE_COUNT}]")
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


def random_vectors(operators, counters, *, spent=None, keys=(), row_seconds=0.0):
    """Take the place of the function that runs the models: it reads the images, and no more."""
    import pyspark.cloudpickle as cloudpickle
    from pyspark.sql.types import StructField, StructType

    cloudpickle.register_pickle_by_value(__import__(__name__))
    names = list(operators)

    def compute(batches):
        random = np.random.default_rng()
        for batch in batches:
            count = len(batch)
            time.sleep(count * row_seconds)
            numbers = random.standard_normal(count * DIMENSION, dtype=np.float32) / 28
            offsets = np.arange(count + 1, dtype=np.int32) * DIMENSION
            vectors = pa.ListArray.from_arrays(pa.array(offsets), pa.array(numbers))
            said = pa.array(["ok"] * count), pa.nulls(count, pa.string())
            value = pa.StructArray.from_arrays(
                [vectors, *said], names=["embedding", "status", "error"]
            )
            yield pa.StructArray.from_arrays([value] * len(names), names=names)

    fields = [StructField(name, value_type(each)) for name, each in operators.items()]
    return make_arrow_udf(compute, StructType(fields), "random_vectors").asNondeterministic()


def write_blobs(
    spark: SparkSession, place: str, start: int, count: int, arguments: argparse.Namespace
) -> None:
    """Write rows of random bytes, and a text that says when they changed."""
    size, distinct = arguments.blob_bytes, arguments.distinct

    def blobs(batches):
        for ids in batches:
            seeds = [number % distinct for number in ids.to_pylist()]
            yield pa.array([np.random.default_rng(seed).bytes(size) for seed in seeds], pa.binary())

    make = make_arrow_udf(blobs, "binary", "blobs")
    rows = spark.range(start, start + count, 1, max(1, count // 10_000))
    rows.select(
        "id", make("id").alias("content"), F.sha1(F.col("id").cast("string")).alias("etag")
    ).write.mode("append").parquet(place)


def report(spark: SparkSession, name: str, work, *arguments, **options) -> dict[str, float]:
    """Measure seconds, and the bytes that Spark's tasks read and wrote."""
    read, written = moved_bytes(spark)
    started = time.monotonic()
    work(*arguments, **options)
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


if __name__ == "__main__":
    main()
