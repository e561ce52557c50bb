"""What decoding an image would cost, in bytes and in work, judged by its header alone.

Bytes are those of the pixels at the worst moment: the decoder's own buffers and the result. The
encoded file and its copies are not counted; `max_bytes` bounds them. The factors were measured as
the growth of a process; what a decoder needs whatever the size is in `EXTRA_BYTES`.

Work is counted in samples that a JPEG decoder passes over, of which a core does some hundred
millions a second. Other work is counted as so many of these as take as long.
"""

from spark_vision.errors import RowFailure, Status
from spark_vision.operators import ImageLimits

BYTES_PER_PIXEL = 4
EXTRA_BYTES = 64 * 2**20
"""One image may take so many bytes for each pixel of `max_pixels`, and so many more."""

WORK_PER_PIXEL = 32
EXTRA_WORK = 2**27
"""One image may be so much work for each pixel of `max_pixels`, and so much more."""

RESULT = 3
"""RGB as it is given back. All of these are bytes per pixel."""
ONE_CHANNEL = {1: 1, 2: 1, 4: 1, 8: 1, 16: 2}
"""Pillow's image of one channel, by the bits of a sample; else it takes `COLOR`."""
COLOR = 4
GIF = 2
"""Pillow's image, and what it keeps to undo the frame."""
BMP_RUNS = 3
"""The expanded runs, as they grow and once more when they are handed over."""
JPEG_COEFFICIENT = 2
"""Per sample, where a JPEG comes in several scans and all of it must wait for the last."""
WEBP_LOSSLESS = 4
"""What libwebp holds of a lossless picture."""
WEBP_BY_PILLOW = 13
"""Two canvases, the pixels as bytes, and the image; all of them stand beside the result."""
AVIF = 12
AVIF_HIGH_BIT_DEPTH = 16
"""The planes, the pixels as bytes, the image and the result."""

ROW = 32
"""Buffers of single rows, which matter in pictures of few rows: bytes per pixel of one."""
BMP_RUN_WORK = 512
"""Pillow expands run lengths in Python: per pixel, and per byte of the file."""
TIFF_WORK = 4
"""To decompress a sample."""
TIFF_PIECE_BYTES = 640
"""What Pillow notes of each strip or tile."""


def most_bytes(limits: ImageLimits) -> int:
    """Say what one image may take at the worst moment of decoding it."""
    return BYTES_PER_PIXEL * limits.max_pixels + EXTRA_BYTES


def most_work(limits: ImageLimits) -> int:
    """Say how much work one image may be."""
    return WORK_PER_PIXEL * limits.max_pixels + EXTRA_WORK


def bytes_of(size: tuple[int, int], bytes_per_pixel: int) -> int:
    """Estimate the peak where it is in proportion to the pixels.

    Args:
        size: Width and height in pixels.
        bytes_per_pixel: Of all buffers together.
    """
    width, height = size
    return width * height * bytes_per_pixel + width * ROW


def check_cost(format: str, peak_bytes: int, work: int, limits: ImageLimits) -> None:
    """Refuse an image that would cost too much, whatever the number of its pixels.

    Raises:
        RowFailure: `too_large`.
    """
    if peak_bytes > most_bytes(limits):
        raise RowFailure(
            Status.TOO_LARGE,
            f"a {format} of this size and kind takes {peak_bytes:,} bytes to decode, more than the "
            f"{most_bytes(limits):,} that go with max_pixels={limits.max_pixels}",
        )
    if work > most_work(limits):
        raise RowFailure(
            Status.TOO_LARGE,
            f"the {format} has so many scans, runs or hidden pixels that it takes "
            f"{work / most_work(limits):.1f} times the work that goes with "
            f"max_pixels={limits.max_pixels}",
        )
