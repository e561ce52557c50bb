"""The nearest rows of a stream of batches are those of a sort of all scores."""

import numpy as np
import pyarrow as pa
import pytest

from spark_vision.search import batches as batches_of_vectors
from spark_vision.search.batches import VECTOR
from spark_vision.search.nearest import QUERY, SCORE, find_nearest


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def batches_of(vectors, keys, size, kind=None):
    """Rows with a key, a name and a vector, in batches."""
    kind = kind or pa.list_(pa.float32())
    for start in range(0, len(keys), size):
        part = slice(start, start + size)
        arrays = [
            pa.array(keys[part]),
            pa.array([f"name {key}" for key in keys[part]]),
            pa.array([None if each is None else list(each) for each in vectors[part]], kind),
        ]
        yield pa.RecordBatch.from_arrays(arrays, names=["id", "name", VECTOR])


def found(batches, queries, k, keys=("id",)):
    """The ids and scores of each query's rows, best first."""
    rows = [row for batch in find_nearest(batches, queries, k, keys) for row in batch.to_pylist()]
    assert all(row["name"] == f"name {row['id']}" for row in rows)
    ordered = sorted(rows, key=lambda row: (-row[SCORE], row["id"]))
    return [
        [(row["id"], row[SCORE]) for row in ordered if row[QUERY] == place]
        for place in range(len(queries))
    ]


@pytest.fixture(params=[50, 8192])
def chunk_rows(request, monkeypatch):
    """Chunks of many batches, and of less than one query's rows."""
    monkeypatch.setattr(batches_of_vectors, "_CHUNK_ROWS", request.param)


@pytest.mark.usefixtures("chunk_rows")
@pytest.mark.parametrize("k", [1, 7, 300])
def test_they_are_those_of_a_sort_of_all_scores(k):
    random = np.random.default_rng(1)
    vectors = random.standard_normal((2000, 24), np.float32) * random.uniform(0.1, 9, (2000, 1))
    queries = unit(random.standard_normal((11, 24), np.float32))
    keys = random.permutation(2000).tolist()
    scores = queries @ unit(vectors).T
    got = found(batches_of(vectors.astype(np.float32), keys, 37), queries, k)
    for place, rows in enumerate(got):
        best = np.argsort(-scores[place])[:k]
        assert [key for key, _ in rows] == [keys[row] for row in best]
        np.testing.assert_allclose([score for _, score in rows], scores[place][best], atol=1e-6)


@pytest.mark.usefixtures("chunk_rows")
def test_equal_scores_are_ordered_by_key_in_whatever_order_they_come():
    random = np.random.default_rng(2)
    copies = np.tile(np.float32([[3, 4]]), (500, 1))
    keys = random.permutation(500).tolist()
    queries = np.float32([[0.6, 0.8], [1, 0]])
    for rows in found(batches_of(copies, keys, 20), queries, 5):
        assert [key for key, _ in rows] == [0, 1, 2, 3, 4]


def test_copies_do_not_hide_a_better_row():
    vectors = np.tile(np.float32([[1, 1]]), (300, 1))
    vectors[299] = [1, 0.9]
    ((best, second),) = found(batches_of(vectors, list(range(300)), 64), np.float32([[1, 0]]), 2)
    assert (best[0], second[0]) == (299, 0)


def test_rows_without_a_direction_are_never_near():
    vectors = [None, [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [-1.0, 0.0]]
    (rows,) = found(batches_of(vectors, list(range(5)), 2), np.float32([[1, 0]]), 3)
    assert rows == [(4, -1.0)]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float16())]
)
def test_other_lists_of_numbers_are_read(kind):
    vectors = np.float16([[1, 0], [0, 1]])
    (rows,) = found(batches_of(vectors, [0, 1], 2, kind), np.float32([[0, 1]]), 1)
    assert rows == [(1, 1.0)]


def test_no_rows_give_no_rows():
    assert list(find_nearest([], np.float32([[1, 0]]), 3, ["id"])) == []


@pytest.mark.parametrize("other", [[1.0], [1.0, 2.0, 3.0], []])
def test_a_vector_of_another_length_is_refused(other):
    with pytest.raises(ValueError, match=f"has {len(other)} numbers, and the queries have 2"):
        found(batches_of([[1.0, 0.0], other], [0, 1], 2), np.float32([[1, 0]]), 1)
