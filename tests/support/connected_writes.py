"""A process with a Spark Connect session that writes a table step by step, and says what it saw.

A process has either a classic session or one of Connect; the tests' own is classic.
"""

import io
import json
import logging
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from encoded_images import encode, photo
from quick_spark import quickly
from spark_vision import (
    ImageViTEmbedding,
    configure,
    plan_vision_columns,
    show_images,
    stream_vision_columns,
    write_vision_columns,
)
from spark_vision.errors import TableError
from spark_vision.tables import commit
from spark_vision.tables.source_files import file_column, is_narrowed

WAIT_SECONDS = 120


def main(folder, model, worker_site):
    folder = Path(folder)
    forwards = folder / "forwards"
    forwards.mkdir()
    os.environ["SPARK_TESTING"] = "1"  # Spark's own switch for a server on any free port
    # A server's sessions have no spark.executorEnv: workers have the environment of its JVM.
    os.environ["PYTHONPATH"] = os.pathsep.join([worker_site, os.environ["PYTHONPATH"]])
    os.environ["COUNTED_FORWARDS"] = str(forwards)
    builder = SparkSession.builder.remote("local[2]")
    builder = builder.config("spark.sql.warehouse.dir", str(folder / "warehouse"))
    spark = configure(quickly(builder)).getOrCreate()
    try:
        writes = Writes(spark, folder, ImageViTEmbedding(model_name=model))
        print(json.dumps({step.__name__: step(writes) for step in STEPS}))
    finally:
        spark.stop()


class Writes:
    """Writes of one table from one folder of images."""

    def __init__(self, spark, folder, dino):
        self.spark = spark
        self.table = str(folder / "vectors")
        self.photos = folder / "photos"
        self.photos.mkdir()
        for number in range(6):
            self.put(f"{number}.jpg", seed=number)
        (self.photos / "text.jpg").write_bytes(b"not an image")
        self.columns = {"embedding": dino}
        self._forwards = folder / "forwards"

    def put(self, name, seed):
        (self.photos / name).write_bytes(encode(photo(60 + seed, 40, seed=seed), "JPEG"))

    def read(self):
        return self.spark.read.format("binaryFile").load(str(self.photos))

    def write(self, source=None, **options):
        """Gives a write's result, with the images that a model has seen, and its progress."""
        seen = []
        before = self._count_forwards()
        source = self.read() if source is None else source
        result = write_vision_columns(
            source, self.table, ["path"], self.columns, progress=seen.append, **options
        )
        return {
            **asdict(result),
            "forwards": self._count_forwards() - before,
            "progress": [[each.done_rows, each.total_rows] for each in seen],
            "last_statuses": seen[-1].statuses,
        }

    def _count_forwards(self):
        return sum(
            int(line) for file in self._forwards.iterdir() for line in file.read_text().split()
        )

    def rows(self):
        return {row["path"].rsplit("/")[-1]: row for row in self.table_rows()}

    def table_rows(self):
        return self.spark.read.format("delta").load(self.table).collect()

    def history(self, column="operation"):
        rows = self.spark.sql(f"DESCRIBE HISTORY delta.`{self.table}`").orderBy("version")
        return [row[column] for row in rows.collect()]


def is_of_connect(writes):
    return type(writes.spark).__module__.startswith("pyspark.sql.connect")


def plan(writes):
    forecast = plan_vision_columns(
        writes.read(), writes.table, ["path"], writes.columns, rows_per_commit=3
    )
    return {**asdict(forecast), "was_made": Path(writes.table).exists()}


def first_write(writes):
    result = writes.write(rows_per_commit=3, keep=["length"])
    rows = writes.rows()
    return {
        **result,
        "history": writes.history(),
        "labels": writes.history("userMetadata"),
        "lengths": {name: row["length"] for name, row in rows.items()},
        "dimensions": {
            name: row["embedding"] and len(row["embedding"]) for name, row in rows.items()
        },
        "errors": {name: row["embedding_error"] for name, row in rows.items()},
    }


def thumbnails(writes):
    gallery = show_images(writes.read().orderBy("path"), caption="path")
    return {**asdict(gallery), "html": gallery.html.count("data:image/jpeg;base64,")}


def same_again(writes):
    before = writes.history()
    return {**writes.write(keep=["length"]), "has_commits": writes.history() != before}


def changed_row(writes):
    before = writes.rows()
    writes.put("1.jpg", seed=70)
    return {**writes.write(keep=["length"]), "changed": changed(before, writes.rows())}


def retry(writes):
    return [writes.write(retry=statuses) for statuses in (["timeout"], ["not_an_image"])]


def second_column(writes):
    before = writes.rows()
    writes.columns["other"] = writes.columns["embedding"]
    both = plan_vision_columns(writes.read(), writes.table, ["path"], writes.columns)
    result = writes.write(rows_per_commit=3)
    rows = writes.rows()
    return {
        **result,
        "planned": both.reasons,
        "are_same": all(row["other"] == row["embedding"] for row in rows.values()),
        "are_kept": all(
            rows[name]["embedding"] == row["embedding"] for name, row in before.items()
        ),
    }


def two_writers(writes):
    """Both look at the table before either has changed it."""
    together, attempted = threading.Barrier(2), threading.local()
    check_models, log = commit._check_models, io.StringIO()

    def check_together(*args):
        filled = check_models(*args)
        if not hasattr(attempted, "once"):
            attempted.once = True
            together.wait(WAIT_SECONDS)
        return filled

    def write(name):
        writes.put(name, seed=80)
        source = writes.read().filter(F.col("path").endswith(name))
        return write_vision_columns(source, writes.table, ["path"], writes.columns).computed_rows

    logger, handler = logging.getLogger("spark_vision.tables"), logging.StreamHandler(log)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    commit._check_models = check_together
    try:
        with ThreadPoolExecutor(2) as pool:
            computed = list(pool.map(write, ["one.jpg", "other.jpg"]))
    finally:
        commit._check_models = check_models
        logger.removeHandler(handler)
    names = [row["path"].rsplit("/")[-1] for row in writes.table_rows()]
    return {"computed": computed, "log": log.getvalue(), "names": sorted(names)}


def delete_missing(writes):
    (writes.photos / "2.jpg").unlink()
    kept = writes.write()
    return {
        "kept": kept,
        "deleted": writes.write(delete_missing=True),
        "rows": sorted(writes.rows()),
    }


def filtered_source(writes):
    """A dry run, and what is known of other sources of Connect."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger("spark_vision.tables").addHandler(handler)
    rows = writes.read()
    some = rows.filter(F.col("path").endswith("1.jpg"))
    keys, options = ["path"], {"delete_missing": True}
    plan_vision_columns(some, writes.table, keys, writes.columns, **options)
    logging.getLogger("spark_vision.tables").removeHandler(handler)
    return {
        "log": log.getvalue(),
        "narrowed": list(
            map(is_narrowed, [some, some.select("path"), rows.limit(1), rows.dropna()])
        ),
        "whole": list(map(is_narrowed, [rows, rows.select("path"), rows.dropDuplicates()])),
        "knows_files": file_column(some) is not None,
        "knows_files_of_two": file_column(rows.join(rows, "path", "left_semi")) is not None,
    }


def source_of_two_sides(writes):
    """Its rows know no files."""
    (writes.photos / "new").mkdir()
    for number in (8, 9):
        writes.put(f"new/{number}.jpg", seed=number)
    new = writes.spark.read.format("binaryFile").load(str(writes.photos / "new"))
    return writes.write(writes.read().union(new), rows_per_commit=1)


def stream(writes):
    """In two runs: of the files that are there, and of one that came later."""
    table = f"{writes.table}_streamed"
    before = writes._count_forwards()
    seen = []
    late = "of_the_second_run.jpg"
    for has_come in (False, True):
        if has_come:
            writes.put(late, seed=90)
        source = writes.spark.readStream.format("binaryFile").schema(writes.read().schema)
        stream_vision_columns(
            source.load(str(writes.photos)),
            table,
            ["path"],
            {"embedding": writes.columns["embedding"]},
            checkpoint_location=f"{table}_checkpoint",
        ).awaitTermination()
        rows = writes.spark.read.format("delta").load(table).collect()
        seen.append({row["path"].rsplit("/")[-1]: row["embedding_status"] for row in rows})
    (writes.photos / late).unlink()
    return {"seen": seen, "forwards": writes._count_forwards() - before}


def owners_constraint(writes):
    writes.put("huge.jpg", seed=200)
    sql = writes.spark.sql
    sql(f"ALTER TABLE delta.`{writes.table}` ADD CONSTRAINT mine CHECK (path NOT LIKE '%huge%')")
    return refusal(writes)


def append_only(writes):
    (writes.photos / "huge.jpg").unlink()
    writes.put("3.jpg", seed=73)
    writes.spark.sql(
        f"ALTER TABLE delta.`{writes.table}` SET TBLPROPERTIES ('delta.appendOnly' = 'true')"
    )
    return refusal(writes)


def changed(before, after):
    return sorted(name for name in after if before.get(name) != after[name])


def refusal(writes):
    try:
        writes.write()
    except TableError as error:
        return str(error)
    return None


STEPS = [
    is_of_connect, plan, first_write, thumbnails, same_again, changed_row, retry, stream,
    second_column,
    two_writers, delete_missing, filtered_source, source_of_two_sides, owners_constraint,
    append_only,
]  # fmt: skip

if __name__ == "__main__":
    main(*sys.argv[1:])
