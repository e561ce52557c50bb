"""The settings and the name of a model server, and its start as a new process and session.

A forked child would keep the pipes of a crashed task open, the worker's process group would forward
the signals of the pyspark daemon, and inherited output pipes would block the cleanup of the JVM.
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
from spark_vision.executor.task import TOKEN_VARIABLES, ExecutorProcess
from spark_vision.images.child_process import foreign_command, import_path, module_command
from spark_vision.models.families import LoadOptions

# The exit code of a server whose name is held by another process.
NAME_TAKEN = 98

logger = logging.getLogger(__name__)

_started: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class ServerConfig:
    """The settings of a model server; `executor` and the limits are those of `Task`.

    Attributes:
        folder: The folder of the checkpoint.
        stamp: The digest of its files (`stamp_of`); the load fails if they have changed.
        dtype: The operator's `dtype`.
        device: A torch device.
        call_count: Number of calls computed at a time, each in its own thread.
        thread_count: Number of cores that one call may use.
        python: The interpreter that runs it.
    """

    executor: ExecutorProcess
    folder: str
    stamp: str
    dtype: str
    device: str
    options: LoadOptions
    call_count: int
    thread_count: int
    joined_row_count: int
    load_seconds: float
    batch_seconds: float
    idle_seconds: float
    python: str

    def to_json(self) -> str:
        """Serialize the settings as a command-line argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ServerConfig":
        """Parse the output of `to_json`."""
        fields = json.loads(text)
        executor, options = fields.pop("executor"), fields.pop("options")
        return cls(ExecutorProcess(**executor), options=LoadOptions(**options), **fields)

    @property
    def name(self) -> str:
        """The server's name: one per user, executor and model.

        Different Python environments or package installations do not share a server.
        """
        model = [self.folder, self.stamp, self.dtype, self.device, asdict(self.options)]
        # The device index counts the GPUs in this variable.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if self.device != "cpu" else ""
        identity = json.dumps([*model, visible, self.python, errors.__file__])
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return f"{_log_prefix()}{self.executor}-{digest}"


def address_of(name: str) -> str:
    """Return the socket address of a server; an abstract one begins with a zero byte."""
    return f"\0{name}"


def log_of(name: str) -> Path:
    """Return the path of a server's log; /dev/null if there is no temporary folder."""
    with suppress(FileNotFoundError):
        return Path(tempfile.gettempdir()) / f"{name}.log"
    return Path(os.devnull)


def listen(name: str) -> socket.socket:
    """Bind a server's name and listen.

    Raises:
        OSError: EADDRINUSE if another process has the name.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address_of(name))
    listener.listen()
    return listener


def start_server(config: ServerConfig) -> subprocess.Popen[bytes]:
    """Start a server, which exits at once if another one has its name.

    Raises:
        OSError: A process cannot be started.
    """
    _remove_old_logs()
    threads = str(config.thread_count)
    # The server loads from a folder and outlives a job, so it gets no hub token.
    environment = {name: os.environ[name] for name in os.environ if name not in TOKEN_VARIABLES}
    if config.python == sys.executable:
        command = module_command("spark_vision.model_server")
        environment["PYTHONPATH"] = import_path()
    else:
        command = foreign_command(config.python, "spark_vision.model_server")
        for name in ("PYTHONPATH", "PYTHONHOME"):
            environment.pop(name, None)
        # Its packages may compile with tools that were installed with them.
        tools = str(Path(config.python).parent)
        environment["PATH"] = os.pathsep.join([tools, environment.get("PATH", os.defpath)])
    path = log_of(config.name)
    log = _open_log(path)
    try:
        process = subprocess.Popen(
            [*command, config.to_json(), config.name, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={
                **environment,
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                # Threads that spin while they wait would take cores from decoding.
                "OMP_WAIT_POLICY": "PASSIVE",
            },
            start_new_session=True,
        )
    finally:
        os.close(log)
    # Polling reaps children that have ended.
    _started[:] = [each for each in _started if each.poll() is None] + [process]
    return process


def _open_log(path: Path) -> int:
    """Open a server's log, or /dev/null if the log cannot be opened."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
        found = os.fstat(descriptor)
        # Every user can write to a temporary folder, and the name can be guessed.
        if stat.S_ISREG(found.st_mode) and (found.st_uid, found.st_nlink) == (os.geteuid(), 1):
            return descriptor
        os.close(descriptor)
        raise FileExistsError(f"{path} is not a regular file of user {os.geteuid()} only")
    except OSError as error:
        logger.warning("the model server starts without a log: %s", error)
    return os.open(os.devnull, os.O_WRONLY)


def _remove_old_logs() -> None:
    """Remove the logs of killed servers whose executors have ended."""
    pattern = re.compile(rf"{_log_prefix()}(\d+)-(\d+)-[0-9a-f]+\.log")
    with suppress(OSError):
        for path in Path(tempfile.gettempdir()).iterdir():
            found = pattern.fullmatch(path.name)
            if found and not ExecutorProcess(*map(int, found.groups())).is_alive():
                path.unlink()


def _log_prefix() -> str:
    return f"spark-vision-{os.geteuid()}-{Path('/proc/self/ns/pid').stat().st_ino}-"
