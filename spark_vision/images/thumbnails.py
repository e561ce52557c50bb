"""Encodes decoded pixels as a small JPEG, for pages and notebooks."""

import io

import torch
from PIL import Image


def encode_thumbnail(pixels: torch.Tensor, max_side: int) -> bytes:
    """Shrink an image, if it is larger, and encode it.

    Args:
        pixels: uint8 `[3, height, width]` RGB, as `decode` returns it.
        max_side: Maximum width and height in pixels; the aspect ratio is kept.

    Returns:
        A JPEG file.
    """
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
