"""One end of a connection between a worker and a model server: JSON headers and shared tensors.

A message is one packet of a Unix socket (SEQPACKET keeps their boundaries) with a JSON object,
whose `tensors` is the layout of the tensors in the sender's shared memory. A sender reuses one
memfd for all its messages, so pages are cleared and mapped once, not once per batch. Its descriptor
comes with the first message and with each one that needs more memory. The memory is sealed against
shrinking, which would crash its reader. It has no name in a file system, so a killed process leaves
nothing behind. Nothing is unpickled.

Torch is imported with the first tensor, so that a server can answer before torch is loaded.
"""

import fcntl
import json
import math
import mmap
import os
import select
import socket
import struct
import weakref
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from spark_vision import errors

if TYPE_CHECKING:
    import torch

# The kernel rejects packets larger than the send buffer, 208 KiB by default. Prompts and tokens are
# sent as tensors, so headers are much smaller.
MAX_HEADER_BYTES = 64 * 2**10
# A character takes up to 12 bytes in JSON.
MAX_ERROR_CHARACTERS = 4000
ALIGNMENT = 64
MIN_BYTES = 2**20
# Of one message: batches are far smaller, but a sparse file can claim any size.
MAX_BYTES = 2**36
_MAX_TENSORS = 32
_MAX_DIMENSIONS = 8
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_DTYPES = ("uint8", "bool", "float16", "bfloat16", "int32", "float32", "int64")
_CREDENTIALS = struct.Struct("3i")
# The errors that are sent with their class, and its module; others arrive as a RuntimeError. A
# RowFailure is sent as the ValueError that it also is.
_KINDS = {
    **{
        name: errors.__name__
        for name in vars(errors)
        if name.endswith("Error") and name != "SparkVisionError"
    },
    **dict.fromkeys(["OutOfMemoryError", "AcceleratorError"], "torch"),
    **dict.fromkeys(
        ["MemoryError", "ValueError", "IndexError", "TypeError", "RuntimeError"], "builtins"
    ),
}

# Dtype, shape and order of the tensors of a message, by name. The order has the axes from the
# outermost in memory to the innermost. Each tensor begins at the next aligned byte.
Layout = dict[str, tuple[str, list[int], list[int]]]
Message = tuple[dict[str, Any], "dict[str, torch.Tensor]"]
Failure = dict[str, str]


def describe_error(error: Exception) -> Failure:
    """Return an error as JSON, of a size that fits into one message."""
    kind = next((each.__name__ for each in type(error).__mro__ if each.__name__ in _KINDS), None)
    message = str(error) if kind else f"{type(error).__name__}: {error}"
    return {"kind": kind or "RuntimeError", "message": message[:MAX_ERROR_CHARACTERS]}


def make_error(described: Failure) -> Exception:
    """Return the error that `describe_error` described.

    Raises:
        KeyError: It is of no kind that is sent.
    """
    kind = described["kind"]
    error: Exception = getattr(import_module(_KINDS[kind]), kind)(described["message"])
    return error


class TensorWriter:
    """Writes tensors into shared memory for the other side."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def write(self, tensors: "Mapping[str, torch.Tensor]") -> tuple[Layout, int | None]:
        """Copy tensors into the memory, overwriting those of the last message.

        Returns:
            Their layout, and the descriptor of new memory or None. The caller sends the descriptor
            with the message and closes it.
        """
        layout = {name: _place(tensor) for name, tensor in tensors.items()}
        size = sum(_align(tensor.nbytes) for tensor in tensors.values())
        descriptor = None
        if self._memory is None or len(self._memory) < size:
            size = max(MIN_BYTES, 1 << (size - 1).bit_length())
            descriptor = os.memfd_create("spark-vision", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self._memory = mmap.mmap(descriptor, size)
        for name, view in _views(self._memory, layout).items():
            view.copy_(tensors[name])
        return layout, descriptor


class TensorReader:
    """Reads tensors from the shared memory of the other side."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def replace(self, descriptor: int) -> None:
        """Map the memory of a received descriptor, and close the descriptor.

        Raises:
            ValueError: The memory is not sealed against shrinking, or is too large.
            OSError: The descriptor is not shared memory.
        """
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise ValueError("the shared memory is not sealed")
            size = os.fstat(descriptor).st_size
            if size > MAX_BYTES:
                raise ValueError(f"shared memory of {size} bytes; allowed: at most {MAX_BYTES}")
            self._memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)

    def read(self, layout: Any) -> "dict[str, torch.Tensor]":
        """Return views of the tensors, which are valid until the next message overwrites them.

        Args:
            layout: Any JSON value, from another process.

        Raises:
            ValueError: It is not a layout, or its tensors exceed the memory that was sent.
        """
        if not isinstance(layout, dict) or len(layout) > _MAX_TENSORS:
            raise ValueError(f"the layout is not one of at most {_MAX_TENSORS} tensors")
        for name, place in layout.items():
            if not _is_place(place):
                raise ValueError(f"the tensor {name[:40]!r} has no valid dtype, shape and order")
        return _views(self._memory, layout)


def _place(tensor: "torch.Tensor") -> tuple[str, list[int], list[int]]:
    import torch

    # Keep the memory format of pixels (channels last or not).
    strides = torch.empty_like(tensor, device="meta").stride()
    order = sorted(range(tensor.ndim), key=lambda axis: -strides[axis])
    return str(tensor.dtype).removeprefix("torch."), list(tensor.shape), order


def _is_place(place: Any) -> bool:
    if not isinstance(place, list) or len(place) != 3:
        return False
    dtype, shape, order = place
    return (
        dtype in _DTYPES
        and _are_counts(shape)
        # Also of an empty tensor: torch computes strides in 64 bits.
        and math.prod(max(1, size) for size in shape) <= MAX_BYTES
        and _are_counts(order)
        and sorted(order) == list(range(len(shape)))
    )


def _are_counts(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= _MAX_DIMENSIONS
        and all(type(value) is int and value >= 0 for value in values)
    )


def _views(memory: mmap.mmap | None, layout: Layout) -> "dict[str, torch.Tensor]":
    """Return the tensors of a valid layout in memory; raise a ValueError if they exceed it."""
    if not layout:
        return {}
    import torch

    views = {}
    start, memory_bytes = 0, len(memory or b"")
    for name, (dtype_name, shape, order) in layout.items():
        dtype = getattr(torch, dtype_name)
        count = math.prod(shape)
        end = start + count * dtype.itemsize
        if end > memory_bytes:
            raise ValueError(f"the tensor {name[:40]!r} exceeds {memory_bytes} bytes of memory")
        flat = torch.empty(0, dtype=dtype)
        if memory is not None and count:
            flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=start)
        in_memory = flat.view([shape[axis] for axis in order])
        views[name] = in_memory.permute([order.index(axis) for axis in range(len(order))])
        start = _align(end)
    return views


def _align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


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
