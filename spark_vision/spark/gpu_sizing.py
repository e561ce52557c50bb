"""How many tasks share an executor's GPUs: settings under which none of them stays idle.

Spark fills the first GPU with tasks before it takes the next one. With fewer slots than the GPUs
take tasks, the last ones get none: the slots must come to GPUs × tasks per GPU.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from spark_vision.errors import SessionError

CORES = "spark.executor.cores"
TASK_CPUS = "spark.task.cpus"
EXECUTOR_GPUS = "spark.executor.resource.gpu.amount"
TASK_GPUS = "spark.task.resource.gpu.amount"
DISCOVERY_SCRIPT = "spark.executor.resource.gpu.discoveryScript"


def gpu_settings(
    present: Mapping[str, str], gpus_per_executor: int, tasks_per_gpu: int
) -> dict[str, str]:
    """Size an executor's slots for its GPUs.

    Args:
        present: The settings that stand: `spark.executor.cores` must be among them, since its
            default differs between cluster managers. `spark.task.cpus` is written where it is not
            set: the cores of an executor shared out among its slots.
        gpus_per_executor: As `spark.executor.resource.gpu.amount`.
        tasks_per_gpu: The tasks that feed one GPU at a time.

    Returns:
        The settings to add; they override those of the same name.

    Raises:
        SessionError: A number is not positive, or the cores give too few slots for the GPUs.
    """
    for name, value in {
        "gpus_per_executor": gpus_per_executor,
        "tasks_per_gpu": tasks_per_gpu,
    }.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise SessionError(f"{name} got {value!r}; allowed: a whole number, 1 or more")
    if CORES not in present:
        raise SessionError(f"gpus_per_executor needs {CORES}, to share the cores among the tasks")
    cores = int(present[CORES])
    slots = gpus_per_executor * tasks_per_gpu
    task_cpus = int(present.get(TASK_CPUS) or max(1, cores // slots))
    if cores // task_cpus < slots:
        raise SessionError(
            f"{CORES}={cores} with {TASK_CPUS}={task_cpus} gives {cores // task_cpus} slots, but "
            f"{gpus_per_executor} GPUs of {tasks_per_gpu} tasks need {slots}: a GPU would stay "
            "idle; raise the cores, or lower spark.task.cpus, tasks_per_gpu or gpus_per_executor"
        )
    # Rounded down: Spark takes the whole part of 1 / amount as the tasks of a GPU.
    share = "1" if tasks_per_gpu == 1 else str(math.floor(1e6 / tasks_per_gpu) / 1e6)
    settings = {
        EXECUTOR_GPUS: str(gpus_per_executor),
        TASK_GPUS: share,
        TASK_CPUS: str(task_cpus),
    }
    if DISCOVERY_SCRIPT not in present:
        settings[DISCOVERY_SCRIPT] = str(
            Path(__file__).parents[1] / "executor" / "discover_gpus.py"
        )
    return settings
