"""The device is the one that Spark assigned; one that is not there is an error, never a guess."""

import gc

import pytest
import torch

from spark_vision import ImageViTEmbedding
from spark_vision.errors import DeviceError
from spark_vision.executor.devices import choose_device, freeze_modules, prepare_device
from spark_vision.executor.task import Task, current_task


def choose(addresses=(), **options):
    return str(choose_device(ImageViTEmbedding(**options), Task(tuple(addresses), cpus=1)))


@pytest.fixture
def gpus(monkeypatch):
    def announce(count, visible=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    announce(0)
    return announce


def test_without_gpu_the_cpu_computes(gpus):
    assert choose() == "cpu"
    assert choose(rank=None) == "cpu"


def test_a_task_computes_on_its_own_address_and_rank_picks_among_them(gpus):
    gpus(4)
    assert choose(["2"]) == "cuda:2"
    assert choose(["3", "1"], rank=1) == "cuda:1"
    assert choose(["2"], device="cpu") == "cpu"


def test_addresses_are_mapped_through_cuda_visible_devices(gpus):
    gpus(2, visible="5,7")
    assert choose(["7"]) == "cuda:1"
    gpus(2, visible="GPU-aaa, GPU-bbb")
    assert choose(["GPU-bbb"]) == "cuda:1"
    assert choose(["0"]) == "cuda:0"


def test_an_instance_of_a_gpu_is_the_one_device_that_cuda_shows(gpus):
    gpus(1)
    assert choose(["MIG-aaa"]) == "cuda:0"
    gpus(1, visible="0")
    assert choose(["MIG-aaa"]) == "cuda:0"
    gpus(1, visible="MIG-aaa")
    assert choose(["MIG-aaa"]) == "cuda:0"


def test_an_unscheduled_gpu_is_used_and_said(gpus, caplog):
    gpus(2)
    assert choose() == "cuda:0"
    assert choose(rank=1) == "cuda:1"
    assert "spark.task.resource.gpu.amount" in caplog.text


@pytest.mark.parametrize(
    ("gpu_count", "addresses", "options", "message"),
    [
        (0, [], {"device": "cuda"}, "spark.executor.resource.gpu.amount"),
        (0, [], {"rank": 1}, "rank=0"),
        (1, ["0"], {"rank": 1}, "gave this task 1 GPU"),
        (0, ["0"], {}, "torch sees 0 CUDA"),
        (1, ["3"], {}, "assigned GPU 3"),
        (1, ["GPU-xyz"], {}, "assigned GPU GPU-xyz"),
        (2, ["MIG-xyz"], {}, "set CUDA_VISIBLE_DEVICES=MIG-xyz"),
        (0, ["MIG-xyz"], {}, "set CUDA_VISIBLE_DEVICES=MIG-xyz"),
    ],
)
def test_a_gpu_that_is_not_there_is_an_error(gpus, gpu_count, addresses, options, message):
    gpus(gpu_count)
    with pytest.raises(DeviceError, match=message):
        choose(addresses, **options)


def test_outside_of_spark_a_task_has_the_process_cores_and_no_gpu():
    task = current_task()
    assert task.gpu_addresses == ()
    assert task.cpus >= 1


def test_the_garbage_collector_leaves_modules_alone_once_a_device_is_prepared():
    gc.unfreeze()
    freeze_modules.cache_clear()
    prepare_device(ImageViTEmbedding(device="cpu"), Task((), cpus=1))
    assert gc.get_freeze_count() > 100_000
    assert len(gc.get_objects()) < 1000
