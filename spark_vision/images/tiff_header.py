"""Reads the first directory of a TIFF: size and cost of decoding, before any decoder opens it.

The number of entries is limited, and the total bytes of their values to little more than the file
size, which values that do not overlap cannot exceed. Classic TIFF and BigTIFF differ only in the
width of their numbers.
"""

from typing import Literal, NamedTuple

from spark_vision.errors import RowFailure, Status
from spark_vision.images import cost
from spark_vision.images.cost import Format, Header

MAX_ENTRIES = 1024
MAX_NUMBERS = 2**20
"""Maximum numbers in one entry, as each becomes a Python object."""

_SHARED_BYTES = 2**16
"""Small values of several entries may overlap by this much."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIPS, _TILES = 273, 324
_ORIENTATION, _CHANNELS, _ROWS_PER_STRIP = 274, 277, 278
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_DIRECTORIES = {34665: "EXIF", 34853: "GPS", 40965: "interoperability"}
_HEADER_BYTES = 8
_READ = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _TILES, _ORIENTATION),
    *(_CHANNELS, _ROWS_PER_STRIP, _TILE_WIDTH, _TILE_HEIGHT, *_DIRECTORIES),
}
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TYPE_BYTES |= {16: 8, 17: 8, 18: 8}
_WHOLE_NUMBERS = {1: 1, 3: 2, 4: 4, 13: 4, 16: 8, 18: 8}
_TEXTS = (1, 2, 6, 7)
_YCBCR = 6
_UNCOMPRESSED = 1


class _Layout(NamedTuple):
    order: Literal["little", "big"]
    count_bytes: int
    entry_bytes: int
    offset_bytes: int
    first: int


def read_tiff(data: memoryview) -> Header:
    """Read the first directory and check those that it points to.

    Raises:
        RowFailure: `incomplete`, `decode_error`, or `too_large` for directories of more entries or
            values than any encoder writes.
    """
    layout = _read_layout(data)
    tags = _read_directory(data, layout, layout.first, "first")
    for tag, name in _DIRECTORIES.items():
        at, _ = tags.get(tag, (0, 0))
        if at >= _HEADER_BYTES:
            _check_directory(data, layout, at, name)
    if _WIDTH not in tags or _HEIGHT not in tags:
        raise RowFailure(Status.DECODE_ERROR, "the TIFF has no width or height")
    return _measure(tags)


def _check_directory(data: memoryview, layout: _Layout, at: int, name: str) -> None:
    """Check the limits of an optional directory; dangling pointers to it are ignored."""
    try:
        _read_directory(data, layout, at, name)
    except RowFailure as failure:
        if failure.status is not Status.INCOMPLETE:
            raise


def _read_layout(data: memoryview) -> _Layout:
    order: Literal["little", "big"] = "little" if data[0] == ord("I") else "big"
    is_big = int.from_bytes(data[2:4], order) == 43
    if len(data) < (16 if is_big else 8):
        raise _incomplete()
    if is_big:
        return _Layout(order, 8, 20, 8, int.from_bytes(data[8:16], order))
    return _Layout(order, 2, 12, 4, int.from_bytes(data[4:8], order))


def _read_directory(
    data: memoryview, layout: _Layout, at: int, name: str
) -> dict[int, tuple[int, int]]:
    """Check a directory; return the maximum value and the count of each tag in `_READ`."""
    order, count_bytes, entry_bytes, offset_bytes, _ = layout

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    entry_count = number(at, count_bytes)
    start = at + count_bytes
    if start + entry_count * entry_bytes > len(data):
        raise _incomplete()
    if entry_count > MAX_ENTRIES:
        raise _too_large(f"the {name} directory of the TIFF has {entry_count:,} entries")
    values: dict[int, tuple[int, int]] = {}
    far_bytes = 0
    for entry in range(start, start + entry_count * entry_bytes, entry_bytes):
        tag, kind = number(entry, 2), number(entry + 2, 2)
        count, value_at = number(entry + 4, offset_bytes), entry + 4 + offset_bytes
        unit = _TYPE_BYTES.get(kind, 0)
        size = count * unit
        if size > offset_bytes:
            far_bytes += size
            value_at = number(value_at, offset_bytes)
        if far_bytes > len(data) + _SHARED_BYTES:
            if value_at + size > len(data):
                raise _incomplete()
            reason = f"the values of the {name} directory of the TIFF have more bytes than the file"
            raise RowFailure(Status.TOO_LARGE, reason)
        if count > MAX_NUMBERS and unit and kind not in _TEXTS:
            raise _too_large(f"the TIFF has {count:,} values in its entry {tag}")
        if tag not in _READ or tag in values or kind not in _WHOLE_NUMBERS or not count:
            continue
        if value_at + size > len(data):
            raise _incomplete()
        # For several values, such as the bits of each channel, the first few suffice.
        few = [number(value_at + unit * index, unit) for index in range(min(count, 8))]
        values[tag] = max(few), count
    return values


def _measure(tags: dict[int, tuple[int, int]]) -> Header:
    def value(tag: int, default: int) -> int:
        return tags[tag][0] if tag in tags else default

    size = width, height = value(_WIDTH, 0), value(_HEIGHT, 0)
    bits, channel_count = value(_BITS, 1), value(_CHANNELS, 1)
    is_ycbcr = value(_PHOTOMETRIC, 0) == _YCBCR
    image = cost.ONE_CHANNEL.get(bits, cost.COLOR) if channel_count == 1 else cost.COLOR
    if is_ycbcr:
        image = cost.COLOR
    is_turned = value(_ORIENTATION, 1) != 1
    peak_bytes = cost.estimate_bytes(size, image + max(cost.RESULT, image if is_turned else 0))
    piece_count = max((tags[tag][1] for tag in (_STRIPS, _TILES) if tag in tags), default=0)
    peak_bytes += cost.TIFF_PIECE_BYTES * piece_count
    if value(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED and not is_ycbcr:
        return Header(Format.TIFF, size, peak_bytes=peak_bytes)
    pixel_bits = max(32, bits * channel_count) if is_ycbcr else bits * channel_count
    if _TILE_WIDTH in tags:
        piece = max(1, value(_TILE_WIDTH, 1)), max(1, value(_TILE_HEIGHT, 1))
    else:
        piece = max(1, width), max(1, min(height, value(_ROWS_PER_STRIP, height)))
    stored_pixels = -(-width // piece[0]) * -(-height // piece[1]) * piece[0] * piece[1]
    work = cost.TIFF_WORK * stored_pixels * -(-pixel_bits // 8)
    piece_bytes = piece[0] * piece[1] * -(-pixel_bits // 8)
    return Header(Format.TIFF, size, peak_bytes=peak_bytes + piece_bytes, work=work)


def _incomplete() -> RowFailure:
    return RowFailure(Status.INCOMPLETE, "the TIFF ends within its directory or before its values")


def _too_large(reason: str) -> RowFailure:
    return RowFailure(Status.TOO_LARGE, f"{reason}, which is above the limit")
