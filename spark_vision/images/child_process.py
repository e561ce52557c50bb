"""How a process of this package starts another: by exec, able to import what the first one can."""

import os
import sys
from pathlib import Path


def module_command(module: str) -> list[str]:
    """Give the command that runs a module of this package in the running interpreter.

    The working directory is not on the import path: it is somebody else's.
    """
    return [sys.executable, "-P", "-m", module]


def import_path() -> str:
    """Give this process's import path as `PYTHONPATH`, made absolute.

    What `--py-files` sends is `./package.zip` on it.
    """
    return os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry)
