"""Finds this worker's executor: the nearest `java` process among its ancestors.

Spark does not pass the executor's id to a Python worker, so the JVM identifies it: by its process
id and its start time, because process ids are reused.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Indices of fields in /proc/<pid>/stat, counted after the command name; see proc(5).
_PARENT_FIELD = 1
_START_FIELD = 19


@dataclass(frozen=True)
class ExecutorProcess:
    """A process, identified uniquely on this host since its boot.

    Attributes:
        pid: Its process id.
        start_ticks: Its start time, in clock ticks since boot.
    """

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> "ExecutorProcess":
        """Identify a running process.

        Raises:
            ProcessLookupError: No process has this id.
        """
        return cls(pid, int(_stat(pid)[_START_FIELD]))

    def __str__(self) -> str:
        return f"{self.pid}-{self.start_ticks}"

    def is_alive(self) -> bool:
        """Return whether it still runs; a zombie does not."""
        try:
            stat = _stat(self.pid)
        except ProcessLookupError:
            return False
        return int(stat[_START_FIELD]) == self.start_ticks and stat[0] not in "ZX"

    def open_descriptor(self) -> int:
        """Open a descriptor that becomes readable when the process ends.

        Raises:
            ProcessLookupError: It has already ended.
        """
        descriptor = os.pidfd_open(self.pid)
        if not self.is_alive():
            os.close(descriptor)
            raise ProcessLookupError(f"process {self} has ended")
        return descriptor


@cache
def find_executor_process() -> ExecutorProcess | None:
    """Find the JVM that this worker belongs to.

    The result is cached: a worker whose parent ends is no longer a descendant of the JVM.

    Returns:
        None outside Spark, or on a system without /proc.
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
        # The command name is in parentheses and may itself contain spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"no process {pid}") from error
