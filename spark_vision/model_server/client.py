"""The model of an executor's model server, as a worker calls it; it outlives the server's death.

A server that is seen to end in any way is found or started again, and gets the same call.
"""

import logging
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import torch

from spark_vision import errors
from spark_vision.errors import ModelServerError, SparkVisionError
from spark_vision.executor.placement import Placement
from spark_vision.model_server.channel import Channel, Message
from spark_vision.model_server.methods import RemoteModel, Tensors, make_error
from spark_vision.model_server.start import (
    NAME_TAKEN,
    ServerOrder,
    address_of,
    log_of,
    start_server,
)

logger = logging.getLogger(__name__)

# A batch that ends the server each time is at fault itself.
MAX_SENDS = 3
# A server that was killed in its load (by the kernel, short of memory) may have had bad luck.
MAX_STARTS = 3
LOOK_AGAIN_SECONDS = 0.02
# Beyond the load's own deadline, which a stopped process cannot keep.
GRACE_SECONDS = 5.0


class SharingUnavailableError(Exception):
    """This place allows no model server; the worker can still hold the model itself."""


@cache
def why_not_shared() -> str | None:
    """Return what this process lacks for a model server; None where nothing is missing."""
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


class ModelProxy(RemoteModel):
    """A model in a model server, kept by a worker from task to task.

    Args:
        order: What the server is started with where none runs.

    Raises:
        SharingUnavailableError: A server cannot be started here.
        SparkVisionError: The load failed, here or a moment ago.
    """

    def __init__(self, order: ServerOrder) -> None:
        super().__init__(self._compute)
        self._order = order
        self._channel: Channel | None = connect(order)

    def placement(self) -> Placement:
        """Ask the server what it reports of itself."""
        answer, _ = self._exchange({"method": "placement"}, {})
        return Placement(**answer["placement"])

    def _compute(
        self, method: str, arguments: Mapping[str, Any], tensors: Tensors
    ) -> dict[str, torch.Tensor]:
        _, result = self._exchange({"method": method, "arguments": arguments}, tensors)
        # The server writes its next result over this one.
        return {name: tensor.clone() for name, tensor in result.items()}

    def _exchange(self, header: Mapping[str, Any], tensors: Tensors) -> Message:
        for _ in range(MAX_SENDS):
            channel = self._channel or self._reconnect()
            self._channel = None  # until its answer has come: this call may be broken off
            try:
                channel.send(header, tensors)
                answer = _receive(channel, self._order.batch_seconds)
            except OSError as error:
                logger.info("the model server is gone: %s", error)
                answer = None
            if answer is not None:
                self._channel = channel
                if "error" in answer[0]:
                    raise make_error(answer[0]["error"])
                return answer
            channel.close()
        raise ModelServerError(
            f"the model server for {self._order.folder} on {self._order.device} ended "
            f"{MAX_SENDS} times in the same batch; its log: {log_of(self._order.name)}"
        )

    def _reconnect(self) -> Channel:
        try:
            return connect(self._order)
        except (SparkVisionError, SharingUnavailableError) as error:
            # Whatever its kind: rows that were on their way are not at fault.
            raise ModelServerError(f"the model server did not come back: {error}") from error


def connect(order: ServerOrder) -> Channel:
    """Connect to the server of an order, starting it first where there is none.

    Raises:
        SharingUnavailableError: A server cannot be started here, or another user has its name.
        SparkVisionError: The load failed, here or a moment ago.
    """
    # One more, for a server that is seen while it ends.
    for _ in range(MAX_STARTS + 1):
        channel = _find(order)
        seconds = order.load_seconds + GRACE_SECONDS
        try:
            greeting = _receive(channel, seconds, time.monotonic() + seconds)
        except TimeoutError:
            channel.close()
            raise ModelServerError(
                f"the model server for {order.folder} did not answer within "
                f"{order.load_seconds:g} s; its log: {log_of(order.name)}"
            ) from None
        except ConnectionError as error:
            logger.info("the model server ended before its hello: %s", error)
            greeting = None
        if greeting is not None and "error" not in greeting[0]:
            return channel
        channel.close()
        if greeting is not None:
            failure = greeting[0]["error"]
            raise getattr(errors, failure["kind"])(failure["message"])
    raise _ended_early(order)


def _find(order: ServerOrder) -> Channel:
    """Connect to a server that may be loading yet, starting it where nobody listens."""
    deadline = time.monotonic() + order.load_seconds + GRACE_SECONDS
    starts: list[subprocess.Popen[bytes]] = []
    while time.monotonic() < deadline:
        try:
            channel = _dial(order.name)
        except BlockingIOError:  # too many wait for it already
            pass
        except ConnectionRefusedError:
            if not starts or starts[-1].poll() is not None:
                _start(order, starts)
        except OSError as error:
            raise SharingUnavailableError(f"its socket cannot be used: {error}") from error
        else:
            if starts and channel.peer_pid == starts[-1].pid:
                _announce(order, channel.peer_pid)
            return channel
        time.sleep(LOOK_AGAIN_SECONDS)
    for process in starts:
        process.kill()
    raise ModelServerError(
        f"no model server for {order.folder} listens; its log: {log_of(order.name)}"
    )


def _dial(name: str) -> Channel:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # A stopped server takes nobody from its full queue: a blocking call would wait for it.
        connection.setblocking(False)
        connection.connect(address_of(name))
        connection.setblocking(True)
    except OSError:
        connection.close()
        raise
    return Channel(connection)


def _start(order: ServerOrder, starts: list[subprocess.Popen[bytes]]) -> None:
    if len(starts) == MAX_STARTS:
        if starts[-1].returncode == NAME_TAKEN:
            raise SharingUnavailableError("its name is held by a process that does not listen")
        raise _ended_early(order)
    try:
        starts.append(start_server(order))
    except OSError as error:
        raise SharingUnavailableError(f"it cannot be started: {error}") from error


def _receive(channel: Channel, seconds: float, deadline: float = math.inf) -> Message | None:
    """Wait for a message that is no keep-alive; None at the end of the connection.

    Raises:
        TimeoutError: None has come by the deadline, or nothing at all for so many seconds: then
            the process at the other end hangs, and is killed.
        OSError: The other end is gone.
    """
    heard = time.monotonic()
    while channel.wait(min(heard + seconds, deadline) - time.monotonic()):
        message = channel.receive()
        if message is None or "alive" not in message[0]:
            return message
        heard = time.monotonic()
    if time.monotonic() - heard >= seconds:
        logger.warning("the model server is silent for %g s and is killed", seconds)
        _kill(channel)
    raise TimeoutError("no answer")


def _kill(channel: Channel) -> None:
    # It may end at any moment.
    with suppress(OSError):
        process = os.pidfd_open(channel.peer_pid)
        # While the connection is open, the id is still that of the process that listens.
        if not channel.wait(0):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)


def _announce(order: ServerOrder, pid: int) -> None:
    # The server runs, and whoever reads this worker's output may have gone.
    with suppress(OSError, ValueError):
        print(
            f"spark_vision: model server {pid} for {order.folder} ({order.dtype}) on "
            f"{order.device}; its log: {log_of(order.name)}",
            file=sys.stderr,
            flush=True,
        )


def _ended_early(order: ServerOrder) -> ModelServerError:
    return ModelServerError(
        f"the model server for {order.folder} on {order.device} ended {MAX_STARTS} times while it "
        f"loaded; its log: {log_of(order.name)}"
    )
