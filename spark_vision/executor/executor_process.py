"""Which process is this worker's executor: the nearest `java` among its ancestors.

Spark tells a Python worker no name of its executor, so the JVM stands for it: its process id, and
the time of its start, without which a reused id would pass for it.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Places in /proc/<pid>/stat, counted after the command's name; see proc(5).
_PARENT_FIELD = 1
_START_FIELD = 19


@dataclass(frozen=True)
class ExecutorProcess:
    """A process, told apart from every other that ever ran on this host since its boot.

    Attributes:
        pid: Its id.
        start_ticks: When it started, in clock ticks since the boot.
    """

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> "ExecutorProcess":
        """Name a running process.

        Raises:
            ProcessLookupError: There is none with this id.
        """
        return cls(pid, int(_stat(pid)[_START_FIELD]))

    def __str__(self) -> str:
        return f"{self.pid}-{self.start_ticks}"

    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        try:
            stat = _stat(self.pid)
        except ProcessLookupError:
            return False
        return int(stat[_START_FIELD]) == self.start_ticks and stat[0] not in "ZX"

    def open_descriptor(self) -> int:
        """Open a descriptor that becomes readable when the process ends.

        Raises:
            ProcessLookupError: It has ended already.
        """
        descriptor = os.pidfd_open(self.pid)
        if not self.is_alive():
            os.close(descriptor)
            raise ProcessLookupError(f"process {self} has ended")
        return descriptor


@cache
def find_executor_process() -> ExecutorProcess | None:
    """Find the JVM that this worker belongs to, once: it loses its ancestors if their chain breaks.

    Returns:
        None outside of Spark, or where there is no /proc.
    """
    try:
        pid = os.getpid()
        while pid > 1:
            pid = int(_stat(pid)[_PARENT_FIELD])
            if pid and Path(f"/proc/{pid}/comm").read_text().strip() == "java":
                return ExecutorProcess.of(pid)
    except (OSError, ValueError):
        return None
    return None


def _stat(pid: int) -> list[str]:
    try:
        # The command's name is in parentheses, and may hold spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"no process {pid}") from error
