"""The one way to a table: `write_vision_columns` computes what a table lacks, wave by wave."""

from collections.abc import Mapping, Sequence

from pyspark.sql import DataFrame

from spark_vision.errors import TableError
from spark_vision.operators import Operator
from spark_vision.tables.prepared import prepare_write
from spark_vision.tables.progress import Report
from spark_vision.tables.run import WriteResult, run_write

ROWS_PER_COMMIT = 50_000


def write_vision_columns(
    source: DataFrame,
    table: str,
    keys: Sequence[str],
    columns: Mapping[str, Operator],
    *,
    image_column: str = "content",
    text_column: str = "text",
    prompt_column: str | None = None,
    keep: Sequence[str] = (),
    version_columns: Sequence[str] | None = None,
    rows_per_commit: int = ROWS_PER_COMMIT,
    retry: str | Sequence[str] = (),
    recompute: bool = False,
    delete_missing: bool = False,
    progress: Report | None = None,
) -> WriteResult:
    """Compute the columns of those rows that a Delta table does not have, and write them to it.

    The table is made if it is not there: keys, kept columns, `source_hash`, for each column
    `<name>`, `<name>_status` and `<name>_error` (and `<name>_truncated` for captions), and
    `updated_at`. A column that the table does not have yet is added to it and filled in; columns
    that are not named here stay as they are, except that a value whose image, text or prompt has
    changed is taken out. Each row is inferred once: where no row is missing, nothing is computed
    and nothing is written. Each image is fetched and decoded once for all columns.

    The work goes in waves of `rows_per_commit` rows, each of which is one commit: rows go from the
    model into the table's files. A run that is killed loses at most the wave in flight; the next
    one goes on.

    Args:
        source: The rows; its keys are read first, then, wave by wave, the rest.
        table: A path, or a name in a catalog that persists.
        keys: Columns that tell the source's rows apart; unique and never null.
        columns: What to compute, by the name of its column.
        image_column: What image operators read.
        text_column: What text operators read.
        prompt_column: What is asked of each image; null and blank mean the operator's prompt, as
            everywhere without such a column.
        keep: Columns of the source that the table has as they are when the row is computed.
        version_columns: Columns that change whenever the image does: a modification time, an ETag,
            a hash. A row is computed again where they, or the URL, changed, and no image is read to
            know. None: `modificationTime` and `length` where the source has both, as the rows of
            `binaryFile` do; else the image's bytes or the URL alone are compared, as with `[]`.
        rows_per_commit: Rows of a wave, and of a commit.
        retry: Which failed rows to compute again: `"failed"` for all, or a list of statuses.
        recompute: Compute all rows again, by a model that may be another: its columns are emptied
            first, in a commit of its own. A run that is then killed goes on without it.
        delete_missing: Remove rows whose keys the source no longer has.
        progress: Told every two seconds how far the write is, and once at its end.

    Returns:
        The counts of this run; those by status are exact.

    Raises:
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
    if source.isStreaming:
        raise TableError("the source is a stream; call stream_vision_columns")
    prepared = prepare_write(
        source,
        table,
        keys,
        columns,
        image_column=image_column,
        text_column=text_column,
        prompt_column=prompt_column,
        keep=keep,
        version_columns=version_columns,
        rows_per_commit=rows_per_commit,
        retry=retry,
        recompute=recompute,
        delete_missing=delete_missing,
        progress=progress,
    )
    return run_write(prepared, source)
