"""The steps of a sync: send all rows of a version, or what changed since one, and record it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from spark_vision.errors import Status, VectorIndexError
from spark_vision.search.column_model import ColumnModel
from spark_vision.search.index_rows import PROBLEM, index_records, rows_with_vectors
from spark_vision.search.sending import Outcome, send_records
from spark_vision.search.sync_state import RELOAD, IndexState
from spark_vision.search.table_changes import changed_records, explaining_lost_versions
from spark_vision.search.vector_index import VectorIndex
from spark_vision.tables.identity import KEYS_PROPERTY, PREFIX
from spark_vision.tables.location import TableLocation, quote
from spark_vision.tables.named_points import reach
from spark_vision.tables.progress import Progress, Watch, reporting, status_accumulator
from spark_vision.tables.session_settings import settings


@dataclass(frozen=True)
class SyncRun:
    """One sync.

    Attributes:
        spark: The session.
        location: The table.
        model: The model that filled the column.
        metadata: The columns beside the vectors.
        index: Where to.
        before: What the index recorded when this sync began.
        concurrency: The maximum number of tasks that write at the same time.
        progress: Called with the progress; None for nobody.
    """

    spark: SparkSession
    location: TableLocation
    model: ColumnModel
    metadata: tuple[str, ...]
    index: VectorIndex
    before: IndexState | None
    concurrency: int
    progress: Callable[[Progress], None] | None

    @property
    def name(self) -> str:
        """The index's name; empty where it does not exist."""
        found = self.index.describe()
        return "" if found is None else found.name

    def load(self, start: IndexState, *, must_empty: bool) -> Outcome:
        """Send all rows of a version."""
        column, key = self.model.column, self.model.keys[0]
        rows = self.spark.read.option("versionAsOf", start.version).table(self.location.sql)
        records = index_records(
            rows_with_vectors(rows, key, column),
            self.index.target,
            key,
            column,
            self.metadata,
            self.model.dimension,
        )
        with explaining_lost_versions(self.location.given, start.version, RELOAD):
            row_count = rows.filter(F.col(quote(f"{column}_status")) == Status.OK.value).count()
            schema = _record_schema(records)
            self.index.check(schema, self.model.dimension)
            self._check_alone()
            if must_empty:
                self.index.drop()
            self.index.create(schema, self.model.dimension)
            self._mark(start)
            return self._send(records, row_count, is_update=False)

    def update(self, start: IndexState, version: int, *, include_unchanged: bool) -> Outcome:
        """Write and delete what changed since a version."""
        with (
            explaining_lost_versions(self.location.given, start.version + 1, RELOAD),
            # A file that is missing would be a change that is missing.
            settings(self.spark, {"spark.sql.files.ignoreMissingFiles": "false"}),
        ):
            records = changed_records(
                self.spark,
                self.location,
                (start.version + 1, version),
                self.index.target,
                self.model.keys[0],
                self.model.column,
                self.metadata,
                self.model.dimension,
                include_unchanged=include_unchanged,
            ).persist(StorageLevel.DISK_ONLY)
            row_count = records.count()
        try:
            self.index.create(_record_schema(records), self.model.dimension)
            if not row_count:
                return Outcome()
            if start.phase == "updating":
                self._check_alone()
            self._mark(replace(start, phase="updating"))
            return self._send(records, row_count, is_update=True)
        finally:
            records.unpersist()

    def end(self, start: IndexState, goal: IndexState) -> None:
        """Record that the index holds a version, unless another sync has written to it as well."""
        other = self._other(goal.sync_id)
        if other is not None:
            merged = start.merge(other)
            if merged is None:
                self.index.write_properties({})
            else:
                self._mark(merged)
            raise self._conflict()
        self._mark(goal)

    def _check_alone(self) -> None:
        """Check that no other sync has begun since this one looked at the index."""
        if self._other() is not None:
            raise self._conflict()

    def _other(self, *own: str) -> IndexState | None:
        now = IndexState.read(self.index.describe())
        # A service may still show what was there before.
        known = (*own, self.before.sync_id if self.before else None)
        return None if now is None or now.sync_id in known else now

    def _conflict(self) -> VectorIndexError:
        return VectorIndexError(
            f"another sync wrote to {self.name} at the same time; run this again, which sends all "
            "that either may have missed"
        )

    def _mark(self, held: IndexState) -> None:
        # With the model's properties, a reader of the index knows how to embed a query.
        start = f"{PREFIX}{self.model.column}."
        model = {
            name: value
            for name, value in self.model.properties.items()
            if name.startswith(start) or name == KEYS_PROPERTY
        }
        self.index.write_properties(model | held.properties)

    def _send(self, records: DataFrame, row_count: int, *, is_update: bool) -> Outcome:
        counter = status_accumulator(self.spark)
        watch = Watch(row_count, {self.model.column: counter}, self.progress)
        watch.begin(0, row_count, [self.model.column])
        reach("sync: before sending")
        with reporting(watch):
            return send_records(
                self.index,
                records,
                counter,
                is_update=is_update,
                concurrency=self.concurrency,
            )


def _record_schema(records: DataFrame) -> pa.Schema:
    return to_arrow_schema(records.drop(PROBLEM).schema)
