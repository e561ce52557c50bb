"""How many rows the next wave has: as many as are asked for, or as take a minute and a half."""

import time

from spark_vision.operators import EmbeddingOperator
from spark_vision.tables.plan import WritePlan

WAVE_SECONDS = 90.0
# Nothing is known of the first wave's rate. A caption takes as long as hundreds of vectors.
FIRST_ROWS = 4096
FIRST_CAPTIONS = 64
# The first wave also loads the model: its rate says too little.
_GROWTH = 8
_WAVE_BYTES = 4_000_000_000
_TOKENS = 256


class Pace:
    """Sizes a run's waves, and ends the run where it may take no more.

    Args:
        write: Its options say what is asked for; its columns, how many bytes a row takes.
    """

    def __init__(self, write: WritePlan) -> None:
        options = write.options
        self._fixed = options.rows_per_commit
        self._started = time.monotonic()
        self._left = options.max_rows
        self._has_begun = False
        self._deadline = (
            None if options.max_seconds is None else self._started + options.max_seconds
        )
        self._rows = FIRST_ROWS if _is_fast(write) else FIRST_CAPTIONS
        self._most = max(1, _WAVE_BYTES // _row_bytes(write))

    @property
    def is_over(self) -> bool:
        """Whether the run has done all that it may, which is a wave at least."""
        is_late = (
            self._has_begun and self._deadline is not None and time.monotonic() >= self._deadline
        )
        return is_late or self._left == 0

    @property
    def rows(self) -> int:
        """Rows of the next wave, at most."""
        wanted = min(self._rows, self._most) if self._fixed is None else self._fixed
        return wanted if self._left is None else min(wanted, self._left)

    def take_account(self, rows: int, seconds: float) -> None:
        """Learn what a wave had, and how long it took."""
        self._has_begun = True
        if self._left is not None:
            self._left = max(0, self._left - rows)
        if rows:
            wanted = int(rows / max(seconds, 0.001) * WAVE_SECONDS)
            self._rows = max(1, min(wanted, _GROWTH * self._rows))


def _is_fast(write: WritePlan) -> bool:
    return all(isinstance(each, EmbeddingOperator) for each in write.columns.values())


def _row_bytes(write: WritePlan) -> int:
    """Say about how many bytes a row takes in the table."""
    size = 1000
    for name, operator in write.columns.items():
        if isinstance(operator, EmbeddingOperator):
            vectors = _TOKENS if operator.effective_pooling == "tokens" else 1
            size += 4 * (write.identities[name].dimension or 0) * vectors
    return size
