"""Embed images into a Delta table: python jobs/embed_images.py --input FOLDER --table PATH.

Runs by python, and by spark-submit with Delta's --packages. Run again, it computes only what the
table does not have. Exit code: 0; 1 for an error, in one line on stderr; 2 for a wrong usage.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from spark_vision.command_line import add_operator_arguments, operator_from_arguments
from spark_vision.errors import InvalidOptionError
from spark_vision.job import LOG_LEVELS, run_job
from spark_vision.operators import OPERATORS, ImageOperator, ImageViTEmbedding

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

IMAGE_OPERATORS = [name for name, kind in OPERATORS.items() if issubclass(kind, ImageOperator)]


def parse_arguments(texts: list[str]) -> tuple[argparse.Namespace, ImageOperator]:
    """Read the command line; the operator that it names decides which options it may have."""
    chosen = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chosen.add_argument(
        "--operator",
        choices=IMAGE_OPERATORS,
        default=ImageViTEmbedding.__name__,
        help="what to compute; --operator NAME --help shows its options (default: %(default)s)",
    )
    operator = OPERATORS[chosen.parse_known_args(texts)[0].operator]
    parser = argparse.ArgumentParser(
        parents=[chosen],
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
        default="embedding",
        metavar="NAME",
        help="the vectors' column in the table (default: %(default)s)",
    )
    parser.add_argument(
        "--show",
        type=int,
        default=0,
        metavar="N",
        help="rows of the table to show at the end, failed ones first (default: none)",
    )
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, help="of Spark (default: the session's own, else OFF)"
    )
    add_operator_arguments(parser, operator)
    arguments = parser.parse_args(texts)
    try:
        return arguments, operator_from_arguments(operator, arguments)
    except InvalidOptionError as error:
        parser.error(str(error))


def embed(spark: "SparkSession", arguments: argparse.Namespace, operator: ImageOperator) -> None:
    """Write what the table lacks, and say what became of it."""
    from spark_vision.tables import write_vision_columns
    from spark_vision.tables.inputs import FILE_KEY, read_images
    from spark_vision.tables.preview import preview_table
    from spark_vision.tables.progress_line import ProgressLine
    from spark_vision.tables.summary import describe_result

    keys = arguments.key or [FILE_KEY]
    with ProgressLine() as progress:
        result = write_vision_columns(
            read_images(spark, arguments.input),
            arguments.table,
            keys=keys,
            columns={arguments.column: operator},
            image_column=arguments.image_column,
            keep=arguments.keep,
            progress=progress,
        )
    if arguments.show:
        shown = preview_table(spark, result.table, keys, arguments.column, arguments.show)
        shown.show(arguments.show, truncate=False)
    print(describe_result(result))


def main(texts: list[str]) -> int:
    """Run the job; return its exit code."""
    arguments, operator = parse_arguments(texts)
    return run_job(lambda spark: embed(spark, arguments, operator), arguments.log_level)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
