"""Load vectors into Milvus or Pinecone.

python -m spark_vision.jobs.index_vectors --table PATH --column NAME --pinecone INDEX

The first run loads the whole column, and later runs only what changed in the table; with --follow
the index follows the table until the job is stopped. Exit code: 0; 1 for an error, in one line on
stderr; 2 for a usage error; 130 if it was interrupted.
"""

import argparse
import sys
import time
from typing import TYPE_CHECKING

from spark_vision.cli.command_line import JobParser
from spark_vision.cli.index_arguments import add_index_arguments, index_from_arguments
from spark_vision.cli.job import LOG_LEVELS, run_job
from spark_vision.errors import IndexConnectionError

MAX_INTERVAL_SECONDS = 86_400

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_vision.search.vector_index import VectorIndex


def parse_arguments(texts: list[str] | None) -> tuple[argparse.Namespace, "VectorIndex"]:
    """Parse the command line: the arguments and the index."""
    parser = JobParser(description=__doc__)
    parser.add_argument("--table", required=True, help="the Delta table: a path, or a name")
    parser.add_argument("--column", required=True, help="its column of vectors")
    parser.add_argument(
        "--metadata",
        action="append",
        default=[],
        metavar="COLUMN",
        help="a column of the table to store beside the vectors; repeatable",
    )
    add_index_arguments(parser, required=True)
    parser.add_argument(
        "--reload",
        action="store_true",
        help="remove all records first (a Milvus collection is made again), and load it whole",
    )
    parser.add_argument(
        "--concurrency",
        type=int,
        default=8,
        metavar="N",
        help="maximum number of tasks that write at the same time (default: %(default)s)",
    )
    parser.add_argument(
        "--follow", action="store_true", help="look for changes again and again, until stopped"
    )
    parser.add_argument(
        "--interval-seconds",
        type=float,
        default=10.0,
        metavar="X",
        help="with --follow: the pause between two looks (default: %(default)s)",
    )
    parser.add_argument("--log-level", choices=LOG_LEVELS, help="Spark's log level (default: OFF)")
    arguments = parser.parse_args(texts)
    if arguments.concurrency < 1:
        parser.error("--concurrency must be 1 or more")
    if not 0 <= arguments.interval_seconds < MAX_INTERVAL_SECONDS:
        parser.error(f"--interval-seconds must be 0 to {MAX_INTERVAL_SECONDS:,}")
    index = index_from_arguments(parser, arguments)
    if index is None:
        raise AssertionError("an index is required")
    return arguments, index


def sync(spark: "SparkSession", arguments: argparse.Namespace, index: "VectorIndex") -> None:
    """Bring the index up to the table, once or until the job is stopped."""
    from spark_vision.search.sync import sync_index
    from spark_vision.tables.progress_bar import ProgressBar

    must_reload = arguments.reload
    while True:
        try:
            with ProgressBar() as progress:
                result = sync_index(
                    arguments.table,
                    arguments.column,
                    index,
                    metadata=arguments.metadata,
                    reload=must_reload,
                    concurrency=arguments.concurrency,
                    progress=progress,
                    spark=spark,
                )
        except IndexConnectionError as error:
            if not arguments.follow:
                raise
            print(f"{error}; trying again", file=sys.stderr, flush=True)
        else:
            if must_reload or result.from_version != result.version or not arguments.follow:
                print(result, flush=True)
            must_reload = False
        if not arguments.follow:
            return
        time.sleep(arguments.interval_seconds)


def main(texts: list[str] | None = None) -> int:
    """Run the job; return its exit code."""
    arguments, index = parse_arguments(texts)
    return run_job(lambda spark: sync(spark, arguments, index), arguments.log_level)


if __name__ == "__main__":
    raise SystemExit(main())
