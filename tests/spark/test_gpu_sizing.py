"""The slots of an executor come to its GPUs times the tasks of each, or it is an error."""

import pytest
from pyspark.sql import SparkSession

from spark_vision.errors import SessionError
from spark_vision.session import configure
from spark_vision.spark import gpu_sizing
from spark_vision.spark.gpu_sizing import CORES, DISCOVERY_SCRIPT, gpu_settings


def slots_of(settings, cores):
    """As Spark counts: by cores, and by the whole part of 1 / amount for each GPU."""
    amount = float(settings["spark.task.resource.gpu.amount"])
    by_gpu = int(settings["spark.executor.resource.gpu.amount"]) * int(1 / amount)
    return min(cores // int(settings["spark.task.cpus"]), by_gpu)


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 6, 7, 9])
@pytest.mark.parametrize("cores", [4, 16, 61, 96])
def test_every_gpu_has_its_tasks(gpus, tasks, cores):
    present = {"spark.executor.cores": str(cores)}
    if cores < gpus * tasks:
        with pytest.raises(SessionError, match="a GPU would stay idle"):
            gpu_settings(present, gpus, tasks)
    else:
        assert slots_of(gpu_settings(present, gpus, tasks), cores) == gpus * tasks


@pytest.mark.parametrize(
    ("cores", "gpus", "task_cpus", "tasks"),
    [(4, 1, None, 1), (8, 2, None, 1), (16, 1, None, 2), (64, 2, None, 4), (96, 1, None, 4),
     (16, 1, "16", 1), (16, 1, "4", 2)],
)  # fmt: skip
def test_without_a_number_of_tasks_each_has_eight_cores_or_more(cores, gpus, task_cpus, tasks):
    present = {CORES: str(cores)} | ({"spark.task.cpus": task_cpus} if task_cpus else {})
    settings = gpu_settings(present, gpus)
    assert slots_of(settings, cores) == gpus * tasks


def test_one_task_per_gpu_takes_all_cores():
    settings = gpu_settings({"spark.executor.cores": "16"}, 1, 1)
    assert settings["spark.task.cpus"] == "16"
    assert settings["spark.task.resource.gpu.amount"] == "1"
    assert settings["spark.executor.resource.gpu.discoveryScript"].endswith("discover_gpus.py")


@pytest.mark.parametrize(
    ("present", "gpus", "tasks", "message"),
    [
        ({}, 1, 1, "needs spark.executor.cores"),
        ({"spark.executor.cores": "8", "spark.task.cpus": "4"}, 2, 2, "2 slots"),
        ({"spark.executor.cores": "8"}, 0, 1, "gpus_per_executor got 0"),
        ({"spark.executor.cores": "8"}, 1, 0.5, "tasks_per_gpu got 0.5"),
    ],
)
def test_what_gives_no_sound_sizes_is_refused(present, gpus, tasks, message):
    with pytest.raises(SessionError, match=message):
        gpu_settings(present, gpus, tasks)


def test_a_session_that_runs_already_takes_no_gpus(spark):
    with pytest.raises(SessionError, match="already running"):
        configure(SparkSession.builder, gpus_per_executor=1)


def test_a_package_in_an_archive_needs_a_script_on_the_hosts(monkeypatch, tmp_path):
    file = tmp_path / "package.zip" / "spark_vision" / "spark" / "gpu_sizing.py"
    monkeypatch.setattr(gpu_sizing, "__file__", str(file))
    with pytest.raises(SessionError, match=r"discover_gpus\.py is in an archive"):
        gpu_settings({CORES: "4"}, 1, 1)
    own = {CORES: "4", DISCOVERY_SCRIPT: "/opt/discover"}
    assert DISCOVERY_SCRIPT not in gpu_settings(own, 1, 1)
