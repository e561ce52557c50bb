"""A row at fault fails alone; its neighbours get their own values."""

import threading

import pytest
import torch

from spark_vision.errors import FatalBatchError, RowFailure, Status
from spark_vision.executor import inference
from spark_vision.executor.inference import compute_batches, compute_rows
from spark_vision.executor.model_access import ReachedModel

FAILED = RowFailure(Status.NULL_INPUT, "null")


def run(rows, compute):
    return compute_rows(rows, compute, kind=lambda _: None)


def doubled(rows):
    return [[2.0 * row] for row in rows]


def with_memory_for(row_count):
    """The sizes of the batches that a function gets, and the function, which has little memory."""
    sizes = []

    def compute(rows):
        sizes.append(len(rows))
        if len(rows) > row_count:
            raise torch.OutOfMemoryError("no memory")
        return doubled(rows)

    return sizes, compute


def statuses(outcomes):
    return [row.status if isinstance(row, RowFailure) else float(row[0]) for row in outcomes]


def test_failed_rows_keep_their_place_and_never_reach_the_model():
    assert statuses(run([1, FAILED, 3], doubled)) == [2, Status.NULL_INPUT, 6]
    assert statuses(run([FAILED], doubled)) == [Status.NULL_INPUT]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("no memory"), Status.OUT_OF_MEMORY),
        (RuntimeError("bad kernel"), Status.MODEL_ERROR),
        (ValueError("bad value"), Status.MODEL_ERROR),
        (FatalBatchError("the server ended"), Status.MODEL_ERROR),
    ],
)
def test_a_batch_that_raises_is_halved_until_the_row_at_fault_is_alone(error, status):
    def compute(rows):
        if 5 in rows:
            raise error
        return doubled(rows)

    assert statuses(run([0, 1, 2, 3, 4, 5, 6], compute)) == [0, 2, 4, 6, 8, status, 12]


def test_a_batch_too_large_for_memory_is_computed_in_parts():
    sizes, compute = with_memory_for(3)
    assert statuses(run(list(range(10)), compute)) == [2.0 * row for row in range(10)]
    assert max(sizes) == 10
    assert sizes.count(3) + sizes.count(2) == 4


def test_a_broken_device_fails_the_task_and_not_the_rows():
    def compute(rows):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered", 710)

    with pytest.raises(torch.AcceleratorError):
        run([1, 2], compute)


def test_rows_of_different_kinds_never_meet():
    seen = []

    def compute(rows):
        seen.append(rows)
        return doubled(rows)

    outcomes = compute_rows([1, 2, 3, 4], compute, kind=lambda row: row % 2)
    assert statuses(outcomes) == [2, 4, 6, 8]
    assert seen == [[1, 3], [2, 4]]


def test_what_did_not_fit_is_remembered_for_its_kind_and_one_row_of_its_own_size_is_not():
    sizes, compute = with_memory_for(3)
    fitting = {}
    for _ in range(2):
        compute_rows(list(range(8)), compute, kind=lambda _: "shape", fitting=fitting)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert fitting == {"shape": 2}
    sizes.clear()
    for _ in range(2):
        compute_rows(list(range(4)), compute, kind=lambda _: None, fitting=fitting)
    assert sizes == [4, 2, 2, 4, 2, 2]


class Pixels:
    """A row of so many bytes."""

    def __init__(self, number, nbytes=1):
        self.number = number
        self.nbytes = nbytes


def reached(call_count):
    return ReachedModel(None, None, call_count)


def numbers(batches):
    return [outcome for batch in batches for outcome in batch]


def test_calls_overlap_and_outcomes_keep_their_order():
    # Each call waits for the other two.
    meeting = threading.Barrier(3)

    def compute(rows):
        meeting.wait(60)
        return [row.number for row in rows]

    batches = [[Pixels(2 * index), FAILED, Pixels(2 * index + 1)] for index in range(9)]
    outcomes = numbers(compute_batches(reached(3), batches, compute, kind=lambda _: None))
    assert [each for each in outcomes if each is not FAILED] == list(range(18))
    assert [place for place, each in enumerate(outcomes) if each is FAILED] == list(range(1, 27, 3))


@pytest.mark.parametrize(("nbytes", "taken_count"), [(1, 5), (40, 3), (1000, 2)])
def test_the_bytes_of_calls_in_flight_are_bounded(monkeypatch, nbytes, taken_count):
    monkeypatch.setattr(inference, "CALLS_BYTES", 120)
    taken = []

    def batches():
        for number in range(20):
            taken.append(number)
            yield [Pixels(number, nbytes)]

    outcomes = compute_batches(
        reached(4), batches(), lambda rows: [row.number for row in rows], kind=lambda _: None
    )
    assert next(outcomes) == [0]
    assert len(taken) == taken_count
    outcomes.close()


def test_a_task_that_ends_early_waits_for_no_call():
    release = threading.Event()

    def compute(rows):
        if rows[0].number:
            release.wait(60)
        return [row.number for row in rows]

    batches = [[Pixels(number)] for number in range(5)]
    outcomes = compute_batches(reached(2), batches, compute, kind=lambda _: None)
    assert next(outcomes) == [0]
    outcomes.close()
    assert not release.is_set()
    release.set()
