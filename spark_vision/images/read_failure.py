"""What a row says of a file that could not be read: its kind, never a file system's own words."""

import os

from spark_vision.errors import RowFailure, Status

_SAID: dict[type[Exception], str] = {
    FileNotFoundError: "no such file",
    PermissionError: "permission denied",
    IsADirectoryError: "is a directory",
    NotADirectoryError: "no such file",
}


def read_failure(error: Exception, shown: str) -> RowFailure:
    """Return the failure of a row, whose exception's text may hold credentials.

    Args:
        error: What the file system raised.
        shown: The row's address, redacted.
    """
    if isinstance(error, TimeoutError):
        return RowFailure(Status.TIMEOUT, f"the file system did not answer in time: {shown}")
    for kind, said in _SAID.items():
        if isinstance(error, kind):
            return RowFailure(Status.READ_ERROR, f"{said}: {shown}")
    number = getattr(error, "errno", None)
    said = os.strerror(number) if isinstance(number, int) else type(error).__name__
    return RowFailure(Status.READ_ERROR, f"cannot be read ({said}): {shown}")
