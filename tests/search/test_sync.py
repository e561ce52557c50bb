"""After any syncs, kills and refusals, an index holds what `index_ready` gives, and no more."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from milvus_lite.server_manager import server_manager_instance
from pyspark.sql.classic.dataframe import DataFrame

from encoded_images import encode, photo
from memory_index import MemoryIndex
from pinecone_server import serve_pinecone
from spark_vision import (
    ImageViTEmbedding,
    MilvusIndex,
    PineconeIndex,
    index_ready,
    search_images,
    sync_index,
    write_vision_columns,
)
from spark_vision.errors import IndexConnectionError, TableError, VectorIndexError
from spark_vision.search import sending
from spark_vision.search.retries import RetryPolicy
from spark_vision.search.vector_index import RejectedRecord, UpsertResult
from spark_vision.tables import named_points

ALL_LISTS = {"nprobe": 1024}


class Killed(BaseException):
    """What a process that is killed cannot catch."""


class Vectors:
    """A table of vectors, and statements that change it as other writers would."""

    def __init__(self, spark, place):
        self.spark, self.place = spark, str(place)
        self.dimension = len(self.rows().first()["embedding"])

    def rows(self):
        return self.spark.read.format("delta").load(self.place)

    def sql(self, statement):
        self.spark.sql(statement.replace("VECTORS", f"delta.`{self.place}`"))

    def add(self, start, end, seed=0):
        """Add rows with vectors of length 1 that the seed decides."""
        self.sql(
            f"""INSERT INTO VECTORS BY NAME
            SELECT concat('row-', id) AS id, concat('label ', id % 3) AS label,
                {self.vector(seed)} AS embedding, 'ok' AS embedding_status, now() AS updated_at
            FROM range({start}, {end})"""
        )

    def change(self, condition, seed):
        vector = self.vector(seed, "CAST(substring(id, 5) AS BIGINT)")
        self.sql(f"UPDATE VECTORS SET embedding = {vector} WHERE {condition}")

    def fail(self, condition):
        self.sql(
            f"UPDATE VECTORS SET embedding = NULL, embedding_status = 'timeout' WHERE {condition}"
        )

    def vector(self, seed, number="id"):
        numbers = (
            f"transform(sequence(1, {self.dimension}), x -> "
            f"float(hash({number}, x, {seed}) / 2147483648.0))"
        )
        # A lambda is computed for each element: the length only once.
        return (
            f"transform(array({numbers}), v -> transform(v, x -> float(x / sqrt(aggregate(v, 0D, "
            "(sum, y) -> sum + y * y)))))[0]"
        )


def write_one_row(spark, place, checkpoints):
    source = spark.createDataFrame(
        [("first", encode(photo(40, 40), "JPEG"), "a")], "id string, content binary, label string"
    )
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    write_vision_columns(source, str(place), ["id"], {"embedding": dino}, keep=["label"])
    return Vectors(spark, place)


@pytest.fixture(scope="module")
def written(spark, checkpoints, tmp_path_factory):
    return write_one_row(spark, tmp_path_factory.mktemp("written") / "vectors", checkpoints)


@pytest.fixture
def table(spark, written, tmp_path):
    return Vectors(spark, shutil.copytree(written.place, tmp_path / "vectors"))


@pytest.fixture
def lite(tmp_path):
    index = MilvusIndex(str(tmp_path / "index.db"), "photos", search_params=ALL_LISTS)
    yield index
    index.close()
    server_manager_instance.release_server(index.uri)


@pytest.fixture
def small_batches(spark):
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "100")
    yield
    spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")


def sync(table, index, **options):
    return sync_index(table.place, "embedding", index, **{"metadata": ["label"], **options})


def killed_at(monkeypatch, point, times=1):
    left = times

    def kill(name):
        nonlocal left
        left -= name == point
        if not left:
            raise Killed

    monkeypatch.setattr(named_points, "at_point", kill)


def assert_holds(index, table):
    """The index has exactly the ids and vectors that are ready."""
    wanted = {
        row["id"]: np.float32(row["vector"])
        for row in index_ready(
            table.place, "embedding", index.target, metadata=["label"]
        ).rows.toLocalIterator()
    }
    assert index.count() == len(wanted)
    found = index.fetch([*wanted])
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[key], wanted[key]) for key in wanted)


def kill_process(table, index, point, times=1):
    """Sync in a process of its own, which ends by kill -9; what Milvus Lite holds there is lost."""
    index.close()
    server_manager_instance.release_server(index.uri)
    script = Path(__file__).parents[1] / "support" / "killed_sync.py"
    process = subprocess.run(
        [sys.executable, script, table.place, index.uri, point, str(times)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("is_real", [False, True])
def test_syncs_some_of_them_killed_end_in_the_tables_own_vectors(
    spark, table, lite, small_batches, monkeypatch, is_real
):
    def kill(point, times=1):
        if is_real:
            return kill_process(table, lite, point, times)
        with monkeypatch.context() as patch:
            killed_at(patch, point, times)
            with pytest.raises(Killed):
                sync(table, lite)
        return None

    table.add(0, 9_999)
    kill("sync: after a batch", 20)
    assert 0 < lite.count() < 10_000
    assert sync(table, lite).written_rows == 10_000

    table.add(20_000, 20_500)
    assert sync(table, lite).written_rows == 500
    table.change("id BETWEEN 'row-1000' AND 'row-1299' AND length(id) = 8", seed=1)
    kill("sync: after a batch", 2)
    table.sql("DELETE FROM VECTORS WHERE id BETWEEN 'row-2000' AND 'row-2199' AND length(id) = 8")
    table.fail("id BETWEEN 'row-3000' AND 'row-3049' AND length(id) = 8")
    kill("sync: before its end")
    table.change("id BETWEEN 'row-4000' AND 'row-4099' AND length(id) = 8", seed=2)
    kill_process(table, lite, "sync: after a batch", 3)
    result = sync(table, lite)
    assert (result.written_rows, result.deleted_rows) == (400, 250)
    assert_holds(lite, table)
    assert sync(table, lite).written_rows == 0

    queries = [row["embedding"] for row in table.rows().filter("embedding IS NOT NULL").head(20)]
    found = lite.search(np.float32(queries), 10)
    exact = search_images(table.place, "embedding", queries, k=10).collect()
    wanted = [{row["id"] for row in exact if row["query"] == n} for n in range(20)]
    shared = [len(ids & {hit.id for hit in hits}) for ids, hits in zip(wanted, found, strict=True)]
    assert sum(shared) / 200 >= 0.99


def test_only_what_changed_is_sent(table, monkeypatch):
    table.add(0, 50)
    index = MemoryIndex()
    assert sync(table, index).from_version is None
    sent, removed = [], []
    upsert, delete = index.upsert, index.delete
    monkeypatch.setattr(
        index, "upsert", lambda rows: sent.extend(rows["id"].to_pylist()) or upsert(rows)
    )
    monkeypatch.setattr(index, "delete", lambda ids: removed.extend(ids) or delete(ids))
    table.sql("UPDATE VECTORS SET embedding_error = 'a note', updated_at = now()")
    table.sql("OPTIMIZE VECTORS")
    table.change("id = 'row-9'", seed=5)
    table.change("id = 'row-9'", seed=0)
    table.add(70, 71)
    table.sql("DELETE FROM VECTORS WHERE id = 'row-70'")
    result = sync(table, index)
    assert (result.written_rows, sent, removed) == (0, [], [])
    assert sync(table, index).from_version == result.version

    table.sql("UPDATE VECTORS SET label = 'new' WHERE id = 'row-1'")
    table.change("id = 'row-2'", seed=1)
    table.sql("DELETE FROM VECTORS WHERE id = 'row-3'")
    table.fail("id = 'row-4'")
    table.add(80, 81)
    result = sync(table, index)
    assert (result.written_rows, result.deleted_rows) == (3, 2)
    assert sorted(sent) == ["row-1", "row-2", "row-80"]
    assert sorted(removed) == ["row-3", "row-4"]
    assert index.records["row-1"][1] == {"label": "new"}
    assert_holds(index, table)


def test_a_killed_load_goes_on_although_the_table_has_changed(table, monkeypatch, small_batches):
    table.add(0, 300)
    index = MemoryIndex()
    killed_at(monkeypatch, "sync: after a batch", 2)
    with pytest.raises(Killed):
        sync(table, index)
    monkeypatch.undo()
    sent = [key for key in index.records if key.startswith("row-")]
    table.sql(f"DELETE FROM VECTORS WHERE id = '{sent[0]}'")
    table.change(f"id = '{sent[1]}'", seed=1)
    monkeypatch.setattr(index, "drop", None)
    result = sync(table, index)
    assert (result.from_version, result.deleted_rows) == (None, 1)
    assert_holds(index, table)


def test_an_empty_index_that_the_user_made_is_kept(table, monkeypatch):
    index = MemoryIndex()
    index.create(pa.schema({"id": "string", "vector": pa.list_(pa.float32())}), table.dimension)
    monkeypatch.setattr(index, "drop", None)
    assert sync(table, index, metadata=[]).written_rows == 1


@pytest.mark.slow
def test_a_row_that_comes_back_after_a_killed_sync_is_sent_again(table, monkeypatch):
    table.add(0, 3)
    index = MemoryIndex()
    sync(table, index)
    table.change("id = 'row-1'", seed=1)
    killed_at(monkeypatch, "sync: before its end")
    with pytest.raises(Killed):
        sync(table, index)
    monkeypatch.undo()
    table.change("id = 'row-1'", seed=0)
    sync(table, index)
    assert_holds(index, table)


def test_a_record_that_the_index_refuses_does_not_stay_in_its_older_form(table, monkeypatch):
    table.add(0, 4)
    index = MemoryIndex()
    sync(table, index)
    table.change("id IN ('row-1', 'row-2')", seed=1)
    upsert = index.upsert

    def refuse_one(rows):
        is_bad = np.asarray(rows["id"].to_pylist()) == "row-1"
        rejected = [RejectedRecord("row-1", "by order")] * int(is_bad.sum())
        return UpsertResult(upsert(rows.filter(~is_bad)).written, tuple(rejected))

    monkeypatch.setattr(index, "upsert", refuse_one)
    result = sync(table, index)
    assert (result.written_rows, result.rejected_rows) == (1, 1)
    assert [(each.id, each.reason) for each in result.rejected] == [("row-1", "by order")]
    assert "row-1: by order" in str(result)
    assert "row-1" not in index.records
    assert "row-2" in index.records


def test_rows_that_break_a_rule_leave_the_index_and_are_counted(table):
    table.add(0, 6)
    index = MemoryIndex()
    sync(table, index)
    table.sql("UPDATE VECTORS SET embedding = transform(embedding, x -> 0F) WHERE id = 'row-1'")
    table.sql(
        "UPDATE VECTORS SET embedding = transform(embedding, x -> float('NaN')) WHERE id = 'row-2'"
    )
    table.sql("UPDATE VECTORS SET id = repeat('x', 200) WHERE id = 'row-3'")
    table.sql("INSERT INTO VECTORS SELECT * FROM VECTORS WHERE id = 'row-4'")
    table.add(7, 8)
    table.add(7, 8)
    result = sync(table, index)
    assert result.excluded == {"no_zero_vector": 1, "finite": 1, "unique_id": 1, "id_length": 1}
    assert sorted(index.records) == ["first", "row-0", "row-4", "row-5"]


@pytest.mark.parametrize("has_rows", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_service_is_written_to_by_executors_through_its_failures(
    spark, table, has_rows, small_batches
):
    table.add(0, 400)
    if not has_rows:
        table.fail("true")
    reports = []
    with serve_pinecone() as server:
        index = PineconeIndex(
            "photos", namespace="n", api_key=server.api_key, control_host=server.url
        )
        server.fail_next(429, 500, "drop", "lose", path="/vectors/upsert")
        result = sync(table, index, progress=reports.append)
        assert result.written_rows == (401 if has_rows else 0)
        assert_holds(index, table)
        if has_rows:
            assert reports[-1].total_rows == 401
            table.sql("DELETE FROM VECTORS WHERE id LIKE 'row-1%'")
            table.add(500, 510)
            assert sync(table, index, concurrency=1).deleted_rows == 111
            assert_holds(index, table)
        index.close()


@pytest.mark.slow
def test_an_index_whose_count_is_late_keeps_no_row_that_is_gone(table):
    table.add(0, 3)
    with serve_pinecone() as server:
        index = PineconeIndex("photos", api_key=server.api_key, control_host=server.url)
        assert sync(table, index).written_rows == 4
        table.sql("DELETE FROM VECTORS WHERE id = 'row-1'")
        server.counts_nothing = True
        sync(table, index)
        server.counts_nothing = False
        assert_holds(index, table)
        index.close()


@pytest.mark.parametrize("phase", ["complete", pytest.param("updating", marks=pytest.mark.slow)])
def test_an_index_that_was_emptied_is_filled_again(table, phase):
    index = MemoryIndex()
    assert sync(table, index).written_rows == 1
    index.records.clear()
    # An update may have been killed before.
    index.write_properties({**index.describe().properties, "phase": phase})
    assert sync(table, index).written_rows == 1
    assert_holds(index, table)
    assert sync(table, index).written_rows == 0


def test_the_key_of_a_service_is_in_no_plan_and_no_property(spark, table, monkeypatch):
    plans = []
    send = sending._send_from_executors

    def see_plan(index, records, *others):
        def collect(frame):
            plans.append(frame._jdf.queryExecution().toString())
            return collected(frame)

        collected = DataFrame.collect
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DataFrame, "collect", collect)
            return send(index, records, *others)

    monkeypatch.setattr(sending, "_send_from_executors", see_plan)
    with serve_pinecone() as server:
        index = PineconeIndex("photos", api_key=server.api_key, control_host=server.url)
        sync(table, index)
        assert "MapInArrow send(" in plans[0]
        assert server.api_key not in plans[0] + repr(index) + str(index.describe())
        index.close()


@pytest.mark.slow
def test_an_index_of_something_else_is_refused_and_left_alone(spark, table, checkpoints, tmp_path):
    table.add(0, 3)
    index = MemoryIndex()
    sync(table, index)
    before = (dict(index.records), dict(index.properties))

    with pytest.raises(VectorIndexError, match=r'metadata \["label"\], and this call has \[\]'):
        sync(table, index, metadata=[])
    again = write_one_row(spark, tmp_path / "again", checkpoints)
    with pytest.raises(VectorIndexError, match="another one or was made again; pass reload=True"):
        sync(again, index)
    table.sql("ALTER TABLE VECTORS SET TBLPROPERTIES ('spark_vision.embedding.pooling' = 'mean')")
    with pytest.raises(VectorIndexError, match="with pooling cls; now it has pooling mean"):
        sync(table, index)
    assert (index.records, index.properties) == before
    foreign = MemoryIndex()
    foreign.made, foreign.records = index.made, dict(index.records)
    with pytest.raises(VectorIndexError, match="4 records that sync_index did not write"):
        sync(table, foreign)

    assert sync(again, index, reload=True).written_rows == 1
    assert_holds(index, again)
    foreign.metric = index.metric
    assert sync(table, foreign, reload=True).written_rows == 4


@pytest.mark.slow
def test_a_feed_with_a_gap_is_refused_until_the_index_is_loaded_again(spark, table):
    table.add(0, 3)
    index = MemoryIndex()
    sync(table, index)
    table.change("id = 'row-1'", seed=1)
    table.sql("OPTIMIZE VECTORS")
    # As VACUUM does after a week.
    for file in Path(table.place, "_change_data").glob("*.parquet"):
        file.unlink()
    with pytest.raises(TableError, match="no longer has all versions since"):
        sync(table, index)
    assert sync(table, index, reload=True).written_rows == 4
    assert_holds(index, table)
    table.sql("ALTER TABLE VECTORS SET TBLPROPERTIES ('delta.enableChangeDataFeed' = 'false')")
    table.change("id = 'row-2'", seed=1)
    with pytest.raises(TableError, match="has no change data feed, by which an index follows it"):
        sync(table, index)
    assert sync(table, index, reload=True).written_rows == 4
    table.change("id = 'row-2'", seed=2)
    table.sql("ALTER TABLE VECTORS SET TBLPROPERTIES ('delta.enableChangeDataFeed' = 'true')")
    with pytest.raises(TableError, match="its change data feed was off"):
        sync(table, index)


@pytest.mark.slow
def test_two_syncs_at_once_are_noticed_and_the_next_one_repairs(table, monkeypatch):
    table.add(0, 5)
    index = MemoryIndex()
    sync(table, index)
    table.change("id = 'row-1'", seed=1)
    table.change("id = 'row-2'", seed=1)

    def other(name):
        if name == "sync: before sending":
            monkeypatch.undo()
            # A second sync, of a newer version, runs while this one is about to send.
            table.change("id = 'row-1'", seed=2)
            sync(table, index)

    monkeypatch.setattr(named_points, "at_point", other)
    with pytest.raises(VectorIndexError, match="another sync wrote to memory at the same time"):
        sync(table, index)
    sync(table, index)
    assert_holds(index, table)


@pytest.mark.slow
def test_a_sync_that_ends_while_another_prepares_is_noticed(table, monkeypatch):
    table.add(0, 3)
    index = MemoryIndex()
    sync(table, index)
    table.change("id = 'row-1'", seed=1)

    def count(records):
        monkeypatch.undo()
        table.add(3, 4)
        sync(table, index)
        return counted(records)

    counted = DataFrame.count
    monkeypatch.setattr(DataFrame, "count", count)
    with pytest.raises(VectorIndexError, match="another sync wrote to memory at the same time"):
        sync(table, index)
    table.sql("DELETE FROM VECTORS WHERE id = 'row-3'")
    sync(table, index)
    assert_holds(index, table)


def test_what_executors_meet_has_its_own_class_of_error(table, monkeypatch):
    with serve_pinecone() as server:
        index = PineconeIndex("photos", api_key=server.api_key, control_host=server.url)
        index.create(pa.schema({"id": "string", "vector": pa.list_(pa.float32())}), table.dimension)
        server.fail_next(*[404] * 9, path="/vectors/upsert")
        carried = replace(index, retry=RetryPolicy(attempts=2, first_wait_seconds=0.01))
        with pytest.raises(VectorIndexError, match="photos"):
            sync(table, carried)
        server.orders.clear()
        server.fail_next(*[503] * 9, path="/vectors/upsert")
        with pytest.raises(IndexConnectionError, match="tried 2 times"):
            sync(table, carried)
        server.orders.clear()
        sync(table, carried)
        assert_holds(carried, table)
        carried.close()
        index.close()


def test_a_reload_that_cannot_succeed_removes_nothing(table, lite):
    table.sql("ALTER TABLE VECTORS ADD COLUMN `a-name` STRING")
    sync(table, lite)
    with pytest.raises(VectorIndexError, match="a Milvus field cannot be called 'a-name'"):
        sync(table, lite, metadata=["a-name"], reload=True)
    assert lite.count() == 1


def test_bad_arguments_are_refused_before_the_index_is_touched(table):
    index = MemoryIndex()
    with pytest.raises(ValueError, match="concurrency got 0; allowed: 1 or more"):
        sync(table, index, concurrency=0)
    with pytest.raises(TableError, match="has no column 'colour'"):
        sync(table, index, metadata="colour")
    with pytest.raises(TableError, match="metadata got 'id', a name that an index's records have"):
        sync(table, index, metadata=["label", "id"])
    with pytest.raises(TableError, match="metadata got a column twice: label, label"):
        sync(table, index, metadata=["label", "label"])
    with pytest.raises(TableError, match="updated_at has the type timestamp"):
        sync(table, index, metadata=["updated_at"])
    with pytest.raises(TableError, match="no column 'vectors' of vectors"):
        sync_index(table.place, "vectors", index)
    assert index.describe() is None
    small = replace(index.target, dimensions=(1, 4))
    index.target = small
    with pytest.raises(TableError, match="allowed: 1 to 4"):
        sync(table, index)
