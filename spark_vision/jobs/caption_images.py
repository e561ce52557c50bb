"""Caption images into a Delta table.

python -m spark_vision.jobs.caption_images --input FOLDER --table PATH --model-name CHECKPOINT

It also runs by spark-submit, with Delta's --packages. A second run computes only new and changed
images; with --stream it follows the input. Exit code: 0; 1 for an error, in one line on stderr; 2
for a usage error.
"""

import argparse

from spark_vision.cli.command_line import JobParser
from spark_vision.cli.table_job import add_table_arguments, parse_table_job, run_table_job
from spark_vision.operators import QwenVLImageUnderstanding


def parse_arguments(texts: list[str] | None) -> tuple[argparse.Namespace, QwenVLImageUnderstanding]:
    """Parse the command line."""
    parser = JobParser(description=__doc__)
    add_table_arguments(parser, column="caption", what="captions")
    parser.add_argument(
        "--prompt-column",
        metavar="COLUMN",
        help="a column with a prompt per image; --prompt is used where it is null or blank",
    )
    return parse_table_job(parser, QwenVLImageUnderstanding, texts)


def main(texts: list[str] | None = None) -> int:
    """Run the job; return its exit code."""
    return run_table_job(*parse_arguments(texts))


if __name__ == "__main__":
    raise SystemExit(main())
