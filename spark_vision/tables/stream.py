"""The same write as a structured stream: each micro-batch is one run of it.

Exactly once: a batch's last commit carries the stream's name and the batch's number, and the table
refuses to take it again. Where a kill came before that, the batch meets its own rows in the table,
by key and hash, and computes what is missing of it. A batch is kept while it is worked on, so that
its source is read once.
"""

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import and_

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

from spark_vision.errors import SessionError, TableError
from spark_vision.operators import Operator
from spark_vision.tables.commit import delete_rows
from spark_vision.tables.layout import make_table
from spark_vision.tables.location import quote
from spark_vision.tables.prepared import PreparedWrite, prepare_write
from spark_vision.tables.run import run_write
from spark_vision.tables.transaction import Transaction
from spark_vision.tables.write import ROWS_PER_COMMIT

_CHANGE, _VERSION, _TIME = "_change_type", "_commit_version", "_commit_timestamp"
_LATEST = "__spark_vision_latest"


def stream_vision_columns(
    source: DataFrame,
    table: str,
    keys: Sequence[str],
    columns: Mapping[str, Operator],
    *,
    checkpoint: str,
    interval: str | None = None,
    image_column: str = "content",
    text_column: str = "text",
    prompt_column: str | None = None,
    keep: Sequence[str] = (),
    version_columns: Sequence[str] | None = None,
    rows_per_commit: int = ROWS_PER_COMMIT,
) -> StreamingQuery:
    """Write a stream's rows to a Delta table with the columns computed, each row exactly once.

    Args:
        source: From `spark.readStream`: a Delta table's appends; its changes, with
            `readChangeFeed`, whose updates and deletes then reach the table; or a folder of files.
            `maxFilesPerTrigger` there says how much a batch takes: a batch is kept on the
            executors' disks while it is worked on.
        table: As for `write_vision_columns`, like all that is not said here.
        keys: No two rows of a batch may have the same, unless they are changes of one row.
        columns: What to compute.
        checkpoint: The folder where Spark notes how far the stream is; one for each stream.
        interval: Look for new rows so often, such as `1 minute`; None: take what is there, then
            end.
        image_column: What image operators read.
        text_column: What text operators read.
        prompt_column: What is asked of each image.
        keep: Columns of the source that the table has as they are.
        version_columns: Columns that change whenever the image does.
        rows_per_commit: Rows of a commit, where a batch has more.

    Returns:
        The running query; `awaitTermination()` waits for its end and raises its error.

    Raises:
        TableError: The source is no stream, or does not fit the table.
        SessionError: The session is one of Spark Connect.
        SparkVisionError: As `write_vision_columns`.

    Example:
        >>> changes = spark.readStream.option("readChangeFeed", True).table("lake.photos")
        >>> stream_vision_columns(
        ...     changes,
        ...     "lake.photo_vectors",
        ...     keys=["id"],
        ...     columns={"embedding": ImageViTEmbedding()},
        ...     checkpoint="/checkpoints/photo_vectors",
        ... ).awaitTermination()
    """
    if not source.isStreaming:
        raise TableError(
            "the source is no stream; read it with spark.readStream, or call write_vision_columns"
        )
    if not hasattr(source, "_jdf"):
        raise SessionError("streams need a classic session; this one is of Spark Connect")
    own = sorted({_CHANGE, _VERSION, _TIME} & {*keys, *keep, *(version_columns or ())})
    if own:
        raise TableError(
            f"the stream's own columns {', '.join(own)} say nothing of a row and are not kept; "
            "leave them out of keys, keep and version_columns"
        )
    prepared = prepare_write(
        source,
        table,
        keys,
        columns,
        image_column=image_column,
        text_column=text_column,
        prompt_column=prompt_column,
        keep=keep,
        version_columns=version_columns,
        rows_per_commit=rows_per_commit,
        retry=(),
        recompute=False,
        delete_missing=False,
        progress=None,
    )
    # What does not fit is said here, not by the query; and Delta makes no table where a checkpoint
    # is already.
    make_table(source.sparkSession, prepared)

    def write_batch(batch: DataFrame, number: int) -> None:
        name = _read_name(batch.sparkSession, checkpoint)
        _write_batch(prepared, batch, Transaction(name, number))

    writer = source.writeStream.option("checkpointLocation", checkpoint).foreachBatch(write_batch)
    if interval is None:
        return writer.trigger(availableNow=True).start()
    return writer.trigger(processingTime=interval).start()


def _read_name(spark: SparkSession, checkpoint: str) -> str:
    """Name a stream by the id that Spark has written into its checkpoint."""
    noted = spark.read.text(f"{checkpoint}/metadata", wholetext=True).head()
    if noted is None:
        raise TableError(f"the stream's checkpoint {checkpoint} has gone while the stream ran")
    return f"spark_vision-{json.loads(noted[0])['id']}"


def _write_batch(write: PreparedWrite, batch: DataFrame, transaction: Transaction) -> None:
    rows = batch.persist()
    try:
        if _CHANGE not in rows.columns:
            run_write(write, rows, transaction, is_kept=True)
            return
        latest = _latest_changes(rows, write.chosen.key_names).persist()
        try:
            keys = write.chosen.key_names
            gone = latest.filter(_is_gone()).select(*map(_column, keys))
            present = latest.filter(~_is_gone()).drop(_CHANGE, _VERSION, _TIME)
            nothing_gone = gone.isEmpty()
            run_write(write, present, transaction, completes=nothing_gone, is_kept=True)
            if not nothing_gone:
                delete_rows(write.location, keys, gone, unchanged=False, transaction=transaction)
        finally:
            latest.unpersist()
    finally:
        rows.unpersist()


def _latest_changes(rows: DataFrame, keys: Sequence[str]) -> DataFrame:
    """Leave the last change of each row; a row put back by the commit that removed it is there.

    An update removes the row with the key that was, and puts the one with the key that is: where
    both are one, it is there.
    """
    changes = rows.withColumn(_LATEST, F.struct(F.col(_VERSION), ~_is_gone()))
    # Only keys are shuffled: the rows hold images.
    latest = changes.groupBy(*map(_column, keys)).agg(F.max(_LATEST).alias(_LATEST))
    # A null key is one that the write refuses, not one that gets lost here.
    same = (
        F.col(f"c.{quote(name)}").eqNullSafe(F.col(f"l.{quote(name)}")) for name in (*keys, _LATEST)
    )
    last = F.broadcast(latest).alias("l")
    return changes.alias("c").join(last, reduce(and_, same), "left_semi").drop(_LATEST)


def _is_gone() -> Column:
    return F.col(_CHANGE).isin("delete", "update_preimage")


def _column(name: str) -> Column:
    return F.col(quote(name))
