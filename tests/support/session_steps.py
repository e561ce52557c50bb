"""A process with one session, classic or of Connect, that says what it saw in each step.

A process has one of the two kinds; the tests' own is classic.
"""

import io
import json
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from encoded_images import encode, photo
from meeting import meet_after
from memory_index import MemoryIndex
from pinecone_server import serve_pinecone
from quick_spark import quickly
from spark_vision import (
    ClipImageEmbedding,
    ClipImageTags,
    ClipTextEmbedding,
    ClipVectorTags,
    ImageViTEmbedding,
    PineconeIndex,
    QwenVLImageUnderstanding,
    caption_image,
    configure,
    describe_model,
    embed_image,
    embed_text,
    find_duplicates,
    group_duplicates,
    index_ready,
    model_placement,
    plan_vision_columns,
    register_functions,
    search_images,
    show_images,
    stream_vision_columns,
    sync_index,
    tag_image,
    tag_vectors,
    write_vision_batch,
    write_vision_columns,
)
from spark_vision.errors import TableError
from spark_vision.spark import driver_checks
from spark_vision.tables import commit
from spark_vision.tables.source_files import file_column, is_narrowed

TAGS = ["red circle", "blue square", "tree", "house"]
QUERY = "a red circle"


def main(kind, folder, checkpoints, worker_site):
    folder = Path(folder)
    forwards = folder / "forwards"
    forwards.mkdir()
    # A server's sessions have no spark.executorEnv: workers have the environment of its JVM.
    os.environ["PYTHONPATH"] = os.pathsep.join([worker_site, os.environ["PYTHONPATH"]])
    os.environ["COUNTED_FORWARDS"] = str(forwards)
    builder = SparkSession.builder
    if kind == "connect":
        os.environ["SPARK_TESTING"] = "1"  # Spark's own switch for a server on any free port
        builder = builder.remote("local[2]")
    else:
        builder = builder.master("local[2]")
    builder = builder.config("spark.sql.warehouse.dir", str(folder / "warehouse"))
    builder = builder.config("spark.python.daemon.module", "warm_daemon")
    spark = configure(quickly(builder)).getOrCreate()
    try:
        writes = Writes(spark, folder, Path(checkpoints))
        print(json.dumps({step.__name__: step(writes) for step in STEPS}, default=str))
    finally:
        spark.stop()


class Writes:
    """Writes of one table from one folder of images."""

    def __init__(self, spark, folder, checkpoints):
        self.spark = spark
        self.dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
        self.clip = ClipImageEmbedding(model_name=str(checkpoints / "clip"))
        self.qwen = QwenVLImageUnderstanding(
            model_name=str(checkpoints / "qwen"), dtype="float32", max_caption_length=10
        )
        self.table = str(folder / "vectors")
        self.photos = folder / "photos"
        self.photos.mkdir()
        for number in range(6):
            self.put(f"{number}.jpg", seed=number)
        (self.photos / "text.jpg").write_bytes(b"not an image")
        self.columns = {"embedding": self.dino}
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
        return by_name(self.table_rows())

    def table_rows(self, suffix=""):
        return self.spark.read.format("delta").load(self.table + suffix).collect()

    def history(self, column="operation", suffix=""):
        table = f"delta.`{self.table}{suffix}`"
        rows = self.spark.sql(f"DESCRIBE HISTORY {table}").orderBy("version")
        return [row[column] for row in rows.collect()]


def name_of(path):
    return path.rsplit("/")[-1]


def by_name(rows):
    return {name_of(row["path"]): row for row in rows}


def is_of_connect(writes):
    return type(writes.spark).__module__.startswith("pyspark.sql.connect")


def described_by_a_task(writes):
    """A model that only executors have."""
    find_checkpoint = driver_checks.find_checkpoint
    driver_checks.find_checkpoint = lambda operator: None
    try:
        return asdict(describe_model(writes.dino))
    finally:
        driver_checks.find_checkpoint = find_checkpoint


def columns(writes):
    """By each column function, and by the SQL function of each operator."""
    dino, clip, qwen = writes.dino, writes.clip, writes.qwen
    files = writes.read().withColumn("name", F.substring_index("path", "/", -1))
    by_column = files.select(
        "path",
        embed_image("content", dino).alias("embed_image"),
        embed_text("name", clip.convert(ClipTextEmbedding)).alias("embed_text"),
        caption_image("content", qwen, F.col("name")).alias("caption_image"),
        tag_image("content", clip, TAGS, top_k=4).alias("tag_image"),
        tag_vectors(embed_image("content", clip), clip, TAGS, top_k=4).alias("tag_vectors"),
        model_placement("content", dino).alias("model_placement"),
    )
    operators = {
        "embed_image": dino,
        "embed_clip": clip,
        "embed_text": clip.convert(ClipTextEmbedding),
        "caption_image": qwen,
        "tag_image": clip.convert(ClipImageTags, tags=TAGS, top_k=4),
        "tag_vectors": clip.convert(ClipVectorTags, tags=TAGS, top_k=4),
    }
    register_functions(writes.spark, operators, with_status=True, with_placement=True)
    files.createOrReplaceTempView("pictures")
    by_sql = writes.spark.sql("""
        SELECT path, model_placement, image.status, image.embedding AS embed_image,
            text.embedding AS embed_text, said.caption AS caption_image, tagged.tags AS tag_image,
            tagged_vector.tags AS tag_vectors
        FROM (
            SELECT path, embed_image_placement(content) AS model_placement,
                embed_image(content) AS image, embed_text(name) AS text,
                caption_image(content, name) AS said, tag_image(content) AS tagged,
                tag_vectors(embed_clip(content).embedding) AS tagged_vector
            FROM pictures
        )
    """)
    return {
        kind: {name: row.asDict(recursive=True) for name, row in by_name(rows.collect()).items()}
        for kind, rows in (("by_column", by_column), ("by_sql", by_sql))
    }


def searches(writes):
    """By a text and by a picture; and what of the table an index takes."""
    table = f"{writes.table}_searched"
    result = write_vision_columns(writes.read(), table, ["path"], {"embedding": writes.clip})
    ready = index_ready(table, "embedding", "pinecone")
    return {
        "statuses": result.statuses,
        "vectors": {name_of(row["id"]): row["vector"] for row in ready.rows.collect()},
        "ready_rows": ready.ready_rows,
        "not_computed": ready.not_computed,
        "is_ready": ready.is_ready,
        "found": [
            [
                [row["rank"], name_of(row["path"]), row["score"]]
                for row in search_images(table, "embedding", query, k=3).collect()
            ]
            for query in (QUERY, writes.photos / "0.jpg")
        ],
    }


def duplicates(writes):
    """Of the table that was searched, and a copy of each of its rows."""
    path = F.substring_index("path", "/", -1)
    stored = writes.spark.read.format("delta").load(f"{writes.table}_searched")
    stored = stored.select(path.alias("path"), "embedding")
    rows = stored.union(stored.withColumn("path", F.concat("path", F.lit(".copy"))))
    pairs = find_duplicates(rows, "embedding", 0.9999, keys=["path"]).collect()
    groups = group_duplicates(rows, "embedding", 0.9999, keys=["path"]).collect()
    return {
        "pairs": sorted([row["path_a"], row["path_b"]] for row in pairs),
        "grouped": sorted(row["path"] for row in groups),
    }


def syncs(writes):
    """To an index that the driver writes, and to one that executors write."""
    table, seen = f"{writes.table}_searched", []
    paths = [row["path"] for row in writes.table_rows("_searched")]
    with serve_pinecone() as server:
        service = PineconeIndex("p", api_key=server.api_key, control_host=server.url)
        for index, name in ((MemoryIndex(), "0.jpg"), (service, "1.jpg")):
            written = sync_index(table, "embedding", index).written_rows
            writes.spark.sql(f"DELETE FROM delta.`{table}` WHERE path LIKE '%/{name}'")
            deleted = sync_index(table, "embedding", index).deleted_rows
            seen.append([written, deleted, sorted(map(name_of, index.fetch(paths)))])
        service.close()
    return seen


def plan(writes):
    forecast = plan_vision_columns(
        writes.read(), writes.table, ["path"], writes.columns, rows_per_commit=3
    )
    return {**asdict(forecast), "was_made": Path(writes.table).exists()}


def first_write(writes):
    reports = "_reports"
    result = writes.write(rows_per_commit=3, keep=["length"], report_table=writes.table + reports)
    rows = writes.rows()
    return {
        **result,
        "reports": [row.asDict(recursive=True) for row in writes.table_rows(reports)],
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
    check_models, log = commit._check_models, io.StringIO()

    def write(name):
        writes.put(name, seed=80)
        source = writes.read().filter(F.col("path").endswith(name))
        return write_vision_columns(source, writes.table, ["path"], writes.columns).computed_rows

    logger, handler = logging.getLogger("spark_vision.tables"), logging.StreamHandler(log)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    commit._check_models = meet_after(check_models)
    try:
        with ThreadPoolExecutor(2) as pool:
            computed = list(pool.map(write, ["one.jpg", "other.jpg"]))
    finally:
        commit._check_models = check_models
        logger.removeHandler(handler)
    names = [name_of(row["path"]) for row in writes.table_rows()]
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
        rows = by_name(writes.table_rows("_streamed"))
        seen.append({name: row["embedding_status"] for name, row in rows.items()})
    (writes.photos / late).unlink()
    return {"seen": seen, "forwards": writes._count_forwards() - before}


def own_batches(writes):
    """A `foreachBatch` of one's own, whose batch Spark repeats."""
    table, columns = f"{writes.table}_batches", {"embedding": writes.dino}
    before = writes._count_forwards()

    def write(batch, number):
        for _ in range(2):
            write_vision_batch(batch, number, table, ["path"], columns, app_id="photos")

    source = writes.spark.readStream.format("binaryFile").schema(writes.read().schema)
    writer = source.load(str(writes.photos)).writeStream.foreachBatch(write)
    writer = writer.option("checkpointLocation", f"{table}_checkpoint")
    writer.trigger(availableNow=True).start().awaitTermination()
    rows = by_name(writes.table_rows("_batches"))
    return {
        "statuses": {name: row["embedding_status"] for name, row in rows.items()},
        "history": writes.history(suffix="_batches"),
        "forwards": writes._count_forwards() - before,
    }


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
    is_of_connect, described_by_a_task, columns, searches, duplicates, syncs,
    plan, first_write, thumbnails, same_again, changed_row, retry, stream, own_batches,
    second_column,
    two_writers, delete_missing, filtered_source, source_of_two_sides, owners_constraint,
    append_only,
]  # fmt: skip

if __name__ == "__main__":
    main(*sys.argv[1:])
