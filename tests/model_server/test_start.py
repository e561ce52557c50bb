"""How a server is started: its name, its log, and who removes that."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from served_models import make_config
from spark_vision.model_server import start
from spark_vision.model_server.start import address_of, listen, log_of, start_server

CONFIG = make_config(load_seconds=10, batch_seconds=10, idle_seconds=10)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def plant(log, kind):
    """Put something in the place of a log."""
    target = log.with_name("target")
    target.write_text("mine")
    if kind == "a link":
        log.symlink_to(target)
    elif kind == "a second name of a file":
        log.hardlink_to(target)
    elif kind == "a pipe":
        os.mkfifo(log)
    elif kind == "a folder":
        log.mkdir()
    else:
        log.write_text("")
        os.chown(log, 65534, 65534)


PLANTED = [
    "a link",
    "a second name of a file",
    "a pipe",
    "a folder",
    pytest.param(
        "another user's file",
        marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away"),
    ),
]


@pytest.mark.parametrize("kind", PLANTED)
def test_a_log_is_written_to_no_file_that_somebody_else_put_there(folder, kind):
    log = log_of(CONFIG.name)
    assert log.parent == folder
    plant(log, kind)
    descriptor = start._open_log(log)
    assert os.path.sameopenfile(descriptor, os.open(os.devnull, os.O_RDONLY))
    os.close(descriptor)


def test_a_log_is_for_its_user_alone_and_is_continued(folder):
    log = log_of(CONFIG.name)
    for _ in range(2):
        descriptor = start._open_log(log)
        os.write(descriptor, b"line\n")
        os.close(descriptor)
    assert log.read_text() == "line\nline\n"
    assert log.stat().st_mode & 0o777 == 0o600


def test_without_a_folder_there_is_no_log(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/self/fd"])
    assert log_of(CONFIG.name) == Path(os.devnull)
    os.close(start._open_log(log_of(CONFIG.name)))
    start._remove_old_logs()


def test_only_logs_of_ended_executors_are_removed(folder):
    prefix = start._log_prefix()
    ended = folder / f"{prefix}999999999-1-0123456789abcdef.log"
    kept = [
        log_of(CONFIG.name),
        folder / f"{prefix}notes.log",
        folder / f"{prefix}999999999-1-0123456789abcdef.txt",
        folder / "spark-vision-0-1-999999999-1-0123456789abcdef.log",
    ]
    for path in (ended, *kept):
        path.write_text("")
    start._remove_old_logs()
    assert sorted(folder.iterdir()) == sorted(kept)


def test_a_name_is_of_one_process_until_that_ends():
    code = "import sys, time; from spark_vision.model_server.start import listen;"
    code += "held = listen(sys.argv[1]); print(flush=True); time.sleep(60)"
    name = f"spark-vision-test-{os.getpid()}"
    holder = subprocess.Popen([sys.executable, "-c", code, name], stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(OSError, match="Address already in use"):
        listen(name)
    holder.kill()
    holder.wait()
    listen(name).close()


@pytest.mark.parametrize("trouble", ["the log cannot be removed", "the server fails"])
def test_a_server_ends_also_where_its_loop_or_its_tidying_fails(tmp_path, trouble):
    code = {
        "the log cannot be removed": "main._remove_log = fail\n"
        "main.ModelServer.run = lambda self: Ending('why', 0)",
        "the server fails": "main.ModelServer.run = fail",
    }[trouble]
    program = f"""
import sys, threading
from spark_vision.model_server import __main__ as main
from spark_vision.model_server.server import Ending
def fail(*_):
    raise RuntimeError("simulated")
threading.Thread(target=threading.Event().wait).start()
{code}
main.main(*sys.argv[1:])
"""
    name = f"spark-vision-test-{os.getpid()}"
    arguments = [CONFIG.to_json(), name, str(tmp_path / "log")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], timeout=60, check=False)
    assert done.returncode == (1 if trouble == "the server fails" else 0)
    listen(name).close()


def test_a_server_whose_name_is_held_ends_at_once(folder):
    with listen(CONFIG.name):
        assert start_server(CONFIG).wait(60) == start.NAME_TAKEN
    assert address_of(CONFIG.name)[0] == "\0"
