"""The one way to a table: `write_vision_columns` computes what a table lacks, wave by wave."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import DataFrame

from spark_vision.operators import Operator
from spark_vision.tables.plan import plan_write
from spark_vision.tables.progress import Report
from spark_vision.tables.run import WriteResult, run_write
from spark_vision.tables.source import refuse_stream
from spark_vision.write_options import parse_write_options, takes_write_options


@takes_write_options()
def write_vision_columns(
    source: DataFrame,
    table: str,
    keys: Sequence[str],
    columns: Mapping[str, Operator],
    *,
    progress: Report | None = None,
    **options: Any,
) -> WriteResult:
    """Compute the columns of those rows that a Delta table does not have, and write them to it.

    The table is made if it is not there: keys, kept columns, `source_hash`, for each column
    `<name>`, `<name>_status` and `<name>_error` (and `<name>_truncated` for captions), and
    `updated_at`. A column that the table does not have yet is added to it and filled in; columns
    that are not named here stay as they are, except that a value whose image, text or prompt has
    changed is taken out. Each row is inferred once: where no row is missing, nothing is computed
    and nothing is written. Each image is fetched and decoded once for all columns.

    The work goes in waves, each of which is one commit: rows go from the model into the table's
    files. A run that is killed loses at most the wave in flight; the next one goes on.

    Args:
        source: The rows; its keys are read first, then, wave by wave, the rest.
        table: A path, or a name in a catalog that persists.
        keys: Columns that tell the source's rows apart; unique and never null.
        columns: What to compute, by the name of its column.
        progress: Told every two seconds how far the write is, and once at its end.
        options: Those of `WriteOptions`, which says what each is for.

    Returns:
        The counts of this run; those by status are exact.

    Raises:
        InvalidOptionError: There is no such option, or its value is not allowed.
        TableError: The source's columns or keys, the table that is there, or the storage do not
            allow it; others wrote to the table at each of several attempts; or keys came twice into
            the source while it was read. What was committed before stays.
        InputTypeError: A column has a type that its operator cannot read.
        SessionError: The session has no Delta.
        SparkVisionError: An operator's checkpoint is missing or is not what it needs.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> write_vision_columns(
        ...     photos, "/data/vectors", keys=["path"], columns={"embedding": ImageViTEmbedding()}
        ... )
    """
    refuse_stream(source)
    plan = plan_write(source, table, keys, columns, parse_write_options(options), progress)
    return run_write(plan, source)
