"""The failures of rows whose bytes cannot be read, without details that could leak anything.

An exception's text may hold credentials. And errors must not map a network: `blocked_failure` does
not distinguish a private address from a metadata service, a redirect's target from the row's own
address, or an existing folder from a missing one.
"""

import os

from spark_vision.errors import RowFailure, Status

_REASONS: dict[type[Exception], str] = {
    FileNotFoundError: "no such file",
    PermissionError: "permission denied",
    IsADirectoryError: "is a directory",
    NotADirectoryError: "no such file",
}


def read_failure(error: Exception, shown: str) -> RowFailure:
    """Return the failure of a row from a file system's exception, without the exception's text.

    Args:
        error: The file system's exception.
        shown: The row's address, redacted.
    """
    if isinstance(error, TimeoutError):
        return RowFailure(Status.TIMEOUT, f"the file system did not respond in time: {shown}")
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return RowFailure(Status.READ_ERROR, f"{reason}: {shown}")
    number = getattr(error, "errno", None)
    reason = os.strerror(number) if isinstance(number, int) else type(error).__name__
    return RowFailure(Status.READ_ERROR, f"cannot be read ({reason}): {shown}")


def blocked_failure(shown: str) -> RowFailure:
    """Return the failure of a row whose address may not be read.

    Args:
        shown: The row's own address, redacted; never what it resolves or redirects to.
    """
    return RowFailure(
        Status.BLOCKED,
        "the address may not be read; "
        f"see allow_paths, allow_hosts, allow_networks, allow_schemes: {shown}",
    )
