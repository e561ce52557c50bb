"""What failed rows mean for their task: nothing, the end at the first, or the end at too many.

Rows are named only where an error needs their names: by the key that a table's write passes along,
else by their place in the task, and by their address where they have one.
"""

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from spark_vision.errors import FailureRateError, RowFailure, Status, in_one_line
from spark_vision.executor.outcomes import count_statuses
from spark_vision.executor.texts import read_texts
from spark_vision.images.urls import redact
from spark_vision.operators import Operator

# Of fewer rows no share is judged: the first one may fail in any source.
LEAST_JUDGED_ROWS = 100
_SHOWN_STATUSES = 5
# A number, a word, a date and a time of day: none of the marks that stand around a password.
_PLAIN_KEY = re.compile(r"(?:[^:/\\@?#&;=%]|(?<=\d):(?=\d))*+")

Columns: TypeAlias = pa.Array | tuple[pa.Array, ...]


class RowNames:
    """What the rows between their reading and their end are called.

    Args:
        operators: What is computed of them.
        keys: What the values are called that the last array of each batch lists for each row; with
            none, batches have no such array.
    """

    def __init__(self, operators: Sequence[Operator], keys: Sequence[str] = ()) -> None:
        self._keys = tuple(keys)
        self._are_asked_for = any(each.on_error == "raise" for each in operators)
        first = operators[0]
        self._are_addresses = first.reads_urls
        # The first row of each batch, its length, and what names its rows.
        self._held: deque[tuple[int, int, pa.Array | None]] = deque()
        self._read_count = 0

    def watch(self, batches: Iterable[Columns]) -> Iterator[Columns]:
        """Give batches on, without their keys."""
        for batch in batches:
            arrays = batch if isinstance(batch, tuple) else (batch,)
            named = arrays[-1] if self._keys else self._addresses(arrays[0])
            if self._are_asked_for:
                self._held.append((self._read_count, len(arrays[0]), named))
                self._read_count += len(arrays[0])
            read = arrays[:-1] if self._keys else arrays
            yield read if len(read) > 1 else read[0]

    def forget(self, end: int) -> None:
        """Forget the rows before one."""
        while self._held and sum(self._held[0][:2]) <= end:
            self._held.popleft()

    def name(self, row: int) -> str:
        """Name a row that is not forgotten, in one printable line without secrets."""
        place = f"row {row + 1:,} of its task"
        start, _, named = next(each for each in self._held if row < each[0] + each[1])
        if named is None:
            return place
        here = named.slice(row - start, 1)
        if not self._keys:
            (address,) = read_texts(here)
            return in_one_line(f"{place} ({'null' if address is None else redact(address)})")
        values = zip(self._keys, map(_show_key, read_texts(here.flatten())), strict=True)
        return in_one_line(", ".join(f"{key}={value}" for key, value in values))

    def _addresses(self, images: pa.Array) -> pa.Array | None:
        is_text = pa.types.is_string(images.type) or pa.types.is_large_string(images.type)
        return images if is_text and self._are_addresses else None


def _show_key(key: str | None) -> str:
    if key is None:
        return "null"
    return key if _PLAIN_KEY.fullmatch(key) else redact(key)


class FailurePolicy:
    """Watches the outcomes of one operator in one task, in the order of the rows.

    Args:
        operator: Its `on_error` and `max_failure_rate` count.
        names: Of the task's rows.
    """

    def __init__(self, operator: Operator, names: RowNames) -> None:
        self._raises = operator.on_error == "raise"
        self._max_rate = operator.max_failure_rate
        self._names = names
        self._row_count = 0
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def check(self, outcomes: Sequence[Any]) -> None:
        """Look at the next rows.

        Raises:
            RowFailure: With `on_error="raise"`, the first failure, with its row's name.
            FailureRateError: Too many rows of the task have failed.
        """
        if not self._raises and self._max_rate is None:
            return
        failures = [
            (row, each) for row, each in enumerate(outcomes) if isinstance(each, RowFailure)
        ]
        if self._raises and failures:
            row, failure = failures[0]
            raise RowFailure(
                failure.status, failure.reason, self._names.name(self._row_count + row)
            )
        self._row_count += len(outcomes)
        for _, failure in failures:
            self._examples.setdefault(failure.status.value, failure.reason)
        self._counts.update(count_statuses(outcomes))
        check_failure_rate(self._counts, self._max_rate, self._examples)


def is_rate_exceeded(counts: Mapping[str, int], max_rate: float | None) -> bool:
    """Whether more rows failed than may; null ones count neither as failed nor as computed."""
    ok = counts.get(Status.OK.value, 0)
    judged = sum(counts.values()) - counts.get(Status.NULL_INPUT.value, 0)
    return max_rate is not None and judged >= LEAST_JUDGED_ROWS and judged - ok > max_rate * judged


def check_failure_rate(
    counts: Mapping[str, int], max_rate: float | None, examples: Mapping[str, str]
) -> None:
    """Raise where more rows failed than may.

    Args:
        counts: Rows by status.
        max_rate: Of the operator; None allows all.
        examples: An error of a row by its status.

    Raises:
        FailureRateError: With the commonest statuses, their counts and an example of each.
    """
    if not is_rate_exceeded(counts, max_rate):
        return
    failed = Counter(
        {
            status: count
            for status, count in counts.items()
            if status not in (Status.OK.value, Status.NULL_INPUT.value)
        }
    )
    judged = sum(failed.values()) + counts.get(Status.OK.value, 0)
    said = [
        f"{status} {count:,} ({examples.get(status, 'no example')})"
        for status, count in failed.most_common(_SHOWN_STATUSES)
    ]
    raise FailureRateError(
        f"{sum(failed.values()):,} of {judged:,} rows failed, more than max_failure_rate="
        f"{max_rate:g} allows: {'; '.join(said)}"
    )
