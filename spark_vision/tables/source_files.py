"""Which files hold a source's rows: what lets a wave read no other."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from pyspark.errors import AnalysisException
from pyspark.logger import PySparkLogger
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

# pyspark prints what a query lacks as 7 KB of JSON, also where the error is caught.
_QUERY_LOGGER = "DataFrameQueryContextLogger"


def file_column(source: DataFrame) -> Column | None:
    """Give the column that names the file of each row.

    Returns:
        None where the rows do not know it, and for joins and unions: there a file of one side says
        nothing of what the other one reads.
    """
    if _leaf_count(source) > 1:
        return None
    file = F.col("_metadata.file_path")
    try:
        with _quiet():
            _ = source.select(file).schema
    except AnalysisException:
        return None
    return file


def _leaf_count(source: DataFrame) -> int:
    """Count what a source is read from: files, tables, rows given by the driver."""
    if hasattr(source, "_jdf"):
        return int(source._jdf.queryExecution().analyzed().collectLeaves().size())
    return _connect_leaf_count(cast(Any, source)._plan)


def _connect_leaf_count(plan: Any) -> int:
    """A plan of Spark Connect has those that it is made from among its attributes."""
    inputs = {id(each): each for each in vars(plan).values() if hasattr(each, "_root_plan_id")}
    return sum(map(_connect_leaf_count, inputs.values())) or 1


@contextmanager
def _quiet() -> Iterator[None]:
    logger = PySparkLogger.getLogger(_QUERY_LOGGER)
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled
