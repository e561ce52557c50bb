"""Where connections are made: every hop of every fetch resolves, dials and reads here.

httpx limits each read, not their sum, so a server that sends a byte now and then would hold a
thread for ever. Here the thread's own transfer limits each step to the seconds that it has left.
Whoever restricts the addresses that may be dialled does it in `Dialer.connect_tcp`, between the
resolution of a name and the connection to exactly the address that it gave.
"""

import queue
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore

from spark_vision.images.transfer import Transfer

_current = threading.local()


@contextmanager
def bounded_by(transfer: Transfer) -> Iterator[None]:
    """Let a transfer's deadline limit all network steps that this thread takes within."""
    _current.transfer = transfer
    try:
        yield
    finally:
        del _current.transfer


def _seconds_left() -> float:
    transfer: Transfer = _current.transfer
    return transfer.remaining_seconds()


class Dialer(httpcore.NetworkBackend):
    """Connects within the time that is left to the thread's transfer."""

    def __init__(self) -> None:
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve a name and connect to the first of its addresses that answers."""
        addresses = _resolve(host, port)
        for tried, address in enumerate(addresses, start=1):
            is_last = tried == len(addresses)
            # One silent address must not use up the time of the others.
            seconds = _seconds_left() / (1 if is_last else 2)
            try:
                stream = self._sockets.connect_tcp(
                    address, port, seconds, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if is_last:
                    raise
            else:
                return _DeadlineStream(stream)
        raise httpcore.ConnectError("the name has no address")


class _DeadlineStream(httpcore.NetworkStream):
    """A connection that may be used by one transfer after another, each with its own deadline."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _seconds_left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _seconds_left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _DeadlineStream(
            self._stream.start_tls(ssl_context, server_hostname, _seconds_left())
        )

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _resolve(host: str, port: int) -> list[str]:
    """Look a name up, in a thread of its own, as the system's resolver takes no deadline."""
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=_seconds_left())
    except queue.Empty:
        raise httpcore.ConnectTimeout("the name was not resolved in time") from None
    if isinstance(answer, Exception):
        raise httpcore.ConnectError("the name cannot be resolved") from answer
    return answer
