"""Shared code of the jobs that fill a table: their options, and the write with its progress."""

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from spark_vision.cli.command_line import add_option_arguments, options_in
from spark_vision.cli.job import LOG_LEVELS, run_job
from spark_vision.cli.stream_job import add_stream_arguments, check_stream_arguments, follow
from spark_vision.errors import InvalidOptionError
from spark_vision.operators import reads_images
from spark_vision.tables.write_options import WriteOptions

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_vision.operators import Operator

OperatorType = TypeVar("OperatorType", bound="Operator")

_GLOB = re.compile(r"[*?\[{]")


def add_table_arguments(parser: argparse.ArgumentParser, column: str, what: str) -> None:
    """Add the options for the input and for the table.

    Args:
        parser: The job's parser.
        column: The default name of the computed column.
        what: Its content, in the plural, for the help.
    """
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
    add_option_arguments(parser, WriteOptions, left_out=["prompt_column"])
    add_stream_arguments(parser)
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, help="Spark's log level (default: its setting, else OFF)"
    )


def parse_table_job(
    parser: argparse.ArgumentParser, operator: type[OperatorType], texts: list[str] | None
) -> tuple[argparse.Namespace, OperatorType]:
    """Parse the command line of a job that fills a table, or exit with a usage error.

    Args:
        parser: With the options of `add_table_arguments`; those of the operator are added.
        operator: The operator's class.
        texts: The command line.
    """
    add_option_arguments(parser, operator)
    arguments = parser.parse_args(texts)
    check_stream_arguments(parser, arguments)
    try:
        return arguments, operator(**options_in(arguments, operator))
    except InvalidOptionError as error:
        parser.error(str(error))


def run_table_job(arguments: argparse.Namespace, operator: "Operator") -> int:
    """Write the rows that the table lacks, print the result, and return the exit code.

    Args:
        arguments: Parsed arguments of `add_table_arguments`.
        operator: What to compute.
    """
    return run_job(lambda spark: _write_table(spark, arguments, operator), arguments.log_level)


def _write_table(
    spark: "SparkSession", arguments: argparse.Namespace, operator: "Operator"
) -> None:
    from spark_vision.cli.inputs import FILE_KEY, read_images
    from spark_vision.cli.preview import preview_table
    from spark_vision.cli.summary import describe_result
    from spark_vision.tables.forecast import describe_forecast, plan_vision_columns
    from spark_vision.tables.progress_bar import ProgressBar
    from spark_vision.tables.write import write_vision_columns

    keys = arguments.key or [FILE_KEY]
    operator = allow_input(operator, arguments.input)
    options = options_in(arguments, WriteOptions)
    if arguments.stream:
        follow(spark, arguments, keys, operator, options)
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
        shown = preview_table(spark, result.table, keys, arguments.column, arguments.show)
        shown.show(arguments.show, truncate=False)
    print(describe_result(result))


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
