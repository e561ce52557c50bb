"""What an index of vectors does, whichever database holds it: the protocol and its answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from spark_vision.search.index_targets import IndexTarget

Id = str | int


@dataclass(frozen=True)
class Hit:
    """One result of a query.

    Attributes:
        id: The record's id.
        score: Its inner product or cosine with the query; the first result has the largest.
        metadata: The metadata asked for.
    """

    id: Id
    score: float
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RejectedRecord:
    """A record that is not in the index, and why."""

    id: Id | None
    reason: str


@dataclass(frozen=True)
class UpsertResult:
    """The outcome of an upsert.

    Attributes:
        written: Records that the index has accepted. Of several with one id it is the last.
        rejected: Records that it cannot hold; the others were written. What the index had under
            their ids before is still there.
    """

    written: int
    rejected: tuple[RejectedRecord, ...] = ()


@dataclass(frozen=True)
class IndexDescription:
    """What an index is.

    Attributes:
        name: Where it is, for messages; without credentials.
        dimension: The length of a vector.
        metric: Its metric, by the database's own name.
        rows: The number of records; a service may be some seconds behind.
        id_type: The type of an id, `string` or `long`.
        metadata: The type of each metadata column, by Spark's names; None where any is accepted.
        properties: What `write_properties` wrote.
        id_bytes: The maximum length of a text id where it is less than the target's.
    """

    name: str
    dimension: int
    metric: str
    rows: int
    id_type: str
    metadata: Mapping[str, str] | None
    properties: Mapping[str, str]
    id_bytes: int | None = None


class VectorIndex(Protocol):
    """An index of vectors in some database.

    It is a small picklable value: the connection is opened at the first call in each process, and
    does not travel. Errors are `VectorIndexError`, where the index does not suit what it is given,
    and `IndexConnectionError`, where it does not answer; neither holds a key.

    Records are an Arrow table or batch with the columns `id` (strings or whole numbers), `vector`
    (lists of float32, all of one length) and the metadata.
    """

    @property
    def target(self) -> IndexTarget:
        """What the index accepts."""

    @property
    def single_process(self) -> bool:
        """Whether all calls must come from one process, as for a local file."""

    def check(self, schema: pa.Schema, dimension: int) -> None:
        """Refuse records that the index could not hold even if it were empty.

        Args:
            schema: The columns of the records to come.
            dimension: The length of their vectors.
        """

    def create(self, schema: pa.Schema, dimension: int) -> bool:
        """Make the index, or check that the one that exists suits; nothing is changed then.

        Args:
            schema: The columns of the records to come.
            dimension: The length of their vectors.

        Returns:
            Whether it was made.
        """

    def drop(self) -> None:
        """Remove all records, and the properties; an index that does not exist is no error."""

    def upsert(self, records: pa.Table | pa.RecordBatch) -> UpsertResult:
        """Write records in requests that the database accepts; those with known ids are replaced.

        A record that cannot be written is reported and does not stop the others.
        """

    def delete(self, ids: Sequence[Id]) -> None:
        """Remove records; ids that are not in the index are ignored."""

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        *,
        metadata: Sequence[str] = (),
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """Return the k records nearest to each vector, the nearest first.

        Args:
            vectors: Float32 of shape (queries, dimension).
            k: How many for each, at most `target.max_k`.
            metadata: Columns to return.
            where: What records must have: a value by column, or a list of allowed ones.
        """

    def fetch(self, ids: Sequence[Id]) -> dict[Id, np.ndarray]:
        """Return the vectors of those records that the index has."""

    def count(self) -> int:
        """Return the number of records."""

    def describe(self) -> IndexDescription | None:
        """Return what the index is; None where it does not exist."""

    def write_properties(self, properties: Mapping[str, str]) -> None:
        """Replace the index's properties, such as the version of the table that it holds.

        They are kept with the index and go with it: one whose records are gone has none.
        """

    def with_credentials(self) -> "VectorIndex":
        """Return the same index with what it reads from the environment, for another process."""

    def close(self) -> None:
        """Close the connection; the next call opens another."""
