"""Sends records to an index: from the executors, or from the driver alone for a local file."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from spark_vision.errors import IndexConnectionError, VectorIndexError
from spark_vision.search.index_rows import PROBLEM
from spark_vision.search.records import ID, id_problem
from spark_vision.search.vector_index import RejectedRecord, VectorIndex
from spark_vision.tables.named_points import reach

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from spark_vision.tables.progress import StatusCounter

SHOWN_REJECTED_COUNT = 100
_OK, _REJECTED = "ok", "rejected"
_BATCH_SCHEMA = "batch binary"
_FAILURES = (IndexConnectionError, VectorIndexError)
_SENT_SCHEMA = pa.schema([("outcome", pa.string()), ("failure", pa.list_(pa.string()))])


@dataclass
class Outcome:
    """What became of records.

    Attributes:
        written: Records in the index.
        deleted: Ids that it now certainly lacks; it need not have had them.
        problems: Records that are not in the index, by the rule that they break.
        rejected_count: Records that the index refused; they are removed from it.
        rejected: The first of these.
    """

    written: int = 0
    deleted: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    rejected_count: int = 0
    rejected: list[RejectedRecord] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        """Add another part's outcome."""
        self.written += other.written
        self.deleted += other.deleted
        self.problems.update(other.problems)
        self.rejected_count += other.rejected_count
        self.rejected = (self.rejected + other.rejected)[:SHOWN_REJECTED_COUNT]


def send_records(
    index: VectorIndex,
    records: "DataFrame",
    counter: "StatusCounter | None",
    *,
    is_update: bool,
    concurrency: int,
) -> Outcome:
    """Write the good records to an index, and remove those that it must no longer have.

    Args:
        index: Where to.
        records: As of `index_records`.
        counter: Counts rows by what became of them; None where the session has no counters.
        is_update: Whether the index may have records under these ids.
        concurrency: The maximum number of tasks that send at the same time.
    """
    if index.single_process:
        return _send_from_driver(index, records, counter, is_update)
    return _send_from_executors(index, records, counter, is_update, concurrency)


def _send_from_driver(
    index: VectorIndex, records: "DataFrame", counter: "StatusCounter | None", is_update: bool
) -> Outcome:
    total = Outcome()
    # One partition is on the driver while the next is computed; rows travel as Arrow batches.
    packed = records.mapInArrow(_pack, _BATCH_SCHEMA)
    for row in packed.toLocalIterator(prefetchPartitions=True):
        with pa.ipc.open_stream(row[0]) as stream:
            for batch in stream:
                total.add(_send(index, batch, counter, is_update))
                reach("sync: after a batch")
    return total


def _send_from_executors(
    index: VectorIndex,
    records: "DataFrame",
    counter: "StatusCounter | None",
    is_update: bool,
    concurrency: int,
) -> Outcome:
    carried = index.with_credentials()

    def send(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        outcome, failure = Outcome(), None
        try:
            for batch in batches:
                outcome.add(_send(carried, batch, counter, is_update))
        except _FAILURES as error:
            # Retried already; as a failed task it would be retried again, and lose its class.
            failure = [type(error).__name__, str(error)]
        finally:
            carried.close()
        row = {"outcome": _to_json(outcome), "failure": failure}
        yield pa.RecordBatch.from_pylist([row], _SENT_SCHEMA)

    total = Outcome()
    sent: Any = records.coalesce(concurrency).mapInArrow(
        send, "outcome string, failure array<string>"
    )
    for row in sent.collect():
        if row["failure"]:
            name, message = row["failure"]
            raise {each.__name__: each for each in _FAILURES}[name](message)
        total.add(_from_json(row["outcome"]))
    return total


def _pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        yield pa.RecordBatch.from_pydict({"batch": [sink.getvalue().to_pybytes()]})


def _send(
    index: VectorIndex,
    batch: pa.RecordBatch,
    counter: "StatusCounter | None",
    is_update: bool,
) -> Outcome:
    problem = batch.column(PROBLEM)
    good = batch.filter(pc.is_null(problem)).drop_columns([PROBLEM])
    bad = batch.filter(pc.is_valid(problem))
    problems = Counter(bad.column(PROBLEM).to_pylist())
    outcome = Outcome(problems=problems)
    gone = bad.column(ID).to_pylist()
    if good.num_rows:
        result = index.upsert(good)
        outcome.written = result.written
        outcome.rejected_count = len(result.rejected)
        outcome.rejected = list(result.rejected[:SHOWN_REJECTED_COUNT])
        # The index must not keep what such a row was before.
        gone += [each.id for each in result.rejected]
    if is_update:
        target = index.target
        ids = [each for each in gone if id_problem(target, each, target.id_bytes) is None]
        index.delete(ids)
        outcome.deleted = len(ids)
    if counter is not None:
        counted = {_OK: outcome.written, _REJECTED: outcome.rejected_count} | problems
        counter.add({name: count for name, count in counted.items() if count})
    return outcome


def _to_json(outcome: Outcome) -> str:
    return json.dumps(
        {
            "written": outcome.written,
            "deleted": outcome.deleted,
            "problems": outcome.problems,
            "rejected_count": outcome.rejected_count,
            "rejected": [[each.id, each.reason] for each in outcome.rejected],
        }
    )


def _from_json(text: str) -> Outcome:
    said = json.loads(text)
    rejected = [RejectedRecord(*each) for each in said.pop("rejected")]
    return Outcome(**said | {"problems": Counter(said["problems"]), "rejected": rejected})
