"""What an image file's header says, for every format."""

from enum import StrEnum
from typing import NamedTuple


class Format(StrEnum):
    """The supported formats; the values are Pillow's names."""

    JPEG = "JPEG"
    PNG = "PNG"
    GIF = "GIF"
    WEBP = "WEBP"
    BMP = "BMP"
    TIFF = "TIFF"
    AVIF = "AVIF"


class Header(NamedTuple):
    """The header of an image of any format.

    Attributes:
        format: The file format.
        size: Width and height in pixels, as stored.
        orientation: EXIF orientation, 1 to 8; read for plain images only.
        is_plain: Whether it is one frame of opaque 8-bit pixels, without alpha or animation; only
            for JPEG and WebP.
        peak_bytes: Peak memory for decoding to uint8 RGB, including the result.
        work: Work for decoding beyond the usual work per pixel, in the unit of `cost`.
    """

    format: Format
    size: tuple[int, int]
    orientation: int = 1
    is_plain: bool = False
    peak_bytes: int = 0
    work: int = 0
