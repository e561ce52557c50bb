"""Settings of a session for as long as a statement runs, also where several threads run some."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyspark.sql import SparkSession

_lock = threading.Lock()
# By session and name: how many statements hold the setting, and what the user's value was.
_held: dict[tuple[int, str], tuple[int, str | None]] = {}


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
