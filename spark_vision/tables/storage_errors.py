"""Errors of a storage or a table: a conflict of two writers is retried, others are explained."""

import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from spark_vision.errors import CommitConflictError, SparkVisionError, TableError
from spark_vision.tables.location import TableLocation

logger = logging.getLogger(__name__)

ATTEMPT_COUNT = 10
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0
_CONFLICT = re.compile(
    r"DELTA_CONCURRENT_|Concurrent\w+Exception|DELTA_METADATA_CHANGED|MetadataChangedException|"
    r"DELTA_PROTOCOL_CHANGED|ProtocolChangedException|DELTA_SCHEMA_CHANGE_SINCE_ANALYSIS|"
    # Two writers make one table, or add one column or one constraint, at once.
    r"DELTA_CREATE_TABLE_WITH_NON_EMPTY_LOCATION|another writer is creating|"
    r"FIELD_ALREADY_EXISTS|DELTA_DUPLICATE_COLUMNS_FOUND|DELTA_CONSTRAINT_ALREADY_EXISTS"
)
_Result = TypeVar("_Result")
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


def retry_conflicts(
    location: TableLocation,
    change: Callable[[], _Result],
    left: str = "this change was not committed",
    meet_conflict: Callable[[], None] = lambda: None,
) -> _Result:
    """Change a table, and retry after a conflict, a limited number of times.

    Args:
        location: The table.
        change: Changes it, in one commit.
        left: The error's clause on the state that is left.
        meet_conflict: Called after a conflict, before the next attempt.

    Raises:
        CommitConflictError: Every attempt met a conflict.
    """
    pause = _FIRST_PAUSE_SECONDS
    for attempt in range(1, ATTEMPT_COUNT + 1):
        try:
            return change()
        except Exception as error:
            if not is_conflict(error):
                raise
            if attempt == ATTEMPT_COUNT:
                raise CommitConflictError(
                    f"{location.given} was changed by other writers during each of "
                    f"{ATTEMPT_COUNT} commit attempts; {left}: run again with fewer writers"
                ) from error
            logger.info("commit attempt %d had a conflict with another writer", attempt)
            meet_conflict()
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def is_conflict(error: BaseException) -> bool:
    """Whether a commit failed because of another one, in a classic or a Connect session."""
    return bool(_CONFLICT.search(f"{type(error).__name__} {error}"))


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
