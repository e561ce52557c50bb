"""How often a file is opened, by any process: counted by the kernel (inotify)."""

import ctypes
import os
import struct

IN_OPEN = 0x20
_EVENT = struct.Struct("iIII")


class OpenedFiles:
    """Counts the opens of one file from now on."""

    def __init__(self, path):
        self._descriptor = ctypes.CDLL(None, use_errno=True).inotify_init1(os.O_NONBLOCK)
        assert self._descriptor >= 0
        added = ctypes.CDLL(None, use_errno=True).inotify_add_watch(
            self._descriptor, os.fsencode(path), IN_OPEN
        )
        assert added >= 0, os.strerror(ctypes.get_errno())
        self._count = 0

    def count(self):
        """Return the opens so far; the kernel joins equal events that nobody has read yet."""
        while True:
            try:
                events = os.read(self._descriptor, 2**16)
            except BlockingIOError:
                return self._count
            place = 0
            while place < len(events):
                _, mask, _, name_length = _EVENT.unpack_from(events, place)
                place += _EVENT.size + name_length
                self._count += bool(mask & IN_OPEN)

    def close(self):
        os.close(self._descriptor)
