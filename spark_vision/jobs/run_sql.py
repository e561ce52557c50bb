"""Run SQL with embedding functions.

python -m spark_vision.jobs.run_sql --function NAME=OPERATOR --query SQL

For example --function embed_image=ImageViTEmbedding:model_name=facebook/dinov2-base,dtype=bfloat16
--query "SELECT path, embed_image(content) FROM binaryFile.`/photos`". Statements end with a
semicolon; the rows of each query are shown. Exit code: 0; 1 for an error, in one line on stderr;
2 for a usage error.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from spark_vision.cli.command_line import JobParser, parse_functions
from spark_vision.cli.job import LOG_LEVELS, run_job
from spark_vision.cli.statements import split_statements
from spark_vision.errors import InvalidOptionError
from spark_vision.operators import OPERATORS, Operator

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def parse_arguments(
    texts: list[str] | None,
) -> tuple[argparse.Namespace, dict[str, Operator], list[str]]:
    """Parse the command line: the arguments, the functions and the statements."""
    parser = JobParser(
        description=__doc__,
        epilog=f"Operators: {', '.join(OPERATORS)}; their fields are in docs/options.md.",
    )
    parser.add_argument(
        "--function",
        action="append",
        required=True,
        metavar="NAME=OPERATOR:FIELD=VALUE,…",
        help="a function to register for the statements; repeatable",
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--query", metavar="SQL", help="the statements to run")
    given.add_argument("--file", type=Path, help="a file with the statements to run")
    parser.add_argument(
        "--with-status",
        action="store_true",
        help="register functions that return struct<embedding, status, error>",
    )
    parser.add_argument(
        "--with-placement",
        action="store_true",
        help="also register NAME_placement for each function: which process computed a row",
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=20,
        metavar="N",
        help="maximum number of rows to show (default: %(default)s)",
    )
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, help="Spark's log level (default: its setting, else OFF)"
    )
    arguments = parser.parse_args(texts)
    try:
        functions = parse_functions(arguments.function)
        text = arguments.query if arguments.file is None else arguments.file.read_text()
    except (InvalidOptionError, OSError, UnicodeDecodeError) as error:
        parser.error(str(error))
    return arguments, functions, split_statements(text)


def main(texts: list[str] | None = None) -> int:
    """Run the job; return its exit code."""
    arguments, functions, statements = parse_arguments(texts)

    def run(spark: "SparkSession") -> None:
        from spark_vision.sql import register_functions

        register_functions(
            spark,
            functions,
            with_status=arguments.with_status,
            with_placement=arguments.with_placement,
        )
        for statement in statements:
            rows = spark.sql(statement)
            if rows.columns:
                rows.show(arguments.rows)

    return run_job(run, arguments.log_level)


if __name__ == "__main__":
    raise SystemExit(main())
