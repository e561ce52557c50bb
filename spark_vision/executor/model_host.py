"""Where a task reaches its model: one copy per Python worker, kept from task to task.

`reach_model` is the only way to a model, and what it returns is known only by its protocols. A
model that lives in another process is reached through the same function and the same protocols.
"""

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

import torch

from spark_vision.models.checkpoints import Checkpoint
from spark_vision.models.families import load_model
from spark_vision.models.protocols import ImageCaptioner, ImageEmbedder, TextEmbedder

logger = logging.getLogger(__name__)

Model = ImageEmbedder | TextEmbedder | ImageCaptioner
Stamp = tuple[tuple[str, int, int], ...]

# A worker serves one function at a time, and a second checkpoint now and then; a notebook that
# tries many must not fill the worker's memory with them.
KEPT_MODEL_COUNT = 2


@dataclass(frozen=True)
class ModelKey:
    """What makes two operators share a model: pooling, normalisation and limits do not."""

    checkpoint: Checkpoint
    stamp: Stamp
    dtype: str
    device: torch.device
    flash_attention: bool


def stamp_of(checkpoint: Checkpoint) -> Stamp:
    """Take the names, sizes and times of a checkpoint's files: another stamp, another content."""
    stats = [(path.name, path.stat()) for path in sorted(checkpoint.folder.iterdir())]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


_models: OrderedDict[ModelKey, Model] = OrderedDict()
_loading = threading.Lock()


def reach_model(
    checkpoint: Checkpoint, dtype: str, device: torch.device, *, flash_attention: bool = False
) -> Model:
    """Return the loaded model, loading it first where this worker has not yet.

    Args:
        checkpoint: What to load.
        dtype: float32, float16 or bfloat16.
        device: Where to.
        flash_attention: Use the package flash-attn where it, the device and the family allow it.

    Raises:
        UnsupportedCheckpointError: Its weights cannot be used.
    """
    key = ModelKey(checkpoint, stamp_of(checkpoint), dtype, device, flash_attention)
    with _loading:
        if key not in _models:
            while len(_models) >= KEPT_MODEL_COUNT:
                _models.popitem(last=False)
            started = time.monotonic()
            _models[key] = load_model(checkpoint, dtype, device, flash_attention)
            logger.info(
                "loaded %s (%s) on %s as %s in %.1f s",
                checkpoint.folder,
                checkpoint.model_type,
                device,
                dtype,
                time.monotonic() - started,
            )
        _models.move_to_end(key)
        return _models[key]
