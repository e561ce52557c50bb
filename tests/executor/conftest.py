"""What the tests of the executor share: results that no clock cuts into pieces."""

import pytest

from spark_vision.executor import failures


@pytest.fixture(autouse=True)
def _whole_outputs(monkeypatch):
    """On a busy machine a test's few rows could come in two arrays."""
    monkeypatch.setattr(failures, "OUTPUT_WAIT_SECONDS", 3600.0)
