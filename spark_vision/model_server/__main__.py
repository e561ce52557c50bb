"""The process of a model server: `python -m spark_vision.model_server`, started by `start.py`."""

import errno
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from spark_vision.executor.task import ExecutorProcess
from spark_vision.model_server.channel import Channel, Failure
from spark_vision.model_server.server import ModelServer
from spark_vision.model_server.start import NAME_TAKEN, ServerConfig, listen

if TYPE_CHECKING:
    from spark_vision.model_server.model_calls import ModelCalls

logger = logging.getLogger("spark_vision.model_server")

# Spark retries a failed task at once, but the model is not loaded again for this long.
FAILURE_CACHE_SECONDS = 30.0


def main(config_text: str, name: str, log: str) -> NoReturn:
    """Load a model and serve it; the arguments are those of `start_server`."""
    # The signal mask is inherited from the worker, and may block the signals that end this process.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = ServerConfig.from_json(config_text)
    try:
        listener = listen(name)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            logger.exception("cannot listen")
        os._exit(NAME_TAKEN if error.errno == errno.EADDRINUSE else 1)
    if config.options.vllm_arguments is not None:
        _end_group_with_this_process()
    code = 1
    try:
        ending = ModelServer(config, listener, _load, log).run()
        logger.info("ends: %s", ending.reason)
        code = ending.code
        if ending.failure is not None:
            _start_refusal(config.executor, listener, ending.failure)
        else:
            _remove_log(Path(log))
    except BaseException:
        logger.exception("the model server failed")
    finally:
        # Free the name now, since freeing this process's memory takes longer. The log was removed
        # before: from here on it may belong to the next server.
        listener.close()
        os._exit(code)


def _load(config: ServerConfig) -> "ModelCalls":
    # Importing torch takes seconds, during which clients can already connect.
    from spark_vision.model_server.model_calls import ModelCalls

    return ModelCalls.load(config)


def _end_group_with_this_process() -> None:
    """Let all processes that this one starts end with it, also when it is killed.

    The engine of vLLM is a child process that outlives its parent, and keeps the GPU. The shell
    waits for the end of a pipe whose other end only this process has. Then it kills its process
    group, which is this process's own.
    """
    waiting, _ = os.pipe()
    subprocess.Popen(["/bin/sh", "-c", "read line; kill -KILL 0"], stdin=waiting)
    os.close(waiting)


def _start_refusal(executor: ExecutorProcess, listener: socket.socket, failure: Failure) -> None:
    """Start a small process that keeps the name, outside of this one's process group."""
    state = {"refused": asdict(executor), "listener": listener.fileno(), "failure": failure}
    # The same command as of this process, with another argument in the place of the three.
    command = [*sys.orig_argv[:-3], json.dumps(state)]
    subprocess.Popen(command, pass_fds=[listener.fileno()], start_new_session=True)


def refuse(state: str) -> None:
    """Send the error of a failed load to all new clients for a while."""
    given = json.loads(state)
    deadline = time.monotonic() + FAILURE_CACHE_SECONDS
    with suppress(ProcessLookupError), socket.socket(fileno=given["listener"]) as listener:
        # The kernel reports the process that called this last as the one that listens.
        listener.listen()
        executor = ExecutorProcess(**given["refused"]).open_descriptor()
        watched: list[Any] = [listener, executor]
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select(watched, [], [], left)
            if executor in ready:
                return
            if listener in ready:
                _send_failure(listener, given["failure"])


def _send_failure(listener: socket.socket, failure: Failure) -> None:
    # The client may have disconnected, or belong to another user.
    with suppress(OSError):
        channel = Channel(listener.accept()[0])
        channel.send({"error": failure})
        channel.close()


def _remove_log(log: Path) -> None:
    with suppress(OSError):
        if os.path.samestat(log.stat(), os.fstat(sys.stdout.fileno())):
            log.unlink()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if len(arguments) == 1:
        refuse(*arguments)
    else:
        main(*arguments)
