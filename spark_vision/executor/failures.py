"""Counts failed rows, and decides whether they fail their task: never, at once, or above a rate.

An error identifies a row by the key columns of a table write, or else by its position in the task
and its URL if it has one.
"""

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from spark_vision.errors import FailureRateError, RowFailure, Status, in_one_line
from spark_vision.executor.arrays import read_texts
from spark_vision.executor.batching import OUTPUT_ROW_COUNT, OUTPUT_WAIT_SECONDS, gather
from spark_vision.images.urls import redact
from spark_vision.operators import Operator

# The failure rate of fewer rows means little: the first row may fail in any source.
MIN_JUDGED_ROWS = 100
_SHOWN_STATUSES = 5
# What can delimit a password in a URL. Numbers, words, dates and times have none of it.
_DELIMITER = re.compile(r"[/\\@?#&;=%]|(?<!\d):|:(?!\d)")

Columns: TypeAlias = pa.Array | tuple[pa.Array, ...]
# Called with the number of rows by status.
CountStatuses = Callable[[dict[str, int]], None]


def count_statuses(outcomes: Sequence[Any]) -> dict[str, int]:
    """Count rows by status."""
    return dict(
        Counter(
            row.status.value if isinstance(row, RowFailure) else Status.OK.value for row in outcomes
        )
    )


class RowNames:
    """Remembers how to identify the rows that are in flight.

    Args:
        operators: What is computed.
        keys: Names of the key values. With keys, the last array of each batch lists their values
            for each row; without, batches have no such array.
    """

    def __init__(self, operators: Sequence[Operator], keys: Sequence[str] = ()) -> None:
        self._keys = tuple(keys)
        self._are_asked_for = any(each.on_error == "raise" for each in operators)
        first = operators[0]
        self._are_addresses = first.reads_urls
        # The first row of each batch, its length, and the array that identifies its rows.
        self._held: deque[tuple[int, int, pa.Array | None]] = deque()
        self._read_count = 0

    def watch(self, batches: Iterable[Columns]) -> Iterator[Columns]:
        """Pass batches through without their keys."""
        for batch in batches:
            arrays = batch if isinstance(batch, tuple) else (batch,)
            named = arrays[-1] if self._keys else self._addresses(arrays[0])
            if self._are_asked_for:
                self._held.append((self._read_count, len(arrays[0]), named))
                self._read_count += len(arrays[0])
            read = arrays[:-1] if self._keys else arrays
            yield read if len(read) > 1 else read[0]

    def forget(self, end: int) -> None:
        """Forget the rows before `end`."""
        while self._held and sum(self._held[0][:2]) <= end:
            self._held.popleft()

    def name(self, row: int) -> str:
        """Describe a row that is not forgotten, in one printable line without secrets."""
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
    return redact(key) if _DELIMITER.search(key) else key


class FailurePolicy:
    """Checks the outcomes of one operator in one task, in the order of the rows.

    Args:
        operator: Defines `on_error` and `max_failure_rate`.
        names: Identifies the task's rows.
    """

    def __init__(self, operator: Operator, names: RowNames) -> None:
        self._raises = operator.on_error == "raise"
        self._max_rate = operator.max_failure_rate
        self._names = names
        self._row_count = 0
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def check(self, outcomes: Sequence[Any]) -> None:
        """Check the next rows.

        Raises:
            RowFailure: The first failure with `on_error="raise"`; identifies its row.
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


def check_rows(
    streams: Sequence[Iterator[list[Any]]],
    operators: Sequence[Operator],
    names: RowNames,
    counts: Sequence[CountStatuses] = (),
) -> Iterator[list[tuple[Any, ...]]]:
    """Gather outcomes into output batches, and count and check their rows.

    Args:
        streams: Outcomes in the order of the rows, for each operator; their lists may differ in
            length.
        operators: What is computed.
        names: Identifies the rows.
        counts: One callback per operator, or none; called once per output batch.

    Yields:
        One sequence of outcomes per operator.

    Raises:
        RowFailure: As `FailurePolicy.check`.
        FailureRateError: As `FailurePolicy.check`.
    """
    policies = [FailurePolicy(operator, names) for operator in operators]
    done = 0
    for rows in gather(_align(streams), OUTPUT_ROW_COUNT, OUTPUT_WAIT_SECONDS):
        columns = list(zip(*rows, strict=True))
        for count, column in zip(counts, columns, strict=False):
            count(count_statuses(column))
        for policy, column in zip(policies, columns, strict=True):
            policy.check(column)
        done += len(rows)
        names.forget(done)
        yield columns


def _align(streams: Sequence[Iterator[list[Any]]]) -> Iterator[list[tuple[Any, ...]]]:
    """Zip streams of lists row by row, whatever the lengths of their lists."""
    held: list[deque[Any]] = [deque() for _ in streams]
    while True:
        for rows, stream in zip(held, streams, strict=True):
            while not rows:
                portion = next(stream, None)
                if portion is None:
                    return
                rows.extend(portion)
        count = min(map(len, held))
        yield [tuple(rows.popleft() for rows in held) for _ in range(count)]


def is_rate_exceeded(counts: Mapping[str, int], max_rate: float | None) -> bool:
    """Return whether the failure rate is too high; null rows are ignored."""
    ok = counts.get(Status.OK.value, 0)
    judged = sum(counts.values()) - counts.get(Status.NULL_INPUT.value, 0)
    return max_rate is not None and judged >= MIN_JUDGED_ROWS and judged - ok > max_rate * judged


def check_failure_rate(
    counts: Mapping[str, int], max_rate: float | None, examples: Mapping[str, str]
) -> None:
    """Raise an error if the failure rate is too high.

    Args:
        counts: Number of rows by status.
        max_rate: The operator's maximum; None allows any rate.
        examples: An example error by status.

    Raises:
        FailureRateError: Lists the most common statuses, their counts and an example of each.
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
    summaries = [
        f"{status} {count:,} ({examples.get(status, 'no example')})"
        for status, count in failed.most_common(_SHOWN_STATUSES)
    ]
    raise FailureRateError(
        f"{sum(failed.values()):,} of {judged:,} rows failed, more than max_failure_rate="
        f"{max_rate:g} allows: {'; '.join(summaries)}"
    )
