"""Converts the pixels of Spark's image struct to an RGB tensor."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from spark_vision.errors import RowFailure, Status
from spark_vision.images.sources import RawImage

_BAND_PIXELS = 2**18
_CHANNELS_OF_MODE = {0: 1, 16: 3, 24: 4}
"""OpenCV's CV_8UC1 (gray), CV_8UC3 (BGR) and CV_8UC4 (BGRA): the only modes that Spark writes."""


def decode_raw(image: RawImage) -> torch.Tensor:
    """Convert gray, BGR or BGRA bytes to RGB, with alpha composited on white.

    Args:
        image: An image with at least one pixel.

    Returns:
        uint8 `[3, height, width]`, interleaved in memory.

    Raises:
        RowFailure: `unsupported_format`, `incomplete` or `decode_error`.
    """
    channels = _CHANNELS_OF_MODE.get(image.mode)
    if channels is None:
        raise RowFailure(
            Status.UNSUPPORTED_FORMAT,
            f"the image struct has mode {image.mode}; supported: 0 (gray), 16 (BGR), 24 (BGRA)",
        )
    expected = image.height * image.width * channels
    if channels != image.channels or len(image.data) > expected:
        raise RowFailure(
            Status.DECODE_ERROR,
            f"the image struct is inconsistent: {image.height} × {image.width} pixels of mode "
            f"{image.mode}, nChannels {image.channels}, {len(image.data):,} bytes",
        )
    if len(image.data) < expected:
        raise RowFailure(
            Status.INCOMPLETE,
            f"the image struct has only {len(image.data):,} of {expected:,} bytes of pixels",
        )
    pixels = image.data.numpy().reshape(image.height, image.width, channels)
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    row_count = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, row_count):
        rgb[top : top + row_count] = _to_rgb(pixels[top : top + row_count])
    return torch.from_numpy(rgb).permute(2, 0, 1)


def _to_rgb(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Convert a band of rows, `[rows, width, 1, 3 or 4]`; bands keep temporary arrays small."""
    channels = pixels.shape[2]
    if channels == 4:
        alpha = pixels[..., 3:].astype(np.uint16)
        # Adding 127 before the division by 255 rounds to nearest.
        blended: npt.NDArray[np.uint16] = (
            pixels[..., :3] * alpha + (255 - alpha) * 255 + 127
        ) // 255
        return blended[..., ::-1]
    return pixels[..., ::-1] if channels == 3 else pixels
