"""Small files that ask for much: each is made by hand from what an encoder writes."""

import io
import struct

from PIL import Image

from encoded_images import encode, photo, png_chunk


def jpeg_with_size(width, height, **options):
    """A JPEG of few blocks that claims many."""
    data = bytearray(encode(photo(64, 48), "JPEG", **options))
    at = next(data.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in data) + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_with_scans(count, width=64, height=48):
    """A progressive JPEG whose last scan stands in it so many times more."""
    data = jpeg_with_size(width, height, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def jpeg_with_scan_per_channel(count, width=64, height=48):
    """A baseline JPEG of which each scan has one channel: its decoder too keeps all of them."""
    data = jpeg_with_size(width, height)
    scan = data.index(b"\xff\xda")
    single = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0\0"
    return data[:scan] + single * count + b"\xff\xd9"


def png_of_kind(width, height, bits, color_type):
    """A PNG without pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")


def bmp_of_runs(width, height, codes):
    """A BMP of 8 bits whose rows are run lengths."""
    palette = bytes(range(256)) * 4
    start = 14 + 40 + len(palette)
    head = b"BM" + struct.pack("<IHHI", start + len(codes), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(codes), 0, 0, 256, 0)
    return head + info + palette + codes


def tiff(entries, *, big=False, order="<", after=b""):
    """A TIFF of one directory.

    Args:
        entries: Of the directory: tag, type, count, value or offset.
        big: Write BigTIFF.
        order: `<` or `>`.
        after: Bytes behind the directory.
    """
    name = b"II" if order == "<" else b"MM"
    if big:
        start = name + struct.pack(order + "HHHQ", 43, 8, 0, 16)
        packed = [
            struct.pack(order + "HHQ", *entry[:3]) + _value(entry, order, 8) for entry in entries
        ]
        return start + struct.pack(order + "Q", len(entries)) + b"".join(packed) + bytes(8) + after
    start = name + struct.pack(order + "HI", 42, 8)
    packed = [struct.pack(order + "HHI", *entry[:3]) + _value(entry, order, 4) for entry in entries]
    return start + struct.pack(order + "H", len(entries)) + b"".join(packed) + bytes(4) + after


def _value(entry, order, size):
    _, kind, count, value = entry
    if kind == 3 and count == 1:
        return struct.pack(order + "H", value) + bytes(size - 2)
    if kind == 4 and count == 1:
        return struct.pack(order + "I", value) + bytes(size - 4)
    return struct.pack(order + ("I" if size == 4 else "Q"), value)


def tiff_of_one_tile(side, *, big=False):
    """A gray TIFF of few pixels in a compressed tile of many."""
    return tiff(
        [
            (256, 4, 1, 16),
            (257, 4, 1, 16),
            (258, 3, 1, 8),
            (259, 3, 1, 8),
            (262, 3, 1, 1),
            (277, 3, 1, 1),
            (322, 4, 1, side),
            (323, 4, 1, side),
            (324, 4, 1, 8),
            (325, 4, 1, 16),
        ],
        big=big,
        after=bytes(64),
    )


def tiff_of_wide_tiles():
    """A TIFF of one column in tiles of which each has 65,536: few pixels, much to decompress."""
    tiles = 4096
    entries = [(256, 4, 1, 1), (257, 4, 1, 16 * tiles), (258, 3, 1, 8), (259, 3, 1, 8)]
    entries += [(262, 3, 1, 1), (277, 3, 1, 1), (322, 4, 1, 65536), (323, 4, 1, 16)]
    at = 8 + 2 + 12 * 10 + 4
    entries += [(324, 4, tiles, at), (325, 4, tiles, at + 4 * tiles)]
    return tiff(entries, after=bytes(8 * tiles))


def tiff_of_many_tags(count, size, *, big=False, pointer=None):
    """A TIFF of so many tags that all have their bytes at one place.

    Args:
        count: Of the tags.
        size: Bytes of each.
        big: Write BigTIFF.
        pointer: The tag of another directory, in which they stand; the first one if None.
    """
    many = [(40_000 + index % 20_000, 7, size, 8) for index in range(count)]
    basic = [(256, 4, 1, 16), (257, 4, 1, 16)]
    if pointer is None:
        return tiff(basic + many, big=big, after=bytes(size))
    first = tiff([*basic, (pointer, 4, 1, 8 + 2 + 3 * 12 + 4)])
    return first + tiff(many)[8:] + bytes(size)


def tiff_of_strips(count):
    """A TIFF of a few pixels in very many strips, each of which becomes an object."""
    at = 8 + 2 + 12 * 5 + 4
    entries = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8)]
    entries += [(273, 4, count, at), (279, 4, count, at)]
    return tiff(entries, after=bytes(4 * count))


def animated_webp_with_canvas(width, height):
    """Two frames of a few pixels on a canvas of many."""
    frames = [photo(64, 48, seed) for seed in (1, 2)]
    data = bytearray(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def avif_with_size(width, height):
    """An AVIF that claims a size its picture does not have."""
    data = bytearray(encode(photo(64, 48), "AVIF"))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", width, height)
    return bytes(data)


def gif_with_blocks(count, block=b"\x01x"):
    """A GIF with a comment of so many blocks before its frame."""
    data = encode(Image.new("P", (8, 8)), "GIF")
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    return data[:at] + b"!\xfe" + block * count + b"\0" + data[at:]


def webp_with_unflagged_alpha(image):
    """A lossless WebP with alpha, whose container does not say so."""
    simple = encode(image, "WEBP", lossless=True, exact=True)
    with Image.open(io.BytesIO(simple)) as decoded:
        width, height = decoded.size
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4)
    extended += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    at = simple.index(b"VP8L")
    length = int.from_bytes(simple[at + 4 : at + 8], "little")
    body = b"WEBP" + extended + simple[at : at + 8 + length + length % 2]
    return b"RIFF" + struct.pack("<I", len(body)) + body
