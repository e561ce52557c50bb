"""Decoding in a process of its own: whatever a decoder does there costs one image.

A Python worker has one such process for each thread that decodes in it at a time, started when the
first image needs it and kept for the next task. It is killed when it is late or answers nonsense,
and ends by itself when the worker does.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np

from spark_vision.errors import RowFailure, Status
from spark_vision.images.child_process import import_path, module_command
from spark_vision.images.decoder_messages import (
    FAILURE,
    GO_ON,
    LEAVE_IT,
    MOST_TEXT_BYTES,
    PIXELS,
    READY,
    SIZE,
    Answer,
    Request,
    receive,
    receive_answer,
    receive_into,
    send_request,
)
from spark_vision.images.headers import Format
from spark_vision.images.pillow_decoding import CheckSize, Pixels, upright_pixels
from spark_vision.operators import ImageLimits

START_SECONDS = 60.0
END_SECONDS = 5.0
EXTRA_MEMORY_BYTES = 128 * 2**20
_BAND_BYTES = 2**20
# An ordinary image's pixels pass without a wait; the system may allow less.
_BUFFER_BYTES = 2**20
# Of the worker's environment a decoder gets what Python needs to start, and nothing secret.
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PYTHONHOME")

_idle: list["DecoderProcess"] = []
_lock = threading.Lock()
_is_possible: bool | None = None
"""Whether a process can be started in this worker; None before the first."""


def decode_isolated(
    data: memoryview,
    format: Format,
    check_size: CheckSize,
    limits: ImageLimits,
    orientation: int = 0,
) -> Pixels | None:
    """As `decode_by_pillow`, in a process that is killed if need be.

    Args:
        data: The whole file.
        format: What its header says it is.
        check_size: Given width and height before pixels are decoded; raises to refuse them.
        limits: Their `decode_seconds` bound the time, and `max_pixels` the memory: 4 bytes each,
            and a constant.
        orientation: How the header says that the image is to be turned; 0 asks the decoder.

    Returns:
        As `decode_by_pillow`; None where no process can be started, which stderr says once.

    Raises:
        RowFailure: As `decode_by_pillow`; `timeout` for a decoder that is late, and `decode_error`
            for one that dies.
    """
    try:
        return _decode_once(data, format, check_size, limits, orientation)
    except _KilledError:
        # Where memory runs out the system ends a decoder first, whatever image it has.
        with suppress(_KilledError):
            return _decode_once(data, format, check_size, limits, orientation)
    raise _dead(format, -signal.SIGKILL)


class _KilledError(Exception):
    """The process was ended by signal 9, which no decoder sends to itself."""


def _decode_once(
    data: memoryview, format: Format, check_size: CheckSize, limits: ImageLimits, orientation: int
) -> Pixels | None:
    process = _take()
    if process is None:
        return None
    try:
        pixels = process.decode(data, format, check_size, limits, orientation)
    except RowFailure:
        _give_back(process)
        raise
    except TimeoutError:
        process.kill()
        raise _late(format, limits) from None
    except (EOFError, ConnectionError):
        code = process.end()
        if code == -signal.SIGALRM:
            raise _late(format, limits) from None
        if code == -signal.SIGKILL:
            raise _KilledError from None
        raise _dead(format, code) from None
    except ValueError as error:
        process.kill()
        reason = f"the decoder answered nonsense on this {format}: {error}"
        raise RowFailure(Status.DECODE_ERROR, reason) from None
    except BaseException:
        process.kill()
        raise
    _give_back(process)
    return pixels


class DecoderProcess:
    """One process that decodes, as the worker sees it.

    Raises:
        OSError: None can be started here.
    """

    def __init__(self) -> None:
        if not sys.executable:
            raise OSError("the Python interpreter's path is not known")
        self._connection, other = socket.socketpair()
        with other:
            for each in (self._connection, other):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            try:
                self._process: subprocess.Popen[bytes] = subprocess.Popen(
                    module_command("spark_vision.images.decoder_process"),
                    stdin=other.fileno(),
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    env=_environment(),
                )
            except OSError:
                self._connection.close()
                raise
        self._connection.settimeout(START_SECONDS)
        try:
            if receive(self._connection, 1) != READY:
                raise OSError("it did not say that it is ready")
        except (OSError, EOFError) as error:
            code = self.kill()
            raise OSError(str(error) or f"it ended with code {code}") from error

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def decode(
        self,
        data: memoryview,
        format: Format,
        check_size: CheckSize,
        limits: ImageLimits,
        orientation: int,
    ) -> Pixels:
        """Have one image decoded; see `decode_isolated`.

        Raises:
            RowFailure: The process is as good as before.
            TimeoutError, EOFError, ConnectionError, ValueError: It is not.
        """
        deadline = time.monotonic() + limits.decode_seconds
        # Pillow and its decoders hold the file up to three times.
        memory_bytes = 4 * limits.max_pixels + 3 * len(data) + EXTRA_MEMORY_BYTES
        seconds = limits.decode_seconds
        request = Request(format.value, orientation, seconds, memory_bytes, len(data))
        self._wait_until(deadline)
        send_request(self._connection, request, data)
        width, height, _ = self._receive(SIZE, deadline)
        try:
            check_size((width, height))
        except RowFailure:
            self._connection.sendall(LEAVE_IT)
            raise
        # The check may have waited for memory that other images hold.
        deadline = time.monotonic() + limits.decode_seconds
        self._connection.sendall(GO_ON)
        *size, turned = self._receive(PIXELS, deadline)
        # Pillow itself turns a TIFF upright.
        if size not in ([width, height], [height, width]) or not 1 <= turned <= 8:
            raise ValueError(f"{size[0]} × {size[1]} pixels instead of {width} × {height}")
        upright, stored = upright_pixels(size[0], size[1], turned)
        if turned == 1:
            self._fill(upright, deadline)
        else:
            row_count = max(1, _BAND_BYTES // (3 * size[0]))
            for top in range(0, len(stored), row_count):
                rows = stored[top : top + row_count]
                band = np.empty(rows.shape, np.uint8)
                self._fill(band, deadline)
                rows[:] = band
        return upright

    def kill(self) -> int:
        """End it at once, and give the code that it ended with."""
        self._connection.close()
        self._process.kill()
        return self._process.wait()

    def end(self) -> int:
        """Wait for one that is ending, not for long, and give the code that it ended with."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        return self.kill()

    def _receive(self, kind: bytes, deadline: float) -> tuple[int, int, int]:
        self._wait_until(deadline)
        answer: Answer = receive_answer(self._connection)
        if answer.kind == FAILURE:
            if answer.first + answer.second > MOST_TEXT_BYTES:
                raise ValueError(f"a reason of {answer.first + answer.second:,} bytes")
            status = receive(self._connection, answer.first).decode()
            reason = receive(self._connection, answer.second).decode()
            raise RowFailure(Status(status), reason)
        if answer.kind != kind:
            raise ValueError(f"{answer.kind!r} instead of {kind!r}")
        return answer.first, answer.second, answer.orientation

    def _fill(self, pixels: Pixels, deadline: float) -> None:
        self._wait_until(deadline)
        receive_into(self._connection, pixels.data.cast("B"))

    def _wait_until(self, deadline: float) -> None:
        # A timeout of 0 would mean not to wait at all.
        self._connection.settimeout(max(1e-3, deadline - time.monotonic()))


def _take() -> DecoderProcess | None:
    """Give a process that is idle, or a new one; None where there can be none.

    Raises:
        RowFailure: `out_of_memory`: there have been some, and this host can start no other now.
    """
    global _is_possible
    while True:
        with _lock:
            if _is_possible is False:
                return None
            if not _idle:
                break
            process = _idle.pop()
        if process.is_alive:
            return process
        process.kill()
    try:
        process = DecoderProcess()
    except OSError as error:
        with _lock:
            before = _is_possible
            _is_possible = before or False
        if before:
            raise RowFailure(
                Status.OUT_OF_MEMORY, f"no process can be started to decode it ({error})"
            ) from None
        if before is None:
            print(
                f"spark_vision: no decoder process can be started ({error}); this Python worker "
                "decodes GIF, BMP, TIFF and AVIF itself, and an image that ends a decoder ends it",
                file=sys.stderr,
                flush=True,
            )
        return None
    with _lock:
        _is_possible = True
    return process


def _give_back(process: DecoderProcess) -> None:
    with _lock:
        _idle.append(process)


def _forget() -> None:
    """A forked process must not talk to the decoders of its parent."""
    global _lock
    _lock = threading.Lock()
    _idle.clear()


os.register_at_fork(after_in_child=_forget)


def _late(format: Format, limits: ImageLimits) -> RowFailure:
    return RowFailure(
        Status.TIMEOUT, f"the {format} was not decoded within {limits.decode_seconds:g} s"
    )


def _dead(format: Format, code: int) -> RowFailure:
    how = f"signal {-code}" if code < 0 else f"code {code}"
    return RowFailure(Status.DECODE_ERROR, f"the decoder ended with {how} on this {format}")


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": import_path(),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # Memory of a large image goes back to the system; that of ordinary ones is kept.
        "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
        "MALLOC_TRIM_THRESHOLD_": str(16 * 2**20),
    }
