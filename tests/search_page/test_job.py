"""jobs/search_page.py: what is wrong is one line, and a signal ends it without a trace."""

import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from scene_gallery import fill
from spark_vision.search.milvus import MilvusIndex

JOB = str(Path(__file__).parents[2] / "jobs" / "search_page.py")
SECONDS = 120


@pytest.fixture
def call(capfd):
    """Runs the job's `main` in this process; returns its exit code and the lines on stderr."""

    def call(*arguments):
        code = runpy.run_path(JOB)["main"](list(map(str, arguments)))
        return code, capfd.readouterr().err.splitlines()

    return call


@pytest.fixture
def lite(scenes, tmp_path):
    """A filled index in a file, which no process has open."""
    index = MilvusIndex(str(tmp_path / "scenes.db"), "scenes", index_type="FLAT")
    fill(index, scenes)
    index.close()
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_server(index.uri)
    return index


def test_an_occupied_port_is_one_line_before_anything_is_loaded(call):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, lines = call("--table", "none", "--column", "none", "--port", port)
    assert code == 1
    (line,) = lines
    assert f"port {port} of 127.0.0.1: Address already in use" in line


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_a_port_that_is_none_is_one_line(call, port):
    code, lines = call("--table", "none", "--column", "none", "--port", port)
    assert code == 1
    assert len(lines) == 1
    assert "choose another --port" in lines[0]


def test_a_missing_extra_is_one_line(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, lines = call("--table", "none", "--column", "none", "--port", 0)
    assert code == 1
    assert lines == ['error: uvicorn is not installed; run pip install "spark-vision[page]"']


def test_an_index_that_does_not_exist_is_one_line(call, tmp_path):
    place = tmp_path / "new.db"
    code, lines = call("--milvus", place, "--collection", "scenes", "--port", 0)
    assert code == 1
    assert lines[-1] == "error: there is no such index; fill one by the job index_vectors"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--table and --column, or an index"),
        (["--table", "a"], "--table and --column, or an index"),
        (["--milvus", "a.db"], "--collection"),
        (["--milvus", "a", "--collection", "b"], "ends with .db"),
        (["--table", "a", "--column", "b", "--allow-paths", "http://a"], "allow_paths"),
    ],
)
def test_a_wrong_usage_exits_with_2(capsys, arguments, said):
    with pytest.raises(SystemExit) as end:
        runpy.run_path(JOB)["main"](arguments)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_help_needs_no_spark_and_no_torch(tmp_path):
    code = (
        f"import runpy, sys\nsys.argv = [{JOB!r}, '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "sys.exit(bool({'pyspark', 'torch', 'starlette'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "--allow-paths" in done.stdout


@pytest.mark.parametrize(
    "ending", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_with_an_index_no_jvm_starts_and_a_signal_ends_it(lite, scenes, tmp_path, ending):
    command = [sys.executable, JOB, "--milvus", lite.uri, "--collection", "scenes", "--port", "0"]
    command += ["--caption-column", "caption", "--allow-paths", str(scenes.folder)]
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary"), "JAVA_HOME": "/nowhere"}
    (tmp_path / "temporary").mkdir()
    page = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/", page.stdout.readline())[0]
        request = urllib.request.Request(
            f"{address}search", b'{"text": "a star"}', {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            assert b'"results":[{' in answer.read()
        children = psutil.Process(page.pid).children(recursive=True)
        assert not [each for each in children if "java" in each.name()]
        page.send_signal(ending)
        assert page.wait(SECONDS) == 0
    finally:
        page.kill()
        page.wait()
        page.stdout.close()
    assert not list((tmp_path / "temporary").glob("spark-vision-page-*"))
