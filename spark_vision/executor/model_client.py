"""How a worker reaches the model server of its executor: finds it, starts it, outlives its death.

There is one loop for all of it. Whoever finds nobody listening tries the lock: who gets it starts
the server, the others look again. A server that is seen to end in any way leads back to the loop.
"""

import logging
import os
import resource
import signal
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from spark_vision import errors
from spark_vision.errors import ModelServerError, SparkVisionError
from spark_vision.executor.channel import Channel
from spark_vision.executor.model_methods import RemoteModel, Tensors, make_error
from spark_vision.executor.placement import Placement
from spark_vision.executor.server_place import ServerLock, ServerPlace, read_pid, sweep
from spark_vision.executor.server_start import ServerOrder, start_server

logger = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 0.05
# Spark tries a task four times at once: a load that fails is not tried as often.
FAILURE_STANDS_SECONDS = 30.0
# A server that was killed in its load (by the kernel, short of memory) may have had bad luck.
MOST_STARTS = 3
# A batch that ends the server each time is at fault itself.
MOST_SENDS = 3
# An ending server removes its folder when it is empty, also under one who begins to use it.
MOST_FOLDER_TRIES = 10
# Beyond the load's own deadline, which a stopped process cannot keep.
GRACE_SECONDS = 5.0


class SharingUnavailableError(Exception):
    """This place allows no model server; the worker can still hold the model itself."""


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
        batch_seconds: A server without a pulse for so long is killed.

    Raises:
        SharingUnavailableError: A server cannot be started here.
        SparkVisionError: The load failed, here or a moment ago.
    """

    def __init__(self, order: ServerOrder, place: ServerPlace, batch_seconds: float) -> None:
        super().__init__(self._compute)
        self._order = order
        self._place = place
        self._batch_seconds = batch_seconds
        self._channel: Channel | None = self._connect()

    def placement(self) -> Placement:
        """Ask the server what it says of itself."""
        answer, _ = self._exchange({"method": "placement"}, {})
        return Placement(**answer["placement"])

    def _compute(
        self, method: str, arguments: Mapping[str, Any], tensors: Tensors
    ) -> dict[str, torch.Tensor]:
        answer, result = self._exchange({"method": method, "arguments": arguments}, tensors)
        if "error" in answer:
            raise make_error(answer["error"])
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
                return message
            channel.close()
        raise ModelServerError(
            f"the model server for {self._order.folder} on {self._order.device} ended "
            f"{MOST_SENDS} times in the same batch; its log: {self._place.log}"
        )

    def _wait(self, channel: Channel) -> None:
        seen = self._place.pulse()
        while not channel.wait(self._batch_seconds):
            now = self._place.pulse()
            if now == seen:
                logger.warning(
                    "the model server has done nothing for %g s and is killed", self._batch_seconds
                )
                _kill(self._place)
                raise ConnectionResetError("killed without an answer")
            seen = now

    def _reconnect(self) -> Channel:
        try:
            return self._connect()
        except (SparkVisionError, SharingUnavailableError) as error:
            # Whatever its kind: rows that were on their way are not at fault.
            raise ModelServerError(f"the model server did not come back: {error}") from error

    def _connect(self) -> Channel:
        deadline = time.monotonic() + self._order.load_seconds + GRACE_SECONDS
        while time.monotonic() < deadline:
            try:
                connection = self._place.connect()
                channel = Channel(connection) if connection else None
            except PermissionError as error:
                raise SharingUnavailableError(f"its socket is another user's: {error}") from error
            if channel is None:
                if not self._start():
                    time.sleep(LOOK_AGAIN_SECONDS)
                continue
            try:
                # Answered when the model is loaded; an end of file says that its load failed.
                if channel.wait(deadline - time.monotonic()) and channel.receive() is not None:
                    return channel
            except ConnectionError as error:
                logger.info("the model server ended before its hello: %s", error)
            channel.close()
        _kill(self._place)
        raise ModelServerError(
            f"the model server for {self._order.folder} did not answer within "
            f"{self._order.load_seconds:g} s; its log: {self._place.log}"
        )

    def _start(self) -> bool:
        """Start the server, unless another has the lock: False then."""
        lock = self._take_lock()
        if lock is None:
            return False
        try:
            self._judge_last(lock)
            try:
                sweep(self._place)
                start_server(self._order, self._place, lock)
            except OSError as error:
                self._place.remove()
                raise SharingUnavailableError(f"it cannot be started: {error}") from error
        finally:
            lock.close()
        return True

    def _take_lock(self) -> ServerLock | None:
        trouble: OSError | None = None
        for _ in range(MOST_FOLDER_TRIES):
            try:
                self._place.prepare()
                return ServerLock.take(self._place)
            except FileNotFoundError as error:  # an ending server removed its empty folder
                trouble = error
            except OSError as error:
                trouble = error
                break
        raise SharingUnavailableError(f"its folder cannot be used: {trouble}") from trouble

    def _judge_last(self, lock: ServerLock) -> None:
        if lock.read().get("starts", 0) >= MOST_STARTS:
            lock.write_failure(
                ModelServerError.__name__,
                f"the model server ended {MOST_STARTS} times while it loaded "
                f"{self._order.folder} on {self._order.device}; its log: {self._place.log}",
            )
        failure = lock.recent_failure(FAILURE_STANDS_SECONDS)
        if failure is not None:
            raise getattr(errors, failure["kind"])(failure["message"])


def _kill(place: ServerPlace) -> None:
    """Kill the server that holds a place's lock."""
    pid = read_pid(place)
    lock = ServerLock.take(place) if place.lock.exists() else None
    if lock is not None:  # it has ended by itself
        lock.close()
    elif pid is not None:
        os.kill(pid, signal.SIGKILL)
