"""What a JVM writes on stderr while Spark starts is shown only where Spark does not start.

Its banners and warnings come before any log level is set, some from the JVM itself, and a user can
act on none of them; Ivy adds a page at each start.
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
    """Hold back what this process and a JVM that it starts write on stderr within.

    The JVM keeps the descriptor that it was started with: what it writes later is passed on.

    Raises:
        SessionError: The JVM has ended, and what it wrote names the cause.
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
    """Puts a pipe in the place of stderr, and a thread behind it, until it is ended."""

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
        """Give stderr back; return what was written until now."""
        # Written after all that is held back, by whomever.
        os.write(2, self._mark)
        os.dup2(self._stderr, 2)
        self._is_held.wait()
        return self._held.decode(errors="replace")

    def show(self) -> None:
        """Write what was held back."""
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
