"""The nearest rows of a stream of Arrow batches, for many queries at once, in bounded memory."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spark_vision.search.batches import VECTOR, Floats, join_batches, to_matrix

QUERY = "__spark_vision_query"
SCORE = "__spark_vision_score"


def find_nearest(
    batches: Iterable[pa.RecordBatch], queries: Floats, k: int, keys: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Find the rows whose vectors have the highest cosine similarity to each query.

    Args:
        batches: Rows with the list column `VECTOR`; the other columns are passed through. Rows
            whose vector is null are left out.
        queries: float32, (queries, dimension), each of length 1.
        k: The maximum of rows for each query.
        keys: Columns that decide between equal scores; the smallest first.

    Yields:
        The rows with `QUERY`, the row of `queries`, and `SCORE`, instead of `VECTOR`: at most `k`
        for each query, in no order.

    Raises:
        ValueError: A vector has another dimension than the queries.
    """
    best = _Best(queries, k, keys)
    for chunk in join_batches(batches):
        best.add(chunk)
    if best.rows is not None:
        yield from best.rows.to_batches()


class _Best:
    """The best rows so far."""

    def __init__(self, queries: Floats, k: int, keys: Sequence[str]) -> None:
        self._queries, self._k, self._keys = queries, k, keys
        # The lowest score that each query's best rows have, once there are k of them.
        self._lowest = np.full(len(queries), -np.inf, np.float32)
        self.rows: pa.Table | None = None

    def add(self, chunk: pa.Table) -> None:
        vectors = to_matrix(chunk[VECTOR], self._queries.shape[1], "the queries have")
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        # A zero vector has no direction; a NaN is never near.
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = (self._queries @ vectors.T) / lengths
        scores[~np.isfinite(scores)] = -np.inf
        query_places, row_places = self._candidates(chunk, scores)
        if not len(query_places):
            return
        found = chunk.drop_columns([VECTOR]).take(pa.array(row_places))
        found = found.append_column(QUERY, pa.array(query_places, pa.int32()))
        found = found.append_column(SCORE, pa.array(scores[query_places, row_places], pa.float32()))
        self._keep_best(found if self.rows is None else pa.concat_tables([self.rows, found]))

    def _candidates(
        self, chunk: pa.Table, scores: Floats
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Return the queries and rows of the scores that may be among the best."""
        k, row_count = self._k, scores.shape[1]
        floor = self._lowest
        above = scores > floor[:, None]
        crowded = np.flatnonzero(np.count_nonzero(above, axis=1) >= k)
        if len(crowded):
            # The chunk's own k-th best score is the higher floor there.
            floor = floor.copy()
            floor[crowded] = np.partition(scores[crowded], row_count - k, axis=1)[:, row_count - k]
            above[crowded] = scores[crowded] > floor[crowded, None]
        queries, rows = np.nonzero(above)
        ties = (scores == floor[:, None]) & np.isfinite(floor)[:, None]
        if ties.any():
            # Many rows may have one score, as copies of a picture do: the first k by key suffice.
            by_key = chunk.select(self._keys)
            ascending = [(key, "ascending") for key in self._keys]
            order = pc.sort_indices(by_key, ascending).to_numpy().astype(np.intp)
            tied, places = np.nonzero(ties[:, order])
            starts = np.searchsorted(tied, tied)
            is_first = np.arange(len(tied)) - starts < k
            queries = np.concatenate([queries, tied[is_first]])
            rows = np.concatenate([rows, order[places[is_first]]])
        return queries, rows

    def _keep_best(self, rows: pa.Table) -> None:
        order = [(QUERY, "ascending"), (SCORE, "descending")]
        order += [(key, "ascending") for key in self._keys]
        rows = rows.take(pc.sort_indices(rows, order))
        queries = rows[QUERY].to_numpy()
        starts = np.searchsorted(queries, queries)
        rows = rows.filter(pa.array(np.arange(len(queries)) - starts < self._k))
        queries, scores = rows[QUERY].to_numpy(), rows[SCORE].to_numpy()
        counts = np.bincount(queries, minlength=len(self._lowest))
        is_full = counts == self._k
        self._lowest[is_full] = scores[np.cumsum(counts)[is_full] - 1]
        self.rows = rows.combine_chunks()
