"""Reads the chunks of a WebP: size, orientation, whether it is one opaque frame, and its cost."""

from spark_vision.errors import RowFailure, Status
from spark_vision.images import cost
from spark_vision.images.image_header import Format, Header
from spark_vision.images.orientation import EXIF_PREFIX, find_exif_orientation, xmp_orientation

MAX_CHUNKS = 256
_ANIMATION, _XMP, _EXIF, _ALPHA = 0x02, 0x04, 0x08, 0x10


def read_webp(data: memoryview) -> Header:
    """Read the chunks before the pixels, and the metadata after them that the flags announce.

    Raises:
        RowFailure: `incomplete`, or `decode_error` for an invalid WebP.
    """
    start = bytes(data[:30])
    kind = start[12:16]
    if len(start) < (25 if kind == b"VP8L" else 30):
        raise RowFailure(Status.INCOMPLETE, "the image ends within its header")
    if kind == b"VP8 ":
        size = _little(start[26:28]) & 0x3FFF, _little(start[28:30]) & 0x3FFF
        return _weigh(size, is_plain=True)
    if kind == b"VP8L":
        bits = _little(start[21:25])
        size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return _weigh(size, is_plain=not bits >> 28 & 1, is_lossless=True)
    if kind == b"VP8X":
        size = _little(start[24:27]) + 1, _little(start[27:30]) + 1
        if start[20] & (_ANIMATION | _ALPHA):
            return _weigh(size, is_plain=False)
        return _look_into(data, size, start[20])
    raise RowFailure(Status.DECODE_ERROR, "the WebP does not begin with a known chunk")


def _look_into(data: memoryview, size: tuple[int, int], flags: int) -> Header:
    """Find the pixels, which may have alpha without a flag, and the metadata after them."""
    wanted = {kind for kind, flag in ((b"EXIF", _EXIF), (b"XMP ", _XMP)) if flags & flag}
    metadata: dict[bytes, bytes] = {}
    is_lossless: bool | None = None
    at = 12
    for _ in range(MAX_CHUNKS):
        kind = bytes(data[at : at + 4])
        length = _little(data[at + 4 : at + 8])
        if kind == b"VP8L" and is_lossless is None:
            if _little(data[at + 9 : at + 13]) >> 28 & 1:
                break
            is_lossless = True
        elif kind == b"VP8 " and is_lossless is None:
            is_lossless = False
        elif kind in (b"ALPH", b"ANMF"):
            break
        elif kind in wanted:
            wanted.discard(kind)
            metadata[kind] = bytes(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
        if is_lossless is not None and (not wanted or at >= len(data)):
            exif = metadata.get(b"EXIF", b"").removeprefix(EXIF_PREFIX)
            orientation = find_exif_orientation(exif) or xmp_orientation(metadata.get(b"XMP ", b""))
            return _weigh(size, True, is_lossless, orientation)
    return _weigh(size, is_plain=False)


def _weigh(
    size: tuple[int, int], is_plain: bool, is_lossless: bool = False, orientation: int = 1
) -> Header:
    beside = cost.WEBP_BY_PILLOW if not is_plain else cost.WEBP_LOSSLESS if is_lossless else 0
    peak_bytes = cost.estimate_bytes(size, cost.RESULT + beside)
    return Header(Format.WEBP, size, orientation, is_plain, peak_bytes)


def _little(data: bytes | memoryview) -> int:
    return int.from_bytes(data, "little")
