"""The running task: its GPU addresses, its cores, its executor, its job's Hugging Face variables.

Spark does not pass the executor's id to a Python worker, so the executor is the nearest `java`
process among the worker's ancestors.

This is the only file of this folder that imports Spark. The next task of a Python worker may get
another GPU, so nothing here is cached between tasks.
"""

import json
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from spark_vision.errors import InvalidOptionError

LOAD_SECONDS = "spark.vision.model.loadSeconds"
BATCH_SECONDS = "spark.vision.model.batchSeconds"
IDLE_SECONDS = "spark.vision.model.idleSeconds"
JOINED_ROW_COUNT = "spark.vision.model.joinedRowCount"
VLLM_PYTHON = "spark.vision.model.vllmPython"
VLLM_ARGUMENTS = "spark.vision.model.vllmArguments"
# Eleven days: poll() accepts at most 2³¹ milliseconds.
MAX_SECONDS = 1_000_000
MAX_JOINED_ROW_COUNT = 65_536

HUB_VARIABLES = ("HF_HOME", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE")
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

# Indices of fields in /proc/<pid>/stat, counted after the command name; see proc(5).
_PARENT_FIELD = 1
_START_FIELD = 19

# Environment variables are global to the process.
_applying = threading.Lock()


@dataclass(frozen=True)
class HubEnvironment:
    """The Hugging Face variables of the driver, sent to the executors with the function.

    They are set only while a checkpoint is resolved: Spark reuses a Python worker for other jobs,
    which must not get this job's token. The token appears in no repr, log or query plan.
    """

    variables: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def capture(cls) -> "HubEnvironment":
        """Read the variables of this process."""
        return cls(tuple((name, os.environ[name]) for name in HUB_VARIABLES if name in os.environ))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set the variables that this process lacks, and unset them when the block ends."""
        # Its import reads the variables, and must see only this process's own.
        import huggingface_hub.constants  # noqa: F401

        with _applying:
            lacking = {name: value for name, value in self.variables if name not in os.environ}
            os.environ.update(lacking)
            try:
                yield
            finally:
                for name in lacking:
                    os.environ.pop(name, None)


@dataclass(frozen=True)
class ExecutorProcess:
    """A process, identified uniquely on this host since its boot: process ids are reused.

    Attributes:
        pid: Its process id.
        start_ticks: Its start time, in clock ticks since boot.
    """

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> "ExecutorProcess":
        """Identify a running process.

        Raises:
            ProcessLookupError: No process has this id.
        """
        return cls(pid, int(_stat(pid)[_START_FIELD]))

    def __str__(self) -> str:
        return f"{self.pid}-{self.start_ticks}"

    def is_alive(self) -> bool:
        """Return whether it still runs; a zombie does not."""
        try:
            stat = _stat(self.pid)
        except ProcessLookupError:
            return False
        return int(stat[_START_FIELD]) == self.start_ticks and stat[0] not in "ZX"

    def open_descriptor(self) -> int:
        """Open a descriptor that becomes readable when the process ends.

        Raises:
            ProcessLookupError: It has already ended.
        """
        descriptor = os.pidfd_open(self.pid)
        if not self.is_alive():
            os.close(descriptor)
            raise ProcessLookupError(f"process {self} has ended")
        return descriptor


@dataclass(frozen=True)
class Task:
    """The resources and settings of one task.

    Attributes:
        gpu_addresses: The addresses of its `gpu` resource, in Spark's order; may be empty.
        cpus: Its `spark.task.cpus`.
        is_local: Whether Spark runs in local mode, which does not schedule GPUs.
        executor: The executor's process; None outside Spark.
        executor_cores: The total number of cores of the executor.
        load_seconds: Time limit of a model server to load its model.
        batch_seconds: Time limit of a model server to compute a batch, and of its silence.
        joined_row_count: Maximum number of rows that a model server computes at a time on a GPU, if
            it joins small batches; 0 joins none.
        idle_seconds: A model server without calls for this long ends; 0 means never.
        vllm_python: The interpreter of the environment with vLLM, on the executors; None: this one.
        vllm_arguments: Arguments of vLLM's engine, as a JSON object.
        hub: The Hugging Face variables of the job.
        attempt_number: Spark's attempt number of the task, from 0; None outside Spark.
    """

    gpu_addresses: tuple[str, ...]
    cpus: int
    is_local: bool = False
    executor: ExecutorProcess | None = None
    executor_cores: int = 1
    load_seconds: float = 600.0
    batch_seconds: float = 600.0
    idle_seconds: float = 600.0
    joined_row_count: int = 256
    vllm_python: str | None = None
    vllm_arguments: str = "{}"
    hub: HubEnvironment = HubEnvironment()
    attempt_number: int | None = None


def current_task(hub: HubEnvironment | None = None) -> Task:
    """Read the resources of the running task; outside a task, the cores of the process.

    Args:
        hub: The Hugging Face variables of the job.

    Raises:
        InvalidOptionError: A setting of the model server is not valid.
    """
    from pyspark import TaskContext

    hub = hub or HubEnvironment()
    context = TaskContext.get()
    if context is None:
        return Task(gpu_addresses=(), cpus=_core_count(), hub=hub)
    gpu = context.resources().get("gpu")
    # Spark passes the settings of a query to its tasks as local properties.
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
        joined_row_count=_joined_row_count(properties),
        vllm_python=properties.get(VLLM_PYTHON),
        vllm_arguments=_vllm_arguments(properties),
        hub=hub,
        attempt_number=context.attemptNumber(),
    )


@cache
def find_executor_process() -> ExecutorProcess | None:
    """Find the JVM that this worker belongs to.

    The result is cached: a worker whose parent ends is no longer a descendant of the JVM.

    Returns:
        None outside Spark, or on a system without /proc.
    """
    try:
        pid = os.getpid()
        while pid > 1:
            pid = int(_stat(pid)[_PARENT_FIELD])
            if pid and Path(f"/proc/{pid}/comm").read_text().strip() == "java":
                return ExecutorProcess.of(pid)
    except (OSError, ValueError):
        return None
    return None


def is_local_master(master: str) -> bool:
    """Return whether a master URL means local mode, which runs tasks in the driver's JVM.

    `local-cluster[...]` is a cluster on one host: it starts executors and schedules their GPUs.
    """
    return re.fullmatch(r"local(\[.*\])?", master) is not None


def _executor_cores(properties: Mapping[str, str]) -> int:
    """Without a setting, an executor of a standalone cluster has all cores of its host."""
    cores = properties.get("spark.executor.cores", "")
    master = properties.get("spark.master", "")
    if is_local_master(master):
        cores = re.sub(r"local\[?|[,\]].*", "", master) or "1"
    return int(cores) if cores.isdecimal() else _core_count()


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _joined_row_count(properties: Mapping[str, str]) -> int:
    text = properties.get(JOINED_ROW_COUNT, str(Task.joined_row_count))
    if not text.isdecimal() or int(text) > MAX_JOINED_ROW_COUNT:
        raise InvalidOptionError(
            f"{JOINED_ROW_COUNT} got {text!r}; allowed: an integer from 0 to {MAX_JOINED_ROW_COUNT}"
        )
    return int(text)


def _vllm_arguments(properties: Mapping[str, str]) -> str:
    text = properties.get(VLLM_ARGUMENTS, Task.vllm_arguments)
    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise InvalidOptionError(
            f"{VLLM_ARGUMENTS} got {text!r}; allowed: a JSON object with arguments of vLLM's "
            'engine, such as {"max_model_len": 8192}'
        )
    return text


def _seconds(properties: Mapping[str, str], name: str, *, zero: bool = False) -> float:
    text = properties.get(name, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds <= MAX_SECONDS or (zero and seconds == 0)):
        raise InvalidOptionError(
            f"{name} got {text!r}; allowed: a number of seconds above 0, at most {MAX_SECONDS:,}"
            f"{', or 0 for no limit' if zero else ''}"
        )
    return seconds


def _stat(pid: int) -> list[str]:
    try:
        # The command name is in parentheses and may itself contain spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"no process {pid}") from error
