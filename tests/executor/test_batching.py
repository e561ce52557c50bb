"""Order, bounds and early ends of the pipeline between threads and model; its batches."""

import random
import threading
import time
from dataclasses import dataclass

import pytest

from spark_vision.errors import RowFailure, Status
from spark_vision.executor import batching
from spark_vision.executor.batching import (
    compute_in_length_buckets,
    gather,
    map_ahead,
    regroup,
    thread_pool,
)

FAILED = RowFailure(Status.DECODE_ERROR, "broken")


def test_results_come_in_the_order_of_the_items_though_later_ones_finish_first():
    def work(item):
        time.sleep(0.02 if item % 4 == 0 else 0)
        return item

    with thread_pool(4, "test") as pool:
        assert list(map_ahead(pool, work, range(40), lambda waiting: waiting < 8)) == list(
            range(40)
        )


def test_input_is_read_only_as_far_as_the_window_allows():
    read = []

    def items():
        for item in range(100):
            read.append(item)
            yield item

    with thread_pool(2, "test") as pool:
        results = map_ahead(pool, lambda item: item, items(), lambda waiting: waiting < 5)
        assert next(results) == 0
        assert len(read) == 5
        assert next(results) == 1
        assert len(read) == 6
        results.close()


def test_a_window_that_allows_nothing_still_makes_progress():
    with thread_pool(2, "test") as pool:
        assert list(map_ahead(pool, lambda item: -item, range(5), lambda _: False)) == [
            0, -1, -2, -3, -4,
        ]  # fmt: skip


def test_an_exception_is_raised_where_its_result_would_come():
    def work(item):
        if item == 3:
            raise KeyError(item)
        return item

    with thread_pool(2, "test") as pool:
        results = map_ahead(pool, work, range(10), lambda waiting: waiting < 4)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError):
            next(results)


def test_leaving_early_does_not_wait_for_running_work():
    release = threading.Event()
    started = time.monotonic()
    with thread_pool(2, "test") as pool:
        results = map_ahead(
            pool, lambda item: item or release.wait(60), [1, 0, 0], lambda waiting: waiting < 3
        )
        assert next(results) == 1
        results.close()
    assert time.monotonic() - started < 30
    release.set()


def test_batches_are_full_across_portions_and_failures_keep_their_place():
    portions = [[1, FAILED, 2], [3], [FAILED], [4, 5]]
    assert list(regroup(portions, 2)) == [[1, FAILED, 2], [3, FAILED, 4], [5]]


def test_a_run_of_failures_does_not_wait_for_a_full_batch():
    batches = list(regroup([[FAILED] * 100], 4))
    assert [len(batch) for batch in batches] == [32, 32, 32, 4]


def test_gather_joins_small_batches_and_lets_old_ones_go():
    assert list(gather([[1], [2], [3], [4]], 2, 60)) == [[1, 2], [3, 4]]
    assert list(gather([[1], [2], [3]], 100, 0)) == [[1], [2], [3]]
    assert list(gather([], 2, 60)) == []


@dataclass(frozen=True)
class Row:
    number: int
    length: int
    nbytes: int = 1


def rows(count, seed=0):
    random.seed(seed)
    return [Row(number, random.choice([20, 100, 500])) for number in range(count)]


def run(given, batch_size, portion=3, calls_in_flight=0):
    batches = []

    def compute(given):
        # Others are computed while a batch is.
        held = []
        for batch in given:
            batches.append(batch)
            held.append([row.number for row in batch])
            if len(held) > calls_in_flight:
                yield held.pop(0)
        yield from held

    portions = [given[start : start + portion] for start in range(0, len(given), portion)]
    outcomes = compute_in_length_buckets(
        iter(portions), compute, lambda row: row.length, batch_size
    )
    return [outcome for few in outcomes for outcome in few], batches


@pytest.mark.parametrize("calls_in_flight", [0, 3])
def test_outcomes_come_in_the_order_of_the_rows(calls_in_flight):
    outcomes, batches = run(rows(101), 4, calls_in_flight=calls_in_flight)
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

    assert next(compute_in_length_buckets(flood(), iter, len, 4))[0] is FAILED
    assert len(read) < 1000


def test_rows_are_read_only_as_far_as_rows_and_bytes_allow(monkeypatch):
    monkeypatch.setattr(batching, "WINDOW_BYTES", 100)
    read = []

    def portions(nbytes):
        read.clear()
        for number in range(100):
            read.append(number)
            yield [Row(number, 1, nbytes)]

    def first(nbytes):
        return next(compute_in_length_buckets(portions(nbytes), numbers_of, len_of, 2))

    def numbers_of(batches):
        return ([row.number for row in batch] for batch in batches)

    def len_of(row):
        return row.length

    assert first(1)[:1] == [0]
    assert len(read) == 16
    assert first(30) == [0, 1]
    assert len(read) == 4
    assert first(1000) == [0]
    assert len(read) == 1
