"""Embed images into a Delta table.

python -m spark_vision.jobs.embed_images --input FOLDER --table PATH --model-name CHECKPOINT

It also runs by spark-submit, with Delta's --packages. A second run computes only new and changed
images; with --stream it follows the input. Exit code: 0; 1 for an error, in one line on stderr; 2
for a usage error.
"""

from spark_vision.cli.command_line import JobParser
from spark_vision.cli.table_job import run_table_job
from spark_vision.operators import OPERATORS, ImageEmbeddingOperator, ImageViTEmbedding

IMAGE_OPERATORS = {
    name: kind for name, kind in OPERATORS.items() if issubclass(kind, ImageEmbeddingOperator)
}


def main(texts: list[str] | None = None) -> int:
    """Run the job; return its exit code. `--operator` determines which options there are."""
    chosen = JobParser(add_help=False)
    chosen.add_argument(
        "--operator",
        choices=IMAGE_OPERATORS,
        default=ImageViTEmbedding.__name__,
        help="what to compute; --operator NAME --help shows its options (default: %(default)s)",
    )
    operator = IMAGE_OPERATORS[chosen.parse_known_args(texts)[0].operator]
    parser = JobParser(parents=[chosen], description=__doc__)
    return run_table_job(parser, operator, texts, column="embedding", what="vectors")


if __name__ == "__main__":
    raise SystemExit(main())
