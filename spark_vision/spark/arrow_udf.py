"""Iterator UDFs over Arrow arrays, as Arrow UDFs if Spark has them or else as pandas UDFs.

Arrow UDFs are new in Spark 4.1 and avoid converting each batch to pandas and back; Spark 4.0 has
only pandas UDFs. Spark infers the kind of a UDF from its type hints, so they are explicit here.
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
    """Create an iterator UDF.

    Args:
        body: Maps Arrow arrays (tuples of arrays for several columns) to arrays. Their lengths may
            differ from the input's; elements are in the order of the input.
        return_type: The return type of the UDF.
        name: Its name in query plans.
    """
    # Spark reads only the kind of the UDF from these hints. A UDF of one column gets arrays, not
    # tuples, and a pandas UDF gets structs as data frames.
    if hasattr(F, "arrow_udf"):

        def compute_arrow(batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
            return body(batches)

        compute_arrow.__name__ = name
        return F.arrow_udf(compute_arrow, return_type)

    def compute_pandas(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        return map(_to_pandas, body(map(to_arrow_batch, batches)))  # type: ignore[arg-type]

    compute_pandas.__name__ = name
    make_udf: Any = pandas_udf  # its type hints cover only functions of one series
    return make_udf(compute_pandas, return_type)


def to_arrow_batch(batch: Any) -> Batch:
    """Convert a batch of a pandas UDF: a series or a data frame, or a tuple of them."""
    return tuple(map(_to_arrow, batch)) if isinstance(batch, tuple) else _to_arrow(batch)


def _to_arrow(batch: "pd.Series[Any] | pd.DataFrame") -> pa.Array:
    """Spark passes a struct column to a pandas UDF as a data frame with a column per field."""
    if isinstance(batch, pd.DataFrame):
        # pandas converts integer columns with nulls to floats.
        columns = [
            pa.array(column, _IMAGE_STRUCT_TYPES.get(str(name)), from_pandas=True)
            for name, column in batch.items()
        ]
        missing = pa.array(batch.isna().all(axis=1).to_numpy())
        return pa.StructArray.from_arrays(columns, names=list(batch.columns), mask=missing)
    return pa.Array.from_pandas(batch)


def _to_pandas(array: pa.Array) -> "pd.Series[Any] | pd.DataFrame":
    """Wrap an Arrow array as a pandas series without a copy, or a struct array as a data frame.

    Arrays with nulls are converted: Spark's converters accept None but not pandas' NA.
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
