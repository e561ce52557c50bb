"""The way of a task to its checkpoint, its device, the weight-free halves and the model.

The model is in the executor's model server, or in the Python worker; what `reach_model` returns is
known only by the protocols of models.
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
from spark_vision.executor.placement import PlacedModel, Placement
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

# A worker serves one function at a time, and a second checkpoint now and then; a notebook that
# tries many must not fill the worker's memory with them.
KEPT_MODEL_COUNT = 2
KEPT_CONNECTION_COUNT = 8


@dataclass(frozen=True)
class ModelKey:
    """What makes two operators share a model: pooling, normalisation and limits do not."""

    checkpoint: Checkpoint
    stamp: Stamp
    dtype: str
    device: torch.device
    flash_attention: bool


@dataclass(frozen=True)
class ReachedModel:
    """A loaded model.

    Attributes:
        model: With the methods of the protocols that its checkpoint has.
        placement: Asks the process that holds the model what it says of itself.
    """

    model: Any
    placement: Callable[[], Placement]


def digest_of(stamp: Stamp) -> str:
    """Write a stamp in few characters."""
    return hashlib.sha256(json.dumps(stamp).encode()).hexdigest()


def stamp_of(checkpoint: Checkpoint) -> Stamp:
    """Take the names, sizes and times of a checkpoint's files: another stamp, another content."""
    stats = [(path.name, path.stat()) for path in sorted(checkpoint.folder.iterdir())]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def open_checkpoint(operator: Operator, task: Task) -> tuple[Checkpoint, ModelDescription]:
    """Find an operator's checkpoint, or download it, and check that it does what is asked.

    Args:
        operator: Names it.
        task: Its job's settings of the hub hold meanwhile.

    Raises:
        SparkVisionError: It is nowhere, or is not what the operator needs.
    """
    with task.hub.applied():
        checkpoint = resolve_checkpoint(operator)
    return checkpoint, check_operator(checkpoint, operator)


def prepare_device(operator: Operator, task: Task) -> torch.device:
    """Choose the device of a task, and set this process up to compute for it.

    Raises:
        DeviceError: A GPU is asked for that is not there.
    """
    device = choose_device(operator, task)
    keep_freed_memory()
    # Spark fixes OMP_NUM_THREADS when a worker starts; a later task of it may own other cores.
    torch.set_num_threads(task.cpus)
    return device


@lru_cache(maxsize=8)
def open_preprocessor(
    checkpoint: Checkpoint, stamp: Stamp, kwargs: Mapping[str, Any] | None
) -> ImagePreprocessor:
    """Load an image processor once per worker, as long as the checkpoint's files stay the same.

    Raises:
        InvalidOptionError: The processor does not take the settings.
        UnsupportedCheckpointError: It cannot be used.
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
            f"{checkpoint.folder} does not take ({error}); change or leave out the settings"
        ) from error


@lru_cache(maxsize=8)
def open_tokenizer(checkpoint: Checkpoint, stamp: Stamp) -> TextTokenizer:
    """Load a tokenizer once per worker, as long as the checkpoint's files stay the same.

    Raises:
        UnsupportedCheckpointError: It cannot be loaded.
    """
    return load_tokenizer(checkpoint)


@lru_cache(maxsize=8)
def open_caption_preprocessor(
    checkpoint: Checkpoint, stamp: Stamp, operator: QwenVLImageUnderstanding
) -> CaptionPreprocessor:
    """Load what prepares captions once per worker, as long as the files stay the same.

    Raises:
        InvalidOptionError: The operator's sizes contradict the checkpoint's.
        UnsupportedCheckpointError: The processor cannot be used.
    """
    return load_caption_preprocessor(checkpoint, operator)


_loaded: OrderedDict[ModelKey, PlacedModel] = OrderedDict()
_served: "OrderedDict[tuple[str, float], ModelProxy]" = OrderedDict()
_loading = threading.Lock()


def reach_model(
    checkpoint: Checkpoint,
    operator: Operator,
    device: torch.device,
    task: Task,
    *,
    flash_attention: bool = False,
) -> ReachedModel:
    """Return the loaded model, loading it first where nobody has yet.

    Args:
        checkpoint: What to load.
        operator: Its `dtype` and `model_sharing` count.
        device: Where.
        task: Whose executor shares the model.
        flash_attention: Use the package flash-attn where it, the device and the family allow it.

    Raises:
        UnsupportedCheckpointError: Its weights cannot be used.
        ModelServerError: The model's process could not load it.
    """
    key = ModelKey(checkpoint, stamp_of(checkpoint), operator.dtype, device, flash_attention)
    with _loading:
        if operator.model_sharing == "executor":
            served = _serve(key, task)
            if served is not None:
                return ReachedModel(served, served.placement)
        placed = _keep(_loaded, KEPT_MODEL_COUNT, key, lambda: _load(key, task))
        return ReachedModel(placed.model, lambda: placed.placement)


def _load(key: ModelKey, task: Task) -> PlacedModel:
    executor = str(task.executor) if task.executor else None
    return PlacedModel(key.checkpoint, key.dtype, key.device, executor, key.flash_attention)


def _serve(key: ModelKey, task: Task) -> "ModelProxy | None":
    if sys.platform != "linux":
        return _decline("a model server needs Linux")
    if task.executor is None:
        return _decline("no executor's JVM is among this process's ancestors")
    # Other systems lack what this needs as soon as it is imported.
    from spark_vision.model_server.client import (
        ModelProxy,
        SharingUnavailableError,
        why_not_shared,
    )
    from spark_vision.model_server.start import ServerOrder

    reason = why_not_shared()
    if reason is not None:
        return _decline(reason)
    order = ServerOrder(
        executor=task.executor,
        folder=str(key.checkpoint.folder.absolute()),
        stamp=digest_of(key.stamp),
        dtype=key.dtype,
        device=str(key.device),
        flash_attention=key.flash_attention,
        # A GPU does one thing at a time. Cores do best as they would without a server: each task's
        # cores compute that task's batch, and wait for nobody.
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
            (order.name, task.batch_seconds),
            lambda: ModelProxy(order),
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
