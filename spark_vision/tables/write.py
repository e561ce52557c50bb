"""Writes a table: `write_vision_columns` finds the pending rows, then computes them.

It works wave by wave, until no row of the source is pending.
"""

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from spark_vision.errors import CommitConflictError, TableError
from spark_vision.operators import Operator
from spark_vision.tables.commit import delete_rows
from spark_vision.tables.location import TableLocation, read_detail
from spark_vision.tables.named_points import reach
from spark_vision.tables.progress import Progress, Report, report_safely
from spark_vision.tables.session_settings import described, labelled
from spark_vision.tables.source import refuse_stream
from spark_vision.tables.source_files import is_narrowed
from spark_vision.tables.storage_errors import explaining, retry_conflicts
from spark_vision.tables.survey import Survey, survey_source
from spark_vision.tables.table_layout import check_table, fit_keys, is_blank, make_table
from spark_vision.tables.transaction import Transaction, is_committed, reads_transactions
from spark_vision.tables.wave_writer import WaveWriter
from spark_vision.tables.write_options import parse_write_options, takes_write_options
from spark_vision.tables.write_plan import WritePlan, plan_write
from spark_vision.tables.write_result import WriteResult, append_report, work_between

logger = logging.getLogger(__name__)

# A run surveys again where a wave found fewer rows than the survey did: a source that was rewritten
# meanwhile has its rows in other files. It gives up after so many surveys without a new row.
_LOST_SURVEY_COUNT = 3


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
    """Compute columns for the rows that a Delta table lacks, and write them to it.

    A new table has the keys, the kept columns, `source_hash`, for each column `<name>`,
    `<name>_status` and `<name>_error` (and `<name>_truncated` for captions), and `updated_at`. A
    column that an existing table lacks is added and filled in. Columns that are not named here stay
    as they are, except that a value whose image, text or prompt has changed is set to null. Each
    row is computed once: where nothing is pending, nothing is computed and nothing is written.
    Each image is fetched and decoded once for all columns.

    The work is done in waves, each of which is one commit. A run that is killed loses at most the
    current wave, and the next run continues.

    Args:
        source: The rows. Their keys are read first; the rest is read wave by wave.
        table: A path, or a name in a catalog that persists.
        keys: Columns that identify a row of the source; unique and never null.
        columns: What to compute, by the name of its column.
        progress: Called with the write's `Progress` every two seconds, and once at the end.
        options: The fields of `WriteOptions`, which documents each.

    Returns:
        The counts of this run; those by status are exact.

    Raises:
        InvalidOptionError: There is no such option, or its value is not allowed.
        TableError: The source's columns or keys, the existing table, or the storage do not allow
            the write; other writers committed first at every attempt; or the source returned
            duplicate keys while it was read. Earlier commits remain.
        InputTypeError: A column has a type that its operator cannot read.
        SessionError: The session has no Delta.
        SparkVisionError: An operator's checkpoint is missing, or does not suit it.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
        >>> result = write_vision_columns(
        ...     photos, "/data/new_vectors", keys=["path"], columns={"embedding": dino}
        ... )
        >>> result.statuses
        {'embedding': {'ok': 4}}
        >>> again = write_vision_columns(
        ...     photos, "/data/new_vectors", keys=["path"], columns={"embedding": dino}
        ... )
        >>> again.computed_rows
        0
    """
    refuse_stream(source)
    plan = plan_write(source, table, keys, columns, parse_write_options(options), progress)
    return run_write(plan, source)


def run_write(
    write: WritePlan,
    source: DataFrame,
    transaction: Transaction | None = None,
    *,
    completes: bool = True,
    is_kept: bool = False,
) -> WriteResult:
    """Run a write, as documented at `write_vision_columns`.

    Args:
        write: The write's plan.
        source: The rows.
        transaction: The stream's batch; nothing is done where the table already has it.
        completes: Whether this run completes the transaction, even if it has no rows; otherwise a
            later commit does.
        is_kept: Whether the session caches the source's rows, so that reading them again is cheap.
    """
    started, spent_before = time.monotonic(), _spent(write)
    spark, location, run_id = source.sparkSession, write.location, str(uuid.uuid4())
    with explaining(f"read the table {location.given}"):
        detail = read_detail(spark, location)
        if detail is not None:
            write, source = fit_keys(write, source, detail)
            check_table(write, detail)
            if transaction is not None and is_committed(spark, detail.folder, transaction):
                logger.info("the table already has transaction %d", transaction.version)
                seconds = time.monotonic() - started
                return WriteResult(location.sql, 0, 0, 0, 0, 0, 0, {}, seconds, run_id, None)
    has_table = detail is not None and not is_blank(detail)
    first, lost_count = None, 0
    # A batch is complete once all its rows are written, which another writer may delay. Where the
    # table's transactions cannot be read, the last wave has it, so that Delta skips a repeated one.
    ends = transaction if completes else None
    of_last_wave = ends if ends is not None and not reads_transactions(spark) else None
    with WaveWriter(write, run_id, of_last_wave, is_kept=is_kept) as run:
        while True:
            reach("before survey")
            with described(spark, f"survey for {location.given}"):
                survey = survey_source(spark, write, source, has_table=has_table)
            reach("after survey")
            try:
                if first is None:
                    first = survey
                    warn_of_missing(write, source, survey)
                _refuse_to_empty(write, survey)
                with labelled(spark, run_id):
                    make_table(spark, write)
                has_table, before = True, run.rows
                is_complete = run.write_pending(write, source, survey)
                lost_count = 0 if run.rows > before else lost_count + 1
                if is_complete or lost_count == _LOST_SURVEY_COUNT:
                    if transaction is not None and not is_complete:
                        raise CommitConflictError(
                            f"other writers changed rows of {location.given} that a stream's batch "
                            "writes, again and again; start the stream again, with fewer writers"
                        )
                    with labelled(spark, run_id):
                        deleted_rows = _finish(write, survey, ends)
                    break
                # What this run has already emptied or retried is not again.
                write = replace(write, options=replace(write.options, recompute=False, retry=()))
            finally:
                survey.release()
    if write.options.optimize and run.rows:
        with explaining(f"compact the files of {location.given}"), labelled(spark, run_id):
            _compact(spark, location)
    result = WriteResult(
        table=location.sql,
        source_rows=first.source_rows,
        existing_rows=first.existing_rows,
        computed_rows=run.computed_rows,
        refreshed_rows=run.refreshed_rows,
        remaining_rows=run.remaining_rows,
        deleted_rows=deleted_rows,
        statuses={name: dict(counts) for name, counts in run.statuses.items()},
        elapsed_seconds=time.monotonic() - started,
        run_id=run_id,
        work=None if write.spent is None else work_between(spent_before, _spent(write)),
    )
    if write.progress:
        rows, seconds = result.computed_rows, result.elapsed_seconds
        report_safely(
            write.progress,
            lambda: Progress(rows, rows, seconds, result.rows_per_second, result.statuses),
        )
    if write.report is not None:
        append_report(spark, write.report, result)
    return result


def _spent(write: WritePlan) -> Mapping[str, int]:
    return {} if write.spent is None else write.spent.value


def _finish(write: WritePlan, survey: Survey, transaction: Transaction | None) -> int:
    """Delete what the source lacks, or commit a stream's batch; return how many rows are deleted.

    A batch deletes nothing here. It is committed without rows: later writes of others are newer.
    """
    missing, step = survey.missing_keys, f"write to {write.location.given}"
    if transaction is not None:
        missing = missing.limit(0)
    elif write.options.delete_missing and survey.missing_rows:
        logger.info("deleting %d rows", survey.missing_rows)
        step = f"delete rows from {write.location.given}"
    else:
        return 0
    with explaining(step):
        return delete_rows(write, missing, unchanged=True, transaction=transaction)


def _compact(spark: SparkSession, location: TableLocation) -> None:
    """Compact a table's files; where others rewrite them at each attempt, only warn of it."""
    try:
        retry_conflicts(location, lambda: spark.sql(f"OPTIMIZE {location.sql}").collect())
    except CommitConflictError as error:
        logger.warning("the files of %s were not compacted: %s", location.given, error)


def warn_of_missing(write: WritePlan, source: DataFrame, survey: Survey) -> None:
    """Warn of rows to be deleted that the source may merely have filtered out."""
    if write.options.delete_missing and survey.missing_rows and is_narrowed(source):
        logger.warning(
            "delete_missing: the source (%s) is filtered, limited or sampled; %d rows of %s whose "
            "keys it does not have are deleted, even if they were only left out",
            ", ".join(source.columns),
            survey.missing_rows,
            write.location.given,
        )


def _refuse_to_empty(write: WritePlan, survey: Survey) -> None:
    if not survey.missing_rows or not (write.options.delete_missing or write.options.recompute):
        return
    if not survey.source_rows:
        what = (
            "delete_missing would remove"
            if write.options.delete_missing
            else "recompute would empty"
        )
        raise TableError(
            f"the source has no rows, and {what} all {survey.missing_rows} of "
            f"{write.location.given}; check that the source is the right one"
        )
    if write.options.recompute and not write.options.delete_missing:
        logger.warning(
            "recompute: %d rows of %s are not in the source and keep no value of %s",
            survey.missing_rows,
            write.location.given,
            ", ".join(write.columns),
        )
