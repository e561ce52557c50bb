"""Network file systems are distinguished from local ones, which need no thread for reads."""

import os
import threading
import time
from pathlib import Path

import pytest

from spark_vision.errors import RowFailure, Status
from spark_vision.images import deadline_threads
from spark_vision.images.fetch import Fetcher
from spark_vision.images.local_files import MOUNTS, may_hang
from spark_vision.operators import ImageLimits, ImageViTEmbedding

TABLE = r"""
22 1 0:21 / / rw,relatime - overlay overlay rw
23 22 0:22 / /proc rw - proc proc rw
24 22 0:23 / /dev rw - devtmpfs devtmpfs rw
25 22 0:24 / /sys/fs/cgroup rw shared:1 - cgroup2 cgroup rw
30 22 8:1 / /data rw,noatime master:1 - ext4 /dev/sda1 rw
31 30 0:40 / /data/share rw shared:7 - nfs4 filer:/share rw
32 22 0:41 / /net/my\040photos rw - fuse.s3fs s3fs rw
33 22 8:2 / /was/local rw - xfs /dev/sdb rw
34 33 0:42 / /was/local rw - cifs //filer/x rw
35 22 0:43 / /was/remote rw - nfs filer:/y rw
36 35 8:3 / /was/remote rw - xfs /dev/sdc rw
a line that means nothing
"""


@pytest.mark.parametrize(
    ("folder", "hangs"),
    [
        ("/home/photos", False),
        ("/data/photos", False),
        ("/data/shared", False),
        ("/data", True),
        ("/data/share", True),
        ("/data/share/photos", True),
        ("/net/my photos/a", True),
        ("/net/my", False),
        ("/was/local/a", True),
        ("/was/remote/a", False),
        ("/", True),
    ],
)
def test_a_folder_may_hang_if_a_network_file_system_is_mounted(folder, hangs):
    assert may_hang(folder, TABLE) is hangs


def test_a_system_without_a_table_of_mounts_reads_directly():
    assert may_hang("/data", "") is False


def test_this_machines_own_table_is_parsed():
    text = MOUNTS.read_text()
    assert may_hang("/dev/shm", text) in (True, False)
    kinds = {line.partition(" - ")[2].split(" ")[0] for line in text.splitlines()}
    assert all(kinds)


def count_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("step", ["open", "read", "realpath"])
def test_a_hanging_network_read_is_abandoned_without_leaks(step, tmp_path, monkeypatch):
    monkeypatch.setattr("spark_vision.images.local_files.may_hang", lambda *_: True)
    (tmp_path / "a.png").write_bytes(b"image")
    path = str(tmp_path / ("missing.png" if step == "realpath" else "a.png"))
    operator = ImageViTEmbedding(allow_paths=str(tmp_path), limits=ImageLimits(fetch_seconds=0.2))
    fetcher = Fetcher(operator)
    before = count_descriptors()
    goes_on = threading.Event()
    module, name = (os.path, step) if step == "realpath" else (os, step)
    original = getattr(module, name)

    def hang(*given, **named):
        if threading.current_thread().name == "spark-vision-store":
            goes_on.wait(60)
        return original(*given, **named)

    monkeypatch.setattr(module, name, hang)
    with pytest.raises(RowFailure) as caught:
        fetcher.fetch(path)
    assert caught.value.status == Status.TIMEOUT
    assert len(deadline_threads._hanging) == 1
    goes_on.set()
    for _ in range(3000):
        if not deadline_threads._hanging:
            break
        time.sleep(0.01)
    assert not deadline_threads._hanging
    assert count_descriptors() == before
