"""Reads the size of an AVIF from its boxes, without walking the tree that they form.

A box can occur in many places, but has the same layout in each. One pass searches for them by name
outside the pixel data. The largest size counts: that of the whole picture, not of its tiles or
thumbnail.
"""

import re
from collections.abc import Iterator

from spark_vision.errors import RowFailure, Status
from spark_vision.images import cost
from spark_vision.images.image_header import Format, Header

MAX_BOXES = 2**14
MAX_PARTS = 256

_BOX = re.compile(
    # The size of a picture; of a track, in two versions; and the bit depth of either.
    rb"ispe....(....)(....)|tkhd(?:\x00.{75}|\x01.{87})(..)..(..)..|av1C..(.)",
    re.DOTALL,
)
_HIGH_BIT_DEPTH = 0x40
_PIXELS = b"mdat"


def read_avif(data: memoryview) -> Header:
    """Read the boxes with sizes and those with the bit depth.

    Raises:
        RowFailure: `incomplete` if there is no size; `too_large` for more boxes than any encoder
            writes.
    """
    sizes: list[tuple[int, int]] = []
    is_deep = False
    boxes = (box for part in _all_but_pixels(data) for box in _BOX.finditer(data, *part))
    for index, box in enumerate(boxes):
        if index == MAX_BOXES:
            raise RowFailure(
                Status.TOO_LARGE, f"the AVIF has more than {MAX_BOXES:,} boxes of sizes"
            )
        *lengths, depth = box.groups()
        if depth:
            is_deep |= bool(depth[0] & _HIGH_BIT_DEPTH)
        else:
            width, height = (int.from_bytes(each, "big") for each in lengths if each is not None)
            sizes.append((width, height))
    if not sizes:
        raise RowFailure(Status.INCOMPLETE, "the AVIF ends before the box with its size")
    size = max(sizes, key=lambda each: each[0] * each[1])
    factor = cost.AVIF_HIGH_BIT_DEPTH if is_deep else cost.AVIF
    return Header(Format.AVIF, size, peak_bytes=cost.estimate_bytes(size, factor))


def _all_but_pixels(data: memoryview) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each part of the file, up to the first invalid one."""
    at = 0
    for _ in range(MAX_PARTS):
        size, header_bytes = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, header_bytes = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        end = at + size if size >= header_bytes else len(data)
        if data[at + 4 : at + 8] != _PIXELS:
            yield at, min(end, len(data))
        at = end
        if at >= len(data):
            return
    yield at, len(data)
