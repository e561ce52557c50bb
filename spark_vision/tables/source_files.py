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
    if is_classic(source.sparkSession):
        is_by_row = _is_by_row(source._jdf.queryExecution().analyzed())
    else:
        is_by_row = _is_connect_by_row(cast(Any, source)._plan)
    if not is_by_row:
        return None
    file = F.col("_metadata.file_path")
    try:
        with _quiet():
            _ = source.select(file).schema
    except AnalysisException:
        return None
    return file


def _is_by_row(plan: Any) -> bool:
    children = plan.children()
    return not children.size() or (
        plan.nodeName() in _BY_ROW
        and all(_is_by_row(children.apply(place)) for place in range(children.size()))
    )


def _is_connect_by_row(plan: Any) -> bool:
    name, inputs = type(plan).__name__, _connect_inputs(plan)
    # A view has no `_metadata`, and the text of a query may do anything with its rows.
    return name in (_BY_ROW if inputs else ("DataSource", "Read")) and all(
        map(_is_connect_by_row, inputs)
    )


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
