"""The process that holds a model for all tasks of one executor: one per device, checkpoint, dtype.

Batches are computed one at a time on a GPU, and on a CPU as many as the executor runs tasks, each
on the cores of its task.

The protocol, over a Unix socket of packets (`channel.py` says what a packet holds):

    worker                                    server
      connect                            ->     accepted once the model is loaded
                                         <-   {"hello": 1}
      {"method", "arguments"}, tensors   ->     waits its turn: first come, first served
                                         <-   {}, tensors                    the result
                                         <-   {"error": {"kind", "message"}}   the model's error
      {"method": "placement"}            ->
                                         <-   {"placement": {...}}
      end of file                        ->     forgets the client

States. A server *loads* (its lock is held, its socket listens, nobody is accepted), *serves*, and
*ends*. A client has one call in flight; one that sends another before its answer is cut off.

Who closes what. A client closes its connection when it likes, also in the middle of a call: a call
that waits is dropped, and so is the answer to one that is computed. The server closes a connection
only on what is no message, which it says first, and by ending. It ends when the executor's process
ends; after its idle time without a call, whoever is connected; when its device is broken; when a
call takes too long; when its lock's file or its socket has vanished, as from a temporary folder
that is cleaned; and when its load fails or takes too long, with the cause in the lock's file. It
unlinks its own files first and leaves at once: a normal exit with torch loaded takes a second more.

A client that sees an end of file, a reset, or nobody listening goes back to connecting and sends
its call again: calls have no effect but their answer. A client that sees no pulse (the time of the
lock's file, touched before and after each call) for its deadline kills the server first.
"""

import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from spark_vision.errors import ModelServerError, SparkVisionError
from spark_vision.executor.server_lock import ServerLock
from spark_vision.executor.server_place import ServerPlace
from spark_vision.executor.server_start import ServerOrder

logger = logging.getLogger("spark_vision.model_server")

# How long it takes at most to see that the server's files have vanished.
LOOK_SECONDS = 2.0


def main(order_text: str, folder: str, name: str, lock: str, listener: str) -> NoReturn:
    """Load the model and serve it; the arguments are those of `server_start`."""
    # The worker's mask is inherited, and may block what shall end this process.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    order = ServerOrder.from_json(order_text)
    place = ServerPlace(Path(folder), name)
    held = ServerLock(int(lock))
    held.write({**held.read(), "pid": os.getpid()})
    loaded = threading.Event()
    # Before torch is imported, which takes seconds in which the executor can end as well.
    watch = threading.Thread(target=_watch, args=(order, place, held, loaded), daemon=True)
    watch.start()
    try:
        from spark_vision.executor.serving import load, serve_clients

        model = load(order)
    except Exception as error:
        logger.exception("the load failed")
        _fail(order, place, held, error)
    held.write({"pid": os.getpid(), "starts": 0})
    loaded.set()
    # Listening again makes this process, and not the worker, the peer that clients see.
    sock = socket.socket(fileno=int(listener))
    sock.listen()
    why, code = serve_clients(model, sock, held, order)
    _end(place, held, why, code)


def _watch(
    order: ServerOrder, place: ServerPlace, lock: ServerLock, loaded: threading.Event
) -> None:
    """End this process when it has no reason to go on; it never runs without this watch."""
    try:
        why = _wait_for_end(order, place, lock, loaded)
    except TimeoutError as error:
        _fail(order, place, lock, error)
    except BaseException:
        logger.exception("the watch failed")
        _end(place, lock, "nothing watches it", 1)
    _end(place, lock, why)


def _wait_for_end(
    order: ServerOrder, place: ServerPlace, lock: ServerLock, loaded: threading.Event
) -> str:
    deadline = time.monotonic() + order.load_seconds
    poll = select.poll()
    try:
        poll.register(order.executor.open_descriptor(), select.POLLIN)
    except ProcessLookupError:
        return "the executor has ended"
    while True:
        left = LOOK_SECONDS if loaded.is_set() else deadline - time.monotonic()
        if poll.poll(1000 * max(0.0, min(left, LOOK_SECONDS))):
            return "the executor has ended"
        if not place.is_whole(lock):
            return f"its files have vanished from {place.folder}"
        if time.monotonic() >= deadline and not loaded.is_set():
            raise TimeoutError(f"not loaded within {order.load_seconds:g} s")


def _fail(order: ServerOrder, place: ServerPlace, lock: ServerLock, error: Exception) -> NoReturn:
    try:
        if isinstance(error, SparkVisionError):
            kind, message = type(error).__name__, str(error)
        else:
            kind = ModelServerError.__name__
            message = (
                f"cannot load {order.folder} as {order.dtype} on {order.device}: "
                f"{type(error).__name__}: {error}; log: {place.log}"
            )
        lock.write_failure(kind, message)
        if place.is_whole(lock):
            place.address.unlink(missing_ok=True)
    finally:
        os._exit(1)


def _end(place: ServerPlace, lock: ServerLock, why: str, code: int = 0) -> NoReturn:
    try:
        logger.info("ends: %s", why)
        place.remove(lock)
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
