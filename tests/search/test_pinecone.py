"""What is particular to Pinecone: the real client against a strict server that fails by order."""

import pickle
from contextlib import closing

import httpx
import numpy as np
import pyarrow as pa
import pytest

from pinecone_server import MAX_REQUEST_BYTES, serve_pinecone
from spark_vision.errors import IndexConnectionError, InvalidOptionError, VectorIndexError
from spark_vision.search.pinecone_index import PineconeIndex
from spark_vision.search.retries import RetryPolicy

DIMENSION = 16


def table_of(ids, *, dimension=DIMENSION, seed=0, **metadata):
    vectors = np.random.default_rng(seed).standard_normal((len(ids), dimension))
    flat = pa.array(vectors.astype(np.float32).ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, dimension)
    return pa.table({"id": ids, "vector": column} | metadata)


@pytest.fixture
def make():
    """Make indexes that are closed at the end."""
    made = []

    def new(*arguments, **options):
        made.append(PineconeIndex(*arguments, **options))
        return made[-1]

    yield new
    for each in made:
        each.close()


@pytest.fixture
def server():
    with serve_pinecone() as running:
        yield running


@pytest.fixture
def clock():
    return FakeTime()


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now = 0.0
        self.waits = []

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def unmade(server, clock):
    made = PineconeIndex(
        "photos",
        namespace="clip",
        api_key=server.api_key,
        control_host=server.url,
        retry=RetryPolicy(attempts=5, sleep=clock.sleep, clock=lambda: clock.now),
    )
    yield made
    made.close()


@pytest.fixture
def index(unmade):
    unmade.create(table_of(["a"]).schema, DIMENSION)
    return unmade


def sent(server, path):
    return [size for _, target, size in server.requests if path in target]


def test_an_index_is_serverless_and_of_one_dense_vector(server, index):
    body = server.indexes["photos"]["body"]
    assert body["deployment"] == {
        "deployment_type": "managed",
        "cloud": "aws",
        "region": "us-east-1",
    }
    assert body["schema"]["fields"] == {
        "_values": {"type": "dense_vector", "dimension": DIMENSION, "metric": "cosine"}
    }


def test_creating_waits_until_the_index_is_ready(server, unmade, clock):
    server.descriptions_until_ready = 4
    assert unmade.create(table_of(["a"]).schema, DIMENSION) is True
    assert clock.waits == [1.0, 1.0, 1.0]
    assert unmade.upsert(table_of(["a"])).written == 1


def test_an_index_that_never_becomes_ready_is_given_up(server, unmade, clock):
    server.descriptions_until_ready = 10**9
    with pytest.raises(IndexConnectionError, match="not ready after 300 seconds"):
        unmade.create(table_of(["a"]).schema, DIMENSION)
    assert clock.now == 300


def test_an_index_whose_creation_was_not_answered_is_made_once(server, unmade):
    server.fail_next(404, "lose", path="/indexes")
    assert unmade.create(table_of(["a"]).schema, DIMENSION) is True
    assert unmade.upsert(table_of(["a"])).written == 1
    assert len(server.indexes) == 1


@pytest.mark.parametrize("order", [429, 500, 503, "drop", "lose"])
def test_what_may_pass_is_tried_again(server, index, clock, order):
    server.fail_next(order, order, path="upsert")
    assert index.upsert(table_of(["a", "b"])).written == 2
    assert index.count() == 2
    # The client itself tries nothing again.
    assert len(sent(server, "upsert")) == 3
    assert len(clock.waits) == 2
    assert all(0 <= wait <= 1 for wait in clock.waits)


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_kept(server, index, clock, status):
    server.fail_next((status, {"Retry-After": "17"}), path="query")
    index.search(np.ones((1, DIMENSION)), 3)
    [wait] = clock.waits
    assert 17 <= wait <= 18


def test_tries_are_bounded_by_number_and_by_time(server, index, clock):
    server.fail_next(*[500] * 10, path="upsert")
    with pytest.raises(IndexConnectionError, match=r"photos/clip: .*by order.*tried 5 times"):
        index.upsert(table_of(["a"]))
    assert len(sent(server, "upsert")) == 5
    server.orders.clear()
    clock.waits.clear()
    server.fail_next((429, {"Retry-After": "100000"}), path="upsert")
    with pytest.raises(IndexConnectionError, match="tried once"):
        index.upsert(table_of(["a"]))
    assert clock.waits == []


def test_requests_stay_below_the_limits(server, index, make):
    assert index.upsert(table_of([f"photo-{n}" for n in range(2500)])).written == 2500
    assert len(sent(server, "upsert")) == 3
    wide = make("wide", api_key=server.api_key, control_host=server.url)
    table = table_of([f"photo-{n}" for n in range(300)], dimension=768, text=["图" * 500] * 300)
    wide.create(table.schema, 768)
    server.requests.clear()
    assert wide.upsert(table).written == 300
    sizes = sent(server, "upsert")
    assert max(sizes) <= MAX_REQUEST_BYTES
    # They are full, too.
    assert min(sizes[:-1]) > 0.95 * 2_000_000


def test_many_ids_are_fetched_and_deleted_in_parts(server, index):
    ids = [f"{'long-' * 90}{n}" for n in range(1200)]
    index.upsert(table_of(ids))
    assert len(index.fetch(ids)) == 1200
    index.delete(ids[:1100])
    assert len(sent(server, "delete")) == 2
    assert index.count() == 100


def test_a_record_that_only_the_service_refuses_does_not_stop_the_others(server, index):
    ids = [f"photo-{n}" for n in range(300)]
    server.poison = {"photo-7": "the service does not like it", "photo-256": "nor this one"}
    result = index.upsert(table_of(ids))
    assert result.written == index.count() == 298
    reasons = {each.id: each.reason for each in result.rejected}
    assert set(reasons) == {"photo-7", "photo-256"}
    assert "does not like it" in reasons["photo-7"]


def test_a_service_that_refuses_everything_ends_the_upsert(server, index):
    ids = [f"photo-{n}" for n in range(1000)]
    server.poison = dict.fromkeys(ids, "quota is used up")
    with pytest.raises(VectorIndexError, match=r"100 records were refused.*quota is used up"):
        index.upsert(table_of(ids))
    assert len(sent(server, "upsert")) < 250


def test_ids_are_ascii_and_metadata_not_null(server, index):
    table = table_of(["图", "nul\0", "ok", "null"], text=["a", "b", "c", None])
    result = index.upsert(table)
    assert {each.id for each in result.rejected} == {"图", "nul\0", "null"}
    assert index.count() == 1
    with pytest.raises(VectorIndexError, match=r"\$text"):
        index.create(table_of(["a"], **{"$text": ["x"]}).schema, DIMENSION)


def test_properties_are_in_nobodys_results_and_counts(server, index, make):
    index.upsert(table_of(["a", "b"]))
    index.write_properties({"version": "3"})
    assert index.count() == 2
    assert {hit.id for hit in index.search(np.ones((1, DIMENSION)), 10)[0]} == {"a", "b"}
    other = make("photos", "vit", api_key=server.api_key, control_host=server.url)
    assert other.describe().properties == {}
    other.upsert(table_of(["c"]))
    other.write_properties({"version": "9"})
    assert index.describe().properties == {"version": "3"}
    other.drop()
    assert (index.count(), index.describe().properties) == (2, {"version": "3"})


def test_properties_are_known_while_the_count_of_records_is_late(server, index):
    index.upsert(table_of(["a", "b"]))
    index.write_properties({"version": "3"})
    server.counts_nothing = True
    assert (index.describe().rows, index.describe().properties) == (0, {"version": "3"})


def test_the_default_namespace_is_counted(server, make):
    index = make("photos", api_key=server.api_key, control_host=server.url)
    index.create(table_of(["a"]).schema, DIMENSION)
    index.upsert(table_of(["a", "b"]))
    index.write_properties({"version": "1"})
    assert (index.count(), index.describe().properties) == (2, {"version": "1"})


def test_an_index_by_its_host_needs_no_control_plane(server, index, make):
    index.upsert(table_of(["a"]))
    server.requests.clear()
    direct = make("photos", "clip", api_key=server.api_key, host=f"{server.url}/hosts/photos")
    assert direct.create(table_of(["a"]).schema, DIMENSION) is False
    assert direct.describe().rows == 1
    assert sent(server, "/indexes") == []


def test_an_index_that_somebody_else_made_is_refused(server, unmade):
    unmade.create(table_of(["a"]).schema, DIMENSION)
    server.indexes["photos"]["body"]["schema"]["fields"]["words"] = {"type": "sparse_vector"}
    with pytest.raises(VectorIndexError, match=r"made by somebody else.*SparseVectorField"):
        unmade.create(table_of(["a"]).schema, DIMENSION)


def test_a_wrong_key_is_refused_without_being_shown(server, caplog, make):
    caplog.set_level(0)
    index = make("photos", api_key="secret-word", control_host=server.url)
    with pytest.raises(VectorIndexError, match="PINECONE_API_KEY") as caught:
        index.describe()
    assert "secret-word" not in f"{caught.value} {index!r} {caplog.text}"
    assert len(server.requests) == 1


def test_a_key_that_is_no_key_is_refused_without_being_shown(server, make):
    index = make("photos", api_key="secret-word\n", control_host=server.url)
    with pytest.raises(VectorIndexError, match="not a valid HTTP header") as caught:
        index.describe()
    assert "secret-word" not in str(caught.value)


def test_the_key_comes_from_the_environment(server, monkeypatch, make):
    monkeypatch.delenv("PINECONE_API_KEY", raising=False)
    index = make("photos", control_host=server.url)
    with pytest.raises(VectorIndexError, match="PINECONE_API_KEY"):
        index.describe()
    monkeypatch.setenv("PINECONE_API_KEY", server.api_key)
    assert index.describe() is None
    assert server.api_key.encode() not in pickle.dumps(index)
    with closing(index.with_credentials()) as carried:
        monkeypatch.delenv("PINECONE_API_KEY")
        assert carried.describe() is None
        assert server.api_key not in repr(carried)


@pytest.mark.parametrize("where", ["control_host", "host"])
def test_an_address_where_nobody_answers_is_named_without_the_key(clock, where, make):
    retry = RetryPolicy(sleep=clock.sleep, clock=lambda: clock.now)
    index = make("photos", api_key="secret-word", retry=retry, **{where: "http://127.0.0.1:9"})
    with pytest.raises(IndexConnectionError, match=r"127\.0\.0\.1:9.*tried 3 times") as caught:
        index.describe()
    assert "secret-word" not in str(caught.value)
    assert clock.now < 3


@pytest.mark.parametrize(
    ("record", "status"),
    [
        ({"id": "a", "values": [0.0] * DIMENSION}, 400),
        ({"id": 7, "values": [1.0] * DIMENSION}, 400),
        ({"id": "a" * 513, "values": [1.0] * DIMENSION}, 400),
        ({"id": "图", "values": [1.0] * DIMENSION}, 400),
        ({"id": "a", "values": [1.0] * 3}, 400),
        ({"id": "a", "values": [1.0] * DIMENSION, "metadata": {"text": "x" * 41_000}}, 400),
        ({"id": "a", "values": [1.0] * DIMENSION, "metadata": {"text": None}}, 400),
        ({"id": "a", "values": [1.0] * DIMENSION, "metadata": {"sizes": [1, 2]}}, 400),
        ({"id": "a", "values": [1.0] * DIMENSION, "sparse": "x" * 2_100_000}, 413),
        ({"id": "a", "values": [1.0] * DIMENSION}, 200),
    ],
)
def test_the_server_of_these_tests_is_as_strict_as_the_service(server, index, record, status):
    answer = httpx.post(
        f"{server.url}/hosts/photos/vectors/upsert",
        json={"vectors": [record], "namespace": "clip"},
        headers={"Api-Key": server.api_key, "X-Pinecone-Api-Version": "2026-07"},
    )
    assert answer.status_code == status
    assert index.count() == (status == 200)


def test_options_that_cannot_work_are_refused_at_once():
    with pytest.raises(InvalidOptionError, match="allowed: cosine, dotproduct"):
        PineconeIndex("photos", metric="euclidean")
    with pytest.raises(InvalidOptionError, match="pass api_key instead"):
        PineconeIndex("photos", host="https://user:word@photos.svc.pinecone.io")
