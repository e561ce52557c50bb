"""Shows the progress of a write: a bar on a terminal or in a notebook, else a line now and then."""

import sys
import time
from collections.abc import Mapping
from typing import Self, TextIO

from tqdm import auto

from spark_vision.errors import Status
from spark_vision.tables.progress import Progress

LOG_SECONDS = 10.0
_LINE = "{percentage:.0f}%, {n:,} of {total:,} rows, {rate_noinv_fmt}, {remaining} left{postfix}"


class ProgressBar:
    """Shows rows, rate, time left and failures; pass it as `progress` to `write_vision_columns`.

    In a `with` statement, later output starts on a new line even if the write fails.

    Args:
        stream: A terminal gets a bar (`tqdm`), and so does a notebook; anything else, such as the
            log of a job, gets a line every ten seconds. None means stderr.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
        >>> with ProgressBar() as bar:
        ...     result = write_vision_columns(
        ...         photos, "/data/shown_vectors", ["path"], {"embedding": dino}, progress=bar
        ...     )
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._has_bar = self._stream.isatty() or auto.notebook_tqdm is not auto.std_tqdm
        self._bar: auto.tqdm | None = None
        self._last_written = time.monotonic()
        self._last_line = ""

    def __call__(self, progress: Progress) -> None:
        """Show the progress if it is due."""
        if progress.total_rows:
            self._show_bar(progress) if self._has_bar else self._write_line(progress)

    def _show_bar(self, progress: Progress) -> None:
        total = progress.total_rows
        if self._bar is None:
            self._bar = auto.tqdm(total=total, file=self._stream, bar_format="{desc} |{bar}|")
        elif self._bar.total != total:
            self._bar.reset(total)  # a notebook's bar has a copy of it
        self._bar.n = progress.done_rows
        self._bar.set_description_str(describe_progress(progress))

    def _write_line(self, progress: Progress) -> None:
        line = describe_progress(progress)
        is_due = time.monotonic() - self._last_written >= LOG_SECONDS
        is_end = progress.done_rows >= progress.total_rows
        if line != self._last_line and (is_due or is_end):
            self._last_written, self._last_line = time.monotonic(), line
            self._stream.write(line + "\n")
            self._stream.flush()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it is; later output starts on a new line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def describe_progress(progress: Progress) -> str:
    """Format share, rows done, rate, time left, and failures by status."""
    failed = describe_failures(progress.statuses)
    line: str = auto.tqdm.format_meter(
        progress.done_rows,
        progress.total_rows,
        progress.elapsed_seconds,
        unit=" rows",
        rate=progress.rows_per_second,
        bar_format=_LINE,
        postfix=f"failed: {failed}" if failed else "",
    )
    return line


def describe_failures(statuses: Mapping[str, Mapping[str, int]]) -> str:
    """Format failures by column and status, such as `embedding not_an_image 3`; '' for none."""
    return ", ".join(
        f"{column} {status} {count:,}"
        for column, counts in statuses.items()
        for status, count in counts.items()
        if status != Status.OK
    )
