"""The one sentence for everything that a row may not read, so that errors are no map of a network.

It does not tell a private address from a metadata service, a redirect's target from the row's own
address, or a folder that exists from one that does not.
"""

from spark_vision.errors import RowFailure, Status


def refuse(shown: str) -> RowFailure:
    """Return the failure of a row whose address may not be read.

    Args:
        shown: The row's own address, redacted; never what it resolves or redirects to.
    """
    return RowFailure(
        Status.BLOCKED,
        "the address may not be read; "
        f"see allow_paths, allow_hosts, allow_networks, allow_schemes: {shown}",
    )
