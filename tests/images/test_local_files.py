"""Local files are read only below the operator's allowed roots."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from spark_vision.errors import RowFailure, Status
from spark_vision.images.fetch import Fetcher
from spark_vision.operators import ImageLimits, ImageViTEmbedding


def make_fetcher(*roots, **limits):
    return Fetcher(ImageViTEmbedding(allow_paths=roots, limits=ImageLimits(**limits)))


def failure_of(url, fetcher):
    with pytest.raises(RowFailure) as caught:
        fetcher.fetch(str(url))
    return caught.value


def is_blocked(url, fetcher):
    failure = failure_of(url, fetcher)
    assert "allow_paths" in failure.reason or failure.status != Status.BLOCKED
    return failure.status == Status.BLOCKED


@pytest.fixture(autouse=True, params=["directly", "by a thread"])
def way(request, monkeypatch):
    """Local files are read directly, network files by a thread; both with the same checks."""
    hangs = request.param == "by a thread"
    monkeypatch.setattr("spark_vision.images.local_files.may_hang", lambda *_: hangs)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"image")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "photos2").mkdir()
    (tmp_path / "photos2" / "b.png").write_bytes(b"secret")
    return folder


@pytest.fixture
def fetcher(root):
    return make_fetcher(str(root))


@pytest.mark.parametrize(
    "name", ["plain.png", "with blank.png", "a#b?c%20d.png", "图片.png", "a:b@2x.png", "100%.png"]
)
def test_local_path_is_literal(root, fetcher, name):
    path = root / name
    path.write_bytes(b"image")
    assert fetcher.fetch(str(path)) == b"image"
    assert fetcher.fetch(path.as_uri()) == b"image"
    assert fetcher.fetch(path.as_uri().replace("file:///", "file:/")) == b"image"
    # As Hadoop writes it, and with it the path column of binaryFile.
    assert fetcher.fetch(f"file:{path}") == b"image"


def test_file_url_is_percent_decoded_where_there_is_such_a_file(root, fetcher):
    (root / "50%20off.png").write_bytes(b"as written")
    assert fetcher.fetch(f"file:{root}/50%20off.png") == b"as written"
    (root / "50 off.png").write_bytes(b"decoded")
    assert fetcher.fetch(f"file:{root}/50%20off.png") == b"decoded"
    assert failure_of(f"file:{root}/no%20such.png", fetcher).reason.startswith("no such file")
    (root / "..%2Fsecret.png").write_bytes(b"image")
    assert is_blocked(f"file:{root}/..%2Fsecret.png", fetcher)
    (root / "%6Cink.png").symlink_to(root.parent / "secret.png")
    assert is_blocked(f"file:{root}/%6Cink.png", fetcher)


def test_relative_path_is_from_the_working_directory(root, fetcher, monkeypatch):
    monkeypatch.chdir(root)
    assert fetcher.fetch("a.png") == b"image"
    assert fetcher.fetch("./a.png") == b"image"
    assert is_blocked("../secret.png", fetcher)
    monkeypatch.chdir(root.parent)
    assert fetcher.fetch("photos/a.png") == b"image"
    assert is_blocked("secret.png", fetcher)


def test_large_file_comes_in_pieces(root, fetcher):
    data = os.urandom(4_500_000)
    (root / "large").write_bytes(data)
    heard = []
    assert fetcher.fetch(str(root / "large"), heard.append) == data
    assert sum(heard) == len(data)
    assert len(heard) > 3


def test_file_over_the_limit_is_too_large_and_not_read(root):
    path = root / "sparse"
    with path.open("wb") as file:
        file.truncate(10**12)
    small = make_fetcher(str(root), max_bytes=1000)
    assert failure_of(path, make_fetcher(str(root))).status == Status.TOO_LARGE
    path.write_bytes(b"x" * 1001)
    assert failure_of(path, small).status == Status.TOO_LARGE
    path.write_bytes(b"x" * 1000)
    assert len(small.fetch(str(path))) == 1000


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("missing.png", "no such file"),
        ("a.png/below.png", "no such file"),
        (".", "is a directory"),
        ("x" * 300, "File name too long"),
        ("loop", "Too many levels"),
        ("pipe", "is not a regular file"),
        ("socket", "is not a regular file"),
    ],
)
def test_unreadable_path_below_a_root_is_reported_with_its_reason(root, fetcher, path, expected):
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
        failure = failure_of(root / path, fetcher)
    assert failure.status == Status.READ_ERROR
    assert expected in failure.reason


def test_file_without_permission_is_reported(root):
    path = root / "a.png"
    path.chmod(0)
    program = """
import os, sys
from spark_vision.images.fetch import Fetcher
from spark_vision.operators import ImageViTEmbedding
if os.getuid() == 0:
    os.setuid(65534)
try:
    Fetcher(ImageViTEmbedding(allow_paths=sys.argv[2])).fetch(sys.argv[1])
except ValueError as failure:
    print(failure.status.value, failure.reason)
"""
    if os.getuid() == 0:
        # pytest's folders are closed to other users.
        for parent in root.parents[:3]:
            parent.chmod(0o755)
    run = subprocess.run(
        [sys.executable, "-c", program, str(path), str(root)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout.startswith("read_error permission denied"), run.stderr


def test_without_roots_no_local_file_is_read_and_the_option_is_named(root):
    fetcher = Fetcher(ImageViTEmbedding())
    for path in (root / "a.png", (root / "a.png").as_uri(), "a.png", "/etc/passwd"):
        failure = failure_of(path, fetcher)
        assert failure.status == Status.BLOCKED
        assert "allow_paths" in failure.reason


def test_paths_that_lead_out_of_a_root_are_blocked(root, fetcher):
    outside = root.parent
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "folder").symlink_to(outside / "photos2")
    (root / "inside").mkdir()
    spellings = [
        outside / "secret.png",
        outside / "photos2/b.png",
        root / "link.png",
        root / "folder/b.png",
        f"{root}/../secret.png",
        f"{root}/inside/../../secret.png",
        f"{root}/folder/../secret.png",
        f"{root}/./../photos2/b.png",
        f"/{outside}/secret.png",
        f"//{outside}/secret.png",
        f"file://{root}/%2E%2E/secret.png",
        f"file://{root}/..%2Fsecret.png",
        f"file:{str(outside).replace('/', '%2F')}%2Fsecret.png",
        f"file:///{outside}/secret.png",
        f"FILE:{outside}/secret.png",
        f"local://{outside}/secret.png",
        f" {outside}/secret.png",
        f"{root}/a.png\0.jpg",
        f"file:{root}/a.png%00.jpg",
        "//server/share/a.png",
        "\\\\server\\share\\a.png",
        f"\u200b{root}/a.png",
        f"file:{root}\uff0f\uff0e\uff0e\uff0fsecret.png/../../secret.png",
    ]
    for path in spellings:
        assert is_blocked(path, fetcher), path


def test_paths_that_come_back_into_a_root_are_read(root, fetcher):
    (root / "inside").mkdir()
    (root / "link.png").symlink_to(root / "a.png")
    (root.parent / "alias").symlink_to(root)
    for path in (f"{root}/inside/../a.png", f"//{root}//a.png", root / "link.png"):
        assert fetcher.fetch(str(path)) == b"image"
    alias = make_fetcher(str(root.parent / "alias"))
    assert alias.fetch(str(root.parent / "alias/a.png")) == b"image"
    assert alias.fetch(str(root / "a.png")) == b"image"


def test_existence_of_a_file_outside_the_roots_is_not_revealed(root, fetcher):
    (root / "folder").symlink_to(root.parent / "photos2")
    (root / "dangling.png").symlink_to(root.parent / "missing.png")
    (root / "link.png").symlink_to(root.parent / "secret.png")
    pairs = [
        (root.parent / "secret.png", root.parent / "no.png"),
        (f"{root}/folder/b.png", f"{root}/folder/no.png"),
        (f"{root}/folder/../secret.png", f"{root}/folder/../no.png"),
        (root / "link.png", root / "dangling.png"),
        (f"{root}/folder/b.png", f"{root}/folder/b.png/below.png"),
        ("/etc/passwd", "/etc/no-such-file"),
    ]
    for present, missing in pairs:
        existing, absent = (failure_of(path, fetcher) for path in (present, missing))
        assert existing.status == absent.status == Status.BLOCKED
        prefix = existing.reason.partition(": ")[0]
        assert absent.reason.startswith(prefix)


def test_a_path_outside_the_roots_is_refused_without_file_system_access(root, fetcher, monkeypatch):
    def ask(*_, **__):
        raise AssertionError("the file system was asked")

    with monkeypatch.context() as patched:
        for name in ("open", "stat", "lstat", "readlink"):
            patched.setattr(os, name, ask)
        for path in (root.parent / "secret.png", "/net/host/share/a.png", f"{root}/../a.png"):
            with pytest.raises(RowFailure) as caught:
                fetcher.fetch(str(path))
            assert caught.value.status == Status.BLOCKED
        with pytest.raises(AssertionError):
            fetcher.fetch(str(root / "a.png"))


def test_kernel_files_and_devices_are_blocked_even_below_the_root_of_all(root):
    everything = make_fetcher("/")
    assert everything.fetch(str(root / "a.png")) == b"image"
    (root / "zero").symlink_to("/dev/zero")
    (root / "environment").symlink_to("/proc/self/environ")
    (root / "kernel").symlink_to("/proc")
    for path in (
        "/proc/self/environ",
        "/proc/self/fd/0",
        f"/proc/self/root{root}/a.png",
        "/proc/thread-self/root/etc/passwd",
        "/proc/1/cmdline",
        "/sys/kernel/notes",
        "/dev/zero",
        "/dev/urandom",
        "/dev/stdin",
        "//proc/self/environ",
        root / "zero",
        root / "environment",
        root / "kernel/self/environ",
    ):
        assert is_blocked(path, everything), path
    assert is_blocked(root / "kernel/self/environ", make_fetcher(str(root / "kernel")))


def test_a_root_in_shared_memory_may_be_named():
    path = Path(f"/dev/shm/spark-vision-test-{os.getpid()}.png")
    path.write_bytes(b"image")
    try:
        assert make_fetcher("/dev/shm").fetch(str(path)) == b"image"
        assert is_blocked(path, make_fetcher("/"))
    finally:
        path.unlink()


def test_a_constantly_changing_link_never_leads_outside(root, fetcher):
    link = root / "race.png"
    ends = threading.Event()

    def flip():
        while not ends.is_set():
            for target in (root / "a.png", root.parent / "secret.png"):
                (root / "next").symlink_to(target)
                (root / "next").rename(link)

    link.symlink_to(root / "a.png")
    flipper = threading.Thread(target=flip)
    flipper.start()
    try:
        seen = set()
        for _ in range(3000):
            try:
                seen.add(fetcher.fetch(str(link)))
            except RowFailure as failure:
                seen.add(failure.status)
    finally:
        ends.set()
        flipper.join()
    assert b"secret" not in seen
    assert b"image" in seen


def test_systems_that_cannot_pin_a_file_are_as_strict(root, monkeypatch):
    monkeypatch.setattr("spark_vision.images.local_files._PATH_ONLY", 0)
    fetcher = make_fetcher(str(root))
    (root / "link.png").symlink_to(root.parent / "secret.png")
    os.mkfifo(root / "pipe")
    assert fetcher.fetch(str(root / "a.png")) == b"image"
    assert is_blocked(root / "link.png", fetcher)
    assert "not a regular file" in failure_of(root / "pipe", fetcher).reason
    assert "no such file" in failure_of(root / "missing.png", fetcher).reason


def test_refused_files_leave_no_descriptor_open(root, fetcher):
    os.mkfifo(root / "pipe")
    (root / "link.png").symlink_to(root.parent / "secret.png")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        for path in (root, root / "pipe", root / "link.png", root / "missing"):
            failure_of(path, fetcher)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_abandoned_read_reads_no_other_file(root, monkeypatch):
    monkeypatch.setattr("spark_vision.images.local_files.may_hang", lambda *_: True)
    fetcher = make_fetcher(str(root), fetch_seconds=0.2)
    hangs, ends = threading.Event(), threading.Event()
    has_read, has_closed = threading.Event(), threading.Event()
    real_read, real_close, read = os.read, os.close, []

    def hanging_read(descriptor, size):
        read.append(descriptor)
        hangs.set()
        assert ends.wait(20)
        try:
            return real_read(descriptor, size)
        finally:
            has_read.set()

    def close(descriptor):
        real_close(descriptor)
        if descriptor in read and has_read.is_set():
            has_closed.set()

    monkeypatch.setattr(os, "read", hanging_read)
    monkeypatch.setattr(os, "close", close)
    assert failure_of(root / "a.png", fetcher).status == Status.TIMEOUT
    assert hangs.wait(20)
    # They get the lowest numbers that are free, the one of the file left behind among them.
    others = [(root.parent / "secret.png").open("rb", buffering=0) for _ in range(5)]
    ends.set()
    assert has_read.wait(20)
    assert [other.read() for other in others] == [b"secret"] * 5
    for other in others:
        other.close()
    assert has_closed.wait(20)


def test_file_url_of_another_host_is_a_read_error(fetcher):
    failure = failure_of("file://server/share/a.png?token=topsecret", fetcher)
    assert failure.status == Status.READ_ERROR
    assert "another host" in failure.reason
    assert "topsecret" not in failure.reason


def test_fetching_in_many_threads(root, fetcher):
    for number in range(40):
        (root / str(number)).write_bytes(b"%d" % number)
    wrong = []

    def work():
        for number in range(40):
            if fetcher.fetch(str(root / str(number))) != b"%d" % number:
                wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
