"""The first chunks of a WebP: size, whether nothing but opaque pixels are in it, and its cost."""

from typing import NamedTuple

from spark_vision.errors import RowFailure
from spark_vision.images import cost
from spark_vision.status import Status

MOST_CHUNKS = 256
_ANIMATION, _XMP, _EXIF, _ALPHA = 0x02, 0x04, 0x08, 0x10


class WebpHeader(NamedTuple):
    """What a WebP says of itself.

    Attributes:
        size: Width and height in pixels.
        is_plain: One opaque frame, without metadata that could turn it.
        peak_bytes: What decoding takes.
    """

    size: tuple[int, int]
    is_plain: bool
    peak_bytes: int


def read_webp(data: memoryview) -> WebpHeader:
    """Read the chunks up to the pixels.

    Raises:
        RowFailure: `incomplete`, or `decode_error` for what is no WebP.
    """
    start = bytes(data[:30])
    kind = start[12:16]
    if len(start) < (25 if kind == b"VP8L" else 30):
        raise RowFailure(Status.INCOMPLETE, "the image ends within its header")
    if kind == b"VP8 ":
        size = _little(start[26:28]) & 0x3FFF, _little(start[28:30]) & 0x3FFF
        return WebpHeader(size, True, cost.bytes_of(size, cost.RESULT))
    if kind == b"VP8L":
        bits = _little(start[21:25])
        size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return _weigh(size, is_plain=not bits >> 28 & 1, is_lossless=True)
    if kind == b"VP8X":
        size = _little(start[24:27]) + 1, _little(start[27:30]) + 1
        if start[20] & (_ANIMATION | _XMP | _EXIF | _ALPHA):
            return _weigh(size, is_plain=False)
        return _look_for_pixels(data, size)
    raise RowFailure(Status.DECODE_ERROR, "the WebP does not begin with a chunk that is known")


def _look_for_pixels(data: memoryview, size: tuple[int, int]) -> WebpHeader:
    """Pixels may have an alpha channel, and metadata stand before them, that no flag names."""
    at = 12
    for _ in range(MOST_CHUNKS):
        kind = bytes(data[at : at + 4])
        if kind == b"VP8 ":
            return _weigh(size, is_plain=True)
        if kind == b"VP8L":
            has_alpha = _little(bytes(data[at + 9 : at + 13])) >> 28 & 1
            return _weigh(size, is_plain=not has_alpha, is_lossless=True)
        if kind in (b"ALPH", b"ANMF") or len(kind) < 4:
            break
        length = _little(bytes(data[at + 4 : at + 8]))
        at += 8 + length + length % 2
    return _weigh(size, is_plain=False)


def _weigh(size: tuple[int, int], *, is_plain: bool, is_lossless: bool = False) -> WebpHeader:
    beside = cost.WEBP_BY_PILLOW if not is_plain else cost.WEBP_LOSSLESS if is_lossless else 0
    return WebpHeader(size, is_plain, cost.bytes_of(size, cost.RESULT + beside))


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
