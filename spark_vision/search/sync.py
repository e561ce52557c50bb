"""Keeps a vector index equal to a table: loaded whole once, then by the table's changes.

The index itself records which version of the table it holds. Before anything is sent it is marked
as being changed, so that after a kill the next sync sends again all that may have been half sent.
"""

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_vision.errors import InvalidOptionError, Status, TableError, VectorIndexError
from spark_vision.search.column_model import ColumnModel, read_model
from spark_vision.search.index_rows import (
    check_columns,
    index_records,
    rows_with_vectors,
    table_problems,
)
from spark_vision.search.sending import Outcome, send_records
from spark_vision.search.table_changes import DELETED, changed_records, explaining_lost_feed
from spark_vision.search.vector_index import IndexDescription, RejectedRecord, VectorIndex
from spark_vision.tables.identity import KEYS_PROPERTY, PREFIX, differing_model
from spark_vision.tables.location import TableLocation, locate_table, quote, read_version
from spark_vision.tables.named_points import reach
from spark_vision.tables.progress import Progress, Watch, reporting, status_accumulator
from spark_vision.tables.session_settings import settings

_RELOAD = "pass reload=True, which empties the index and loads it whole, or use another index"


@dataclass(frozen=True)
class SyncResult:
    """The outcome of a sync.

    Attributes:
        index: The index's name.
        version: The version of the table that the index now holds.
        from_version: The version that it held before; None where it was loaded whole.
        written_rows: Rows written to the index.
        deleted_rows: Rows removed from it.
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
        lines += [f"  {each.id}: {each.reason}" for each in self.rejected]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Held:
    """What an index's properties record of its last sync.

    Attributes:
        table: The table, as Spark's SQL takes it.
        table_id: Delta's id of it.
        column: The column of vectors.
        metadata: The columns beside it, as JSON.
        sync_id: The last sync that began.
        version: The version of the table that the index held before that, or holds since; empty
            where the index has never been loaded whole.
        is_complete: Whether that sync ended: `true` or `false`.
    """

    table: str
    table_id: str
    column: str
    metadata: str
    sync_id: str
    version: str
    is_complete: str

    @classmethod
    def read(cls, found: IndexDescription | None) -> "_Held | None":
        said = {} if found is None else found.properties
        names = cls.__dataclass_fields__
        return cls(**{n: said[n] for n in names}) if all(n in said for n in names) else None

    @property
    def base(self) -> int | None:
        return int(self.version) if self.version else None


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
        reload: Empty the index first, and load it whole.
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
    version = read_version(session, location)
    target = index.target
    check_columns(location.given, detail.schema, column, metadata)
    problems = table_problems(
        detail.schema, target, model.properties, model.keys, metadata, model.dimension
    )
    if problems:
        raise TableError(f"{table} cannot be indexed: {problems[0].advice}")
    rows = session.read.option("versionAsOf", version).table(location.sql)
    sync = _Sync(session, location, model, tuple(metadata), index, concurrency, progress)

    found = index.describe()
    held = _Held.read(found)
    if not reload:
        _check_held(found, held, sync, detail.id, version)
    base = None if reload or held is None else held.base
    mine = _Held(
        table=location.sql,
        table_id=detail.id,
        column=column,
        metadata=json.dumps(list(metadata)),
        sync_id=uuid.uuid4().hex,
        version="" if base is None else str(base),
        is_complete="false",
    )
    if base is None:
        outcome = sync.load(rows, mine, must_empty=found is not None)
    elif base == version:
        outcome = Outcome()
    else:
        is_clean = held is not None and held.is_complete == "true"
        outcome = sync.update(mine, (base + 1, version), include_unchanged=not is_clean)
    if base != version:
        reach("sync: before its end")
        sync.end(mine, held, version)
        reach("sync: after its end")
    outcome.problems.pop(DELETED, None)
    return SyncResult(
        index=found.name if found else sync.name,
        version=version,
        from_version=base,
        written_rows=outcome.written,
        deleted_rows=outcome.deleted,
        excluded=dict(outcome.problems),
        rejected_rows=outcome.rejected_count,
        rejected=tuple(outcome.rejected),
        elapsed_seconds=time.monotonic() - started,
    )


def _check_held(
    found: IndexDescription | None,
    held: _Held | None,
    sync: "_Sync",
    table_id: str,
    version: int,
) -> None:
    """Refuse an index that holds something else than an older version of this column."""
    if found is None:
        return
    if held is None:
        if found.rows:
            raise VectorIndexError(
                f"{found.name} has {found.rows:,} records that sync_index did not write; {_RELOAD}"
            )
        return
    given = sync.location.given
    was = f"{found.name} holds the column {held.column} of {held.table}"
    if (held.table_id, held.column) != (table_id, sync.model.column):
        raise VectorIndexError(
            f"{was}, and this is {sync.model.column} of {given}, which is another one or was made "
            f"again; {_RELOAD}"
        )
    if differs := differing_model(held.column, found.properties, sync.model.properties):
        key, before, now = differs
        raise VectorIndexError(
            f"{was} by another model, with {key} {before}; now it has {key} {now}: {_RELOAD}"
        )
    if held.metadata != (wanted := json.dumps(list(sync.metadata))):
        raise VectorIndexError(
            f"{was} with the metadata {held.metadata}, and this call has {wanted}; {_RELOAD}"
        )
    if held.base is not None and held.base > version:
        raise VectorIndexError(
            f"{was} in version {held.base}, and {given} is at version {version}; {_RELOAD}"
        )


@dataclass(frozen=True)
class _Sync:
    """One sync: what it reads, and where it writes."""

    spark: SparkSession
    location: TableLocation
    model: ColumnModel
    metadata: tuple[str, ...]
    index: VectorIndex
    concurrency: int
    progress: Callable[[Progress], None] | None

    @property
    def name(self) -> str:
        found = self.index.describe()
        return "" if found is None else found.name

    def load(self, rows: DataFrame, mine: _Held, *, must_empty: bool) -> Outcome:
        """Fill an empty index; what an unfinished load has left there is removed first."""
        column, key = self.model.column, self.model.keys[0]
        records = index_records(
            rows_with_vectors(rows, key, column),
            self.index.target,
            key,
            column,
            self.metadata,
            self.model.dimension,
        )
        row_count = rows.filter(F.col(quote(f"{column}_status")) == Status.OK.value).count()
        if must_empty:
            self.index.drop()
        self._create(records)
        self._mark(mine)
        return self._send(records, row_count, is_update=False)

    def update(self, mine: _Held, versions: tuple[int, int], *, include_unchanged: bool) -> Outcome:
        """Write and delete what changed within some versions."""
        with (
            explaining_lost_feed(self.location.given, versions[0], _RELOAD),
            # A file that is missing would be a change that is missing.
            settings(self.spark, {"spark.sql.files.ignoreMissingFiles": "false"}),
        ):
            records = changed_records(
                self.spark,
                self.location,
                versions,
                self.index.target,
                self.model.keys[0],
                self.model.column,
                self.metadata,
                self.model.dimension,
                include_unchanged=include_unchanged,
            ).persist(StorageLevel.DISK_ONLY)
            row_count = records.count()
        try:
            self._create(records)
            if not row_count:
                return Outcome()
            self._mark(mine)
            return self._send(records, row_count, is_update=True)
        finally:
            records.unpersist()

    def end(self, mine: _Held, before: _Held | None, version: int) -> None:
        """Record that the index holds a version, unless another sync has written to it as well."""
        now = _Held.read(self.index.describe())
        # A service may still show what was there before.
        expected = (mine.sync_id, before.sync_id if before else None)
        if now is not None and now.sync_id not in expected:
            is_loaded = mine.base is not None and now.base is not None
            oldest = min(mine.version, now.version, key=int) if is_loaded else ""
            self._mark(replace(mine, version=oldest, sync_id=uuid.uuid4().hex))
            raise VectorIndexError(
                f"another sync wrote to {self.name} at the same time; run this again, which "
                "sends all that either may have missed"
            )
        self._mark(replace(mine, version=str(version), is_complete="true"))

    def _create(self, records: DataFrame) -> None:
        schema = records.drop(records.columns[-1]).limit(0).toArrow().schema
        self.index.create(schema, self.model.dimension)

    def _mark(self, held: _Held) -> None:
        # With the model's properties, a reader of the index knows how to embed a query.
        start = f"{PREFIX}{self.model.column}."
        model = {
            name: value
            for name, value in self.model.properties.items()
            if name.startswith(start) or name == KEYS_PROPERTY
        }
        self.index.write_properties(model | asdict(held))

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
