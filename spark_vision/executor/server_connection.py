"""How a worker finds the model server of its place, and starts it where there is none.

Whoever finds nobody listening tries the lock: who gets it starts the server, the others look again.
"""

import logging
import os
import signal
import time
from contextlib import suppress

from spark_vision import errors
from spark_vision.errors import ModelServerError
from spark_vision.executor.channel import Channel
from spark_vision.executor.server_lock import ServerLock
from spark_vision.executor.server_place import ServerPlace, read_pid, sweep
from spark_vision.executor.server_start import ServerOrder, start_server

logger = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 0.05
# Spark tries a task four times at once: a load that fails is not tried as often.
FAILURE_STANDS_SECONDS = 30.0
# A server that was killed in its load (by the kernel, short of memory) may have had bad luck.
MOST_STARTS = 3
# An ending server removes its folder when it is empty, also under one who begins to use it.
MOST_FOLDER_TRIES = 10
# Beyond the load's own deadline, which a stopped process cannot keep.
GRACE_SECONDS = 5.0
# A server that another has just started has a load of its own before it.
MOST_WAITS = 3


class SharingUnavailableError(Exception):
    """This place allows no model server; the worker can still hold the model itself."""


def connect(order: ServerOrder, place: ServerPlace) -> Channel:
    """Connect to the server of a place, starting it first where there is none.

    Args:
        order: What the server is started with.
        place: Where it is found.

    Raises:
        SharingUnavailableError: A server cannot be started here.
        SparkVisionError: The load failed, here or a moment ago.
    """
    seconds = order.load_seconds + GRACE_SECONDS
    for _ in range(MOST_WAITS):
        channel = _connect_until(order, place, time.monotonic() + seconds)
        if channel is not None:
            return channel
        silent_seconds = time.time() - place.pulse() / 1e9
        if silent_seconds >= order.load_seconds:
            kill(place)
            break
        seconds = order.load_seconds - max(0.0, silent_seconds) + GRACE_SECONDS
    raise ModelServerError(
        f"the model server for {order.folder} did not answer within {order.load_seconds:g} s; "
        f"its log: {place.log}"
    )


def kill(place: ServerPlace) -> None:
    """Kill the server that holds a place's lock."""
    pid = read_pid(place)
    # It may end, and its files with it, at any moment.
    with suppress(OSError):
        lock = ServerLock.take(place.lock) if place.lock.exists() else None
        if lock is not None:
            lock.close()
        elif pid is not None:
            os.kill(pid, signal.SIGKILL)


def _connect_until(order: ServerOrder, place: ServerPlace, deadline: float) -> Channel | None:
    while time.monotonic() < deadline:
        try:
            connection = place.connect()
            channel = Channel(connection) if connection else None
        except OSError as error:
            raise SharingUnavailableError(f"its socket cannot be used: {error}") from error
        if channel is None:
            if not _start(order, place):
                time.sleep(LOOK_AGAIN_SECONDS)
            continue
        try:
            # Answered when the model is loaded; an end of file says that its load failed.
            if channel.wait(deadline - time.monotonic()) and channel.receive() is not None:
                return channel
        except ConnectionError as error:
            logger.info("the model server ended before its hello: %s", error)
        channel.close()
    return None


def _start(order: ServerOrder, place: ServerPlace) -> bool:
    """Start the server, unless another has the lock: False then."""
    lock = _take_lock(place)
    if lock is None:
        return False
    try:
        _judge_last(order, place, lock)
        try:
            sweep(place)
            start_server(order, place, lock)
        except OSError as error:
            with suppress(OSError):
                place.remove(lock)
            raise SharingUnavailableError(f"it cannot be started: {error}") from error
    finally:
        lock.close()
    return True


def _take_lock(place: ServerPlace) -> ServerLock | None:
    trouble: OSError | None = None
    for _ in range(MOST_FOLDER_TRIES):
        try:
            place.prepare()
            return ServerLock.take(place.lock)
        except FileNotFoundError as error:  # an ending server removed its empty folder
            trouble = error
        except OSError as error:
            trouble = error
            break
    raise SharingUnavailableError(f"its folder cannot be used: {trouble}") from trouble


def _judge_last(order: ServerOrder, place: ServerPlace, lock: ServerLock) -> None:
    if lock.read().get("starts", 0) >= MOST_STARTS:
        lock.write_failure(
            ModelServerError.__name__,
            f"the model server ended {MOST_STARTS} times while it loaded "
            f"{order.folder} on {order.device}; its log: {place.log}",
        )
    failure = lock.recent_failure(FAILURE_STANDS_SECONDS)
    if failure is not None:
        raise getattr(errors, failure["kind"])(failure["message"])
