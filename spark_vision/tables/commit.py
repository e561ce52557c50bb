"""Commits a wave: one MERGE, whose source computes the rows while they are written.

A row is inserted where its key is absent, and updated where it has not changed since the wave was
planned (by its `updated_at`). So neither a wave that is computed again after a kill nor a second
writer duplicates a row or overwrites a newer one.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession

from spark_vision.errors import TableError
from spark_vision.tables.identity import FilledColumn, filled_columns
from spark_vision.tables.location import quote, read_detail
from spark_vision.tables.session_settings import settings
from spark_vision.tables.source import INPUTS
from spark_vision.tables.storage_errors import retry_conflicts
from spark_vision.tables.survey import BASE
from spark_vision.tables.transaction import Transaction
from spark_vision.tables.waves import Wave
from spark_vision.tables.write_plan import SOURCE_HASH, UPDATED_AT, WritePlan

# In a first write, optimizeWrite would leave one task per wave to write while no model runs, and
# autoCompact would rewrite what has just been written.
_WAVE_SETTINGS = {
    "spark.databricks.delta.optimizeWrite.enabled": "false",
    "spark.databricks.delta.autoCompact.enabled": "false",
}
_MATERIALIZE = "spark.databricks.delta.merge.materializeSource"


@dataclass
class KeptRows:
    """Whether a run keeps computed rows on the executors' disks until they are in the table.

    Otherwise they go from the model straight into the table, and are computed again where another
    writer commits first. From the first conflict on, a run keeps them; one with slow rows keeps
    them from the start.
    """

    is_on: bool


def commit_wave(
    write: WritePlan,
    wave: Wave,
    rows: DataFrame,
    kept: KeptRows,
    transaction: Transaction | None,
    is_stable: bool,
) -> int:
    """Compute a wave's rows and commit them to the table.

    Args:
        write: The write's plan.
        wave: What the rows are.
        rows: They are computed when they are read, which happens once per attempt.
        kept: Whether they are kept for a second attempt; a conflict turns this on.
        transaction: The one that this completes.
        is_stable: Whether the source returns the same rows when a wave's keys are read twice, and
            the session caches none of them.

    Returns:
        The number of changed rows of the table: fewer than `rows` has where another writer was
        first.

    Raises:
        CommitConflictError: Others wrote to the table at every attempt.
        TableError: A column has become another model's since the wave was planned.
    """

    def prepare() -> tuple[str, dict[str, str]]:
        # Checked before each attempt: another writer may have added a column or changed its model.
        # Where that happens during the MERGE, Delta reports a conflict.
        filled = _check_models(rows.sparkSession, write, wave)
        if kept.is_on:
            # What is lost with an executor is computed again.
            rows.persist(StorageLevel.DISK_ONLY)
        # An update reads its source twice, the first time only keys: Delta need not materialize
        # the rows, unless a second read could return others. An insert reads it once.
        reads_directly = wave.is_new or (is_stable and not kept.is_on)
        clause = _insert(write, wave, filled) if wave.is_new else _update(write, wave, filled)
        return clause, {**_WAVE_SETTINGS, _MATERIALIZE: "none" if reads_directly else "auto"}

    def meet_conflict() -> None:
        kept.is_on = True

    bounds = wave.key_bounds(write.chosen.key_names[0])
    left = "this wave's rows were not committed, and the next run computes them again"
    try:
        return _merge(write, rows, prepare, left, transaction, bounds, meet_conflict)
    finally:
        rows.unpersist()


def delete_rows(
    write: WritePlan,
    rows: DataFrame,
    *,
    unchanged: bool,
    transaction: Transaction | None,
) -> int:
    """Delete the rows that have the keys of `rows`; return their number.

    Args:
        write: The write's plan.
        rows: Keys, with `BASE` where `unchanged` is asked for.
        unchanged: Skip rows that have been written since the table was surveyed.
        transaction: The one that this completes.

    Raises:
        CommitConflictError: Others wrote to the table at every attempt.
    """
    condition = f" AND t.{UPDATED_AT} <=> s.{quote(BASE)}" if unchanged else ""
    clause = f"WHEN MATCHED{condition} THEN DELETE"
    left = "its rows were not deleted"
    return _merge(write, rows, lambda: (clause, {}), left, transaction)


def _merge(
    write: WritePlan,
    rows: DataFrame,
    prepare: Callable[[], tuple[str, Mapping[str, str]]],
    left: str,
    transaction: Transaction | None,
    bounds: tuple[str, str] | None = None,
    meet_conflict: Callable[[], None] = lambda: None,
) -> int:
    """Run a MERGE, and retry it after a conflict; return how many rows changed.

    `prepare` is called before each attempt, and returns its clause and the session's settings.
    `left` is the error's clause on the state of the rows, and `bounds` are those of the first key.
    A statement of a transaction that the table already has changes nothing.
    """
    spark, keys = rows.sparkSession, write.chosen.key_names
    on = [f"t.{quote(key)} = s.{quote(key)}" for key in keys]
    if bounds is not None:
        # Without them each wave would read all keys of the table.
        on.append(f"t.{quote(keys[0])} BETWEEN {bounds[0]} AND {bounds[1]}")
    match = " AND ".join(on)
    view = f"spark_vision_rows_{uuid.uuid4().hex}"
    rows.createOrReplaceTempView(view)

    def attempt() -> int:
        clause, values = prepare()
        statement = f"MERGE INTO {write.location.sql} AS t USING {view} AS s ON {match} {clause}"
        carried = {} if transaction is None else transaction.settings
        with settings(spark, {**values, **carried}):
            counts = spark.sql(statement).collect()
        # Delta returns no row where it skipped the statement.
        return int(counts[0]["num_affected_rows"]) if counts else 0

    try:
        return retry_conflicts(write.location, attempt, left, meet_conflict)
    finally:
        spark.catalog.dropTempView(view)


def _check_models(spark: SparkSession, write: WritePlan, wave: Wave) -> dict[str, FilledColumn]:
    """Check that a wave's columns are still its model's; return all columns of the table."""
    given, detail = write.location.given, read_detail(spark, write.location)
    if detail is None:
        raise TableError(f"{given} no longer exists; this wave was not committed")
    present = detail.properties
    for name, said in write.deciding_properties(wave.columns).items():
        if present.get(name) != said:
            raise TableError(
                f"{given} was given another model during this write: its property {name} "
                f"is {present.get(name, 'missing')}, and was {said}; this wave was not committed: "
                "run again with the intended model"
            )
    return filled_columns(present, detail.columns)


def _insert(write: WritePlan, wave: Wave, filled: Mapping[str, FilledColumn]) -> str:
    parts = [part for name in wave.columns for part in filled[name].parts]
    names = [*write.chosen.key_names, *write.chosen.kept_names, SOURCE_HASH, *parts, UPDATED_AT]
    listed = ", ".join(map(quote, names))
    values = ", ".join(f"s.{quote(name)}" for name in names)
    return f"WHEN NOT MATCHED THEN INSERT ({listed}) VALUES ({values})"


def _update(write: WritePlan, wave: Wave, filled: Mapping[str, FilledColumn]) -> str:
    start = f"WHEN MATCHED AND t.{UPDATED_AT} <=> s.{quote(BASE)} THEN UPDATE SET "
    kept, inputs = write.chosen.kept_names, write.chosen.inputs
    if not wave.columns:
        return start + ", ".join(f"t.{quote(name)} = s.{quote(name)}" for name in kept)
    parts = [part for name in wave.columns for part in filled[name].parts]
    values = {name: f"s.{quote(name)}" for name in (*kept, *parts, UPDATED_AT)}
    hashes = (f"'{name}', {'s' if name in inputs else 't'}.source_hash.{name}" for name in INPUTS)
    values[SOURCE_HASH] = f"named_struct({', '.join(hashes)})"
    for name, column in filled.items():
        if name in wave.columns:
            continue
        # The value of a former image is removed: a write with that column fills it in again.
        changed = " OR ".join(
            f"NOT (t.source_hash.{read} <=> s.source_hash.{read})"
            for read in column.reads
            if read in inputs
        )
        if changed:
            values |= {
                part: f"CASE WHEN {changed} THEN NULL ELSE t.{quote(part)} END"
                for part in column.parts
            }
    listed = ", ".join(f"t.{quote(name)} = {value}" for name, value in values.items())
    return start + listed
