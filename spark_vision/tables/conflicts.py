"""A change of a table is made again where another writer came in between, so many times at most."""

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
    r"DELTA_CREATE_TABLE_WITH_NON_EMPTY_LOCATION|"
    r"FIELD_ALREADY_EXISTS|DELTA_DUPLICATE_COLUMNS_FOUND|DELTA_CONSTRAINT_ALREADY_EXISTS"
)
_Result = TypeVar("_Result")


def retry_conflicts(
    location: TableLocation,
    change: Callable[[], _Result],
    left: str = "this one was not made",
    meet_conflict: Callable[[], None] = lambda: None,
) -> _Result:
    """Change a table, again where another writer came in between, a bounded number of times.

    Args:
        location: The table.
        change: Changes it, in one commit.
        left: What the error says of how things stand.
        meet_conflict: Is told before the next attempt.

    Raises:
        CommitConflictError: At every attempt one did.
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
                    f"{location.given} was changed by others during each of {ATTEMPT_COUNT} "
                    f"attempts to commit; {left}: run again when fewer writers are at work"
                ) from error
            logger.info("attempt %d to commit met another writer", attempt)
            meet_conflict()
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def is_conflict(error: BaseException) -> bool:
    """Whether a commit was refused because of another one, by classic sessions or by Connect."""
    return bool(_CONFLICT.search(f"{type(error).__name__} {error}"))
