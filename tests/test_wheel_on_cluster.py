"""The wheel alone, by spark-submit on a real standalone cluster whose hosts have no repository.

An environment of 6 GB is not packed here. The environments of these tests are thin: a `.pth` file
adds the installed packages, except this one, which is installed in editable mode.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from conftest import WORKER_SITE
from hub_server import serve_hub
from oracles import draw_pictures, same
from spark_vision.spark.delta_jars import find_delta_jars
from standalone_cluster import DRIVER_SETTINGS, ROOT, Cluster

pytestmark = pytest.mark.timeout(600)

SPARK_SUBMIT = str(Path(sys.executable).parent / "spark-submit")
SETTINGS = {
    **DRIVER_SETTINGS,
    "spark.executorEnv.PYTHONPATH": WORKER_SITE,
    "spark.executorEnv.OMP_NUM_THREADS": 1,
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The installed packages without this one."""
    folder = tmp_path_factory.mktemp("hosts") / "environment"
    python = make_environment(folder)
    imported = [python, "-c", "import pyspark, torch, spark_vision"]
    done = subprocess.run(imported, env={}, cwd="/", capture_output=True, text=True, check=False)
    assert done.stderr.endswith("No module named 'spark_vision'\n")
    return folder


def make_environment(folder):
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    subprocess.run([base, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    (packages_of(folder) / "installed.pth").write_text(str(Path(torch.__file__).parents[1]))
    return folder / "bin" / "python"


def packages_of(environment):
    return next((environment / "lib").iterdir()) / "site-packages"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, picture in enumerate(draw_pictures(12, seed=5)):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def expected(photos, checkpoints):
    """Vectors of the photos by transformers, in the order of their names."""
    processor = AutoImageProcessor.from_pretrained(checkpoints / "dinov2", backend="torchvision")
    model = AutoModel.from_pretrained(checkpoints / "dinov2").eval()
    images = [Image.open(file) for file in sorted(photos.iterdir())]
    with torch.inference_mode():
        states = model(**processor(images, return_tensors="pt")).last_hidden_state
    return torch.nn.functional.normalize(states[:, 0], dim=-1)


@pytest.fixture
def submit(cluster, tmp_path):
    """Runs a job of the wheel by spark-submit, from the file that the documentation shows."""

    def submit(job, *arguments, driver, executors=None, options=(), **variables):
        (block,) = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "jobs.md").read_text(), re.S)
        file = tmp_path / f"{job}.py"
        file.write_text(block.replace("embed_images", job))
        command = [SPARK_SUBMIT, "--master", cluster.url, *map(str, options)]
        for name, value in SETTINGS.items():
            command += ["--conf", f"{name}={value}"]
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [*command, file, *map(str, arguments)],
            env={
                **kept,
                "PYSPARK_DRIVER_PYTHON": str(driver / "bin" / "python"),
                "PYSPARK_PYTHON": executors or str(driver / "bin" / "python"),
                "SPARK_LOCAL_IP": "127.0.0.1",
                **variables,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )

    return submit


def embed_by_sql(model_name, photos, output):
    """Arguments of the job run_sql."""
    computed = "path, embed_image(content) AS v, embed_image_placement(content) AS placed"
    return (
        *("--function", f"embed_image=ImageViTEmbedding:model_name={model_name}"),
        *("--with-placement", "--query"),
        f"INSERT OVERWRITE DIRECTORY '{output}' USING parquet "
        f"SELECT {computed} FROM binaryFile.`{photos}`",
    )


def assert_computed_by_two_servers(output, expected):
    rows = pd.read_parquet(output).sort_values("path")
    assert same(torch.tensor(np.stack(rows.v)), expected)
    placed = pd.DataFrame(rows.placed.tolist())
    assert placed.executor.nunique() == placed.server_pid.nunique() == 2
    assert not {*placed.server_pid.astype(str)} & {*placed.executor.str.partition("-")[0]}


def archive(folder, file):
    with zipfile.ZipFile(file, "w") as made:
        for each in folder.iterdir():
            made.write(each, each.name)
    return file


@pytest.mark.slow
def test_a_wheel_in_py_files_serves_executors_that_lack_the_package(
    submit, wheel, environment, photos, checkpoints, expected, tmp_path
):
    package = shutil.copy(wheel, tmp_path / "spark_vision.zip")
    done = submit(
        *("run_sql", *embed_by_sql(checkpoints / "dinov2", photos, tmp_path / "vectors")),
        driver=environment,
        options=["--py-files", package],
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert_computed_by_two_servers(tmp_path / "vectors", expected)


@pytest.mark.slow
def test_a_packed_environment_and_an_archive_of_a_checkpoint_fill_a_table(
    spark, submit, wheel, photos, checkpoints, expected, tmp_path
):
    environment = tmp_path / "packed"
    make_environment(environment)
    with zipfile.ZipFile(wheel) as package:
        package.extractall(packages_of(environment))
    with tarfile.open(tmp_path / "environment.tar.gz", "w:gz") as packed:
        packed.add(environment, ".")
    checkpoint = archive(checkpoints / "dinov2", tmp_path / "checkpoint.zip")
    archives = f"{tmp_path}/environment.tar.gz#environment,{checkpoint}#checkpoint"
    done = submit(
        *("embed_images", "--input", photos, "--table", tmp_path / "vectors"),
        *("--model-name", "./checkpoint"),
        driver=environment,
        executors="./environment/bin/python",
        options=["--archives", archives, "--jars", ",".join(find_delta_jars())],
    )
    assert done.returncode == 0, done.stderr + done.stdout
    rows = spark.read.format("delta").load(str(tmp_path / "vectors")).sort("path").collect()
    assert same(torch.tensor([row.embedding for row in rows]), expected)


@pytest.mark.slow
def test_executors_download_from_the_drivers_hub_once_per_host(
    submit, wheel, environment, photos, checkpoints, expected, tmp_path
):
    package = shutil.copy(wheel, tmp_path / "spark_vision.zip")
    with serve_hub({"someone/dinov2": checkpoints / "dinov2"}) as hub:
        done = submit(
            *("run_sql", *embed_by_sql("someone/dinov2", photos, tmp_path / "vectors")),
            driver=environment,
            options=["--py-files", package],
            HF_ENDPOINT=hub.endpoint,
            HF_HOME=str(tmp_path / "home"),
        )
    assert done.returncode == 0, done.stderr + done.stdout
    assert_computed_by_two_servers(tmp_path / "vectors", expected)
    assert sorted(hub.downloads) == sorted({*hub.downloads})
    assert "model.safetensors" in hub.downloads


@pytest.mark.slow
def test_a_checkpoint_that_no_executor_has_is_one_line_with_the_way(
    submit, wheel, environment, photos, tmp_path
):
    package = shutil.copy(wheel, tmp_path / "spark_vision.zip")
    done = submit(
        *("run_sql", *embed_by_sql("./checkpoint", photos, tmp_path / "vectors")),
        driver=environment,
        options=["--py-files", package],
    )
    assert done.returncode == 1
    (line,) = [each for each in (done.stdout + done.stderr).splitlines() if "error: " in each]
    assert "work-" in line
    assert "--archives" in line
