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

Who closes what. A client closes its connection when it likes, also in the middle of a call: the
answer is dropped. The server closes a connection only on what is no message, and by ending. It ends
when the executor's process ends; after its idle time without a call, whoever is connected; when its
device is broken; and when its load fails or takes too long, with the cause in the lock's file. It
unlinks its files first and leaves at once: a normal exit with torch loaded takes a second more.

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
from pathlib import Path
from typing import NoReturn

from spark_vision.errors import ModelServerError, SparkVisionError
from spark_vision.executor.server_place import ServerLock, ServerPlace
from spark_vision.executor.server_start import ServerOrder

logger = logging.getLogger("spark_vision.model_server")


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
    _end(place, why, code)


def _watch(
    order: ServerOrder, place: ServerPlace, lock: ServerLock, loaded: threading.Event
) -> None:
    """End this process with the executor's, and a load that takes too long."""
    try:
        executor = order.executor.open_descriptor()
    except ProcessLookupError:
        _end(place, "the executor has ended")
    poll = select.poll()
    poll.register(executor, select.POLLIN)
    if not poll.poll(order.load_seconds * 1000) and not loaded.is_set():
        _fail(order, place, lock, TimeoutError(f"not loaded within {order.load_seconds:g} s"))
    poll.poll()
    _end(place, "the executor has ended")


def _fail(order: ServerOrder, place: ServerPlace, lock: ServerLock, error: Exception) -> NoReturn:
    if isinstance(error, SparkVisionError):
        kind, message = type(error).__name__, str(error)
    else:
        kind = ModelServerError.__name__
        message = (
            f"cannot load {order.folder} as {order.dtype} on {order.device}: "
            f"{type(error).__name__}: {error}; log: {place.log}"
        )
    try:
        lock.write_failure(kind, message)
        place.address.unlink(missing_ok=True)
    finally:
        os._exit(1)


def _end(place: ServerPlace, why: str, code: int = 0) -> NoReturn:
    logger.info("ends: %s", why)
    place.remove()
    os._exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
