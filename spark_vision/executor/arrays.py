"""Arrow arrays in and out: strings, valid UTF-8 or not; vectors; structs of value, status, error.

Vectors are copied into one buffer, without Python lists.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from spark_vision.errors import InputTypeError, RowFailure, Status

if TYPE_CHECKING:
    import torch

Outcome = np.ndarray | RowFailure

# Spark names the field of an array `element`; another name would cost a cast per batch.
VECTOR_TYPE = pa.list_(pa.field("element", pa.float32()))
TOKENS_TYPE = pa.list_(pa.field("element", VECTOR_TYPE))


def check_texts(array: pa.Array, function: str) -> pa.Array:
    """Check that an array contains strings.

    Args:
        array: The input of a function.
        function: The function's name, for the error.

    Raises:
        InputTypeError: The array has another type.
    """
    if pa.types.is_null(array.type):  # a pandas batch with only nulls
        array = array.cast(pa.string())
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        raise InputTypeError(
            f"{function} got a column of {array.type}; allowed: string; cast it or choose another"
        )
    return array


def read_texts(array: pa.Array) -> list[str | None]:
    """Read strings. Spark does not validate UTF-8: invalid bytes are replaced, not an error."""
    stored = array.cast(pa.large_binary()).to_pylist()
    return [None if text is None else text.decode("utf-8", "replace") for text in stored]


def add_statuses(
    name: str, values: pa.Array, outcomes: Sequence[Any], more: Mapping[str, pa.Array] | None = None
) -> pa.Array:
    """Build structs of value, status, error and additional fields.

    Args:
        name: Name of the value field.
        values: One value per row.
        outcomes: One outcome per row; a RowFailure if the row failed.
        more: Additional fields, by name.
    """
    failures = [row if isinstance(row, RowFailure) else None for row in outcomes]
    statuses = pa.array([Status.OK if each is None else each.status for each in failures])
    errors = pa.array([None if each is None else each.reason for each in failures], pa.string())
    fields = {name: values, "status": statuses.cast(pa.string()), "error": errors, **(more or {})}
    return pa.StructArray.from_arrays(list(fields.values()), names=list(fields))


def build_array(
    outcomes: Sequence[Outcome], dimension: int, on_error: str, *, tokens: bool, with_status: bool
) -> pa.Array:
    """Build the Arrow array that is returned to Spark for some rows.

    Args:
        outcomes: Per row, a float32 `[dimension]` vector (`[tokens, dimension]` with `tokens`) or
            its failure.
        dimension: The length of every vector.
        on_error: With `zero` the value of a failed row is zeros, otherwise null.
        tokens: Whether rows have a vector per token, returned as arrays of arrays.
        with_status: Whether to return structs of embedding, status and error.

    Returns:
        One element per outcome: list<float>, list<list<float>> or struct.
    """
    zero = np.zeros(dimension, np.float32) if on_error == "zero" else None
    values = [zero if isinstance(row, RowFailure) else row for row in outcomes]
    embeddings = _token_lists(values, dimension) if tokens else _vector_lists(values, dimension)
    if not with_status:
        return embeddings
    return add_statuses("embedding", embeddings, outcomes)


def finite_rows(vectors: "torch.Tensor") -> list[Outcome]:
    """Split a batch of results into rows; a row with NaN or infinity has failed.

    Args:
        vectors: float32 `[rows, ...]` on the CPU.
    """
    rows = vectors.numpy()
    finite = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
    return [
        row if is_finite else RowFailure(Status.NONFINITE, "the model returned NaN or infinity")
        for row, is_finite in zip(rows, finite, strict=True)
    ]


def _vector_lists(values: Sequence[np.ndarray | None], dimension: int) -> pa.Array:
    present = [value for value in values if value is not None]
    flat = np.concatenate(present) if present else np.empty(0, np.float32)
    lengths = np.array([0 if value is None else dimension for value in values], np.int32)
    return build_lists(lengths, pa.array(flat), values, VECTOR_TYPE)


def _token_lists(values: Sequence[np.ndarray | None], dimension: int) -> pa.Array:
    present = [value for value in values if value is not None]
    flat = np.concatenate(present) if present else np.empty((0, dimension), np.float32)
    offsets = np.arange(len(flat) + 1, dtype=np.int32) * dimension
    vectors = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat.reshape(-1)), VECTOR_TYPE)
    lengths = np.array([0 if value is None else len(value) for value in values], np.int32)
    return build_lists(lengths, vectors, values, TOKENS_TYPE)


def build_lists(
    lengths: np.ndarray, elements: pa.Array, values: Sequence[Any], kind: pa.DataType
) -> pa.Array:
    """Build an Arrow array of lists.

    Args:
        lengths: int32 `[rows]`: the length of each list.
        elements: The elements of all lists.
        values: One per row; the list of a None is null.
        kind: The type of the array.
    """
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    missing = np.array([value is None for value in values])
    mask = pa.array(missing) if missing.any() else None
    return pa.ListArray.from_arrays(pa.array(offsets), elements, kind, mask=mask)
