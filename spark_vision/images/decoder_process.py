"""The child process that decodes images whose decoders could hang, crash or exhaust memory.

It imports Pillow and numpy but not torch, so it starts in 0.1 s and takes about 20 MB. It reads
from a socket on its standard input and ends when that closes. Resource limits on memory, time and
files make sure that a runaway decoder costs one image. It has no secrets: neither the worker's file
descriptors nor its environment.

The protocol is fixed-size numbers, then bytes. The worker sends a `REQUEST`, then the file. The
decoder answers with the size of the image; the worker replies whether to continue; then the decoder
sends the pixels, row by row. Instead of either answer the decoder may send a failure. Nothing is
pickled; each side knows how many bytes follow.
"""

import ctypes
import os
import resource
import signal
import socket
import struct
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import AvifImagePlugin

from spark_vision.errors import RowFailure
from spark_vision.images.cost import Format
from spark_vision.images.pillow_decoding import decode_rows, translate_errors

REQUEST = struct.Struct("!8sBBdQQ")
ANSWER = struct.Struct("!cIIB")
"""SIZE or PIXELS, with the stored width and height, and the EXIF orientation of the pixels; or
FAILURE, with the byte counts of its status and reason, which follow."""

READY = b"R"
CONTINUE = b"1"
SKIP = b"0"

SIZE = b"S"
PIXELS = b"P"
FAILURE = b"F"

# The worker kills a decoder that times out; this alarm ends one whose worker is gone.
ALARM_EXTRA_SECONDS = 5.0
_PR_SET_NO_NEW_PRIVS = 38


class Request(NamedTuple):
    """One file to decode; the fields of `REQUEST`.

    Attributes:
        format: A value of `cost.Format`.
        orientation: EXIF orientation from the header, 1 to 8; 0 where it is not known.
        scale: The height and width of a JPEG are divided by it: 1, 2, 4 or 8.
        seconds: Timeout for decoding.
        memory_bytes: Maximum memory to allocate.
        byte_count: Size of the file, which follows.
    """

    format: str
    orientation: int
    scale: int
    seconds: float
    memory_bytes: int
    byte_count: int


class _SkippedImage(BaseException):
    """The worker rejected the image's size; not an error of a decoder."""


def main() -> None:
    """Decode one image after another until the worker is gone."""
    # Ctrl+C in a terminal signals the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    connection = socket.socket(fileno=os.dup(0))
    _drop_privileges()
    # One thread per image; the AVIF decoder would start one per core.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    warnings.simplefilter("ignore")
    used_bytes = _address_space_bytes()
    connection.sendall(READY)
    _silence_streams()
    with suppress(EOFError, ConnectionError):
        while True:
            format, *numbers = REQUEST.unpack(receive(connection, REQUEST.size))
            request = Request(format.rstrip(b"\0").decode(), *numbers)
            _limit_memory(used_bytes, request)
            data = memoryview(receive(connection, request.byte_count))
            with suppress(_SkippedImage):
                _answer(connection, request, data)
            signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(connection: socket.socket, request: Request, data: memoryview) -> None:
    seconds = request.seconds + ALARM_EXTRA_SECONDS

    def ask_about(size: tuple[int, int]) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            _send(connection, SIZE, *size)
            if receive(connection, 1) != CONTINUE:
                raise _SkippedImage
        except (EOFError, ConnectionError):
            sys.exit()
        signal.setitimer(signal.ITIMER_REAL, seconds)

    format = Format(request.format)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with translate_errors(data, format):
            rows = decode_rows(data, format, ask_about, request.scale)
    except RowFailure as failure:
        status, reason = failure.status.value.encode(), failure.reason.encode()
        _send(connection, FAILURE, len(status), len(reason))
        connection.sendall(status + reason)
        return
    orientation = request.orientation or rows.orientation
    _send(connection, PIXELS, rows.width, rows.height, orientation)
    for band in rows.bands:
        connection.sendall(np.ascontiguousarray(band).data.cast("B"))


def _send(
    connection: socket.socket, kind: bytes, first: int, second: int, orientation: int = 1
) -> None:
    connection.sendall(ANSWER.pack(kind, first, second, orientation))


def receive(connection: socket.socket, byte_count: int) -> bytearray:
    """Receive exactly `byte_count` bytes.

    Raises:
        EOFError: The other side closed the connection.
    """
    data = bytearray(byte_count)
    receive_into(connection, memoryview(data))
    return data


def receive_into(connection: socket.socket, room: memoryview) -> None:
    """Fill a buffer with received bytes.

    Raises:
        EOFError: The other side closed the connection.
    """
    while room:
        count = connection.recv_into(room)
        if not count:
            raise EOFError
        room = room[count:]


def _drop_privileges() -> None:
    with suppress(OSError):
        # If memory runs out, the kernel should kill this process, not the worker.
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _silence_streams() -> None:
    """Redirect standard streams to /dev/null: startup errors are shown, decoders' output is not."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _limit_memory(used_bytes: int | None, request: Request) -> None:
    if used_bytes is not None:
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        allowed = used_bytes + request.memory_bytes
        allowed = allowed if most == resource.RLIM_INFINITY else min(allowed, most)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, most))


def _address_space_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return None
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
