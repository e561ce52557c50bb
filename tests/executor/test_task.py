"""What a task reads of a query's settings, and of the hub's, which hold for its own job only."""

import os
import pickle
import subprocess
import sys

import pytest

import checkpoints
from hub_server import serve_hub
from served_models import make_config
from spark_vision.errors import InvalidOptionError
from spark_vision.executor.task import (
    HUB_VARIABLES,
    LOAD_SECONDS,
    MAX_SECONDS,
    HubEnvironment,
    _seconds,
    is_local_master,
)
from spark_vision.model_server.start import start_server

SECRET = "hf_aSecretOfJobA"

# Two jobs in one worker, as Spark runs them; huggingface_hub is imported for the first.
TWO_JOBS = """
import os, sys
from spark_vision.errors import CheckpointNotFoundError
from spark_vision.executor.model_access import open_checkpoint
from spark_vision.executor.task import HubEnvironment, Task
from spark_vision.operators import ImageViTEmbedding

first, second, home = sys.argv[1:]
operator = ImageViTEmbedding(model_path=None, model_name="someone/vit")

def run(**variables):
    hub = HubEnvironment(tuple(variables.items()))
    before = dict(os.environ)
    try:
        print(open_checkpoint(operator, Task((), 1, hub=hub))[0].folder)
    except CheckpointNotFoundError as error:
        print(error)
    assert dict(os.environ) == before

run(HF_ENDPOINT=first, HF_TOKEN="hf_aSecretOfJobA", HF_HOME=f"{home}/a")
run(HF_ENDPOINT=first, HF_HOME=f"{home}/b")
run(HF_ENDPOINT=second, HF_HOME=f"{home}/c")
run(HF_ENDPOINT=second, HF_HOME=f"{home}/d", HF_HUB_OFFLINE="1")
run(HF_ENDPOINT=second, HF_HOME=f"{home}/e")
run(HF_HOME=f"{home}/a", HF_HUB_OFFLINE="1")
"""


@pytest.fixture
def clean(monkeypatch):
    for name in (*HUB_VARIABLES, "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("clean")
def test_settings_are_taken_away_again_and_those_of_the_process_stay(monkeypatch):
    monkeypatch.setenv("HF_HOME", "/executor/home")
    job = HubEnvironment((("HF_TOKEN", SECRET), ("HF_HOME", "/job/home")))
    with job.applied():
        assert os.environ["HF_TOKEN"] == SECRET
        assert os.environ["HF_HOME"] == "/executor/home"
    assert "HF_TOKEN" not in os.environ
    with pytest.raises(RuntimeError), job.applied():
        raise RuntimeError
    assert "HF_TOKEN" not in os.environ
    assert os.environ["HF_HOME"] == "/executor/home"


@pytest.mark.usefixtures("clean")
def test_what_is_captured_is_in_no_repr(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    captured = pickle.loads(pickle.dumps(HubEnvironment.capture()))
    assert captured.variables == (("HF_TOKEN", SECRET),)
    assert SECRET not in repr(captured)


@pytest.mark.usefixtures("clean")
def test_each_job_of_a_worker_has_its_own_hub_home_and_token(tmp_path):
    folder = checkpoints.write_vit(tmp_path / "vit")
    with (
        serve_hub({"someone/vit": folder}, token=SECRET) as first,
        serve_hub({"someone/vit": folder}) as second,
    ):
        run = subprocess.run(
            [sys.executable, "-c", TWO_JOBS, first.endpoint, second.endpoint, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"},
        )
    assert run.returncode == 0, run.stderr
    with_token, without, other, offline, again, cached = run.stdout.splitlines()
    assert with_token.startswith(f"{tmp_path}/a/hub/")
    assert "no token is set" in without
    assert f"{tmp_path}/b/hub" in without
    assert other.startswith(f"{tmp_path}/c/hub/")
    assert first.tokens == {SECRET}
    assert second.tokens == set()
    assert "HF_HUB_OFFLINE is set" in offline
    assert again.startswith(f"{tmp_path}/e/hub/")
    assert cached == with_token
    assert SECRET not in run.stdout + run.stderr


def test_a_model_server_is_started_without_the_token(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", SECRET)
    monkeypatch.setenv("A_SETTING_OF_THE_EXECUTOR", "kept")
    seen = tmp_path / "environment"
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec env > {seen}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    start_server(make_config()).wait(timeout=30)
    said = seen.read_text()
    assert "A_SETTING_OF_THE_EXECUTOR=kept" in said
    assert SECRET not in said


@pytest.mark.parametrize("said", ["1e7", "1000001", "inf", "nan", "0", "-1", "soon"])
def test_times_that_no_system_can_wait_are_refused(said):
    with pytest.raises(InvalidOptionError, match=rf"loadSeconds got '{said}'.* at most 1,000,000"):
        _seconds({LOAD_SECONDS: said}, LOAD_SECONDS)
    assert _seconds({LOAD_SECONDS: "1e6"}, LOAD_SECONDS) == MAX_SECONDS
    assert _seconds({LOAD_SECONDS: "0"}, LOAD_SECONDS, zero=True) == 0


def test_local_mode_is_not_a_cluster_on_this_host():
    assert all(map(is_local_master, ["local", "local[2]", "local[*]", "local[2,4]"]))
    assert not any(map(is_local_master, ["local-cluster[1,2,640]", "spark://localhost:7077", ""]))
