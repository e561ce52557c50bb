"""The jobs that fill a table: their options, the write with its progress, and its summary."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_vision.cli.command_line import add_option_arguments, options_in
from spark_vision.cli.job import LOG_LEVELS, run_job
from spark_vision.errors import InvalidOptionError, Status
from spark_vision.operators import reads_images
from spark_vision.tables.write_options import NOT_STREAMED, STREAMED, WriteOptions

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_vision.operators import Operator
    from spark_vision.tables.write_result import WriteResult

_GLOB = re.compile(r"[*?\[{]")
_MAX_FILES = 1000
_SHOWN_NUMBERS = 3
_OF_A_STREAM = ("checkpoint_location", "processing_time", "max_files", *STREAMED)


def run_table_job(
    parser: argparse.ArgumentParser,
    operator: "type[Operator]",
    texts: list[str] | None,
    column: str,
    what: str,
) -> int:
    """Write the rows that the table lacks, print the result, and return the exit code.

    Args:
        parser: The job's parser; the options for the input, the table and the operator are added.
        operator: The class of what is computed.
        texts: The command line; None means the process's own.
        column: The default name of the computed column.
        what: Its content, in the plural, for the help.
    """
    _add_table_arguments(parser, column, what)
    _add_stream_arguments(parser)
    add_option_arguments(parser, operator)
    arguments = parser.parse_args(texts)
    _check_stream_arguments(parser, arguments)
    try:
        made = operator(**options_in(arguments, operator))
    except InvalidOptionError as error:
        parser.error(str(error))
    return run_job(lambda spark: _write_table(spark, arguments, made), arguments.log_level)


def _add_table_arguments(parser: argparse.ArgumentParser, column: str, what: str) -> None:
    parser.add_argument(
        "--input",
        required=True,
        help="a folder or glob of image files, the folder of a Delta table or of Parquet files, "
        "or a table name; paths in the rows may refer to files in a folder given here, as with "
        "--allow-paths",
    )
    parser.add_argument(
        "--table", required=True, help="the Delta table to write: a path, or a name in the catalog"
    )
    parser.add_argument(
        "--key",
        action="append",
        metavar="COLUMN",
        help="a column of the key, which is unique per row; repeatable (default: path, for image "
        "files)",
    )
    parser.add_argument(
        "--column",
        default=column,
        metavar="NAME",
        help=f"the column of the {what} in the table (default: %(default)s)",
    )
    parser.add_argument(
        "--show",
        type=int,
        default=0,
        metavar="N",
        help="number of rows to show at the end, failed ones first (default: none)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be computed, without loading a model or writing anything",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="a file to which one line of JSON is added: the rows by status, the rate and the "
        "seconds that the tasks spent on each step (default: none)",
    )
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, help="Spark's log level (default: its setting, else OFF)"
    )
    add_option_arguments(parser, WriteOptions, left_out=["prompt_column"])


def _add_stream_arguments(parser: argparse.ArgumentParser) -> None:
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
        help=f"with --stream: maximum number of input files per batch (default: {_MAX_FILES})",
    )


def _check_stream_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Exit with a usage error if an option has no meaning with, or without, `--stream`."""
    wrong = (*NOT_STREAMED, "show", "dry_run", "report") if arguments.stream else _OF_A_STREAM
    reason = "has no meaning with --stream" if arguments.stream else "needs --stream"
    for name in wrong:
        if getattr(arguments, name, None):
            parser.error(f"--{name.replace('_', '-')} {reason}")


def _write_table(
    spark: "SparkSession", arguments: argparse.Namespace, operator: "Operator"
) -> None:
    from spark_vision.cli.inputs import FILE_KEY, read_images
    from spark_vision.tables.forecast import describe_forecast, plan_vision_columns
    from spark_vision.tables.progress_bar import ProgressBar
    from spark_vision.tables.write import write_vision_columns

    keys = arguments.key or [FILE_KEY]
    operator = allow_input(operator, arguments.input)
    options = options_in(arguments, WriteOptions)
    if arguments.stream:
        _follow(spark, arguments, keys, operator, options)
        return
    if arguments.dry_run:
        images = read_images(spark, arguments.input)
        columns = {arguments.column: operator}
        forecast = plan_vision_columns(images, arguments.table, keys, columns, **options)
        print(describe_forecast(forecast))
        return
    with ProgressBar() as progress:
        result = write_vision_columns(
            read_images(spark, arguments.input),
            arguments.table,
            keys,
            {arguments.column: operator},
            progress=progress,
            **options,
        )
    if arguments.report:
        with arguments.report.open("a") as report:
            report.write(result.to_json() + "\n")
    if arguments.show:
        shown = _preview_table(spark, result.table, keys, arguments.column, arguments.show)
        shown.show(arguments.show, truncate=False)
    print(describe_result(result))


def _follow(
    spark: "SparkSession",
    arguments: argparse.Namespace,
    keys: list[str],
    operator: "Operator",
    options: Mapping[str, Any],
) -> None:
    """Stream the input into the table, and print the row counts of the last batches at the end."""
    from spark_vision.cli.inputs import stream_images
    from spark_vision.tables.location import checkpoint_in
    from spark_vision.tables.stream import stream_vision_columns

    query = stream_vision_columns(
        stream_images(spark, arguments.input, arguments.max_files or _MAX_FILES),
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


def allow_input(operator: "Operator", place: str) -> "Operator":
    """Allow paths in the rows to refer to files in the input folder.

    Args:
        operator: What to compute.
        place: The input. Of a glob, the folder before its first special character is allowed. For
            a table, or for `/`, nothing is allowed; the user must set `allow_paths`.
    """
    glob = _GLOB.search(place)
    folder = place[: glob.start()].rpartition("/")[0] if glob else place
    is_named = "/" in place and "`" not in place and folder.strip("/")
    if not reads_images(operator) or not is_named:
        return operator
    try:
        return replace(operator, allow_paths=(*operator.allow_paths, folder))
    except InvalidOptionError:
        # Spark reads more schemes than `allow_paths` accepts, such as dbfs:/.
        return operator


def describe_result(result: "WriteResult") -> str:
    """Format the table, the rows, the statuses of each column, and the rate."""
    lines = [
        f"table: {result.table}",
        f"rows: {result.source_rows:,} in the input, {result.existing_rows:,} in the table before, "
        f"{result.computed_rows:,} computed",
    ]
    if result.refreshed_rows:
        lines.append(f"kept columns copied again: {result.refreshed_rows:,} rows")
    if result.deleted_rows:
        lines.append(f"deleted: {result.deleted_rows:,} rows that the input no longer has")
    if result.remaining_rows:
        lines.append(f"remaining for the next run: {result.remaining_rows:,} rows")
    for column, counts in result.statuses.items():
        if counts:
            shown = ", ".join(f"{status} {count:,}" for status, count in counts.items())
            lines.append(f"{column}: {shown}")
    rate = f", {result.rows_per_second:,.1f} rows/s" if result.computed_rows else ""
    lines.append(f"time: {result.elapsed_seconds:,.1f} s{rate}")
    return "\n".join(lines)


def _preview_table(
    spark: "SparkSession", table: str, keys: Sequence[str], column: str, count: int
) -> "DataFrame":
    """Select at most `count` rows of a table to print, failed rows first, then by key.

    Returns:
        The keys, `status`, `error` and, for vectors, `dimension` and `first_values`, for captions
        `caption`, or for tags `tags`; null if there is no value.
    """
    from pyspark.sql import functions as F
    from pyspark.sql.types import ArrayType, StringType, StructType

    from spark_vision.tables.location import quote

    value = F.col(quote(column))
    status = F.col(quote(f"{column}_status"))
    named = [F.col(quote(key)) for key in keys]
    rows = spark.table(table)
    kind = rows.schema[column].dataType
    if isinstance(kind, StringType):
        shown = [value.alias("caption")]
    elif isinstance(kind, ArrayType) and isinstance(kind.elementType, StructType):
        shown = [value.alias("tags")]
    else:
        numbers = F.slice(value, 1, _SHOWN_NUMBERS)
        shown = [
            # The size of a null vector is null, whatever the session's ANSI mode is.
            F.when(value.isNotNull(), F.size(value)).alias("dimension"),
            F.transform(numbers, lambda number: F.round(number, 4)).alias("first_values"),
        ]
    return (
        rows.orderBy(status == Status.OK.value, *named)
        .limit(count)
        .select(
            *named, status.alias("status"), *shown, F.col(quote(f"{column}_error")).alias("error")
        )
    )
