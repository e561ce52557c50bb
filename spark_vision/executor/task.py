"""What Spark gave the running task: its GPU addresses and its share of the cores.

This is the only file of this folder that knows Spark. A Python worker can be given another GPU with
its next task, so nothing here is remembered from one task to the next.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """What one task may use.

    Attributes:
        gpu_addresses: The addresses of its `gpu` resource, in Spark's order; empty without one.
        cpus: Its `spark.task.cpus`.
    """

    gpu_addresses: tuple[str, ...]
    cpus: int


def current_task() -> Task:
    """Read the running task's resources; outside of a task, the process's own cores."""
    from pyspark import TaskContext

    context = TaskContext.get()
    if context is None:
        return Task(gpu_addresses=(), cpus=len(os.sched_getaffinity(0)))
    gpu = context.resources().get("gpu")
    return Task(gpu_addresses=tuple(gpu.addresses) if gpu else (), cpus=context.cpus())
