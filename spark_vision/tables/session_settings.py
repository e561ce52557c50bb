"""What a session has while a statement runs: settings, labels and the name of the step."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyspark.sql import SparkSession

from spark_vision.spark.sessions import is_classic

_lock = threading.Lock()
# By session and name: how many statements hold the setting, and what the user's value was.
_held: dict[tuple[int, str], tuple[int, str | None]] = {}

_DESCRIPTION = "spark.job.description"
METADATA = "spark.databricks.delta.commitInfo.userMetadata"
# By session: the labels of the runs that are about to commit.
_labels: dict[int, list[str]] = {}
_LABEL_START = '{"spark_vision": '


@contextmanager
def settings(spark: SparkSession, values: Mapping[str, str]) -> Iterator[None]:
    """Apply settings to a session; the last block to end restores the user's.

    Args:
        spark: The session; whatever else runs in it meanwhile has the settings, too.
        values: The values by name. Blocks that set the same name at once should agree on its value.
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
def described(spark: SparkSession, step: str) -> Iterator[None]:
    """Name the thread's Spark jobs: by a description in Spark's UI, or by a tag with Connect."""
    name = f"spark_vision: {step}"
    if not is_classic(spark):
        tag = name.replace(",", "")  # Spark allows no comma.
        spark.addTag(tag)
        try:
            yield
        finally:
            spark.removeTag(tag)
        return
    context: Any = spark.sparkContext  # None removes a property, which its types do not say.
    before = context.getLocalProperty(_DESCRIPTION)
    context.setJobDescription(name)
    try:
        yield
    finally:
        context.setLocalProperty(_DESCRIPTION, before)


@contextmanager
def labelled(spark: SparkSession, run: str, wave: int | None = None) -> Iterator[None]:
    """Label a session's commits, in their `userMetadata`, with the run and its wave.

    What the user has set there is kept. While two runs commit from one session at once, their
    commits have no label: one could get the other's.

    Args:
        spark: The session.
        run: The run's id.
        wave: The wave's number; None for a commit that is not a wave's.
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
        # A stream's session is a copy of the user's, perhaps made while a run had its label there.
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
