"""Photographs that scikit-image has, as JPEG files whose size can be divided by eight."""

from functools import cache

from PIL import Image
from skimage import data

from encoded_images import encode

NAMES = ("astronaut", "coffee", "immunohistochemistry", "retina", "rocket", "brick", "grass",
         "gravel", "camera", "moon", "hubble_deep_field")  # fmt: skip


@cache
def read_photographs() -> dict[str, bytes]:
    """Return JPEG files by name, of 512 × 424 to 1408 × 1408 pixels, in colour and gray."""
    pixels = {name: getattr(data, name)() for name in NAMES}
    pixels["motorcycle"] = data.stereo_motorcycle()[0]
    return {
        name: encode(Image.fromarray(each[: height // 8 * 8, : width // 8 * 8]), "JPEG", quality=90)
        for name, each in pixels.items()
        for height, width in [each.shape[:2]]
    }
