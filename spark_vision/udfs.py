"""From an operator to an iterator UDF: one body, in an Arrow shell where Spark has it, or pandas.

Spark 4.1 brought UDFs over Arrow arrays, which spare each batch a way through pandas; 4.0 has the
pandas kind alone. Both are asked for by type hints, which is why this file spells them out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import (
    ArrayType,
    DataType,
    DoubleType,
    FloatType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from spark_vision.errors import InputTypeError
from spark_vision.executor.environment import HubEnvironment
from spark_vision.operators import (
    OPERATORS,
    ClipTextEmbedding,
    EmbeddingOperator,
    ImageOperator,
)

if TYPE_CHECKING:
    from pyspark.accumulators import Accumulator

_IMAGE_STRUCT_TYPES = {
    "height": pa.int32(),
    "width": pa.int32(),
    "nChannels": pa.int32(),
    "mode": pa.int32(),
    "data": pa.binary(),
}

PLACEMENT_TYPE = StructType(
    [
        StructField("host", StringType()),
        StructField("executor", StringType()),
        StructField("device", StringType()),
        StructField("server_pid", LongType()),
        StructField("loaded_at", TimestampType()),
        StructField("load_seconds", DoubleType()),
        StructField("dtype", StringType()),
        StructField("fingerprint", StringType()),
    ]
)

ArrowBody = Callable[[Iterator[pa.Array]], Iterator[pa.Array]]


@dataclass(frozen=True)
class EmbeddingBody:
    """What the executors run, as it is pickled: it imports torch there, never on the driver."""

    operator: EmbeddingOperator
    with_status: bool
    environment: HubEnvironment
    statuses: "Accumulator[dict[str, int]] | None"

    def __call__(self, arrays: Iterator[pa.Array]) -> Iterator[pa.Array]:
        """Give the embeddings of the arrays' elements, in order."""
        self.environment.apply()
        from spark_vision.executor.embedding import embed_images, embed_texts
        from spark_vision.executor.task import current_task

        embed: Any = embed_texts if isinstance(self.operator, ClipTextEmbedding) else embed_images
        embedded: Iterator[pa.Array] = embed(
            arrays,
            self.operator,
            current_task(),
            with_status=self.with_status,
            count=self.statuses.add if self.statuses is not None else None,
        )
        return embedded


@dataclass(frozen=True)
class PlacementBody:
    """What the executors run for `model_placement`, as it is pickled."""

    operator: EmbeddingOperator
    environment: HubEnvironment

    def __call__(self, arrays: Iterator[pa.Array]) -> Iterator[pa.Array]:
        """Give the placements of the models that computed the arrays' elements, in order."""
        self.environment.apply()
        from spark_vision.executor.placement_rows import place_rows
        from spark_vision.executor.task import current_task

        place: Any = place_rows
        placed: Iterator[pa.Array] = place(arrays, self.operator, current_task())
        return placed


def placement_udf(operator: EmbeddingOperator) -> Any:
    """Make the UDF that computes an operator over one column and says where it was computed.

    Returns:
        A user-defined function of one column; it is never deterministic.

    Raises:
        InputTypeError: The operator is not an instance of an operator class.
    """
    _check_is_operator(operator)
    body = PlacementBody(operator, HubEnvironment.capture())
    return _vectorized_udf(body, PLACEMENT_TYPE, "model_placement").asNondeterministic()


def embedding_udf(
    operator: EmbeddingOperator,
    *,
    with_status: bool = False,
    deterministic: bool = False,
    statuses: "Accumulator[dict[str, int]] | None" = None,
) -> Any:
    """Make the UDF that computes an operator over one column.

    Args:
        operator: An image or text operator.
        with_status: Return struct<embedding, status, error> instead of the bare embedding.
        deterministic: Let Spark move, repeat or merge calls as it does with pure functions. Without
            it each row is computed once, and Spark refuses the function in some places.
        statuses: Collects the number of rows by status as tasks end (classic sessions).

    Returns:
        A user-defined function of one column.

    Raises:
        InputTypeError: The operator is not an instance of an operator class.
    """
    _check_is_operator(operator)
    body = EmbeddingBody(operator, with_status, HubEnvironment.capture(), statuses)
    made = _vectorized_udf(body, _return_type(operator, with_status), _function_name(operator))
    return made if deterministic else made.asNondeterministic()


def _check_is_operator(operator: object) -> None:
    if isinstance(operator, type) or not isinstance(operator, tuple(OPERATORS.values())):
        shown = operator.__name__ if isinstance(operator, type) else type(operator).__name__
        hint = f"write {shown}(...)" if shown in OPERATORS else "make one and pass it"
        raise InputTypeError(f"got {shown}; allowed: an instance of {', '.join(OPERATORS)}: {hint}")


def _return_type(operator: EmbeddingOperator, with_status: bool) -> DataType:
    vector = ArrayType(FloatType())
    tokens = operator.effective_pooling == "tokens"
    embedding = ArrayType(vector) if tokens else vector
    if not with_status:
        return embedding
    return StructType(
        [
            StructField("embedding", embedding),
            StructField("status", StringType()),
            StructField("error", StringType()),
        ]
    )


def _function_name(operator: EmbeddingOperator) -> str:
    return "embed_image" if isinstance(operator, ImageOperator) else "embed_text"


def _vectorized_udf(body: ArrowBody, return_type: DataType, name: str) -> Any:
    if hasattr(F, "arrow_udf"):

        def compute_arrow(arrays: Iterator[pa.Array]) -> Iterator[pa.Array]:
            return body(arrays)

        compute_arrow.__name__ = name
        return F.arrow_udf(compute_arrow, return_type)

    def compute_pandas(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        # The hint names the kind of function; structs travel as frames all the same.
        return map(_to_pandas, body(map(_to_arrow, batches)))  # type: ignore[arg-type]

    compute_pandas.__name__ = name
    make_udf: Any = pandas_udf  # its type hints know functions of one series only
    return make_udf(compute_pandas, return_type)


def _to_arrow(batch: "pd.Series[Any] | pd.DataFrame") -> pa.Array:
    """Spark hands a struct column to a pandas UDF as a frame with a column per field."""
    if isinstance(batch, pd.DataFrame):
        # pandas turns whole numbers with nulls among them into floats.
        columns = [
            pa.array(column, _IMAGE_STRUCT_TYPES.get(str(name)), from_pandas=True)
            for name, column in batch.items()
        ]
        missing = pa.array(batch.isna().all(axis=1).to_numpy())
        return pa.StructArray.from_arrays(columns, names=list(batch.columns), mask=missing)
    return pa.Array.from_pandas(batch)


def _to_pandas(array: pa.Array) -> "pd.Series[Any] | pd.DataFrame":
    """Keep Arrow's buffer behind pandas' face; Spark takes a frame where it expects a struct.

    Spark's converters know None, but not the NA that pandas puts for a null of an Arrow type.
    """
    if isinstance(array, pa.StructArray):
        names = [field.name for field in array.type]
        columns = [column.to_pandas() for column in array.flatten()]
        frame: pd.DataFrame = pd.concat(columns, axis=1, keys=names)
        return frame
    if array.null_count:
        series: pd.Series[Any] = array.to_pandas()
        return series
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([array])))
