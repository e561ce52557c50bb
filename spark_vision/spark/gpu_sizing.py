"""Sizes the task slots of an executor for its GPUs, so that none of them stays idle.

Spark fills the first GPU with tasks before it uses the next one. With fewer than GPUs × tasks per
GPU slots, the last GPUs would get no tasks.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from spark_vision.errors import SessionError

CORES = "spark.executor.cores"
TASK_CPUS = "spark.task.cpus"
EXECUTOR_GPUS = "spark.executor.resource.gpu.amount"
TASK_GPUS = "spark.task.resource.gpu.amount"
# Measured: one Python worker moves about 5,000 images a second, however many cores decode them; two
# moved 7,600 (benchmarks/pipeline.py).
CORES_PER_TASK = 8
MAX_TASKS_PER_GPU = 4
DISCOVERY_SCRIPT = "spark.executor.resource.gpu.discoveryScript"


def gpu_settings(
    present: Mapping[str, str], gpus_per_executor: int, tasks_per_gpu: int | None = None
) -> dict[str, str]:
    """Compute the Spark settings for an executor with GPUs.

    Args:
        present: The existing settings. `spark.executor.cores` is required, since its default
            differs between cluster managers. The default of `spark.task.cpus` here is the cores
            of an executor divided by its slots.
        gpus_per_executor: As `spark.executor.resource.gpu.amount`.
        tasks_per_gpu: Number of concurrent tasks per GPU; none: one for each `CORES_PER_TASK` cores
            of a GPU, at most `MAX_TASKS_PER_GPU`.

    Returns:
        The settings to add; they override existing ones.

    Raises:
        SessionError: A number is not positive, there are too few cores for the GPUs, or this
            package is in an archive and no discovery script is set.
    """
    for name, value in {
        "gpus_per_executor": gpus_per_executor,
        "tasks_per_gpu": 1 if tasks_per_gpu is None else tasks_per_gpu,
    }.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise SessionError(f"{name} got {value!r}; allowed: an integer, 1 or more")
    if CORES not in present:
        raise SessionError(f"gpus_per_executor needs {CORES}, to divide the cores among the tasks")
    cores = int(present[CORES])
    if tasks_per_gpu is None:
        cores_of_task = max(CORES_PER_TASK, int(present.get(TASK_CPUS) or 1))
        tasks_per_gpu = cores // gpus_per_executor // cores_of_task
        tasks_per_gpu = min(max(1, tasks_per_gpu), MAX_TASKS_PER_GPU)
    slots = gpus_per_executor * tasks_per_gpu
    task_cpus = int(present.get(TASK_CPUS) or max(1, cores // slots))
    if cores // task_cpus < slots:
        raise SessionError(
            f"{CORES}={cores} with {TASK_CPUS}={task_cpus} gives {cores // task_cpus} slots, but "
            f"{gpus_per_executor} GPUs with {tasks_per_gpu} tasks each need {slots}: a GPU would "
            "stay idle; raise the cores, or lower spark.task.cpus, tasks_per_gpu or "
            "gpus_per_executor"
        )
    # Rounded down: Spark uses floor(1 / amount) as the number of tasks per GPU.
    share = "1" if tasks_per_gpu == 1 else str(math.floor(1e6 / tasks_per_gpu) / 1e6)
    settings = {
        EXECUTOR_GPUS: str(gpus_per_executor),
        TASK_GPUS: share,
        TASK_CPUS: str(task_cpus),
    }
    if DISCOVERY_SCRIPT not in present:
        script = Path(__file__).parents[1] / "executor" / "discover_gpus.py"
        if not script.is_file():
            raise SessionError(
                f"gpus_per_executor: {script} is in an archive, where Spark cannot run it; copy it "
                f"to each host and set {DISCOVERY_SCRIPT} to its path there"
            )
        settings[DISCOVERY_SCRIPT] = str(script)
    return settings
