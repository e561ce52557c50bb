"""Which processes open a file, as the kernel tells (fanotify): seen from outside of all code."""

import ctypes
import os
import select
import struct
from collections import Counter

_OPEN = 0x20
_ADD_MARK = 1
_HERE = -100
_EVENT = struct.Struct("=IBBHQii")


class OpenedFile:
    """Watches the opens of one file from now on.

    Raises:
        PermissionError: Only root may watch.
    """

    def __init__(self, path):
        kernel = ctypes.CDLL(None, use_errno=True)
        self._descriptor = kernel.fanotify_init(0, os.O_RDONLY | os.O_CLOEXEC)
        mask = ctypes.c_uint64(_OPEN)
        if (
            self._descriptor < 0
            or kernel.fanotify_mark(self._descriptor, _ADD_MARK, mask, _HERE, os.fsencode(path)) < 0
        ):
            raise PermissionError(os.strerror(ctypes.get_errno()))
        self._opens = Counter()

    def openers(self):
        """Return how often each process has opened the file, by its id.

        The kernel joins opens of one process that nobody has read yet: a number is a least one.
        """
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        while poll.poll(0):
            events = os.read(self._descriptor, 2**16)
            for _, _, _, _, _, opened, process_id in _EVENT.iter_unpack(events):
                os.close(opened)
                self._opens[process_id] += 1
        return dict(self._opens)

    def close(self):
        """Watch no longer."""
        os.close(self._descriptor)
