"""Headers of every format, compared with Pillow."""

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from encoded_images import (
    as_tensor,
    encode,
    exif_with_orientation,
    insert_jpeg_segment,
    photo,
    photo_with_alpha,
    png_16_bit,
)
from hostile_images import (
    gif_with_blocks,
    tiff,
    webp_with_unflagged_alpha,
)
from spark_vision.errors import RowFailure, Status
from spark_vision.images import headers, truncation
from spark_vision.images.cost import Format
from spark_vision.images.decoding import decode
from spark_vision.images.headers import read_header
from spark_vision.operators import ImageLimits

XMP = b"http://ns.adobe.com/xap/1.0/\0"


def header_of(data):
    return read_header(memoryview(data))


def failure_of(data):
    with pytest.raises(RowFailure) as caught:
        header_of(data)
    return caught.value


def outcome_of(data):
    try:
        header_of(data)
    except RowFailure as failure:
        return failure.status
    return Status.OK


FILES = {
    "JPEG": lambda: encode(photo(61, 47), "JPEG"),
    "progressive JPEG": lambda: encode(photo(61, 47), "JPEG", progressive=True),
    "optimised JPEG": lambda: encode(photo(61, 47), "JPEG", optimize=True),
    "gray JPEG": lambda: encode(photo(61, 47).convert("L"), "JPEG"),
    "PNG": lambda: encode(photo(61, 47), "PNG"),
    "16-bit PNG": lambda: png_16_bit(np.zeros((47, 61, 4), np.uint16)),
    "WebP": lambda: encode(photo(61, 47), "WEBP"),
    "lossless WebP": lambda: encode(photo(61, 47), "WEBP", lossless=True),
    "WebP with alpha": lambda: encode(photo_with_alpha(61, 47), "WEBP"),
    "animated WebP": lambda: encode(
        photo(61, 47), "WEBP", save_all=True, append_images=[photo(61, 47, 1)]
    ),
    "GIF": lambda: encode(photo(61, 47), "GIF"),
    "BMP": lambda: encode(photo(61, 47), "BMP"),
    "TIFF": lambda: encode(photo(61, 47), "TIFF"),
    "BigTIFF": lambda: encode(photo(61, 47), "TIFF", big_tiff=True),
    "gray TIFF": lambda: encode(photo(61, 47).convert("L"), "TIFF"),
    "AVIF": lambda: encode(photo(61, 47), "AVIF"),
    "AVIF with alpha": lambda: encode(photo_with_alpha(61, 47), "AVIF"),
    "animated AVIF": lambda: encode(
        photo(61, 47), "AVIF", save_all=True, append_images=[photo(61, 47, 1)]
    ),
}


def test_the_largest_size_in_an_animated_avif_counts():
    data = bytearray(FILES["animated AVIF"]())
    place = data.index(b"ispe") + 8
    data[place : place + 8] = (1).to_bytes(4, "big") * 2
    # Its track, in the version that libavif writes, still has the size that decoders see.
    assert data[data.index(b"tkhd") + 4] == 1
    assert header_of(bytes(data)).size == (61, 47)


@pytest.mark.parametrize("name", FILES)
def test_header_agrees_with_pillow(name):
    data = FILES[name]()
    with Image.open(io.BytesIO(data)) as image:
        assert header_of(data).format == image.format
        assert header_of(data).size == image.size


@pytest.mark.parametrize("name", FILES)
def test_truncated_header_is_reported(name):
    data = FILES[name]()
    for cut in range(min(len(data), 700)):
        status = outcome_of(data[:cut])
        assert status in (Status.OK, Status.INCOMPLETE) or (
            cut < 30 and status == Status.NOT_AN_IMAGE
        ), cut


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_size_of_tiff_in_both_byte_orders_and_widths(order, big):
    assert header_of(tiff([(256, 4, 1, 70_000), (257, 3, 1, 5)], order=order, big=big)).size == (
        70_000,
        5,
    )


def test_tiff_without_a_size_is_a_decode_error():
    assert failure_of(tiff([(256, 4, 1, 5)])).status == Status.DECODE_ERROR


@pytest.mark.parametrize("pointer", [0, 4_000_000_000])
@pytest.mark.parametrize("tag", [34665, 34853])
def test_tiff_whose_metadata_is_not_where_it_says_is_read(tag, pointer):
    data = encode(photo(640, 480), "TIFF", tiffinfo={tag: pointer})
    pixels = decode(as_tensor(data), ImageLimits()).permute(1, 2, 0)
    np.testing.assert_array_equal(pixels, np.asarray(photo(640, 480)))


def test_tiff_with_a_value_of_its_own_beyond_its_end_is_read():
    entries = [(256, 4, 1, 16), (257, 4, 1, 16), (50_001, 4, 30, 1_000_000)]
    assert header_of(tiff(entries)).size == (16, 16)
    assert failure_of(tiff([*entries, (273, 4, 30, 1_000_000)])).status == Status.INCOMPLETE


def test_frame_larger_than_the_screen_of_its_gif_counts():
    data = bytearray(encode(photo(64, 48), "GIF"))
    at = data.index(b"\x2c\0\0\0\0") + 5
    data[at : at + 4] = struct.pack("<HH", 300, 20)
    assert header_of(bytes(data)).size == (300, 48)


def test_gif_with_comments_is_read():
    data = gif_with_blocks(300)
    assert header_of(data).size == (8, 8)
    assert decode(as_tensor(data), ImageLimits()).shape == (3, 8, 8)


def jpeg_with_long_header():
    """What cameras and editors write: EXIF with a thumbnail, a long profile, XMP, a comment."""
    data = encode(photo(64, 48), "JPEG", exif=exif_with_orientation(6))
    for index in range(200):
        data = insert_jpeg_segment(
            data, 0xE2, b"ICC_PROFILE\0" + bytes([index, 200]) + bytes(60_000)
        )
    data = insert_jpeg_segment(data, 0xE1, XMP + b"<x:xmpmeta/>" + b" " * 60_000)
    return insert_jpeg_segment(data, 0xFE, b"\xff\xda" * 1000)


def test_jpeg_with_a_long_header_is_read():
    data = jpeg_with_long_header()
    assert len(data) > 12_000_000
    header = header_of(data)
    assert (header.size, header.orientation, header.is_plain) == ((64, 48), 6, True)


@pytest.mark.parametrize("stray", [b"\0" * 50, b"\xff" * 50, b"\xff\0" * 50, b"\xff\xd0\xff\x01"])
def test_stray_bytes_between_segments_are_passed_over(stray):
    data = encode(photo(64, 48), "JPEG")
    at = data.index(b"\xff\xdb")
    assert header_of(data[:at] + stray + data[at:]) == header_of(data)


@pytest.mark.parametrize(
    "filler", [b"\0", b"\xff", b"\xff\0", b"\0\xff", b"\xff\xe1\0\2", b"\xff\xd0", b"\0\xff\xd9"]
)
def test_time_for_a_jpeg_header_is_in_proportion_to_its_length(filler):
    """Far from a second for 8 MB; where each byte made a copy of the rest it was minutes."""
    data = b"\xff\xd8\xff" + filler * (8 * 2**20 // len(filler))
    started = time.process_time()
    failure_of(data)
    assert time.process_time() - started < 5


def xmp_with(orientation, form):
    text = {
        "attribute": f'<rdf:Description tiff:Orientation="{orientation}"/>',
        "element": f"<tiff:Orientation>{orientation}</tiff:Orientation>",
    }[form]
    return f"<x:xmpmeta>{text}</x:xmpmeta>".encode()


def as_pillow_turns(data):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("form", ["attribute", "element"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation_in_xmp_is_applied_to_jpeg_as_pillow_does(orientation, form):
    packet = XMP + xmp_with(orientation, form)
    data = insert_jpeg_segment(encode(photo(60, 40), "JPEG"), 0xE1, packet)
    got = decode(as_tensor(data), ImageLimits()).permute(1, 2, 0).numpy()
    expected = as_pillow_turns(data)
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("in_exif", [1, 3, 6, 9])
def test_orientation_in_exif_comes_before_that_in_xmp(in_exif):
    data = encode(photo(60, 40), "JPEG", exif=exif_with_orientation(in_exif))
    data = insert_jpeg_segment(data, 0xE1, XMP + xmp_with(8, "attribute"))
    assert header_of(data).orientation == (in_exif if in_exif < 9 else 1)
    got = decode(as_tensor(data), ImageLimits()).permute(1, 2, 0).numpy()
    assert np.abs(got.astype(int) - as_pillow_turns(data)).max() <= 2


def test_exif_without_orientation_leaves_it_to_xmp():
    exif = Image.Exif()
    exif[0x010F] = "maker"
    data = encode(photo(60, 40), "JPEG", exif=exif)
    data = insert_jpeg_segment(data, 0xE1, XMP + xmp_with(6, "attribute"))
    assert header_of(data).orientation == 6
    assert as_pillow_turns(data).shape == (60, 40, 3)


def test_alpha_of_webp_that_no_flag_names_is_composited_on_white():
    image = photo_with_alpha(60, 40)
    data = webp_with_unflagged_alpha(image)
    assert not header_of(data).is_plain
    rgba = np.asarray(image).astype(float)
    alpha = rgba[..., 3:] / 255
    got = decode(as_tensor(data), ImageLimits()).permute(1, 2, 0).numpy()
    assert np.abs(got - (rgba[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1


def test_extended_webp_without_alpha_is_plain():
    data = encode(photo(60, 40), "WEBP", icc_profile=b"profile" * 10)
    assert data[12:16] == b"VP8X"
    assert header_of(data).is_plain


@pytest.mark.parametrize("lossless", [False, True])
def test_webp_with_metadata_is_plain_and_turned(lossless):
    exif = exif_with_orientation(8)
    data = encode(photo(60, 40), "WEBP", lossless=lossless, exif=exif, xmp=xmp_with(3, "element"))
    header = header_of(data)
    assert (header.is_plain, header.orientation) == (True, 8)
    got = decode(as_tensor(data), ImageLimits()).permute(1, 2, 0).numpy()
    assert np.abs(got.astype(int) - as_pillow_turns(data)).max() <= 2


def test_webp_with_orientation_in_xmp_alone_is_turned_as_pillow_does():
    data = encode(photo(60, 40), "WEBP", lossless=True, xmp=xmp_with(6, "attribute"))
    got = decode(as_tensor(data), ImageLimits()).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(got, as_pillow_turns(data))


@pytest.mark.parametrize("options", [{}, {"compression": "tga_rle"}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_targa_is_called_one(mode, options):
    failure = failure_of(encode(photo(32, 32).convert(mode), "TGA", **options))
    assert failure.status == Status.UNSUPPORTED_FORMAT
    assert failure.reason.startswith("TGA")


def test_icon_and_cursor_are_called_ones():
    icon = encode(photo(32, 32), "ICO")
    assert failure_of(icon).reason.startswith("ICO")
    assert failure_of(icon[:2] + b"\2" + icon[3:]).reason.startswith("CUR")


@pytest.mark.parametrize("start", [b"\0\0\1\0", b"\0\0\2\0", b"\0\0\2"])
def test_small_numbers_are_no_icon(start):
    assert failure_of(start + bytes(100)).status == Status.NOT_AN_IMAGE


@pytest.mark.parametrize(
    ("format", "start", "piece"),
    [
        (Format.PNG, b"\x89PNG\r\n\x1a\n", b"\0\0\0\0abcd\0\0\0\0"),
        (Format.AVIF, b"", b"\0\0\0\x08free"),
    ],
)
def test_truncation_is_detected_in_bounded_steps(format, start, piece):
    def is_truncated(count):
        return truncation.is_truncated(format, memoryview(start + piece * count))

    assert is_truncated(100)
    assert not is_truncated(truncation.MAX_STEPS + 1)


def test_long_walks_are_bounded_by_count():
    """Whatever the bytes, a header takes so many steps of Python and no more."""
    data = b"GIF89a\1\0\1\0\0\0\0" + b"\0" * (headers.MAX_GIF_BLOCKS + 1)
    assert failure_of(data).status == Status.TOO_LARGE
    assert Format.GIF in failure_of(data).reason
