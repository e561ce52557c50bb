"""The network backend of httpcore: every request of a fetch resolves, connects and reads here.

httpx limits each read, not their sum, so a server that sends single bytes could hold a thread
forever. Here each step is limited by the remaining seconds of the thread's transfer. The address
rules are checked between resolving a name and connecting to exactly the resolved address. A pooled
connection serves only the host for which it was checked.
"""

import queue
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore

from spark_vision.images.addresses import AddressRules, address_in
from spark_vision.images.transfer import Transfer

# A resolver may hang forever, in a thread that cannot be ended.
MAX_RESOLVER_THREADS = 32
CONNECT_SHARE = 1 / 3
"""Fraction of the remaining time for one connection attempt, so that others have time too."""

_current = threading.local()
_resolver_threads = threading.BoundedSemaphore(MAX_RESOLVER_THREADS)


@contextmanager
def apply_deadline(transfer: Transfer) -> Iterator[None]:
    """Limit all network steps of this thread within the block by a transfer's deadline."""
    _current.transfer = transfer
    try:
        yield
    finally:
        del _current.transfer


def _seconds_left() -> float:
    transfer: Transfer = _current.transfer
    return transfer.remaining_seconds()


class RestrictedBackend(httpcore.NetworkBackend):
    """Connects to allowed addresses, within the remaining time of the thread's transfer."""

    def __init__(self, rules: AddressRules) -> None:
        self._rules = rules
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve a name and connect to the first allowed address that accepts.

        Raises:
            AddressRefusedError: No address is allowed.
        """
        self._rules.check_name(host)
        literal = address_in(host)
        answers = _resolve(host, port) if literal is None else [str(literal)]
        addresses = self._rules.choose(host, answers)
        for tried, address in enumerate(addresses, start=1):
            is_last = tried == len(addresses)
            seconds = _seconds_left() * CONNECT_SHARE
            try:
                stream = self._sockets.connect_tcp(
                    address, port, seconds, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if is_last:
                    raise
            else:
                return _DeadlineStream(stream)
        raise AssertionError("the rules return at least one address")


class _DeadlineStream(httpcore.NetworkStream):
    """A pooled connection, used by one transfer after another, each with its own deadline."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        transfer: Transfer = _current.transfer
        data = self._stream.read(max_bytes, transfer.remaining_seconds())
        transfer.count_received(len(data))
        return data

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


class NameNotResolvedError(httpcore.ConnectError):
    """A host name has no address, or the resolver failed."""


def _resolve(host: str, port: int) -> list[str]:
    """Resolve a host name in a separate thread: the system's resolver has no timeout."""
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, UnicodeError) as error:
            answers.put(error)
        finally:
            _resolver_threads.release()

    if not _resolver_threads.acquire(timeout=_seconds_left()):
        raise httpcore.ConnectTimeout("no thread is left to resolve the name")
    try:
        threading.Thread(target=ask, name="resolve", daemon=True).start()
    except RuntimeError:
        _resolver_threads.release()
        raise httpcore.ConnectError("no thread can be started to resolve the name") from None
    try:
        answer = answers.get(timeout=_seconds_left())
    except queue.Empty:
        raise httpcore.ConnectTimeout("the name was not resolved in time") from None
    if isinstance(answer, Exception) or not answer:
        raise NameNotResolvedError("the name cannot be resolved") from None
    return answer
