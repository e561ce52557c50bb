"""Rows of similar length are computed together, and leave in their own order."""

import random
from dataclasses import dataclass

from spark_vision.errors import RowFailure, Status
from spark_vision.executor import length_bucketing
from spark_vision.executor.length_bucketing import compute_in_length_buckets

FAILED = RowFailure(Status.DECODE_ERROR, "broken")


@dataclass(frozen=True)
class Row:
    number: int
    length: int
    nbytes: int = 1


def rows(count, seed=0):
    random.seed(seed)
    return [Row(number, random.choice([20, 100, 500])) for number in range(count)]


def run(given, batch_size, portion=3):
    batches = []

    def compute(batch):
        batches.append(batch)
        return [row.number for row in batch]

    portions = [given[start : start + portion] for start in range(0, len(given), portion)]
    outcomes = compute_in_length_buckets(
        iter(portions), compute, lambda row: row.length, batch_size
    )
    return [outcome for few in outcomes for outcome in few], batches


def test_outcomes_come_in_the_order_of_the_rows():
    outcomes, batches = run(rows(101), 4)
    assert outcomes == list(range(101))
    assert sum(map(len, batches)) == 101


def test_batches_waste_little_on_padding():
    def padded(batches):
        return sum(max(row.length for row in batch) * len(batch) for batch in batches)

    given = rows(400)
    _, batches = run(given, 4)
    in_order = [given[start : start + 4] for start in range(0, len(given), 4)]
    needed = sum(row.length for row in given)
    assert padded(batches) < 1.05 * needed < 1.5 * needed < padded(in_order)
    assert sum(len(batch) < 4 for batch in batches) <= 1


def test_failed_rows_keep_their_places_and_are_not_gathered_without_bound():
    given = rows(40)
    mixed = [FAILED, *given[:5], FAILED, FAILED, *given[5:], FAILED]
    outcomes, _ = run(mixed, 4)
    assert [out for out in outcomes if out is not FAILED] == list(range(40))
    assert [place for place, out in enumerate(outcomes) if out is FAILED] == [0, 6, 7, 43]
    read = []

    def flood():
        for number in range(100_000):
            read.append(number)
            yield [FAILED]

    assert next(compute_in_length_buckets(flood(), list, len, 4))[0] is FAILED
    assert len(read) < 1000


def test_rows_are_read_only_as_far_as_rows_and_bytes_allow(monkeypatch):
    monkeypatch.setattr(length_bucketing, "WINDOW_BYTES", 100)
    read = []

    def portions(nbytes):
        read.clear()
        for number in range(100):
            read.append(number)
            yield [Row(number, 1, nbytes)]

    def first(nbytes):
        return next(
            compute_in_length_buckets(portions(nbytes), lambda b: [r.number for r in b], len_of, 2)
        )

    def len_of(row):
        return row.length

    assert first(1)[:1] == [0]
    assert len(read) == 16
    assert first(30) == [0, 1]
    assert len(read) == 4
    assert first(1000) == [0]
    assert len(read) == 1
