"""Hides what a JVM writes on stderr while Spark starts, unless the start fails.

Its banners and warnings are written before a log level is set, some by the JVM itself, and a user
cannot act on them. Ivy adds a page at each start.
"""

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from spark_vision.errors import SessionError
from spark_vision.spark.delta_jars import find_cause

_CHUNK_BYTES = 65536


@contextmanager
def quiet_start() -> Iterator[None]:
    """Buffer the stderr of this process and of a JVM that it starts, within the block.

    The JVM keeps the pipe as its stderr: what it writes after the block is passed on.

    Raises:
        SessionError: The JVM exited, and its output contains the cause.
    """
    from pyspark.errors import PySparkRuntimeError

    start = _Start()
    try:
        yield
    except PySparkRuntimeError as error:
        cause = find_cause(start.end())
        if cause is None or error.getCondition() != "JAVA_GATEWAY_EXITED":
            start.show()
            raise
        raise SessionError(f"Spark does not start: {cause}") from error
    except BaseException:
        start.end()
        start.show()
        raise
    start.end()


class _Start:
    """Replaces stderr by a pipe with a reading thread, until `end` is called."""

    def __init__(self) -> None:
        self._stderr = os.dup(2)
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(writer)
        self._mark = secrets.token_bytes(16)
        self._held = b""
        self._is_held = threading.Event()
        threading.Thread(target=self._pass_on, args=[reader], daemon=True).start()

    def end(self) -> str:
        """Restore stderr; return what was written until now."""
        # The mark ends what is held back.
        os.write(2, self._mark)
        os.dup2(self._stderr, 2)
        self._is_held.wait()
        return self._held.decode(errors="replace")

    def show(self) -> None:
        """Write the buffered output."""
        self._write(self._held)

    def _pass_on(self, reader: int) -> None:
        held = b""
        while chunk := os.read(reader, _CHUNK_BYTES):
            if self._is_held.is_set():
                self._write(chunk)
                continue
            held, mark, later = (held + chunk).partition(self._mark)
            if mark:
                self._held = held
                self._is_held.set()
                self._write(later)

    def _write(self, text: bytes) -> None:
        while text:
            text = text[os.write(self._stderr, text) :]
