"""A loaded model, and its placement."""

import logging
import os
import socket
import time
from functools import cached_property
from typing import Any

import torch

from spark_vision.executor.placement import Placement
from spark_vision.models.checkpoint_files import weight_files
from spark_vision.models.checkpoints import Checkpoint, fingerprint
from spark_vision.models.families import load_model
from spark_vision.models.precision import choose_dtype

logger = logging.getLogger(__name__)


class LoadedModel:
    """A model, loaded into this process when the object is created.

    Args:
        checkpoint: What to load.
        dtype: The dtype to compute in, if the device supports it.
        device: The device to load it on.
        executor: The executor's JVM, as pid and start time.
        flash_attention: As for `families.load_model`.

    Raises:
        UnsupportedCheckpointError: Its weights cannot be used.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: str,
        device: torch.device,
        executor: str | None,
        flash_attention: bool = False,
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = str(choose_dtype(dtype, device)).removeprefix("torch.")
        self._device = device
        self._executor = executor
        started = time.monotonic()
        self.model: Any = load_model(checkpoint, dtype, device, flash_attention)
        self._load_seconds = time.monotonic() - started
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
