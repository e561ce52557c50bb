"""From an encoded image, or a struct of raw pixels, to a uint8 RGB tensor, within limits.

Our rules, where decoders differ: EXIF orientation is applied; alpha is composited on white; 16-bit
values are scaled; the first frame stands for an animation; CMYK becomes RGB without a profile, and
colour profiles are not applied.

torchvision decodes JPEG and plain WebP, Pillow the rest. JPEG, PNG and WebP are decoded in this
process: libjpeg-turbo and libwebp are what browsers run, and zlib stands behind every PNG. GIF,
BMP, TIFF and AVIF have decoders that fewer people attack and mend: they run in a process of their
own, which may hang or die. What dies here all the same takes the worker with it; the next attempt
of Spark then isolates every image.

PNG is not left to torchvision although it is a little faster there: `decode_png` of 0.29 ends the
process with a segmentation fault when the file is corrupt.
"""

import re
from typing import NamedTuple

import torch
import torchvision.io

from spark_vision.errors import RowFailure, Status
from spark_vision.images import cost
from spark_vision.images.completeness import ends_early
from spark_vision.images.headers import Format, Header, read_header
from spark_vision.images.isolated_decoding import decode_isolated
from spark_vision.images.orientation import turn_upright
from spark_vision.images.pillow_decoding import decode_by_pillow
from spark_vision.images.raw_pixels import decode_raw
from spark_vision.images.sources import EncodedImage, RawImage
from spark_vision.operators import ImageLimits

_RGB = torchvision.io.ImageReadMode.RGB.value
_ISOLATED = (Format.GIF, Format.BMP, Format.TIFF, Format.AVIF)
_CODE_PLACE = re.compile(r"^.*\.cpp:\d+,\s*")


class Judged(NamedTuple):
    """An image that is worth decoding.

    Attributes:
        image: The image.
        header: Of an encoded image.
        peak_bytes: What decoding takes at its worst moment, the result included.
    """

    image: EncodedImage | RawImage
    header: Header | None
    peak_bytes: int


def decode(
    image: EncodedImage | RawImage,
    limits: ImageLimits,
    *,
    isolate: bool = False,
) -> torch.Tensor:
    """Decode one image.

    The tensor is interleaved in memory (channels last) wherever the decoder gives that, and is not
    copied to make it so. No intra-op threads of torch take part but for turning an image upright.

    Args:
        image: What `ImageColumn.read` gives.
        limits: `max_pixels` bounds pixels, memory (`cost.most_bytes`) and work (`cost.most_work`),
            all of them before memory for the pixels is taken.
        isolate: Decode whatever it is in a process of its own, not only the rarer formats.

    Returns:
        uint8 `[3, height, width]` RGB.

    Raises:
        RowFailure: `not_an_image`, `unsupported_format`, `incomplete`, `decode_error`,
            `too_large`, `bad_dimensions`, `timeout` or `out_of_memory`.
    """
    return decode_judged(judge(image, limits), limits, isolate=isolate)


def judge(image: EncodedImage | RawImage, limits: ImageLimits) -> Judged:
    """Read what an image says of itself, and refuse it if it would cost too much.

    Args:
        image: What `ImageColumn.read` gives.
        limits: As for `decode`.

    Returns:
        What `decode_judged` takes.

    Raises:
        RowFailure: `not_an_image`, `unsupported_format`, `incomplete`, `decode_error`,
            `too_large` or `bad_dimensions`.
    """
    if isinstance(image, RawImage):
        size = image.width, image.height
        check_size(size, limits)
        return Judged(image, None, cost.bytes_of(size, cost.RESULT))
    header = read_header(image.numpy().data)
    check_size(header.size, limits)
    cost.check_cost(header.format, header.peak_bytes, header.work, limits)
    return Judged(image, header, header.peak_bytes)


def decode_judged(judged: Judged, limits: ImageLimits, *, isolate: bool = False) -> torch.Tensor:
    """As `decode`, of an image whose header is known already."""
    image, header, _ = judged
    if isinstance(image, RawImage):
        return decode_raw(image)
    assert header is not None
    data = image.numpy().data

    def check(size: tuple[int, int]) -> None:
        check_size(size, limits)

    decoded = None
    if isolate or header.format in _ISOLATED:
        orientation = header.orientation if header.is_plain else 0
        decoded = decode_isolated(data, header.format, check, limits, orientation)
    if decoded is None and not header.is_plain:
        decoded = decode_by_pillow(data, header.format, check)
    if decoded is not None:
        return torch.from_numpy(decoded).permute(2, 0, 1)
    pixels = _decode_by_torchvision(image, header.format)
    return turn_upright(pixels, header.orientation) if header.orientation != 1 else pixels


def check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    """Refuse an image without pixels, or with too many.

    Args:
        size: Width and height in pixels.
        limits: Their `max_pixels` counts.

    Raises:
        RowFailure: `bad_dimensions` or `too_large`.
    """
    width, height = size
    if width < 1 or height < 1:
        raise RowFailure(Status.BAD_DIMENSIONS, f"the image is {width} × {height} pixels")
    if width * height > limits.max_pixels:
        raise RowFailure(
            Status.TOO_LARGE,
            f"the image has {width} × {height} pixels, more than the {limits.max_pixels:,} allowed",
        )


def _decode_by_torchvision(image: EncodedImage, format: Format) -> torch.Tensor:
    # The registered operators are called themselves: their wrappers in torchvision.io add a
    # deprecation warning per image from 0.29 on.
    try:
        pixels: torch.Tensor = (
            torch.ops.image.decode_jpeg(image, _RGB, False)
            if format is Format.JPEG
            else torch.ops.image.decode_webp(image, _RGB)
        )
    except RuntimeError as error:
        raise _name_failure(image, format, str(error)) from error
    return pixels


def _name_failure(image: EncodedImage, format: Format, message: str) -> RowFailure:
    """Say what an error of torchvision means for the row."""
    reason = _CODE_PLACE.sub("", message.splitlines()[0])
    if "allocate" in reason:
        return RowFailure(Status.OUT_OF_MEMORY, f"no memory for the pixels of the {format}")
    if "truncated" in reason or ends_early(format, image.numpy().data):
        return RowFailure(Status.INCOMPLETE, f"the {format} ends before its pixels do")
    if reason.startswith("Unsupported"):
        return RowFailure(Status.UNSUPPORTED_FORMAT, f"a {format} of a kind not read: {reason}")
    return RowFailure(Status.DECODE_ERROR, f"the {format} is corrupt: {reason}")
