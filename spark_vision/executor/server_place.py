"""Where a host's model servers are found: a folder per executor, a socket and a lock per model.

    <temporary folder>/spark-vision-<uid>/<pid namespace>-<executor's pid>-<its start>/
        <model>.socket    where the server listens
        <model>.lock      held by the server from its start to its end, and by whom starts it
        <model>.log       what the server says

The lock is the truth: while it is held a server starts or lives, and the kernel frees it whatever
ends the server. What its file holds is for the next who takes it, and its time is the server's
pulse. Folders whose executor is gone are swept away before another server starts.
"""

import fcntl
import json
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark_vision.executor.executor_process import ExecutorProcess


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
        base = Path(tempfile.gettempdir()) / f"spark-vision-{os.geteuid()}"
        return cls(base / f"{_pid_namespace()}-{executor}", name)

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
            found = folder.lstat()
            private = found.st_uid == os.geteuid() and not found.st_mode & 0o077
            if not stat.S_ISDIR(found.st_mode) or not private:
                raise PermissionError(f"{folder} is not a folder of user {os.geteuid()} alone")

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
        """Connect, or return None where nobody listens."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with self._short_address() as address:
                connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        return connection

    def pulse(self) -> int:
        """Return a number that changes with each batch that the server starts or ends."""
        try:
            return self.lock.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def remove(self) -> None:
        """Remove the files, the lock's last, and the folders that are empty then."""
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


class ServerLock:
    """The lock of a place while it is held; its file keeps a few words for the next who takes it.

    Args:
        descriptor: Of the locked file; closed with the lock.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def take(cls, place: ServerPlace) -> "ServerLock | None":
        """Take the lock, or return None where somebody has it.

        Raises:
            OSError: The file cannot be made.
        """
        descriptor = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the file between the two calls.
            if os.fstat(descriptor).st_ino == place.lock.stat().st_ino:
                return cls(descriptor)
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(descriptor)
        return None

    def read(self) -> dict[str, Any]:
        """Return what the last holder wrote; nothing where it came to no end of it."""
        try:
            return dict(json.loads(os.pread(self.descriptor, 2**16, 0)))
        except ValueError:
            return {}

    def write(self, words: dict[str, Any]) -> None:
        """Keep words for the next holder.

        Raises:
            OSError: The disk is full.
        """
        text = json.dumps(words).encode()
        os.pwrite(self.descriptor, text, 0)
        os.ftruncate(self.descriptor, len(text))

    def write_failure(self, kind: str, message: str) -> None:
        """Keep why a load failed, for all who wait for it and the first who come after."""
        self.write({"failure": {"kind": kind, "message": message, "moment": time.monotonic()}})

    def recent_failure(self, seconds: float) -> dict[str, str] | None:
        """Return kind and message of a load that failed in the last seconds, if one did.

        The monotonic clock is one for all processes of a host.
        """
        failure = self.read().get("failure")
        is_recent = failure and 0 <= time.monotonic() - failure["moment"] < seconds
        return failure if is_recent else None

    def beat(self) -> None:
        """Show whoever waits that the server goes on."""
        os.utime(self.descriptor)

    def close(self) -> None:
        """Let the lock go, where no other process holds it too."""
        os.close(self.descriptor)


def sweep(place: ServerPlace) -> None:
    """Remove what servers of ended executors have left, such as those of a host that died."""
    for folder in place.folder.parent.iterdir():
        if folder == place.folder or _executor_is_alive(folder):
            continue
        for lock_file in folder.glob("*.lock"):
            left = ServerPlace(folder, lock_file.stem)
            with suppress(OSError):
                lock = ServerLock.take(left)
                if lock is not None:
                    left.remove()
                    lock.close()
        with suppress(OSError):
            folder.rmdir()


def read_pid(place: ServerPlace) -> int | None:
    """Return the id of the process that holds the lock, as it wrote it."""
    try:
        return int(json.loads(place.lock.read_bytes())["pid"])
    except (OSError, ValueError, KeyError):
        return None


def _executor_is_alive(folder: Path) -> bool:
    namespace, *numbers = folder.name.split("-")
    if namespace != _pid_namespace() or not all(number.isdecimal() for number in numbers):
        return False
    return len(numbers) == 2 and ExecutorProcess(*map(int, numbers)).is_alive()


def _pid_namespace() -> str:
    """The processes that see each other's ids: containers may share the folder and not the ids."""
    return str(Path("/proc/self/ns/pid").stat().st_ino)
