"""Images for tests, encoded by Pillow, or by hand where Pillow cannot write the variant."""

import io
import struct
import zlib

import numpy as np
import torch
from PIL import Image


def photo(width, height, seed=0):
    """A smooth picture with some noise, so that codecs meet both flat and busy blocks."""
    random = np.random.default_rng(seed)
    cells = random.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
    smooth = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth).astype(int) + random.integers(-8, 9, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def photo_with_alpha(width, height, mode="RGBA", seed=0):
    """A picture whose colours go on under transparent pixels."""
    image = photo(width, height, seed).convert("RGB" if mode == "RGBA" else "L")
    ramp = np.linspace(0, 255, width).round().astype(np.uint8)
    alpha = np.repeat(ramp[None], height, axis=0)
    alpha[: height // 4] = 0
    alpha[-height // 4 :] = 255
    image.putalpha(Image.fromarray(alpha))
    return image


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def as_tensor(data):
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()


def exif_with_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def insert_jpeg_segment(data, marker, payload):
    """Put a segment directly after the start of the image."""
    return (
        data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload + data[2:]
    )


def png_chunk(kind, payload):
    checksum = struct.pack(">I", zlib.crc32(kind + payload))
    return struct.pack(">I", len(payload)) + kind + payload + checksum


_PNG_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def png_16_bit(samples, *chunks):
    """Write uint16 samples [height, width, channels] as PNG."""
    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOR_TYPES[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    body = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + png_chunk(b"IEND", b"")


def png_with_size(width, height):
    """A PNG whose header claims a size that its few pixels do not have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def tiff_16_bit_rgb(samples):
    """Write uint16 samples [height, width, 3] as an uncompressed little-endian TIFF."""
    height, width, _ = samples.shape
    pixels = samples.astype("<u2").tobytes()
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, 8 + 2 + 9 * 12 + 4),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8 + 2 + 9 * 12 + 4 + 6),
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, len(pixels)),
    ]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    start = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
    return start + directory + struct.pack("<I", 0) + struct.pack("<HHH", 16, 16, 16) + pixels
