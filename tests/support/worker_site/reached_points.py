"""Points that the processes of a job stop at when they are asked to, until they are let go on.

A folder is all that they and the kill harness share: it asks for a point by a file `<name>.wanted`,
learns from `<name>.reached` that a process waits there, and lets it go on by removing the first.
"""

import time

LONGEST_WAIT_SECONDS = 300


def stop_at(folder, name):
    """Wait at a point for as long as it is wanted."""
    wanted = folder / f"{name}.wanted"
    asked_at = _time_of(wanted)
    if asked_at is None:
        return
    (folder / f"{name}.reached").touch()
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    # The harness may ask for the same point again at once, which is not for whoever waits here.
    while _time_of(wanted) == asked_at and time.monotonic() < deadline:
        time.sleep(0.005)


def _time_of(file):
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None
