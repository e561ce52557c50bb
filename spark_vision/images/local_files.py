"""Reads local files below allowed roots, safe against symbolic links, `..` and races.

A path that is not below a root is rejected before the file system is accessed. The opened file is
checked before it is read, because a link may lead outside, to a device, or to a pipe. Files on a
network file system are read by a thread that is abandoned at the deadline; reads from local disks
do not hang, and a thread would cost more than the read.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from spark_vision.errors import RowFailure, Status
from spark_vision.images.deadline_threads import DeadlineThreadPool
from spark_vision.images.transfer import Transfer, blocked_failure, read_failure
from spark_vision.images.urls import redact
from spark_vision.operators.locations import KERNEL_FOLDERS, is_kernel_path, is_shared_memory

MOUNTS = Path("/proc/self/mountinfo")
_OF_THIS_MACHINE = re.compile(
    "bcachefs|btrfs|erofs|exfat|ext[234]|f2fs|iso9660|jfs|ntfs3|overlay|ramfs|rootfs|squashfs|tmpfs"
    "|ufs|vfat|xfs|zfs"
)
_PIECE_BYTES = 2**20
# O_PATH does not open the file itself, so it neither waits for a pipe nor accesses a device.
_PATH_ONLY = getattr(os, "O_PATH", 0)
_SELF = "/proc/self/fd"


class LocalFiles:
    """Reads files below roots, from any number of threads.

    Args:
        roots: Absolute folders; symbolic links are resolved now.
    """

    def __init__(self, roots: Iterable[str]) -> None:
        written = list(roots)
        real = [os.path.realpath(root) for root in written]
        self._written, self._real = _Roots([*written, *real]), _Roots(real)
        mounts = MOUNTS.read_text(errors="replace") if MOUNTS.exists() else ""
        self._may_hang = any(may_hang(root, mounts) for root in real)
        self._threads = DeadlineThreadPool()
        self._can_pin = bool(_PATH_ONLY) and Path(_SELF).is_dir()

    def read(self, path: str, transfer: Transfer) -> None:
        """Read one file into its transfer.

        Raises:
            RowFailure: `blocked` for a path that is not below a root, whether it exists or not;
                `read_error`, `too_large` or `timeout`.
        """
        if not self._is_written_below(path):
            raise blocked_failure(redact(path))
        if not self._may_hang:
            self._read(path, transfer, lambda work, undo=None: work(), os.close)
            return
        with self._threads.take() as thread:

            def close(descriptor: int) -> None:
                # An abandoned thread may still read it: a reused number would be another file's.
                if thread.is_abandoned:
                    thread.enqueue(lambda: os.close(descriptor))
                else:
                    os.close(descriptor)

            self._read(
                path,
                transfer,
                lambda work, undo=None: thread.call(work, transfer.remaining_seconds(), undo),
                close,
            )

    def close(self) -> None:
        """End the idle threads."""
        self._threads.close()

    def _read(
        self,
        path: str,
        transfer: Transfer,
        call: Callable[..., Any],
        close: Callable[[int], None],
    ) -> None:
        open_file = self._pin if self._can_pin else self._resolve
        try:
            descriptor, size = call(lambda: open_file(path), lambda made: os.close(made[0]))
            try:
                transfer.check_size(size)
                # Reading one byte more than allowed detects a file that is too large.
                while piece := call(
                    lambda: os.read(descriptor, min(_PIECE_BYTES, transfer.remaining_bytes + 1))
                ):
                    transfer.append(piece)
            finally:
                close(descriptor)
        except RowFailure:
            raise
        except _LedOutError:
            raise blocked_failure(redact(path)) from None
        except _NoFileError:
            raise RowFailure(Status.READ_ERROR, f"is not a regular file: {redact(path)}") from None
        except (OSError, ValueError) as error:
            # An error must not reveal what exists outside the roots.
            if not isinstance(error, TimeoutError) and not self._leads_below(path, call):
                raise blocked_failure(redact(path)) from None
            raise read_failure(error, redact(path)) from None

    def _leads_below(self, path: str, call: Callable[..., Any]) -> bool:
        try:
            return self._real.hold(call(lambda: os.path.realpath(path)))
        except TimeoutError as error:
            raise read_failure(error, redact(path)) from None

    def _is_written_below(self, path: str) -> bool:
        if "\0" in path:
            return False
        full = path if path.startswith("/") else f"{os.getcwd()}/{path}"  # noqa: PTH109 - speed
        # normpath keeps two slashes at the start.
        full = "/" + os.path.normpath(full).lstrip("/")
        return self._written.hold(full)

    def _pin(self, path: str) -> tuple[int, int]:
        """Resolve a path to a pinned file, check it, and open exactly that file."""
        found = os.open(path, _PATH_ONLY | os.O_CLOEXEC)
        try:
            pinned = f"{_SELF}/{found}"
            if not self._real.hold(os.readlink(pinned)):  # noqa: PTH115 - speed
                raise _LedOutError
            size = _size_of_file(os.fstat(found))
            return os.open(pinned, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), size
        finally:
            os.close(found)

    def _resolve(self, path: str) -> tuple[int, int]:
        """Do the same on systems without O_PATH."""
        real = os.path.realpath(path)
        if not self._real.hold(real):
            raise _LedOutError
        size = _size_of_file(os.lstat(real))
        return os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), size


class _LedOutError(Exception):
    """A path below a root leads outside."""


class _NoFileError(Exception):
    """A path leads to a pipe, a socket or a device."""


class _Roots:
    """Folders, compared as strings for speed: called twice per row."""

    def __init__(self, folders: Iterable[str]) -> None:
        below = {f"{folder.rstrip('/')}/" for folder in folders}
        self._below = tuple(below)
        self._in_memory = tuple(each for each in below if is_shared_memory(each.rstrip("/")))
        self._kernel = tuple(f"{folder}/" for folder in KERNEL_FOLDERS)

    def hold(self, path: str) -> bool:
        path = f"{path}/"
        return path.startswith(self._below) and (
            not path.startswith(self._kernel) or path.startswith(self._in_memory)
        )


def _size_of_file(about: os.stat_result) -> int:
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError
    if not stat.S_ISREG(about.st_mode):
        raise _NoFileError
    return about.st_size


def may_hang(folder: str, mounts: str) -> bool:
    """Return whether a network file system is mounted at, above or below a folder.

    Args:
        folder: An absolute path without symbolic links.
        mounts: The text of /proc/self/mountinfo; empty on systems without it.
    """
    folder = f"{folder.rstrip('/')}/"
    nearest, nearest_kind = "", "overlay"
    for point, kind in _read_mounts(mounts):
        if is_kernel_path(point.rstrip("/")):
            continue
        if folder.startswith(point):
            # A later mount at the same point covers the earlier one.
            if len(point) >= len(nearest):
                nearest, nearest_kind = point, kind
        elif point.startswith(folder) and not _OF_THIS_MACHINE.fullmatch(kind):
            return True
    return not _OF_THIS_MACHINE.fullmatch(nearest_kind)


def _read_mounts(mounts: str) -> Iterator[tuple[str, str]]:
    for line in mounts.splitlines():
        point, _, described = line.partition(" - ")
        fields = point.split(" ")
        if len(fields) > 4 and described:
            unescaped = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
            yield f"{unescaped.rstrip('/')}/", described.split(" ")[0]
