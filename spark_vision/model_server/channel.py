"""One end of a connection between a worker and a model server: JSON headers and shared tensors.

A message is one packet of a Unix socket (SEQPACKET keeps their boundaries) with a JSON object. Its
`tensors` is the layout of the tensors in the sender's shared memory. The memory's descriptor comes
with the first message and with each one that needs more memory. Nothing is unpickled.
"""

import json
import os
import select
import socket
import struct
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from spark_vision.model_server.shared_tensors import TensorReader, TensorWriter

if TYPE_CHECKING:
    import torch

# The kernel rejects packets larger than the send buffer, 208 KiB by default. Prompts and tokens are
# sent as tensors, so headers are much smaller.
MAX_HEADER_BYTES = 64 * 2**10
# A character takes up to 12 bytes in JSON.
MAX_ERROR_CHARACTERS = 4000
_CREDENTIALS = struct.Struct("3i")

Message = tuple[dict[str, Any], "dict[str, torch.Tensor]"]
Failure = dict[str, str]


def describe_failure(kind: str, message: str) -> Failure:
    """Return an error as JSON, of a size that fits into one message."""
    return {"kind": kind, "message": message[:MAX_ERROR_CHARACTERS]}


class Channel:
    """Sends and receives messages over a connected socket, within one user.

    Attributes:
        peer_pid: The process at the other end; for a client, the one that listens.

    Raises:
        PermissionError: The process at the other end belongs to another user, or to another
            container that shares this one's network and so has no pid here.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._writer, self._reader = TensorWriter(), TensorReader()
        # A worker with too many connections drops one that may still be in use for a last batch.
        weakref.finalize(self, connection.close)
        credentials = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        self.peer_pid, uid, _ = _CREDENTIALS.unpack(credentials)
        if uid != os.geteuid() or self.peer_pid == 0:
            connection.close()
            who = "a process of another container" if self.peer_pid == 0 else f"user {uid}"
            raise PermissionError(f"{who} at the other end of the socket, not user {os.geteuid()}")

    def fileno(self) -> int:
        """Return the socket's file descriptor, for a selector."""
        return self._connection.fileno()

    def send(
        self, header: Mapping[str, Any], tensors: "Mapping[str, torch.Tensor] | None" = None
    ) -> None:
        """Send a message without blocking; a peer that reads its messages always has room for one.

        Raises:
            OSError: The other end is gone, or does not read.
        """
        layout, descriptor = self._writer.write(tensors) if tensors else ({}, None)
        packet = json.dumps({**header, "tensors": layout}).encode()
        if len(packet) > MAX_HEADER_BYTES:
            raise ValueError(
                f"the header has {len(packet)} bytes; allowed: at most {MAX_HEADER_BYTES}"
            )
        if descriptor is None:
            self._connection.send(packet, socket.MSG_DONTWAIT)
            return
        try:
            socket.send_fds(self._connection, [packet], [descriptor], socket.MSG_DONTWAIT)
        finally:
            os.close(descriptor)

    def wait(self, seconds: float) -> bool:
        """Wait for a message or the end of the connection; return False on timeout."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds * 1000)))

    def receive(self) -> Message | None:
        """Wait for a message and receive it.

        Returns:
            Its header and its tensors, which are valid until the other end sends again; None at
            the end of the connection.

        Raises:
            OSError: The other end is gone, or its descriptor is not shared memory.
            ValueError: The message is invalid.
        """
        packet, descriptors, flags, _ = socket.recv_fds(
            self._connection, MAX_HEADER_BYTES, 1, socket.MSG_CMSG_CLOEXEC
        )
        for descriptor in descriptors:
            self._reader.replace(descriptor)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError(f"a packet over {MAX_HEADER_BYTES} bytes, or with several descriptors")
        return self.parse(packet) if packet else None

    def parse(self, packet: bytes) -> Message:
        """Parse a packet from an untrusted peer.

        Raises:
            ValueError: It is not a valid message.
        """
        try:
            header = json.loads(packet)
        except RecursionError:
            raise ValueError("a header that is nested too deeply") from None
        if not isinstance(header, dict):
            raise ValueError("a packet without a header")
        return header, self._reader.read(header.pop("tensors", None))

    def disconnect(self) -> None:
        """Shut the connection down; readers in both processes see its end."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; shared memory is freed with the last tensor that uses it."""
        self._connection.close()
