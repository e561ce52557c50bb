"""What passes between a worker and a decoder's process: numbers of fixed size, then bytes.

The worker asks (`Request`, then the file). The decoder tells the size of the image, and the worker
says whether to go on; then come the pixels, row by row. Instead of either the decoder may tell why
the image cannot be decoded. Nothing is pickled, and each side knows how many bytes come next.
"""

import socket
import struct
from typing import NamedTuple

_REQUEST = struct.Struct("!8sBdQQ")
_ANSWER = struct.Struct("!cIIB")

READY = b"R"
GO_ON = b"1"
LEAVE_IT = b"0"

SIZE = b"S"
PIXELS = b"P"
FAILURE = b"F"
MOST_TEXT_BYTES = 4096


class Request(NamedTuple):
    """One file to decode.

    Attributes:
        format: As `headers.Format` has it.
        orientation: How the header says that it is to be turned, 1 to 8; 0 where it says nothing.
        seconds: What decoding may take.
        memory_bytes: What it may allocate.
        byte_count: Of the file, which follows.
    """

    format: str
    orientation: int
    seconds: float
    memory_bytes: int
    byte_count: int


class Answer(NamedTuple):
    """What a decoder says.

    Attributes:
        kind: SIZE and PIXELS with two numbers: width and height, as the file has them; FAILURE with
            the bytes of its status and of its reason, which follow.
        first: The first number.
        second: The other.
        orientation: How the pixels, which follow PIXELS, are to be turned, 1 to 8.
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
    """Wait for a request; its file is still to be received.

    Raises:
        EOFError: The other side has gone.
    """
    format, *numbers = _REQUEST.unpack(receive(connection, _REQUEST.size))
    return Request(format.rstrip(b"\0").decode(), *numbers)


def send_answer(connection: socket.socket, answer: Answer, text: bytes = b"") -> None:
    """Send an answer."""
    connection.sendall(_ANSWER.pack(*answer) + text)


def receive_answer(connection: socket.socket) -> Answer:
    """Wait for an answer.

    Raises:
        EOFError: The other side has gone.
    """
    return Answer(*_ANSWER.unpack(receive(connection, _ANSWER.size)))


def receive(connection: socket.socket, byte_count: int) -> bytearray:
    """Wait for so many bytes.

    Raises:
        EOFError: The other side has gone.
    """
    data = bytearray(byte_count)
    receive_into(connection, memoryview(data))
    return data


def receive_into(connection: socket.socket, room: memoryview) -> None:
    """Fill some memory with what comes.

    Raises:
        EOFError: The other side has gone.
    """
    while room:
        count = connection.recv_into(room)
        if not count:
            raise EOFError
        room = room[count:]
