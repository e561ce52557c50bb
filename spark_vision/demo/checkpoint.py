"""Writes a small checkpoint for the demonstration: a real DINOv2 with random weights."""

import json
from pathlib import Path

import torch
from transformers import Dinov2Config, Dinov2Model

_CROP_SIZE = 112
_PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 128},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": _CROP_SIZE, "width": _CROP_SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def write_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write a DINOv2 of a million parameters, whose vectors have 128 numbers and no meaning.

    Args:
        folder: Made if it is not there.
        seed: Decides the weights.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = Dinov2Config(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=_CROP_SIZE,
        patch_size=14,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Dinov2Model(config)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR, indent=2))
    return folder
