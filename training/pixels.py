"""From bytes to what a model sees, in training and in the checkpoint's processor alike."""

import json
from pathlib import Path

import torch

from training.pictures import IMAGE_SIZE

_MEAN = (0.5, 0.5, 0.5)
_STD = (0.25, 0.25, 0.25)
_BICUBIC = 3


def scaled(pixels: torch.Tensor, jitter: bool = False) -> torch.Tensor:
    """Rescale and normalise as the processor does.

    Args:
        pixels: uint8 `[images, 3, height, width]`.
        jitter: Also change brightness and contrast of each image a little, and add noise.

    Returns:
        float32, of the same shape.
    """
    values = pixels.float() / 255
    if jitter:
        images = len(values)
        contrast = 1 + 0.1 * (2 * torch.rand(images, 1, 1, 1) - 1)
        brightness = 0.04 * (2 * torch.rand(images, 1, 1, 1) - 1)
        values = (values - 0.5) * contrast + 0.5 + brightness
        values = (values + 0.01 * torch.randn_like(values)).clamp(0, 1)
    return (values - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)


def write_processor(folder: Path, kind: str) -> None:
    """Write `preprocessor_config.json`: squash to a square, cut nothing off, normalise.

    Args:
        folder: Of the checkpoint.
        kind: Class name of the image processor.
    """
    settings = {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "resample": _BICUBIC,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _MEAN,
        "image_std": _STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
