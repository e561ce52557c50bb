"""What every function opens on an executor: its checkpoint, its device, the weight-free halves."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from spark_vision.errors import InvalidOptionError, SparkVisionError
from spark_vision.executor.allocator import keep_freed_memory
from spark_vision.executor.devices import choose_device
from spark_vision.executor.model_host import Stamp
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
