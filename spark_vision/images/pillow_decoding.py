"""Decodes with Pillow, without torch: in this process, or in a child process.

The decoder class is chosen by format, so Pillow tries no other formats. Pixels are converted to RGB
in bands of rows, so that only the result takes memory besides Pillow's own image. Samples that are
not 8 bits wide are scaled so that the maximum value is white:

- 16 bits: value / 257, rounded. For 16-bit RGB in TIFF Pillow returns only the upper byte, which
  differs by at most one level.
- Floating point (TIFF): 0 is black and 1 white, other values are clipped, NaN is black.
- Signed and 32-bit integers (TIFF) have no agreed white, and are rejected.
"""

import io
import re
import zlib
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
from spark_vision.images.cost import Format
from spark_vision.images.orientation import EXIF_PREFIX, find_exif_orientation, xmp_orientation
from spark_vision.images.truncation import is_truncated

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
_TRUNCATED = re.compile("truncated|no more images", re.IGNORECASE)
_UNSUPPORTED = re.compile("^Unsupported|unknown pixel mode|not yet supported")
_NO_MEMORY = re.compile("out of memory|allocate", re.IGNORECASE)
# What the messages of torchvision begin with.
_CODE_PLACE = re.compile(r"^.*\.cpp:\d+,\s*")
MAX_PNG_CHUNKS = 2**16
_PNG_MAGIC_BYTES = 8
_SIGNED = 2
_BAND_PIXELS = 2**18
_FLIPPED_AXES = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
_BOTH_BYTES = {
    "RGB;16B": ("RGB;16B", "RGB;16L"),
    "RGBA;16B": ("RGBA;16B", "RGBA;16L"),
    "LA;16B": ("RGBA",),
}
"""Pillow's layouts of a 16-bit PNG, and the layouts that together yield both bytes of a sample."""

_LEVELS = ((np.arange(2**16, dtype=np.uint32) + 128) // 257).astype(np.uint8)
"""The 8-bit level of each 16-bit value."""


class StoredRows(NamedTuple):
    """A decoded image, with its rows as stored in the file.

    Attributes:
        width: Pixels per row.
        height: Number of rows.
        orientation: EXIF orientation, 1 to 8.
        bands: Groups of rows in order: uint8 `[rows, width, 3]` RGB.
    """

    width: int
    height: int
    orientation: int
    bands: Iterator[Pixels]


def decode_by_pillow(
    data: memoryview,
    format: Format,
    check_size: CheckSize,
    orientation: int = 0,
    scale: int = 1,
) -> Pixels:
    """Decode the first frame, upright, with alpha composited on white.

    Args:
        data: The whole file.
        format: The format from its header.
        check_size: Called with width and height before pixels are decoded; raises to reject them.
        orientation: EXIF orientation from the header; 0 leaves it to the decoder.
        scale: The height and width of a JPEG are divided by it: 1, 2, 4 or 8, without a remainder.

    Returns:
        uint8 `[height, width, 3]` RGB.

    Raises:
        RowFailure: As `check_size`, or `unsupported_format`, `incomplete`, `decode_error`,
            `too_large` or `out_of_memory`.
    """
    with translate_errors(data, format):
        rows = decode_rows(data, format, check_size, scale)
        turned = orientation or rows.orientation
        upright, stored = allocate_upright(rows.width, rows.height, turned)
        top = 0
        for band in rows.bands:
            stored[top : top + len(band)] = band
            top += len(band)
        return upright


def allocate_upright(width: int, height: int, orientation: int) -> tuple[Pixels, Pixels]:
    """Allocate the pixels of an upright image.

    Args:
        width: Width as stored in the file.
        height: Height as stored in the file.
        orientation: EXIF orientation, 1 to 8.

    Returns:
        The upright image, uint8 `[height, width, 3]`, uninitialized; and a view of it with the
        orientation of the file, into which the stored rows are written.
    """
    is_turned = orientation >= 5
    upright = np.empty((width, height, 3) if is_turned else (height, width, 3), np.uint8)
    stored = np.flip(upright, _FLIPPED_AXES.get(orientation, ()))
    return upright, stored.transpose(1, 0, 2) if is_turned else stored


@contextmanager
def translate_errors(data: memoryview, format: Format) -> Iterator[None]:
    """Translate any exception of a decoder into a failure of its row."""
    try:
        yield
    except RowFailure:
        raise
    except DecompressionBombError as error:
        raise RowFailure(Status.TOO_LARGE, f"the {format} is a decompression bomb") from error
    except Exception as error:  # Malformed files make decoders raise almost anything.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = _CODE_PLACE.sub("", lines[0])
        if isinstance(error, MemoryError) or _NO_MEMORY.search(reason):
            failure = Status.OUT_OF_MEMORY, f"not enough memory for the pixels of the {format}"
        elif _UNSUPPORTED.search(reason):
            failure = Status.UNSUPPORTED_FORMAT, f"unsupported kind of {format}: {reason}"
        elif _TRUNCATED.search(reason) or is_truncated(format, data):
            failure = Status.INCOMPLETE, f"the pixel data of the {format} is truncated"
        else:
            failure = Status.DECODE_ERROR, f"the {format} is corrupt: {reason}"
        raise RowFailure(*failure) from error


def decode_rows(
    data: memoryview, format: Format, check_size: CheckSize, scale: int = 1
) -> StoredRows:
    """Decode the first frame as stored, or a JPEG with its size divided by a scale.

    Raises:
        RowFailure: As `check_size`, or `unsupported_format`.
        Exception: Any other exception of the decoder, here or between the bands.
    """
    if format is Format.AVIF and not features.check("avif"):
        raise RowFailure(Status.UNSUPPORTED_FORMAT, "this build of Pillow does not support AVIF")
    source = _check_png(data) if format is Format.PNG else data
    image = _DECODERS[format](io.BytesIO(source))
    check_size(image.size)
    _check_samples(image)
    if format is Format.PNG and image.tile and image.tile[0].args in _BOTH_BYTES:
        layers = _load_both_bytes(image, source)
        return StoredRows(*image.size, _orientation(image), _sixteen_bit_bands(image, layers))
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    image.load()
    bands = map(_to_rgb, _bands(image))
    return StoredRows(*image.size, _orientation(image), map(np.asarray, bands))


def _check_png(data: memoryview) -> bytes | memoryview:
    """Check the chunks of a PNG, and return the file without its colour profile.

    Pillow ignores the checksums of pixel data, so a damaged file would yield wrong pixels. It also
    rejects a file with a colour profile over 1 MiB, although profiles are never applied here. A
    truncated file is returned as far as it goes.

    Raises:
        ValueError: A checksum is wrong; there is a second header, which Pillow would use although
            only the first was checked; or there are more chunks than any encoder writes, each of
            which costs Pillow microseconds.
    """
    kept_from, at, count = 0, _PNG_MAGIC_BYTES, 0
    kept: list[memoryview] = []
    while at + 12 <= len(data):
        kind = bytes(data[at + 4 : at + 8])
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        count += 1
        if count > MAX_PNG_CHUNKS:
            raise ValueError(f"it has more than {MAX_PNG_CHUNKS:,} chunks")
        if end > len(data):
            break
        if kind == b"IHDR" and at != _PNG_MAGIC_BYTES:
            raise ValueError("it has a second header")
        if kind == b"IDAT" and zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(
            data[end - 4 : end], "big"
        ):
            raise ValueError("the checksum of its pixel data is wrong")
        if kind == b"iCCP":
            kept.append(data[kept_from:at])
            kept_from = end
        if kind == b"IEND":
            break
        at = end
    return b"".join([*kept, data[kept_from:]]) if kept else data


def _check_samples(image: ImageFile) -> None:
    """Reject samples without an agreed white, before they are decoded."""
    if image.mode == "LAB":
        raise RowFailure(Status.UNSUPPORTED_FORMAT, "the CIELAB colour space is not supported")
    if isinstance(image, TiffImageFile):
        is_signed = _SIGNED in image.tag_v2.get(SAMPLEFORMAT, ())
        if image.mode == "I" or is_signed:
            bits = image.tag_v2.get(BITSPERSAMPLE, (1,))[0]
            raise RowFailure(
                Status.UNSUPPORTED_FORMAT,
                f"{'signed' if is_signed else 'unsigned'} {bits}-bit integers have no agreed "
                "white; supported are unsigned 8 and 16 bits, and floats",
            )


def _orientation(image: ImageFile) -> int:
    if isinstance(image, TiffImageFile):
        # Pillow has applied it already.
        return 1
    exif = image.info.get("exif") or b""
    stated = find_exif_orientation(exif.removeprefix(EXIF_PREFIX))
    if stated is not None:
        return stated
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    return xmp_orientation(xmp.encode() if isinstance(xmp, str) else xmp)


def _bands(image: Image, max_pixels: int = _BAND_PIXELS) -> Iterator[Image]:
    """Split an image into bands of whole rows."""
    width, height = image.size
    row_count = max(1, max_pixels // width)
    if row_count >= height:
        yield image
        return
    for top in range(0, height, row_count):
        yield image.crop((0, top, width, min(top + row_count, height)))


def _to_rgb(image: Image) -> Image:
    """Convert loaded pixels to 8-bit RGB."""
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

    Pillow would keep only the upper byte. With a different pixel layout it returns the lower byte
    too.
    """
    layouts = _BOTH_BYTES[str(image.tile[0].args)]
    layers = [image, *(PngImageFile(io.BytesIO(source)) for _ in layouts[1:])]
    for layer, layout in zip(layers, layouts, strict=True):
        layer.tile = [layer.tile[0]._replace(args=layout)]
        layer.load()
    return layers


def _sixteen_bit_bands(image: ImageFile, layers: list[ImageFile]) -> Iterator[Pixels]:
    transparent_value = image.info.get("transparency")
    # Smaller bands, as several arrays are made of each.
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
