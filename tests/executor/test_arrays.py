"""Vectors reach Arrow whole, and failed rows get what `on_error` says."""

import numpy as np
import pytest
import torch

from spark_vision.errors import RowFailure, Status
from spark_vision.executor.arrays import TOKENS_TYPE, VECTOR_TYPE, build_array, finite_rows
from spark_vision.executor.failures import count_statuses

FAILED = RowFailure(Status.TOO_LARGE, "over the limit")
ROWS = [np.array([1, 2], np.float32), FAILED, np.array([3, 4], np.float32)]


@pytest.mark.parametrize(
    ("on_error", "expected"),
    [("null", [[1, 2], None, [3, 4]]), ("zero", [[1, 2], [0, 0], [3, 4]])],
)
def test_failed_row_is_null_or_zero(on_error, expected):
    array = build_array(ROWS, 2, on_error, tokens=False, with_status=False)
    array.validate(full=True)
    assert array.type == VECTOR_TYPE
    assert array.to_pylist() == expected


def test_status_says_why():
    array = build_array(ROWS, 2, "zero", tokens=False, with_status=True)
    array.validate(full=True)
    assert array.to_pylist() == [
        {"embedding": [1, 2], "status": "ok", "error": None},
        {"embedding": [0, 0], "status": "too_large", "error": "over the limit"},
        {"embedding": [3, 4], "status": "ok", "error": None},
    ]


def test_tokens_are_lists_of_vectors_of_their_own_count():
    rows = [np.ones((3, 2), np.float32), FAILED, np.zeros((1, 2), np.float32)]
    array = build_array(rows, 2, "null", tokens=True, with_status=False)
    array.validate(full=True)
    assert array.type == TOKENS_TYPE
    assert array.to_pylist() == [[[1, 1]] * 3, None, [[0, 0]]]


def test_all_rows_failed_and_no_rows():
    assert build_array([FAILED], 2, "null", tokens=False, with_status=False).to_pylist() == [None]
    assert len(build_array([], 2, "null", tokens=False, with_status=True)) == 0


def test_statuses_are_counted():
    assert count_statuses(ROWS) == {"ok": 2, "too_large": 1}


def test_nonfinite_vectors_fail_their_rows():
    vectors = torch.tensor([[1, 1.0], [float("nan"), 1], [1, float("inf")], [4, 1]])
    rows = finite_rows(vectors)
    assert [isinstance(row, RowFailure) and row.status for row in rows] == [
        False, Status.NONFINITE, Status.NONFINITE, False,
    ]  # fmt: skip
    assert rows[3].tolist() == [4, 1]
