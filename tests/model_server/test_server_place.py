"""The files by which a server is found: whose they are, and who removes them."""

import os
import tempfile

import pytest
from spark_vision.executor.server_lock import ServerLock
from spark_vision.executor.server_place import ServerPlace, sweep

from spark_vision.executor import server_place
from spark_vision.executor.executor_process import ExecutorProcess


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = ServerPlace.of(ExecutorProcess.of(os.getpid()), "model")
    place.prepare()
    return place


def plant(place, kind):
    """Put something in the place of a user's folder that is not that user's alone."""
    if kind == "a folder that others can write":
        place.mkdir()
        place.chmod(0o777)
    elif kind == "a file":
        place.write_text("")
    elif kind == "a link to a private folder":
        target = place.with_name("elsewhere")
        target.mkdir(mode=0o700)
        place.symlink_to(target)
    elif kind == "a link to itself":
        place.symlink_to(place)
    else:
        place.mkdir(mode=0o700)
        os.chown(place, 65534, 65534)


PLANTED = [
    "a folder that others can write",
    "a file",
    "a link to a private folder",
    "a link to itself",
    pytest.param(
        "another user's folder",
        marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away"),
    ),
]


@pytest.mark.parametrize("kind", PLANTED)
def test_what_somebody_put_in_the_folders_place_costs_no_sharing(
    tmp_path, monkeypatch, caplog, kind
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server_place._say_taken.cache_clear()
    taken = tmp_path / f"spark-vision-{os.geteuid()}"
    plant(taken, kind)
    plant(tmp_path / f"{taken.name}-1", "a file")
    executor = ExecutorProcess.of(os.getpid())
    place, again = (ServerPlace.of(executor, "model") for _ in range(2))
    assert place == again
    assert place.folder.parent == tmp_path / f"{taken.name}-2"
    place.prepare()
    with place.listen(), place.connect() as connection:
        assert connection is not None
    (said,) = caplog.messages
    assert f"{taken} is not a folder of user {os.geteuid()} alone: remove it" in said
    assert ServerPlace.of(executor, "model") == place


def test_where_every_name_is_taken_the_first_is_blamed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = tmp_path / f"spark-vision-{os.geteuid()}"
    first.write_text("")
    for number in range(1, server_place.MOST_NAMES):
        first.with_name(f"{first.name}-{number}").write_text("")
    with pytest.raises(PermissionError, match=f"{first} is not a folder"):
        ServerPlace.of(ExecutorProcess.of(os.getpid()), "model").prepare()


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
