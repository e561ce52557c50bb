"""What Spark gave the running task: its GPU addresses, its share of the cores, its executor.

This is the only file of this folder that knows Spark. A Python worker can be given another GPU with
its next task, so nothing here is remembered from one task to the next.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from spark_vision.errors import InvalidOptionError
from spark_vision.executor.environment import HubEnvironment
from spark_vision.executor.executor_process import ExecutorProcess, find_executor_process

LOAD_SECONDS = "spark.vision.model.loadSeconds"
BATCH_SECONDS = "spark.vision.model.batchSeconds"
IDLE_SECONDS = "spark.vision.model.idleSeconds"
# Eleven days. The system waits for at most 2³¹ milliseconds at a time.
MOST_SECONDS = 1_000_000


@dataclass(frozen=True)
class Task:
    """What one task may use.

    Attributes:
        gpu_addresses: The addresses of its `gpu` resource, in Spark's order; empty without one.
        cpus: Its `spark.task.cpus`.
        is_local: Whether Spark runs in local mode, which schedules no GPUs.
        executor: The executor's process; None outside of Spark.
        executor_cores: The cores of all tasks of the executor together.
        load_seconds: A model server that has not loaded its model by then is ended.
        batch_seconds: A model server whose batch takes longer, or that is silent for so long, ends.
        idle_seconds: A model server that nobody called for so long ends; 0 keeps it.
        hub: The job's settings of the Hugging Face hub, for while a checkpoint is looked for.
        attempt_number: How often Spark has tried it before; None outside of Spark.
    """

    gpu_addresses: tuple[str, ...]
    cpus: int
    is_local: bool = False
    executor: ExecutorProcess | None = None
    executor_cores: int = 1
    load_seconds: float = 600.0
    batch_seconds: float = 600.0
    idle_seconds: float = 600.0
    hub: HubEnvironment = HubEnvironment()
    attempt_number: int | None = None


def current_task(hub: HubEnvironment | None = None) -> Task:
    """Read the running task's resources; outside of a task, the process's own cores.

    Args:
        hub: The job's settings of the Hugging Face hub.

    Raises:
        InvalidOptionError: One of the three settings of the model server is no number of seconds.
    """
    from pyspark import TaskContext

    hub = hub or HubEnvironment()
    context = TaskContext.get()
    if context is None:
        return Task(gpu_addresses=(), cpus=_core_count(), hub=hub)
    gpu = context.resources().get("gpu")
    # Spark hands a query's settings to its tasks as properties.
    properties: Mapping[str, str] = context._localProperties or {}
    return Task(
        gpu_addresses=tuple(gpu.addresses) if gpu else (),
        cpus=context.cpus(),
        is_local=is_local_master(properties.get("spark.master", "")),
        executor=find_executor_process(),
        executor_cores=_executor_cores(properties),
        load_seconds=_seconds(properties, LOAD_SECONDS),
        batch_seconds=_seconds(properties, BATCH_SECONDS),
        idle_seconds=_seconds(properties, IDLE_SECONDS, zero=True),
        hub=hub,
        attempt_number=context.attemptNumber(),
    )


def is_local_master(master: str) -> bool:
    """Whether a master is Spark's local mode, which runs tasks in the driver's own JVM."""
    return re.fullmatch(r"local(\[.*\])?", master) is not None


def _executor_cores(properties: Mapping[str, str]) -> int:
    """An executor of a standalone cluster has all cores of its host where nothing says a number."""
    said = properties.get("spark.executor.cores", "")
    master = properties.get("spark.master", "")
    if is_local_master(master):
        said = re.sub(r"local\[?|[,\]].*", "", master) or "1"
    return int(said) if said.isdecimal() else _core_count()


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _seconds(properties: Mapping[str, str], name: str, *, zero: bool = False) -> float:
    said = properties.get(name, "600")
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds <= MOST_SECONDS or (zero and seconds == 0)):
        raise InvalidOptionError(
            f"{name} got {said!r}; allowed: a number of seconds above 0, at most {MOST_SECONDS:,}"
            f"{', or 0 for ever' if zero else ''}"
        )
    return seconds
