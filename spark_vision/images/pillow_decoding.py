"""Decoding by Pillow, without torch: in this process, or in one that may be killed.

The decoders are called by class, so that these formats and no others are ever tried. Pixels are
brought to RGB in bands of rows, so that beside Pillow's own image only the result takes memory.
Samples that are not 8 bits wide are scaled so that the widest value is white:

- 16 bits: value / 257, rounded; of 16-bit RGB in TIFF Pillow gives only the upper byte, which is
  at most one level away from that.
- Floating point (TIFF): 0 is black and 1 white, values outside are clipped, not-a-number is black.
- Signed and 32-bit integers (TIFF) have no white that is agreed on, and are refused.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import DecompressionBombError, Image, fromarray, new
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from spark_vision.errors import RowFailure, Status
from spark_vision.images.completeness import ends_early
from spark_vision.images.headers import Format
from spark_vision.images.orientation import EXIF_PREFIX, stated_orientation, xmp_orientation
from spark_vision.images.png_chunks import check_png

CheckSize = Callable[[tuple[int, int]], None]
Pixels = npt.NDArray[np.uint8]

_DECODERS: dict[Format, type[ImageFile]] = {
    Format.JPEG: JpegImageFile,
    Format.PNG: PngImageFile,
    Format.GIF: GifImageFile,
    Format.WEBP: WebPImageFile,
    Format.BMP: BmpImageFile,
    Format.TIFF: TiffImageFile,
    Format.AVIF: AvifImageFile,
}
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_CUT_SHORT = re.compile("truncated|no more images", re.IGNORECASE)
_NOT_READ = re.compile("^Unsupported|unknown pixel mode|not yet supported")
_NO_MEMORY = re.compile("out of memory", re.IGNORECASE)
_SIGNED = 2
_BAND_PIXELS = 2**18
_FLIPPED_AXES = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
_BOTH_BYTES = {
    "RGB;16B": ("RGB;16B", "RGB;16L"),
    "RGBA;16B": ("RGBA;16B", "RGBA;16L"),
    "LA;16B": ("RGBA",),
}
"""By Pillow's layout of a 16-bit PNG: the layouts that together give the two bytes of a sample."""

_LEVELS = ((np.arange(2**16, dtype=np.uint32) + 128) // 257).astype(np.uint8)
"""The 8-bit level of each 16-bit value."""


class StoredRows(NamedTuple):
    """A decoded image, its rows as the file has them.

    Attributes:
        width: Pixels in a row.
        height: Rows.
        orientation: As in EXIF, 1 to 8.
        bands: The rows in order, some at a time: uint8 `[rows, width, 3]` RGB.
    """

    width: int
    height: int
    orientation: int
    bands: Iterator[Pixels]


def decode_by_pillow(data: memoryview, format: Format, check_size: CheckSize) -> Pixels:
    """Decode the first frame, upright, on white.

    Args:
        data: The whole file.
        format: What its header says it is.
        check_size: Given width and height before pixels are decoded; raises to refuse them.

    Returns:
        uint8 `[height, width, 3]` RGB.

    Raises:
        RowFailure: What `check_size` raises, `unsupported_format`, `incomplete`, `decode_error`,
            `too_large` or `out_of_memory`.
    """
    with failures_named(data, format):
        rows = decode_rows(data, format, check_size)
        upright, stored = upright_pixels(rows.width, rows.height, rows.orientation)
        top = 0
        for band in rows.bands:
            stored[top : top + len(band)] = band
            top += len(band)
        return upright


def upright_pixels(width: int, height: int, orientation: int) -> tuple[Pixels, Pixels]:
    """Make room for the pixels of an upright image.

    Args:
        width: Of the image as the file has it.
        height: Likewise.
        orientation: How it is to be turned, 1 to 8.

    Returns:
        The upright image, uint8 `[height, width, 3]` without values yet; and a view of it in which
        it lies as in the file, so that rows of the file written there come out upright.
    """
    is_turned = orientation >= 5
    upright = np.empty((width, height, 3) if is_turned else (height, width, 3), np.uint8)
    stored = np.flip(upright, _FLIPPED_AXES.get(orientation, ()))
    return upright, stored.transpose(1, 0, 2) if is_turned else stored


@contextmanager
def failures_named(data: memoryview, format: Format) -> Iterator[None]:
    """Turn whatever a decoder raises of a file into a failure of its row."""
    try:
        yield
    except RowFailure:
        raise
    except DecompressionBombError as error:
        raise RowFailure(Status.TOO_LARGE, f"the {format} is a decompression bomb") from error
    except Exception as error:  # Hostile bytes make decoders raise nearly anything.
        reason = str(error) or type(error).__name__
        if isinstance(error, MemoryError) or _NO_MEMORY.search(reason):
            named = Status.OUT_OF_MEMORY, f"no memory for the pixels of the {format}"
        elif _NOT_READ.search(reason):
            named = Status.UNSUPPORTED_FORMAT, f"a {format} of a kind not read: {reason}"
        elif _CUT_SHORT.search(reason) or ends_early(format, data):
            named = Status.INCOMPLETE, f"the {format} ends before its pixels do"
        else:
            named = Status.DECODE_ERROR, f"the {format} is corrupt: {reason}"
        raise RowFailure(*named) from error


def decode_rows(data: memoryview, format: Format, check_size: CheckSize) -> StoredRows:
    """Decode the first frame as it is stored.

    Raises:
        RowFailure: What `check_size` raises, or `unsupported_format`.
        Exception: Whatever else the decoder raises, here or between the bands.
    """
    if format is Format.AVIF and not features.check("avif"):
        raise RowFailure(Status.UNSUPPORTED_FORMAT, "this build of Pillow does not read AVIF")
    source = check_png(data) if format is Format.PNG else data
    image = _DECODERS[format](io.BytesIO(source))
    check_size(image.size)
    _check_samples(image)
    if format is Format.PNG and image.tile and image.tile[0].args in _BOTH_BYTES:
        layers = _load_both_bytes(image, source)
        return StoredRows(*image.size, _orientation(image), _sixteen_bit_bands(image, layers))
    image.load()
    bands = map(_to_rgb, _bands(image))
    return StoredRows(*image.size, _orientation(image), map(np.asarray, bands))


def _check_samples(image: ImageFile) -> None:
    """Refuse samples without an agreed white, before they are decoded."""
    if image.mode == "LAB":
        raise RowFailure(Status.UNSUPPORTED_FORMAT, "the CIELAB colour space is not read")
    if isinstance(image, TiffImageFile):
        is_signed = _SIGNED in image.tag_v2.get(SAMPLEFORMAT, ())
        if image.mode == "I" or is_signed:
            bits = image.tag_v2.get(BITSPERSAMPLE, (1,))[0]
            raise RowFailure(
                Status.UNSUPPORTED_FORMAT,
                f"{'signed' if is_signed else 'unsigned'} {bits}-bit integers have no agreed "
                "white; read are unsigned 8 and 16 bits, and floats",
            )


def _orientation(image: ImageFile) -> int:
    if isinstance(image, TiffImageFile):
        # Pillow has turned it already.
        return 1
    exif = image.info.get("exif") or b""
    stated = stated_orientation(exif.removeprefix(EXIF_PREFIX))
    if stated is not None:
        return stated
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    return xmp_orientation(xmp.encode() if isinstance(xmp, str) else xmp)


def _bands(image: Image, most_pixels: int = _BAND_PIXELS) -> Iterator[Image]:
    """Cut an image into pieces of whole rows."""
    width, height = image.size
    row_count = max(1, most_pixels // width)
    if row_count >= height:
        yield image
        return
    for top in range(0, height, row_count):
        yield image.crop((0, top, width, min(top + row_count, height)))


def _to_rgb(image: Image) -> Image:
    """Bring loaded pixels to 8-bit RGB."""
    transparent_value = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        samples = np.asarray(image)
        gray = fromarray(_LEVELS.take(samples))
        if isinstance(transparent_value, int):
            return _on_white(gray.convert("RGB"), _opacity(samples != transparent_value))
        return gray.convert("RGB")
    if image.mode == "F":
        unit = np.nan_to_num(np.asarray(image), nan=0.0).clip(0, 1)
        return fromarray((unit * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in _ALPHA_MODES or transparent_value is not None:
        rgba = image.convert("RGBA")
        white = new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _load_both_bytes(image: ImageFile, source: bytes | memoryview) -> list[ImageFile]:
    """Decode a 16-bit PNG of several channels with both bytes of each sample.

    Pillow would keep the upper byte only. Told that the pixels are laid out in another way, it
    gives the lower byte too.
    """
    layouts = _BOTH_BYTES[str(image.tile[0].args)]
    layers = [image, *(PngImageFile(io.BytesIO(source)) for _ in layouts[1:])]
    for layer, layout in zip(layers, layouts, strict=True):
        layer.tile = [layer.tile[0]._replace(args=layout)]
        layer.load()
    return layers


def _sixteen_bit_bands(image: ImageFile, layers: list[ImageFile]) -> Iterator[Pixels]:
    transparent_value = image.info.get("transparency")
    # Beside the samples of a band stand several arrays made of them.
    pieces = (_bands(layer, _BAND_PIXELS // 4) for layer in layers)
    for bands in zip(*pieces, strict=True):
        upper, *lower = (np.asarray(band).astype(np.uint16) for band in bands)
        if lower:
            samples = upper << 8 | lower[0]
        else:
            gray_and_alpha = upper[..., 0::2] << 8 | upper[..., 1::2]
            samples = gray_and_alpha[..., [0, 0, 0, 1]]
        levels = _LEVELS.take(samples)
        rgb = fromarray(np.ascontiguousarray(levels[..., :3]))
        if samples.shape[2] == 4:
            rgb = _on_white(rgb, np.ascontiguousarray(levels[..., 3]))
        elif transparent_value is not None:
            rgb = _on_white(rgb, _opacity((samples != transparent_value).any(axis=2)))
        yield np.asarray(rgb)


def _opacity(is_visible: npt.NDArray[np.bool_]) -> Pixels:
    return is_visible.astype(np.uint8) * np.uint8(255)


def _on_white(rgb: Image, alpha: npt.NDArray[Any]) -> Image:
    white = new("RGB", rgb.size, "white")
    white.paste(rgb, mask=fromarray(alpha))
    return white
