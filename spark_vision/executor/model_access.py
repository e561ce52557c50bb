"""Gives a task its checkpoint, its device, its preprocessors and its model.

The model lives in the executor's model server or in this Python worker. Either way, `reach_model`
returns an object with the methods of `models.protocols`.
"""

import hashlib
import json
import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from spark_vision.errors import InvalidOptionError, SparkVisionError
from spark_vision.executor.allocator import keep_freed_memory
from spark_vision.executor.devices import choose_device
from spark_vision.executor.loaded_model import LoadedModel
from spark_vision.executor.placement import Placement
from spark_vision.executor.task import Task
from spark_vision.models.checkpoints import Checkpoint, resolve_checkpoint
from spark_vision.models.families import (
    ModelDescription,
    check_operator,
    load_caption_preprocessor,
    load_preprocessor,
    load_tokenizer,
)
from spark_vision.models.protocols import CaptionPreprocessor, ImagePreprocessor, TextTokenizer
from spark_vision.operators import Operator, QwenVLImageUnderstanding

if TYPE_CHECKING:
    from spark_vision.model_server.client import ModelProxy

logger = logging.getLogger(__name__)

Key = TypeVar("Key")
Model = TypeVar("Model")
Stamp = tuple[tuple[str, int, int], ...]

# A worker runs one function at a time, sometimes two. A notebook that tries many checkpoints must
# not fill the worker's memory.
KEPT_MODEL_COUNT = 2
KEPT_CONNECTION_COUNT = 8


@dataclass(frozen=True)
class ModelKey:
    """What operators must agree on to share a model; pooling and limits may differ."""

    checkpoint: Checkpoint
    stamp: Stamp
    dtype: str
    device: torch.device
    flash_attention: bool


@dataclass(frozen=True)
class ReachedModel:
    """A loaded model.

    Attributes:
        model: Implements the protocols that its checkpoint supports.
        placement: Returns the placement of the model.
    """

    model: Any
    placement: Callable[[], Placement]


def digest_of(stamp: Stamp) -> str:
    """Return a short digest of a stamp."""
    return hashlib.sha256(json.dumps(stamp).encode()).hexdigest()


def stamp_of(checkpoint: Checkpoint) -> Stamp:
    """Return names, sizes and modification times of a checkpoint's files, to detect changes."""
    stats = [(path.name, path.stat()) for path in sorted(checkpoint.folder.iterdir())]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def open_checkpoint(operator: Operator, task: Task) -> tuple[Checkpoint, ModelDescription]:
    """Find or download an operator's checkpoint, and check that it fits the operator.

    Args:
        operator: Names the checkpoint.
        task: Has the Hugging Face variables to use.

    Raises:
        SparkVisionError: The checkpoint is missing, or does not fit the operator.
    """
    with task.hub.applied():
        checkpoint = resolve_checkpoint(operator)
    return checkpoint, check_operator(checkpoint, operator)


def prepare_device(operator: Operator, task: Task) -> torch.device:
    """Choose the device of a task, and configure this process for it.

    Raises:
        DeviceError: The requested GPU is not available.
    """
    device = choose_device(operator, task)
    keep_freed_memory()
    # Spark sets OMP_NUM_THREADS when a worker starts; a later task may have more or fewer cores.
    torch.set_num_threads(task.cpus)
    return device


@lru_cache(maxsize=8)
def open_preprocessor(
    checkpoint: Checkpoint, stamp: Stamp, kwargs: Mapping[str, Any] | None
) -> ImagePreprocessor:
    """Load an image processor once per worker, while the checkpoint's files do not change.

    Raises:
        InvalidOptionError: The processor does not accept the settings.
        UnsupportedCheckpointError: The processor cannot be used.
    """
    try:
        return load_preprocessor(checkpoint, kwargs)
    except SparkVisionError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        if not kwargs:
            raise
        raise InvalidOptionError(
            f"image_processor_kwargs got {kwargs}, which the image processor of "
            f"{checkpoint.folder} does not accept ({error}); change or remove the settings"
        ) from error


@lru_cache(maxsize=8)
def open_tokenizer(checkpoint: Checkpoint, stamp: Stamp) -> TextTokenizer:
    """Load a tokenizer once per worker, while the checkpoint's files do not change.

    Raises:
        UnsupportedCheckpointError: It cannot be loaded.
    """
    return load_tokenizer(checkpoint)


@lru_cache(maxsize=8)
def open_caption_preprocessor(
    checkpoint: Checkpoint, stamp: Stamp, operator: QwenVLImageUnderstanding
) -> CaptionPreprocessor:
    """Load a caption preprocessor once per worker, while the checkpoint's files do not change.

    Raises:
        InvalidOptionError: The operator's image sizes do not fit the checkpoint.
        UnsupportedCheckpointError: The processor cannot be used.
    """
    return load_caption_preprocessor(checkpoint, operator)


_loaded: OrderedDict[ModelKey, LoadedModel] = OrderedDict()
_served: "OrderedDict[tuple[str, float], ModelProxy]" = OrderedDict()
_loading = threading.Lock()


def reach_model(
    checkpoint: Checkpoint,
    operator: Operator,
    device: torch.device,
    task: Task,
) -> ReachedModel:
    """Return the model, loading it if necessary.

    Args:
        checkpoint: What to load.
        operator: Defines `dtype`, `model_sharing` and `flash_attention`.
        device: The device to load it on.
        task: Its executor shares the model.

    Raises:
        UnsupportedCheckpointError: Its weights cannot be used.
        ModelServerError: The model server could not load it.
    """
    key = ModelKey(
        checkpoint, stamp_of(checkpoint), operator.dtype, device, operator.flash_attention
    )
    with _loading:
        if operator.model_sharing == "executor":
            served = _serve(key, task)
            if served is not None:
                return ReachedModel(served, served.placement)
        placed = _keep(_loaded, KEPT_MODEL_COUNT, key, lambda: _load(key, task))
        return ReachedModel(placed.model, lambda: placed.placement)


def _load(key: ModelKey, task: Task) -> LoadedModel:
    executor = str(task.executor) if task.executor else None
    return LoadedModel(key.checkpoint, key.dtype, key.device, executor, key.flash_attention)


def _serve(key: ModelKey, task: Task) -> "ModelProxy | None":
    if sys.platform != "linux":
        return _decline("a model server needs Linux")
    if task.executor is None:
        return _decline("no executor's JVM is among this process's ancestors")
    # Importing this fails on other systems.
    from spark_vision.model_server.client import (
        ModelProxy,
        SharingUnavailableError,
        why_not_shared,
    )
    from spark_vision.model_server.start import ServerConfig

    reason = why_not_shared()
    if reason is not None:
        return _decline(reason)
    config = ServerConfig(
        executor=task.executor,
        folder=str(key.checkpoint.folder.absolute()),
        stamp=digest_of(key.stamp),
        dtype=key.dtype,
        device=str(key.device),
        flash_attention=key.flash_attention,
        # A GPU computes one batch at a time. On CPU each task's batch uses that task's cores, as
        # it would without a server.
        call_count=1 if key.device.type != "cpu" else max(1, task.executor_cores // task.cpus),
        thread_count=task.cpus,
        load_seconds=task.load_seconds,
        batch_seconds=task.batch_seconds,
        idle_seconds=task.idle_seconds,
    )
    try:
        return _keep(
            _served,
            KEPT_CONNECTION_COUNT,
            (config.name, task.batch_seconds),
            lambda: ModelProxy(config),
        )
    except SharingUnavailableError as error:
        return _decline(str(error))


def _keep(kept: OrderedDict[Key, Model], count: int, key: Key, make: Callable[[], Model]) -> Model:
    if key not in kept:
        while len(kept) >= count:
            kept.popitem(last=False)
        kept[key] = make()
    kept.move_to_end(key)
    return kept[key]


@cache
def _decline(reason: str) -> None:
    logger.warning("the model is loaded in each Python worker, not once per executor: %s", reason)
