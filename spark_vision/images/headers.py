"""What the first bytes of a file say of an image: format, width, height; before any pixel is made.

Reading them here costs microseconds, and keeps a small file that claims to be huge away from every
decoder. TIFF and AVIF are recognised here, and measured by Pillow, which opens them lazily.
"""

from enum import StrEnum
from typing import NamedTuple

from spark_vision.errors import RowFailure
from spark_vision.images.orientation import EXIF_PREFIX, exif_orientation
from spark_vision.status import Status


class Format(StrEnum):
    """The formats that are decoded; the values are Pillow's names."""

    JPEG = "JPEG"
    PNG = "PNG"
    GIF = "GIF"
    WEBP = "WEBP"
    BMP = "BMP"
    TIFF = "TIFF"
    AVIF = "AVIF"


class Header(NamedTuple):
    """What is known of an image before it is decoded.

    Attributes:
        format: Which decoder it is for.
        size: Width and height in pixels, None where only the decoder can tell.
        orientation: EXIF orientation, 1 to 8, where it is read here (JPEG).
        is_plain: Nothing but opaque 8-bit pixels of one frame: no alpha, animation or metadata
            that would change them (JPEG, WebP).
    """

    format: Format
    size: tuple[int, int] | None
    orientation: int = 1
    is_plain: bool = False


_UNSUPPORTED_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x00\x00\x01\x00", "ICO"),
    (b"\x00\x00\x02\x00", "CUR"),
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
_START_BYTES = 64
_TEXT_START_BYTES = 1024


def read_header(data: memoryview) -> Header:
    """Recognise an image file.

    Args:
        data: The whole file.

    Raises:
        RowFailure: `not_an_image`, `unsupported_format`, `incomplete` where the bytes end within
            the header, or `decode_error` where it contradicts its format.
    """
    start = bytes(data[:_START_BYTES])
    if start.startswith(b"\xff\xd8\xff"):
        return _read_jpeg(data)
    if start.startswith(_PNG_MAGIC):
        return _read_png(start)
    if start.startswith((b"GIF87a", b"GIF89a")):
        _need(start, 10)
        return Header(Format.GIF, (_little(start[6:8]), _little(start[8:10])))
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return _read_webp(start)
    if start.startswith(b"BM") and len(start) >= 18 and _little(start[14:18]) in range(12, 256):
        return _read_bmp(start)
    if start.startswith(_TIFF_MAGIC):
        return Header(Format.TIFF, None)
    if start[4:8] == b"ftyp":
        brands = start[8 : max(12, int.from_bytes(start[:4], "big"))]
        if any(brand in brands for brand in _AVIF_BRANDS):
            return Header(Format.AVIF, None)
        if start[8:12] in _HEIF_BRANDS:
            raise _unsupported("HEIC")
    raise _refuse(data, start)


def _read_jpeg(data: memoryview) -> Header:
    """Walk the segments up to the frame header, picking up the EXIF orientation."""
    orientation = 0
    at, end = 2, len(data)
    while at + 4 <= end:
        if data[at] != 0xFF:
            # Decoders skip stray bytes between segments.
            at += max(1, bytes(data[at:]).find(b"\xff"))
            continue
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8 or marker == 0:
            at += 2
            continue
        if marker in (0xD9, 0xDA):
            raise RowFailure(Status.DECODE_ERROR, "the JPEG has no frame header")
        length = data[at + 2] << 8 | data[at + 3]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _need(data, at + 9)
            height = data[at + 5] << 8 | data[at + 6]
            width = data[at + 7] << 8 | data[at + 8]
            return Header(Format.JPEG, (width, height), orientation or 1, True)
        if marker == 0xE1 and not orientation and bytes(data[at + 4 : at + 10]) == EXIF_PREFIX:
            orientation = exif_orientation(bytes(data[at + 10 : at + 2 + length]))
        at += 2 + length
    raise RowFailure(Status.INCOMPLETE, "the JPEG ends within its header")


def _read_png(start: bytes) -> Header:
    _need(start, 24)
    if start[12:16] != b"IHDR":
        raise RowFailure(Status.DECODE_ERROR, "the PNG does not begin with its header")
    size = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
    return Header(Format.PNG, size)


def _read_webp(start: bytes) -> Header:
    kind = start[12:16]
    _need(start, 25 if kind == b"VP8L" else 30)
    if kind == b"VP8 ":
        size = _little(start[26:28]) & 0x3FFF, _little(start[28:30]) & 0x3FFF
        return Header(Format.WEBP, size, is_plain=True)
    if kind == b"VP8L":
        bits = _little(start[21:25])
        size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return Header(Format.WEBP, size, is_plain=not bits >> 28 & 1)
    if kind == b"VP8X":
        size = _little(start[24:27]) + 1, _little(start[27:30]) + 1
        animation, xmp, exif, alpha = 0x02, 0x04, 0x08, 0x10
        changes = animation | xmp | exif | alpha
        return Header(Format.WEBP, size, is_plain=not start[20] & changes)
    raise RowFailure(Status.DECODE_ERROR, "the WebP does not begin with a chunk that is known")


def _read_bmp(start: bytes) -> Header:
    if _little(start[14:18]) == 12:
        _need(start, 22)
        return Header(Format.BMP, (_little(start[18:20]), _little(start[20:22])))
    _need(start, 26)
    width = int.from_bytes(start[18:22], "little", signed=True)
    # A negative height means that the rows run from the top.
    height = abs(int.from_bytes(start[22:26], "little", signed=True))
    return Header(Format.BMP, (width, height))


def _refuse(data: memoryview, start: bytes) -> RowFailure:
    if not start:
        return RowFailure(Status.NOT_AN_IMAGE, "the value has no bytes")
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
    return RowFailure(Status.NOT_AN_IMAGE, "the bytes begin like no image format that is known")


def _unsupported(name: str) -> RowFailure:
    return RowFailure(
        Status.UNSUPPORTED_FORMAT, f"{name} is not read; the formats are {', '.join(Format)}"
    )


def _need(data: bytes | memoryview, size: int) -> None:
    if len(data) < size:
        raise RowFailure(Status.INCOMPLETE, "the image ends within its header")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
