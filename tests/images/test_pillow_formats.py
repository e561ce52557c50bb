"""Formats decoded by Pillow: corrupt PNG, profiles, XMP orientation, TIFF samples, warnings."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from encoded_images import (
    as_tensor,
    encode,
    exif_with_orientation,
    photo,
    photo_with_alpha,
    png_16_bit,
    png_chunk,
)
from spark_vision.errors import RowFailure, Status
from spark_vision.images.cost import Format
from spark_vision.images.decoding import decode
from spark_vision.images.pillow_decoding import MAX_PNG_CHUNKS, allocate_upright, decode_by_pillow
from spark_vision.operators import ImageLimits

LIMITS = ImageLimits()
MAGIC_BYTES = 8


def decode_to_array(data):
    return decode(as_tensor(data), LIMITS).permute(1, 2, 0).numpy()


def failure_of(data):
    with pytest.raises(RowFailure) as caught:
        decode(as_tensor(data), LIMITS)
    return caught.value


def chunks_of(data):
    """The chunks of a PNG: kind, payload."""
    at, chunks = MAGIC_BYTES, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def png_of(chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def in_pieces(data, size):
    """The same PNG with its pixel data in many chunks."""
    chunks = []
    for kind, payload in chunks_of(data):
        starts = range(0, len(payload), size) if kind == b"IDAT" else [0]
        step = size if kind == b"IDAT" else len(payload)
        chunks += [(kind, payload[start : start + step]) for start in starts]
    return png_of(chunks)


@pytest.mark.parametrize("which", [0, 3, -1])
def test_damaged_pixel_data_of_a_png_is_a_decode_error(which):
    data = bytearray(in_pieces(encode(photo(64, 48), "PNG"), 700))
    np.testing.assert_array_equal(decode_to_array(bytes(data)), np.asarray(photo(64, 48)))
    places = [at for at in range(len(data)) if data[at : at + 4] == b"IDAT"]
    assert len(places) > 4
    data[places[which] + 4 + 5] ^= 0x10
    failure = failure_of(bytes(data))
    assert failure.status == Status.DECODE_ERROR
    assert "checksum" in failure.reason


def test_wrong_checksum_alone_is_a_decode_error():
    data = bytearray(encode(photo(64, 48), "PNG"))
    # The checksum of the last pixel data stands before the 12 bytes of the end mark.
    data[-13] ^= 1
    assert failure_of(bytes(data)).status == Status.DECODE_ERROR


def test_second_header_of_a_png_is_a_decode_error():
    """The cost was estimated from the first one."""
    header, *rest = chunks_of(encode(photo(64, 48).convert("1"), "PNG"))
    larger, *pixels = chunks_of(png_16_bit(np.zeros((96, 128, 4), np.uint16)))
    failure = failure_of(png_of([header, larger, *pixels]))
    assert failure.status == Status.DECODE_ERROR
    assert "second header" in failure.reason
    assert decode_to_array(png_of([header, *rest])).shape == (48, 64, 3)


def test_png_whose_compressed_pixels_end_early_fails():
    chunks = [
        (kind, payload[: len(payload) // 2] if kind == b"IDAT" else payload)
        for kind, payload in chunks_of(encode(photo(64, 48), "PNG"))
    ]
    assert failure_of(png_of(chunks)).status in (Status.DECODE_ERROR, Status.INCOMPLETE)


def test_png_of_more_chunks_than_any_encoder_writes_is_a_decode_error():
    header, *rest = chunks_of(encode(photo(8, 8), "PNG"))
    failure = failure_of(png_of([header] + [(b"teXt", b"")] * MAX_PNG_CHUNKS + rest))
    assert failure.status == Status.DECODE_ERROR
    assert "chunks" in failure.reason


@pytest.mark.parametrize("size", [500, 3 * 2**20])
@pytest.mark.parametrize("place", [1, 2])
def test_colour_profile_of_any_size_is_left_out(size, place):
    profile = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes()
    chunks = chunks_of(encode(photo(64, 48), "PNG", dpi=(72, 72)))
    chunks.insert(place, (b"iCCP", b"a profile\0\0" + zlib.compress(profile)))
    np.testing.assert_array_equal(decode_to_array(png_of(chunks)), np.asarray(photo(64, 48)))


def test_real_colour_profile_changes_no_pixel():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encode(photo(64, 48), "PNG", icc_profile=profile)
    assert b"iCCP" in data
    np.testing.assert_array_equal(decode_to_array(data), np.asarray(photo(64, 48)))


def xmp_of(orientation):
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description '
        f'tiff:Orientation="{orientation}"/></x:xmpmeta>'
    )


def with_xmp(format, orientation, **options):
    xmp = xmp_of(orientation)
    if format == "PNG":
        chunks = chunks_of(encode(photo(60, 40), "PNG", **options))
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp.encode()
        return png_of([chunks[0], (b"iTXt", text), *chunks[1:]])
    return encode(photo(60, 40), format, xmp=xmp.encode(), lossless=True, **options)


@pytest.mark.parametrize("orientation", [0, *range(1, 10)])
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_orientation_in_xmp_is_applied(format, orientation):
    data = with_xmp(format, orientation)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert expected.shape == ((60, 40, 3) if 5 <= orientation <= 8 else (40, 60, 3))
    np.testing.assert_array_equal(decode_to_array(data), expected)


@pytest.mark.parametrize("in_exif", [1, 3])
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_orientation_in_exif_overrides_that_in_xmp(format, in_exif):
    data = with_xmp(format, 6, exif=exif_with_orientation(in_exif))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert expected.shape == (40, 60, 3)
    np.testing.assert_array_equal(decode_to_array(data), expected)


def tiff_of(samples, sample_format):
    """Write gray samples as an uncompressed little-endian TIFF."""
    height, width = samples.shape
    pixels = samples.tobytes()
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8 * samples.itemsize),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8 + 2 + 9 * 12 + 4),
        (278, 4, 1, height),
        (279, 4, 1, len(pixels)),
        (339, 3, 1, sample_format),
    ]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    start = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
    return start + directory + struct.pack("<I", 0) + pixels


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("<i1", "signed 8-bit"),
        ("<i2", "signed 16-bit"),
        ("<i4", "signed 32-bit"),
        ("<u4", "unsigned 32-bit"),
    ],
)
def test_integers_without_an_agreed_white_are_named(dtype, name):
    kind = np.dtype(dtype)
    samples = np.arange(12).astype(kind).reshape(3, 4)
    failure = failure_of(tiff_of(samples, 2 if kind.kind == "i" else 1))
    assert failure.status == Status.UNSUPPORTED_FORMAT
    assert failure.reason.startswith(name)


@pytest.mark.parametrize(("dtype", "sample_format"), [("<u1", 1), ("<u2", 1), ("<f4", 3)])
def test_the_other_samples_are_read(dtype, sample_format):
    assert decode_to_array(tiff_of(np.zeros((3, 4), dtype), sample_format)).shape == (3, 4, 3)


def test_variants_that_pillow_lacks_are_unsupported():
    data = tiff_of(np.zeros((3, 4), "<f8"), 3)
    assert failure_of(data).status == Status.UNSUPPORTED_FORMAT
    bitmap = bytearray(encode(photo(8, 8), "BMP"))
    bitmap[30] = 5  # PNG within BMP, for printers
    assert failure_of(bytes(bitmap)).status == Status.UNSUPPORTED_FORMAT


def test_warnings_of_pillow_stay_in_the_decoder(capfd, recwarn):
    # Each of the tags has a number of values that is not its own, which Pillow warns of.
    tags = b"".join(struct.pack("<HHII", 256 + (index % 2), 4, 7, 8) for index in range(5000))
    data = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 5000) + tags + b"\0\0\0\0"
    failure_of(data)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rows_written_to_the_stored_view_are_upright(orientation):
    stored_pixels = np.asarray(photo(7, 5))
    upright, stored = allocate_upright(7, 5, orientation)
    stored[:] = stored_pixels
    with Image.fromarray(stored_pixels) as image:
        image.getexif()[0x0112] = orientation
        np.testing.assert_array_equal(upright, np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_bands_of_a_16_bit_png_join(channels):
    samples = np.random.default_rng(3).integers(0, 65536, (700, 901, channels)).astype(np.uint16)
    whole = decode_by_pillow(memoryview(png_16_bit(samples)), Format.PNG, lambda size: None)
    top = decode_by_pillow(memoryview(png_16_bit(samples[:60])), Format.PNG, lambda size: None)
    bottom = decode_by_pillow(memoryview(png_16_bit(samples[-60:])), Format.PNG, lambda size: None)
    np.testing.assert_array_equal(whole[:60], top)
    np.testing.assert_array_equal(whole[-60:], bottom)


MEMORY = """
import resource, sys
from spark_vision.images.cost import Format
from spark_vision.images.pillow_decoding import decode_by_pillow
data = memoryview(open(sys.argv[2], "rb").read())
tiny = memoryview(open(sys.argv[3], "rb").read())
decode_by_pillow(tiny, Format(sys.argv[1]), lambda size: None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode_by_pillow(data, Format(sys.argv[1]), lambda size: None)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize(
    ("format", "make", "max_decode_bytes"),
    [
        ("PNG", lambda *size: encode(Image.new("RGB", size), "PNG"), 7),
        ("PNG", lambda *size: encode(Image.new("RGBA", size), "PNG"), 7),
        ("PNG", lambda *size: encode(Image.new("L", size), "PNG"), 4),
        ("PNG", lambda *size: png_16_bit(np.zeros((size[1], size[0], 4), np.uint16)), 11),
        ("GIF", lambda *size: encode(Image.new("L", size), "GIF"), 4),
    ],
    ids=["RGB PNG", "RGBA PNG", "gray PNG", "16-bit PNG", "GIF"],
)
def test_decoding_takes_no_more_than_pillows_image_and_the_result(
    format, make, max_decode_bytes, tmp_path
):
    width, height = 4000, 3000
    (tmp_path / "large").write_bytes(make(width, height))
    (tmp_path / "tiny").write_bytes(encode(photo_with_alpha(8, 8).convert("RGB"), format))
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, format, tmp_path / "large", tmp_path / "tiny"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    # The bands, and what the decoder itself keeps.
    assert int(run.stdout) < max_decode_bytes * width * height + 16 * 2**20
