"""Draws images for the demonstration: shapes on gradients, and a few files that are no images."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

_SIZES = ((320, 240), (240, 320), (256, 256), (500, 375))
_FORMATS = ("jpg", "png", "webp")
_SHAPES = ("ellipse", "rectangle", "triangle")


def write_images(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write images, and beside them an empty file, a text and a truncated JPEG.

    Args:
        folder: Made if it is not there; files of the same names are overwritten.
        count: Images that can be read; the three that cannot come on top.
        seed: Decides every pixel, and nothing else does.

    Returns:
        The files, the bad ones last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    written = []
    for index in range(count):
        path = folder / f"shapes-{index:04}.{_FORMATS[index % len(_FORMATS)]}"
        _draw(random, _SIZES[index % len(_SIZES)]).save(path)
        written.append(path)
    jpeg = folder / "truncated.jpg"
    _draw(random, _SIZES[0]).save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])
    empty = folder / "empty.jpg"
    empty.write_bytes(b"")
    text = folder / "text.jpg"
    text.write_text("This is not an image.\n")
    return [*written, empty, text, jpeg]


def _draw(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    width, height = size
    corners = random.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    for _ in range(int(random.integers(1, 5))):
        shape = _SHAPES[int(random.integers(len(_SHAPES)))]
        red, green, blue = (int(value) for value in random.integers(0, 256, 3))
        left, right = sorted(int(value) for value in random.integers(0, width, 2))
        top, bottom = sorted(int(value) for value in random.integers(0, height, 2))
        if shape == "ellipse":
            pen.ellipse((left, top, right, bottom), fill=(red, green, blue))
        elif shape == "rectangle":
            pen.rectangle((left, top, right, bottom), fill=(red, green, blue))
        else:
            corner = ((left + right) // 2, top)
            pen.polygon((corner, (left, bottom), (right, bottom)), fill=(red, green, blue))
    return image
