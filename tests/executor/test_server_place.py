"""The files by which a server is found: whose they are, and who removes them."""

import os
import tempfile

import pytest

from spark_vision.executor.executor_process import ExecutorProcess
from spark_vision.executor.server_lock import ServerLock
from spark_vision.executor.server_place import ServerPlace, sweep


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = ServerPlace.of(ExecutorProcess.of(os.getpid()), "model")
    place.prepare()
    return place


def test_an_ending_server_leaves_the_files_of_the_next(place):
    first = ServerLock.take(place.lock)
    place.listen().close()
    assert ServerLock.take(place.lock) is None
    place.lock.unlink()
    second = ServerLock.take(place.lock)
    assert not place.is_whole(first)
    assert place.is_whole(second)
    place.remove(first)
    assert place.is_whole(second)
    place.remove(second)
    assert not place.folder.exists()


def test_what_is_left_of_ended_executors_goes_also_without_a_lock(place):
    dead = place.folder.parent / "4026531836-999999999-1"
    dead.mkdir()
    (dead / "model.socket").write_text("")
    sweep(place)
    assert not dead.exists()


@pytest.mark.timeout(20)
def test_a_full_queue_keeps_nobody_waiting(place):
    with place.listen() as listener:
        listener.listen(0)
        waiting = [place.connect() for _ in range(3)]
        assert waiting[0] is not None
        assert waiting[0].getblocking()
        assert waiting[-1] is None
        waiting[0].close()
