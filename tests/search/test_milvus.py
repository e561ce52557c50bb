"""What is particular to Milvus: kinds of index, Lite's file, failing services, old collections."""

import pickle
import signal
import subprocess
import sys
from contextlib import closing

import numpy as np
import pyarrow as pa
import pytest

from memory_index import MemoryIndex
from milvus_service import serve_milvus
from spark_vision.errors import IndexConnectionError, InvalidOptionError, VectorIndexError
from spark_vision.search.milvus import MilvusIndex
from spark_vision.search.retries import RetryPolicy

DIMENSION = 16
TOKEN = "root:token-of-the-test"


def table_of(ids, *, seed=0, **metadata):
    vectors = np.random.default_rng(seed).standard_normal((len(ids), DIMENSION))
    column = pa.array(vectors.astype(np.float32).tolist(), pa.list_(pa.float32()))
    return pa.table({"id": ids, "vector": column} | metadata)


def opened(index, method, *arguments, **options):
    """Do with the client what the package does not offer."""
    from pymilvus import MilvusClient

    client = MilvusClient(index.uri, token=index.token or "")
    try:
        return getattr(client, method)(*arguments, **options)
    finally:
        client.close()


def restart(index):
    """End Milvus Lite, as the end of its process does: it seals and indexes what was written."""
    from milvus_lite.server_manager import server_manager_instance

    index.close()
    server_manager_instance.release_server(index.uri)


@pytest.fixture
def lite(tmp_path):
    made = MilvusIndex(str(tmp_path / "photos.db"), "photos")
    yield made
    made.close()


@pytest.fixture
def service(tmp_path):
    with serve_milvus(tmp_path / "service") as running:
        yield running


@pytest.fixture
def make():
    """Make indexes that are closed at the end."""
    made = []

    def new(*arguments, **options):
        made.append(MilvusIndex(*arguments, **options))
        return made[-1]

    yield new
    for each in made:
        each.close()


@pytest.fixture
def waits():
    return []


@pytest.fixture
def served(service, waits):
    made = MilvusIndex(
        service.url, "photos", token=TOKEN, retry=RetryPolicy(attempts=4, sleep=waits.append)
    )
    made.create(table_of(["a"]).schema, DIMENSION)
    yield made
    made.close()


@pytest.mark.parametrize("metric", ["IP", "COSINE"])
@pytest.mark.parametrize(
    ("index_type", "everything"),
    [("IVF_FLAT", {"nprobe": 1024}), ("HNSW", {"ef": 2000}), ("FLAT", None)],
)
def test_a_built_index_agrees_with_numpy(tmp_path, index_type, everything, metric, make):
    table = table_of([f"photo-{n}" for n in range(2000)])
    index = make(
        str(tmp_path / "photos.db"),
        "photos",
        index_type=index_type,
        metric=metric,
        search_params=everything,
    )
    oracle = MemoryIndex(metric.lower())
    for each in (index, oracle):
        each.create(table.schema, DIMENSION)
        each.upsert(table)
    restart(index)
    queries = np.random.default_rng(1).standard_normal((20, DIMENSION))
    found, expected = index.search(queries, 10), oracle.search(queries, 10)
    same = [
        len({hit.id for hit in ours} & {hit.id for hit in theirs})
        for ours, theirs in zip(found, expected, strict=True)
    ]
    assert sum(same) / 200 >= 0.99
    for ours, theirs in zip(found, expected, strict=True):
        assert np.allclose([h.score for h in ours], [h.score for h in theirs], atol=1e-4)


def test_the_options_of_building_and_searching_reach_the_engine(lite, make):
    table = table_of([f"photo-{n}" for n in range(2000)])
    lite.create(table.schema, DIMENSION)
    lite.upsert(table)
    restart(lite)
    assert opened(lite, "describe_index", "photos", "vector")["params"] == {"nlist": 1024}
    queries = np.random.default_rng(1).standard_normal((20, DIMENSION))
    hits = {}
    for nprobe in (1, 1024):
        index = make(lite.uri, "photos", search_params={"nprobe": nprobe})
        hits[nprobe] = index.search(queries, 10)
    found = sum(
        len({h.id for h in a} & {h.id for h in b}) for a, b in zip(*hits.values(), strict=True)
    )
    assert found < 150


def test_metadata_become_fields_of_their_types(lite):
    table = table_of(
        ["a"],
        text=["图"],
        number=[2**40],
        small=pa.array([7], pa.int16()),
        ratio=[0.5],
        single=pa.array([0.25], pa.float32()),
        flag=[True],
        tags=[["x", "y"]],
    )
    lite.create(table.schema, DIMENSION)
    lite.upsert(table)
    kinds = {
        each["name"]: each["type"].name
        for each in opened(lite, "describe_collection", "photos")["fields"]
    }
    assert kinds == {
        "id": "VARCHAR",
        "vector": "FLOAT_VECTOR",
        "text": "VARCHAR",
        "number": "INT64",
        "small": "INT16",
        "ratio": "DOUBLE",
        "single": "FLOAT",
        "flag": "BOOL",
        "tags": "ARRAY",
    }
    names = table.column_names[2:]
    [[hit]] = lite.search(np.ones((1, DIMENSION)), 1, metadata=names)
    assert hit.metadata == table.select(names).to_pylist()[0]
    assert lite.describe().metadata["small"] == "short"


def test_a_field_that_the_collection_lacks_changes_nothing(lite):
    lite.create(table_of(["a"], size=[1]).schema, DIMENSION)
    with pytest.raises(VectorIndexError, match="no field for the metadata column color"):
        lite.upsert(table_of(["a"], color=["red"]))
    with pytest.raises(VectorIndexError, match="field size of the type long"):
        lite.upsert(table_of(["a"], size=["large"]))
    assert lite.count() == 0


def test_a_name_that_cannot_be_a_field_asks_for_dynamic_metadata(tmp_path, lite, make):
    table = table_of(["a"], **{"taken at": ["noon"]})
    with pytest.raises(VectorIndexError, match="dynamic_metadata=True"):
        lite.create(table.schema, DIMENSION)
    assert lite.describe() is None
    dynamic = make(lite.uri, "photos", dynamic_metadata=True)
    dynamic.create(table.schema, DIMENSION)
    dynamic.upsert(table)
    assert dynamic.search(np.ones((1, DIMENSION)), 1, metadata=["taken at"])[0][0].metadata == {
        "taken at": "noon"
    }


def foreign_collection(index, *, key="id", vector="vector", auto_id=False, text_bytes=5):
    from pymilvus import DataType, MilvusClient

    schema = MilvusClient.create_schema(auto_id=auto_id)
    kind = DataType.INT64 if auto_id else DataType.VARCHAR
    schema.add_field(key, kind, is_primary=True, **({} if auto_id else {"max_length": 10}))
    schema.add_field(vector, DataType.FLOAT_VECTOR, dim=DIMENSION)
    schema.add_field("text", DataType.VARCHAR, max_length=text_bytes)
    params = MilvusClient.prepare_index_params()
    params.add_index(vector, index_type="FLAT", metric_type="IP")
    opened(index, "create_collection", index.collection, schema=schema, index_params=params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "pk"}, "made by somebody else.*primary key id.*pass id_field"),
        ({"vector": "embedding"}, "made by somebody else.*vectors vector"),
        ({"auto_id": True}, "made by somebody else.*primary key"),
    ],
)
def test_a_collection_that_somebody_else_made_is_refused(lite, options, message):
    foreign_collection(lite, **options)
    for call in (lite.describe, lambda: lite.create(table_of(["a"]).schema, DIMENSION)):
        with pytest.raises(VectorIndexError, match=message):
            call()


def test_a_collection_of_ones_own_is_used_with_its_names_and_limits(lite, make):
    foreign_collection(lite, key="pk", vector="embedding")
    index = make(lite.uri, "photos", id_field="pk", vector_field="embedding")
    table = table_of(["a", "long-long-long", "b", "c"], text=["x", "x", "much longer", "y"])
    assert index.create(table.schema, DIMENSION) is False
    result = index.upsert(table)
    assert result.written == index.count() == 2
    reasons = {each.id: each.reason for each in result.rejected}
    assert "takes 10" in reasons["long-long-long"]
    # This limit is the server's to tell.
    assert "max_length" in reasons["b"]
    assert set(index.fetch(["a", "b", "c"])) == {"a", "c"}


def test_large_records_go_out_in_several_requests(served, service):
    table = table_of([f"photo-{n}" for n in range(300)], text=["x" * 60_000] * 300)
    served.drop()
    served.create(table.schema, DIMENSION)
    assert served.upsert(table).written == served.count() == 300
    assert len(service.upserts) == 2
    assert max(service.upserts) <= served.target.max_request_bytes
    # The first is full.
    assert service.upserts[0] > 0.95 * served.target.max_request_bytes


def test_a_service_that_takes_less_gets_less(tmp_path, make):
    with serve_milvus(tmp_path / "service", max_request_bytes=500_000) as service:
        index = make(service.url, "photos", token=TOKEN)
        table = table_of([f"photo-{n}" for n in range(40)], text=["x" * 60_000] * 40)
        index.create(table.schema, DIMENSION)
        assert index.upsert(table).written == index.count() == 40


def test_an_error_that_is_not_about_records_rejects_none(served, service):
    assert served.upsert(table_of(["a", "b"])).written == 2
    service.fail_next("full")
    with pytest.raises(VectorIndexError, match="refuses upsert: disk quota exhausted"):
        served.upsert(table_of(["a", "c"], seed=1))
    assert set(served.fetch(["a", "b", "c"])) == {"a", "b"}


def test_an_id_that_no_filter_can_name_is_rejected(lite):
    table = table_of(["bell\a", "tab\t"])
    lite.create(table.schema, DIMENSION)
    result = lite.upsert(table)
    assert [each.id for each in result.rejected] == ["bell\a"]
    assert "control characters" in result.rejected[0].reason
    assert set(lite.fetch(["bell\t", "tab\t"])) == {"tab\t"}


def test_a_collection_whose_index_was_not_made_any_more_gets_it(lite):
    table = table_of(["a", "b"])
    lite.create(table.schema, DIMENSION)
    opened(lite, "release_collection", "photos")
    opened(lite, "drop_index", "photos", "vector")
    assert opened(lite, "list_indexes", "photos") == []
    assert (lite.describe().metric, lite.describe().rows) == ("IP", 0)
    # To look at it changes nothing.
    assert opened(lite, "list_indexes", "photos") == []
    assert lite.create(table.schema, DIMENSION) is False
    assert lite.upsert(table).written == 2
    assert lite.count() == 2
    opened(lite, "release_collection", "photos")
    opened(lite, "drop_index", "photos", "vector")
    lite.close()
    with pytest.raises(VectorIndexError, match="has no index on vector; make one"):
        lite.describe()


def test_what_may_pass_is_tried_again(served, service, waits):
    service.fail_next("busy", "away", "lose")
    assert served.upsert(table_of(["a", "b"])).written == 2
    assert served.count() == 2
    assert len(service.upserts) == 4
    # The client itself comes back to a connection that was lost.
    assert len(waits) == 1


def test_tries_are_bounded(served, service):
    service.fail_next(*["busy"] * 10)
    with pytest.raises(IndexConnectionError, match=r"127\.0\.0\.1.*rate limit.*tried 4 times"):
        served.upsert(table_of(["a"]))
    assert len(service.upserts) == 4


def test_a_service_that_hangs_is_given_up(service, waits, make):
    retry = RetryPolicy(attempts=2, sleep=waits.append)
    index = make(service.url, "photos", token=TOKEN, timeout_seconds=1.0, retry=retry)
    index.create(table_of(["a"]).schema, DIMENSION)
    service.fail_next("hang", "hang")
    with pytest.raises(IndexConnectionError, match=r"(?i)deadline exceeded; tried 2 times"):
        index.upsert(table_of(["a"]))


def test_a_service_that_is_gone_is_named(tmp_path, waits, make):
    with serve_milvus(tmp_path / "service") as service:
        retry = RetryPolicy(attempts=2, sleep=waits.append)
        index = make(service.url, "photos", token=TOKEN, timeout_seconds=1.0, retry=retry)
        index.create(table_of(["a"]).schema, DIMENSION)
        index.upsert(table_of(["a"]))
    with pytest.raises(IndexConnectionError, match=r"127\.0\.0\.1:.*tried 2 times") as caught:
        index.upsert(table_of(["b"]))
    assert "token-of-the-test" not in str(caught.value)


def test_a_wrong_token_is_refused_without_being_shown(service, caplog, make):
    caplog.set_level(0)
    for token in ("root:secret-word", None):
        index = make(service.url, "photos", token=token)
        with pytest.raises(VectorIndexError, match="MILVUS_TOKEN") as caught:
            index.describe()
        assert "secret-word" not in f"{caught.value} {index!r} {caplog.text}"


def test_the_token_comes_from_the_environment_or_the_address(service, monkeypatch, make):
    with_address = make(service.url.replace("//", f"//{TOKEN}@"), "photos")
    assert with_address.describe() is None
    assert TOKEN not in repr(with_address)
    monkeypatch.setenv("MILVUS_TOKEN", TOKEN)
    index = make(service.url, "photos")
    assert index.describe() is None
    assert TOKEN.encode() not in pickle.dumps(index)
    with closing(index.with_credentials()) as carried:
        monkeypatch.delenv("MILVUS_TOKEN")
        assert carried.describe() is None
        assert TOKEN not in repr(carried)


def test_an_address_where_nobody_answers_is_named_without_the_token(waits, make):
    index = make(
        "http://user:secret-word@127.0.0.1:9", "photos", retry=RetryPolicy(sleep=waits.append)
    )
    with pytest.raises(IndexConnectionError, match=r"127\.0\.0\.1:9.*tried 3 times") as caught:
        index.describe()
    assert "secret-word" not in str(caught.value)
    assert len(waits) == 2


def test_what_was_written_survives_a_kill(lite):
    script = (
        "import os, signal, sys, pyarrow as pa; from spark_vision import MilvusIndex;"
        "index = MilvusIndex(sys.argv[1], 'photos');"
        "table = pa.table({'id': [f'photo-{n}' for n in range(500)],"
        " 'vector': pa.array([[n + 1.0] * 16 for n in range(500)], pa.list_(pa.float32()))});"
        "index.create(table.schema, 16); index.upsert(table); index.delete(['photo-7']);"
        "index.write_properties({'version': '3'}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, lite.uri], stderr=subprocess.PIPE, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = lite.describe()
    assert (found.rows, found.properties) == (499, {"version": "3"})
    assert lite.fetch(["photo-499"])["photo-499"].tolist() == [500.0] * 16


@pytest.mark.parametrize("index_type", ["IVF_FLAT", "HNSW", "FLAT"])
def test_an_index_that_a_kill_cut_short_is_built_again(tmp_path, index_type, caplog, make):
    index = make(str(tmp_path / "photos.db"), "photos", index_type=index_type)
    table = table_of([f"photo-{n}" for n in range(300)])
    index.create(table.schema, DIMENSION)
    index.upsert(table)
    index.write_properties({"version": "3"})
    restart(index)
    files = list((tmp_path / "photos.db").rglob("*.idx"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    found = index.describe()
    assert (found.rows, found.properties) == (300, {"version": "3"})
    assert "building the index again" in caplog.text
    query = np.array(table["vector"][7:8].to_pylist())
    assert index.search(query, 300)[0][0].id == "photo-7"
    restart(index)
    caplog.clear()
    assert index.count() == 300
    assert caplog.text == ""


def test_a_file_that_another_process_has_open_is_said_to_be_so(tmp_path, lite):
    script = (
        "import sys; from pymilvus import MilvusClient; MilvusClient(sys.argv[1]);"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, lite.uri],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(VectorIndexError, match="another process has it open"):
            lite.describe()
        other.stdin.close()
    assert lite.describe() is None


def test_options_that_cannot_work_are_refused_at_once(tmp_path):
    with pytest.raises(InvalidOptionError, match=r"ends with \.db"):
        MilvusIndex(str(tmp_path / "photos"), "photos")
    with pytest.raises(InvalidOptionError, match="allowed: IVF_FLAT, HNSW, FLAT"):
        MilvusIndex("photos.db", "photos", index_type="DISKANN")
    with pytest.raises(InvalidOptionError, match="allowed: IP, COSINE"):
        MilvusIndex("photos.db", "photos", metric="L2")
    with pytest.raises(InvalidOptionError, match="my-photos"):
        MilvusIndex("photos.db", "my-photos")
    with pytest.raises(VectorIndexError, match="make it first"):
        MilvusIndex(str(tmp_path / "none" / "photos.db"), "photos").describe()
