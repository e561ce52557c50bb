"""Fetching from local files and fsspec file systems; HTTP has its own tests."""

import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from spark_vision.errors import RowFailure
from spark_vision.images.fetch import Fetcher
from spark_vision.operators import ImageLimits, ImageViTEmbedding
from spark_vision.status import Status


def fetcher_of(storage_options=None, **limits):
    return Fetcher(ImageViTEmbedding(limits=ImageLimits(**limits), storage_options=storage_options))


FETCHER = fetcher_of(max_bytes=5_000_000)


def failure_of(url, fetcher=FETCHER):
    with pytest.raises(RowFailure) as caught:
        fetcher.fetch(url)
    return caught.value


@pytest.mark.parametrize(
    "name", ["plain.png", "with blank.png", "a#b?c%20d.png", "图片.png", "a:b@2x.png", "100%.png"]
)
def test_local_path_means_itself(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"image")
    assert FETCHER.fetch(str(path)) == b"image"
    assert FETCHER.fetch(path.as_uri()) == b"image"
    assert FETCHER.fetch(path.as_uri().replace("file:///", "file:/")) == b"image"


def test_relative_path_is_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"image")
    monkeypatch.chdir(tmp_path)
    assert FETCHER.fetch("a.png") == b"image"
    assert FETCHER.fetch("./a.png") == b"image"


def test_large_file_comes_in_pieces(tmp_path):
    data = os.urandom(4_500_000)
    (tmp_path / "a").write_bytes(data)
    heard = []
    assert FETCHER.fetch(str(tmp_path / "a"), heard.append) == data
    assert sum(heard) == len(data)
    assert len(heard) > 3


def test_file_over_the_limit_is_too_large_and_not_read(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(10**12)
    assert failure_of(str(path)).status == Status.TOO_LARGE
    path.write_bytes(b"x" * 1001)
    assert failure_of(str(path), fetcher_of(max_bytes=1000)).status == Status.TOO_LARGE
    path.write_bytes(b"x" * 1000)
    assert len(fetcher_of(max_bytes=1000).fetch(str(path))) == 1000


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing.png", "no such file"),
        ("file.png/below.png", "no such file"),
        (".", "is a directory"),
        ("nul\0byte.png", "cannot be read"),
        ("x" * 300, "File name too long"),
        ("loop", "Too many levels"),
    ],
)
def test_path_that_cannot_be_read_says_why(tmp_path, path, said):
    (tmp_path / "file.png").write_bytes(b"image")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    failure = failure_of(str(tmp_path / path))
    assert failure.status == Status.READ_ERROR
    assert said in failure.reason


def test_file_without_permission_says_so(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"image")
    path.chmod(0)
    tmp_path.chmod(0o755)
    program = """
import os, sys
from spark_vision.images.fetch import Fetcher
from spark_vision.operators import ImageViTEmbedding
if os.getuid() == 0:
    os.setuid(65534)
try:
    Fetcher(ImageViTEmbedding()).fetch(sys.argv[1])
except ValueError as failure:
    print(failure.status.value, failure.reason)
"""
    if os.getuid() == 0:
        # pytest's folders are closed to other users.
        for parent in tmp_path.parents[:2]:
            parent.chmod(0o755)
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60
    )
    assert run.stdout.startswith("read_error permission denied"), run.stderr


def test_pipes_sockets_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    start = time.monotonic()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        pipe = tmp_path / "pipe"
        for path in (pipe, f"local://{pipe}", tmp_path / "socket", "/dev/zero", "/dev/urandom"):
            assert failure_of(str(path)).status == Status.READ_ERROR
    assert time.monotonic() - start < 2


def test_refused_files_leave_no_descriptor_open(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        failure_of(str(tmp_path))
        failure_of(str(tmp_path / "pipe"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_file_url_of_another_host_is_a_read_error():
    failure = failure_of("file://server/share/a.png?token=topsecret")
    assert failure.status == Status.READ_ERROR
    assert "another host" in failure.reason
    assert "topsecret" not in failure.reason


@pytest.fixture
def memory():
    file_system = fsspec.filesystem("memory")
    file_system.store.clear()
    yield file_system
    file_system.store.clear()


def test_fsspec_file_is_read(memory):
    data = os.urandom(3_000_000)
    memory.pipe("/folder/a.png", data)
    assert FETCHER.fetch("memory://folder/a.png") == data
    assert FETCHER.fetch("memory:/folder/a.png") == data
    assert FETCHER.fetch("simplecache::memory://folder/a.png") == data


def test_fsspec_file_over_the_limit_is_too_large(memory):
    memory.pipe("/a", b"x" * 1001)
    assert failure_of("memory://a", fetcher_of(max_bytes=1000)).status == Status.TOO_LARGE
    assert len(fetcher_of(max_bytes=1001).fetch("memory://a")) == 1001


def test_fsspec_chain_is_read(memory, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("a.png", b"image")
    assert FETCHER.fetch(f"zip://a.png::{tmp_path}/images.zip") == b"image"


class VaultFileSystem(MemoryFileSystem):
    """A file system that opens only with its key, and blabs about it."""

    protocol = "vault"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("vault://").lstrip("/")

    def __init__(self, key=None, **options):
        super().__init__(**options)
        self.key = key

    def _open(self, path, mode="rb", **options):
        if self.key != "topsecret":
            raise PermissionError(f"the key {self.key} does not open {path}")
        if path.endswith("broken"):
            raise RuntimeError(f"the key {self.key} broke")
        return super()._open(path, mode, **options)


@pytest.fixture
def vault(memory):
    fsspec.register_implementation("vault", VaultFileSystem, clobber=True)
    memory.pipe("/a", b"image")
    memory.pipe("/broken", b"image")


@pytest.mark.usefixtures("vault")
def test_storage_options_reach_the_file_system():
    operator = ImageViTEmbedding(storage_options={"key": "topsecret"})
    fetcher = Fetcher(operator)
    assert fetcher.fetch("vault://a") == b"image"
    assert fetcher_of(storage_options={"key": "topsecret"}).fetch("vault://a") == b"image"
    assert failure_of("vault://a").status == Status.READ_ERROR


@pytest.mark.usefixtures("vault")
def test_what_a_file_system_says_is_not_shown():
    wrong = failure_of("vault://a?sig=hidden", fetcher_of(storage_options={"key": "wrong-hunter2"}))
    assert "permission denied" in wrong.reason
    broken = failure_of("vault://broken", fetcher_of(storage_options={"key": "topsecret"}))
    assert broken.status == Status.READ_ERROR
    for failure in (wrong, broken):
        assert failure.__cause__ is None
        assert failure.__suppress_context__
        for secret in ("hunter2", "topsecret", "hidden"):
            assert secret not in str(failure)


@pytest.mark.parametrize("url", ["memory://missing.png", "memory://folder/missing.png"])
def test_missing_fsspec_file_says_so(memory, url):
    failure = failure_of(url)
    assert failure.status == Status.READ_ERROR
    assert failure.reason == f"no such file: {url}"


def test_unknown_scheme_is_named():
    failure = failure_of("carrier-pigeon://user:hunter2@loft/a?topsecret")
    assert failure.status == Status.READ_ERROR
    assert "carrier-pigeon" in failure.reason
    assert "hunter2" not in failure.reason
    assert "topsecret" not in failure.reason


def test_missing_package_of_a_file_system_is_named(monkeypatch):
    missing = {"class": "no_such_package.FileSystem", "err": "Install no_such_package to use attic"}
    monkeypatch.setitem(known_implementations, "attic", missing)
    failure = failure_of("attic://box/a.png")
    assert failure.status == Status.READ_ERROR
    assert "no_such_package" in failure.reason


def test_slow_file_system_ends_at_the_deadline(memory, monkeypatch):
    memory.pipe("/a", b"x" * 3_000_000)
    monkeypatch.setattr("spark_vision.images.fetch._PIECE_BYTES", 100_000)
    fetcher = fetcher_of(fetch_seconds=0.3)
    original = MemoryFileSystem._open

    def open_slowly(self, path, mode="rb", **options):
        file = original(self, path, mode, **options)
        read = file.read

        def read_slowly(size=-1):
            time.sleep(0.05)
            return read(size)

        monkeypatch.setattr(file, "read", read_slowly)
        return file

    monkeypatch.setattr(MemoryFileSystem, "_open", open_slowly)
    start = time.monotonic()
    assert failure_of("memory://a", fetcher).status == Status.TIMEOUT
    assert time.monotonic() - start < 1


def test_fetching_in_many_threads(tmp_path):
    for number in range(40):
        (tmp_path / str(number)).write_bytes(b"%d" % number)
    wrong = []

    def work():
        for number in range(40):
            if FETCHER.fetch(str(tmp_path / str(number))) != b"%d" % number:
                wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_storage_options_stay_out_of_representations():
    fetcher = fetcher_of(storage_options={"key": "topsecret"})
    assert "topsecret" not in repr(fetcher)
