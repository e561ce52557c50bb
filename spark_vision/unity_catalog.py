"""Operators as functions of Unity Catalog: the statement that creates one, and what its body runs.

Functions of `register_functions` belong to a session. A function of Unity Catalog stays: SQL
warehouses, dashboards and permanent views can use it.
"""

import json
import re
from collections import deque
from collections.abc import Iterator, Sequence

import pandas as pd
import pyarrow as pa

from spark_vision._version import __version__
from spark_vision.errors import InvalidOptionError
from spark_vision.operators import OPERATORS, Operator
from spark_vision.operators.options import options_of
from spark_vision.spark.arrow_udf import Batch, to_arrow_batch
from spark_vision.spark.driver_checks import check_is_operator
from spark_vision.spark.udfs import OperatorsBody

_SQL_TYPES = {"image": "BINARY", "text": "STRING", "prompt": "STRING", "vector": "ARRAY<FLOAT>"}

_STATEMENT = """\
CREATE OR REPLACE FUNCTION {name}({parameters})
RETURNS {returns}
LANGUAGE PYTHON
{deterministic}
PARAMETER STYLE PANDAS
HANDLER 'compute'
ENVIRONMENT (
  dependencies = '{dependencies}',
  environment_version = 'None'
)
AS $$
from typing import Iterator

import pandas as pd
from spark_vision.operators import ImageLimits, {operator}
from spark_vision.unity_catalog import compute_batches

operator = {source}

def compute(batches: {batches}) -> Iterator[pd.Series]:
    yield from compute_batches(operator, batches)
$$"""


def unity_catalog_ddl(
    operator: Operator,
    name: str,
    *,
    dependencies: Sequence[str] = (f"spark-vision=={__version__}",),
    deterministic: bool = False,
) -> str:
    """Write the statement that creates a function of Unity Catalog, a batch Python UDF.

    The function takes images as BINARY, texts and prompts as STRING, or vectors as ARRAY<FLOAT>. A
    function for captions takes images and prompts; a null prompt means the operator's own. All
    options of the operator are written into the function, so that no later default changes it.

    Args:
        operator: What to compute.
        name: Such as `main.vision.embed_image`.
        dependencies: What pip installs for the function: requirements, or the path of a wheel in a
            volume.
        deterministic: As for `embed_image`.

    Returns:
        The statement, without a semicolon.

    Raises:
        InputTypeError: The operator is not an operator.
        InvalidOptionError: Not one of the package's operators; it has `storage_options`, which
            everyone who may see the function could read; or the name or the dependencies are not
            valid.

    Example:
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
        >>> wheel = "/Volumes/main/vision/wheels/spark_vision-0.1.0-py3-none-any.whl"
        >>> ddl = unity_catalog_ddl(dino, "main.vision.embed_image", dependencies=[wheel])
        >>> print(ddl.splitlines()[0])
        CREATE OR REPLACE FUNCTION `main`.`vision`.`embed_image`(image BINARY)
    """
    check_is_operator(operator)
    owner = type(operator).__name__
    if OPERATORS.get(owner) is not type(operator):
        raise InvalidOptionError(
            f"unity_catalog_ddl got {owner}; allowed: {', '.join(OPERATORS)}, which the function "
            "can import"
        )
    for each in options_of(operator):
        if each.secret and getattr(operator, each.name) is not None:
            raise InvalidOptionError(
                f"{owner}.{each.name} is a secret, and everyone who may see the function could "
                "read it; leave it out, and pass images as BINARY"
            )
    if not re.fullmatch(r"[\w-]+(\.[\w-]+){0,2}", name):
        raise InvalidOptionError(
            f"unity_catalog_ddl got the name {name!r}; allowed: up to three parts of letters, "
            "digits, _ and -, with dots between them, such as main.vision.embed_image"
        )
    if isinstance(dependencies, str) or not all(isinstance(each, str) for each in dependencies):
        raise InvalidOptionError(
            f"unity_catalog_ddl got dependencies={dependencies!r}; allowed: a list of strings"
        )
    is_single = len(operator.reads) == 1
    return _STATEMENT.format(
        name=".".join(f"`{part}`" for part in name.split(".")),
        parameters=", ".join(f"{each} {_SQL_TYPES[each]}" for each in operator.reads),
        returns=next(iter(operator.value_fields.values())),
        deterministic="DETERMINISTIC" if deterministic else "NOT DETERMINISTIC",
        dependencies=_quote(json.dumps([*dependencies])),
        operator=owner,
        # Only a string has a $, and neither $$ nor ${name} may appear in the body.
        source=repr(operator).replace("$", r"\x24"),
        batches="Iterator[pd.Series]" if is_single else "Iterator[tuple[pd.Series, ...]]",
    )


def compute_batches(
    operator: Operator, batches: "Iterator[pd.Series | tuple[pd.Series, ...]]"
) -> "Iterator[pd.Series]":
    """Compute an operator over pandas batches, as the body of such a function does.

    Args:
        operator: What to compute.
        batches: A series per batch, or for captions a pair of series: images and prompts.

    Yields:
        For each batch a series of its length: float32 vectors, captions, or tags.
    """
    row_counts: deque[int] = deque()

    def arrive() -> Iterator[Batch]:
        for batch in batches:
            columns = to_arrow_batch(batch)
            row_counts.append(len(columns[0] if isinstance(columns, tuple) else columns))
            yield columns

    # The operator computes batches of its own size.
    waiting: list[pa.Array] = []
    for array in OperatorsBody((operator,))(arrive()):
        waiting = [pa.concat_arrays([*waiting, array])]
        while row_counts and len(waiting[0]) >= row_counts[0]:
            row_count = row_counts.popleft()
            yield waiting[0][:row_count].to_pandas()
            waiting = [waiting[0][row_count:]]


def _quote(text: str) -> str:
    r"""Escape JSON for a string of SQL; $ is written as \u0024, because Spark replaces ${name}."""
    escaped = text.replace("$", "\\u0024").replace("\\", "\\\\")
    return escaped.replace("'", "\\'")
