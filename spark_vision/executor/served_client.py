"""One client of a model server: its connection, and whether a call of its is under way.

One thread receives what clients send, and learns that one has left; others compute and answer. A
descriptor that is closed under a thread that sends on it may by then be another file's, so the
socket of a client that leaves in the middle of a call is closed by the thread that answers it.
"""

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from spark_vision.executor.channel import Channel
from spark_vision.executor.model_methods import describe_error

logger = logging.getLogger("spark_vision.model_server")

Tensors = Mapping[str, torch.Tensor]


class ServedClient:
    """A client, from its hello to its end.

    Args:
        channel: The connection to it.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._is_calling = False
        self.has_left = False

    def fileno(self) -> int:
        """Return the socket's descriptor, for a selector; -1 once it is closed."""
        return self._channel.fileno()

    def receive(self) -> tuple[Mapping[str, Any], Tensors] | None:
        """Receive a call; None where the client has left, or what it sent is no call.

        Whatever a client sends is an error of that client alone, which is told to it.
        """
        try:
            call = self._channel.receive()
            if call is None:
                return None
            with self._lock:
                if self._is_calling:
                    raise ValueError("a call came before the answer to the last")
                self._is_calling = True
        except Exception as error:
            logger.warning("a client was cut off: %s: %s", type(error).__name__, error)
            self._refuse(error)
            return None
        return call

    def _refuse(self, error: Exception) -> None:
        with self._lock, suppress(OSError):
            # The answer to a call that is under way is not this one.
            if not self._is_calling:
                self._channel.send({"error": describe_error(error)})

    def leave(self) -> None:
        """End the connection, at once or after the call that is under way."""
        with self._lock:
            self.has_left = True
            if self._is_calling:
                self._channel.cut_off()
            else:
                self._channel.close()

    def answer(self, header: Mapping[str, Any], tensors: Tensors) -> None:
        """Answer the client's call; to one that has left nothing is sent."""
        # Held while it sends: the client may call again, or leave, as soon as it has the answer.
        with self._lock:
            self._is_calling = False
            if self.has_left:
                self._channel.close()
                return
            try:
                self._channel.send(header, tensors)
            except OSError as error:
                logger.info("a client did not take its answer: %s", error)
                self._channel.cut_off()
