"""Once per executor, on a real standalone cluster of two executors with two slots each.

GPUs are announced to Spark and simulated to torch: devices are recorded, a CPU computes.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import psutil
import pytest
import torch

import cluster_jobs
from opened_files import OpenedFile
from spark_vision import ImageViTEmbedding
from spark_vision.executor.columns import compute_columns
from spark_vision.executor.task import Task
from standalone_cluster import ROOT, Cluster, Driver, wait_for

pytestmark = pytest.mark.timeout(600)

GPUS = {
    "spark.executor.resource.gpu.amount": "1",
    # Both slots of an executor share its one GPU.
    "spark.task.resource.gpu.amount": "0.5",
    "spark.executorEnv.SIMULATED_GPUS": "2",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def driver(cluster, tmp_path_factory):
    # A task whose executor's load failed goes to another one, instead of back to the same.
    settings = {**GPUS, "spark.excludeOnFailure.taskAndStage.enabled": "true"}
    settings["spark.vision.model.batchSeconds"] = "15"
    with Driver(cluster, tmp_path_factory.mktemp("driver") / "driver", settings) as driver:
        yield driver


@pytest.fixture(scope="module")
def checkpoint(checkpoints):
    return str(checkpoints / "dinov2")


@pytest.fixture(scope="module")
def expected(checkpoint):
    return expected_vectors(checkpoint)


def expected_vectors(checkpoint):
    import pyarrow as pa

    operator = ImageViTEmbedding(model_name=checkpoint, batch_size=2, model_sharing="worker")
    arrays = compute_columns([pa.array(cluster_jobs.png_files())], [operator], Task((), 1))
    return torch.tensor([row for (array,) in arrays for row in array.to_pylist()])


def wait_for_two_servers(driver, checkpoint):
    wait_for(lambda: len(driver.run(cluster_jobs.placements, checkpoint)) == 2, 120)


def assert_exact(found, expected):
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may see who opens a file")
def test_whatever_runs_one_process_per_executor_opens_the_weights(
    driver, checkpoint, expected, tmp_path
):
    weights = OpenedFile(f"{checkpoint}/model.safetensors")
    for found in driver.run(cluster_jobs.varied_work, checkpoint, str(tmp_path)):
        assert_exact(found, expected)
    openers = set(weights.openers())
    assert len(openers) == 2
    placements = driver.run(cluster_jobs.placements, checkpoint)
    assert {pid for _, pid, _ in placements} == set(driver.servers()) == openers
    assert len({executor for executor, _, _ in placements}) == len(placements) == 2
    assert {device for _, _, device in placements} == {"cuda:0"}
    assert len(driver.loads()) == 2
    weights.close()


@pytest.mark.parametrize(
    "victim",
    [
        "server",
        "worker",
        pytest.param("executor", marks=pytest.mark.slow),
        pytest.param("hanging server", marks=pytest.mark.slow),
        pytest.param("daemon", marks=pytest.mark.slow),
    ],
)
def test_a_killed_or_hanging_process_costs_no_row(driver, checkpoint, expected, victim):
    wait_for_two_servers(driver, checkpoint)
    before = set(driver.servers())
    load_count = len(driver.loads())
    (driver.folder / "forward_seconds").write_text("0.5")
    job = driver.submit(cluster_jobs.vectors, checkpoint)
    driver.wait_for_forwards()
    workers, daemons = driver.workers()
    executor = daemons[0].parent()
    own_server = next(
        pid
        for pid, process in driver.servers().items()
        if f'"pid": {executor.pid},' in " ".join(process.cmdline())
    )
    process_id = {
        "server": own_server,
        "hanging server": own_server,
        "worker": workers[0].pid,
        "daemon": daemons[0].pid,
        "executor": executor.pid,
    }[victim]
    os.kill(process_id, signal.SIGSTOP if "hanging" in victim else signal.SIGKILL)
    if victim == "executor":
        wait_for(lambda: own_server not in driver.servers(), 60)
        assert not any(f"-{executor.pid}-" in path for path in driver.remains())
    (driver.folder / "forward_seconds").unlink()
    assert_exact(job.result(300), expected)
    wait_for_two_servers(driver, checkpoint)
    assert len(driver.servers()) == 2
    survivors = before & set(driver.servers())
    dies_with_it = "server" in victim or victim == "executor"
    assert len(survivors) == (1 if dies_with_it else 2)
    assert len(driver.loads()) == load_count + (1 if dies_with_it else 0)


@pytest.mark.slow
def test_a_load_that_fails_on_one_executor_goes_to_the_other(driver, checkpoints):
    checkpoint = str(checkpoints / "dinov2-other")
    failing = driver.workers()[1][0].parent()
    (driver.folder / "failing_executor").write_text(str(failing.pid))
    before = len(driver.loads())
    found = driver.run(cluster_jobs.vectors, checkpoint)
    (driver.folder / "failing_executor").unlink()
    assert_exact(found, expected_vectors(checkpoint))
    assert len(driver.loads()) == before + 2


@pytest.mark.slow
def test_each_gpu_has_a_server_and_a_package_from_py_files_is_found(
    cluster, driver, checkpoint, expected, tmp_path
):
    driver.stop()
    package = tmp_path / "package.zip"
    with zipfile.ZipFile(package, "w") as archive:
        for path in sorted((ROOT / "spark_vision").rglob("*.py")):
            archive.write(path, path.relative_to(ROOT))
    settings = {
        "spark.executor.resource.gpu.amount": "2",
        "spark.task.resource.gpu.amount": "1",
        "spark.executorEnv.SIMULATED_GPUS": "2",
        "spark.python.worker.reuse": "false",
    }
    with Driver(cluster, tmp_path / "driver", settings, package_on_path=False) as other:
        other.run(cluster_jobs.add_package, str(package))
        assert_exact(other.run(cluster_jobs.vectors, checkpoint), expected)
        servers, loads = other.servers(), other.loads()
        assert {load["pid"] for load in loads} == set(servers)
        assert sorted(load["device"] for load in loads) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
        of_each = {(servers[load["pid"]].cmdline()[4][:30], load["device"]) for load in loads}
        assert len(of_each) == 4
        assert all("package.zip" in load["package"] for load in loads)
    wait_for(lambda: not other.servers(), 60)
    assert other.remains() == []


@pytest.mark.slow
def test_a_pause_longer_than_a_workers_life_costs_no_load(cluster, checkpoint, expected, tmp_path):
    with Driver(cluster, tmp_path / "driver") as driver:
        for pause in (70, 0):
            assert_exact(driver.run(cluster_jobs.vectors, checkpoint), expected)
            time.sleep(pause)
        assert len(driver.loads()) == 2


@pytest.mark.slow
def test_an_executor_that_comes_later_loads_once(cluster, checkpoint, expected, tmp_path):
    settings = {
        "spark.dynamicAllocation.enabled": "true",
        "spark.dynamicAllocation.shuffleTracking.enabled": "true",
        "spark.dynamicAllocation.initialExecutors": "1",
        "spark.dynamicAllocation.minExecutors": "1",
        "spark.dynamicAllocation.maxExecutors": "2",
        "spark.dynamicAllocation.executorIdleTimeout": "600s",
    }
    with Driver(cluster, tmp_path / "driver", settings) as driver:
        (driver.folder / "forward_seconds").write_text("1")
        assert_exact(driver.run(cluster_jobs.vectors, checkpoint), expected)
        wait_for_two_servers(driver, checkpoint)
        assert len(driver.loads()) == len(driver.servers()) == 2


@pytest.mark.slow
def test_two_applications_on_one_host_never_meet(cluster, checkpoint, expected, tmp_path):
    settings = {
        "spark.executor.cores": "1",
        "spark.cores.max": "2",
        "spark.executorEnv.TMPDIR": str(tmp_path / "one" / "tmp"),
    }
    with (
        Driver(cluster, tmp_path / "one", settings) as one,
        Driver(cluster, tmp_path / "other", settings) as other,
    ):
        jobs = [each.submit(cluster_jobs.vectors, checkpoint) for each in (one, other)]
        for job in jobs:
            assert_exact(job.result(300), expected)
        servers = [
            {pid for _, pid, _ in each.run(cluster_jobs.placements, checkpoint)}
            for each in (one, other)
        ]
        assert servers[0].isdisjoint(servers[1])
        assert servers[0] | servers[1] == set(one.servers())
        assert len(one.loads()) == len(other.loads()) == 2


@pytest.mark.slow
def test_with_a_memory_limit_the_workers_load(cluster, checkpoint, expected, tmp_path):
    settings = {"spark.executor.pyspark.memory": "20g", "spark.executor.memory": "512m"}
    with Driver(cluster, tmp_path / "driver", settings) as driver:
        assert_exact(driver.run(cluster_jobs.vectors, checkpoint), expected)
        assert driver.servers() == {}


@pytest.mark.slow
def test_a_path_that_is_too_long_for_a_socket_is_none_for_a_server(
    cluster, checkpoint, expected, tmp_path
):
    folder = tmp_path / "long" / ("x" * 120)
    with Driver(cluster, folder) as driver:
        assert_exact(driver.run(cluster_jobs.vectors, checkpoint), expected)
        assert len(driver.loads()) == len(driver.servers()) == 2


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_where_the_temporary_folder_is_full_servers_log_to_another(
    cluster, checkpoint, expected, tmp_path
):
    with small_disk(tmp_path / "driver" / "tmp") as disk:
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
        with Driver(cluster, tmp_path / "driver") as driver:
            assert_exact(driver.run(cluster_jobs.vectors, checkpoint), expected)
            loaders = [psutil.Process(load["pid"]) for load in driver.loads()]
            assert len(loaders) == 2
            assert all("spark_vision.model_server" in each.cmdline() for each in loaders)
            logs = [Path(each.cmdline()[6]) for each in loaders]
            assert all(log.stat().st_size for log in logs)
            assert driver.remains() == []
        wait_for(lambda: not any(each.is_running() for each in loaders), 60)
        assert not any(log.exists() for log in logs)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start another user's Worker")
def test_two_users_on_one_host_never_meet(checkpoints, expected):
    nobody = 65534
    try:
        subprocess.run([sys.executable, "-c", "import torch"], user=nobody, cwd="/", check=True)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("another user cannot read this Python")
    # pytest's own folders are closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="two-users-"))
    folder.chmod(0o755)
    try:
        checkpoint = shutil.copytree(checkpoints / "dinov2", folder / "dinov2")
        # Safetensors writes weights for their owner alone.
        (checkpoint / "model.safetensors").chmod(0o644)
        with Cluster(folder / "cluster", users=(None, nobody)) as cluster:
            driver = Driver(cluster, folder / "driver")
            for shared in ("tmp", "forwards", "loads"):
                (driver.folder / shared).chmod(0o1777)
            with driver:
                assert_exact(driver.run(cluster_jobs.vectors, str(checkpoint)), expected)
                wait_for_two_servers(driver, str(checkpoint))
                servers = driver.servers().values()
                assert {each.uids().effective for each in servers} == {0, nobody}
                assert len(driver.loads()) == 2
                logs = [Path(path).stat() for path in driver.remains()]
                assert {at.st_uid for at in logs} == {0, nobody}
                assert {at.st_mode & 0o777 for at in logs} == {0o600}
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def small_disk(folder):
    """A disk of few bytes in place of a folder."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
