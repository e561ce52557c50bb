"""What the tests of tables share."""

import pytest


@pytest.fixture
def table(tmp_path):
    """The folder of a table that a write makes."""
    return str(tmp_path / "vectors")


@pytest.fixture
def kill_at(monkeypatch):
    """Makes a write stop as if killed before or after a step."""

    def kill(owner, name, error, *, after=False):
        work = getattr(owner, name)

        def killed(*args, **kwargs):
            if after:
                work(*args, **kwargs)
            raise error

        monkeypatch.setattr(owner, name, killed)

    return kill
