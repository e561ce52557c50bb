"""Runs notebooks in a real Jupyter kernel; `make notebooks` stores what they show."""

import os
import re
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import quick_spark

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "jobs" / "notebooks"
_WORKER_SITE = ROOT / "tests" / "support" / "worker_site"
_CELL_SECONDS = 600
_PICTURE = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+")


def read_notebook(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", nbformat.NO_CONVERT)


class Kernel:
    """A Jupyter kernel that runs the cells of a notebook, and more."""

    def __init__(self, client):
        self._client = client

    def run_cells(self):
        for number, cell in enumerate(self._client.nb.cells):
            self._client.execute_cell(cell, number)

    def run(self, code):
        """Run a cell that the notebook does not have; gives what it prints."""
        cell = nbformat.v4.new_code_cell(code)
        self._client.nb.cells.append(cell)
        try:
            self._client.execute_cell(cell, len(self._client.nb.cells) - 1)
        finally:
            self._client.nb.cells.remove(cell)
        return _shown_by(cell)


@contextmanager
def open_notebook(notebook, folder):
    """Starts a kernel for a notebook, in an empty folder."""
    write_spark_defaults(folder / "conf")
    (folder / "work").mkdir()
    client = NotebookClient(
        notebook,
        timeout=_CELL_SECONDS,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder / "work")}},
    )
    environment = {
        "PYTHONPATH": str(ROOT),
        "SPARK_CONF_DIR": str(folder / "conf"),
        "SPARK_SUBMIT_OPTS": quick_spark.JVM_OPTIONS,
        "OMP_NUM_THREADS": "1",
        # What a bar of transformers leaves depends on how long a load takes.
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    with client.setup_kernel(env=os.environ | environment):
        yield Kernel(client)


def write_spark_defaults(folder):
    folder.mkdir()
    settings = {
        **quick_spark.SETTINGS,
        "spark.executorEnv.PYTHONPATH": os.pathsep.join([str(ROOT), str(_WORKER_SITE)]),
        "spark.python.daemon.module": "warm_daemon",
    }
    lines = [f"{name} {value}" for name, value in settings.items()]
    (folder / "spark-defaults.conf").write_text("\n".join(lines) + "\n")


def shown(notebook):
    """What each code cell shows, without pictures, and without stderr, where Spark's JVM logs."""
    return [_shown_by(cell) for cell in notebook.cells if cell.cell_type == "code"]


def _shown_by(cell):
    return _PICTURE.sub("picture", "".join(map(_text_of, cell.outputs)))


def _text_of(output):
    if output.output_type == "stream":
        return "" if output.name == "stderr" else output.text
    return "".join(text for kind, text in sorted(output.data.items()) if kind.startswith("text/"))


def record(name):
    """Run a notebook once, and store its outputs in its file."""
    notebook = read_notebook(name)
    with tempfile.TemporaryDirectory() as folder, open_notebook(notebook, Path(folder)) as kernel:
        kernel.run_cells()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, NOTEBOOKS / f"{name}.ipynb")


if __name__ == "__main__":
    for name in sys.argv[1:] or [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]:
        print(name, flush=True)
        record(name)
