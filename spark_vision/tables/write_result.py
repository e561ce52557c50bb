"""The result of a write, and the report of a run as a row of a table."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, get_type_hints

from pyspark.sql import SparkSession

from spark_vision.tables.conflicts import retry_conflicts
from spark_vision.tables.location import TableLocation
from spark_vision.tables.task_work import TaskWork

logger = logging.getLogger(__name__)

_SQL_TYPES = {float: "double", int: "long", float | None: "double"}


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
