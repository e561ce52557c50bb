"""Decodes images in child processes, where a crash or a hang costs only one image.

A Python worker has one such process per thread that decodes at the same time. It is started when
the first image needs it and reused by later tasks. It is killed after a timeout or an invalid
answer, and ends when the worker does.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from spark_vision.errors import RowFailure, Status
from spark_vision.images.child_process import import_path, module_command
from spark_vision.images.cost import Format
from spark_vision.images.decoder_process import (
    ANSWER,
    CONTINUE,
    FAILURE,
    PIXELS,
    READY,
    REQUEST,
    SIZE,
    SKIP,
    receive,
    receive_into,
)
from spark_vision.images.pillow_decoding import CheckSize, Pixels, allocate_upright
from spark_vision.operators import ImageLimits

START_SECONDS = 60.0
END_SECONDS = 5.0
EXTRA_MEMORY_BYTES = 128 * 2**20
MAX_TEXT_BYTES = 4096
_BAND_BYTES = 2**20
# The pixels of an ordinary image fit; the system may allow less.
_BUFFER_BYTES = 2**20
# A decoder gets only the environment variables that Python needs to start, and no secrets.
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PYTHONHOME")

_idle: list["DecoderProcess"] = []
_lock = threading.Lock()
_is_possible: bool | None = None
"""Whether this worker can start a process; None before the first attempt."""


def decode_isolated(
    data: memoryview,
    format: Format,
    check_size: CheckSize,
    limits: ImageLimits,
    orientation: int = 0,
    scale: int = 1,
) -> Pixels | None:
    """Decode like `decode_by_pillow`, but in a process that can be killed.

    Args:
        data: The whole file.
        format: The format from its header.
        check_size: Called with width and height before pixels are decoded; raises to reject them.
        limits: `decode_seconds` limits the time, and `max_pixels` the memory: 4 bytes per pixel
            plus a constant.
        orientation: EXIF orientation from the header; 0 leaves it to the decoder.
        scale: As for `decode_by_pillow`.

    Returns:
        As `decode_by_pillow`; None where no process can be started, which is logged once to stderr.

    Raises:
        RowFailure: As `decode_by_pillow`; `timeout` if the decoder exceeds its time, `decode_error`
            if it crashes.
    """

    def decode(process: DecoderProcess) -> Pixels:
        return process.decode(data, format, check_size, limits, orientation, scale)

    try:
        return _decode_once(decode, format, limits)
    except _KilledError:
        # If memory runs out, the kernel kills a decoder first, regardless of its image.
        with suppress(_KilledError):
            return _decode_once(decode, format, limits)
    raise _dead(format, -signal.SIGKILL)


class _KilledError(Exception):
    """The process was killed by signal 9, which no decoder sends to itself."""


def _decode_once(
    decode: "Callable[[DecoderProcess], Pixels]", format: Format, limits: ImageLimits
) -> Pixels | None:
    process = _take()
    if process is None:
        return None
    try:
        pixels = decode(process)
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
        reason = f"the decoder sent an invalid answer for this {format}: {error}"
        raise RowFailure(Status.DECODE_ERROR, reason) from None
    except BaseException:
        process.kill()
        raise
    _give_back(process)
    return pixels


class DecoderProcess:
    """The worker's side of one decoder process.

    Raises:
        OSError: The process cannot be started.
    """

    def __init__(self) -> None:
        if not sys.executable:
            raise OSError("the path of the Python interpreter is unknown")
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
                raise OSError("it did not report that it is ready")
        except (OSError, EOFError) as error:
            code = self.kill()
            raise OSError(str(error) or f"it ended with code {code}") from error

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def decode(
        self,
        data: memoryview,
        format: Format,
        check_size: CheckSize,
        limits: ImageLimits,
        orientation: int,
        scale: int,
    ) -> Pixels:
        """Decode one image; see `decode_isolated`.

        Raises:
            RowFailure: The process can be reused.
            TimeoutError, EOFError, ConnectionError, ValueError: It cannot.
        """
        deadline = time.monotonic() + limits.decode_seconds
        # Pillow and its decoders hold the file up to three times.
        memory_bytes = 4 * limits.max_pixels + 3 * len(data) + EXTRA_MEMORY_BYTES
        numbers = orientation, scale, limits.decode_seconds, memory_bytes, len(data)
        self._wait_until(deadline)
        self._connection.sendall(REQUEST.pack(format.encode(), *numbers))
        self._connection.sendall(data)
        width, height, _ = self._receive(SIZE, deadline)
        try:
            check_size((width, height))
        except RowFailure:
            self._connection.sendall(SKIP)
            raise
        # The check may have waited for memory.
        deadline = time.monotonic() + limits.decode_seconds
        self._connection.sendall(CONTINUE)
        *size, turned = self._receive(PIXELS, deadline)
        width, height = width // scale, height // scale
        # Pillow applies a TIFF's orientation itself.
        if size not in ([width, height], [height, width]) or not 1 <= turned <= 8:
            raise ValueError(f"{size[0]} × {size[1]} pixels instead of {width} × {height}")
        upright, stored = allocate_upright(size[0], size[1], turned)
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
        """Kill the process and return its exit code."""
        self._connection.close()
        self._process.kill()
        return self._process.wait()

    def end(self) -> int:
        """Wait briefly for the process to exit, then kill it; return its exit code."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        return self.kill()

    def _receive(self, kind: bytes, deadline: float) -> tuple[int, int, int]:
        self._wait_until(deadline)
        found, first, second, orientation = ANSWER.unpack(receive(self._connection, ANSWER.size))
        if found == FAILURE:
            if first + second > MAX_TEXT_BYTES:
                raise ValueError(f"a reason of {first + second:,} bytes")
            status = receive(self._connection, first).decode()
            reason = receive(self._connection, second).decode()
            raise RowFailure(Status(status), reason)
        if found != kind:
            raise ValueError(f"{found!r} instead of {kind!r}")
        return first, second, orientation

    def _fill(self, pixels: Pixels, deadline: float) -> None:
        self._wait_until(deadline)
        receive_into(self._connection, pixels.data.cast("B"))

    def _wait_until(self, deadline: float) -> None:
        # A timeout of 0 would make the socket non-blocking.
        self._connection.settimeout(max(1e-3, deadline - time.monotonic()))


def _take() -> DecoderProcess | None:
    """Return an idle process or a new one; None where none can be started.

    Raises:
        RowFailure: `out_of_memory`: earlier ones were started, but no further one can be now.
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
                Status.OUT_OF_MEMORY, f"no decoder process can be started ({error})"
            ) from None
        if before is None:
            print(
                f"spark_vision: no decoder process can be started ({error}); this Python worker "
                "decodes GIF, BMP, TIFF and AVIF itself, and a decoder that crashes ends it",
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
    """Forget the parent's decoders in a forked process."""
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
        # Return memory of large images to the system; keep that of ordinary ones.
        "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
        "MALLOC_TRIM_THRESHOLD_": str(16 * 2**20),
    }
