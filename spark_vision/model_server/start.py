"""What a model server is started with, its name, and its start: by exec, in a session of its own.

A forked child would hold a crashed task's pipes open, a process group would pass the pyspark
daemon's signals on, and inherited output pipes would keep the executor's JVM from being cleaned up.
"""

import hashlib
import json
import logging
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from spark_vision import errors
from spark_vision.executor.environment import TOKEN_VARIABLES
from spark_vision.executor.executor_process import ExecutorProcess
from spark_vision.images.child_process import import_path, module_command

# The exit status of a server whose name somebody else holds.
NAME_TAKEN = 98

logger = logging.getLogger(__name__)

_started: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class ServerOrder:
    """What a server is started with.

    Attributes:
        executor: The process whose end is the server's.
        folder: The checkpoint's.
        stamp: The digest of its files (`stamp_of`): with another one the load fails.
        dtype: The operator's.
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

    @property
    def name(self) -> str:
        """The server's name: one per user, executor and model.

        Two Python environments of one executor do not share a server, nor two of its packages.
        """
        model = [self.folder, self.stamp, self.dtype, self.flash_attention, self.device]
        # The device's number counts what this variable shows.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if self.device != "cpu" else ""
        identity = json.dumps([*model, visible, sys.executable, errors.__file__])
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return f"{_log_prefix()}{self.executor}-{digest}"


def address_of(name: str) -> str:
    """Return the address of a server: an abstract one, which begins with a zero byte."""
    return f"\0{name}"


def log_of(name: str) -> Path:
    """Return where the log of a server is; /dev/null where no folder takes one."""
    with suppress(FileNotFoundError):
        return Path(tempfile.gettempdir()) / f"{name}.log"
    return Path(os.devnull)


def listen(name: str) -> socket.socket:
    """Bind a server's name and listen.

    Raises:
        OSError: EADDRINUSE where another process has the name.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address_of(name))
    listener.listen()
    return listener


def start_server(order: ServerOrder) -> subprocess.Popen[bytes]:
    """Start a server, which exits at once where another has its name.

    Raises:
        OSError: No right or no memory to start a process.
    """
    _remove_old_logs()
    threads = str(order.thread_count)
    path = log_of(order.name)
    log = _open_log(path)
    try:
        process = subprocess.Popen(
            [*module_command("spark_vision.model_server"), order.to_json(), order.name, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={
                # It loads from a folder, and lives longer than a job: it gets no token of the hub.
                **{name: os.environ[name] for name in os.environ if name not in TOKEN_VARIABLES},
                "PYTHONPATH": import_path(),
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                # Threads that spin while they wait take the cores from those that decode.
                "OMP_WAIT_POLICY": "PASSIVE",
            },
            start_new_session=True,
        )
    finally:
        os.close(log)
    # A child that has ended stays in the process table until its parent asks for it.
    _started[:] = [each for each in _started if each.poll() is None] + [process]
    return process


def _open_log(path: Path) -> int:
    """Open a server's log; where there is no place for one, the server does without."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
        found = os.fstat(descriptor)
        # Everybody can write in a temporary folder, and the name can be guessed.
        if stat.S_ISREG(found.st_mode) and (found.st_uid, found.st_nlink) == (os.geteuid(), 1):
            return descriptor
        os.close(descriptor)
        raise FileExistsError(f"{path} is no file of user {os.geteuid()} alone")
    except OSError as error:
        logger.warning("the model server starts without a log: %s", error)
    return os.open(os.devnull, os.O_WRONLY)


def _remove_old_logs() -> None:
    """Remove the logs of servers that were killed and whose executors have ended since."""
    pattern = re.compile(rf"{_log_prefix()}(\d+)-(\d+)-[0-9a-f]+\.log")
    with suppress(OSError):
        for path in Path(tempfile.gettempdir()).iterdir():
            found = pattern.fullmatch(path.name)
            if found and not ExecutorProcess(*map(int, found.groups())).is_alive():
                path.unlink()


def _log_prefix() -> str:
    return f"spark-vision-{os.geteuid()}-{Path('/proc/self/ns/pid').stat().st_ino}-"
