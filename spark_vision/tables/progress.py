"""The progress of a write: rows of committed waves, and of finished tasks of the running one.

An accumulator delivers what a task counted when the task ends. A Connect session has none, and its
progress handlers know tasks and bytes but no rows: there, progress is that of the last commit.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from pyspark import Accumulator, AccumulatorParam
from pyspark.sql import SparkSession

from spark_vision.spark.sessions import is_classic

logger = logging.getLogger(__name__)

REPORT_SECONDS = 2.0
RATE_WINDOW_SECONDS = 30.0


@dataclass(frozen=True)
class Progress:
    """The progress of a running write.

    Attributes:
        done_rows: Rows computed so far.
        total_rows: Rows that this write computes.
        elapsed_seconds: Time since the write began.
        rows_per_second: The rate over the last half minute; 0 before the first row.
        statuses: Rows by status for each column, in finished tasks; in a Connect session, in
            committed waves.

    Example:
        >>> def report(progress: Progress) -> None:
        ...     print(f"{progress.done_rows} of {progress.total_rows} rows")
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
        >>> result = write_vision_columns(
        ...     photos, "/data/watched_vectors", ["path"], {"embedding": dino}, progress=report
        ... )
    """

    done_rows: int
    total_rows: int
    elapsed_seconds: float
    rows_per_second: float
    statuses: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """The fraction of rows done, from 0 to 1."""
        return self.done_rows / self.total_rows if self.total_rows else 1.0

    @property
    def remaining_seconds(self) -> float | None:
        """The time remaining at the current rate; None before the first row."""
        if not self.rows_per_second:
            return None
        return (self.total_rows - self.done_rows) / self.rows_per_second


Report = Callable[[Progress], None]
StatusCounter = Accumulator[dict[str, int]]


class StatusCounts(AccumulatorParam[dict[str, int]]):
    """Adds up counts by name: rows by status, or what tasks spend."""

    def zero(self, value: dict[str, int]) -> dict[str, int]:
        """Start from nothing."""
        return {}

    def addInPlace(  # noqa: N802 - pyspark's name
        self, value1: dict[str, int], value2: dict[str, int]
    ) -> dict[str, int]:
        """Add the second counts to the first."""
        # Not in place, whatever the name: a thread may be reading the first ones.
        return dict(Counter(value1) + Counter(value2))


def status_accumulator(spark: SparkSession) -> StatusCounter | None:
    """Make a counter of counts by name; None in a Connect session, which has no accumulators."""
    if not is_classic(spark):
        return None
    return spark.sparkContext.accumulator({}, StatusCounts())


def report_safely(report: Report, measure: Callable[[], Progress]) -> None:
    """Measure and report progress; an error of the report must not fail the write."""
    try:
        report(measure())
    except Exception:
        logger.warning("cannot report the progress", exc_info=True)


class Watch:
    """Measures the progress of a run's waves.

    Args:
        total: Rows that they compute.
        counters: The counter of each column, as passed to its function; None where there is none.
        report: Called at the start of each wave; None reports to nobody.
        committed: Rows by status of columns without a counter, in committed waves.
    """

    def __init__(
        self,
        total: int,
        counters: Mapping[str, StatusCounter | None],
        report: Report | None = None,
        committed: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
    ) -> None:
        self.report = report
        self._committed = committed
        self._total = total
        self._counters = counters
        self._started = time.monotonic()
        self._seen = deque([(self._started, 0)])
        self._wave = _CountedWave(0, 0, (), 0)

    def begin(self, rows_before: int, rows: int, columns: Sequence[str]) -> None:
        """Count from now on for the next wave.

        Args:
            rows_before: Rows of the waves before it.
            rows: Its rows.
            columns: The columns that it computes.
        """
        self._wave = _CountedWave(rows_before, rows, columns, self._count(columns))
        if self.report is not None:
            report_safely(self.report, self.look)

    @property
    def is_live(self) -> bool:
        """Whether a wave's rows are counted before its end."""
        return any(each is not None for each in self._counters.values())

    def look(self) -> Progress:
        """Return the run's progress."""
        wave = self._wave
        # A retried task counts its rows again.
        counted = min(self._count(wave.columns) - wave.counted_before, wave.rows)
        done = min(wave.rows_before + counted, self._total)
        now = time.monotonic()
        self._seen.append((now, done))
        while now - self._seen[0][0] > RATE_WINDOW_SECONDS and len(self._seen) > 2:
            self._seen.popleft()
        since, done_then = self._seen[0]
        return Progress(
            done_rows=done,
            total_rows=self._total,
            elapsed_seconds=now - self._started,
            rows_per_second=(done - done_then) / (now - since) if now > since else 0.0,
            statuses={
                name: dict(each.value if each else self._committed.get(name, {}))
                for name, each in self._counters.items()
            },
        )

    def _count(self, columns: Sequence[str]) -> int:
        """Count the rows for which all these columns have been computed."""
        counters = [self._counters[name] for name in columns]
        return min((sum(each.value.values()) for each in counters if each is not None), default=0)


class _CountedWave(NamedTuple):
    rows_before: int
    rows: int
    columns: Sequence[str]
    counted_before: int


@contextmanager
def reporting(watch: Watch) -> Iterator[None]:
    """Report the block's progress every two seconds from a separate thread."""
    report = watch.report
    if report is None or not watch.is_live:
        yield
        return
    ended = threading.Event()

    def report_until_the_end() -> None:
        while not ended.wait(REPORT_SECONDS):
            report_safely(report, watch.look)

    with ThreadPoolExecutor(1, thread_name_prefix="spark-vision-progress") as pool:
        pool.submit(report_until_the_end)
        try:
            yield
        finally:
            ended.set()
