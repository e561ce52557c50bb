"""Streaming of the jobs that fill a table: their options, and the query."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spark_vision.tables.write_options import NOT_STREAMED, STREAMED

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_vision.operators import Operator

MAX_FILES = 1000

_OF_A_STREAM = ("checkpoint_location", "processing_time", "max_files", *STREAMED)


def add_stream_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a stream."""
    parser.add_argument(
        "--stream",
        action="store_true",
        help="follow the input as a stream: a folder of image files, or a Delta table, including "
        "its updates and deletes if its change data feed is enabled",
    )
    parser.add_argument(
        "--checkpoint-location",
        metavar="FOLDER",
        help="with --stream: the checkpoint location of the stream (default: in the table's "
        "folder, if --table is a path)",
    )
    parser.add_argument(
        "--processing-time",
        metavar="TIME",
        help="with --stream: process new rows at this interval, such as '1 minute' (default: "
        "process the available rows, then end)",
    )
    parser.add_argument(
        "--max-files",
        type=int,
        metavar="N",
        help=f"with --stream: maximum number of input files per batch (default: {MAX_FILES})",
    )


def check_stream_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Exit with a usage error if an option has no meaning with, or without, `--stream`."""
    wrong = (*NOT_STREAMED, "show", "dry_run", "report") if arguments.stream else _OF_A_STREAM
    reason = "has no meaning with --stream" if arguments.stream else "needs --stream"
    for name in wrong:
        if getattr(arguments, name, None):
            parser.error(f"--{name.replace('_', '-')} {reason}")


def follow(
    spark: "SparkSession",
    arguments: argparse.Namespace,
    keys: list[str],
    operator: "Operator",
    options: Mapping[str, Any],
) -> None:
    """Stream the input into the table, and print the row counts of the last batches at the end.

    Args:
        spark: The job's session.
        arguments: The job's arguments.
        keys: The key columns.
        operator: What to compute.
        options: The options of the write.
    """
    from spark_vision.cli.inputs import stream_images
    from spark_vision.tables.location import checkpoint_in
    from spark_vision.tables.stream import stream_vision_columns

    query = stream_vision_columns(
        stream_images(spark, arguments.input, arguments.max_files or MAX_FILES),
        arguments.table,
        keys,
        {arguments.column: operator},
        checkpoint_location=arguments.checkpoint_location
        or checkpoint_in(arguments.table, arguments.column),
        processing_time=arguments.processing_time,
        **options,
    )
    query.awaitTermination()
    for progress in query.recentProgress:
        print(f"batch {progress.batchId}: {progress.numInputRows:,} rows")
