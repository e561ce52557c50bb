"""Chooses a task's device, and configures this process for it.

The device is the GPU that Spark assigned, another visible GPU, or the CPU.
"""

import atexit
import ctypes
import gc
import itertools
import logging
import os
import platform
from functools import cache
from typing import Any

import torch

from spark_vision.errors import DeviceError
from spark_vision.executor.task import Task
from spark_vision.operators import Operator

logger = logging.getLogger(__name__)

# Parameter numbers from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
# Larger buffers are rare and too large to keep: they are still returned to the kernel.
MAX_KEPT_BUFFER_BYTES = 256 * 2**20
# Free memory at the end of the heap above this size is returned.
MAX_KEPT_BYTES = 512 * 2**20

# torch keeps freed memory for each stream, so that the threads of later tasks use the same ones.
STREAM_COUNT = 4
_thread_numbers = itertools.count()

GPU_SETTINGS = "spark.executor.resource.gpu.amount and spark.task.resource.gpu.amount"


def prepare_device(operator: Operator, task: Task) -> torch.device:
    """Choose the device of a task, and configure this process for it.

    Raises:
        DeviceError: The requested GPU is not available.
    """
    device = choose_device(operator, task)
    keep_freed_memory()
    freeze_modules()
    use_one_core()
    return device


def use_one_core() -> None:
    """Make the calling thread run torch's operations alone.

    Threads of torch that wait for work do so actively, on the cores on which images are decoded.
    """
    _set_core_count(1)


def prepare_compute_thread(device: torch.device, core_count: int) -> None:
    """Configure torch in a thread that runs a model.

    Args:
        device: The model's device. On a GPU each thread has a stream of its own, so that the copies
            of one call overlap with the computation of another.
        core_count: Number of cores that a call may use on a CPU.
    """
    if device.type == "cuda":
        torch.cuda.set_stream(_stream(device, next(_thread_numbers) % STREAM_COUNT))
        use_one_core()
    else:
        _set_core_count(core_count)


def _set_core_count(count: int) -> None:
    # The first call in a thread reads the number that another thread has set, and torch would do
    # so later, with the first operation.
    torch.get_num_threads()
    torch.set_num_threads(count)


@cache
def _stream(device: torch.device, number: int) -> Any:
    make_stream: Any = torch.cuda.Stream
    return make_stream(device)


def choose_device(operator: Operator, task: Task) -> torch.device:
    """Choose the device for this task.

    Args:
        operator: Requests a device by `device` and `rank`.
        task: Has the GPU addresses that Spark assigned.

    Raises:
        DeviceError: The requested GPU is not available.
    """
    if operator.device == "cpu":
        return torch.device("cpu")
    rank = operator.rank or 0
    if task.gpu_addresses:
        if rank >= len(task.gpu_addresses):
            raise DeviceError(
                f"rank={rank}, but Spark gave this task {len(task.gpu_addresses)} GPU(s): "
                f"set rank below that, or raise spark.task.resource.gpu.amount"
            )
        return _cuda_device(task.gpu_addresses[rank])
    visible_count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if rank < visible_count:
        if not task.is_local:
            _warn_unscheduled_gpu()
        return torch.device("cuda", rank)
    if operator.device == "cuda" or rank > 0:
        # Local mode does not schedule GPUs: with these settings a job would wait forever.
        remedy = "" if task.is_local else f" and Spark assigned none: set {GPU_SETTINGS}"
        raise DeviceError(
            f"device={operator.device!r} with rank={rank}, but this executor sees "
            f"{visible_count} GPU(s){remedy}; or use device='cpu' with rank=0"
        )
    return torch.device("cpu")


@cache
def keep_freed_memory() -> bool:
    """Make glibc's malloc keep freed memory for the next batch; set once per process.

    Images and activations are large, short-lived buffers. By default glibc returns them to the
    kernel, which clears each page again for the next batch. On a CPU this took a third of a
    worker's time per image.

    Returns:
        Whether both thresholds were accepted; False without glibc, where nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, MAX_KEPT_BUFFER_BYTES)) and bool(
        mallopt(M_TRIM_THRESHOLD, MAX_KEPT_BYTES)
    )


@cache
def freeze_modules() -> None:
    """Exempt what this process has imported from garbage collection; called once per process.

    Spark collects the garbage of a Python worker after each task. Half a million objects belong to
    the modules of torch and transformers: visiting all of them takes 0.2 s of a core.
    """
    gc.collect()
    gc.freeze()
    # Extension modules report what is left at the end as leaks.
    atexit.register(gc.unfreeze)


def _cuda_device(address: str) -> torch.device:
    """Map a Spark resource address to torch's numbering, which CUDA_VISIBLE_DEVICES can change."""
    visible = [
        name.strip()
        for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        if name.strip()
    ]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    is_partition = address.startswith("MIG-")
    if address in visible:
        index: int | None = visible.index(address)
    elif is_partition and count == 1:
        # CUDA shows a process at most one MIG partition, which may be listed by another name.
        index = 0
    else:
        index = int(address) if address.isdecimal() else None
    if index is None or index >= count:
        hint = f"set CUDA_VISIBLE_DEVICES={address} for its executor, " if is_partition else ""
        raise DeviceError(
            f"Spark assigned GPU {address}, but torch sees {count} CUDA device(s) here "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}): {hint}"
            "check the discovery script and the CUDA build of torch, or use device='cpu'"
        )
    return torch.device("cuda", index)


@cache
def _warn_unscheduled_gpu() -> None:
    logger.warning("using a GPU that Spark does not schedule: on a cluster, set %s", GPU_SETTINGS)
