"""Brings two writers to one point at the same time."""

import threading

WAIT_SECONDS = 120


def meet_after(function):
    """The function; the first call of each of two threads waits until the other's is done too."""
    together, met = threading.Barrier(2), threading.local()

    def call_and_meet(*args):
        result = function(*args)
        if not hasattr(met, "once"):
            met.once = True
            together.wait(WAIT_SECONDS)
        return result

    return call_and_meet
