"""The pairs of similar vectors within blocks of candidates, from Arrow batches to Arrow batches."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spark_vision.search.batches import VECTOR, Floats, join_batches, to_matrix
from spark_vision.search.hyperplanes import Hyperplanes

DIGEST = "__spark_vision_digest"
CODES = "__spark_vision_codes"
BLOCK = "__spark_vision_block"
PART, LEFT, RIGHT = (f"__spark_vision_{name}" for name in ("part", "left", "right"))
FIRST, SECOND, SCORE = (f"__spark_vision_{name}" for name in ("first", "second", "score"))

_CODE_BITS = 32
_DIGEST_BYTES = 16
_TILE_ROWS = 256
_EXACT_ROWS = 4096
# What float32 may be wrong by, generously; closer to the threshold, float64 decides.
_ROUNDING = 1e-4
# Float64 gives a vector and its double a cosine of 1, but for the last digits.
_DECIMALS = 12

Places = npt.NDArray[np.intp]


def digest_vectors(batches: Iterable[pa.RecordBatch], dimension: int) -> Iterator[pa.RecordBatch]:
    """Turn the list column `VECTOR` into its float32 bytes, and add their `DIGEST`.

    Vectors without a direction are left out: null, of zeros, or with a number that is not finite.
    """
    for chunk in join_batches(batches):
        vectors = to_matrix(chunk[VECTOR], dimension, "others have")
        kept = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        rows = [row.tobytes() for row in vectors[kept]]
        digests = [blake2b(row, digest_size=_DIGEST_BYTES).digest() for row in rows]
        chunk = chunk.drop_columns([VECTOR]).filter(pa.array(kept))
        chunk = chunk.append_column(DIGEST, pa.array(digests, pa.binary()))
        yield from chunk.append_column(VECTOR, pa.array(rows, pa.binary())).to_batches()


def read_vectors(column: pa.Array | pa.ChunkedArray) -> Floats:
    """Return the vectors of a column of bytes, each of length 1."""
    units: Floats = _units_of(column).astype(np.float32)
    return units


def assign_blocks(
    batches: Iterable[pa.RecordBatch], planes: Hyperplanes, with_vectors: bool
) -> Iterator[pa.RecordBatch]:
    """Repeat each row for each table, with its `BLOCK` there and its `CODES` in all tables."""
    for batch in batches:
        if not batch.num_rows:
            continue
        codes = planes.encode(read_vectors(batch.column(VECTOR)))
        rows = batch.select([DIGEST, VECTOR]).append_column(
            CODES, pa.array([row.tobytes() for row in codes], pa.binary())
        )
        for table in range(planes.tables):
            blocks = pa.array(codes[:, table].astype(np.int64) + (table << _CODE_BITS))
            if with_vectors:
                yield rows.append_column(BLOCK, blocks)
            else:
                yield pa.RecordBatch.from_arrays([blocks], [BLOCK])


def find_pairs(batches: Iterable[pa.RecordBatch], threshold: float) -> Iterator[pa.RecordBatch]:
    """Find the pairs of each block, each in the first table that has it in one block.

    Args:
        batches: Rows of `assign_blocks`, ordered by `BLOCK`, `LEFT` and `RIGHT`: a large block
            comes in parts, of which each meets each.
        threshold: The least cosine similarity.

    Yields:
        `FIRST` and `SECOND`, the digests of a pair, and `SCORE`, its cosine similarity.
    """
    for block in _read_blocks(batches):
        digests, codes = block[DIGEST].combine_chunks(), _rows_of(block[CODES], np.uint32)
        table = block[BLOCK][0].as_py() >> _CODE_BITS
        for first, second, scores in _compare(block, threshold):
            is_new = np.ones(len(first), bool)
            for earlier in range(table):
                is_new &= codes[first, earlier] != codes[second, earlier]
            if is_new.any():
                yield pa.RecordBatch.from_arrays(
                    [
                        digests.take(pa.array(first[is_new])),
                        digests.take(pa.array(second[is_new])),
                        pa.array(scores[is_new]),
                    ],
                    [FIRST, SECOND, SCORE],
                )


def link_groups(batches: Iterable[pa.RecordBatch], threshold: float) -> Iterator[pa.RecordBatch]:
    """Find the connected vectors of each block: fewer links than rows, however many pairs.

    Args:
        batches: As in `find_pairs`.
        threshold: The least cosine similarity.

    Yields:
        `FIRST` and `SECOND`, the digests of a vector and of one that it is connected to.
    """
    for block in _read_blocks(batches):
        roots = np.arange(block.num_rows)
        for first, second, _ in _compare(block, threshold):
            roots = _join_roots(roots, first, second)
        linked = np.flatnonzero(roots != np.arange(len(roots)))
        if len(linked):
            digests = block[DIGEST].combine_chunks()
            yield pa.RecordBatch.from_arrays(
                [digests.take(pa.array(linked)), digests.take(pa.array(roots[linked]))],
                [FIRST, SECOND],
            )


def _read_blocks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield the rows of each block, or of two parts of one, unless there is only one row."""
    waiting: list[pa.RecordBatch] = []
    current = None
    for batch in batches:
        if not batch.num_rows:
            continue
        marks = np.stack([batch.column(name).to_numpy() for name in (BLOCK, LEFT, RIGHT)], axis=1)
        cuts = np.flatnonzero((marks[1:] != marks[:-1]).any(axis=1)) + 1
        for start, end in pairwise([0, *cuts.tolist(), len(marks)]):
            mark = marks[start].tolist()
            if mark != current:
                yield from _join(waiting)
                waiting, current = [], mark
            waiting.append(batch.slice(start, end - start))
    yield from _join(waiting)


def _join(waiting: list[pa.RecordBatch]) -> Iterator[pa.Table]:
    if sum(batch.num_rows for batch in waiting) > 1:
        yield pa.Table.from_batches(waiting)


def _compare(block: pa.Table, threshold: float) -> Iterator[tuple[Places, Places, Any]]:
    """Yield places of pairs and their cosines: of all rows, or of one part with the other."""
    units = read_vectors(block[VECTOR])
    parts, left = block[PART].to_numpy(), block[LEFT][0].as_py()
    is_one = left == block[RIGHT][0].as_py()
    rows = np.arange(len(units)) if is_one else np.flatnonzero(parts == left)
    others = rows if is_one else np.flatnonzero(parts != left)
    for start in range(0, len(rows), _TILE_ROWS):
        tile = rows[start : start + _TILE_ROWS]
        against = others[start:] if is_one else others
        cosines = units[tile] @ units[against].T
        above = cosines >= threshold - _ROUNDING
        if is_one:
            above &= np.arange(len(against)) > np.arange(len(tile))[:, None]
        at, other = np.nonzero(above)
        scores = cosines[at, other].astype(np.float64)
        first, second = tile[at], against[other]
        for close in _slices(np.flatnonzero(scores < threshold + _ROUNDING)):
            scores[close] = _exact_cosines(block[VECTOR], first[close], second[close])
        kept = scores >= threshold
        if kept.any():
            yield first[kept], second[kept], np.minimum(scores[kept], 1.0)


def _slices(places: Places) -> Iterator[Places]:
    for start in range(0, len(places), _EXACT_ROWS):
        yield places[start : start + _EXACT_ROWS]


def _exact_cosines(vectors: pa.ChunkedArray, first: Places, second: Places) -> Any:
    one, other = (_units_of(vectors.take(pa.array(places))) for places in (first, second))
    return np.einsum("ij,ij->i", one, other).round(_DECIMALS)


def _join_roots(roots: Places, first: Places, second: Places) -> Places:
    """Return the smallest place that each is connected to, by the roots so far and by pairs."""
    while True:
        lowest = np.minimum(roots[first], roots[second])
        joined = roots.copy()
        for ends in (first, second):
            np.minimum.at(joined, roots[ends], lowest)
        while (joined[joined] != joined).any():
            joined = joined[joined]
        if (joined == roots).all():
            return roots
        roots = joined


def _units_of(column: pa.Array | pa.ChunkedArray) -> Any:
    vectors = _rows_of(column, np.float32).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _rows_of(column: pa.Array | pa.ChunkedArray, dtype: Any) -> Any:
    rows = column.to_pylist()
    return np.frombuffer(b"".join(rows), dtype).reshape(len(rows), -1)
