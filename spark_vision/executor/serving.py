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

from spark_vision.errors import UnsupportedCheckpointError
from spark_vision.executor.allocator import keep_freed_memory
from spark_vision.executor.channel import Channel
from spark_vision.executor.model_host import digest_of, stamp_of
from spark_vision.executor.model_methods import describe_error, serve
from spark_vision.executor.placement import PlacedModel
from spark_vision.executor.served_client import ServedClient, Tensors
from spark_vision.executor.server_lock import ServerLock
from spark_vision.executor.server_start import ServerOrder
from spark_vision.models.checkpoint_files import Checkpoint, open_folder

logger = logging.getLogger("spark_vision.model_server")

# How long the taking of calls sleeps before it looks again at the time and at the model's threads.
LONGEST_SLEEP_SECONDS = 1.0
# Without a descriptor left nobody can be accepted until a client leaves.
ACCEPT_AGAIN_SECONDS = 0.2


def load(order: ServerOrder) -> PlacedModel:
    """Load what a server is started for.

    Raises:
        SparkVisionError: It cannot be loaded.
    """
    keep_freed_memory()
    torch.set_num_threads(order.thread_count)
    checkpoint = open_folder(Path(order.folder))
    device, executor = torch.device(order.device), str(order.executor)
    _require_stamp(checkpoint, order)
    placed = PlacedModel(checkpoint, order.dtype, device, executor, order.flash_attention)
    _require_stamp(checkpoint, order)
    return placed


def _require_stamp(checkpoint: Checkpoint, order: ServerOrder) -> None:
    """The rows before and after the restart of a server are of one model."""
    if digest_of(stamp_of(checkpoint)) != order.stamp:
        raise UnsupportedCheckpointError(
            f"the files in {checkpoint.folder} have changed since the query began: run it again, "
            "and put another checkpoint into another folder"
        )


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
                if isinstance(key.fileobj, ServedClient):
                    serving.receive(key.fileobj, selector)
                else:
                    serving.accept(listener, selector)
            if serving.has_ended:
                return "a model's thread has ended", 1
            if serving.longest_call_seconds() > order.batch_seconds:
                return f"a call took longer than {order.batch_seconds:g} s", 1
            if order.idle_seconds and serving.idle_seconds() >= order.idle_seconds:
                return f"no call for {order.idle_seconds:g} s", 0


class _Serving:
    def __init__(self, placed: PlacedModel, lock: ServerLock) -> None:
        self._placed = placed
        self._lock = lock
        self._calls: queue.SimpleQueue[tuple[ServedClient, Mapping[str, Any], Tensors]] = (
            queue.SimpleQueue()
        )
        # When the computing of each client's call began; None while the call waits.
        self._under_way: dict[ServedClient, float | None] = {}
        self._last_answer = time.monotonic()
        self._is_device_broken = False
        self.has_ended = False

    def idle_seconds(self) -> float:
        """Return for how long nobody has called."""
        return 0.0 if self._under_way else time.monotonic() - self._last_answer

    def longest_call_seconds(self) -> float:
        """Return how long the oldest call that is computed has taken so far.

        The beat of the lock does not tell: other threads beat while one hangs.
        """
        now = time.monotonic()
        starts = list(self._under_way.values())
        return max((now - start for start in starts if start is not None), default=0.0)

    def accept(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            logger.warning("nobody can be accepted: %s", error)
            time.sleep(ACCEPT_AGAIN_SECONDS)
            return
        try:
            channel = Channel(connection)
            channel.send({"hello": 1})
        except OSError as error:
            logger.warning("a client was not accepted: %s", error)
            connection.close()
        else:
            selector.register(ServedClient(channel), selectors.EVENT_READ)

    def receive(self, client: ServedClient, selector: selectors.BaseSelector) -> None:
        call = client.receive()
        if call is None:
            selector.unregister(client)
            client.leave()
            return
        self._under_way[client] = None
        self._calls.put((client, *call))

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
        client, header, tensors = self._calls.get()
        answer: Mapping[str, Any] = {}
        result: Tensors = {}
        # What a cancelled job had waiting would hold up the next query.
        if not client.has_left:
            self._under_way[client] = time.monotonic()
            self._lock.beat()
            answer, result = self._answer(header, tensors)
            self._lock.beat()
            self._last_answer = time.monotonic()
        # Before the answer: the client may call again as soon as it has it.
        del self._under_way[client]
        client.answer(answer, result)

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
