"""The lock of a model server's place while it is held, and the words that its file keeps."""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any


class ServerLock:
    """The lock of a place while it is held; its file keeps a few words for the next who takes it.

    Args:
        descriptor: Of the locked file; closed with the lock.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> "ServerLock | None":
        """Take the lock, or return None where somebody has it.

        Raises:
            OSError: The file cannot be made.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        lock = cls(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the file between the two calls.
            if lock.is_at(path):
                return lock
        except BlockingIOError:
            pass
        lock.close()
        return None

    def is_at(self, path: Path) -> bool:
        """Whether the locked file is the one of this path: files in a temporary folder vanish."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), path.stat())
        except OSError:
            return False

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
