"""Which rows are still to be computed: one pass over the keys, without the images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_vision.errors import TableError
from spark_vision.tables.location import quote

_COUNT = "__spark_vision_count"
_THERE = "__spark_vision_there"
_EXAMPLE_COUNT = 3


@dataclass(frozen=True)
class KeySurvey:
    """What the keys of a source say.

    Attributes:
        source_rows: Rows in the source.
        there: Those of them that the table has already.
    """

    source_rows: int
    there: int

    @property
    def pending(self) -> int:
        """Rows that are still to be computed."""
        return self.source_rows - self.there


def survey_keys(source: DataFrame, table: DataFrame | None, keys: Sequence[str]) -> KeySurvey:
    """Count a source's rows, and those that a table has; reads the key columns only.

    Args:
        source: Its column pruning decides that no image is read.
        table: The table's rows; None where it is new.
        keys: The key columns' names.

    Raises:
        TableError: A key is null, or occurs twice; the message names examples.
    """
    counted = _key_columns(source, keys).groupBy(*map(quote, keys)).agg(F.count("*").alias(_COUNT))
    matched = counted.withColumn(_THERE, F.lit(False))
    if table is not None:
        there = _key_columns(table, keys).distinct().withColumn(_THERE, F.lit(True))
        matched = counted.join(there, list(keys), "left")
    bad = _is_null(keys) | (F.col(_COUNT) > 1)
    row = matched.agg(
        F.sum(_COUNT).alias("rows"),
        F.count_if(_THERE).alias("there"),
        F.count_if(bad).alias("bad"),
    ).head()
    if row is None:
        raise AssertionError("an aggregate without groups has one row")
    if row["bad"]:
        examples = counted.filter(bad).orderBy(F.desc(_COUNT)).limit(_EXAMPLE_COUNT).collect()
        shown = "; ".join(
            ", ".join(f"{key}={each[key]!r}" for key in keys) + f" in {each[_COUNT]} row(s)"
            for each in examples
        )
        raise TableError(
            f"keys must be unique and not null; {row['bad']} are not, such as {shown}; nothing was "
            "computed: drop these rows, or choose other keys"
        )
    return KeySurvey(source_rows=row["rows"] or 0, there=row["there"])


def drop_rows_there(source: DataFrame, table: DataFrame, keys: Sequence[str]) -> DataFrame:
    """Leave the rows of a source whose keys a table does not have."""
    return source.join(_key_columns(table, keys), list(keys), "left_anti")


def _key_columns(rows: DataFrame, keys: Sequence[str]) -> DataFrame:
    return rows.select(*(F.col(quote(key)) for key in keys))


def _is_null(keys: Sequence[str]) -> Column:
    return reduce(or_, (F.col(quote(key)).isNull() for key in keys))
