"""Arrow batches of vectors as matrices of some thousand rows."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

VECTOR = "__spark_vision_vector"

# One matrix product is cheap per row from some thousand rows on.
_CHUNK_ROWS = 8192
_CHUNK_BYTES = 256_000_000

Floats = npt.NDArray[np.float32]


def join_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Join batches to some thousand rows, without rows that have no vector."""
    waiting: list[pa.RecordBatch] = []
    row_count = byte_count = 0
    for batch in batches:
        batch = batch.filter(pc.is_valid(batch.column(VECTOR)))
        if not batch.num_rows:
            continue
        waiting.append(batch)
        row_count += batch.num_rows
        byte_count += batch.nbytes
        if row_count >= _CHUNK_ROWS or byte_count >= _CHUNK_BYTES:
            yield pa.Table.from_batches(waiting)
            waiting, row_count, byte_count = [], 0, 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def to_matrix(vectors: pa.ChunkedArray, dimension: int, expected: str) -> Floats:
    """Return a list column as a matrix of float32, (rows, dimension).

    Args:
        vectors: The column, without nulls.
        dimension: The length of each vector.
        expected: What has that length, for the message.

    Raises:
        ValueError: A vector has another length.
    """
    column = vectors.combine_chunks()
    shortest, longest = pc.min_max(pc.list_value_length(column)).as_py().values()
    if shortest != dimension or longest != dimension:
        other = shortest if shortest != dimension else longest
        raise ValueError(
            f"a vector of the column has {other} numbers, and {expected} {dimension}: they are of "
            "different models"
        )
    numbers = column.flatten().to_numpy(zero_copy_only=False)
    matrix: Floats = numbers.astype(np.float32, copy=False).reshape(-1, dimension)
    return matrix
