"""Gives a task its checkpoint, its preprocessors and its model.

The model lives in the executor's model server or in this Python worker. Either way, `reach_model`
returns an object with the methods of `models.protocols`.
"""

import hashlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch

from spark_vision.errors import ModelServerError
from spark_vision.executor.devices import prepare_compute_thread, use_one_core
from spark_vision.executor.placement import Placement
from spark_vision.executor.spending import busy_time, spend, timed
from spark_vision.executor.task import ExecutorProcess, Task
from spark_vision.models.checkpoint_files import weight_files
from spark_vision.models.checkpoints import Checkpoint, fingerprint, resolve_checkpoint
from spark_vision.models.families import LoadOptions, check_operator, load_model
from spark_vision.models.loading import choose_dtype
from spark_vision.operators import Operator

if TYPE_CHECKING:
    from spark_vision.model_server.client import ModelProxy
    from spark_vision.model_server.start import ServerConfig

logger = logging.getLogger(__name__)

Key = TypeVar("Key")
Loaded = TypeVar("Loaded")

# A worker runs one function at a time, sometimes two. A notebook that tries many checkpoints must
# not fill the worker's memory.
KEPT_MODEL_COUNT = 2
KEPT_CONNECTION_COUNT = 8
# Of one task: while a server computes one call, the others are sent, wait, or are answered. A CPU
# takes so long that one call in advance is enough, and other queries would wait for more.
CPU_CALL_COUNT = 2
GPU_CALL_COUNT = 4
# On one GPU: while one call computes, the next one is copied to the device and started.
DEVICE_CALL_COUNT = 2
# vLLM batches the rows of all calls itself.
VLLM_CALL_COUNT = 64


class LoadedModel:
    """A model, loaded into this process when the object is created.

    Args:
        checkpoint: What to load.
        dtype: The dtype to compute in, if the device supports it.
        device: The device to load it on.
        executor: The executor's JVM, as pid and start time.
        options: Further options of the load.

    Raises:
        InvalidOptionError: torch.compile does not work here.
        UnsupportedCheckpointError: Its weights cannot be used.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: str,
        device: torch.device,
        executor: str | None,
        options: LoadOptions,
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = str(choose_dtype(dtype, device)).removeprefix("torch.")
        self._device = device
        self._executor = executor
        started = time.monotonic()
        self.model: Any = load_model(checkpoint, dtype, device, options)
        self._load_seconds = time.monotonic() - started
        spend(model_loads=1)
        self._loaded_at = time.time()
        logger.info(
            "loaded %s (%s) on %s as %s in %.1f s, %d bytes of weights",
            checkpoint.folder,
            checkpoint.model_type,
            device,
            self._dtype,
            self._load_seconds,
            sum(path.stat().st_size for path in weight_files(checkpoint)),
        )

    @cached_property
    def placement(self) -> Placement:
        """The placement; the first access reads parts of the weights for the fingerprint."""
        return Placement(
            host=socket.gethostname(),
            executor=self._executor,
            device=str(self._device),
            server_pid=os.getpid(),
            loaded_at=self._loaded_at,
            load_seconds=self._load_seconds,
            dtype=self._dtype,
            fingerprint=fingerprint(self._checkpoint),
        )


class _TimedModel:
    """A model in this process; the time of its calls is `model_ns`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._model, name)

        def call(*arguments: Any) -> Any:
            with timed("model_ns"), busy_time.computing():
                result = method(*arguments)
            spend(**busy_time.take())
            return result

        return call


class ReachedModel(NamedTuple):
    """A model, and how a task calls it.

    Attributes:
        model: Has the protocols that its checkpoint supports.
        placement: Returns its placement.
        call_count: Number of calls to keep in flight, each by a thread of its own.
        prepare_thread: Configures torch in such a thread.
    """

    model: Any
    placement: Callable[[], Placement]
    call_count: int
    prepare_thread: Callable[[], None] = use_one_core


def stamp_of(checkpoint: Checkpoint) -> str:
    """Return a digest of names, sizes and times of a checkpoint's files, to detect changes."""
    stats = [(path.name, path.stat()) for path in sorted(checkpoint.folder.iterdir())]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def open_checkpoint(operator: Operator, task: Task) -> tuple[Checkpoint, int | None]:
    """Find or download an operator's checkpoint, and check that it fits the operator.

    Args:
        operator: Names the checkpoint.
        task: Has the Hugging Face variables to use.

    Returns:
        The checkpoint, and what `check_operator` returns.

    Raises:
        SparkVisionError: The checkpoint is missing, or does not fit the operator.
    """
    with task.hub.applied():
        checkpoint = resolve_checkpoint(operator)
    return checkpoint, check_operator(checkpoint, operator)


def load_once(load: Callable[..., Loaded], checkpoint: Checkpoint, *settings: Any) -> Loaded:
    """Load a preprocessor or tokenizer once per worker, while the checkpoint's files do not change.

    Args:
        load: Called with the checkpoint and the settings.
        checkpoint: What to load from.
        *settings: Further arguments, all of them hashable.
    """
    return cast(Loaded, _load_once(load, checkpoint, stamp_of(checkpoint), settings))


@lru_cache(maxsize=16)
def _load_once(
    load: Callable[..., Any], checkpoint: Checkpoint, stamp: str, settings: tuple[Any, ...]
) -> Any:
    return load(checkpoint, *settings)


_loaded: OrderedDict[Hashable, LoadedModel] = OrderedDict()
_served: "OrderedDict[tuple[str, float], ModelProxy]" = OrderedDict()
_loading = threading.Lock()


def reach_model(
    checkpoint: Checkpoint, operator: Operator, device: torch.device, task: Task
) -> ReachedModel:
    """Return the model, loading it if necessary.

    Args:
        checkpoint: What to load.
        operator: Defines `dtype`, `model_sharing`, `flash_attention` and `engine`.
        device: The device to load it on.
        task: Its executor shares the model.

    Raises:
        UnsupportedCheckpointError: Its weights cannot be used.
        ModelServerError: The model server could not load it, or vLLM has no model server.
    """
    with _loading:
        if operator.model_sharing == "executor":
            served = _serve(checkpoint, operator, device, task)
            if not isinstance(served, str):
                call_count = CPU_CALL_COUNT if device.type == "cpu" else GPU_CALL_COUNT
                return ReachedModel(served, served.placement, call_count)
            if operator.engine == "vllm":
                raise ModelServerError(
                    f"engine='vllm' computes in a model server, but {served}; correct that, or use "
                    "engine='transformers'"
                )
            _warn_not_shared(served)
        executor = str(task.executor) if task.executor else None
        dtype, options = operator.dtype, _load_options(operator, task)
        loaded = keep_recent(
            _loaded,
            KEPT_MODEL_COUNT,
            (checkpoint, stamp_of(checkpoint), dtype, device, options),
            lambda: LoadedModel(checkpoint, dtype, device, executor, options),
        )
        # One call computes on all cores of a CPU; on a GPU, a second one copies meanwhile.
        device = loaded.model.device
        call_count = 1 if device.type == "cpu" else DEVICE_CALL_COUNT
        prepare_thread = partial(prepare_compute_thread, device, task.cpus)
        model = _TimedModel(loaded.model)
        return ReachedModel(model, lambda: loaded.placement, call_count, prepare_thread)


def _serve(
    checkpoint: Checkpoint, operator: Operator, device: torch.device, task: Task
) -> "ModelProxy | str":
    """Return the model in the executor's server, or the reason why there is no server."""
    if sys.platform != "linux":
        return "a model server needs Linux"
    if task.executor is None:
        return "no executor's JVM is among this process's ancestors"
    # Importing this fails on other systems.
    from spark_vision.model_server.client import ModelProxy, SharingUnavailableError

    config = server_config(checkpoint, operator, device, task, task.executor)
    try:
        return keep_recent(
            _served,
            KEPT_CONNECTION_COUNT,
            (config.name, task.batch_seconds),
            lambda: ModelProxy(config),
        )
    except SharingUnavailableError as error:
        return str(error)


def server_config(
    checkpoint: Checkpoint,
    operator: Operator,
    device: torch.device,
    task: Task,
    executor: ExecutorProcess,
) -> "ServerConfig":
    """Return the settings of the server that holds a model for an executor's tasks.

    Operators share a server if these settings agree; their pooling and limits may differ.
    """
    from spark_vision.model_server.start import ServerConfig

    is_vllm = operator.engine == "vllm"
    python = sys.executable
    if is_vllm:
        call_count = VLLM_CALL_COUNT
        # In an archive that Spark extracted, it is relative to the worker's folder.
        python = str(Path(task.vllm_python or python).absolute())
    elif device.type == "cpu":
        # Each task's batch uses that task's cores, as it would without a server.
        call_count = max(1, task.executor_cores // task.cpus)
    else:
        call_count = DEVICE_CALL_COUNT
    return ServerConfig(
        executor=executor,
        folder=str(checkpoint.folder.absolute()),
        stamp=stamp_of(checkpoint),
        dtype=operator.dtype,
        device=str(device),
        options=_load_options(operator, task),
        call_count=call_count,
        thread_count=task.cpus,
        # On a CPU a batch of any size takes the same time per row.
        joined_row_count=0 if is_vllm or device.type == "cpu" else task.joined_row_count,
        load_seconds=task.load_seconds,
        batch_seconds=task.batch_seconds,
        idle_seconds=task.idle_seconds,
        python=python,
    )


def _load_options(operator: Operator, task: Task) -> LoadOptions:
    return LoadOptions(
        flash_attention=operator.flash_attention,
        torch_compile=operator.torch_compile,
        vllm_arguments=task.vllm_arguments if operator.engine == "vllm" else None,
    )


def keep_recent(
    kept: OrderedDict[Key, Loaded], count: int, key: Key, make: Callable[[], Loaded]
) -> Loaded:
    """Return the value of a key, which is made where it is not kept; `count` values are kept."""
    if key not in kept:
        while len(kept) >= count:
            kept.popitem(last=False)
        kept[key] = make()
    kept.move_to_end(key)
    return kept[key]


@cache
def _warn_not_shared(reason: str) -> None:
    logger.warning("the model is loaded in each Python worker, not once per executor: %s", reason)
