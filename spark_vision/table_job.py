"""What the jobs that fill a table share: their options, and the write with its progress."""

import argparse
from typing import TYPE_CHECKING, Any

from spark_vision.job import LOG_LEVELS
from spark_vision.stream_job import add_stream_arguments, follow

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_vision.operators import Operator


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
        "or a table's name",
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
        "--keep",
        action="append",
        default=[],
        metavar="COLUMN",
        help="copied from the input to the table; repeat it for several",
    )
    parser.add_argument(
        "--image-column",
        default="content",
        metavar="COLUMN",
        help="the images (default: %(default)s)",
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
        "--rows-per-commit",
        type=int,
        metavar="N",
        help="rows that are computed and committed together; a kill loses at most so many "
        "(default: 50000)",
    )
    parser.add_argument(
        "--retry",
        action="append",
        default=[],
        metavar="STATUS",
        help="compute rows again that ended with this status; 'failed' is all of them; repeat it "
        "for several",
    )
    parser.add_argument(
        "--recompute",
        action="store_true",
        help="empty the column and compute it for all rows, by a model that may be another",
    )
    parser.add_argument(
        "--delete-missing",
        action="store_true",
        help="remove rows from the table that the input no longer has",
    )
    parser.add_argument(
        "--version-column",
        action="append",
        metavar="COLUMN",
        help="says when an image changed, such as an ETag; repeat it for several (default: "
        "modificationTime and length of image files, else the bytes)",
    )
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
    from spark_vision.tables import write_vision_columns
    from spark_vision.tables.inputs import FILE_KEY, read_images
    from spark_vision.tables.preview import preview_table
    from spark_vision.tables.progress_line import ProgressLine
    from spark_vision.tables.summary import describe_result

    keys = arguments.key or [FILE_KEY]
    if arguments.stream:
        follow(spark, arguments, keys, operator, prompt_column, _shared(arguments))
        return
    with ProgressLine() as progress:
        result = write_vision_columns(
            read_images(spark, arguments.input),
            arguments.table,
            keys,
            {arguments.column: operator},
            prompt_column=prompt_column,
            retry="failed" if "failed" in arguments.retry else arguments.retry,
            recompute=arguments.recompute,
            delete_missing=arguments.delete_missing,
            progress=progress,
            **_shared(arguments),
        )
    if arguments.show:
        shown = preview_table(spark, result.table, keys, arguments.column, arguments.show)
        shown.show(arguments.show, truncate=False)
    print(describe_result(result))


def _shared(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a write and a stream both take."""
    shared = {
        "image_column": arguments.image_column,
        "keep": arguments.keep,
        "version_columns": arguments.version_column,
    }
    if arguments.rows_per_commit is not None:
        shared["rows_per_commit"] = arguments.rows_per_commit
    return shared
