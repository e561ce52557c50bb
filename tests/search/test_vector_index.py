"""What every index does, whichever database holds it; NumPy says what is right."""

import itertools
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from memory_index import MemoryIndex
from milvus_service import serve_milvus
from pinecone_server import serve_pinecone
from spark_vision.errors import VectorIndexError
from spark_vision.search.milvus import MilvusIndex
from spark_vision.search.pinecone_index import PineconeIndex

DIMENSION = 16
TOKEN = "root:token-of-the-test"
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    with serve_milvus(tmp_path_factory.mktemp("milvus")) as milvus, serve_pinecone() as pinecone:
        yield milvus, pinecone


@pytest.fixture(params=["memory", "milvus_lite", "milvus_dynamic", "milvus_service", "pinecone"])
def index(request, tmp_path, services):
    """An index of each kind by cosine that does not exist yet; all lists are probed."""
    milvus, pinecone = services
    name = f"i{next(NUMBERS)}"
    options = {"metric": "COSINE", "search_params": {"nprobe": 1024}}
    if request.param == "memory":
        made = MemoryIndex()
    elif request.param == "milvus_lite":
        made = MilvusIndex(str(tmp_path / "vectors.db"), name, **options)
    elif request.param == "milvus_dynamic":
        options |= {"dynamic_metadata": True, "id_field": "key", "vector_field": "embedding"}
        made = MilvusIndex(str(tmp_path / "vectors.db"), name, **options)
    elif request.param == "milvus_service":
        made = MilvusIndex(milvus.url, name, token=TOKEN, **options)
    else:
        made = PineconeIndex(
            name, namespace="clip", api_key=pinecone.api_key, control_host=pinecone.url
        )
    yield made
    made.close()


def vectors_of(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)


def table_of(ids, vectors, *, fixed=True, **metadata):
    flat = pa.array(np.ascontiguousarray(vectors).ravel(), pa.float32())
    column = pa.FixedSizeListArray.from_arrays(flat, DIMENSION)
    if not fixed:
        column = column.cast(pa.list_(pa.float32()))
    return pa.table({"id": ids, "vector": column} | metadata)


def names(count):
    return [f"photo-{number}" for number in range(count)]


def filled(index, count=20, **metadata):
    table = table_of(names(count), vectors_of(count), **metadata)
    index.create(table.schema, DIMENSION)
    assert index.upsert(table).written == count
    return table


def test_create_makes_the_index_once(index):
    schema = table_of(["a"], vectors_of(1), size=[1]).schema
    assert index.describe() is None
    assert index.create(schema, DIMENSION) is True
    assert index.create(schema, DIMENSION) is False
    found = index.describe()
    assert (found.dimension, found.metric.lower(), found.rows) == (DIMENSION, "cosine", 0)
    assert found.properties == {}


def test_a_search_agrees_with_numpy(index):
    stored, queries = vectors_of(2000), vectors_of(20, seed=1)
    table = table_of(names(2000), stored, size=list(range(2000)))
    index.create(table.schema, DIMENSION)
    assert index.upsert(table).written == 2000
    assert index.count() == 2000
    oracle = MemoryIndex()
    oracle.create(table.schema, DIMENSION)
    oracle.upsert(table)
    expected = oracle.search(queries, 10, metadata=["size"])
    found = index.search(queries, 10, metadata=["size"])
    shared = [
        len({hit.id for hit in ours} & {hit.id for hit in theirs})
        for ours, theirs in zip(found, expected, strict=True)
    ]
    assert sum(shared) / 200 >= 0.99
    for ours, theirs in zip(found, expected, strict=True):
        scores = [hit.score for hit in ours]
        assert scores == sorted(scores, reverse=True)
        assert np.allclose(scores, [hit.score for hit in theirs], atol=1e-5)
        assert all(hit.id == f"photo-{int(hit.metadata['size'])}" for hit in ours)


def test_vectors_come_back_bit_for_bit(index):
    table = filled(index, 150)
    stored = vectors_of(150)
    found = index.fetch([*names(150), "unknown"])
    assert sorted(found) == sorted(names(150))
    assert all(np.array_equal(found[f"photo-{n}"], stored[n]) for n in range(150))
    assert table.num_rows == index.count()


def test_an_upsert_replaces_and_of_equal_ids_the_last_counts(index):
    filled(index)
    new = vectors_of(3, seed=5)
    assert index.upsert(table_of(["photo-1", "photo-1", "new"], new)).written == 2
    assert index.count() == 21
    assert np.array_equal(index.fetch(["photo-1"])["photo-1"], new[1])


def test_deleting_ignores_ids_that_are_not_there(index):
    filled(index)
    index.delete(["photo-3", "unknown", "photo-4"])
    index.delete([])
    assert index.count() == 18
    hits = index.search(vectors_of(20)[3:4], 18)[0]
    assert {"photo-3", "photo-4"}.isdisjoint(hit.id for hit in hits)


def test_a_filter_keeps_what_has_the_values(index):
    kinds = [f'"{n % 3}" 图' for n in range(20)]
    filled(index, kind=kinds, tags=[["a", "b"]] * 20, weight=[0.5] * 20, sharp=[True] * 20)
    where = {"kind": ['"0" 图', '"1" 图'], "sharp": True}
    hits = index.search(vectors_of(1), 20, metadata=["kind", "tags", "weight"], where=where)[0]
    assert sorted(hit.id for hit in hits) == sorted(f"photo-{n}" for n in range(20) if n % 3 < 2)
    assert hits[0].metadata == {"kind": hits[0].metadata["kind"], "tags": ["a", "b"], "weight": 0.5}


def test_properties_are_replaced_and_go_with_the_index(index):
    filled(index)
    index.write_properties({"table": "photos", "version": "3"})
    index.write_properties({"version": "4", "text": '"quoted" 图'})
    assert index.describe().properties == {"version": "4", "text": '"quoted" 图'}
    assert index.count() == 20
    index.drop()
    index.drop()
    left = index.describe()
    assert left is None or (left.rows, left.properties) == (0, {})


def test_a_record_that_cannot_be_held_does_not_stop_the_others(index):
    vectors = vectors_of(8)
    vectors[1] = 0
    vectors[2, 3] = np.nan
    vectors[3, 0] = np.inf
    long_id = "x" * (index.target.id_bytes + 1)
    ids = ["good", "zero", "nan", "infinite", long_id, "", None, "fine"]
    table = table_of(ids, vectors, fixed=False)
    odd = pa.array([vectors[0][:3].tolist(), None], pa.list_(pa.float32()))
    table = pa.concat_tables([table, pa.table({"id": ["short", "none"], "vector": odd})])
    index.create(table.schema, DIMENSION)
    result = index.upsert(table)
    assert result.written == index.count() == 2
    reasons = {each.id: each.reason for each in result.rejected}
    assert set(reasons) == {"zero", "nan", "infinite", long_id, "", None, "short", "none"}
    assert "zeros" in reasons["zero"]
    assert "NaN" in reasons["nan"]
    assert "bytes" in reasons[long_id]
    assert f"{DIMENSION} numbers" in reasons["short"]


def test_ids_are_found_and_deleted_whatever_is_in_them(index):
    odd = ["women's.jpg", r"C:\new\1.jpg", 'say "cheese"', "a'] or id not in ['b", "two\nlines"]
    odd += [] if index.target.ascii_ids else ["図.jpg"]
    ids = [*odd, "plain", "last"]
    index.create(table_of(ids, vectors_of(len(ids))).schema, DIMENSION)
    assert index.upsert(table_of(ids, vectors_of(len(ids)))).written == len(ids)
    found = index.fetch(ids)
    for id, vector in zip(ids, vectors_of(len(ids)), strict=True):
        np.testing.assert_allclose(found[id], vector, rtol=1e-6)
    for count, id in enumerate(odd, start=1):
        index.delete([id])
        assert set(index.fetch(ids)) == set(ids[count:])
        assert index.count() == len(ids) - count


def test_metadata_beyond_the_limit_are_one_records_matter(index):
    big = "图" * index.target.metadata_bytes
    table = table_of(["small", "big"], vectors_of(2), text=["a", big])
    index.create(table.schema, DIMENSION)
    result = index.upsert(table)
    assert [each.id for each in result.rejected] == ["big"]
    assert list(index.fetch(["small", "big"])) == ["small"]


def test_no_records_are_no_error(index):
    table = table_of(names(3), vectors_of(3), fixed=False)
    index.create(table.schema, DIMENSION)
    assert index.upsert(table.slice(0, 0)).written == 0
    assert index.search(vectors_of(2), 5) == [[], []]
    assert index.fetch([]) == {}


def test_batches_and_lists_of_any_length_are_records_too(index):
    table = table_of(names(5), vectors_of(5), fixed=False)
    index.create(table.schema, DIMENSION)
    assert index.upsert(table.slice(0, 2).to_batches()[0]).written == 2
    assert index.upsert(table.slice(2)).written == 3
    assert index.count() == 5


def test_whole_numbers_are_ids(index):
    table = table_of(pa.array(range(10), pa.int32()), vectors_of(10))
    index.create(table.schema, DIMENSION)
    index.upsert(table)
    as_given = str if index.target.text_ids else int
    assert index.search(vectors_of(10)[7:8], 1)[0][0].id == as_given(7)
    index.delete([7, 8])
    assert index.fetch([7, 9]).keys() == {as_given(9)}


NOT_SUITABLE = [
    (lambda t: t.rename_columns(["key", "vector"]), "column 'id'"),
    (lambda t: t.append_column("photo", pa.array([b"x"] * t.num_rows)), "photo"),
    (lambda t: t.set_column(0, "id", pa.array([0.5] * t.num_rows)), "double"),
    (lambda t: t.set_column(1, "vector", pa.array([[1.0]] * t.num_rows)), "float32"),
    (
        lambda t: t.set_column(
            1, "vector", pa.array([[1.0] * 4] * t.num_rows, pa.list_(pa.float32(), 4))
        ),
        "4 numbers",
    ),
]


def test_records_that_do_not_suit_change_nothing(index):
    table = filled(index)
    for change, message in NOT_SUITABLE:
        with pytest.raises(VectorIndexError, match=message):
            index.upsert(change(table_of(names(30), vectors_of(30))))
        with pytest.raises(VectorIndexError, match=message):
            index.create(change(table).schema, DIMENSION)
    assert index.count() == 20


def test_another_dimension_than_the_index_has_changes_nothing(index):
    schema = filled(index).schema.set(1, pa.field("vector", pa.list_(pa.float32())))
    with pytest.raises(VectorIndexError, match=r"16 numbers, and these have 8.*use another index"):
        index.create(schema, 8)
    assert index.describe().dimension == DIMENSION
    assert index.count() == 20


def test_another_metric_than_the_index_has_is_refused(index):
    schema = filled(index).schema
    if isinstance(index, MemoryIndex):
        other, index.metric = index, "ip"
        index.describe = lambda: replace(type(index).describe(index), metric="cosine")
    else:
        other = replace(index, metric="dotproduct" if index.target.text_ids else "IP")
    with pytest.raises(VectorIndexError, match=r"(?i)has the metric cosine"):
        other.create(schema, DIMENSION)


NOT_ANSWERABLE = [
    (np.ones((1, DIMENSION)), 0, "k is 0"),
    (np.ones((1, DIMENSION)), -1, "k is -1"),
    (np.ones((1, DIMENSION)), 20_000, "k is 20000"),
    (np.ones((1, 3)), 5, "shape"),
    (np.ones(DIMENSION), 5, "shape"),
    (np.zeros((1, DIMENSION)), 5, "zeros"),
    (np.full((1, DIMENSION), np.nan), 5, "NaN"),
]


def test_a_query_that_cannot_be_answered_says_why(index):
    filled(index)
    for queries, k, message in NOT_ANSWERABLE:
        with pytest.raises(VectorIndexError, match=message):
            index.search(queries, k)


def test_an_index_that_was_not_made_is_named(index):
    for call in (
        lambda: index.upsert(table_of(["a"], vectors_of(1))),
        lambda: index.search(vectors_of(1), 3),
    ):
        with pytest.raises(VectorIndexError, match="call create first"):
            call()


def test_an_index_travels_without_its_connection_and_its_key(index):
    if isinstance(index, MemoryIndex):
        pytest.skip("it lives in this process")
    filled(index)
    again = pickle.loads(pickle.dumps(index))
    assert again.count() == 20
    assert again == index
    again.close()
    assert "of-the-test" not in repr(index)
