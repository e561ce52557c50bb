"""Iterator UDFs over Arrow arrays: one body, in an Arrow shell where Spark has it, or in pandas.

Spark 4.1 brought UDFs over Arrow arrays, which spare each batch a way through pandas; 4.0 has the
pandas kind alone. Both are asked for by type hints, which is why this file spells them out.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import DataType

Batch: TypeAlias = pa.Array | tuple[pa.Array, ...]
ArrowBody = Callable[[Iterator[Batch]], Iterator[pa.Array]]

_IMAGE_STRUCT_TYPES = {
    "height": pa.int32(),
    "width": pa.int32(),
    "nChannels": pa.int32(),
    "mode": pa.int32(),
    "data": pa.binary(),
}


def make_arrow_udf(body: ArrowBody, return_type: DataType, name: str) -> Any:
    """Make an iterator UDF.

    Args:
        body: Arrow arrays, or tuples of them where the function has several columns, to arrays of
            other lengths, whose elements are in the order of the input.
        return_type: Of the function.
        name: How Spark's plans show it.
    """
    # The hints name the kind of function. One of a single column gets arrays, not tuples, and
    # structs travel as frames in the pandas kind all the same.
    if hasattr(F, "arrow_udf"):

        def compute_arrow(batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
            return body(batches)

        compute_arrow.__name__ = name
        return F.arrow_udf(compute_arrow, return_type)

    def compute_pandas(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        return map(_to_pandas, body(map(_to_arrow_batch, batches)))  # type: ignore[arg-type]

    compute_pandas.__name__ = name
    make_udf: Any = pandas_udf  # its type hints know functions of one series only
    return make_udf(compute_pandas, return_type)


def _to_arrow_batch(batch: Any) -> Batch:
    return tuple(map(_to_arrow, batch)) if isinstance(batch, tuple) else _to_arrow(batch)


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
