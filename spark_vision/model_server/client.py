"""A worker's proxy for the model in the executor's model server, which it starts if necessary."""

import logging
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from typing import Any

import torch

from spark_vision.errors import FatalBatchError, ModelServerError, SparkVisionError
from spark_vision.executor.placement import Placement
from spark_vision.executor.spending import spend
from spark_vision.model_server.channel import Channel, Message, make_error
from spark_vision.model_server.start import (
    NAME_TAKEN,
    ServerConfig,
    address_of,
    log_of,
    start_server,
)
from spark_vision.models.protocols import (
    CaptionBatch,
    GeneratedTokens,
    GenerationSettings,
    LogitTerms,
    PixelScaling,
)

logger = logging.getLogger(__name__)

Tensors = Mapping[str, torch.Tensor]

# A batch that crashes the server each time is the cause of the crash.
MAX_SENDS = 3
# Batches are halved to find the row at fault. Without an answer in between, the rows are not.
MAX_FATAL_COUNT = 12
# Of one call, also where servers end before they compute it.
MAX_RECONNECTIONS = 100
# A server that was killed while loading (such as by the kernel, out of memory) is started again.
MAX_STARTS = 3
ENDED_EARLY = f"ended {MAX_STARTS} times while loading"
RETRY_SECONDS = 0.02
# In addition to the server's own deadline of a load, which a stopped process cannot keep.
GRACE_SECONDS = 5.0


class SharingUnavailableError(Exception):
    """A model server cannot run here; the worker can load the model itself."""


@cache
def why_not_shared() -> str | None:
    """Return why this process cannot use a model server; None if it can."""
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


class ModelProxy:
    """A model in a model server, with the methods of `models.protocols`; kept between tasks.

    A call is a method name, JSON arguments and named tensors; a result is named tensors, and what
    the model spent on it. Of joined calls, the first one's answer says that for all. Several
    threads may call at a time.

    Args:
        config: The server to connect to, or to start.

    Raises:
        SharingUnavailableError: A server cannot be started here.
        SparkVisionError: The load failed now or recently.
    """

    def __init__(self, config: ServerConfig) -> None:
        reason = why_not_shared()
        if reason is not None:
            raise SharingUnavailableError(reason)
        self._config = config
        self._connecting = threading.Lock()
        # A call takes a connection, and returns it with the answer: interrupted calls do not.
        self._idle = [connect(config)]
        self._fatal_count = 0

    def placement(self) -> Placement:
        """Request the placement of the model."""
        answer, _ = self._exchange({"method": "placement"}, {})
        return Placement(**answer["placement"])

    def embed_images(
        self, pixels: torch.Tensor, scaling: PixelScaling, pooling: str
    ) -> torch.Tensor:
        """Compute as `ImageEmbedder.embed_images`."""
        arguments = {"scaling": asdict(scaling), "pooling": pooling}
        return self._compute("embed_images", arguments, {"pixels": pixels})["vectors"]

    def embed_texts(self, tokens: Tensors) -> torch.Tensor:
        """Compute as `TextEmbedder.embed_texts`."""
        return self._compute("embed_texts", {}, tokens)["vectors"]

    def logit_terms(self) -> LogitTerms:
        """Return as `TextClassifier.logit_terms`."""
        return LogitTerms(**self._compute("logit_terms", {}, {}))

    def generate(
        self, batch: CaptionBatch, scaling: PixelScaling, settings: GenerationSettings
    ) -> GeneratedTokens:
        """Compute as `ImageCaptioner.generate`."""
        arguments = {"scaling": asdict(scaling), "settings": asdict(settings)}
        return GeneratedTokens(**self._compute("generate", arguments, batch._asdict()))

    def _compute(
        self, method: str, arguments: Mapping[str, Any], tensors: Tensors
    ) -> dict[str, torch.Tensor]:
        started = time.perf_counter_ns()
        header, result = self._exchange({"method": method, "arguments": arguments}, tensors)
        spent = header["spent"]
        # A loop may have computed for others before this call entered it.
        waiting_ns = max(0, time.perf_counter_ns() - started - spent["model_ns"])
        spend(**spent, waiting_ns=waiting_ns)
        return result

    def _exchange(self, header: Mapping[str, Any], tensors: Tensors) -> Message:
        """Send a call and receive its answer, from further servers if necessary.

        The first time, a server may end because of a call that it computes at the same time. From
        the second time on it computes this call alone, and reports when it begins.

        Raises:
            FatalBatchError: Each server ended while it computed this call.
            ModelServerError: No server answers.
        """
        end_count = 0
        # After other such calls, of which this one may be a part, once is enough.
        is_suspect = self._fatal_count > 0
        allowed_count = 1 if is_suspect else MAX_SENDS
        for send_count in range(MAX_RECONNECTIONS):
            is_alone = send_count > 0 or is_suspect
            channel = self._take_channel()
            is_begun = not is_alone
            try:
                channel.send({**header, "alone": is_alone}, tensors)
                answer = _receive(channel, self._config.batch_seconds)
                if answer is not None and "begun" in answer[0]:
                    is_begun = True
                    answer = _receive(channel, self._config.batch_seconds)
            except OSError as error:
                logger.info("lost the connection to the model server: %s", error)
                answer = None
            if answer is not None:
                answered, result = answer
                # The server overwrites a result with that of the next call on its connection.
                copied = {name: tensor.clone() for name, tensor in result.items()}
                self._idle.append(channel)
                self._fatal_count = 0
                if "error" in answered:
                    raise make_error(answered["error"])
                return answered, copied
            channel.close()
            spend(repeated_calls=1)
            # They lead to the same process.
            self._idle.clear()
            end_count += is_begun
            if end_count == allowed_count:
                break
        else:
            raise _server_error(self._config, f"ended {MAX_RECONNECTIONS} times in a row")
        self._fatal_count += 1
        kind = FatalBatchError if self._fatal_count <= MAX_FATAL_COUNT else ModelServerError
        raise _server_error(self._config, f"ended {end_count} times in the same batch", kind)

    def _take_channel(self) -> Channel:
        with suppress(IndexError):
            return self._idle.pop()
        try:
            # One thread starts a server, the others connect to it.
            with self._connecting:
                return connect(self._config)
        except (SparkVisionError, SharingUnavailableError) as error:
            # Whatever the kind of the error: the rows of this call did not cause it.
            raise ModelServerError(f"the model server did not come back: {error}") from error


def connect(config: ServerConfig) -> Channel:
    """Connect to a server, starting it if necessary, and wait until its model is loaded.

    Raises:
        SharingUnavailableError: A server cannot be started here, or another user holds its name.
        SparkVisionError: The load failed now or recently.
    """
    # One more attempt, for a server that is already ending.
    for _ in range(MAX_STARTS + 1):
        channel = _find(config)
        seconds = config.load_seconds + GRACE_SECONDS
        try:
            greeting = _receive(channel, seconds, time.monotonic() + seconds)
        except TimeoutError:
            channel.close()
            waited = f"did not answer within {config.load_seconds:g} s"
            raise _server_error(config, waited) from None
        except ConnectionError as error:
            logger.info("the model server exited before it was ready: %s", error)
            greeting = None
        if greeting is not None and "error" not in greeting[0]:
            return channel
        channel.close()
        if greeting is not None:
            raise make_error(greeting[0]["error"])
    raise _server_error(config, ENDED_EARLY)


def _find(config: ServerConfig) -> Channel:
    """Connect to a server that may still be loading, starting it if none listens."""
    deadline = time.monotonic() + config.load_seconds + GRACE_SECONDS
    starts: list[subprocess.Popen[bytes]] = []
    while time.monotonic() < deadline:
        try:
            channel = _dial(config.name)
        except BlockingIOError:  # its queue of connections is full
            pass
        except ConnectionRefusedError:
            if not starts or starts[-1].poll() is not None:
                _start(config, starts)
        except OSError as error:
            raise SharingUnavailableError(f"its socket cannot be used: {error}") from error
        else:
            if starts and channel.peer_pid == starts[-1].pid:
                _announce(config, channel.peer_pid)
                spend(model_loads=1)
            return channel
        time.sleep(RETRY_SECONDS)
    for process in starts:
        process.kill()
    raise _server_error(config, "does not listen")


def _dial(name: str) -> Channel:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # A blocking call would wait forever for a stopped server with a full queue.
        connection.setblocking(False)
        connection.connect(address_of(name))
        connection.setblocking(True)
    except OSError:
        connection.close()
        raise
    return Channel(connection)


def _start(config: ServerConfig, starts: list[subprocess.Popen[bytes]]) -> None:
    if len(starts) == MAX_STARTS:
        if starts[-1].returncode == NAME_TAKEN:
            raise SharingUnavailableError("its name is held by a process that does not listen")
        raise _server_error(config, ENDED_EARLY)
    try:
        starts.append(start_server(config))
    except OSError as error:
        raise SharingUnavailableError(f"it cannot be started: {error}") from error


def _receive(channel: Channel, seconds: float, deadline: float = math.inf) -> Message | None:
    """Wait for a message other than a keep-alive; None at the end of the connection.

    Raises:
        TimeoutError: No message came before the deadline, or not even a keep-alive for `seconds`;
            in the second case the process at the other end hangs and is killed.
        OSError: The other end is gone.
    """
    last_received = time.monotonic()
    while channel.wait(min(last_received + seconds, deadline) - time.monotonic()):
        message = channel.receive()
        if message is None or "alive" not in message[0]:
            return message
        last_received = time.monotonic()
    if time.monotonic() - last_received >= seconds:
        logger.warning("the model server sent nothing for %g s and is killed", seconds)
        _kill(channel)
    raise TimeoutError("no answer")


def _kill(channel: Channel) -> None:
    # The process may end at any time.
    with suppress(OSError):
        process = os.pidfd_open(channel.peer_pid)
        # While the connection is open, the pid still belongs to the process that listens.
        if not channel.wait(0):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)


def _announce(config: ServerConfig, pid: int) -> None:
    # The server runs even if this worker's stderr is closed.
    with suppress(OSError, ValueError):
        print(
            f"spark_vision: model server {pid} for {config.folder} ({config.dtype}) on "
            f"{config.device}; its log: {log_of(config.name)}",
            file=sys.stderr,
            flush=True,
        )


def _server_error(
    config: ServerConfig, what: str, kind: type[ModelServerError] = ModelServerError
) -> ModelServerError:
    return kind(
        f"the model server for {config.folder} on {config.device} {what}; "
        f"its log: {log_of(config.name)}"
    )
