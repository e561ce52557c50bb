"""Whether a file that could not be decoded ends before its format says that it should.

This tells a broken download (`incomplete`, worth fetching again) from a broken file. It is asked
only after a decoder failed, as decoders forgive what they do not need.
"""

from spark_vision.images.headers import Format


def ends_early(format: Format, data: memoryview) -> bool:
    """Say whether the structure of the file points beyond its end."""
    if format is Format.PNG:
        return _png_ends_early(data)
    if format is Format.WEBP:
        return len(data) < 12 or len(data) < 8 + int.from_bytes(data[4:8], "little")
    if format is Format.GIF:
        return len(data) == 0 or data[-1] != 0x3B
    if format is Format.BMP:
        return len(data) < int.from_bytes(data[2:6], "little")
    if format is Format.TIFF:
        return _tiff_ends_early(data)
    if format is Format.AVIF:
        return _boxes_end_early(data)
    return False


def _png_ends_early(data: memoryview) -> bool:
    at = 8
    while at + 8 <= len(data):
        kind = bytes(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if kind == b"IEND":
            return at > len(data)
        if not kind.isalpha():
            return False
    return True


def _tiff_ends_early(data: memoryview) -> bool:
    if len(data) < 8:
        return True
    directory = int.from_bytes(data[4:8], "little" if data[0] == ord("I") else "big")
    return directory + 2 > len(data)


def _boxes_end_early(data: memoryview) -> bool:
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 0:
            return False
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:
            return False
        at += size
    return at != len(data)
