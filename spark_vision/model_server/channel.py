"""One end of a connection between a worker and a model server: JSON headers, tensors beside them.

A message is one packet of a Unix socket (SEQPACKET keeps their borders) and holds a JSON object;
`tensors` in it is the layout of the message's tensors in the sender's shared memory, whose
descriptor comes with the first message and with each that needs a larger piece. Nothing is ever
unpickled. Torch is imported with the first tensor: a server answers before it has loaded torch.
"""

import json
import os
import select
import socket
import struct
import weakref
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from spark_vision.model_server.shared_tensors import TensorReader, TensorWriter

# The kernel refuses a packet larger than the send buffer, 208 KiB where nobody has changed it.
# Prompts and tokens travel as tensors, so that no header comes near.
MAX_HEADER_BYTES = 64 * 2**10
# In JSON a character takes up to 12 bytes.
MAX_ERROR_CHARACTERS = 4000
_CREDENTIALS = struct.Struct("3i")

Message = tuple[dict[str, Any], "dict[str, torch.Tensor]"]


class Channel:
    """Sends and receives messages over a connected socket of this user's.

    Attributes:
        peer_pid: The process at the other end; for a client, the one that listens.

    Raises:
        PermissionError: The process at the other end is another user's, or has no id here, as one
            of another container that shares this one's network.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        # A worker that has too many drops one, which may be in use for a last batch.
        weakref.finalize(self, connection.close)
        credentials = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        self.peer_pid, uid, _ = _CREDENTIALS.unpack(credentials)
        if uid != os.geteuid() or self.peer_pid == 0:
            connection.close()
            who = "a process of another container" if self.peer_pid == 0 else f"user {uid}"
            raise PermissionError(f"{who} at the other end of the socket, not user {os.geteuid()}")

    @cached_property
    def _writer(self) -> "TensorWriter":
        from spark_vision.model_server.shared_tensors import TensorWriter

        return TensorWriter()

    @cached_property
    def _reader(self) -> "TensorReader":
        from spark_vision.model_server.shared_tensors import TensorReader

        return TensorReader()

    def fileno(self) -> int:
        """Return the socket's descriptor, for a selector."""
        return self._connection.fileno()

    def send(
        self, header: Mapping[str, Any], tensors: "Mapping[str, torch.Tensor] | None" = None
    ) -> None:
        """Send a message, without waiting: an end that reads its messages always has room for one.

        Raises:
            OSError: The other end is gone, or does not read.
        """
        layout, descriptor = self._writer.write(tensors) if tensors else ({}, None)
        packet = json.dumps({**header, "tensors": layout}).encode()
        if len(packet) > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {len(packet)} bytes; allowed: {MAX_HEADER_BYTES}")
        if descriptor is None:
            self._connection.send(packet, socket.MSG_DONTWAIT)
            return
        try:
            socket.send_fds(self._connection, [packet], [descriptor], socket.MSG_DONTWAIT)
        finally:
            os.close(descriptor)

    def wait(self, seconds: float) -> bool:
        """Wait for a message, or for the end; False when neither came in time."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds * 1000)))

    def receive(self) -> Message | None:
        """Receive a message, waiting for it.

        Returns:
            Its header and its tensors, which hold until the other end sends again; None at the end.

        Raises:
            OSError: The other end is gone, or its descriptor is of no memory.
            ValueError: What came is no message.
        """
        packet, descriptors, flags, _ = socket.recv_fds(
            self._connection, MAX_HEADER_BYTES, 1, socket.MSG_CMSG_CLOEXEC
        )
        for descriptor in descriptors:
            self._reader.replace(descriptor)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError(f"a packet over {MAX_HEADER_BYTES} bytes, or with descriptors over 1")
        return self.parse(packet) if packet else None

    def parse(self, packet: bytes) -> Message:
        """Read a packet, whatever it holds.

        Raises:
            ValueError: It is no message.
        """
        try:
            header = json.loads(packet)
        except RecursionError:
            raise ValueError("a header that is nested too deep") from None
        if not isinstance(header, dict):
            raise ValueError("a packet without a header")
        return header, self._reader.read(header.pop("tensors", None))

    def disconnect(self) -> None:
        """End the connection, which whoever reads from it sees, in this process too."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; memory goes with the last tensor that lies in it."""
        self._connection.close()
