"""Decodes an encoded image, or a struct of raw pixels, to a uint8 RGB tensor, within limits.

Conventions where decoders differ: EXIF orientation is applied; alpha is composited on white; 16-bit
values are scaled; an animation is represented by its first frame; CMYK is converted to RGB without
a profile, and colour profiles are not applied.

torchvision decodes JPEG and plain WebP, Pillow the rest. A large JPEG may be scaled down: Pillow
then lets libjpeg compute fewer pixels of the same data, which takes less time than all of them.

JPEG, PNG and WebP are decoded in this process: browsers use the same libraries. The decoders of
GIF, BMP, TIFF and AVIF are less hardened; they run in a child process, which may hang or crash. If
a decoder still crashes the worker, the next attempt of the Spark task isolates every image.

PNG is not decoded by torchvision, although that is slightly faster: its `decode_png` 0.29 crashes
with a segmentation fault on corrupt files.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torchvision.io

from spark_vision.errors import RowFailure, Status
from spark_vision.images import cost
from spark_vision.images.cost import Format, Header
from spark_vision.images.headers import read_header
from spark_vision.images.isolated_decoding import decode_isolated
from spark_vision.images.orientation import apply_orientation
from spark_vision.images.pillow_decoding import decode_by_pillow, translate_errors
from spark_vision.images.sources import EncodedImage, RawImage
from spark_vision.operators import ImageLimits

ResizedSize = Callable[[int, int], tuple[int, int]]
"""From the height and width of an image to those that a model resizes it to."""

_SCALES = (8, 4, 2)
_ENOUGH = 3
"""A scaled image has at least this many times the height and width that a model resizes it to."""
_RGB = torchvision.io.ImageReadMode.RGB.value
_NOTHING: AbstractContextManager[Any] = nullcontext()
_ISOLATED = (Format.GIF, Format.BMP, Format.TIFF, Format.AVIF)
_CHANNELS_OF_MODE = {0: 1, 16: 3, 24: 4}
"""OpenCV's CV_8UC1 (gray), CV_8UC3 (BGR) and CV_8UC4 (BGRA): the only modes that Spark writes."""
_BAND_PIXELS = 2**18


class InspectedImage(NamedTuple):
    """An image whose header was checked against the limits.

    Attributes:
        image: The image.
        header: The header of an encoded image.
        peak_bytes: Peak memory for decoding, including the result.
        scale: The decoder divides height and width by it: 1, 2, 4 or 8.
    """

    image: EncodedImage | RawImage
    header: Header | None
    peak_bytes: int
    scale: int = 1


def decode(
    image: EncodedImage | RawImage,
    limits: ImageLimits,
    *,
    isolate: bool = False,
    resized_sizes: Sequence[ResizedSize] = (),
) -> torch.Tensor:
    """Decode one image.

    The tensor is interleaved in memory (channels last) where the decoder returns that; it is never
    copied for it. torch uses intra-op threads only to turn an image upright.

    Args:
        image: What `ImageColumn.read` returns.
        limits: `max_pixels` limits pixels, memory and work (see `cost`), all of them before memory
            for the pixels is allocated.
        isolate: Decode every format in a child process, not only the rarer ones.
        resized_sizes: As for `inspect_image`.

    Returns:
        uint8 `[3, height, width]` RGB.

    Raises:
        RowFailure: `not_an_image`, `unsupported_format`, `incomplete`, `decode_error`,
            `too_large`, `bad_dimensions`, `timeout` or `out_of_memory`.
    """
    return decode_inspected(inspect_image(image, limits, resized_sizes), limits, isolate=isolate)


def inspect_image(
    image: EncodedImage | RawImage, limits: ImageLimits, resized_sizes: Sequence[ResizedSize] = ()
) -> InspectedImage:
    """Read an image's header, and reject the image if decoding would cost too much.

    Args:
        image: What `ImageColumn.read` returns.
        limits: As for `decode`.
        resized_sizes: Of the models for which a large JPEG may be scaled down; without any, it is
            decoded in full.

    Returns:
        The argument of `decode_inspected`.

    Raises:
        RowFailure: `not_an_image`, `unsupported_format`, `incomplete`, `decode_error`,
            `too_large` or `bad_dimensions`.
    """
    if isinstance(image, RawImage):
        size = image.width, image.height
        check_size(size, limits)
        return InspectedImage(image, None, cost.estimate_bytes(size, cost.RESULT))
    header = read_header(image.numpy().data)
    check_size(header.size, limits)
    cost.check_cost(header.format, header.peak_bytes, header.work, limits)
    scale = _choose_scale(header, resized_sizes)
    peak_bytes = header.peak_bytes
    if scale > 1:
        peak_bytes -= cost.estimate_bytes(header.size, cost.RESULT)
        scaled_size = header.size[0] // scale, header.size[1] // scale
        peak_bytes += cost.estimate_bytes(scaled_size, cost.COLOR + cost.RESULT)
    return InspectedImage(image, header, peak_bytes, scale)


def decode_inspected(
    inspected: InspectedImage,
    limits: ImageLimits,
    *,
    isolate: bool = False,
    watch: AbstractContextManager[Any] = _NOTHING,
) -> torch.Tensor:
    """Decode an image like `decode`, with its header already read.

    Args:
        inspected: The image and its header.
        limits: As for `decode`.
        isolate: As for `decode`.
        watch: Entered while this process decodes; another process has a time limit of its own.
    """
    image, header, _, scale = inspected
    if isinstance(image, RawImage):
        return _decode_raw(image)
    assert header is not None
    data = image.numpy().data

    def check(size: tuple[int, int]) -> None:
        check_size(size, limits)

    decoded = None
    orientation = header.orientation if header.is_plain else 0
    if isolate or header.format in _ISOLATED:
        decoded = decode_isolated(data, header.format, check, limits, orientation, scale)
    if decoded is None:
        with watch:
            if scale > 1 or not header.is_plain:
                decoded = decode_by_pillow(data, header.format, check, orientation, scale)
            if decoded is None:
                pixels = _decode_by_torchvision(image, header.format)
                turned = header.orientation != 1
                return apply_orientation(pixels, header.orientation) if turned else pixels
    return torch.from_numpy(decoded).permute(2, 0, 1)


def check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    """Reject an image without pixels, or with too many.

    Args:
        size: Width and height in pixels.
        limits: Of which `max_pixels` applies.

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


def _choose_scale(header: Header, resized_sizes: Sequence[ResizedSize]) -> int:
    """Return the largest divisor of a JPEG's size that leaves enough pixels for every model.

    A size that it does not divide would be rounded, which shifts and stretches the image by a part
    of a pixel.
    """
    if header.format is not Format.JPEG or not resized_sizes:
        return 1
    width, height = header.size if header.orientation < 5 else reversed(header.size)
    sizes = [size(height, width) for size in resized_sizes]
    needed_height, needed_width = (_ENOUGH * max(sides) for sides in zip(*sizes, strict=True))
    for scale in _SCALES:
        is_whole = height % scale == width % scale == 0
        if is_whole and height // scale >= needed_height and width // scale >= needed_width:
            return scale
    return 1


def _decode_raw(image: RawImage) -> torch.Tensor:
    """Convert gray, BGR or BGRA bytes to RGB, with alpha composited on white.

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
        rgb[top : top + row_count] = _raw_to_rgb(pixels[top : top + row_count])
    return torch.from_numpy(rgb).permute(2, 0, 1)


def _raw_to_rgb(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
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


def _decode_by_torchvision(image: EncodedImage, format: Format) -> torch.Tensor:
    # Calls the registered operators directly: from 0.29 on their wrappers in torchvision.io emit a
    # deprecation warning per image.
    if format is Format.JPEG:
        decode = partial(torch.ops.image.decode_jpeg, image, _RGB, False)
    else:
        decode = partial(torch.ops.image.decode_webp, image, _RGB)
    with translate_errors(image.numpy().data, format):
        pixels: torch.Tensor = decode()
    return pixels
