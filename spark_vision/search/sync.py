"""Keeps a vector index equal to a table: loaded whole once, then by the table's changes.

The index itself records which version of the table it holds. Before anything is sent it is marked
as being changed, so that after a kill the next sync sends again all that may have been half sent.
"""

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pyspark.sql import SparkSession

from spark_vision.errors import (
    InvalidOptionError,
    TableError,
    in_one_line,
)
from spark_vision.search.column_model import ColumnModel, read_model
from spark_vision.search.index_rows import (
    FEED_PROPERTY,
    check_columns,
    table_problems,
)
from spark_vision.search.index_targets import IndexTarget
from spark_vision.search.sending import Outcome
from spark_vision.search.sync_run import SyncRun
from spark_vision.search.sync_state import IndexState, check_state
from spark_vision.search.table_changes import DELETED
from spark_vision.search.vector_index import RejectedRecord, VectorIndex
from spark_vision.tables.location import (
    TableDetail,
    locate_table,
    read_version,
)
from spark_vision.tables.named_points import reach
from spark_vision.tables.progress import Progress


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
    sync = SyncRun(session, location, model, tuple(metadata), index, before, concurrency, progress)
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
    check_columns(model.table, detail.schema, model.column, metadata, model.keys)
    problems = table_problems(
        detail.schema, target, model.properties, model.keys, metadata, model.dimension
    )
    if problems:
        raise TableError(f"{model.table} cannot be indexed: {problems[0].advice}")
    if must_have_feed and model.properties.get(FEED_PROPERTY) != "true":
        raise TableError(
            f"{model.table} has no change data feed, by which an index follows it; set the table "
            f"property {FEED_PROPERTY} to true, or load it whole each time by reload=True"
        )
