"""Where a host's model servers are found: a folder per executor, a socket and a lock per model.

    <temporary folder>/spark-vision-<uid>/<pid namespace>-<executor's pid>-<its start>/
        <model>.socket    where the server listens
        <model>.lock      held by the server from its start to its end, and by whom starts it
        <model>.log       what the server says

The name of the first folder can be guessed, and a temporary folder is everybody's: where somebody
else has taken that name, the next is tried (`spark-vision-<uid>-1` and so on), by all workers in
the same order.

The lock is the truth: while it is held a server starts or lives, and the kernel frees it whatever
ends the server. What its file holds is for the next who takes it, and its time is the server's
pulse. Folders whose executor is gone are swept away before another server starts.
"""

import json
import logging
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from spark_vision.executor.executor_process import ExecutorProcess
from spark_vision.executor.server_lock import ServerLock

logger = logging.getLogger(__name__)

# Names that are tried before sharing is given up, which costs a copy of the model per worker.
MOST_NAMES = 8


@dataclass(frozen=True)
class ServerPlace:
    """The files of one model server.

    Attributes:
        folder: The executor's folder.
        name: The model's, in hexadecimal digits.
    """

    folder: Path
    name: str

    @classmethod
    def of(cls, executor: ExecutorProcess, name: str) -> "ServerPlace":
        """Name the place of an executor's model; nothing is written."""
        return cls(_base_folder() / f"{_pid_namespace()}-{executor}", name)

    @property
    def address(self) -> Path:
        """Where the server listens."""
        return self.folder / f"{self.name}.socket"

    @property
    def lock(self) -> Path:
        """The file that the server locks."""
        return self.folder / f"{self.name}.lock"

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.folder / f"{self.name}.log"

    def prepare(self) -> None:
        """Make the folders, and make sure that they are this user's alone.

        Raises:
            OSError: They cannot be made.
            PermissionError: Somebody else can write there.
        """
        for folder in (self.folder.parent, self.folder):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            _require_private(folder)

    def listen(self) -> socket.socket:
        """Bind and listen, in place of a dead server's socket.

        Raises:
            OSError: It cannot be bound.
        """
        self.address.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with self._short_address() as address:
            listener.bind(address)
        listener.listen()
        return listener

    def connect(self) -> socket.socket | None:
        """Connect, or return None where nobody listens, or too many wait there already.

        Raises:
            OSError: What is there is no server's socket.
            PermissionError: Somebody else can write there.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            for folder in (self.folder.parent, self.folder):
                _require_private(folder)
            # A stopped server takes nobody from its full queue: a blocking call would wait for it.
            connection.setblocking(False)
            with self._short_address() as address:
                connection.connect(address)
            connection.setblocking(True)
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            connection.close()
            return None
        except OSError:
            connection.close()
            raise
        return connection

    def pulse(self) -> int:
        """Return when the server last started or ended a batch, in nanoseconds; 0 without one."""
        try:
            return self.lock.stat().st_mtime_ns
        except OSError:
            return 0

    def is_whole(self, lock: ServerLock) -> bool:
        """Whether who comes next finds the lock's holder: nobody has cleaned its files away."""
        return lock.is_at(self.lock) and self.address.is_socket()

    def remove(self, lock: ServerLock) -> None:
        """Remove what is the lock holder's: the files, the lock's last, and folders left empty.

        Raises:
            OSError: Something there is no file, or cannot be removed.
        """
        # Where the lock's file has vanished, the files can be those of the next server.
        if lock.is_at(self.lock):
            for path in (self.address, self.log, self.lock):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()
            self.folder.parent.rmdir()

    @contextmanager
    def _short_address(self) -> Iterator[str]:
        """A socket's path holds 107 bytes, a folder's may be longer."""
        folder = os.open(self.folder, os.O_PATH | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{folder}/{self.address.name}"
        finally:
            os.close(folder)


def sweep(place: ServerPlace) -> None:
    """Remove what servers of ended executors have left, such as those of a host that died."""
    for folder in place.folder.parent.iterdir():
        if folder == place.folder or _executor_is_alive(folder):
            continue
        with suppress(OSError):
            # Not only of the locks: a cleaner of temporary files may have left only a socket.
            for name in {path.stem for path in folder.iterdir()}:
                _sweep_one(ServerPlace(folder, name))
        with suppress(OSError):
            folder.rmdir()


def read_pid(place: ServerPlace) -> int | None:
    """Return the id of the process that holds the lock, as it wrote it."""
    try:
        return int(json.loads(place.lock.read_bytes())["pid"])
    except (OSError, ValueError, KeyError):
        return None


def _sweep_one(left: ServerPlace) -> None:
    lock = ServerLock.take(left.lock)
    if lock is not None:
        with suppress(OSError):
            left.remove(lock)
        lock.close()


def _base_folder() -> Path:
    """Choose the first folder that is this user's alone, or that nobody has yet."""
    first = Path(tempfile.gettempdir()) / f"spark-vision-{os.geteuid()}"
    for number in range(MOST_NAMES):
        folder = first.with_name(f"{first.name}-{number}") if number else first
        try:
            _require_private(folder)
        except PermissionError:
            continue
        except OSError:
            # Not there; or what is wrong is said by who makes it.
            pass
        if number:
            _say_taken(first, folder)
        return folder
    return first


@cache
def _say_taken(taken: Path, chosen: Path) -> None:
    logger.warning(
        "%s is not a folder of user %d alone: remove it; model servers are found in %s meanwhile",
        taken,
        os.geteuid(),
        chosen,
    )


def _require_private(folder: Path) -> None:
    found = folder.lstat()
    private = found.st_uid == os.geteuid() and not found.st_mode & 0o077
    if not stat.S_ISDIR(found.st_mode) or not private:
        raise PermissionError(f"{folder} is not a folder of user {os.geteuid()} alone")


def _executor_is_alive(folder: Path) -> bool:
    namespace, *numbers = folder.name.split("-")
    if namespace != _pid_namespace() or not all(number.isdecimal() for number in numbers):
        return False
    return len(numbers) == 2 and ExecutorProcess(*map(int, numbers)).is_alive()


def _pid_namespace() -> str:
    """The processes that see each other's ids: containers may share the folder and not the ids."""
    return str(Path("/proc/self/ns/pid").stat().st_ino)
