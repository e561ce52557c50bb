"""The shipped dinov2 and clip are checkpoints that transformers loads by itself."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, CLIPModel, Dinov2Model

from spark_vision.demo import checkpoint_path
from spark_vision.errors import InvalidOptionError


@pytest.mark.parametrize(("name", "model"), [("dinov2", Dinov2Model), ("clip", CLIPModel)])
def test_plain_transformers_loads_the_checkpoint(name, model):
    folder = checkpoint_path(name)
    loaded = AutoModel.from_pretrained(folder)
    assert type(loaded) is model
    assert loaded.dtype == torch.bfloat16
    processor = AutoProcessor.from_pretrained(folder)
    image = Image.fromarray(np.zeros((30, 50, 3), dtype=np.uint8))
    assert processor(images=image, return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)


def test_unknown_checkpoint_is_refused():
    with pytest.raises(InvalidOptionError, match="'resnet'; allowed: dinov2, clip, qwen2_5_vl"):
        checkpoint_path("resnet")
