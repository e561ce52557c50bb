"""What an image file's header says, and what decoding would cost: in bytes and in work.

Bytes are the peak memory for pixels: the decoder's buffers and the result. The encoded file and its
copies are not included; `max_bytes` limits them. The factors were measured as the growth of a
process. `EXTRA_BYTES` covers what a decoder needs regardless of the size.

The unit of work is one sample processed by a JPEG decoder; a core processes some hundred million
per second. Other work is converted to this unit by its duration.
"""

from enum import StrEnum
from typing import NamedTuple

from spark_vision.errors import RowFailure, Status
from spark_vision.operators import ImageLimits

BYTES_PER_PIXEL = 4
EXTRA_BYTES = 64 * 2**20
"""The memory limit of one image: bytes per pixel of `max_pixels`, plus a constant."""

WORK_PER_PIXEL = 32
EXTRA_WORK = 2**27
"""The work limit of one image: units per pixel of `max_pixels`, plus a constant."""

RESULT = 3
"""The RGB result. All of these constants are bytes per pixel."""
ONE_CHANNEL = {1: 1, 2: 1, 4: 1, 8: 1, 16: 2}
"""Pillow's one-channel image, by bits per sample; for other depths it takes `COLOR`."""
COLOR = 4
GIF = 2
"""Pillow's image, and its copy for disposing of the frame."""
BMP_RUNS = 3
"""The expanded runs: the growing buffer and its final copy."""
JPEG_COEFFICIENT = 2
"""Per sample of a JPEG with several scans, which are all buffered until the last one."""
WEBP_LOSSLESS = 4
"""libwebp's buffer for a lossless picture."""
WEBP_BY_PILLOW = 13
"""Two canvases, the pixels as bytes, and the image, all in addition to the result."""
AVIF = 12
AVIF_HIGH_BIT_DEPTH = 16
"""The planes, the pixels as bytes, the image and the result."""

ROW = 32
"""Buffers of single rows, which matter in pictures with few rows: bytes per pixel of a row."""
BMP_RUN_WORK = 512
"""Pillow expands runs in Python: work per pixel, and per byte of the file."""
TIFF_WORK = 4
"""Work for decompressing a sample."""
TIFF_PIECE_BYTES = 640
"""Pillow's record of each strip or tile."""


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
        work: Work for decoding beyond the usual work per pixel, in the unit of this module.
    """

    format: Format
    size: tuple[int, int]
    orientation: int = 1
    is_plain: bool = False
    peak_bytes: int = 0
    work: int = 0


def max_decode_bytes(limits: ImageLimits) -> int:
    """Return the maximum peak memory, in bytes, for decoding one image."""
    return BYTES_PER_PIXEL * limits.max_pixels + EXTRA_BYTES


def max_decode_work(limits: ImageLimits) -> int:
    """Return the maximum work for decoding one image."""
    return WORK_PER_PIXEL * limits.max_pixels + EXTRA_WORK


def estimate_bytes(size: tuple[int, int], bytes_per_pixel: int) -> int:
    """Estimate peak memory that is proportional to the pixels.

    Args:
        size: Width and height in pixels.
        bytes_per_pixel: Total of all buffers.
    """
    width, height = size
    return width * height * bytes_per_pixel + width * ROW


def check_cost(format: str, peak_bytes: int, work: int, limits: ImageLimits) -> None:
    """Reject an image that costs too much, regardless of its number of pixels.

    Raises:
        RowFailure: `too_large`.
    """
    if peak_bytes > max_decode_bytes(limits):
        raise RowFailure(
            Status.TOO_LARGE,
            f"decoding this {format} takes {peak_bytes:,} bytes, more than the "
            f"{max_decode_bytes(limits):,} allowed with max_pixels={limits.max_pixels}",
        )
    if work > max_decode_work(limits):
        raise RowFailure(
            Status.TOO_LARGE,
            f"the {format} has so many scans, runs or hidden pixels that decoding takes "
            f"{work / max_decode_work(limits):.1f} times the work allowed with "
            f"max_pixels={limits.max_pixels}",
        )
