"""How far a running write is: rows from Spark's live metrics, failures from finished tasks.

Executors send the metrics of running tasks with each heartbeat, so the rows that came out of the
model are known every few seconds; an accumulator arrives when its task ends.
"""

import logging
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from pyspark import Accumulator, AccumulatorParam
from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

REPORT_SECONDS = 2.0
RATE_WINDOW_SECONDS = 30.0
_RECENT_EXECUTION_COUNT = 20
_OUR_NODE = re.compile(r"\b(embed|caption|embed_and_caption)_(image|text)\(")
_ROWS_METRIC = "number of output rows"
_DESCRIPTION = "spark.job.description"


@dataclass(frozen=True)
class Progress:
    """One look at a running write.

    Attributes:
        done: Rows that came out of the model.
        total: Rows that this write computes.
        seconds: Since the write began.
        rows_per_second: Over the last half minute; 0 before the first row.
        statuses: Rows by status of each column, of the tasks that have finished.
    """

    done: int
    total: int
    seconds: float
    rows_per_second: float
    statuses: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The part that is done, from 0 to 1."""
        return self.done / self.total if self.total else 1.0

    @property
    def seconds_left(self) -> float | None:
        """The time left at the present rate; None before there is one."""
        if not self.rows_per_second:
            return None
        return (self.total - self.done) / self.rows_per_second


Report = Callable[[Progress], None]
StatusCounter = Accumulator[dict[str, int]]


class StatusCounts(AccumulatorParam[dict[str, int]]):
    """Adds up rows by status."""

    def zero(self, value: dict[str, int]) -> dict[str, int]:
        """Start from nothing."""
        return {}

    def addInPlace(  # noqa: N802 - pyspark's name
        self, value1: dict[str, int], value2: dict[str, int]
    ) -> dict[str, int]:
        """Add the second counts to the first."""
        for status, count in value2.items():
            value1[status] = value1.get(status, 0) + count
        return value1


def status_accumulator(spark: SparkSession) -> StatusCounter | None:
    """Make a counter of rows by status; None in a Connect session, which has none."""
    if not _is_classic(spark):
        return None
    return spark.sparkContext.accumulator({}, StatusCounts())


def tell(report: Report, look: Callable[[], Progress]) -> None:
    """Look, and report; what only tells of a write must not end or fail it."""
    try:
        report(look())
    except Exception:
        logger.warning("the progress could not be reported", exc_info=True)


class WaveWatch(Protocol):
    """Is told where one wave ends and the next begins."""

    def begin(self, number: int, rows_before: int) -> None:
        """Take what is written from now on as a wave, after so many rows."""
        ...


@contextmanager
def reporting(
    spark: SparkSession,
    total: int,
    statuses: Mapping[str, StatusCounter | None],
    report: Report | None,
) -> Iterator[WaveWatch]:
    """Report the progress of what the block writes, every two seconds, from a thread of its own.

    Args:
        spark: Where it runs; of a Connect session, a wave is reported when it has ended.
        total: Rows to be computed.
        statuses: The counter of each column, as given to its function.
        report: Told how far the write is; None reports nothing.

    Yields:
        What is to be told that a wave begins.
    """
    if report is None:
        yield _Unwatched()
        return
    if not _is_classic(spark):
        yield _WaveByWave(total, report)
        return
    context = spark.sparkContext
    described_before = context.getLocalProperty(_DESCRIPTION)
    ended = threading.Event()
    watcher = _Watcher(_LiveRows(spark, total), total, statuses)

    def watch() -> None:
        while not ended.wait(REPORT_SECONDS):
            tell(report, watcher.look)

    with ThreadPoolExecutor(1, thread_name_prefix="spark-vision-progress") as pool:
        pool.submit(watch)
        try:
            yield watcher.rows
        finally:
            ended.set()
            # None takes it away again, which pyspark's hints do not say.
            context.setLocalProperty(_DESCRIPTION, cast(str, described_before))


class _Unwatched:
    def begin(self, number: int, rows_before: int) -> None:
        """Nobody is told."""


class _WaveByWave:
    """Reports where a wave begins, for sessions that say nothing of what runs."""

    def __init__(self, total: int, report: Report) -> None:
        self._total = total
        self._report = report
        self._started = time.monotonic()

    def begin(self, number: int, rows_before: int) -> None:
        """Report what is done before the wave."""
        seconds = time.monotonic() - self._started
        rate = rows_before / seconds if seconds else 0.0
        progress = Progress(rows_before, self._total, seconds, rate)
        tell(self._report, lambda: progress)


class _Watcher:
    def __init__(
        self,
        rows: "_LiveRows",
        total: int,
        statuses: Mapping[str, StatusCounter | None],
    ) -> None:
        self.rows = rows
        self._total = total
        self._statuses = statuses
        self._started = time.monotonic()
        self._seen: deque[tuple[float, int]] = deque()

    def look(self) -> Progress:
        counts = {name: dict(counter.value) for name, counter in self._statuses.items() if counter}
        finished = min((sum(each.values()) for each in counts.values()), default=0)
        done = min(max(self.rows.count(), finished), self._total)
        now = time.monotonic()
        self._seen.append((now, done))
        while now - self._seen[0][0] > RATE_WINDOW_SECONDS and len(self._seen) > 2:
            self._seen.popleft()
        since, before = self._seen[0] if len(self._seen) > 1 else (self._started, 0)
        return Progress(
            done=done,
            total=self._total,
            seconds=now - self._started,
            rows_per_second=(done - before) / (now - since),
            statuses=counts,
        )


class _LiveRows:
    """Rows that have come out of our functions, by the status store behind Spark's SQL page."""

    def __init__(self, spark: SparkSession, total: int) -> None:
        self._store: Any = spark._jsparkSession.sharedState().statusStore()
        self._context = spark.sparkContext
        self._total = total
        self._wave = ("", 0)

    def begin(self, number: int, rows_before: int) -> None:
        # The description, which Spark's pages show, is also how this wave is told from others.
        description = (
            f"vision columns of {self._total} rows, wave {number} ({uuid.uuid4().hex[:12]})"
        )
        self._context.setJobDescription(description)
        self._wave = (description, rows_before)

    def count(self) -> int:
        description, before = self._wave
        last = self._store.executionsCount()
        first = max(0, last - _RECENT_EXECUTION_COUNT)
        executions = _elements(self._store.executionsList(first, _RECENT_EXECUTION_COUNT))
        ours = [each for each in executions if each.description() == description]
        return before + max((self._count_of(each.executionId()) for each in ours), default=0)

    def _count_of(self, execution: int) -> int:
        values = self._store.executionMetrics(execution)
        counts = [
            # Values are made for the page: "1,234".
            int(re.sub(r"\D", "", values.apply(metric.accumulatorId())))
            if values.contains(metric.accumulatorId())
            else 0
            for node in _elements(self._store.planGraph(execution).allNodes())
            if _OUR_NODE.search(node.desc())
            for metric in _elements(node.metrics())
            if metric.name() == _ROWS_METRIC
        ]
        # Of several functions the last one says how many rows have passed them all.
        return min(counts, default=0)


def _elements(scala_collection: Any) -> Iterator[Any]:
    iterator = scala_collection.iterator()
    while iterator.hasNext():
        yield iterator.next()


def _is_classic(spark: SparkSession) -> bool:
    return hasattr(spark, "_jsparkSession")
