"""The command and import path for a child process that runs a module of this package."""

import os
import sys
from pathlib import Path

# The folder of an installed package also holds the other packages of its environment, so it is not
# put on the import path. The finder also reads a zip archive.
_RUN_MODULE = """
import importlib.machinery, importlib.util, runpy, sys
spec = importlib.machinery.PathFinder.find_spec("spark_vision", [sys.argv.pop(1)])
package = sys.modules["spark_vision"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def module_command(module: str) -> list[str]:
    """Return the command that runs a module of this package with the current interpreter.

    The working directory is not on the import path: its content is not ours.
    """
    return [sys.executable, "-P", "-m", module]


def foreign_command(python: str, module: str) -> list[str]:
    """Return the command that runs a module of this package with another environment's interpreter.

    Of this environment, that process can import this package and nothing else.
    """
    return [python, "-P", "-c", _RUN_MODULE, str(Path(__file__).absolute().parents[2]), module]


def import_path() -> str:
    """Return this process's import path as an absolute `PYTHONPATH`.

    Spark's `--py-files` adds relative entries such as `./package.zip`.
    """
    return os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry)
