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

from pyspark.sql import DataFrame, SparkSession

from spark_vision.errors import CommitConflictError, TableError
from spark_vision.tables.identity import FilledColumn, filled_columns
from spark_vision.tables.location import TableLocation, quote, read_detail
from spark_vision.tables.pending import BASE
from spark_vision.tables.schema import SOURCE_HASH, UPDATED_AT
from spark_vision.tables.source import INPUTS
from spark_vision.tables.transaction import Transaction, carrying

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
        """Read what `to_json` has given.

        Raises:
            TypeError: They are other values, as another version's.
        """
        if not isinstance(values, dict) or not isinstance(values.get("identity"), dict):
            raise TypeError("no description of a wave")
        lists = {name: tuple(each) for name, each in values.items() if isinstance(each, list)}
        wave = cls(**{**values, **lists})
        texts = (wave.keys, wave.kept, wave.columns, wave.inputs, tuple(wave.identity.values()))
        if (
            type(wave.is_new) is not bool
            or type(wave.count) is not int
            or not all(isinstance(each, tuple) for each in texts)
            or not all(isinstance(text, str) for each in texts for text in each)
        ):
            raise TypeError("a wave's description with other types")
        return wave


def commit_wave(
    location: TableLocation,
    wave: StagedWave,
    rows: DataFrame,
    transaction: Transaction | None = None,
) -> int:
    """Bring a stage's rows into the table.

    Args:
        location: The table.
        wave: What the stage holds.
        rows: The stage's rows.
        transaction: The one that this completes.

    Returns:
        Rows of the table that were changed: fewer than the stage has where it was committed before,
        or another writer was first.

    Raises:
        CommitConflictError: Others wrote to the table at every attempt.
        TableError: A column has become another model's since the rows were computed.
    """

    def clause() -> str:
        # Looked at before each attempt: another writer may have added a column, or changed its
        # model. Where that happens during the MERGE, Delta finds a conflict.
        filled = _check_models(rows.sparkSession, location, wave)
        return _insert(wave, filled) if wave.is_new else _update(wave, filled)

    left = "what was computed stays in the stage, and the next run commits it"
    return _merge(rows, location, wave.keys, clause, left, transaction)


def delete_rows(
    location: TableLocation,
    keys: tuple[str, ...],
    rows: DataFrame,
    *,
    unchanged: bool,
    transaction: Transaction | None = None,
) -> None:
    """Remove the rows that have the keys of `rows`.

    Args:
        location: The table.
        keys: Its keys.
        rows: Keys, with `BASE` where `unchanged` is asked for.
        unchanged: Leave those that have been written since the table was surveyed.
        transaction: The one that this completes.

    Raises:
        CommitConflictError: Others wrote to the table at every attempt.
    """
    condition = f" AND t.{UPDATED_AT} <=> s.{quote(BASE)}" if unchanged else ""
    clause = f"WHEN MATCHED{condition} THEN DELETE"
    _merge(rows, location, keys, lambda: clause, "its rows were not removed", transaction)


def _merge(
    rows: DataFrame,
    location: TableLocation,
    keys: tuple[str, ...],
    clause: Callable[[], str],
    left: str,
    transaction: Transaction | None,
) -> int:
    """Run a MERGE on keys, again where another writer came in between; say how many rows changed.

    The clause is asked for before each attempt, and `left` is what the error says of the rows. What
    completes a transaction that the table has already changes nothing.
    """
    spark = rows.sparkSession
    view = f"spark_vision_rows_{uuid.uuid4().hex}"
    on = " AND ".join(f"t.{quote(key)} = s.{quote(key)}" for key in keys)
    rows.createOrReplaceTempView(view)

    def attempt() -> int:
        statement = f"MERGE INTO {location.sql} AS t USING {view} AS s ON {on} {clause()}"
        with carrying(spark, transaction):
            counts = spark.sql(statement).collect()
        # Delta gives no row where it left the statement out.
        return int(counts[0]["num_affected_rows"]) if counts else 0

    try:
        return retry_conflicts(location, attempt, left)
    finally:
        spark.catalog.dropTempView(view)


def retry_conflicts(
    location: TableLocation, change: Callable[[], _Result], left: str = "this one was not made"
) -> _Result:
    """Change a table, again where another writer came in between, a bounded number of times.

    Args:
        location: The table.
        change: Changes it, in one commit.
        left: What the error says of how things stand.

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
                    f"attempts to commit; {left}: run again when fewer writers are at work"
                ) from error
            logger.info("attempt %d to commit met another writer", attempt)
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def is_conflict(error: BaseException) -> bool:
    """Whether a commit was refused because of another one, by classic sessions or by Connect."""
    return bool(_CONFLICT.search(f"{type(error).__name__} {error}"))


def _check_models(
    spark: SparkSession, location: TableLocation, wave: StagedWave
) -> dict[str, FilledColumn]:
    """Make sure that a wave's columns are still its model's; give all columns of the table."""
    detail = read_detail(spark, location)
    if detail is None:
        raise TableError(f"{location.given} is gone; this wave was not committed")
    present = detail.properties
    for name, said in wave.identity.items():
        if present.get(name) != said:
            raise TableError(
                f"{location.given} has become another model's while this write was at work: its "
                f"property {name} is {present.get(name, 'gone')}, and was {said}; this wave was "
                "not committed: run again with the model that is wanted"
            )
    return filled_columns(present, detail.columns)


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
