"""What the tests of tables share: a folder of images, and their operator."""

import pytest

from encoded_images import encode, photo
from spark_vision import ImageViTEmbedding


@pytest.fixture
def photos(tmp_path):
    """Six photographs and a text that claims to be one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.jpg").write_bytes(encode(photo(48 + index, 40, seed=index), "JPEG"))
    (folder / "text.jpg").write_bytes(b"not an image")
    return folder


@pytest.fixture
def read_photos(spark, photos):
    """Reads the folder as it is now."""
    return lambda: spark.read.format("binaryFile").load(str(photos))


@pytest.fixture
def dino(checkpoints):
    return ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))


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
