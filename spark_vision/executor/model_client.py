"""The model of an executor's model server, as a worker calls it; it outlives the server's death.

A server that is seen to end in any way is found or started again (`server_connection.py`), and gets
the same call.
"""

import logging
import os
import resource
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from spark_vision.errors import ModelServerError, SparkVisionError
from spark_vision.executor.channel import Channel
from spark_vision.executor.model_methods import RemoteModel, Tensors, make_error
from spark_vision.executor.placement import Placement
from spark_vision.executor.server_connection import SharingUnavailableError, connect, kill
from spark_vision.executor.server_place import ServerPlace
from spark_vision.executor.server_start import ServerOrder

logger = logging.getLogger(__name__)

# A batch that ends the server each time is at fault itself.
MOST_SENDS = 3


@cache
def why_not_shared() -> str | None:
    """Say what this process lacks for a model server; None where nothing is missing."""
    try:
        os.close(os.pidfd_open(os.getpid()))
        os.close(os.memfd_create("spark-vision", os.MFD_ALLOW_SEALING))
    except (AttributeError, OSError) as error:
        return f"it needs pidfd_open and memfd_create (Linux 5.3): {error}"
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        return (
            f"spark.executor.pyspark.memory limits its address space to {limit} bytes, under "
            "which torch may not load"
        )
    return None


class ServedModel(RemoteModel):
    """A model in a model server, kept by a worker from task to task.

    Args:
        order: What the server is started with where none runs.
        place: Where it is found.

    Raises:
        SharingUnavailableError: A server cannot be started here.
        SparkVisionError: The load failed, here or a moment ago.
    """

    def __init__(self, order: ServerOrder, place: ServerPlace) -> None:
        super().__init__(self._compute)
        self._order = order
        self._place = place
        self._channel: Channel | None = connect(order, place)

    def placement(self) -> Placement:
        """Ask the server what it says of itself."""
        answer, _ = self._exchange({"method": "placement"}, {})
        return Placement(**answer["placement"])

    def _compute(
        self, method: str, arguments: Mapping[str, Any], tensors: Tensors
    ) -> dict[str, torch.Tensor]:
        _, result = self._exchange({"method": method, "arguments": arguments}, tensors)
        # The server writes its next result over this one.
        return {name: tensor.clone() for name, tensor in result.items()}

    def _exchange(
        self, header: Mapping[str, Any], tensors: Tensors
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        for _ in range(MOST_SENDS):
            channel = self._channel or self._reconnect()
            self._channel = None  # until its answer has come: this call may be broken off
            try:
                channel.send(header, tensors)
                self._wait(channel)
                message = channel.receive()
            except OSError as error:
                logger.info("the model server is gone: %s", error)
                message = None
            if message is not None:
                self._channel = channel
                if "error" in message[0]:
                    raise make_error(message[0]["error"])
                return message
            channel.close()
        raise ModelServerError(
            f"the model server for {self._order.folder} on {self._order.device} ended "
            f"{MOST_SENDS} times in the same batch; its log: {self._place.log}"
        )

    def _wait(self, channel: Channel) -> None:
        seen = self._place.pulse()
        seconds = self._order.batch_seconds
        while not channel.wait(seconds):
            now = self._place.pulse()
            if now == seen:
                logger.warning("the model server has done nothing for %g s and is killed", seconds)
                kill(self._place)
                raise ConnectionResetError("killed without an answer")
            seen = now

    def _reconnect(self) -> Channel:
        try:
            return connect(self._order, self._place)
        except (SparkVisionError, SharingUnavailableError) as error:
            # Whatever its kind: rows that were on their way are not at fault.
            raise ModelServerError(f"the model server did not come back: {error}") from error
