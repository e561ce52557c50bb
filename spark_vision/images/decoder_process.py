"""The process that decodes what could hang, die or take too much memory: started by exec, killed.

It has Pillow and numpy, no torch: it starts in a tenth of a second and holds some 20 MB of its own.
It reads from a socket at its standard input, ends when that ends, and is bounded by the system in
memory, time and files, so that a decoder gone wild costs one image. It holds no secrets: neither
the worker's descriptors nor its environment.
"""

import ctypes
import os
import resource
import signal
import socket
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import AvifImagePlugin

from spark_vision.errors import RowFailure
from spark_vision.images.decoder_messages import (
    FAILURE,
    GO_ON,
    PIXELS,
    READY,
    SIZE,
    Answer,
    Request,
    receive,
    receive_request,
    send_answer,
)
from spark_vision.images.headers import Format
from spark_vision.images.pillow_decoding import decode_rows, failures_named

# The worker kills a decoder that is late; this ends one whose worker has gone.
ALARM_EXTRA_SECONDS = 5.0
_PR_SET_NO_NEW_PRIVS = 38


class _LeftOut(BaseException):
    """The worker does not want an image of this size; no error of a decoder."""


def main() -> None:
    """Decode one image after the other until the worker has gone."""
    # Ctrl+C in a terminal goes to the whole group of processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    connection = socket.socket(fileno=os.dup(0))
    _give_up_rights()
    # One image is one thread's work, and an AVIF decoder would start one per core.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    warnings.simplefilter("ignore")
    used_bytes = _address_space_bytes()
    connection.sendall(READY)
    _say_nothing_more()
    with suppress(EOFError, ConnectionError):
        while True:
            request = receive_request(connection)
            _limit_memory(used_bytes, request)
            data = memoryview(receive(connection, request.byte_count))
            with suppress(_LeftOut):
                _answer(connection, request, data)
            signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(connection: socket.socket, request: Request, data: memoryview) -> None:
    seconds = request.seconds + ALARM_EXTRA_SECONDS

    def ask_about(size: tuple[int, int]) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            send_answer(connection, Answer(SIZE, *size))
            if receive(connection, 1) != GO_ON:
                raise _LeftOut
        except (EOFError, ConnectionError):
            sys.exit()
        signal.setitimer(signal.ITIMER_REAL, seconds)

    format = Format(request.format)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with failures_named(data, format):
            rows = decode_rows(data, format, ask_about)
    except RowFailure as failure:
        status, reason = failure.status.value.encode(), failure.reason.encode()
        send_answer(connection, Answer(FAILURE, len(status), len(reason)), status + reason)
        return
    orientation = request.orientation or rows.orientation
    send_answer(connection, Answer(PIXELS, rows.width, rows.height, orientation))
    for band in rows.bands:
        connection.sendall(np.ascontiguousarray(band).data.cast("B"))


def _give_up_rights() -> None:
    with suppress(OSError):
        # Where memory runs out, the system shall end this process, not the worker.
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _say_nothing_more() -> None:
    """What keeps the process from starting is told; what decoders print of images is not."""
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
