"""The result of a write, what its tasks spent, and the report of a run as a row of a table."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, get_type_hints

from pyspark.sql import SparkSession

from spark_vision.executor.spending import BUSY_PREFIX
from spark_vision.tables.location import TableLocation
from spark_vision.tables.storage_errors import retry_conflicts

logger = logging.getLogger(__name__)

_STEPS = ("read", "fetch", "decode", "waiting", "model", "write")
_SQL_TYPES = {float: "double", int: "long", float | None: "double"}


@dataclass(frozen=True)
class TaskWork:
    """What the tasks of a write spent, without attempts that failed.

    Seconds are sums over threads and tasks that run at the same time: compare them with each
    other, not with the elapsed time.

    Attributes:
        read_seconds: Waiting for Spark to pass rows.
        fetch_seconds: Fetching images from URLs and paths.
        decode_seconds: Decoding, resizing and otherwise preparing images.
        waiting_seconds: Waiting for a model server, beyond its own computation.
        model_seconds: Computation of the models.
        busy_seconds: As `model_seconds`, but calls that overlap in a process count once.
        write_seconds: Waiting for Spark to take rows, which it writes to the table's files.
        process_count: Number of processes that computed with a model.
        model_loads: How often a model was loaded.
        repeated_calls: Calls that were repeated because a model server had ended.
        rows_per_forward: Mean number of rows that a model server computed together; None where it
            computed no vectors.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
        >>> result = write_vision_columns(
        ...     photos, "/data/timed_vectors", keys=["path"], columns={"embedding": dino}
        ... )
        >>> work: TaskWork | None = result.work
        >>> if work is not None and work.model_seconds < work.decode_seconds:
        ...     print("the model waits for images")
    """

    read_seconds: float
    fetch_seconds: float
    decode_seconds: float
    waiting_seconds: float
    model_seconds: float
    busy_seconds: float
    write_seconds: float
    process_count: int
    model_loads: int
    repeated_calls: int
    rows_per_forward: float | None


def work_between(before: Mapping[str, int], after: Mapping[str, int]) -> TaskWork:
    """Return what was spent between two states of a sum, by the names of `executor.spending`."""
    spent = {name: amount - before.get(name, 0) for name, amount in after.items()}
    forwards = spent.get("forwards", 0)
    busy = [amount for name, amount in spent.items() if name.startswith(BUSY_PREFIX) and amount]
    return TaskWork(
        **{f"{step}_seconds": spent.get(f"{step}_ns", 0) / 1e9 for step in _STEPS},
        busy_seconds=sum(busy) / 1e9,
        process_count=len(busy),
        model_loads=spent.get("model_loads", 0),
        repeated_calls=spent.get("repeated_calls", 0),
        rows_per_forward=spent["forward_rows"] / forwards if forwards else None,
    )


@dataclass(frozen=True)
class WriteResult:
    """The result of a write.

    Attributes:
        table: The table's name in Spark SQL.
        source_rows: Rows in the source.
        existing_rows: Source rows whose keys the table already had.
        computed_rows: Rows that were computed and committed.
        refreshed_rows: Rows for which only kept columns were copied again.
        remaining_rows: Rows that are still pending, where `max_rows` or `max_seconds` ended the
            run.
        deleted_rows: Rows that were deleted because the source no longer has them.
        statuses: Computed rows by status, for each column.
        elapsed_seconds: The duration of the whole write.
        run_id: The run's id in its commits' `userMetadata`, each with the number of its wave:
            {"spark_vision": {"run": "…", "wave": 3}}.
        work: What the tasks spent on each step; None in a Connect session, which cannot count it.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
        >>> result: WriteResult = write_vision_columns(
        ...     photos, "/data/photo_vectors", keys=["path"], columns={"embedding": dino}
        ... )
        >>> print(result.computed_rows, result.statuses["embedding"])
        >>> print(result.to_json())
    """

    table: str
    source_rows: int
    existing_rows: int
    computed_rows: int
    refreshed_rows: int
    remaining_rows: int
    deleted_rows: int
    statuses: Mapping[str, Mapping[str, int]]
    elapsed_seconds: float
    run_id: str
    work: TaskWork | None

    @property
    def rows_per_second(self) -> float:
        """Computed rows per second of the whole write."""
        return self.computed_rows / self.elapsed_seconds

    @property
    def busy_share(self) -> float | None:
        """The share of the write's duration in which a model's process computed.

        The average over these processes; None where none computed. Copies to and from a GPU count
        as computation.
        """
        if self.work is None or not self.work.process_count:
            return None
        return self.work.busy_seconds / (self.elapsed_seconds * self.work.process_count)

    def to_json(self) -> str:
        """Return all of this as one line of JSON, to keep a report of each run."""
        return json.dumps(self._report())

    def _report(self) -> dict[str, Any]:
        rates = {"rows_per_second": self.rows_per_second, "busy_share": self.busy_share}
        return asdict(self) | rates


def append_report(spark: SparkSession, location: TableLocation, result: WriteResult) -> None:
    """Append a row about a run to a Delta table, which is created if it does not exist.

    The run is complete by now, so an error is only logged.
    """
    steps = get_type_hints(TaskWork).items()
    work = ", ".join(f"{name}: {_SQL_TYPES[kind]}" for name, kind in steps)
    schema = (
        "run_id string, ended_at timestamp, table string, source_rows long, existing_rows long, "
        "computed_rows long, refreshed_rows long, remaining_rows long, deleted_rows long, "
        "statuses map<string, map<string, long>>, elapsed_seconds double, rows_per_second double, "
        f"busy_share double, work struct<{work}>"
    )

    def append() -> None:
        spark.sql(
            f"CREATE TABLE IF NOT EXISTS {location.sql} ({schema}) USING delta "
            # Any reader of Delta can read it.
            "TBLPROPERTIES ('delta.enableDeletionVectors' = 'false')"
        )
        rows = spark.createDataFrame([row], schema)
        # A later version may report more.
        rows.write.format("delta").mode("append").option("mergeSchema", True).saveAsTable(
            location.sql
        )

    try:
        row = result._report() | {"ended_at": datetime.now(UTC)}
        retry_conflicts(location, append)
    except Exception:
        message = "cannot append the report of run %s to %s"
        logger.warning(message, result.run_id, location.given, exc_info=True)
