"""Settings of a session for as long as a statement runs, also where several threads run some."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyspark.sql import SparkSession

_lock = threading.Lock()
# By session and name: how many statements hold the setting, and what the user's value was.
_held: dict[tuple[int, str], tuple[int, str | None]] = {}

METADATA = "spark.databricks.delta.commitInfo.userMetadata"
# By session: what the runs that are about to commit want to be said in their commits.
_labels: dict[int, list[str]] = {}
_LABEL_START = '{"spark_vision": '


@contextmanager
def settings(spark: SparkSession, values: Mapping[str, str]) -> Iterator[None]:
    """Give a session settings; the last one to leave puts the user's back.

    Args:
        spark: The session; whatever else runs in it meanwhile has the settings, too.
        values: By their names. Those who hold one name at once should want one value.
    """
    for name, value in values.items():
        with _lock:
            count, before = _held.get((id(spark), name), (0, None))
            if not count:
                before = spark.conf.get(name, None)
            spark.conf.set(name, value)
            _held[id(spark), name] = count + 1, before
    try:
        yield
    finally:
        for name in values:
            with _lock:
                count, before = _held.pop((id(spark), name))
                if count > 1:
                    _held[id(spark), name] = count - 1, before
                elif before is None:
                    spark.conf.unset(name)
                else:
                    spark.conf.set(name, before)


@contextmanager
def labelled(spark: SparkSession, run: str, wave: int | None = None) -> Iterator[None]:
    """Let a session's commits say in their `userMetadata` which run made them, and which wave.

    What the user has set there stays. While two runs commit from one session at once, their
    commits say nothing: one could have the other's label.

    Args:
        spark: The session.
        run: The run's id.
        wave: The wave's number; None for what is no wave.
    """
    said = {"run": run} if wave is None else {"run": run, "wave": wave}
    label = f"{_LABEL_START}{json.dumps(said)}}}"
    if not _change_labels(spark, label, is_new=True):
        yield
        return
    try:
        yield
    finally:
        _change_labels(spark, label, is_new=False)


def _change_labels(spark: SparkSession, label: str, *, is_new: bool) -> bool:
    with _lock:
        labels = _labels.setdefault(id(spark), [])
        # A stream's session is a copy of the user's, and may have been made while a run had one.
        is_users = is_new and not (spark.conf.get(METADATA, None) or _LABEL_START).startswith(
            _LABEL_START
        )
        if not is_users:
            labels.append(label) if is_new else labels.remove(label)
            if len(labels) == 1:
                spark.conf.set(METADATA, labels[0])
            else:
                spark.conf.unset(METADATA)
        if not labels:
            del _labels[id(spark)]
        return not is_users
