"""Reads the EXIF orientation from metadata, and applies it to the pixels.

Both decoders use it, so that they agree: torchvision misses EXIF data after another metadata
segment. As in Pillow, XMP is used where EXIF has no orientation.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The decoder process imports this too, and starts faster without torch.
    import torch

EXIF_PREFIX = b"Exif\x00\x00"
_ORIENTATION_TAG = 0x0112
_SHORT = 3
_LONG = 4
_TURNED_AT_ONCE = 2**22
"""Bytes."""
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def find_exif_orientation(exif: bytes) -> int | None:
    """Read the orientation from EXIF, which is a small TIFF file.

    Args:
        exif: The metadata without the `Exif` prefix of JPEG.

    Returns:
        1 to 8, 1 (upright) also if it is invalid; None if it is missing.
    """
    if exif[:2] not in (b"II", b"MM"):
        return None
    is_little = exif[:2] == b"II"

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], "little" if is_little else "big")

    directory = number(4, 4)
    for entry in range(number(directory, 2)):
        at = directory + 2 + 12 * entry
        if at + 12 > len(exif):
            break
        if number(at, 2) == _ORIENTATION_TAG:
            kind = number(at + 2, 2)
            value = number(at + 8, 2 if kind == _SHORT else 4) if kind in (_SHORT, _LONG) else 1
            return value if 1 <= value <= 8 else 1
    return None


def xmp_orientation(xmp: bytes) -> int:
    """Read the orientation from XMP, which is XML; 1 if it has none."""
    match = _XMP_ORIENTATION.search(xmp)
    value = int(match[1]) if match else 1
    return value if 1 <= value <= 8 else 1


def apply_orientation(image: "torch.Tensor", orientation: int) -> "torch.Tensor":
    """Undo the rotation and mirroring of an EXIF orientation.

    A large image is flipped in place, to avoid a second copy in memory.

    Args:
        image: `[channels, height, width]`; its content afterwards is undefined.
        orientation: 1 to 8.

    Returns:
        The image upright, `[channels, width, height]` for 5 to 8; the same tensor for 1.
    """
    if orientation >= 5:
        image = image.transpose(1, 2)
    axes = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation, ())
    if axes and image.numel() <= _TURNED_AT_ONCE:
        return image.flip(axes)
    for axis in axes:
        other = 3 - axis
        lines = max(1, _TURNED_AT_ONCE // (image.shape[0] * image.shape[axis]))
        for start in range(0, image.shape[other], lines):
            piece = image.narrow(other, start, min(lines, image.shape[other] - start))
            piece.copy_(piece.flip(axis))
    return image
