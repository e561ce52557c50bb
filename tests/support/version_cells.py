"""Runs the suite with other versions of Python or of packages, in an environment of its own.

    make matrix CELL=lowest

`uv` finds Python on the PATH. The environments are in `.matrix`; docs/versions.md has the results.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
UV = [sys.executable, "-m", "uv"]


class Cell(NamedTuple):
    """What differs from the environment of `make setup`.

    Attributes:
        python: The version of Python.
        packages: Requirements that replace the constraints on their packages.
        resolution: `lowest-direct` takes the lower bounds of pyproject.toml, and `highest` the
            newest versions; None takes those of constraints.txt.
    """

    python: str
    packages: tuple[str, ...] = ()
    resolution: str | None = None


CELLS = {
    "spark-4.0": Cell("3.12", ("pyspark[connect]==4.0.*", "delta-spark==4.0.*")),
    "spark-4.1": Cell("3.13", ("pyspark[connect]==4.1.*", "delta-spark==4.3.*")),
    # Daft does not allow the pyarrow of constraints.txt.
    "lowest": Cell("3.11", ("daft>=0.7",), resolution="lowest-direct"),
    "newest": Cell("3.13", resolution="highest"),
}
SHOWN = ("pyspark", "delta-spark", "torch", "transformers", "pyarrow", "pandas", "numpy", "pillow")


def install(cell: Cell, folder: Path) -> Path:
    """Make the environment if it is not there; returns its Python."""
    python = folder / "bin" / "python"
    pip = [*UV, "pip", "install", "--quiet", "--python", str(python)]

    def run(*command: str) -> None:
        subprocess.run(command, cwd=ROOT, check=True)

    # Without a Python of that version on the PATH, uv would download one.
    venv = [*UV, "venv", "--quiet", "--allow-existing", "--no-python-downloads"]
    run(*venv, "--python", cell.python, str(folder))
    if cell.resolution is None:
        replaced = {re.split(r"\W", each.replace("-", "_"))[0] for each in cell.packages}
        lines = (ROOT / "constraints.txt").read_text().splitlines(keepends=True)
        constraints = folder / "constraints.txt"
        constraints.write_text("".join(e for e in lines if e.partition("=")[0] not in replaced))
        run(*pip, "--editable", ".[spark,dev]", *cell.packages, "--constraint", str(constraints))
    else:
        # What the tests alone need keeps to the versions that the first line has chosen.
        run(*pip, "--editable", ".[spark]", "--resolution", cell.resolution)
        run(*pip, "--editable", ".[spark,dev]", *cell.packages)
    run(str(python), "-m", "spark_vision.spark.delta_jars")
    # Without the archive, the tests take longer.
    subprocess.run([python, "-m", "shared_classes"], cwd=Path(__file__).parent, check=False)
    return python


def main() -> int:
    """Run the suite in one cell; further arguments are pytest's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cell", choices=CELLS)
    arguments, pytest_arguments = parser.parse_known_args()
    python = install(CELLS[arguments.cell], ROOT / ".matrix" / arguments.cell)
    show = "import version_cells; version_cells.print_versions()"
    subprocess.run([python, "-c", show], cwd=Path(__file__).parent, check=True)
    suite = [python, "-m", "pytest", "--numprocesses", "2", "--dist", "loadfile"]
    suite += ["--no-loadscope-reorder", *pytest_arguments]
    environment = os.environ | {"PYSPARK_PYTHON": str(python), "PYSPARK_DRIVER_PYTHON": str(python)}
    return subprocess.run(suite, cwd=ROOT, env=environment, check=False).returncode


def print_versions() -> None:
    """Print the versions that docs/versions.md shows, of the environment that runs this."""
    found = [f"Python {platform.python_version()}", *(f"{each} {version(each)}" for each in SHOWN)]
    print(", ".join(found), flush=True)


if __name__ == "__main__":
    sys.exit(main())
