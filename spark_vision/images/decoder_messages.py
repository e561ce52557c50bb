"""The protocol between a worker and a decoder process: fixed-size numbers, then bytes.

The worker sends a `Request`, then the file. The decoder answers with the size of the image; the
worker replies whether to continue; then the decoder sends the pixels, row by row. Instead of either
answer the decoder may send a failure. Nothing is pickled; each side knows how many bytes follow.
"""

import socket
import struct
from typing import NamedTuple

_REQUEST = struct.Struct("!8sBBdQQ")
_ANSWER = struct.Struct("!cIIB")

READY = b"R"
CONTINUE = b"1"
SKIP = b"0"

SIZE = b"S"
PIXELS = b"P"
FAILURE = b"F"
MAX_TEXT_BYTES = 4096


class Request(NamedTuple):
    """One file to decode.

    Attributes:
        format: A value of `headers.Format`.
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


class Answer(NamedTuple):
    """A decoder's message.

    Attributes:
        kind: SIZE or PIXELS, with the stored width and height; or FAILURE, with the byte counts of
            its status and reason, which follow.
        first: The first number.
        second: The second number.
        orientation: EXIF orientation of the pixels that follow PIXELS, 1 to 8.
    """

    kind: bytes
    first: int
    second: int
    orientation: int = 1


def send_request(connection: socket.socket, request: Request, data: memoryview) -> None:
    """Send a request and its file."""
    format, *numbers = request
    connection.sendall(_REQUEST.pack(format.encode(), *numbers))
    connection.sendall(data)


def receive_request(connection: socket.socket) -> Request:
    """Wait for a request; its file follows.

    Raises:
        EOFError: The other side closed the connection.
    """
    format, *numbers = _REQUEST.unpack(receive(connection, _REQUEST.size))
    return Request(format.rstrip(b"\0").decode(), *numbers)


def send_answer(connection: socket.socket, answer: Answer, text: bytes = b"") -> None:
    """Send an answer."""
    connection.sendall(_ANSWER.pack(*answer) + text)


def receive_answer(connection: socket.socket) -> Answer:
    """Wait for an answer.

    Raises:
        EOFError: The other side closed the connection.
    """
    return Answer(*_ANSWER.unpack(receive(connection, _ANSWER.size)))


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
