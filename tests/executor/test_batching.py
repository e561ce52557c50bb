"""Order, bounds and early ends of the pipeline between the threads and the model."""

import threading
import time

import pytest

from spark_vision.errors import RowFailure, Status
from spark_vision.executor.batching import gather, map_ahead, regroup, thread_pool

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
