"""Streaming writes: each micro-batch of a structured stream is one table write.

Exactly once: a batch's last commit carries the stream's name and the batch's number, and Delta
skips it when it is repeated. After a kill before that commit, the batch finds its own rows in the
table, by key and hash, and computes what is missing. A batch is cached while it is processed, so
that its source is read once.
"""

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import and_
from typing import Any

from pyspark.errors import IllegalArgumentException, PySparkValueError
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery
from pyspark.sql.streaming.readwriter import DataStreamWriter

from spark_vision.errors import InvalidOptionError, TableError
from spark_vision.operators import Operator
from spark_vision.tables.commit import delete_rows
from spark_vision.tables.location import quote, read_detail
from spark_vision.tables.session_settings import labelled
from spark_vision.tables.source import check_columns, refuse_stream
from spark_vision.tables.table_layout import fit_keys, make_table
from spark_vision.tables.transaction import Transaction
from spark_vision.tables.write import run_write
from spark_vision.tables.write_options import parse_write_options, takes_write_options
from spark_vision.tables.write_plan import WritePlan, plan_write

_CHANGE, _VERSION, _TIME = "_change_type", "_commit_version", "_commit_timestamp"
_LATEST = "__spark_vision_latest"
_PLACE = "__spark_vision_place"


@takes_write_options(is_stream=True)
def stream_vision_columns(
    source: DataFrame,
    table: str,
    keys: Sequence[str],
    columns: Mapping[str, Operator],
    *,
    checkpoint_location: str,
    processing_time: str | None = None,
    available_now: bool | None = None,
    **options: Any,
) -> StreamingQuery:
    """Write a stream's rows to a Delta table with the columns computed, each row exactly once.

    Args:
        source: From `spark.readStream`: a Delta table's appends; its changes, with
            `readChangeFeed`, whose updates and deletes are then applied to the table; or a folder
            of files. Its `maxFilesPerTrigger` limits a batch, which is cached on the executors'
            disks while it is processed. In a Connect session, batches are processed by a Python
            process of the server, which needs this package.
        table: As for `write_vision_columns`.
        keys: Unique within a batch, except for several changes of one row.
        columns: What to compute, by the name of its column.
        checkpoint_location: The folder in which Spark keeps the stream's progress; one for each
            stream.
        processing_time: Run until the query is stopped, with a batch at this interval, such as
            `1 minute`.
        available_now: Process what is there, then end. The default where `processing_time` is not
            given; as in Spark, a stream has one trigger, so that both together are refused.
        options: The fields of `WriteOptions` that apply to a stream. `rows_per_commit` applies
            where a batch has more rows.

    Returns:
        The running query; `awaitTermination()` waits for its end and raises its error.

    Raises:
        InvalidOptionError: The trigger or another option is not allowed.
        TableError: The source is not a stream, or does not fit the table.
        SparkVisionError: As `write_vision_columns`.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> arriving = spark.readStream.format("binaryFile").schema(photos.schema)
        >>> query = stream_vision_columns(
        ...     arriving.load("/data/photos"),
        ...     "/data/streamed_vectors",
        ...     keys=["path"],
        ...     columns={"embedding": ImageViTEmbedding(model_name="facebook/dinov2-base")},
        ...     checkpoint_location="/data/streamed_vectors_checkpoint",
        ... )
        >>> query.awaitTermination()
    """
    if not source.isStreaming:
        raise TableError(
            "the source is not a stream; read it with spark.readStream, or call "
            "write_vision_columns"
        )
    writer = _set_trigger(source.writeStream, processing_time, available_now)
    parsed = parse_write_options(options, is_stream=True)
    taken = {*keys, *parsed.keep, *(parsed.version_columns or ())}
    own = sorted({_CHANGE, _VERSION, _TIME} & taken)
    if own:
        raise TableError(
            f"the stream's own columns {', '.join(own)} describe no row; "
            "leave them out of keys, keep and version_columns"
        )
    check_columns(source, parsed.latest_by, what="latest_by")
    plan = plan_write(source, table, keys, columns, parsed, progress=None)
    # Errors are raised here, not by the query; and Delta creates no table in a folder that already
    # has a checkpoint.
    detail = read_detail(source.sparkSession, plan.location)
    if detail is not None:
        plan, _ = fit_keys(plan, source, detail)
    make_table(source.sparkSession, plan)

    def write_batch(batch: DataFrame, number: int) -> None:
        name = _read_name(batch.sparkSession, checkpoint_location)
        _write_batch(plan, batch, Transaction(name, number))

    writer = writer.option("checkpointLocation", checkpoint_location)
    return writer.foreachBatch(write_batch).start()


@takes_write_options(is_stream=True)
def write_vision_batch(
    batch: DataFrame,
    batch_id: int,
    table: str,
    keys: Sequence[str],
    columns: Mapping[str, Operator],
    *,
    app_id: str,
    **options: Any,
) -> None:
    """Write a batch within your own `foreachBatch`, once, however often Spark repeats it.

    Args:
        batch: The rows, or the changes of a Delta table's feed.
        batch_id: The number that Spark passes; it grows from batch to batch.
        table: As for `write_vision_columns`.
        keys: Unique within a batch, unless `on_duplicate_keys` allows duplicates.
        columns: What to compute, by the name of its column.
        app_id: The stream's name: one for each checkpoint location, as long as that exists.
        options: As for `stream_vision_columns`.

    Raises:
        SparkVisionError: As `stream_vision_columns`.

    Example:
        >>> columns = {"embedding": ImageViTEmbedding(model_name="facebook/dinov2-base")}
        >>> def write(batch, batch_id):
        ...     write_vision_batch(
        ...         batch, batch_id, "/data/batches", ["path"], columns, app_id="photos"
        ...     )
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> arriving = spark.readStream.format("binaryFile").schema(photos.schema)
        >>> writer = arriving.load("/data/photos").writeStream.foreachBatch(write)
        >>> writer = writer.option("checkpointLocation", "/data/batches_checkpoint")
        >>> writer.trigger(availableNow=True).start().awaitTermination()
    """
    refuse_stream(batch)
    parsed = parse_write_options(options, is_stream=True)
    plan = plan_write(batch, table, keys, columns, parsed, progress=None)
    _write_batch(plan, batch, Transaction(app_id, batch_id))


def _set_trigger(
    writer: DataStreamWriter, processing_time: str | None, available_now: bool | None
) -> DataStreamWriter:
    if processing_time is None and available_now is not False:
        return writer.trigger(availableNow=True)
    if processing_time is None or available_now:
        raise InvalidOptionError(
            f"a stream got processing_time={processing_time!r} and available_now={available_now}; "
            "allowed: processing_time, such as '1 minute', for a stream that runs until it is "
            "stopped, or available_now=True, the default, for one that ends"
        )
    try:
        return writer.trigger(processingTime=processing_time)
    except (IllegalArgumentException, PySparkValueError) as error:
        raise InvalidOptionError(
            f"processing_time got {processing_time!r}; allowed: an interval such as '1 minute'"
        ) from error


def _read_name(spark: SparkSession, checkpoint_location: str) -> str:
    """Return a stream's name, from the id that Spark has written into its checkpoint."""
    noted = spark.read.text(f"{checkpoint_location}/metadata", wholetext=True).head()
    if noted is None:
        raise TableError(
            f"the stream's checkpoint {checkpoint_location} was removed while the stream ran"
        )
    return f"spark_vision-{json.loads(noted[0])['id']}"


def _write_batch(write: WritePlan, batch: DataFrame, transaction: Transaction) -> None:
    # Among rows that are equal in all of `latest_by`, the last is the one that Spark returns last.
    rows = batch.withColumn(_PLACE, F.monotonically_increasing_id()).persist()
    keys, is_feed = write.chosen.key_names, _CHANGE in rows.columns
    order = [F.col(_VERSION), ~_is_gone()] if is_feed else []
    if write.options.latest_by:
        order += [*map(_column, write.options.latest_by), F.col(_PLACE)]
    try:
        latest = _latest_rows(rows, keys, order).persist() if order else rows
        try:
            if not is_feed:
                run_write(write, latest.drop(_PLACE), transaction, is_kept=True)
                return
            gone = latest.filter(_is_gone()).select(*map(_column, keys))
            present = latest.filter(~_is_gone()).drop(_CHANGE, _VERSION, _TIME, _PLACE)
            nothing_gone = gone.isEmpty()
            run = run_write(write, present, transaction, completes=nothing_gone, is_kept=True)
            if not nothing_gone:
                with labelled(batch.sparkSession, run.run_id):
                    delete_rows(write, gone, unchanged=False, transaction=transaction)
        finally:
            latest.unpersist()
    finally:
        rows.unpersist()


def _latest_rows(rows: DataFrame, keys: Sequence[str], order: Sequence[Column]) -> DataFrame:
    """Return the last row of each key.

    In a change feed, a row that one commit both deletes and inserts exists. An update deletes the
    row of its old key and inserts that of its new key: where both are the same, the row exists.
    """
    changes = rows.withColumn(_LATEST, F.struct(*order))
    # Only keys are shuffled: the rows hold images.
    latest = changes.groupBy(*map(_column, keys)).agg(F.max(_LATEST).alias(_LATEST))
    # Null-safe, so that a null key reaches the write, which refuses it.
    same = (
        F.col(f"c.{quote(name)}").eqNullSafe(F.col(f"l.{quote(name)}")) for name in (*keys, _LATEST)
    )
    last = F.broadcast(latest).alias("l")
    return changes.alias("c").join(last, reduce(and_, same), "left_semi").drop(_LATEST)


def _is_gone() -> Column:
    return F.col(_CHANGE).isin("delete", "update_preimage")


def _column(name: str) -> Column:
    return F.col(quote(name))
