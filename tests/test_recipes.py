"""The recipes of the documentation, command by command; services are local ones."""

import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.request import urlopen

import pytest
from milvus_lite.server_manager import server_manager_instance

from documented_places import replacing
from pinecone_server import serve_pinecone
from spark_vision.demo import write_scenes

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def follow(spark, checkpoints, tmp_path, capsys):
    """Runs a recipe's blocks in order; returns what each printed."""
    write_scenes(tmp_path / "photos", 4, seed=0)
    localize = replacing(tmp_path, checkpoints)

    def follow(page):
        printed = []
        for language, text in FENCE.findall((ROOT / "docs" / page).read_text()):
            capsys.readouterr()
            if language == "python":
                exec(localize(text), {"spark": spark})
            else:
                run(shlex.split(localize(text).replace("\\\n", " ")))
            printed.append(capsys.readouterr().out)
        return printed

    return follow


def run(command):
    if command[:2] == ["pip", "install"]:
        named = re.fullmatch(r"spark-vision\[(.+)\]", command[2])[1].split(",")
        assert set(named) <= PROJECT["optional-dependencies"].keys()
        return
    assert command[:2] == ["python", "-m"]
    if command[2] == "spark_vision.jobs.search_page":
        open_page(command)
    else:
        assert runpy.run_module(command[2])["main"](command[3:]) == 0
        # A job ends with its process, and lets go of the file then.
        server_manager_instance.release_all()


def open_page(command):
    process = subprocess.Popen(
        [sys.executable, *command[1:], "--port", "0"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        lines = iter(process.stdout.readline, "")
        address = next(found[0] for line in lines if (found := re.search(r"http://\S+", line)))
        with urlopen(address, timeout=60) as answer:
            assert answer.status == 200
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_the_recipe_for_milvus(follow):
    _, embedded, loaded, _, again, synced = follow("recipe_milvus.md")
    assert "clip: ok 4" in embedded
    assert "(loaded whole): 4 rows written" in loaded
    assert "0 computed" in again
    assert "0 rows written, 0 deleted" in synced


@pytest.mark.slow
def test_the_recipe_for_pinecone(follow, monkeypatch):
    with serve_pinecone() as server:
        monkeypatch.setenv("PINECONE_API_KEY", server.api_key)
        monkeypatch.setenv("PINECONE_CONTROLLER_HOST", server.url)
        _, _, loaded, found, _ = follow("recipe_pinecone.md")
    assert "(loaded whole): 4 rows written" in loaded
    assert len(found.splitlines()) == 3
