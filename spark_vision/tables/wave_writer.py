"""The waves of a run: each is computed, committed and checked against what was expected."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple, Self

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_vision.errors import TableError
from spark_vision.executor.failures import check_failure_rate, is_rate_exceeded
from spark_vision.tables.commit import KeptRows, commit_wave
from spark_vision.tables.location import TableLocation, quote
from spark_vision.tables.named_points import reach
from spark_vision.tables.progress import Watch, reporting
from spark_vision.tables.session_settings import described, labelled
from spark_vision.tables.source import source_hash
from spark_vision.tables.storage_errors import explaining, retry_conflicts
from spark_vision.tables.structs import column_structs
from spark_vision.tables.survey import BASE, Survey
from spark_vision.tables.transaction import Transaction
from spark_vision.tables.waves import Pace, Wave, count_slots, cut_waves
from spark_vision.tables.write_plan import SOURCE_HASH, UPDATED_AT, WritePlan, column_parts

logger = logging.getLogger(__name__)

# Small rows get more tasks than slots: a slow task delays less, and progress comes more often.
_TASKS_PER_SLOT = 4
_STRUCT = "__spark_vision_struct_"
_stamp_lock = threading.Lock()
_last_stamp = 0


class WaveWriter:
    """Writes the waves of a run, and counts what they have written.

    The next wave is cut and planned while one is computed, and so are the statuses of the last one
    counted from the table.

    Args:
        write: The write's plan.
        run_id: The run's id in its commits.
        transaction: What the commit of the last wave carries, if anything.
        is_kept: Whether the session caches the source's rows.

    Attributes:
        computed_rows: Rows that were computed and committed.
        refreshed_rows: Rows whose kept columns alone were copied.
        remaining_rows: Rows that are still pending.
        statuses: Of the computed rows, rows by status; complete once the block has ended.
    """

    def __init__(
        self,
        write: WritePlan,
        run_id: str,
        transaction: Transaction | None,
        *,
        is_kept: bool,
    ) -> None:
        self.computed_rows = self.refreshed_rows = self.remaining_rows = 0
        self.statuses = {name: Counter[str]() for name in write.columns}
        self._run_id = run_id
        self._wave_count = 0
        self._transaction = transaction
        self._is_kept = is_kept
        self._pace = Pace(write)
        self._kept = KeptRows(any(each.is_slow for each in write.columns.values()))
        self._counting = ThreadPoolExecutor(1, thread_name_prefix="spark-vision-statuses")
        self._counted: Future[None] | None = None

    @property
    def rows(self) -> int:
        """Rows that have been committed."""
        return self.computed_rows + self.refreshed_rows

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Wait until all statuses are counted; raise an error of that, where there is no other."""
        self._counting.shutdown()
        if kind is None and self._counted is not None:
            self._counted.result()

    def write_pending(self, write: WritePlan, source: DataFrame, survey: Survey) -> bool:
        """Compute and commit what a survey found; return whether the source still had all of it."""
        spark, location = source.sparkSession, write.location
        if not survey.pending:
            return True
        remaining, before, held = survey.pending_rows, self.rows, None
        is_cached = self._is_kept or source.storageLevel != StorageLevel.NONE
        if remaining > self._pace.rows and not survey.has_source_files and not is_cached:
            # Each wave would read the whole source: cache it once on the executors' disks.
            source = held = source.persist(StorageLevel.DISK_ONLY)
        is_stable = survey.has_source_files and not self._is_kept
        watch = Watch(remaining, write.counters, write.progress, self.statuses)
        waves = _one_ahead(_prepare(write, source, survey, self._pace), self._pace)
        try:
            with explaining(f"write rows to {location.given}"), reporting(watch), closing(waves):
                for number, prepared in enumerate(waves, start=1):
                    if self._pace.is_late:
                        break
                    wave = prepared.wave
                    watch.begin(self.rows - before, wave.count, wave.columns)
                    logger.info("wave %d: computing %d of %d rows", number, wave.count, remaining)
                    remaining -= wave.count
                    transaction = None if remaining else self._transaction
                    count = self._write_wave(
                        write, spark, prepared, transaction, is_stable=is_stable
                    )
                    logger.info("wave %d: committed %d rows", number, count)
                    # A transaction that the table already has is skipped whole.
                    if count < wave.count and transaction is None:
                        remaining += wave.count - count
                        return False
        finally:
            self.remaining_rows = remaining
            if held is not None:
                held.unpersist()
        return True

    def _write_wave(
        self,
        write: WritePlan,
        spark: SparkSession,
        prepared: "_PreparedWave",
        transaction: Transaction | None,
        *,
        is_stable: bool,
    ) -> int:
        started, wave = time.monotonic(), prepared.wave
        reach("before merge")
        self._wave_count += 1
        step = f"wave {self._wave_count}: {wave.count} rows of {write.location.given}"
        with labelled(spark, self._run_id, self._wave_count), described(spark, step):
            count = commit_wave(write, wave, prepared.rows, self._kept, transaction, is_stable)
            reach("after commit")
            self._take_account(write, spark, wave, prepared.stamp, count)
        self._pace.take_account(wave.count, time.monotonic() - started)
        return count

    def _take_account(
        self, write: WritePlan, spark: SparkSession, wave: Wave, stamp: str, count: int
    ) -> None:
        """Compare a commit's own row count with what was to be committed."""
        if count > wave.count and wave.is_new:
            remove_wave(spark, write.location, stamp)
            raise TableError(
                f"the source returned {count} rows for {wave.count} keys: duplicates were added "
                "after its keys were read; this wave was removed from the table again: run again "
                "when the source no longer changes"
            )
        if count < wave.count:
            logger.warning(
                "%d of %d rows of a wave of %s were not written: another writer committed "
                "first, or the source no longer has them",
                wave.count - count,
                wave.count,
                write.location.given,
            )
        if not wave.columns:
            self.refreshed_rows += count
            return
        self.computed_rows += count
        if self._counted is not None:
            self._counted.result()
        self._counted = self._counting.submit(self._count_statuses, write, spark, wave, stamp)
        if any(write.columns[name].max_failure_rate is not None for name in wave.columns):
            # The next wave must not begin where too many rows of this one have failed.
            self._counted.result()

    def _count_statuses(
        self, write: WritePlan, spark: SparkSession, wave: Wave, stamp: str
    ) -> None:
        with described(spark, f"statuses of {write.location.given}"):
            counted = count_statuses(spark, write.location, stamp, wave.columns)
        for name, counts in counted.items():
            self.statuses[name] += counts
            max_rate = write.columns[name].max_failure_rate
            if is_rate_exceeded(self.statuses[name], max_rate):
                examples = find_examples(spark, write.location, stamp, name)
                check_failure_rate(self.statuses[name], max_rate, examples)


class _PreparedWave(NamedTuple):
    """A wave, its rows as they will be computed, and the `updated_at` of these in SQL."""

    wave: Wave
    rows: DataFrame
    stamp: str


_PreparedWaves = Generator[_PreparedWave, None, None]


def _prepare(write: WritePlan, source: DataFrame, survey: Survey, pace: Pace) -> _PreparedWaves:
    task_count = None
    if write.has_small_rows:
        task_count = _TASKS_PER_SLOT * count_slots(source.sparkSession)
    keys = write.chosen.key_names
    for wave in cut_waves(survey, keys, pace):
        rows, stamp = wave.select_from(source, keys), _new_stamp()
        if task_count is not None:
            # One file may hold all of them, and one task would compute them.
            rows = rows.repartition(task_count)
        yield _PreparedWave(wave, compute_rows(write, wave.columns, rows, stamp), stamp)


def _one_ahead(waves: _PreparedWaves, pace: Pace) -> _PreparedWaves:
    """Prepare the next wave in a thread while the caller writes this one, if its size is known."""
    with closing(waves), ThreadPoolExecutor(1, thread_name_prefix="spark-vision-waves") as pool:
        upcoming = pool.submit(next, waves, None)
        while (wave := upcoming.result()) is not None:
            ahead = pool.submit(next, waves, None) if pace.is_known else None
            yield wave
            upcoming = ahead or pool.submit(next, waves, None)


def compute_rows(
    write: WritePlan, names: Sequence[str], source: DataFrame, stamp: str
) -> DataFrame:
    """Compute columns of a source's rows: each function is called once per row.

    Args:
        write: The write's plan.
        names: The columns to compute.
        source: The rows, with `BASE`.
        stamp: The value of `updated_at`, in SQL.

    Returns:
        Keys, kept columns, `BASE`, `source_hash`, the columns with their statuses, `updated_at`.
    """
    columns = {name: write.columns[name] for name in names}
    structs = column_structs(columns, write.chosen, write.counters, write.spent)
    carried = (*write.chosen.key_names, *write.chosen.kept_names, BASE)
    copied = [F.col(quote(name)) for name in carried]
    # Each function is called once, and its struct taken apart in a second projection.
    named = [each.column.alias(f"{_STRUCT}{index}") for index, each in enumerate(structs)]
    computed = source.select(*copied, source_hash(write.chosen).alias(SOURCE_HASH), *named)
    places = {name: index for index, each in enumerate(structs) for name in each.names}
    fields = [
        F.col(f"{_STRUCT}{places[name]}")[name][part].alias(alias)
        for name, operator in columns.items()
        for part, alias in column_parts(name, operator).items()
    ]
    return computed.select(*copied, F.col(SOURCE_HASH), *fields, F.expr(stamp).alias(UPDATED_AT))


def _new_stamp() -> str:
    """Return the current time in SQL, to the microsecond: no two commits share it."""
    global _last_stamp
    with _stamp_lock:
        _last_stamp = max(time.time_ns() // 1000, _last_stamp + 1)
        return f"timestamp_micros({_last_stamp})"


def count_statuses(
    spark: SparkSession, location: TableLocation, stamp: str, columns: tuple[str, ...]
) -> dict[str, Counter[str]]:
    """Count the rows of a commit by status, for each column.

    Args:
        spark: The session.
        location: The table.
        stamp: The `updated_at` of these rows and no others, in SQL.
        columns: The columns that were computed.
    """
    names = [quote(f"{name}_status") for name in columns]
    rows = spark.table(location.sql).filter(F.col(UPDATED_AT) == F.expr(stamp))
    counts = {name: Counter[str]() for name in columns}
    for row in rows.groupBy(*names).agg(F.count("*").alias("rows")).collect():
        for place, name in enumerate(columns):
            counts[name][row[place]] += row["rows"]
    return counts


def find_examples(
    spark: SparkSession, location: TableLocation, stamp: str, column: str
) -> dict[str, str]:
    """Return an example error from a commit's rows for each status of a column."""
    status, error = F.col(quote(f"{column}_status")), F.col(quote(f"{column}_error"))
    rows = spark.table(location.sql).filter(F.col(UPDATED_AT) == F.expr(stamp))
    found = rows.groupBy(status).agg(F.first(error, ignorenulls=True)).dropna()
    return {row[0]: row[1] for row in found.collect()}


def remove_wave(spark: SparkSession, location: TableLocation, stamp: str) -> None:
    """Delete an inserted wave from the table again."""
    statement = f"DELETE FROM {location.sql} WHERE {UPDATED_AT} = {stamp}"
    retry_conflicts(location, lambda: spark.sql(statement).collect())
