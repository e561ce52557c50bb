"""A model server at work: one thread takes calls and watches the time, others load and compute.

The receiving thread never computes, so that its keep-alives are the sign of a process that runs.
Nothing here imports torch before the load does: the server answers from its first moment.
"""

import logging
import os
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from spark_vision.errors import ModelServerError, SparkVisionError
from spark_vision.model_server.channel import MAX_ERROR_CHARACTERS, Channel, Message
from spark_vision.model_server.start import ServerOrder

if TYPE_CHECKING:
    from spark_vision.model_server.methods import ModelCalls

logger = logging.getLogger("spark_vision.model_server")

BEAT_SECONDS = 1.0
# Without a descriptor left nobody can be accepted until a client leaves.
ACCEPT_AGAIN_SECONDS = 0.2

Failure = dict[str, str]


class Ending(NamedTuple):
    """Why a server ends, its exit status, and the kind and message of a load that failed."""

    reason: str
    code: int = 0
    failure: Failure | None = None


class ClientConnection:
    """A client, from its connection to its end.

    One thread receives what clients send, others compute and answer. Nobody closes the socket: a
    descriptor that is closed under a thread that sends on it may by then be another file's. It
    closes itself when the last of them forgets the client.

    Args:
        channel: The connection to it.

    Attributes:
        is_waiting: For its hello, or for the answer to its call.
        computed_since: When the computing of its call began; None while it waits for its turn.
        has_left: It will take no answer.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.is_waiting = True
        self.computed_since: float | None = None
        self.has_left = False

    def fileno(self) -> int:
        """Return the socket's descriptor, for a selector."""
        return self._channel.fileno()

    def receive(self) -> Message | None:
        """Receive a call; None where the client has left, or what it sent is no call.

        Whatever a client sends is an error of that client alone, which is sent to it.
        """
        try:
            call = self._channel.receive()
            if call is not None and self.is_waiting:
                raise ValueError("a call came before the answer to the last")
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            logger.warning("a client was disconnected: %s", message)
            # The answer to a call that is under way is not this one.
            if not self.is_waiting:
                self._send(
                    {"error": {"kind": "RuntimeError", "message": message[:MAX_ERROR_CHARACTERS]}}
                )
            call = None
        if call is None:
            self.has_left = True
            self._channel.disconnect()
        else:
            self.is_waiting = True
        return call

    def keep_alive(self) -> None:
        """Show a client that waits that the server runs."""
        if self.is_waiting:
            self._send({"alive": 1})

    def answer(self, header: Mapping[str, Any], tensors: Mapping[str, Any] | None = None) -> None:
        """Send what the client waits for."""
        self.computed_since = None
        # First: the client may call again as soon as it has the answer.
        self.is_waiting = False
        self._send(header, tensors)

    def _send(self, header: Mapping[str, Any], tensors: Mapping[str, Any] | None = None) -> None:
        try:
            self._channel.send(header, tensors)
        except OSError as error:
            logger.info("a client does not take what it is sent: %s", error)
            # The receiving thread sees it as an end.
            self._channel.disconnect()


class ModelServer:
    """Loads a model and serves it, until there is a reason to end.

    Args:
        order: What is served.
        listener: Where clients connect.
        load: Loads the model.
        log: Where messages go; a failed load names it.
    """

    def __init__(
        self,
        order: ServerOrder,
        listener: socket.socket,
        load: "Callable[[ServerOrder], ModelCalls]",
        log: str = "",
    ) -> None:
        self._order = order
        self._listener = listener
        self._load = load
        self._log = log
        self._ending: Ending | None = None
        self._selector = selectors.DefaultSelector()
        # Wakes the receiving thread when the load has ended.
        self._load_end = os.eventfd(0)
        self._loaded: ModelCalls | Exception | None = None
        self._load_deadline = time.monotonic() + order.load_seconds
        self._is_serving = False
        self._last_answer = 0.0
        # Those that are connected, or whose last call is under way.
        self._clients: list[ClientConnection] = []
        self._calls: queue.SimpleQueue[tuple[ClientConnection, Message]] = queue.SimpleQueue()

    def run(self) -> Ending:
        """Serve until there is a reason to end, and return it."""
        try:
            executor = self._order.executor.open_descriptor()
        except ProcessLookupError:
            return Ending("the executor has ended")
        self._watch(executor, lambda: self._end("the executor has ended"))
        self._watch(self._load_end, self._begin_to_serve)
        self._watch(self._listener, self._accept)
        _start_thread(self._load_model)
        # Also in time for a short deadline.
        beat_seconds = min(BEAT_SECONDS, self._order.batch_seconds / 4)
        next_beat = time.monotonic()
        while self._ending is None:
            self._handle_events(max(0.0, next_beat - time.monotonic()))
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + beat_seconds
                self._keep_alive()
                self._check_deadlines()
        return self._ending

    def _handle_events(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            key.data()

    def _keep_alive(self) -> None:
        self._clients = [each for each in self._clients if each.is_waiting or not each.has_left]
        for client in self._clients:
            client.keep_alive()

    def _watch(self, source: Any, act: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, act)

    def _end(self, reason: str, code: int = 0, failure: Failure | None = None) -> None:
        self._ending = self._ending or Ending(reason, code, failure)

    def _check_deadlines(self) -> None:
        order, now = self._order, time.monotonic()
        if not self._is_serving:
            if now >= self._load_deadline:
                self._fail(TimeoutError(f"not loaded within {order.load_seconds:g} s"))
            return
        starts = [client.computed_since for client in self._clients]
        # Other calls go on while one hangs.
        if any(start is not None and now - start > order.batch_seconds for start in starts):
            self._end(f"a call took longer than {order.batch_seconds:g} s", 1)
        elif any(client.is_waiting for client in self._clients) or not order.idle_seconds:
            return
        elif now - self._last_answer >= order.idle_seconds:
            self._end(f"no call for {order.idle_seconds:g} s")

    def _load_model(self) -> None:
        try:
            self._loaded = self._load(self._order)
        except Exception as error:
            logger.exception("the load failed")
            self._loaded = error
        finally:
            os.eventfd_write(self._load_end, 1)

    def _begin_to_serve(self) -> None:
        os.eventfd_read(self._load_end)
        loaded = self._loaded
        if loaded is None or isinstance(loaded, Exception):
            self._fail(loaded or RuntimeError("the load ended early"))
            return
        self._last_answer = time.monotonic()
        self._is_serving = True
        for _ in range(self._order.call_count):
            _start_thread(self._compute, loaded)
        for client in self._clients:
            self._greet(client)

    def _fail(self, error: Exception) -> None:
        kind, message = type(error).__name__, str(error)
        if not isinstance(error, SparkVisionError):
            message = (
                f"cannot load {self._order.folder} as {self._order.dtype} on "
                f"{self._order.device}: {kind}: {message}; log: {self._log}"
            )
            kind = ModelServerError.__name__
        failure = {"kind": kind, "message": message[:MAX_ERROR_CHARACTERS]}
        for client in self._clients:
            client.answer({"error": failure})
        self._end("the load failed", 1, failure)

    def _accept(self) -> None:
        try:
            client = ClientConnection(Channel(self._listener.accept()[0]))
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
        call = client.receive()
        if call is None:
            self._selector.unregister(client)
        else:
            self._calls.put((client, call))

    def _compute(self, model: "ModelCalls") -> None:
        """Answer calls in the order in which they came, while the device works."""
        try:
            model.prepare_thread(self._order.thread_count)
            while not model.is_device_broken:
                self._answer_next(model)
        except Exception:
            logger.exception("a model's thread failed")
        # Whoever waits sees the end of this process, and asks another.
        self._end("a model's thread has ended", 1)

    def _answer_next(self, model: "ModelCalls") -> None:
        client, (header, tensors) = self._calls.get()
        answer: Message = ({}, {})
        # What a cancelled job had waiting would hold up the next query.
        if not client.has_left:
            client.computed_since = time.monotonic()
            answer = model.answer(header, tensors)
            self._last_answer = time.monotonic()
        client.answer(*answer)


def _start_thread(target: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=target, args=arguments, name=target.__name__, daemon=True).start()
