"""The notebooks run from top to bottom, show what is stored in them, and compute nothing twice."""

import json

import pytest

from executed_notebooks import NOTEBOOKS, open_notebook, read_notebook, shown

MAX_BYTES = 300_000
# Which processes hold a model, said by the model itself.
PROBE = """
from spark_vision import model_placement
placed = {source}.select(model_placement("{image}", {operator}).alias("placed"))
print([row.server_pid for row in placed.select("placed.server_pid").dropna().distinct().collect()])
"""
PROBED = {
    "quickstart": {"source": "photos", "image": "content", "operator": "dino"},
    "migrate_from_las_daft": {"source": "samples", "image": "image_path", "operator": "vit"},
    "index_and_search": {"source": "photos", "image": "content", "operator": "clip"},
}


def test_every_notebook_is_run_small_and_starts_with_what_differs_on_databricks():
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert {path.stem for path in paths} == set(PROBED)
    for path in paths:
        assert path.stat().st_size < MAX_BYTES
        first = read_notebook(path.stem).cells[0]
        assert first.cell_type == "markdown"
        assert "This notebook was not run on Databricks." in first.source
        for what in ("libraries", "runtime", "access mode", "files", "checkpoints", "tables"):
            assert f"| {what} |" in first.source


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PROBED)
def test_a_notebook_shows_what_is_stored_in_it_and_computes_nothing_twice(name, tmp_path):
    notebook = read_notebook(name)
    stored = shown(notebook)
    assert sum('<img src="picture"' in text for text in stored) >= 2
    probe = PROBE.format(**PROBED[name])
    with open_notebook(notebook, tmp_path) as kernel:
        kernel.run_cells()
        assert shown(notebook) == stored
        servers = kernel.run(probe)
        kernel.run_cells()
        assert kernel.run(probe) == servers
        assert len(json.loads(servers)) == 1
        assert kernel.run("print(result.computed_rows)") == "0\n"
        assert kernel.run("print(result.existing_rows == result.source_rows > 0)") == "True\n"
