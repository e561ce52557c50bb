"""What a source's plan shows: which files hold its rows, and whether some rows are left out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from pyspark.errors import AnalysisException
from pyspark.logger import PySparkLogger
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_vision.spark.sessions import is_classic

# pyspark prints an AnalysisException as 7 KB of JSON, even where it is caught.
_QUERY_LOGGER = "DataFrameQueryContextLogger"
# The nodes, of classic and of Connect plans, that leave rows out.
_NARROWING = ("Filter", "GlobalLimit", "Limit", "NADrop", "Offset", "Sample", "Tail")


def file_column(source: DataFrame) -> Column | None:
    """Return the column that names the file of each row.

    Returns:
        None where the rows do not have one, and for joins and unions: there a file of one side does
        not determine what the other side reads.
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
    """Count the relations that a source reads: files, tables, rows from the driver."""
    if is_classic(source.sparkSession):
        return int(source._jdf.queryExecution().analyzed().collectLeaves().size())
    return _connect_leaf_count(cast(Any, source)._plan)


def is_narrowed(source: DataFrame) -> bool:
    """Whether a source is a filter, a limit or a sample of what it reads.

    A view counts as a relation, and so does the text of a query in Spark Connect.
    """
    if is_classic(source.sparkSession):
        names = _node_names(source._jdf.queryExecution().analyzed())
    else:
        names = _connect_node_names(cast(Any, source)._plan)
    return any(name in _NARROWING for name in names)


def _node_names(plan: Any) -> Iterator[str]:
    name = plan.nodeName()
    yield name
    children = plan.children()
    for place in range(0 if name == "View" else children.size()):
        yield from _node_names(children.apply(place))


def _connect_node_names(plan: Any) -> Iterator[str]:
    yield type(plan).__name__
    for each in _connect_inputs(plan):
        yield from _connect_node_names(each)


def _connect_leaf_count(plan: Any) -> int:
    return sum(map(_connect_leaf_count, _connect_inputs(plan))) or 1


def _connect_inputs(plan: Any) -> list[Any]:
    """Return the input plans of a plan of Spark Connect, which are among its attributes."""
    from pyspark.sql.connect.plan import LogicalPlan

    inputs = {name: each for name, each in vars(plan).items() if isinstance(each, LogicalPlan)}
    # A join has its left side twice.
    inputs.pop("left", None)
    return list(inputs.values())


@contextmanager
def _quiet() -> Iterator[None]:
    logger = PySparkLogger.getLogger(_QUERY_LOGGER)
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled
