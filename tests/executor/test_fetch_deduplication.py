"""Rows of one Arrow array with the same address share a fetch, in any order of threads."""

import io
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from PIL import Image

from local_http_server import serve
from spark_vision import ImageLimits, ImageViTEmbedding
from spark_vision.errors import RowFailure, Status
from spark_vision.executor.fetch_deduplication import DeduplicatedFetches
from spark_vision.executor.image_rows import ImageRows
from spark_vision.executor.resource_limits import Budget
from spark_vision.images.sources import ImageColumn


class SlowColumn(ImageColumn):
    """Counts its reads, which end when the test lets them."""

    needs_fetch = True

    def __init__(self, texts):
        self.texts = texts
        self.reads = Counter()
        self.may_end = threading.Event()

    def __len__(self):
        return len(self.texts)

    def read(self, row, on_bytes=None):
        self.reads[row] += 1
        assert self.may_end.wait(20)
        if self.texts[row] == "bad":
            raise RowFailure(Status.HTTP_ERROR, "HTTP status 404")
        data = pa.array(list(self.texts[row].encode() * 10), pa.uint8())
        if on_bytes is not None:
            on_bytes(len(data))
        return data


def shared(texts, capacity_bytes=1000):
    column, kept = SlowColumn(texts), Budget(capacity_bytes)
    return DeduplicatedFetches(column, pa.array(texts), kept), column, kept


def test_younger_row_waits_for_the_older_though_it_begins_first():
    column, slow, _ = shared(["a", "a", "b"])
    heard = []
    with ThreadPoolExecutor(2) as pool:
        younger = pool.submit(column.read, 1, heard.append)
        older = pool.submit(column.read, 0)
        slow.may_end.set()
        assert younger.result(20).equals(older.result(20))
    assert slow.reads == {0: 1}
    assert heard == [10]
    assert len(column) == 3


def test_each_row_of_a_failure_has_its_own_exception():
    column, slow, _ = shared(["bad", "bad", "bad"])
    slow.may_end.set()
    failures = []
    for row in range(3):
        with pytest.raises(RowFailure, match="404") as caught:
            column.read(row)
        failures.append(caught.value)
    assert slow.reads == {0: 1}
    assert len(set(map(id, failures))) == 3
    assert failures[2].status == Status.HTTP_ERROR


def test_what_is_kept_is_counted_and_given_back_after_the_last_row():
    column, slow, kept = shared(["a", "b", "a", "b", "a"], capacity_bytes=20)
    slow.may_end.set()
    for row in range(4):
        column.read(row)
    assert not kept.try_take(11)
    assert kept.try_take(10)
    kept.release(10)
    column.read(4)
    assert kept.try_take(20)
    assert slow.reads == {0: 1, 1: 1}


def test_what_finds_no_room_is_fetched_again():
    column, slow, kept = shared(["a", "b", "a", "b"], capacity_bytes=10)
    slow.may_end.set()
    assert [column.read(row)[0].as_py() for row in range(4)] == [97, 98, 97, 98]
    assert slow.reads == {0: 1, 1: 1, 3: 1}
    assert kept.try_take(10)


def test_exception_of_another_kind_reaches_all_rows():
    column, slow, _ = shared(["a", "a"])

    def read(row, on_bytes=None):
        raise MemoryError

    slow.read = read
    for row in range(2):
        with pytest.raises(MemoryError):
            column.read(row)


def png(level):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_each_address_of_a_batch_is_asked_for_once(kind):
    with serve() as server:
        for number in range(5):
            server.give(f"/{number}", png(number))
        paths = [f"/{row % 5}" for row in range(40)] + ["/missing"] * 3 + ["/0"]
        urls = pa.array([*map(server.url, paths), None, " ", None], pa.string()).cast(kind)
        operator = ImageViTEmbedding(
            allow_networks=["127.0.0.0/8"], limits=ImageLimits(fetch_concurrency=8)
        )
        rows = ImageRows(
            operator,
            [lambda image, prompt: image[0, 0, 0]],
            cpu_count=2,
            ahead_count=4,
            portion_row_count=4,
        )
        given = [row[0] for portion in rows.prepare([(urls, None)]) for row in portion]
    values = [each.status.value if isinstance(each, RowFailure) else int(each) for each in given]
    expected = [row % 5 for row in range(40)] + ["http_error"] * 3 + [0] + ["null_input"] * 3
    assert values == expected
    assert Counter(server.requests) == Counter(set(paths))


def test_each_batch_asks_again():
    with serve() as server:
        server.give("/a", png(1))
        urls = pa.array([server.url("/a")] * 3)
        operator = ImageViTEmbedding(allow_networks=["127.0.0.0/8"])
        rows = ImageRows(
            operator,
            [lambda image, prompt: image],
            cpu_count=1,
            ahead_count=4,
            portion_row_count=1,
        )
        assert len(list(rows.prepare([(urls, None), (urls, None)]))) == 6
        assert len(server.requests) == 2
