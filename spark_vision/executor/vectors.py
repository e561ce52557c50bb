"""From outcomes to an Arrow array: vectors go into one buffer, never through Python lists."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from spark_vision.errors import RowFailure, Status
from spark_vision.executor.outcomes import add_statuses

Outcome = np.ndarray | RowFailure

# Spark names the field of an array `element`; any other name would cost it a cast per batch.
VECTOR_TYPE = pa.list_(pa.field("element", pa.float32()))
TOKENS_TYPE = pa.list_(pa.field("element", VECTOR_TYPE))


def build_array(
    outcomes: Sequence[Outcome], dimension: int, on_error: str, *, tokens: bool, with_status: bool
) -> pa.Array:
    """Build the value that goes back to Spark for some rows.

    Args:
        outcomes: A float32 `[dimension]` vector per row (`[tokens, dimension]` with `tokens`), or
            why the row failed.
        dimension: The length of every vector.
        on_error: `zero` puts zeros in the place of a failed row, else there is null.
        tokens: Whether rows hold token vectors, given as arrays of arrays.
        with_status: Whether to give structs of embedding, status and error.

    Returns:
        As many elements as outcomes: list<float>, list<list<float>> or struct.
    """
    zero = np.zeros(dimension, np.float32) if on_error == "zero" else None
    values = [zero if isinstance(row, RowFailure) else row for row in outcomes]
    embeddings = _token_lists(values, dimension) if tokens else _vector_lists(values, dimension)
    if not with_status:
        return embeddings
    return add_statuses("embedding", embeddings, outcomes)


def finite_rows(vectors: torch.Tensor) -> list[Outcome]:
    """Take a batch of results apart; a row with NaN or infinity has failed.

    Args:
        vectors: float32 `[rows, ...]` on the CPU.
    """
    rows = vectors.numpy()
    finite = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
    return [
        row if is_finite else RowFailure(Status.NONFINITE, "the model gave NaN or infinity")
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
