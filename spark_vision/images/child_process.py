"""The command and import path for a child process that runs a module of this package."""

import os
import sys
from pathlib import Path


def module_command(module: str) -> list[str]:
    """Return the command that runs a module of this package with the current interpreter.

    The working directory is not on the import path: its content is not ours.
    """
    return [sys.executable, "-P", "-m", module]


def import_path() -> str:
    """Return this process's import path as an absolute `PYTHONPATH`.

    Spark's `--py-files` adds relative entries such as `./package.zip`.
    """
    return os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry)
