"""One run of a write: pick up what was left, survey, then infer, stage and commit each wave."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_vision.errors import CommitConflictError, TableError
from spark_vision.executor.failures import check_failure_rate, is_rate_exceeded
from spark_vision.operators import Operator
from spark_vision.tables.commit import StagedWave, commit_wave, delete_rows
from spark_vision.tables.hadoop_folder import HadoopFolder
from spark_vision.tables.identity import filled_columns
from spark_vision.tables.layout import check_table, make_table
from spark_vision.tables.location import TableDetail, read_detail
from spark_vision.tables.pending import BASE, Survey, survey_rows
from spark_vision.tables.prepared import PreparedWrite
from spark_vision.tables.progress import Progress, reporting, tell
from spark_vision.tables.recovery import recover_waves
from spark_vision.tables.stage import STAGE_FOLDER, CheckpointStage, RunFolder, Stage
from spark_vision.tables.storage_errors import explaining
from spark_vision.tables.structs import compute_rows
from spark_vision.tables.transaction import Transaction, is_committed
from spark_vision.tables.waves import Wave, count_waves, cut_waves

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WriteResult:
    """What a write did.

    Attributes:
        table: The table, as Spark SQL takes it.
        source_rows: Rows in the source.
        there: Those whose keys the table had already.
        computed: Rows that were computed and committed.
        recovered: Rows that a run which was killed had computed, and this one committed.
        deleted: Rows that were removed, because the source no longer has them.
        statuses: Of the computed rows, rows by status, for each column.
        seconds: What it all took.
    """

    table: str
    source_rows: int
    there: int
    computed: int
    recovered: int
    deleted: int
    statuses: Mapping[str, Mapping[str, int]]
    seconds: float


def run_write(
    write: PreparedWrite,
    source: DataFrame,
    transaction: Transaction | None = None,
    *,
    completes: bool = True,
) -> WriteResult:
    """Do a write; `write_vision_columns` says what it does and raises.

    Args:
        write: What is to be done.
        source: The rows.
        transaction: Nothing is done where the table has it already; the session is its own then.
        completes: Whether the last commit completes it, if need be one without rows; else, what
            comes after.
    """
    started = time.monotonic()
    spark = source.sparkSession
    location = write.location
    recovered = 0
    with explaining(f"read the table {location.given}"):
        detail = read_detail(spark, location)
        if detail is not None:
            check_table(spark, write, detail)
            root = _stage_root(spark, write, detail)
            if root is not None:
                recovered = recover_waves(spark, location, root)
            if transaction is not None and is_committed(spark, detail.folder, transaction):
                logger.info("the table has transaction %d already", transaction.version)
                return WriteResult(location.sql, 0, 0, 0, recovered, 0, {}, _since(started))
    logger.info("survey")
    survey = _survey(spark, write, source, has_table=detail is not None)
    try:
        _refuse_to_empty(write, survey)
        detail = make_table(spark, write)
        statuses = {name: Counter[str]() for name in write.columns}
        computed = 0
        completed = transaction if completes else None
        if survey.pending:
            computed = _run_waves(spark, write, source, survey, detail, statuses, completed)
        elif completed is not None:
            # A commit without rows: what others write from now on is newer than this.
            nothing, keys = survey.missing_keys.limit(0), write.chosen.key_names
            with explaining(f"write to {location.given}"):
                delete_rows(location, keys, nothing, unchanged=True, transaction=completed)
        deleted = survey.missing if write.delete_missing else 0
        if deleted:
            logger.info("delete %d rows", deleted)
            with explaining(f"remove rows from {location.given}"):
                delete_rows(location, write.chosen.key_names, survey.missing_keys, unchanged=True)
    finally:
        survey.release()
    result = WriteResult(
        table=location.sql,
        source_rows=survey.source_rows,
        there=survey.there,
        computed=computed,
        recovered=recovered,
        deleted=deleted,
        statuses={name: dict(counts) for name, counts in statuses.items()},
        seconds=_since(started),
    )
    if write.progress:
        tell(write.progress, lambda: _final_progress(result))
    return result


def _survey(
    spark: SparkSession, write: PreparedWrite, source: DataFrame, *, has_table: bool
) -> Survey:
    wanted = filled_columns(write.column_properties())
    return survey_rows(
        source,
        spark.table(write.location.sql) if has_table else None,
        write.chosen,
        {name: wanted[name] for name in write.columns},
        retry=write.retry,
        recompute=write.recompute,
    )


def _refuse_to_empty(write: PreparedWrite, survey: Survey) -> None:
    if not survey.missing or not (write.delete_missing or write.recompute):
        return
    if not survey.source_rows:
        what = "delete_missing would remove" if write.delete_missing else "recompute would empty"
        raise TableError(
            f"the source has no rows, and {what} all {survey.missing} of {write.location.given}; "
            "look whether the source is what it should be"
        )
    if write.recompute and not write.delete_missing:
        logger.warning(
            "recompute: %d rows of %s are not in the source; they are left without %s",
            survey.missing,
            write.location.given,
            ", ".join(write.columns),
        )


def _run_waves(
    spark: SparkSession,
    write: PreparedWrite,
    source: DataFrame,
    survey: Survey,
    detail: TableDetail,
    statuses: Mapping[str, Counter[str]],
    transaction: Transaction | None,
) -> int:
    root = _stage_root(spark, write, detail)
    stage: Stage = CheckpointStage() if root is None else RunFolder(spark, root)
    total, done = count_waves(survey, write.rows_per_commit), 0
    with (
        explaining(f"write rows to {write.location.given}"),
        reporting(spark, survey.pending_rows, write.counters, write.progress) as watch,
        stage.kept_alive(),
    ):
        waves = cut_waves(survey, write.chosen.key_names, write.rows_per_commit)
        try:
            for number, wave in enumerate(waves, start=1):
                watch.begin(number, done)
                logger.info("wave %d of %d: infer %d rows", number, total, wave.count)
                rows = _stage_wave(write, source, wave, stage, statuses)
                logger.info("wave %d of %d: commit", number, total)
                completed = transaction if number == total else None
                commit_wave(write.location, _describe(write, wave), rows, completed)
                logger.info("wave %d of %d: clean", number, total)
                stage.drop()
                done += wave.count
        except CommitConflictError:
            # What was computed waits for the next run.
            raise
        except BaseException:
            stage.end()
            raise
        stage.end()
    return done


def _stage_wave(
    write: PreparedWrite,
    source: DataFrame,
    wave: Wave,
    stage: Stage,
    statuses: Mapping[str, Counter[str]],
) -> DataFrame:
    computed = compute_rows(
        wave.select_from(source, write.chosen.key_names),
        write.chosen,
        {name: write.columns[name] for name in wave.columns},
        write.counters,
        passed=[BASE],
    )
    rows = stage.write(computed)
    logger.info("stage %d rows", wave.count)
    counts = [row.asDict() for row in rows.groupBy(*_status_names(wave)).count().collect()]
    count = sum(row["count"] for row in counts)
    if count != wave.count:
        raise TableError(
            f"the source gave {count} rows where it had {wave.count} when its keys were read; it "
            "changed meanwhile, and this wave was not committed: run again once it stands still"
        )
    for row in counts:
        for name in wave.columns:
            statuses[name][row[f"{name}_status"]] += row["count"]
    for name in wave.columns:
        _check_failures(rows, name, write.columns[name], statuses[name])
    stage.finish(_describe(write, wave))
    return rows


def _check_failures(
    rows: DataFrame, name: str, operator: Operator, counts: Mapping[str, int]
) -> None:
    """Stop where too many rows of this run failed; the wave that shows it is not committed."""
    if is_rate_exceeded(counts, operator.max_failure_rate):
        status, error = F.col(f"{name}_status"), F.first(f"{name}_error", ignorenulls=True)
        examples = {row[0]: row[1] for row in rows.groupBy(status).agg(error).dropna().collect()}
        check_failure_rate(counts, operator.max_failure_rate, examples)


def _status_names(wave: Wave) -> list[str]:
    return [f"{name}_status" for name in wave.columns]


def _since(started: float) -> float:
    return time.monotonic() - started


def _describe(write: PreparedWrite, wave: Wave) -> StagedWave:
    return StagedWave(
        is_new=wave.is_new,
        keys=write.chosen.key_names,
        kept=write.chosen.kept_names,
        columns=wave.columns,
        inputs=write.chosen.inputs,
        identity=write.deciding_properties(*wave.columns),
        count=wave.count,
    )


def _stage_root(
    spark: SparkSession, write: PreparedWrite, detail: TableDetail
) -> HadoopFolder | None:
    if not hasattr(spark, "_jvm"):
        return None
    folder = detail.folder if write.stage_folder is None else write.stage_folder.rstrip("/")
    name = STAGE_FOLDER if write.stage_folder is None else f"{STAGE_FOLDER}-{detail.table_id}"
    return HadoopFolder(spark, f"{folder}/{name}")


def _final_progress(result: WriteResult) -> Progress:
    return Progress(
        done=result.computed,
        total=result.computed,
        seconds=result.seconds,
        rows_per_second=result.computed / result.seconds,
        statuses=result.statuses,
    )
