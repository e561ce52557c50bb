"""Fetched bytes wait their turn, and never for one another."""

import threading
import time

from spark_vision.executor.byte_budget import ByteBudget


def test_a_later_row_waits_until_bytes_come_back():
    budget = ByteBudget(100)
    taken = threading.Event()

    def later():
        with budget.hold(2) as take:
            take(60)
            taken.set()

    with budget.hold(1) as take:
        take(90)
        thread = threading.Thread(target=later)
        thread.start()
        assert not taken.wait(0.2)
    assert taken.wait(5)
    thread.join(5)


def test_the_oldest_row_goes_on_though_the_budget_is_spent():
    budget = ByteBudget(10)
    with budget.hold(1) as take:
        take(1_000)
        take(1_000)


def test_many_rows_larger_than_the_budget_all_end():
    budget = ByteBudget(100)
    ended = []
    peak = [0]

    def fetch(order):
        with budget.hold(order) as take:
            for _ in range(8):
                take(30)
                peak[0] = max(peak[0], sum(budget._held_bytes.values()))
                time.sleep(0.001)
        ended.append(order)

    threads = [threading.Thread(target=fetch, args=(order,)) for order in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(ended) == list(range(12))
    # The oldest row alone may exceed the budget, by what it holds itself.
    assert peak[0] <= 100 + 8 * 30


def test_closing_frees_those_who_wait():
    budget = ByteBudget(10)
    freed = threading.Event()

    def later():
        with budget.hold(2) as take:
            take(50)
            freed.set()

    with budget.hold(1) as take:
        take(10)
        thread = threading.Thread(target=later)
        thread.start()
        assert not freed.wait(0.1)
        budget.close()
        assert freed.wait(5)
    thread.join(5)
