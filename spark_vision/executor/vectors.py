"""Builds Arrow arrays from vectors: they are copied into one buffer, without Python lists."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from spark_vision.errors import RowFailure, Status
from spark_vision.executor.outcomes import add_statuses

Outcome = np.ndarray | RowFailure

# Spark names the field of an array `element`; another name would cost a cast per batch.
VECTOR_TYPE = pa.list_(pa.field("element", pa.float32()))
TOKENS_TYPE = pa.list_(pa.field("element", VECTOR_TYPE))


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


def finite_rows(vectors: torch.Tensor) -> list[Outcome]:
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
    return _lists(lengths, pa.array(flat), values, VECTOR_TYPE)


def _token_lists(values: Sequence[np.ndarray | None], dimension: int) -> pa.Array:
    present = [value for value in values if value is not None]
    flat = np.concatenate(present) if present else np.empty((0, dimension), np.float32)
    offsets = np.arange(len(flat) + 1, dtype=np.int32) * dimension
    vectors = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat.reshape(-1)), VECTOR_TYPE)
    lengths = np.array([0 if value is None else len(value) for value in values], np.int32)
    return _lists(lengths, vectors, values, TOKENS_TYPE)


def _lists(
    lengths: np.ndarray, elements: pa.Array, values: Sequence[np.ndarray | None], kind: pa.DataType
) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    missing = np.array([value is None for value in values])
    mask = pa.array(missing) if missing.any() else None
    return pa.ListArray.from_arrays(pa.array(offsets), elements, kind, mask=mask)
