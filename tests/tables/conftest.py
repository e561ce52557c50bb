"""What the tests of tables share: how images are read, and their operator."""

import pytest

from spark_vision import ImageViTEmbedding


@pytest.fixture
def read_photos(spark, photos):
    """Reads the folder as it is now."""
    return lambda: spark.read.format("binaryFile").load(str(photos))


@pytest.fixture
def dino(checkpoints):
    return ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))


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
