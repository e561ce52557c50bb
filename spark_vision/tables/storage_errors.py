"""Explains errors of a storage or a table: one sentence with the cause and a solution."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from spark_vision.errors import SparkVisionError, TableError

_WAYS_OUT = (
    (
        r"No space left on device|DSQuotaExceeded|QuotaExceeded|Disk quota exceeded",
        "there is no space left",
        "free some space and run again: what has been committed is not computed again",
    ),
    (
        r"Permission denied|AccessControlException|AccessDenied|403 Forbidden|Mkdirs failed|"
        r"Read-only file system|Operation not permitted|Unable to create|Cannot create",
        "the storage does not allow it",
        "give this user the right to write there, or choose another place",
    ),
    (
        r"DELTA_CANNOT_MODIFY_APPEND_ONLY",
        "the table accepts only new rows, by its property delta.appendOnly",
        "remove the property, or do not change rows: no retry, recompute, delete_missing or new "
        "column",
    ),
    (
        r"DELTA_VIOLATE_CONSTRAINT_WITH_VALUES|CHECK constraint",
        "a row violates a constraint of the table",
        "leave such rows out of the source, or drop the constraint: ALTER TABLE … DROP CONSTRAINT",
    ),
    (
        r"DELTA_NOT_NULL_CONSTRAINT_VIOLATED|DELTA_MISSING_NOT_NULL_COLUMN_VALUE",
        "a column of the table must not be null",
        "add it to keep, or allow null: ALTER TABLE … ALTER COLUMN … DROP NOT NULL",
    ),
    (
        r"DELTA_UNSUPPORTED_DATA_TYPES|DELTA_GEOSPATIAL_NOT_SUPPORTED",
        "this version of Delta does not store a type",
        "cast the column, or leave it out",
    ),
    (
        r"DELTA_MULTIPLE_SOURCE_ROW_MATCHING_TARGET_ROW_IN_MERGE",
        "the source returned duplicate keys while it was read",
        "run again when the source no longer changes",
    ),
)


@contextmanager
def explaining(what: str) -> Iterator[None]:
    """Turn an error of the storage into one with advice; other errors pass unchanged.

    Args:
        what: What the block does, such as `make the table /data/vectors`.

    Raises:
        TableError: There is no space, no permission, or the table's own rules forbid it.
    """
    try:
        yield
    except SparkVisionError:
        raise
    except Exception as error:
        text = str(error)
        if "Traceback (most recent call last)" in text:
            # A row's own error, such as an image that the job may not read.
            raise
        for pattern, reason, way_out in _WAYS_OUT:
            found = re.search(rf".*(?:{pattern}).*", text)
            if found:
                # Without Java's names, and without values, which may be secret.
                line = re.sub(r"^.*?(?=\[DELTA_)| by row with values:", "", found[0])
                line = " ".join(line.split())[:300]
                raise TableError(f"could not {what}: {reason} ({line}); {way_out}") from error
        raise
