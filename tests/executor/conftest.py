"""What the tests of the executor share: results that no clock cuts into pieces."""

import pytest

from spark_vision.executor import failures, image_columns


@pytest.fixture(autouse=True)
def _whole_outputs(monkeypatch):
    """On a busy machine a test's few rows could come in two arrays."""
    for module in (failures, image_columns):
        monkeypatch.setattr(module, "OUTPUT_WAIT_SECONDS", 3600.0)
