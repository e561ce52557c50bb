"""Tag images into a Delta table.

python -m spark_vision.jobs.tag_images --input FOLDER --table PATH --tag cat --tag dog

It also runs by spark-submit, with Delta's --packages. A second run computes only new and changed
images; with --stream it follows the input. Exit code: 0; 1 for an error, in one line on stderr; 2
for a usage error.
"""

from spark_vision.cli.command_line import JobParser
from spark_vision.cli.table_job import run_table_job
from spark_vision.operators import ClipImageTags


def main(texts: list[str] | None = None) -> int:
    """Run the job; return its exit code."""
    parser = JobParser(description=__doc__)
    return run_table_job(parser, ClipImageTags, texts, column="tags", what="tags")


if __name__ == "__main__":
    raise SystemExit(main())
