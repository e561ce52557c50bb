"""What became of the rows: counted by status, and named beside their values."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from spark_vision.errors import RowFailure, Status


def count_statuses(outcomes: Sequence[Any]) -> dict[str, int]:
    """Count rows by status, as a progress report adds them up."""
    return dict(
        Counter(
            row.status.value if isinstance(row, RowFailure) else Status.OK.value for row in outcomes
        )
    )


def add_statuses(
    name: str, values: pa.Array, outcomes: Sequence[Any], more: Mapping[str, pa.Array] | None = None
) -> pa.Array:
    """Join values with their statuses: struct of the value, status, error and what more there is.

    Args:
        name: Of the value's field.
        values: One per row.
        outcomes: A RowFailure where the row failed.
        more: Further fields, by name.
    """
    failures = [row if isinstance(row, RowFailure) else None for row in outcomes]
    statuses = pa.array([Status.OK if each is None else each.status for each in failures])
    errors = pa.array([None if each is None else each.reason for each in failures], pa.string())
    fields = {name: values, "status": statuses.cast(pa.string()), "error": errors, **(more or {})}
    return pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
