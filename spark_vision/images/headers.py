"""Reads an image file's header: format, width and height, before any pixel is decoded.

This takes microseconds, and keeps small files that claim a huge size or need hours of work away
from the decoders.
"""

import re
from collections.abc import Iterator

from spark_vision.errors import RowFailure, Status
from spark_vision.images import cost
from spark_vision.images.cost import Format, Header
from spark_vision.images.jpeg_header import read_jpeg
from spark_vision.images.orientation import EXIF_PREFIX, find_exif_orientation, xmp_orientation
from spark_vision.images.tiff_header import read_tiff

_UNSUPPORTED_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"8BPS", "PSD"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"\x8aMNG\r\n\x1a\n", "MNG"),
    (b"\x8bJNG\r\n\x1a\n", "JNG"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"icns", "ICNS"),
    (b"gimp xcf", "XCF"),
    (b"BPG\xfb", "BPG"),
    (b"FLIF", "FLIF"),
)
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_NETPBM_MAGIC = tuple(b"P%d" % number for number in range(1, 8))
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_ONE_CHANNEL = (0, 3)
_GIF_EXTENSION, _GIF_FRAME, _GIF_END, _GIF_COMMENT = 0x21, 0x2C, 0x3B, 0xFE
_BMP_RUNS = (1, 2)
_TARGA_START = (b"\0\0\2", b"\0\0\3", b"\0\0\x0a", b"\0\0\x0b", b"\0\1\1", b"\0\1\x09")
"""No image ID, with or without a palette, and the image type."""
_TARGA_BITS = (b"\x08", b"\x0f", b"\x10", b"\x18", b"\x20")
MAX_GIF_BLOCKS = 2**16
MAX_WEBP_CHUNKS = 256
_WEBP_ANIMATION, _WEBP_XMP, _WEBP_EXIF, _WEBP_ALPHA = 0x02, 0x04, 0x08, 0x10
MAX_AVIF_BOXES = 2**14
MAX_AVIF_PARTS = 256
_AVIF_BOX = re.compile(
    # The size of a picture; of a track, in two versions; and the bit depth of either.
    rb"ispe....(....)(....)|tkhd(?:\x00.{75}|\x01.{87})(..)..(..)..|av1C..(.)",
    re.DOTALL,
)
_AVIF_HIGH_BIT_DEPTH = 0x40
_AVIF_PIXELS = b"mdat"
_ICON_ENTRY_BYTES = 16
_START_BYTES = 64
_TEXT_START_BYTES = 1024


def read_header(data: memoryview) -> Header:
    """Detect the format of an image file and read its header.

    Args:
        data: The whole file.

    Raises:
        RowFailure: `not_an_image`, `unsupported_format`, `incomplete` if the file ends within the
            header, or `decode_error` if the header is invalid.
    """
    start = bytes(data[:_START_BYTES])
    if start.startswith(b"\xff\xd8\xff"):
        return read_jpeg(data)
    if start.startswith(_PNG_MAGIC):
        return _read_png(start)
    if start.startswith((b"GIF87a", b"GIF89a")):
        return _read_gif(data)
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return _read_webp(data)
    if start.startswith(b"BM") and len(start) >= 18 and _little(start[14:18]) in range(12, 256):
        return _read_bmp(start, len(data))
    if start.startswith(_TIFF_MAGIC):
        return read_tiff(data)
    if start[4:8] == b"ftyp":
        brands = start[8 : max(12, int.from_bytes(start[:4], "big"))]
        if any(brand in brands for brand in _AVIF_BRANDS):
            return _read_avif(data)
        if start[8:12] in _HEIF_BRANDS:
            raise _unsupported("HEIC")
    raise _refuse(data, start)


def _read_png(start: bytes) -> Header:
    _need(start, 26)
    if start[12:16] != b"IHDR":
        raise RowFailure(Status.DECODE_ERROR, "the PNG does not begin with its header")
    size = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
    bits, color_type = start[24], start[25]
    if color_type in _PNG_ONE_CHANNEL:
        image = cost.ONE_CHANNEL.get(bits, cost.COLOR)
    else:
        # 16 bits take two images, of the upper and of the lower bytes.
        image = cost.COLOR * (2 if bits == 16 else 1)
    return Header(Format.PNG, size, peak_bytes=cost.estimate_bytes(size, image + cost.RESULT))


def _read_gif(data: memoryview) -> Header:
    """Skip the blocks before the first frame, which may be larger than the logical screen."""
    _need(data, 13)
    width, height = _little(data[6:8]), _little(data[8:10])
    if not width or not height:
        return Header(Format.GIF, (width, height))
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    is_in_extension = False
    for _ in range(MAX_GIF_BLOCKS):
        if at >= len(data):
            raise RowFailure(Status.INCOMPLETE, "the GIF ends before its first frame")
        if is_in_extension:
            is_in_extension = data[at] != 0
            at += 1 + data[at]
        elif data[at] == _GIF_EXTENSION:
            _need(data, at + 3)
            # Pillow ends only a comment extension at its first block.
            is_in_extension = data[at + 1] != _GIF_COMMENT or data[at + 2] != 0
            at += 3 + data[at + 2]
        elif data[at] == _GIF_FRAME:
            _need(data, at + 9)
            left, top, across, down = (_little(data[at + i : at + i + 2]) for i in (1, 3, 5, 7))
            size = max(width, left + across), max(height, top + down)
            return Header(
                Format.GIF, size, peak_bytes=cost.estimate_bytes(size, cost.GIF + cost.RESULT)
            )
        elif data[at] == _GIF_END:
            raise RowFailure(Status.DECODE_ERROR, "the GIF has no frame")
        else:
            at += 1
    raise RowFailure(
        Status.TOO_LARGE, f"the GIF has more than {MAX_GIF_BLOCKS:,} blocks before its first frame"
    )


def _read_webp(data: memoryview) -> Header:
    """Read the chunks before the pixels, and the metadata after them that the flags announce."""
    start = bytes(data[:30])
    kind = start[12:16]
    _need(start, 25 if kind == b"VP8L" else 30)
    if kind == b"VP8 ":
        size = _little(start[26:28]) & 0x3FFF, _little(start[28:30]) & 0x3FFF
        return _webp_header(size, is_plain=True)
    if kind == b"VP8L":
        bits = _little(start[21:25])
        size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return _webp_header(size, is_plain=not bits >> 28 & 1, is_lossless=True)
    if kind == b"VP8X":
        size = _little(start[24:27]) + 1, _little(start[27:30]) + 1
        if start[20] & (_WEBP_ANIMATION | _WEBP_ALPHA):
            return _webp_header(size, is_plain=False)
        return _read_webp_chunks(data, size, start[20])
    raise RowFailure(Status.DECODE_ERROR, "the WebP does not begin with a known chunk")


def _read_webp_chunks(data: memoryview, size: tuple[int, int], flags: int) -> Header:
    """Find the pixels, which may have alpha without a flag, and the metadata after them."""
    wanted = {kind for kind, flag in ((b"EXIF", _WEBP_EXIF), (b"XMP ", _WEBP_XMP)) if flags & flag}
    metadata: dict[bytes, bytes] = {}
    is_lossless: bool | None = None
    at = 12
    for _ in range(MAX_WEBP_CHUNKS):
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
            return _webp_header(size, True, is_lossless, orientation)
    return _webp_header(size, is_plain=False)


def _webp_header(
    size: tuple[int, int], is_plain: bool, is_lossless: bool = False, orientation: int = 1
) -> Header:
    beside = cost.WEBP_BY_PILLOW if not is_plain else cost.WEBP_LOSSLESS if is_lossless else 0
    peak_bytes = cost.estimate_bytes(size, cost.RESULT + beside)
    return Header(Format.WEBP, size, orientation, is_plain, peak_bytes)


def _read_bmp(start: bytes, length: int) -> Header:
    if _little(start[14:18]) == 12:
        _need(start, 26)
        size = _little(start[18:20]), _little(start[20:22])
        bits, compression = _little(start[24:26]), 0
    else:
        _need(start, 34)
        # A negative height means that the rows run from the top.
        height = abs(int.from_bytes(start[22:26], "little", signed=True))
        size = int.from_bytes(start[18:22], "little", signed=True), height
        bits, compression = _little(start[28:30]), _little(start[30:34])
    beside = cost.ONE_CHANNEL.get(bits, cost.COLOR)
    work = 0
    if compression in _BMP_RUNS:
        beside += cost.BMP_RUNS
        work = cost.BMP_RUN_WORK * (size[0] * size[1] + length)
    return Header(
        Format.BMP, size, peak_bytes=cost.estimate_bytes(size, beside + cost.RESULT), work=work
    )


def _read_avif(data: memoryview) -> Header:
    """Read the size of an AVIF from its boxes, without walking the tree that they form.

    A box can occur in many places, but has the same layout in each. One pass searches for them by
    name outside the pixel data. The largest size counts: that of the whole picture, not of its
    tiles or thumbnail.
    """
    sizes: list[tuple[int, int]] = []
    is_deep = False
    boxes = (box for part in _all_but_pixels(data) for box in _AVIF_BOX.finditer(data, *part))
    for index, box in enumerate(boxes):
        if index == MAX_AVIF_BOXES:
            raise RowFailure(
                Status.TOO_LARGE, f"the AVIF has more than {MAX_AVIF_BOXES:,} boxes of sizes"
            )
        *lengths, depth = box.groups()
        if depth:
            is_deep |= bool(depth[0] & _AVIF_HIGH_BIT_DEPTH)
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
    for _ in range(MAX_AVIF_PARTS):
        size, header_bytes = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, header_bytes = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        end = at + size if size >= header_bytes else len(data)
        if data[at + 4 : at + 8] != _AVIF_PIXELS:
            yield at, min(end, len(data))
        at = end
        if at >= len(data):
            return
    yield at, len(data)


def _refuse(data: memoryview, start: bytes) -> RowFailure:
    if not start:
        return RowFailure(Status.NOT_AN_IMAGE, "the value has no bytes")
    if icon := _name_icon(start, len(data)):
        return _unsupported(icon)
    if start[:3] in _TARGA_START and start[16:17] in _TARGA_BITS and any(start[12:16]):
        return _unsupported("TGA")
    for magic, name in _UNSUPPORTED_MAGIC:
        if start.startswith(magic):
            return _unsupported(name)
    if start[:2] in _NETPBM_MAGIC and start[2:3].isspace():
        return _unsupported("Netpbm")
    text = bytes(data[:_TEXT_START_BYTES]).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!--")) and b"<svg" in text):
        return _unsupported("SVG")
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return RowFailure(Status.NOT_AN_IMAGE, "the bytes are an HTML page")
    if start.startswith((b"\xff\xd8", _PNG_MAGIC[:4], b"GIF8", b"RIFF")) and len(data) < 12:
        return RowFailure(Status.INCOMPLETE, f"the image ends after {len(data)} bytes")
    return RowFailure(Status.NOT_AN_IMAGE, "the bytes are not of a known image format")


def _name_icon(start: bytes, length: int) -> str | None:
    """Return the format of an icon or cursor file; None for other files with the same start."""
    count, at = _little(start[4:6]), _little(start[18:22])
    if not count or not 6 + _ICON_ENTRY_BYTES * count <= at < length:
        return None
    return {b"\0\0\1\0": "ICO", b"\0\0\2\0": "CUR"}.get(start[:4])


def _unsupported(name: str) -> RowFailure:
    return RowFailure(
        Status.UNSUPPORTED_FORMAT, f"{name} is not supported; supported are {', '.join(Format)}"
    )


def _need(data: bytes | memoryview, size: int) -> None:
    if len(data) < size:
        raise RowFailure(Status.INCOMPLETE, "the image ends within its header")


def _little(data: bytes | memoryview) -> int:
    return int.from_bytes(data, "little")
