"""Checks the chunks of a PNG and removes its colour profile, before Pillow decodes it.

Pillow ignores the checksums of pixel data, so a damaged file would yield wrong pixels. It also
rejects a file with a colour profile over 1 MiB, although profiles are never applied here.
"""

import zlib

MAX_CHUNKS = 2**16
_MAGIC_BYTES = 8


def check_png(data: memoryview) -> bytes | memoryview:
    """Check the pixel data's checksums, and return the file without its colour profile.

    Args:
        data: The whole file; a truncated one is returned as far as it goes.

    Raises:
        ValueError: A checksum is wrong; there is a second header, which Pillow would use although
            only the first was checked; or there are more chunks than any encoder writes, each of
            which costs Pillow microseconds.
    """
    kept_from, at, count = 0, _MAGIC_BYTES, 0
    kept: list[memoryview] = []
    while at + 12 <= len(data):
        kind = bytes(data[at + 4 : at + 8])
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        count += 1
        if count > MAX_CHUNKS:
            raise ValueError(f"it has more than {MAX_CHUNKS:,} chunks")
        if end > len(data):
            break
        if kind == b"IHDR" and at != _MAGIC_BYTES:
            raise ValueError("it has a second header")
        if kind == b"IDAT" and zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(
            data[end - 4 : end], "big"
        ):
            raise ValueError("the checksum of its pixel data is wrong")
        if kind == b"iCCP":
            kept.append(data[kept_from:at])
            kept_from = end
        if kind == b"IEND":
            break
        at = end
    return b"".join([*kept, data[kept_from:]]) if kept else data
