"""Outcomes of rows: counts by status, and structs of value, status and error."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from spark_vision.errors import RowFailure, Status


def count_statuses(outcomes: Sequence[Any]) -> dict[str, int]:
    """Count rows by status."""
    return dict(
        Counter(
            row.status.value if isinstance(row, RowFailure) else Status.OK.value for row in outcomes
        )
    )


def add_statuses(
    name: str, values: pa.Array, outcomes: Sequence[Any], more: Mapping[str, pa.Array] | None = None
) -> pa.Array:
    """Build structs of value, status, error and additional fields.

    Args:
        name: Name of the value field.
        values: One value per row.
        outcomes: One outcome per row; a RowFailure if the row failed.
        more: Additional fields, by name.
    """
    failures = [row if isinstance(row, RowFailure) else None for row in outcomes]
    statuses = pa.array([Status.OK if each is None else each.status for each in failures])
    errors = pa.array([None if each is None else each.reason for each in failures], pa.string())
    fields = {name: values, "status": statuses.cast(pa.string()), "error": errors, **(more or {})}
    return pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
