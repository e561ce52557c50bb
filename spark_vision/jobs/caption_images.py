"""Caption images into a Delta table.

python -m spark_vision.jobs.caption_images --input FOLDER --table PATH --model-name CHECKPOINT

It also runs by spark-submit, with Delta's --packages. A second run computes only new and changed
images; with --stream it follows the input. Exit code: 0; 1 for an error, in one line on stderr; 2
for a usage error.
"""

from spark_vision.cli.command_line import JobParser
from spark_vision.cli.table_job import run_table_job
from spark_vision.operators import QwenVLImageUnderstanding


def main(texts: list[str] | None = None) -> int:
    """Run the job; return its exit code."""
    parser = JobParser(description=__doc__)
    parser.add_argument(
        "--prompt-column",
        metavar="COLUMN",
        help="a column with a prompt per image; --prompt is used where it is null or blank",
    )
    return run_table_job(parser, QwenVLImageUnderstanding, texts, column="caption", what="captions")


if __name__ == "__main__":
    raise SystemExit(main())
