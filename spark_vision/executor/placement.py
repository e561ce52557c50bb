"""Where a model was loaded, as the process that loaded it says: host, device, seconds, identity."""

import logging
import os
import socket
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from spark_vision.models.checkpoint_files import weight_files
from spark_vision.models.checkpoints import Checkpoint, fingerprint
from spark_vision.models.families import load_model
from spark_vision.models.precision import choose_dtype

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """What a process says of the model that it holds.

    Attributes:
        host: The host's name.
        executor: The executor's JVM, as pid and start; None outside of Spark.
        device: Such as `cpu` or `cuda:1`, in that process's own numbering.
        server_pid: The process's id.
        loaded_at: When the load ended, in seconds since 1970.
        load_seconds: How long it took.
        dtype: What the model computes in.
        fingerprint: The checkpoint's, as tables keep it.
    """

    host: str
    executor: str | None
    device: str
    server_pid: int
    loaded_at: float
    load_seconds: float
    dtype: str
    fingerprint: str


class PlacedModel:
    """A model, loaded here and now.

    Args:
        checkpoint: What to load.
        dtype: What to compute in, where the device can.
        device: Where.
        executor: For whom: the name of the executor's process.
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
        """What there is to say; reads parts of the weights the first time."""
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
