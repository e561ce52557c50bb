"""Objects of stores: the row chooses an object below a root, the operator everything else."""

import os
import sys
import threading
import time
from contextlib import suppress

import fsspec
import pytest
from fsspec.archive import AbstractArchiveFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from spark_vision.errors import RowFailure, Status
from spark_vision.images import deadline_threads
from spark_vision.images.fetch import Fetcher
from spark_vision.operators import ImageLimits, ImageViTEmbedding

KINDS = {
    "s3": ("s3", "s3a", "s3n"),
    "gcs": ("gs", "gcs"),
    "abfs": ("abfs", "abfss", "az"),
    "oss": ("oss",),
    "tos": ("tos",),
}


class ObjectFile(AbstractBufferedFile):
    """Reads a range by a request, as the stores' own files do."""

    def _fetch_range(self, start, end):
        self.fs.requests.append((self.path, start, end))
        return self.fs.objects[self.path][start:end]


class ObjectStore(AbstractFileSystem):
    """Objects by `bucket/key`, kept by the class as a store keeps them."""

    objects: dict[str, bytes]

    def __init__(self, **options):
        super().__init__(**options)
        self.made.append(options)

    def info(self, path, **_):
        if path not in self.objects:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.objects[path]), "type": "file"}

    def _open(self, path, mode="rb", block_size=None, cache_type="readahead", **_):
        return ObjectFile(self, path, mode, block_size, cache_type=cache_type)


@pytest.fixture
def register(monkeypatch):
    """Make a class the file system of a scheme."""

    def register(scheme, kind=ObjectStore, **members):
        known = {"protocol": (scheme, *KINDS.get(scheme, ())), "objects": {}, "made": []}
        store = type("Registered", (kind,), {**known, "requests": [], **members})
        monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, scheme, store)
        return store

    return register


def make_fetcher(*roots, schemes=(), options=None, **limits):
    return Fetcher(
        ImageViTEmbedding(
            allow_paths=roots,
            allow_schemes=schemes,
            storage_options=options,
            limits=ImageLimits(**limits),
        )
    )


def failure_of(url, fetcher):
    with pytest.raises(RowFailure) as caught:
        fetcher.fetch(url)
    assert caught.value.__cause__ is None
    return caught.value


def is_blocked(url, fetcher):
    failure = failure_of(url, fetcher)
    assert failure.status != Status.BLOCKED or "allow_paths" in failure.reason
    return failure.status == Status.BLOCKED


@pytest.mark.parametrize("scheme", KINDS)
def test_an_object_is_read_by_every_spelling_of_its_scheme(register, scheme):
    store = register(scheme)
    store.objects["bucket/photos/a b#1.png"] = b"image"
    for root in KINDS[scheme]:
        fetcher = make_fetcher(f"{root}://bucket/photos")
        for spelled in (*KINDS[scheme], scheme.upper()):
            assert fetcher.fetch(f"{spelled}://bucket/photos/a b#1.png") == b"image"
        assert is_blocked(f"{scheme}://bucket/other/a.png", fetcher)


def test_a_connection_that_was_lost_is_not_used_again(register):
    lost = []

    def read(self, path, mode, **_):
        # Each file system has one session, which ends with its first read.
        if id(self) in lost:
            raise OSError("the session was closed")
        lost.append(id(self))
        return ObjectStore._open(self, path)

    store = register("s3", open=read, async_impl=False, cachable=False)
    store.objects["bucket/a.png"] = b"image"
    fetcher = make_fetcher("s3://bucket")
    assert fetcher.fetch("s3://bucket/a.png") == b"image"
    assert failure_of("s3://bucket/a.png", fetcher).status == Status.READ_ERROR
    assert fetcher.fetch("s3://bucket/a.png") == b"image"
    assert len(store.made) == 2


def test_without_roots_no_store_is_read_and_none_is_connected(register):
    store = register("s3")
    store.objects["bucket/a.png"] = b"image"
    fetcher = make_fetcher(options={"key": "k"})
    assert is_blocked("s3://bucket/a.png", fetcher)
    assert is_blocked("s3://bucket/a.png", make_fetcher("s3://other"))
    assert is_blocked("s3://bucket/a.png", make_fetcher("/bucket", "gs://bucket"))
    assert store.made == []


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/photos2/a.png",
        "s3://bucket/photo",
        "s3://bucket/",
        "s3://bucket",
        "s3://bucket/Photos/a.png",
        "s3://Bucket/photos/a.png",
        "s3://bucket//photos/a.png",
        "s3://bucket/photos/../other/a.png",
        "s3://bucket/photos/./a.png",
        "s3://bucket/photos/..",
        "s3://bucket/photos/%2e%2e/other/a.png",
        "s3://bucket/photos%2Fa.png",
        "s3://bucket/photos/..%2fother/a.png",
        "s3://bucket/photos\\..\\a.png",
        "s3://bucket/photos/a\n.png",
        "s3://bucket/photos/a\0.png",
        "s3://bucket/photos/a\x85.png",
        "s3://bucket/photos/a::b.png",
        "s3://bucket/photos/a.png::s3://bucket/photos/b.png",
        "s3://user@bucket/photos/a.png",
        "s3://user:secret@bucket/photos/a.png",
        "s3://bucket@other/photos/a.png",
        "s3://bucket:80/photos/a.png",
        "s3://bucket?x/photos/a.png",
        "s3://bucket#x/photos/a.png",
        "s3:///bucket/photos/a.png",
        "s3:/bucket/photos/a.png",
        "s3:bucket/photos/a.png",
        "s3://",
        "s3://s3a://bucket/photos/a.png",
        "s3://arn:aws:s3:x:1:accesspoint/photos/a.png",
        "s3://http://host/photos/a.png",
        "s3+http://bucket/photos/a.png",
        "s3::s3://bucket/photos/a.png",
        "simplecache::s3://bucket/photos/a.png",
        "zip://a.png::s3://bucket/photos/a.zip",
        "s3://bucket／photos/a.png",
        "s3://bucket．/photos/a.png",
        "\u200bs3://bucket/photos/a.png",
    ],
)
def test_spellings_that_might_lead_out_of_a_root_are_blocked(register, url):
    store = register("s3")
    fetcher = make_fetcher("s3://bucket/photos")
    assert is_blocked(url, fetcher)
    assert store.made == []


@pytest.mark.parametrize(
    "url",
    [
        "reference://x::data:,{}",
        "reference://a",
        "generic://a",
        "dir::file:///etc",
        "data:text/plain,hello",
        " data:image/png;base64,aGVsbG8=",
        "filecache::http://host/a.png",
        "blockcache://a",
        "cached://a",
        "zip://a::file:///dev/zero",
        "tar://a::/pipe",
        "libarchive://a",
        "github://org:repo@main/a.png",
        "hf://datasets/a/b/c.png",
        "ftp://host/a.png",
        "sftp://host/a.png",
        "smb://host/a.png",
        "memory://a",
        "git://repository:main@a",
        "jupyter://host/a",
        "no-such-scheme://a",
        "root://host//a",
    ],
)
def test_other_schemes_and_chains_are_blocked(url, monkeypatch):
    connected = []
    monkeypatch.setattr("spark_vision.images.stores._connect", lambda *_: connected.append(url))
    assert is_blocked(url, make_fetcher("/", "s3://bucket"))
    assert connected == []


def test_a_chain_is_blocked_regardless_of_allowed_schemes(register):
    memory = register("memory", MemoryFileSystem, store={}, pseudo_dirs=[""])
    memory().pipe("/photos/a.png", b"image")
    fetcher = make_fetcher("memory://photos", schemes=["memory"])
    assert fetcher.fetch("memory://photos/a.png") == b"image"
    assert fetcher.fetch("MEMORY://photos/a.png") == b"image"
    for url in (
        "simplecache::memory://photos/a.png",
        "memory::memory://photos/a.png",
        "memory://photos/a.png::memory://photos/a.png",
        "memory://photos::http://host/a.png",
        "zip://a.png::memory://photos/a.zip",
    ):
        assert is_blocked(url, fetcher)


def test_a_chained_file_system_is_refused_under_any_name(register):
    class Archive(AbstractArchiveFileSystem):
        pass

    for number, kind in enumerate((Archive, DirFileSystem)):
        register(f"box{number}", kind)
        fetcher = make_fetcher(f"box{number}://a", schemes=[f"box{number}"])
        assert "chained and archive" in failure_of(f"box{number}://a/b", fetcher).reason


def test_the_row_chooses_no_option_of_the_store(register):
    def kwargs_of(url):
        query = url.partition("?")[2]
        return {"endpoint_url": query} if query else {}

    store = register("s3", _get_kwargs_from_urls=staticmethod(kwargs_of))
    store.objects["bucket/a.png?endpoint_url=http://h"] = b"image"
    fetcher = make_fetcher("s3://bucket", options={"endpoint_url": "http://mine"})
    assert fetcher.fetch("s3://bucket/a.png?endpoint_url=http://h") == b"image"
    assert [made["endpoint_url"] for made in store.made] == ["http://mine"]


def test_a_version_is_read_only_if_the_options_allow_it(register):
    store = register("s3")
    store.objects["bucket/a.png?versionId=1"] = b"image"
    failure = failure_of("s3://bucket/a.png?versionId=1", make_fetcher("s3://bucket"))
    assert "version_aware" in failure.reason
    aware = make_fetcher("s3://bucket", options={"version_aware": True})
    assert aware.fetch("s3://bucket/a.png?versionId=1") == b"image"


def test_options_may_be_given_by_scheme(register):
    s3, gcs = register("s3"), register("gcs")
    s3.objects["b/a"] = gcs.objects["b/a"] = b"image"
    options = {"anon": True, "s3a": {"key": "k"}, "gs": {"token": "t"}}
    fetcher = make_fetcher("s3://b", "gs://b", options=options)
    fetcher.fetch("s3://b/a")
    fetcher.fetch("gs://b/a")
    assert s3.made == [{"anon": True, "key": "k"}]
    assert gcs.made == [{"anon": True, "token": "t"}]


def test_the_account_of_an_azure_url_is_that_of_the_root(register):
    def account_of(url):
        host = url.partition("//")[2].partition("/")[0].partition("@")[2]
        return {"account_name": host.partition(".")[0]}

    def key_of(cls, path):
        rest = path.partition("//")[2] or path
        container, _, key = rest.partition("/")
        return f"{container.partition('@')[0]}/{key}"

    store = register(
        "abfs",
        _get_kwargs_from_urls=staticmethod(account_of),
        _strip_protocol=classmethod(key_of),
    )
    store.objects["photos/a.png"] = b"image"
    fetcher = make_fetcher("abfss://photos@mine.dfs.core.windows.net/", options={"sas_token": "t"})
    assert fetcher.fetch("abfs://photos@mine.dfs.core.windows.net/a.png") == b"image"
    assert store.made == [{"account_name": "mine", "sas_token": "t"}]
    for authority in (
        "photos@other.dfs.core.windows.net",
        "other@mine.dfs.core.windows.net",
        "photos@mine.dfs.core.windows.net:80",
        "photos@mine.dfs.core.windows.net@other.example",
        "photos:x@mine.dfs.core.windows.net",
        "photos",
    ):
        assert is_blocked(f"abfss://{authority}/a.png", fetcher)


def test_the_name_node_is_that_of_the_root(register):
    def host_of(url):
        return {"host": url.partition("//")[2].partition("/")[0]}

    for scheme in ("hdfs", "webhdfs"):
        strip = classmethod(lambda cls, path: path)
        store = register(scheme, _get_kwargs_from_urls=staticmethod(host_of), _strip_protocol=strip)
        store.objects["/data/a?b#c.png"] = b"image"
        fetcher = make_fetcher(f"{scheme}://NameNode:8020/data/")
        assert fetcher.fetch(f"{scheme}://namenode:8020/data/a?b#c.png") == b"image"
        assert store.made == [{"host": "namenode:8020"}]
        proxied = make_fetcher(f"{scheme}://namenode:8020/data", options={"host": "proxy"})
        assert proxied.fetch(f"{scheme}://namenode:8020/data/a?b#c.png") == b"image"
        assert store.made[1:] == [{"host": "proxy"}]
        for url in (
            f"{scheme}://other:8020/data/a.png",
            f"{scheme}://namenode/data/a.png",
            f"{scheme}:/data/a.png",
            f"{scheme}://user@namenode:8020/data/a.png",
            f"{scheme}://namenode:8020/data/../etc/a.png",
            f"{scheme}://namenode:8020/database/a.png",
            f"{scheme}://namenode:8020//data/a.png",
        ):
            assert is_blocked(url, fetcher), url


def test_hadoop_spellings_without_a_host_are_read(register):
    store = register("hdfs", _strip_protocol=classmethod(lambda cls, path: path))
    store.objects["/data/a.png"] = b"image"
    for root in ("hdfs:///data", "hdfs:/data"):
        fetcher = make_fetcher(root)
        assert fetcher.fetch("hdfs:/data/a.png") == b"image"
        assert fetcher.fetch("hdfs:///data/a.png") == b"image"
        assert is_blocked("hdfs:/etc/a.png", fetcher)


def test_one_file_system_is_connected_for_all_rows_and_none_is_kept_by_fsspec(register):
    store = register("s3")
    for number in range(50):
        store.objects[f"bucket/{number}"] = b"image"
    fetcher = make_fetcher("s3://bucket")
    for number in range(50):
        fetcher.fetch(f"s3://bucket/{number}")
    assert len(store.made) == 1
    assert not store._cache
    fetcher.close()
    assert failure_of("s3://bucket/missing", make_fetcher("s3://bucket")).reason.startswith("no s")


def test_no_listing_is_kept_from_row_to_row(register):
    listed = []

    def info(self, path, **_):
        folder = path.rpartition("/")[0]
        if folder not in self.dircache:
            listed.append(folder)
            self.dircache[folder] = [{"name": name} for name in self.objects]
        if path not in [entry["name"] for entry in self.dircache.get(folder) or self.entries()]:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.objects[path]), "type": "file"}

    def entries(self):
        return [{"name": name} for name in self.objects]

    store = register("s3", info=info, entries=entries)
    store.objects["bucket/a"] = b"image"
    fetcher = make_fetcher("s3://bucket")
    fetcher.fetch("s3://bucket/a")
    store.objects["bucket/b"] = b"later"
    assert fetcher.fetch("s3://bucket/b") == b"later"
    assert len(listed) == 2


def test_threads_do_not_share_a_file_system_that_is_not_thread_safe(register):
    inside, most = set(), []
    lock = threading.Lock()

    def fetch_slowly(self, path, mode="rb", block_size=None, **_):
        with lock:
            assert id(self) not in inside
            inside.add(id(self))
            most.append(len(inside))
        barrier.wait(timeout=30)
        with lock:
            inside.discard(id(self))
        return ObjectFile(self, path, mode, block_size, cache_type="none")

    barrier = threading.Barrier(4)
    store = register("s3", _open=fetch_slowly)
    store.objects["bucket/a"] = b"image"
    fetcher = make_fetcher("s3://bucket")
    for _ in range(3):
        threads = [threading.Thread(target=fetcher.fetch, args=["s3://bucket/a"]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(store.made) == 4
    assert max(most) == 4


def test_bytes_are_counted_as_they_come_and_nothing_is_read_ahead(register):
    store = register("s3")
    store.objects["bucket/a"] = b"x" * 1_001
    assert failure_of("s3://bucket/a", make_fetcher("s3://bucket", max_bytes=1000)).status == (
        Status.TOO_LARGE
    )
    assert store.requests == []
    assert len(make_fetcher("s3://bucket", max_bytes=1001).fetch("s3://bucket/a")) == 1001
    assert store.requests == [("bucket/a", 0, 1002)]


def test_a_store_that_sends_more_than_announced_is_too_large(register):
    class Endless:
        size = 10
        sent = 0

        def read(self, length):
            Endless.sent += length
            return b"x" * length

        def close(self):
            pass

    register("s3", open=lambda self, path, mode, **_: Endless())
    failure = failure_of("s3://bucket/a", make_fetcher("s3://bucket", max_bytes=20_000_000))
    assert failure.status == Status.TOO_LARGE
    assert Endless.sent <= 20_000_001


def test_large_objects_come_in_few_pieces(register):
    data = os.urandom(20_000_000)
    store = register("s3")
    store.objects["bucket/a"] = data
    heard = []
    operator = ImageViTEmbedding(allow_paths="s3://bucket")
    assert Fetcher(operator).fetch("s3://bucket/a", heard.append) == data
    assert sum(heard) == len(data)
    assert len(store.requests) == 3


@pytest.mark.parametrize("place", ["connecting", "opening", "size", "reading"])
def test_a_hanging_call_is_abandoned_at_the_deadline(register, place):
    goes_on = threading.Event()

    class Hanging:
        @property
        def size(self):
            if place == "size":
                goes_on.wait(60)
            return None

        def read(self, _):
            if place == "reading":
                goes_on.wait(60)
            return b""

        def close(self):
            pass

    def connect(self, **_):
        if place == "connecting":
            goes_on.wait(60)

    def open_(self, path, mode, **_):
        if place == "opening":
            goes_on.wait(60)
        return Hanging()

    register("s3", __init__=connect, open=open_, async_impl=False)
    fetcher = make_fetcher("s3://bucket", fetch_seconds=0.2)
    try:
        failure = failure_of("s3://bucket/a", fetcher)
        assert failure.status == Status.TIMEOUT
        assert not goes_on.is_set()
        assert len(deadline_threads._hanging) == 1
    finally:
        goes_on.set()
    wait_until_none_hangs()
    assert fetch_in_the_end("s3://bucket/a", fetcher) == b""


def fetch_in_the_end(url, fetcher):
    """Fetch, with as many tries as a busy machine needs to be within the deadline once."""
    for _ in range(100):
        with suppress(RowFailure):
            return fetcher.fetch(url)
    return fetcher.fetch(url)


def wait_until_none_hangs():
    for _ in range(3000):
        if not deadline_threads._hanging:
            break
        time.sleep(0.01)
    assert not deadline_threads._hanging


def test_reads_fail_at_once_when_too_many_hang(register, monkeypatch):
    monkeypatch.setattr(deadline_threads, "MAX_ABANDONED", 3)
    goes_on, begun = threading.Event(), []

    def open_(self, path, mode, **_):
        begun.append(path)
        goes_on.wait(60)
        return self

    register("s3", open=open_)
    fetcher = make_fetcher("s3://bucket", fetch_seconds=0.1)
    patient = make_fetcher("s3://bucket", fetch_seconds=60)
    try:
        for _ in range(3):
            assert failure_of("s3://bucket/a", fetcher).status == Status.TIMEOUT
        failure = failure_of("s3://bucket/a", patient)
        assert failure.status == Status.TIMEOUT
        assert "still hang" in failure.reason
    finally:
        goes_on.set()
    wait_until_none_hangs()
    assert len(begun) == 3


def test_message_of_a_file_system_is_not_shown(register):
    def open_(self, path, mode, **_):
        raise PermissionError(f"the key {self.key} does not open {path}")

    def connect(self, key, **_):
        self.key = key
        if key == "broken-hunter2":
            raise RuntimeError(f"the key {key} broke")

    register("s3", __init__=connect, open=open_, async_impl=False)
    wrong = failure_of(
        "s3://bucket/a?sig=topsecret", make_fetcher("s3://bucket", options={"key": "x-hunter2"})
    )
    assert "permission denied" in wrong.reason
    broken = failure_of(
        "s3://bucket/a", make_fetcher("s3://bucket", options={"key": "broken-hunter2"})
    )
    assert broken.status == Status.READ_ERROR
    for failure in (wrong, broken):
        assert failure.__suppress_context__
        for secret in ("hunter2", "topsecret"):
            assert secret not in str(failure)


def test_missing_object_is_reported(register):
    register("s3")
    failure = failure_of("s3://bucket/folder/a.png", make_fetcher("s3://bucket"))
    assert failure.status == Status.READ_ERROR
    assert failure.reason == "no such file: s3://bucket/folder/a.png"


def test_allowed_but_unknown_scheme_is_named():
    fetcher = make_fetcher("carrier-pigeon://loft", schemes=["carrier-pigeon"])
    failure = failure_of("carrier-pigeon://loft/a?topsecret", fetcher)
    assert failure.status == Status.READ_ERROR
    assert "no file system has this scheme: carrier-pigeon" in failure.reason
    assert "topsecret" not in failure.reason


def test_missing_package_of_a_file_system_is_named(monkeypatch):
    missing = {"class": "no_such_package.FileSystem", "err": "Install no_such_package to use attic"}
    monkeypatch.setitem(known_implementations, "attic", missing)
    failure = failure_of("attic://box/a.png", make_fetcher("attic://box", schemes=["attic"]))
    assert failure.status == Status.READ_ERROR
    assert "no_such_package" in failure.reason


def test_an_address_of_any_length_is_cheap():
    fetcher = make_fetcher("s3://bucket")
    for start in ("s3://bucket/", "http://", "/", "a::" * 10, "%2e" * 10, "::"):
        failure = failure_of(start * 1000 + "x" * 10_000_000, fetcher)
        assert failure.status == Status.READ_ERROR
        assert failure.reason == "the address has more than 8,192 characters"


def test_storage_options_stay_out_of_representations():
    assert "topsecret" not in repr(make_fetcher(options={"key": "topsecret"}))


def test_fsspec_never_gets_a_rows_full_url(register, monkeypatch):
    store = register("s3")
    store.objects["bucket/a"] = b"image"
    for name in ("url_to_fs", "_un_chain", "open"):
        monkeypatch.delattr(fsspec.core, name)
    assert make_fetcher("s3://bucket").fetch("s3://bucket/a") == b"image"
