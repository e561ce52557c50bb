"""What a source's plan shows: which files hold its rows, and whether some rows are left out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from pyspark.errors import AnalysisException
from pyspark.logger import PySparkLogger
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_vision.spark.sessions import is_classic

# pyspark prints an AnalysisException as 7 KB of JSON, even where it is caught.
_QUERY_LOGGER = "DataFrameQueryContextLogger"
# The nodes, of classic and of Connect plans, that leave rows out.
_NARROWING = ("Filter", "GlobalLimit", "Limit", "NADrop", "Offset", "Sample", "Tail")
# Those whose rows each come from one row of their input.
_BY_ROW = (
    *("Project", "Filter", "Generate", "SubqueryAlias", "Sort", "ResolvedHint"),
    *("Repartition", "RepartitionByExpression", "WithColumns", "WithColumnsRenamed", "Drop"),
    *("ToDF", "ToSchema", "Hint", "NADrop", "NAFill", "NAReplace"),
)


def file_column(source: DataFrame) -> Column | None:
    """Return the column that names the file of each row.

    Returns:
        None where the rows do not have one, and where they depend on more than one row of what is
        read, as in joins, unions, distinct rows, limits and windows: there a file does not
        determine which rows come from it.
    """
    if not _is_by_row(_plan_of(source)):
        return None
    file = F.col("_metadata.file_path")
    try:
        with _quiet():
            _ = source.select(file).schema
    except AnalysisException:
        return None
    return file


def is_narrowed(source: DataFrame) -> bool:
    """Whether a source is a filter, a limit or a sample of what it reads.

    A view counts as a relation, and so does the text of a query in Spark Connect.
    """
    return any(name in _NARROWING for name in _names(_plan_of(source)))


class _Node(NamedTuple):
    """A node of a plan. Its inputs are looked up on demand: plans may be deep."""

    name: str
    is_read: bool
    inputs: "Callable[[], list[_Node]]"


def _plan_of(source: DataFrame) -> _Node:
    if is_classic(source.sparkSession):
        return _classic_node(source._jdf.queryExecution().analyzed())
    return _connect_node(cast(Any, source)._plan)


def _classic_node(plan: Any) -> _Node:
    children = plan.children()

    def inputs() -> list[_Node]:
        return [_classic_node(children.apply(place)) for place in range(children.size())]

    return _Node(plan.nodeName(), children.isEmpty(), inputs)


def _connect_node(plan: Any) -> _Node:
    from pyspark.sql.connect.plan import LogicalPlan

    # The input plans are among a plan's attributes; a join has its left side twice.
    found = {name: each for name, each in vars(plan).items() if isinstance(each, LogicalPlan)}
    found.pop("left", None)
    name = type(plan).__name__
    # A view has no `_metadata`, and the text of a query may do anything with its rows.
    is_read = name in ("DataSource", "Read")
    return _Node(name, is_read, lambda: [_connect_node(each) for each in found.values()])


def _is_by_row(plan: _Node) -> bool:
    if plan.is_read or plan.name not in _BY_ROW:
        return plan.is_read
    inputs = plan.inputs()
    return bool(inputs) and all(map(_is_by_row, inputs))


def _names(plan: _Node) -> Iterator[str]:
    yield plan.name
    for each in () if plan.name == "View" else plan.inputs():
        yield from _names(each)


@contextmanager
def _quiet() -> Iterator[None]:
    logger = PySparkLogger.getLogger(_QUERY_LOGGER)
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled
