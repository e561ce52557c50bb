"""How a worker reaches, starts and kills a server, where the server is slow, dead or not there."""

import os
import subprocess
import sys
import tempfile
import threading

import pytest
from spark_vision.executor.server_connection import SharingUnavailableError, connect, kill
from spark_vision.executor.server_lock import ServerLock
from spark_vision.executor.server_place import ServerPlace
from spark_vision.executor.server_start import ServerOrder

from spark_vision.errors import ModelServerError
from spark_vision.executor import server_connection, server_start
from spark_vision.executor.executor_process import ExecutorProcess

ORDER = ServerOrder(
    executor=ExecutorProcess.of(os.getpid()),
    folder="/nowhere",
    stamp="",
    dtype="float32",
    device="cpu",
    flash_attention=False,
    call_count=1,
    thread_count=1,
    load_seconds=0.5,
    batch_seconds=60,
    idle_seconds=0,
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = ServerPlace.of(ORDER.executor, "model")
    place.prepare()
    return place


@pytest.mark.parametrize("goes_on", [True, False])
def test_only_a_server_without_a_pulse_is_killed_at_the_deadline(place, monkeypatch, goes_on):
    monkeypatch.setattr(server_connection, "GRACE_SECONDS", 0.2)
    sleeper = subprocess.Popen(["sleep", "60"])
    lock = ServerLock.take(place.lock)
    lock.write({"pid": sleeper.pid})
    stop = threading.Event()

    def beat():
        while not stop.wait(0.05):
            lock.beat()

    beater = threading.Thread(target=beat, daemon=True)
    with place.listen():
        if goes_on:
            beater.start()
        with pytest.raises(ModelServerError, match=r"did not answer within 0\.5 s"):
            connect(ORDER, place)
    if goes_on:
        assert sleeper.poll() is None
        stop.set()
        beater.join()
        sleeper.kill()
    assert sleeper.wait(10) == -9


def test_a_server_that_has_just_ended_is_killed_without_an_error(place):
    ended = subprocess.Popen(["true"])
    ended.wait()
    lock = ServerLock.take(place.lock)
    lock.write({"pid": ended.pid})
    kill(place)
    lock.close()


def test_a_worker_whose_output_nobody_reads_starts_its_server(place, monkeypatch):
    monkeypatch.setattr(sys, "stderr", BrokenPipe())
    monkeypatch.setattr(server_start.subprocess, "Popen", lambda *_, **__: FakeProcess())
    lock = ServerLock.take(place.lock)
    server_start.start_server(ORDER, place, lock)
    assert place.is_whole(lock)
    lock.close()


class BrokenPipe:
    def write(self, text):
        raise BrokenPipeError


class FakeProcess:
    pid = 1

    def poll(self):
        return 0


def test_a_server_that_cannot_be_started_leaves_nothing(place, monkeypatch):
    def fail(*_, **__):
        raise OSError("no process")

    monkeypatch.setattr(server_start.subprocess, "Popen", fail)
    with pytest.raises(SharingUnavailableError, match="no process"):
        connect(ORDER, place)
    assert not place.folder.exists()


ENDS = """
import sys, threading, time
from pathlib import Path
from spark_vision.executor import model_server
from spark_vision.executor.server_lock import ServerLock
from spark_vision.executor.server_place import ServerPlace
place = ServerPlace(Path(sys.argv[1]), "model")
lock = ServerLock.take(place.lock)
place.address.mkdir()
threading.Thread(target={}).start()
time.sleep(60)
"""
WATCH = "lambda: model_server._watch(None, place, lock, threading.Event())"
END = "lambda: model_server._end(place, lock, 'why', 1)"


@pytest.mark.parametrize("target", [WATCH, END])
def test_a_server_ends_also_where_its_watch_or_its_tidying_fails(place, target):
    done = subprocess.run([sys.executable, "-c", ENDS.format(target), place.folder], timeout=50)
    assert done.returncode == 1
