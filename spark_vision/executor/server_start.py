"""Starts a model server: by exec, in a session of its own, with only two descriptors passed on.

A forked child would hold a crashed task's pipes open, a process group would pass the pyspark
daemon's signals on, and inherited output pipes would keep the executor's JVM from being cleaned up.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass

from spark_vision.child_process import import_path, module_command
from spark_vision.executor.environment import TOKEN_VARIABLES
from spark_vision.executor.executor_process import ExecutorProcess
from spark_vision.executor.server_lock import ServerLock
from spark_vision.executor.server_place import ServerPlace

_started: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class ServerOrder:
    """What a server is started with.

    Attributes:
        executor: The process whose end is the server's.
        folder: The checkpoint's.
        stamp: What `stamp_of` says of its files: with another one the load fails.
        dtype: As the operator says it.
        device: A torch device.
        flash_attention: As for `families.load_model`.
        call_count: Calls computed at a time, each by a thread of its own.
        thread_count: Cores that one call may use.
        load_seconds: A load that takes longer fails.
        batch_seconds: A call that takes longer ends the server.
        idle_seconds: Without a call it ends after these; 0 keeps it.
    """

    executor: ExecutorProcess
    folder: str
    stamp: str
    dtype: str
    device: str
    flash_attention: bool
    call_count: int
    thread_count: int
    load_seconds: float
    batch_seconds: float
    idle_seconds: float

    def to_json(self) -> str:
        """Write the order as a process's argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ServerOrder":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "executor": ExecutorProcess(**fields["executor"])})


def start_server(order: ServerOrder, place: ServerPlace, lock: ServerLock) -> None:
    """Start a server and hand it the lock; clients may connect at once, and wait for its hello.

    Raises:
        OSError: A full disk, a folder that takes no socket, no right to start a process.
    """
    lock.write({"starts": lock.read().get("starts", 0) + 1})
    command = module_command("spark_vision.executor.model_server")
    with place.listen() as listener, place.log.open("ab") as log:
        descriptors = (lock.descriptor, listener.fileno())
        arguments = [order.to_json(), str(place.folder), place.name, *map(str, descriptors)]
        process = subprocess.Popen(
            command + arguments,
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_environment(order),
            start_new_session=True,
        )
    # A child that has ended stays in the process table until its parent asks for it.
    _started[:] = [each for each in _started if each.poll() is None] + [process]
    # The server runs, and whoever reads this worker's output may have gone.
    with suppress(OSError, ValueError):
        print(
            f"spark_vision: model server {process.pid} for {order.folder} ({order.dtype}) on "
            f"{order.device}; its log: {place.log}",
            file=sys.stderr,
            flush=True,
        )


def _environment(order: ServerOrder) -> dict[str, str]:
    """The worker's own, with what it can import and the threads that the server may use.

    A server loads from a folder, and lives longer than a job: it gets no token of the hub.
    """
    threads = str(order.thread_count)
    kept = {name: value for name, value in os.environ.items() if name not in TOKEN_VARIABLES}
    return {
        **kept,
        "PYTHONPATH": import_path(),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        # Threads that spin while they wait take the cores from those that decode.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
