"""A row at fault fails alone; its neighbours get their own values."""

import pytest
import torch

from spark_vision.errors import RowFailure, Status
from spark_vision.executor.inference import compute_rows

FAILED = RowFailure(Status.NULL_INPUT, "null")


def run(rows, compute):
    return compute_rows(rows, compute, kind=lambda _: None)


def doubled(rows):
    return [[2.0 * row] for row in rows]


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
    ],
)
def test_a_batch_that_raises_is_halved_until_the_row_at_fault_is_alone(error, status):
    def compute(rows):
        if 5 in rows:
            raise error
        return doubled(rows)

    assert statuses(run([0, 1, 2, 3, 4, 5, 6], compute)) == [0, 2, 4, 6, 8, status, 12]


def test_a_batch_too_large_for_memory_is_computed_in_parts():
    sizes = []

    def compute(rows):
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("no memory")
        return doubled(rows)

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
