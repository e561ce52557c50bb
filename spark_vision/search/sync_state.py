"""What an index records of its last sync, and whether another sync may go on from there."""

import uuid
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from spark_vision.errors import VectorIndexError
from spark_vision.search.column_model import ColumnModel
from spark_vision.search.vector_index import IndexDescription
from spark_vision.tables.identity import differing_model

RELOAD = (
    "pass reload=True, which removes all records (a Milvus collection is made again) and loads "
    "the index whole, or use another index"
)


@dataclass(frozen=True)
class IndexState:
    """What an index's properties record of its last sync.

    Attributes:
        table: The table, as Spark's SQL takes it.
        table_id: Delta's id of it.
        column: The column of vectors.
        metadata: The columns beside it, as JSON.
        sync_id: The last sync that began.
        version: A version of the table.
        phase: `loading` while the rows of that version are sent for the first time, `updating`
            while changes after it are, and `complete` where the index holds just that version.
    """

    table: str
    table_id: str
    column: str
    metadata: str
    sync_id: str
    version: int
    phase: str

    @classmethod
    def read(cls, found: IndexDescription | None) -> "IndexState | None":
        """Read the state of an index; None where no sync has begun."""
        said = {} if found is None else found.properties
        names = [each.name for each in fields(cls)]
        if not all(name in said for name in names):
            return None
        values: dict[str, Any] = {name: said[name] for name in names}
        return cls(**values | {"version": int(values["version"])})

    @property
    def properties(self) -> dict[str, str]:
        """The state as properties of the index."""
        return {name: str(value) for name, value in asdict(self).items()}

    def merge(self, other: "IndexState") -> "IndexState | None":
        """Return the state of an index to which two syncs have written at once.

        The next sync starts from the older version, and sends all that either may have missed.
        None where the two were of different columns, so that only a reload helps.
        """
        if (self.table_id, self.column) != (other.table_id, other.column):
            return None
        phase = "loading" if "loading" in (self.phase, other.phase) else "updating"
        return replace(
            self,
            version=min(self.version, other.version),
            phase=phase,
            sync_id=uuid.uuid4().hex,
        )


def check_state(
    found: IndexDescription | None,
    held: IndexState | None,
    wanted: IndexState,
    model: ColumnModel,
) -> None:
    """Refuse an index that holds something else than an older version of a column.

    Args:
        found: The index; None where it does not exist.
        held: What its properties record.
        wanted: What this sync would record at its end.
        model: The model that filled the column.

    Raises:
        VectorIndexError: It holds something else; the message says what, and what to do.
    """
    if found is None:
        return
    if held is None:
        if found.rows:
            raise VectorIndexError(
                f"{found.name} has {found.rows:,} records that sync_index did not write; {RELOAD}"
            )
        return
    was = f"{found.name} holds the column {held.column} of {held.table}"
    if (held.table_id, held.column) != (wanted.table_id, wanted.column):
        raise VectorIndexError(
            f"{was}, and this is {wanted.column} of {model.table}, which is another one or was "
            f"made again; {RELOAD}"
        )
    if differs := differing_model(held.column, found.properties, model.properties):
        key, before, now = differs
        raise VectorIndexError(
            f"{was} by another model, with {key} {before}; now it has {key} {now}: {RELOAD}"
        )
    if held.metadata != wanted.metadata:
        raise VectorIndexError(
            f"{was} with the metadata {held.metadata}, and this call has {wanted.metadata}; "
            f"{RELOAD}"
        )
    if held.version > wanted.version:
        raise VectorIndexError(
            f"{was} in version {held.version}, and {model.table} is at version {wanted.version}; "
            f"{RELOAD}"
        )
