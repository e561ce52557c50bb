"""Retries a commit after a conflict with another writer, a limited number of times."""

import logging
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from spark_vision.errors import CommitConflictError
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
