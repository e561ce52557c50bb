"""Detects whether a file that could not be decoded is truncated.

This distinguishes a broken download (`incomplete`, worth fetching again) from a corrupt file. It is
called only after a decoder failed, because decoders tolerate missing parts that they do not need.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from spark_vision.images.cost import Format

MAX_STEPS = 2**16
"""Maximum chunks or boxes that are read; no real file has more."""
_TIFF_TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_STRIPS = 273, 279
_TILES = 324, 325
"""The tags of the offset and of the byte count of each piece of pixel data."""


def is_truncated(format: Format, data: memoryview) -> bool:
    """Return whether the structure of the file points beyond its end."""
    if format is Format.PNG:
        return _is_png_truncated(data)
    if format is Format.WEBP:
        return len(data) < 12 or len(data) < 8 + int.from_bytes(data[4:8], "little")
    if format is Format.GIF:
        return len(data) == 0 or data[-1] != 0x3B
    if format is Format.BMP:
        return len(data) < int.from_bytes(data[2:6], "little")
    if format is Format.TIFF:
        return _is_tiff_truncated(data)
    if format is Format.AVIF:
        return _is_avif_truncated(data)
    return False


def _is_png_truncated(data: memoryview) -> bool:
    at = 8
    for _ in range(MAX_STEPS):
        if at + 8 > len(data):
            return True
        kind = bytes(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if kind == b"IEND":
            return at > len(data)
        if not kind.isalpha():
            return False
    return False


def _is_tiff_truncated(data: memoryview) -> bool:
    """Check the first directory, the values of its entries, and the strips or tiles of pixels."""
    if len(data) < 8:
        return True
    order: Literal["little", "big"] = "little" if data[0] == ord("I") else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    if number(2, 2) != 42:
        # BigTIFF has another layout, and is rarely truncated.
        return False
    directory = number(4, 4)
    end = directory + 2 + 12 * number(directory, 2)
    if len(data) < directory + 2 or len(data) < end:
        return True
    values: dict[int, npt.NDArray[np.int64]] = {}
    for entry in range(directory + 2, end, 12):
        tag, kind, count = number(entry, 2), number(entry + 2, 2), number(entry + 4, 4)
        size = _TIFF_TYPE_BYTES.get(kind, 1)
        start = entry + 8 if size * count <= 4 else number(entry + 8, 4)
        if start + size * count > len(data):
            return True
        if tag in (*_STRIPS, *_TILES) and size in (2, 4):
            unsigned = np.dtype(f"u{size}").newbyteorder("<" if order == "little" else ">")
            values[tag] = np.frombuffer(data, unsigned, count, start).astype(np.int64)
    for offsets, sizes in (_STRIPS, _TILES):
        if offsets in values and sizes in values and len(values[offsets]) == len(values[sizes]):
            return bool((values[offsets] + values[sizes] > len(data)).any())
    return False


def _is_avif_truncated(data: memoryview) -> bool:
    """Walk the boxes of an AVIF; the pixels are in one named `mdat`."""
    at, has_pixels = 0, False
    for _ in range(MAX_STEPS):
        if at + 8 > len(data):
            return at != len(data) or not has_pixels
        size = int.from_bytes(data[at : at + 4], "big")
        has_pixels |= bytes(data[at + 4 : at + 8]) == b"mdat"
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:
            # 0 means that the box extends to the end of the file; other values are invalid.
            return False
        at += size
    return False
