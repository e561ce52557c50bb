"""Shows the progress of a write: one updated line on a terminal, or a line every ten seconds."""

import shutil
import sys
import time
from collections.abc import Mapping
from typing import Self, TextIO

from spark_vision.errors import Status
from spark_vision.tables.progress import Progress

LOG_SECONDS = 10.0
_CLEAR_LINE = "\r\x1b[K"


class ProgressLine:
    """Prints progress; pass it as `progress` to `write_vision_columns`.

    Use it in a `with` statement, so that later output starts on a new line.

    Args:
        stream: On a terminal, one line is updated; otherwise a line is written every ten seconds.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._in_place = self._stream.isatty()
        self._last_written = time.monotonic()
        self._last_line = ""

    def __call__(self, progress: Progress) -> None:
        """Show the progress if it is due."""
        if not progress.total_rows:
            return
        is_end = progress.done_rows >= progress.total_rows
        line = describe_progress(progress)
        if self._in_place:
            width = shutil.get_terminal_size().columns
            self._stream.write(_CLEAR_LINE + line[: width - 1])
        elif line != self._last_line and (is_end or self._is_due()):
            self._last_written = time.monotonic()
            self._stream.write(line + "\n")
        else:
            return
        self._last_line = line
        self._stream.flush()

    def _is_due(self) -> bool:
        return time.monotonic() - self._last_written >= LOG_SECONDS

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the line, so that later output starts on a new one."""
        if self._in_place and self._last_line:
            self._stream.write("\n")
            self._stream.flush()


def describe_progress(progress: Progress) -> str:
    """Format rows done, share, rate, time left, and failures by status."""
    parts = [
        f"{progress.done_rows:,} of {progress.total_rows:,} rows ({progress.fraction:.0%})",
        f"{progress.rows_per_second:,.1f} rows/s",
    ]
    if progress.remaining_seconds:
        parts.append(f"{_duration(progress.remaining_seconds)} left")
    failed = describe_failures(progress.statuses)
    if failed:
        parts.append(f"failed: {failed}")
    return ", ".join(parts)


def describe_failures(statuses: Mapping[str, Mapping[str, int]]) -> str:
    """Format failures by column and status, such as `embedding not_an_image 3`; '' for none."""
    return ", ".join(
        f"{column} {status} {count:,}"
        for column, counts in statuses.items()
        for status, count in counts.items()
        if status != Status.OK
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
