"""One run of a write: survey, then compute and commit each wave."""

import logging
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession

from spark_vision.errors import TableError
from spark_vision.executor.failures import check_failure_rate, is_rate_exceeded
from spark_vision.operators import QwenVLImageUnderstanding
from spark_vision.tables.commit import (
    KeptRows,
    WaveContent,
    commit_wave,
    count_statuses,
    delete_rows,
    find_examples,
    new_stamp,
    remove_wave,
)
from spark_vision.tables.layout import check_table, fit_keys, is_blank, make_table
from spark_vision.tables.location import read_detail, read_version
from spark_vision.tables.pace import Pace
from spark_vision.tables.pending import BASE, Survey, survey_rows
from spark_vision.tables.plan import WritePlan
from spark_vision.tables.points import reach
from spark_vision.tables.progress import Progress, reporting, tell
from spark_vision.tables.session_settings import labelled
from spark_vision.tables.source_files import is_narrowed
from spark_vision.tables.storage_errors import explaining
from spark_vision.tables.structs import compute_rows
from spark_vision.tables.transaction import Transaction, is_committed
from spark_vision.tables.waves import Wave, count_slots, cut_waves

logger = logging.getLogger(__name__)

# A run looks again what is pending where a wave found fewer rows than surveyed: a source that is
# rewritten meanwhile has its rows in other files. It gives up where that brings nothing any more.
_LOST_SURVEY_COUNT = 3


@dataclass(frozen=True)
class WriteResult:
    """What a write did.

    Attributes:
        table: The table, as Spark SQL takes it.
        source_rows: Rows in the source.
        there: Those whose keys the table had already.
        computed: Rows that were computed and committed.
        refreshed: Rows whose kept columns alone were copied again.
        left: Rows that are pending still, where the run was to end before.
        deleted: Rows that were removed, because the source no longer has them.
        statuses: Of the computed rows, rows by status, for each column.
        seconds: What it all took.
        run_id: What the run's commits name it by in their `userMetadata`, each with the number of
            its wave: {"spark_vision": {"run": "…", "wave": 3}}.
    """

    table: str
    source_rows: int
    there: int
    computed: int
    refreshed: int
    left: int
    deleted: int
    statuses: Mapping[str, Mapping[str, int]]
    seconds: float
    run_id: str


def run_write(
    write: WritePlan,
    source: DataFrame,
    transaction: Transaction | None = None,
    *,
    completes: bool = True,
    is_kept: bool = False,
) -> WriteResult:
    """Do a write; `write_vision_columns` says what it does and raises.

    Args:
        write: What is to be done.
        source: The rows.
        transaction: Nothing is done where the table has it already; the session is its own then.
        completes: Whether the last commit completes it, if need be one without rows; else, what
            comes after.
        is_kept: Whether the session holds the source's rows, so that reading them again is cheap.
    """
    started = time.monotonic()
    spark, location, run_id = source.sparkSession, write.location, str(uuid.uuid4())
    with explaining(f"read the table {location.given}"):
        detail = read_detail(spark, location)
        if detail is not None:
            write, source = fit_keys(write, source, detail)
            check_table(write, detail)
            if transaction is not None and is_committed(spark, detail.folder, transaction):
                logger.info("the table has transaction %d already", transaction.version)
                return WriteResult(location.sql, 0, 0, 0, 0, 0, 0, {}, _since(started), run_id)
    pace = Pace(write)
    kept = KeptRows(any(map(_takes_long, write.columns.values())))
    done = _Done(run_id, kept, write.columns)
    has_table = detail is not None and not is_blank(detail)
    first, lost_count = None, 0
    while True:
        logger.info("survey")
        reach("before survey")
        survey = survey_source(spark, write, source, has_table=has_table)
        reach("after survey")
        if first is None:
            first = survey
            warn_of_missing(write, source, survey)
        try:
            _refuse_to_empty(write, survey)
            with labelled(spark, run_id):
                make_table(spark, write)
            has_table = True
            before = done.rows
            is_complete = _run_waves(
                write,
                source,
                survey,
                pace,
                done,
                transaction if completes else None,
                is_kept=is_kept,
            )
            lost_count = lost_count + 1 if done.rows == before else 0
            if is_complete or transaction is not None or lost_count == _LOST_SURVEY_COUNT:
                deleted = survey.missing if write.options.delete_missing else 0
                if deleted:
                    logger.info("delete %d rows", deleted)
                    with (
                        explaining(f"remove rows from {location.given}"),
                        labelled(spark, run_id),
                    ):
                        delete_rows(
                            location, write.chosen.key_names, survey.missing_keys, unchanged=True
                        )
                break
            # What this run has emptied or tried again is not so once more.
            again = replace(write.options, recompute=False, retry=())
            write = replace(write, options=again)
        finally:
            survey.release()
    result = WriteResult(
        table=location.sql,
        source_rows=first.source_rows,
        there=first.there,
        computed=done.computed,
        refreshed=done.refreshed,
        left=done.left,
        deleted=deleted,
        statuses={name: dict(counts) for name, counts in done.statuses.items()},
        seconds=_since(started),
        run_id=run_id,
    )
    if write.progress:
        tell(write.progress, lambda: _final_progress(result))
    return result


class _Done:
    """What a run has written so far."""

    def __init__(self, run_id: str, kept: KeptRows, columns: Mapping[str, object]) -> None:
        self.run_id = run_id
        self.wave_count = 0
        self.kept = kept
        self.computed = 0
        self.refreshed = 0
        self.left = 0
        self.statuses = {name: Counter[str]() for name in columns}

    @property
    def rows(self) -> int:
        """Rows that have been committed."""
        return self.computed + self.refreshed


def _takes_long(operator: object) -> bool:
    """Whether a row takes so long that none is to be computed twice."""
    return isinstance(operator, QwenVLImageUnderstanding)


def survey_source(
    spark: SparkSession, write: WritePlan, source: DataFrame, *, has_table: bool
) -> Survey:
    """Compare a source with the table, at the version that is the newest now."""
    table, refresh = None, list[str]()
    if has_table:
        version = read_version(spark, write.location)
        table = spark.read.option("versionAsOf", version).table(write.location.sql)
        refresh += [
            name
            for name in write.chosen.kept_names
            if write.options.refresh_kept or name not in table.columns
        ]
    return survey_rows(
        source,
        table,
        write.chosen,
        write.filled,
        retry=write.options.retry,
        recompute=write.options.recompute,
        refresh=refresh,
    )


def warn_of_missing(write: WritePlan, source: DataFrame, survey: Survey) -> None:
    """Say that rows are to be removed which the source may have no more than left out."""
    if write.options.delete_missing and survey.missing and is_narrowed(source):
        logger.warning(
            "delete_missing: the source (%s) is filtered, limited or sampled, and %d rows of %s "
            "whose keys it does not have are removed, whether they are gone or only left out",
            ", ".join(source.columns),
            survey.missing,
            write.location.given,
        )


def _refuse_to_empty(write: WritePlan, survey: Survey) -> None:
    if not survey.missing or not (write.options.delete_missing or write.options.recompute):
        return
    if not survey.source_rows:
        what = (
            "delete_missing would remove"
            if write.options.delete_missing
            else "recompute would empty"
        )
        raise TableError(
            f"the source has no rows, and {what} all {survey.missing} of {write.location.given}; "
            "look whether the source is what it should be"
        )
    if write.options.recompute and not write.options.delete_missing:
        logger.warning(
            "recompute: %d rows of %s are not in the source; they are left without %s",
            survey.missing,
            write.location.given,
            ", ".join(write.columns),
        )


def _run_waves(
    write: WritePlan,
    source: DataFrame,
    survey: Survey,
    pace: Pace,
    done: _Done,
    transaction: Transaction | None,
    *,
    is_kept: bool,
) -> bool:
    """Compute and commit what a survey found; say whether all of it was there to be computed."""
    spark, location, keys = source.sparkSession, write.location, write.chosen.key_names
    if not survey.pending:
        if transaction is not None:
            # A commit without rows: what others write from now on is newer than this.
            nothing = survey.missing_keys.limit(0)
            with explaining(f"write to {location.given}"), labelled(spark, done.run_id):
                delete_rows(location, keys, nothing, unchanged=True, transaction=transaction)
        return True
    left, before, held = survey.pending_rows, done.rows, None
    if left > pace.rows and not survey.has_source_files and not is_kept:
        # Each wave would read the whole source: it is read once, to the executors' disks.
        source = held = source.persist(StorageLevel.DISK_ONLY)
    slots = count_slots(spark) if write.has_small_rows else None
    is_stable = survey.has_source_files and not is_kept
    with (
        explaining(f"write rows to {location.given}"),
        reporting(spark, survey.pending_rows, write.counters, write.progress) as watch,
    ):
        try:
            for number, wave in enumerate(cut_waves(survey, keys, pace), start=1):
                watch.begin(number, done.rows - before)
                logger.info("wave %d: infer %d of %d rows", number, wave.count, left)
                left -= wave.count
                started = time.monotonic()
                rows, stamp = _compute(write, source, wave, slots)
                content = _describe(write, wave, is_stable=is_stable)
                completed = transaction if not left else None
                reach("before merge")
                done.wave_count += 1
                with labelled(spark, done.run_id, done.wave_count):
                    count = commit_wave(location, content, rows, done.kept, completed)
                    reach("after commit")
                    logger.info("wave %d: committed %d rows", number, count)
                    _take_account(write, spark, wave, stamp, count, done)
                pace.take_account(wave.count, _since(started))
                if count < wave.count and transaction is None:
                    done.left = left + wave.count - count
                    return False
        finally:
            if held is not None:
                held.unpersist()
    done.left = left
    return True


def _compute(
    write: WritePlan, source: DataFrame, wave: Wave, slots: int | None
) -> tuple[DataFrame, str]:
    """Plan a wave's rows; they are computed when they are read."""
    rows, stamp = wave.select_from(source, write.chosen.key_names), new_stamp()
    if slots is not None:
        # A single file may hold all of them, and one task would compute them.
        rows = rows.repartition(slots)
    columns = {name: write.columns[name] for name in wave.columns}
    return compute_rows(rows, write.chosen, columns, write.counters, [BASE], stamp), stamp


def _take_account(
    write: WritePlan, spark: SparkSession, wave: Wave, stamp: str, count: int, done: _Done
) -> None:
    """Compare what a commit says of itself with what was to be committed."""
    location = write.location
    if count > wave.count and wave.is_new:
        remove_wave(spark, location, stamp)
        raise TableError(
            f"the source gave {count} rows where it had {wave.count} when its keys were read: keys "
            "have come twice meanwhile; this wave was taken out of the table again: run again once "
            "the source stands still"
        )
    if count < wave.count:
        logger.warning(
            "%d of %d rows of a wave of %s were not written: another writer was first, or the "
            "source no longer has them",
            wave.count - count,
            wave.count,
            location.given,
        )
    if not wave.columns:
        done.refreshed += count
        return
    done.computed += count
    for name, counts in count_statuses(spark, location, stamp, wave.columns).items():
        done.statuses[name] += counts
        max_rate = write.columns[name].max_failure_rate
        if is_rate_exceeded(done.statuses[name], max_rate):
            examples = find_examples(spark, location, stamp, name)
            check_failure_rate(done.statuses[name], max_rate, examples)


def _describe(write: WritePlan, wave: Wave, *, is_stable: bool) -> WaveContent:
    return WaveContent(
        is_new=wave.is_new,
        keys=write.chosen.key_names,
        kept=write.chosen.kept_names,
        columns=wave.columns,
        inputs=write.chosen.inputs,
        identity=write.deciding_properties(wave.columns),
        bounds=wave.key_bounds(write.chosen.key_names[0]),
        is_stable=is_stable,
    )


def _since(started: float) -> float:
    return time.monotonic() - started


def _final_progress(result: WriteResult) -> Progress:
    return Progress(
        done=result.computed,
        total=result.computed,
        seconds=result.seconds,
        rows_per_second=result.computed / result.seconds,
        statuses=result.statuses,
    )
