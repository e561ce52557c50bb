"""What a file system refuses, said in one sentence with the place and the way out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from spark_vision.errors import SparkVisionError, TableError

_WAYS_OUT = (
    (
        r"No space left on device|DSQuotaExceeded|QuotaExceeded|Disk quota exceeded",
        "there is no space left",
        "make room and run again: what has been committed is not computed again",
    ),
    (
        r"Permission denied|AccessControlException|AccessDenied|403 Forbidden|Mkdirs failed|"
        r"Read-only file system|Operation not permitted|Unable to create|Cannot create",
        "the storage does not allow it",
        "give this user the right to write there, or choose another place",
    ),
)


@contextmanager
def explaining(what: str) -> Iterator[None]:
    """Turn an error of the storage into one that says what to do; leave others as they are.

    Args:
        what: What is tried in the block, such as `make the table /data/vectors`.

    Raises:
        TableError: There is no space, or no permission.
    """
    try:
        yield
    except SparkVisionError:
        raise
    except Exception as error:
        text = str(error)
        if "Traceback (most recent call last)" in text:
            # A row's own error, such as an image that may not be read.
            raise
        for pattern, said, way_out in _WAYS_OUT:
            found = re.search(rf".*(?:{pattern}).*", text)
            if found:
                line = " ".join(found[0].split())[:300]
                raise TableError(f"could not {what}: {said} ({line}); {way_out}") from error
        raise
