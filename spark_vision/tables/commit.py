"""From a stage to the table: one MERGE, which may run twice and changes the table once.

A row is inserted where its key is absent, and updated where it is still as it was when the wave was
planned (its `updated_at`). So neither a commit that is repeated after a kill nor a second writer
doubles a row or overwrites a newer one.
"""

import logging
import random
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from pyspark.sql import DataFrame

from spark_vision.errors import CommitConflictError
from spark_vision.tables.identity import FilledColumn
from spark_vision.tables.location import TableLocation, quote
from spark_vision.tables.pending import BASE
from spark_vision.tables.schema import SOURCE_HASH, UPDATED_AT
from spark_vision.tables.source import INPUTS

logger = logging.getLogger(__name__)

ATTEMPT_COUNT = 10
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0
_CONFLICT = re.compile(
    r"DELTA_CONCURRENT_|Concurrent\w+Exception|DELTA_METADATA_CHANGED|MetadataChangedException|"
    r"DELTA_PROTOCOL_CHANGED|ProtocolChangedException|"
    # Two writers add one column, or one constraint, at once.
    r"FIELD_ALREADY_EXISTS|DELTA_DUPLICATE_COLUMNS_FOUND|DELTA_CONSTRAINT_ALREADY_EXISTS"
)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class StagedWave:
    """What a stage holds, as it is written down beside it.

    Attributes:
        is_new: Whether its rows are to be inserted; else, updated.
        keys: The key columns.
        kept: The columns that are copied.
        columns: What was computed.
        inputs: What was read of each row, of `source.INPUTS`.
        identity: The table's properties of those columns, when they were computed.
        count: Of rows.
    """

    is_new: bool
    keys: tuple[str, ...]
    kept: tuple[str, ...]
    columns: tuple[str, ...]
    inputs: tuple[str, ...]
    identity: Mapping[str, str]
    count: int

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StagedWave":
        """Read what `to_json` has given."""
        lists = {name: tuple(each) for name, each in values.items() if isinstance(each, list)}
        return cls(**{**values, **lists})


def commit_wave(
    location: TableLocation, wave: StagedWave, rows: DataFrame, filled: Mapping[str, FilledColumn]
) -> None:
    """Bring a stage's rows into the table.

    Args:
        location: The table.
        wave: What the stage holds.
        rows: The stage's rows.
        filled: The table's columns of models.

    Raises:
        CommitConflictError: Others wrote to the table at every attempt.
    """
    statement = _insert(wave, filled) if wave.is_new else _update(wave, filled)
    merge(rows, location, wave.keys, statement)


def delete_rows(location: TableLocation, keys: tuple[str, ...], rows: DataFrame) -> None:
    """Remove the rows that have the keys of `rows`."""
    merge(rows, location, keys, "WHEN MATCHED THEN DELETE")


def merge(rows: DataFrame, location: TableLocation, keys: tuple[str, ...], clause: str) -> None:
    """Run a MERGE on keys, again where another writer came in between.

    Raises:
        CommitConflictError: Others wrote to the table at every attempt.
    """
    spark = rows.sparkSession
    view = f"spark_vision_rows_{uuid.uuid4().hex}"
    on = " AND ".join(f"t.{quote(key)} = s.{quote(key)}" for key in keys)
    rows.createOrReplaceTempView(view)
    try:
        retry_conflicts(
            location,
            lambda: spark.sql(f"MERGE INTO {location.sql} AS t USING {view} AS s ON {on} {clause}"),
        )
    finally:
        spark.catalog.dropTempView(view)


def retry_conflicts(location: TableLocation, change: Callable[[], _Result]) -> _Result:
    """Change a table, again where another writer came in between, a bounded number of times.

    Raises:
        CommitConflictError: At every attempt one did.
    """
    pause = _FIRST_PAUSE_SECONDS
    for attempt in range(1, ATTEMPT_COUNT + 1):
        try:
            return change()
        except Exception as error:
            if not is_conflict(error):
                raise
            if attempt == ATTEMPT_COUNT:
                raise CommitConflictError(
                    f"{location.given} was changed by others during each of {ATTEMPT_COUNT} "
                    "attempts to commit; what was computed stays in the stage, and the next run "
                    "commits it: run again when fewer writers are at work"
                ) from error
            logger.info("attempt %d to commit met another writer", attempt)
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def is_conflict(error: BaseException) -> bool:
    """Whether a commit was refused because of another one, by classic sessions or by Connect."""
    return bool(_CONFLICT.search(f"{type(error).__name__} {error}"))


def _insert(wave: StagedWave, filled: Mapping[str, FilledColumn]) -> str:
    parts = [part for name in wave.columns for part in filled[name].parts]
    names = [*wave.keys, *wave.kept, SOURCE_HASH, *parts, UPDATED_AT]
    listed = ", ".join(map(quote, names))
    values = ", ".join(f"s.{quote(name)}" for name in names)
    return f"WHEN NOT MATCHED THEN INSERT ({listed}) VALUES ({values})"


def _update(wave: StagedWave, filled: Mapping[str, FilledColumn]) -> str:
    parts = [part for name in wave.columns for part in filled[name].parts]
    values = {name: f"s.{quote(name)}" for name in (*wave.kept, *parts, UPDATED_AT)}
    hashes = (
        f"'{name}', {'s' if name in wave.inputs else 't'}.source_hash.{name}" for name in INPUTS
    )
    values[SOURCE_HASH] = f"named_struct({', '.join(hashes)})"
    for name, column in filled.items():
        if name in wave.columns:
            continue
        # A value of what is no longer there is none: a write with that column fills it in again.
        changed = " OR ".join(
            f"NOT (t.source_hash.{read} <=> s.source_hash.{read})"
            for read in column.reads
            if read in wave.inputs
        )
        if changed:
            values |= {
                part: f"CASE WHEN {changed} THEN NULL ELSE t.{quote(part)} END"
                for part in column.parts
            }
    listed = ", ".join(f"t.{quote(name)} = {value}" for name, value in values.items())
    return f"WHEN MATCHED AND t.updated_at <=> s.{quote(BASE)} THEN UPDATE SET {listed}"
