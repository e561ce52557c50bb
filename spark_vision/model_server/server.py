"""The model server: one thread receives calls and checks deadlines, others load and compute.

The receiving thread never computes, so its keep-alives show that the process works. Torch is not
imported before the load, so that the server can answer at once.
"""

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from spark_vision.errors import ModelServerError, SparkVisionError
from spark_vision.model_server.call_queue import Call, CallQueue
from spark_vision.model_server.channel import Channel, Failure, Message, describe_error
from spark_vision.model_server.start import ServerConfig

if TYPE_CHECKING:
    from spark_vision.model_server.model_calls import ModelCalls

logger = logging.getLogger("spark_vision.model_server")

BEAT_SECONDS = 1.0
# Without a free file descriptor no client can be accepted until another disconnects.
ACCEPT_AGAIN_SECONDS = 0.2


class Ending(NamedTuple):
    """Why a server ends, its exit code, and the kind and message of a failed load."""

    reason: str
    code: int = 0
    failure: Failure | None = None


class ClientConnection(Channel):
    """The connection of one client: one thread receives from it, others compute and answer.

    The socket is not closed explicitly, because its descriptor might be reused by another file
    while a thread sends on it. It is closed when the last thread drops its reference to the client.

    Attributes:
        is_waiting: Whether the client waits for its hello or for the answer to its call.
        computed_since: When the computation of its call began, or of its last token in a loop; None
            while the call is queued.
        has_left: Whether the client has disconnected.
    """

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        self.is_waiting = True
        self.computed_since: float | None = None
        self.has_left = False

    def receive(self) -> Message | None:
        """Receive a call; None if the client has disconnected or sent an invalid message."""
        try:
            call = super().receive()
            if call is not None and self.is_waiting:
                raise ValueError("a call came before the answer to the last")
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            logger.warning("a client was disconnected: %s", message)
            # A client with a call in flight would take this error for the answer to that call.
            if not self.is_waiting:
                self.send({"error": describe_error(RuntimeError(message))})
            call = None
        if call is None:
            self.has_left = True
            self.disconnect()
        else:
            self.is_waiting = True
        return call

    def send(self, header: Mapping[str, Any], tensors: Mapping[str, Any] | None = None) -> None:
        """Send a message, or disconnect a client that cannot receive it."""
        try:
            super().send(header, tensors)
        except OSError as error:
            logger.info("cannot send a message to a client: %s", error)
            # The receiving thread then sees the end of the connection.
            self.disconnect()

    def keep_alive(self) -> None:
        """Send a keep-alive to a client that waits."""
        if self.is_waiting:
            self.send({"alive": 1})

    def begin(self, *, reports: bool = False) -> None:
        """Note that the computation of its call begins, or advances; report it if asked to."""
        self.computed_since = time.monotonic()
        if reports:
            self.send({"begun": 1})

    def answer(self, header: Mapping[str, Any], tensors: Mapping[str, Any] | None = None) -> None:
        """Send the message that the client waits for."""
        self.computed_since = None
        # Before sending: the client may call again as soon as it has the answer.
        self.is_waiting = False
        self.send(header, tensors)


class ModelServer:
    """Loads a model and serves it until there is a reason to end.

    Args:
        config: The settings of the server.
        listener: The socket that clients connect to.
        load: Loads the model.
        log: The path of the log, for the error of a failed load.
    """

    def __init__(
        self,
        config: ServerConfig,
        listener: socket.socket,
        load: "Callable[[ServerConfig], ModelCalls]",
        log: str = "",
    ) -> None:
        self._config = config
        self._listener = listener
        self._load = load
        self._log = log
        self._ending: Ending | None = None
        self._selector = selectors.DefaultSelector()
        # Wakes the receiving thread when the load is finished.
        self._load_end = os.eventfd(0)
        self._loaded: ModelCalls | Exception | None = None
        self._load_deadline = time.monotonic() + config.load_seconds
        self._is_serving = False
        self._last_answer = 0.0
        # Clients that are connected, or whose last call is still being computed.
        self._clients: list[ClientConnection] = []
        self._calls: CallQueue

    def run(self) -> Ending:
        """Serve until there is a reason to end, and return it."""
        try:
            executor = self._config.executor.open_descriptor()
        except ProcessLookupError:
            return Ending("the executor has ended")
        self._watch(executor, lambda: self._end("the executor has ended"))
        self._watch(self._load_end, self._begin_to_serve)
        self._watch(self._listener, self._accept)
        _start_thread(self._load_model)
        # Often enough for a short deadline.
        beat_seconds = min(BEAT_SECONDS, self._config.batch_seconds / 4)
        next_beat = time.monotonic()
        while self._ending is None:
            for key, _ in self._selector.select(max(0.0, next_beat - time.monotonic())):
                key.data()
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + beat_seconds
                self._keep_alive()
                self._check_deadlines()
        return self._ending

    def _keep_alive(self) -> None:
        self._clients = [each for each in self._clients if each.is_waiting or not each.has_left]
        for client in self._clients:
            client.keep_alive()

    def _watch(self, source: Any, act: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, act)

    def _end(self, reason: str, code: int = 0, failure: Failure | None = None) -> None:
        self._ending = self._ending or Ending(reason, code, failure)

    def _check_deadlines(self) -> None:
        config, now = self._config, time.monotonic()
        if not self._is_serving:
            if now >= self._load_deadline:
                self._fail(TimeoutError(f"not loaded within {config.load_seconds:g} s"))
            return
        starts = [client.computed_since for client in self._clients]
        # Other calls may still be answered while one hangs.
        if any(start is not None and now - start > config.batch_seconds for start in starts):
            self._end(f"a call took longer than {config.batch_seconds:g} s", 1)
        elif any(client.is_waiting for client in self._clients) or not config.idle_seconds:
            return
        elif now - self._last_answer >= config.idle_seconds:
            self._end(f"no call for {config.idle_seconds:g} s")

    def _load_model(self) -> None:
        try:
            self._loaded = self._load(self._config)
        except Exception as error:
            logger.exception("loading failed")
            self._loaded = error
        finally:
            os.eventfd_write(self._load_end, 1)

    def _begin_to_serve(self) -> None:
        os.eventfd_read(self._load_end)
        loaded = self._loaded
        if loaded is None or isinstance(loaded, Exception):
            self._fail(loaded or RuntimeError("loading ended early"))
            return
        self._last_answer = time.monotonic()
        self._calls = CallQueue(loaded.row_limit)
        self._is_serving = True
        for _ in range(self._config.call_count):
            _start_thread(self._compute, loaded)
        for client in self._clients:
            self._greet(client)

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, SparkVisionError):
            error = ModelServerError(
                f"cannot load {self._config.folder} as {self._config.dtype} on "
                f"{self._config.device}: {type(error).__name__}: {error}; log: {self._log}"
            )
        failure = describe_error(error)
        for client in self._clients:
            client.answer({"error": failure})
        self._end("loading failed", 1, failure)

    def _accept(self) -> None:
        try:
            client = ClientConnection(self._listener.accept()[0])
        except OSError as error:
            logger.warning("a client was not accepted: %s", error)
            if not isinstance(error, PermissionError):
                time.sleep(ACCEPT_AGAIN_SECONDS)
        else:
            self._clients.append(client)
            if self._is_serving:
                self._greet(client)

    def _greet(self, client: ClientConnection) -> None:
        client.answer({"hello": 1})
        self._watch(client, lambda: self._receive(client))

    def _receive(self, client: ClientConnection) -> None:
        message = client.receive()
        if message is None:
            self._selector.unregister(client)
        else:
            self._calls.put(Call(client, *message))

    def _compute(self, model: "ModelCalls") -> None:
        """Answer calls in order of arrival, until the device is broken."""
        try:
            model.prepare_thread()
            while not model.is_device_broken:
                self._answer_next(model)
        except Exception:
            logger.exception("a compute thread failed")
        # Waiting clients see the end of this process, and call another server.
        self._end("a compute thread has ended", 1)

    def _answer_next(self, model: "ModelCalls") -> None:
        calls = self._calls.take()
        for call in calls:
            call.client.begin(reports=call.is_alone)
        for call, answer in model.answer(calls, self._calls.take_more):
            self._last_answer = time.monotonic()
            call.client.answer(*answer)
        self._calls.finish(calls[0].kind)


def _start_thread(target: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=target, args=arguments, name=target.__name__, daemon=True).start()
