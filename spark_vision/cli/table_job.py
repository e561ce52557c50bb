"""What the jobs that fill a table share: their options, and the write with its progress."""

import argparse
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from spark_vision.cli.command_line import add_option_arguments, options_in
from spark_vision.cli.job import LOG_LEVELS
from spark_vision.cli.stream_job import add_stream_arguments, follow
from spark_vision.errors import InvalidOptionError
from spark_vision.operators import reads_images
from spark_vision.tables.write_options import WriteOptions

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_vision.operators import Operator

_GLOB = re.compile(r"[*?\[{]")


def add_table_arguments(parser: argparse.ArgumentParser, column: str, what: str) -> None:
    """Add the options that say where rows come from, and where they go.

    Args:
        parser: The job's.
        column: The default name of the column that is computed.
        what: What it holds, in the plural, for the help.
    """
    parser.add_argument(
        "--input",
        required=True,
        help="a folder or glob of image files, the folder of a Delta table or of Parquet files, "
        "or a table's name; a folder may also be read by the rows' strings, as if --allow-paths "
        "named it",
    )
    parser.add_argument(
        "--table", required=True, help="the Delta table to write: a path, or a name in the catalog"
    )
    parser.add_argument(
        "--key",
        action="append",
        metavar="COLUMN",
        help="tells rows apart; repeat it for several (default: path, for image files)",
    )
    parser.add_argument(
        "--column",
        default=column,
        metavar="NAME",
        help=f"the {what}' column in the table (default: %(default)s)",
    )
    parser.add_argument(
        "--show",
        type=int,
        default=0,
        metavar="N",
        help="rows of the table to show at the end, failed ones first (default: none)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be computed, and end: no model is loaded, and nothing is written",
    )
    add_option_arguments(parser, WriteOptions, left_out=["prompt_column"])
    add_stream_arguments(parser)
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, help="of Spark (default: the session's own, else OFF)"
    )


def write_table(
    spark: "SparkSession",
    arguments: argparse.Namespace,
    operator: "Operator",
    prompt_column: str | None = None,
) -> None:
    """Write what the table lacks, and say what became of it.

    Args:
        spark: The job's session.
        arguments: As `add_table_arguments` has parsed them.
        operator: What to compute.
        prompt_column: What is asked of each image; None where nothing is, or the operator asks.
    """
    from spark_vision.cli.inputs import FILE_KEY, read_images
    from spark_vision.cli.preview import preview_table
    from spark_vision.cli.progress_line import ProgressLine
    from spark_vision.cli.summary import describe_result
    from spark_vision.tables.forecast import describe_forecast, plan_vision_columns
    from spark_vision.tables.write import write_vision_columns

    keys = arguments.key or [FILE_KEY]
    operator = allow_input(operator, arguments.input)
    options = options_in(arguments, WriteOptions) | {"prompt_column": prompt_column}
    if arguments.stream:
        follow(spark, arguments, keys, operator, options)
        return
    if arguments.dry_run:
        images = read_images(spark, arguments.input)
        columns = {arguments.column: operator}
        forecast = plan_vision_columns(images, arguments.table, keys, columns, **options)
        print(describe_forecast(forecast))
        return
    with ProgressLine() as progress:
        result = write_vision_columns(
            read_images(spark, arguments.input),
            arguments.table,
            keys,
            {arguments.column: operator},
            progress=progress,
            **options,
        )
    if arguments.show:
        shown = preview_table(spark, result.table, keys, arguments.column, arguments.show)
        shown.show(arguments.show, truncate=False)
    print(describe_result(result))


def allow_input(operator: "Operator", place: str) -> "Operator":
    """Let strings of the rows be read below the folder that the user has named as the input.

    Args:
        operator: What to compute.
        place: A folder, of which a glob's is the one before its first special character; or a
            table, whose rows may say anything and are allowed nothing. All files of a machine are
            allowed to nobody who does not say so by `allow_paths`.
    """
    glob = _GLOB.search(place)
    folder = place[: glob.start()].rpartition("/")[0] if glob else place
    is_named = "/" in place and "`" not in place and folder.strip("/")
    if not reads_images(operator) or not is_named:
        return operator
    try:
        return replace(operator, allow_paths=(*operator.allow_paths, folder))
    except InvalidOptionError:
        # Spark reads more than a column's strings may, such as dbfs:/; their bytes need no root.
        return operator
