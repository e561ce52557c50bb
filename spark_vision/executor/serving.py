"""Serves a loaded model to its clients: a thread takes calls, others compute them in order."""

import dataclasses
import logging
import queue
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spark_vision.executor.allocator import keep_freed_memory
from spark_vision.executor.channel import Channel
from spark_vision.executor.model_methods import describe_error, serve
from spark_vision.executor.placement import PlacedModel
from spark_vision.executor.server_place import ServerLock
from spark_vision.executor.server_start import ServerOrder
from spark_vision.models.checkpoint_files import open_folder

logger = logging.getLogger("spark_vision.model_server")

# How long the taking of calls sleeps before it looks again at the time and at the model's thread.
LONGEST_SLEEP_SECONDS = 1.0

Tensors = Mapping[str, torch.Tensor]


def load(order: ServerOrder) -> PlacedModel:
    """Load what a server is started for.

    Raises:
        SparkVisionError: It cannot be loaded.
    """
    keep_freed_memory()
    torch.set_num_threads(order.thread_count)
    checkpoint = open_folder(Path(order.folder))
    device, executor = torch.device(order.device), str(order.executor)
    return PlacedModel(checkpoint, order.dtype, device, executor, order.flash_attention)


def serve_clients(
    placed: PlacedModel, listener: socket.socket, lock: ServerLock, order: ServerOrder
) -> tuple[str, int]:
    """Serve until there is a reason to end.

    Returns:
        The reason, and the process's exit code.
    """
    serving = _Serving(placed, lock)
    for _ in range(order.call_count):
        threading.Thread(
            target=serving.compute, args=(order.thread_count,), name="model", daemon=True
        ).start()
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(LONGEST_SLEEP_SECONDS):
                if isinstance(key.fileobj, Channel):
                    serving.receive(key.fileobj, selector)
                else:
                    serving.accept(listener, selector)
            if serving.has_ended:
                return "a model's thread has ended", 1
            if order.idle_seconds and serving.idle_seconds() >= order.idle_seconds:
                return f"no call for {order.idle_seconds:g} s", 0


class _Serving:
    def __init__(self, placed: PlacedModel, lock: ServerLock) -> None:
        self._placed = placed
        self._lock = lock
        self._calls: queue.SimpleQueue[tuple[Channel, Mapping[str, Any], Tensors]] = (
            queue.SimpleQueue()
        )
        self._in_flight: set[Channel] = set()
        self._last_answer = time.monotonic()
        self._is_device_broken = False
        self.has_ended = False

    def idle_seconds(self) -> float:
        """Return for how long nobody has called."""
        return 0.0 if self._in_flight else time.monotonic() - self._last_answer

    def accept(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        connection, _ = listener.accept()
        try:
            channel = Channel(connection)
            channel.send({"hello": 1})
        except OSError as error:
            logger.warning("a client was not accepted: %s", error)
            connection.close()
        else:
            selector.register(channel, selectors.EVENT_READ)

    def receive(self, channel: Channel, selector: selectors.BaseSelector) -> None:
        try:
            message = channel.receive()
            if channel in self._in_flight and message is not None:
                raise ValueError("a call came before the answer to the last")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            logger.warning("a client was cut off: %s: %s", type(error).__name__, error)
            message = None
        if message is None:
            selector.unregister(channel)
            channel.close()
            return
        self._in_flight.add(channel)
        self._calls.put((channel, *message))

    def compute(self, thread_count: int) -> None:
        """Answer calls in the order in which they came, while the device works."""
        torch.set_num_threads(thread_count)
        try:
            while not self._is_device_broken:
                self._answer_next()
        except Exception:
            logger.exception("the model's thread failed")
        # Whoever waits sees the end of this process, and asks another.
        self.has_ended = True

    def _answer_next(self) -> None:
        channel, header, tensors = self._calls.get()
        self._lock.beat()
        answer, result = self._answer(header, tensors)
        self._lock.beat()
        self._last_answer = time.monotonic()
        # Before the answer: the client may call again as soon as it has it.
        self._in_flight.discard(channel)
        try:
            channel.send(answer, result)
        except OSError as error:
            logger.info("a client did not take its answer: %s", error)
            channel.cut_off()

    def _answer(
        self, header: Mapping[str, Any], tensors: Tensors
    ) -> tuple[Mapping[str, Any], Tensors]:
        try:
            if header["method"] == "placement":
                return {"placement": dataclasses.asdict(self._placed.placement)}, {}
            return {}, serve(self._placed.model, header["method"], header["arguments"], tensors)
        except Exception as error:
            described = {"error": describe_error(error)}
            self._is_device_broken = isinstance(error, torch.AcceleratorError)
            if not isinstance(error, torch.OutOfMemoryError | ValueError | IndexError):
                logger.exception("a call of %s failed", header.get("method"))
        # Out of the handler, whose traceback would keep the failed batch's tensors alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return described, {}
