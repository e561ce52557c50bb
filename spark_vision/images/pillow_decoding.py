"""Decoding by Pillow: the formats and variants that torchvision lacks, or gets wrong.

The decoders are called by class, so that these formats and no others are ever tried. Samples that
are not 8 bits wide are scaled so that the widest value is white:

- 16 bits: value / 257, rounded; of 16-bit RGB in TIFF Pillow gives only the upper byte, which is
  at most one level away from that.
- Floating point (TIFF): 0 is black and 1 white, values outside are clipped, not-a-number is black.
- 32-bit integers (TIFF) have no white that is agreed on, and are refused.
"""

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import AvifImagePlugin, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import DecompressionBombError, Image, fromarray, new
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from spark_vision.errors import RowFailure
from spark_vision.images.byte_rows import tensor_over
from spark_vision.images.completeness import ends_early
from spark_vision.images.headers import Format
from spark_vision.images.orientation import EXIF_PREFIX, exif_orientation, turn_upright
from spark_vision.status import Status

_DECODERS: dict[Format, type[ImageFile]] = {
    Format.PNG: PngImageFile,
    Format.GIF: GifImageFile,
    Format.WEBP: WebPImageFile,
    Format.BMP: BmpImageFile,
    Format.TIFF: TiffImageFile,
    Format.AVIF: AvifImagePlugin.AvifImageFile,
}
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_CUT_SHORT = re.compile("truncated|no more images", re.IGNORECASE)
_TURNED_BY_PILLOW = (Format.TIFF,)
_BOTH_BYTES = {
    "RGB;16B": ("RGB;16B", "RGB;16L"),
    "RGBA;16B": ("RGBA;16B", "RGBA;16L"),
    "LA;16B": ("RGBA",),
}
"""By Pillow's layout of a 16-bit PNG: the layouts that together give the two bytes of a sample."""

# One image is one thread's work here, and an AVIF decoder would start one per core.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def decode_by_pillow(
    data: memoryview, format: Format, check_size: Callable[[tuple[int, int]], None]
) -> torch.Tensor:
    """Decode the first frame, upright, on white.

    Args:
        data: The whole file.
        format: What its header says it is; not JPEG.
        check_size: Given width and height before pixels are decoded; raises to refuse them.

    Returns:
        uint8 `[3, height, width]` RGB, interleaved in memory.

    Raises:
        RowFailure: What `check_size` raises, `unsupported_format`, `incomplete`, `decode_error`,
            `too_large` or `out_of_memory`.
    """
    if format is Format.AVIF and not features.check("avif"):
        raise RowFailure(Status.UNSUPPORTED_FORMAT, "this build of Pillow does not read AVIF")
    try:
        with _DECODERS[format](io.BytesIO(data)) as image:
            check_size(image.size)
            rgb = _to_rgb(image, data)
            exif = b"" if format in _TURNED_BY_PILLOW else image.info.get("exif") or b""
    except RowFailure:
        raise
    except DecompressionBombError as error:
        raise RowFailure(Status.TOO_LARGE, f"the {format} is a decompression bomb") from error
    except MemoryError as error:
        raise RowFailure(
            Status.OUT_OF_MEMORY, f"no memory for the pixels of the {format}"
        ) from error
    except Exception as error:  # Hostile bytes make decoders raise nearly anything.
        if _CUT_SHORT.search(str(error)) or ends_early(format, data):
            raise RowFailure(
                Status.INCOMPLETE, f"the {format} ends before its pixels do"
            ) from error
        reason = str(error) or type(error).__name__
        raise RowFailure(Status.DECODE_ERROR, f"the {format} is corrupt: {reason}") from error
    pixels = tensor_over(rgb.tobytes()).view(rgb.height, rgb.width, 3).permute(2, 0, 1)
    return turn_upright(pixels, exif_orientation(exif.removeprefix(EXIF_PREFIX)))


def _to_rgb(image: ImageFile, data: memoryview) -> Image:
    """Load the pixels and bring them to 8-bit RGB."""
    if image.format == Format.PNG and image.tile and image.tile[0].args in _BOTH_BYTES:
        return _sixteen_bit_png_to_rgb(image, data)
    image.load()
    transparent_value = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        samples = np.asarray(image)
        gray = fromarray(_scale_sixteen_bits(samples))
        if isinstance(transparent_value, int):
            return _on_white(gray.convert("RGB"), _opacity(samples != transparent_value))
        return gray.convert("RGB")
    if image.mode == "F":
        unit = np.nan_to_num(np.asarray(image), nan=0.0).clip(0, 1)
        return fromarray((unit * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "LAB"):
        raise RowFailure(
            Status.UNSUPPORTED_FORMAT,
            "32-bit integer samples have no agreed white; 8 bits, 16 bits and floats are read"
            if image.mode == "I"
            else "the CIELAB colour space is not read",
        )
    if image.mode in _ALPHA_MODES or transparent_value is not None:
        rgba = image.convert("RGBA")
        white = new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return image.convert("RGB")


def _sixteen_bit_png_to_rgb(image: ImageFile, data: memoryview) -> Image:
    """Decode a 16-bit PNG of several channels with both bytes of each sample.

    Pillow would keep the upper byte only. Told that the pixels are laid out in another way, it
    gives the lower byte too.
    """
    layers = []
    for layout in _BOTH_BYTES[str(image.tile[0].args)]:
        with PngImageFile(io.BytesIO(data)) as layer:
            layer.tile = [layer.tile[0]._replace(args=layout)]
            layers.append(np.asarray(layer).astype(np.uint16))
    if len(layers) == 2:
        samples = layers[0] << 8 | layers[1]
    else:
        gray_and_alpha = layers[0][..., 0::2] << 8 | layers[0][..., 1::2]
        samples = gray_and_alpha[..., [0, 0, 0, 1]]
    rgb = fromarray(_scale_sixteen_bits(samples[..., :3]))
    if samples.shape[2] == 4:
        return _on_white(rgb, _scale_sixteen_bits(samples[..., 3]))
    transparent_value = image.info.get("transparency")
    if transparent_value is not None:
        return _on_white(rgb, _opacity((samples != transparent_value).any(axis=2)))
    return rgb


def _scale_sixteen_bits(samples: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _opacity(is_visible: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    return is_visible.astype(np.uint8) * np.uint8(255)


def _on_white(rgb: Image, alpha: npt.NDArray[np.uint8]) -> Image:
    white = new("RGB", rgb.size, "white")
    white.paste(rgb, mask=fromarray(alpha))
    return white
