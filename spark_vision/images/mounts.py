"""Detects whether a folder is on a local disk or on a network file system, where reads may hang."""

import re
from collections.abc import Iterator
from pathlib import Path

from spark_vision.operators.locations import is_kernel_path

MOUNTS = Path("/proc/self/mountinfo")
_OF_THIS_MACHINE = re.compile(
    "bcachefs|btrfs|erofs|exfat|ext[234]|f2fs|iso9660|jfs|ntfs3|overlay|ramfs|rootfs|squashfs|tmpfs"
    "|ufs|vfat|xfs|zfs"
)


def may_hang(folder: str, mounts: str) -> bool:
    """Return whether a network file system is mounted at, above or below a folder.

    Args:
        folder: An absolute path without symbolic links.
        mounts: The text of /proc/self/mountinfo; empty on systems without it.
    """
    folder = f"{folder.rstrip('/')}/"
    nearest, nearest_kind = "", "overlay"
    for point, kind in _read(mounts):
        if is_kernel_path(point.rstrip("/")):
            continue
        if folder.startswith(point):
            # A later mount at the same point covers the earlier one.
            if len(point) >= len(nearest):
                nearest, nearest_kind = point, kind
        elif point.startswith(folder) and not _OF_THIS_MACHINE.fullmatch(kind):
            return True
    return not _OF_THIS_MACHINE.fullmatch(nearest_kind)


def _read(mounts: str) -> Iterator[tuple[str, str]]:
    for line in mounts.splitlines():
        point, _, described = line.partition(" - ")
        fields = point.split(" ")
        if len(fields) > 4 and described:
            unescaped = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
            yield f"{unescaped.rstrip('/')}/", described.split(" ")[0]
