"""What Pillow does not do with the chunks of a PNG: check its pixels, and leave out its profile.

Pillow reads over the checksums of pixel data, so that a damaged file would give wrong pixels. And
it refuses a file whose colour profile is over 1 MiB, which is never applied here.
"""

import zlib

MOST_CHUNKS = 2**16
_MAGIC_BYTES = 8


def check_png(data: memoryview) -> bytes | memoryview:
    """Check the pixel data's checksums, and give the file without its colour profile.

    Args:
        data: The whole file; one that ends early is given back as far as it goes.

    Raises:
        ValueError: A checksum is wrong; there is a second header, by which Pillow would go, though
            the first one was judged; or there are more chunks than any encoder writes: each of them
            costs Pillow microseconds.
    """
    kept_from, at, count = 0, _MAGIC_BYTES, 0
    kept: list[memoryview] = []
    while at + 12 <= len(data):
        kind = bytes(data[at + 4 : at + 8])
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        count += 1
        if count > MOST_CHUNKS:
            raise ValueError(f"it has more than {MOST_CHUNKS:,} chunks")
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
