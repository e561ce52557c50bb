"""Keeps a vector index equal to a table: loaded whole once, then by the table's changes.

The index itself records which version of the table it holds. Before anything is sent it is marked
as being changed, so that after a kill the next sync sends again all that may have been half sent.
"""

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from spark_vision.errors import (
    InvalidOptionError,
    Status,
    TableError,
    VectorIndexError,
    in_one_line,
)
from spark_vision.search.column_model import ColumnModel, read_model
from spark_vision.search.index_rows import (
    FEED_PROPERTY,
    PROBLEM,
    index_records,
    rows_with_vectors,
    table_problems,
)
from spark_vision.search.index_targets import IndexTarget
from spark_vision.search.sending import Outcome, send_records
from spark_vision.search.sync_state import RELOAD, IndexState, check_state
from spark_vision.search.table_changes import DELETED, changed_records, explaining_lost_versions
from spark_vision.search.vector_index import RejectedRecord, VectorIndex
from spark_vision.tables.identity import KEYS_PROPERTY, PREFIX
from spark_vision.tables.location import (
    TableDetail,
    TableLocation,
    locate_table,
    quote,
    read_version,
)
from spark_vision.tables.named_points import reach
from spark_vision.tables.progress import Progress, Watch, reporting, status_accumulator
from spark_vision.tables.session_settings import settings


@dataclass(frozen=True)
class SyncResult:
    """The outcome of a sync.

    Attributes:
        index: The index's name.
        version: The version of the table that the index now holds.
        from_version: The version that it held before; None where it was loaded whole.
        written_rows: Rows written to the index.
        deleted_rows: Rows removed from it, or found to be absent.
        excluded: Rows that have a vector, or had one, and are not in the index, by the rule of
            `index_ready` that they break.
        rejected_rows: Rows that the index refused.
        rejected: The first hundred of these, with the reason.
        elapsed_seconds: The time that the sync took.

    Example:
        >>> index = MilvusIndex("/data/photos.db", "described")
        >>> result: SyncResult = sync_index("/data/photo_vectors", "embedding", index)
        >>> result.from_version is None
        True
    """

    index: str
    version: int
    from_version: int | None
    written_rows: int
    deleted_rows: int
    excluded: Mapping[str, int]
    rejected_rows: int
    rejected: tuple[RejectedRecord, ...]
    elapsed_seconds: float

    def __str__(self) -> str:
        was = "loaded whole" if self.from_version is None else f"from version {self.from_version}"
        lines = [
            f"{self.index} holds version {self.version} ({was}): {self.written_rows:,} rows "
            f"written, {self.deleted_rows:,} deleted, in {self.elapsed_seconds:,.1f} s"
        ]
        lines += [f"not in the index, {rule}: {count:,}" for rule, count in self.excluded.items()]
        if self.rejected_rows:
            lines.append(f"refused by the index: {self.rejected_rows:,}")
        # An id is a path from a row, which may hold anything.
        lines += [f"  {in_one_line(str(each.id))}: {each.reason}" for each in self.rejected]
        return "\n".join(lines)


def sync_index(
    table: str,
    column: str,
    index: VectorIndex,
    *,
    metadata: Sequence[str] = (),
    reload: bool = False,
    concurrency: int = 8,
    progress: Callable[[Progress], None] | None = None,
    spark: SparkSession | None = None,
) -> SyncResult:
    """Bring a vector index up to the newest version of a table.

    The first call loads the rows that `index_ready` accepts. Later calls read the table's change
    data feed from the version that the index holds, and write or delete only what changed. The
    index records that version itself. A call after a kill ends in the same index.

    Args:
        table: A table made by `write_vision_columns`, by path or name; its key becomes the id.
        column: Its column of vectors.
        index: A `MilvusIndex`, a `PineconeIndex`, or another `VectorIndex`. It is made if it does
            not exist.
        metadata: Columns of the table to store beside the vectors.
        reload: Remove all records first (a Milvus collection is made again), and load it whole.
        concurrency: The maximum number of Spark tasks that write to a service at the same time;
            to Milvus Lite only the driver writes.
        progress: Called about every two seconds, from another thread.
        spark: The session; None means the active one.

    Returns:
        What was written and deleted, and which rows are not in the index.

    Raises:
        TableError: The table or column cannot be indexed, or its change data feed no longer
            reaches back to the version that the index holds.
        VectorIndexError: The index was filled from another table, column or model, or does not
            suit; nothing was changed.
        IndexConnectionError: It does not answer; a later call goes on.

    Example:
        >>> index = MilvusIndex("/data/photos.db", "synced")
        >>> result = sync_index("/data/photo_vectors", "embedding", index)
        >>> result.written_rows
        4
        >>> sync_index("/data/photo_vectors", "embedding", index).written_rows
        0
    """
    if not isinstance(concurrency, int) or concurrency < 1:
        raise InvalidOptionError(f"concurrency got {concurrency!r}; allowed: 1 or more")
    started = time.monotonic()
    session = spark or SparkSession.active()
    location = locate_table(session, table)
    detail, model = read_model(session, location, column)
    metadata = [metadata] if isinstance(metadata, str) else metadata
    _check_table(detail, model, index.target, metadata, must_have_feed=not reload)
    found = index.describe()
    before = held = IndexState.read(found)
    # After the index: a sync that ends meanwhile holds no newer version.
    version = read_version(session, location)
    goal = IndexState(
        table=location.sql,
        table_id=detail.id,
        column=column,
        metadata=json.dumps(sorted(metadata)),
        sync_id=uuid.uuid4().hex,
        version=version,
        phase="complete",
    )
    if reload:
        held = None
    else:
        check_state(found, held, goal, model)
    must_empty = found is not None and held is None and (reload or found.rows > 0)
    if held is not None and held.phase != "loading" and found is not None and not found.rows:
        # Somebody has emptied the index, or its count of records is late.
        held, must_empty = None, index.target.counts_late
    sync = _SyncRun(session, location, model, tuple(metadata), index, before, concurrency, progress)
    outcome = Outcome()
    if held is None or held.phase == "loading":
        # A load that was killed goes on with the version that it began.
        start = replace(goal, phase="loading", version=held.version if held else version)
        outcome.add(sync.load(start, must_empty=must_empty))
    else:
        start = replace(goal, phase="updating", version=held.version)
    if start.version < version:
        was_complete = held is not None and held.phase == "complete"
        outcome.add(sync.update(start, version, include_unchanged=not was_complete))
    if held is None or held.phase != "complete" or held.version < version:
        reach("sync: before its end")
        sync.end(start, goal)
        reach("sync: after its end")
    outcome.problems.pop(DELETED, None)
    return SyncResult(
        index=found.name if found else sync.name,
        version=version,
        from_version=None if start.phase == "loading" else start.version,
        written_rows=outcome.written,
        deleted_rows=outcome.deleted,
        excluded=dict(outcome.problems),
        rejected_rows=outcome.rejected_count,
        rejected=tuple(outcome.rejected),
        elapsed_seconds=time.monotonic() - started,
    )


def _check_table(
    detail: TableDetail,
    model: ColumnModel,
    target: IndexTarget,
    metadata: Sequence[str],
    *,
    must_have_feed: bool,
) -> None:
    """Refuse a table that cannot be indexed, or that an index could not follow."""
    problems = table_problems(model, detail.schema, target, metadata)
    if problems:
        raise TableError(f"{model.table} cannot be indexed: {problems[0].advice}")
    if must_have_feed and model.properties.get(FEED_PROPERTY) != "true":
        raise TableError(
            f"{model.table} has no change data feed, by which an index follows it; set the table "
            f"property {FEED_PROPERTY} to true, or load it whole each time by reload=True"
        )


@dataclass(frozen=True)
class _SyncRun:
    """The steps of a sync: send all rows of a version, or what changed since one, and record it."""

    spark: SparkSession
    location: TableLocation
    model: ColumnModel
    metadata: tuple[str, ...]
    index: VectorIndex
    # What the index recorded when this sync began.
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
        rows = self.spark.read.option("versionAsOf", start.version).table(self.location.sql)
        vectors = rows_with_vectors(rows, self.model)
        records = index_records(vectors, self.model, self.index.target, self.metadata)
        is_filled = F.col(quote(f"{self.model.column}_status")) == Status.OK.value
        with explaining_lost_versions(self.location.given, start.version, RELOAD):
            row_count = rows.filter(is_filled).count()
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
                self.model,
                self.index.target,
                self.metadata,
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
