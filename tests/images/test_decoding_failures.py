"""Statuses of bytes that are not an image, unsupported, truncated, or too large."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from encoded_images import (
    as_tensor,
    encode,
    photo,
    photo_with_alpha,
    png_16_bit,
    png_chunk,
    png_with_size,
)
from spark_vision.errors import RowFailure, Status
from spark_vision.images.decoding import decode
from spark_vision.operators import ImageLimits

LIMITS = ImageLimits()
SMALL = ImageLimits(max_pixels=1000)
ENCODINGS = {
    "JPEG": lambda: encode(photo(64, 48), "JPEG"),
    "progressive JPEG": lambda: encode(photo(64, 48), "JPEG", progressive=True),
    "JPEG with restarts": lambda: encode(photo(64, 48), "JPEG", restart_marker_blocks=2),
    "CMYK JPEG": lambda: encode(photo(64, 48).convert("CMYK"), "JPEG"),
    "PNG": lambda: encode(photo(64, 48), "PNG"),
    "PNG with alpha": lambda: encode(photo_with_alpha(64, 48), "PNG"),
    "16-bit PNG": lambda: png_16_bit(np.arange(64 * 48 * 3, dtype=np.uint16).reshape(48, 64, 3)),
    "GIF": lambda: encode(photo(64, 48), "GIF"),
    "WebP": lambda: encode(photo(64, 48), "WEBP"),
    "lossless WebP": lambda: encode(photo(64, 48), "WEBP", lossless=True),
    "WebP with alpha": lambda: encode(photo_with_alpha(64, 48), "WEBP"),
    "BMP": lambda: encode(photo(64, 48), "BMP"),
    "TIFF": lambda: encode(photo(64, 48), "TIFF"),
    "deflated TIFF": lambda: encode(photo(64, 48), "TIFF", compression="tiff_adobe_deflate"),
    "AVIF": lambda: encode(photo(64, 48), "AVIF"),
}


def failure_of(data, limits=LIMITS):
    with pytest.raises(RowFailure) as caught:
        decode(as_tensor(data), limits)
    assert 0 < len(caught.value.reason) <= 200
    return caught.value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"plain text",
        b"\0" * 5000,
        b"\xff" * 5000,
        b"BMW is a car, and this a sentence",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2mp41",
        b'{"image": null}',
        b"%PDF-1.7 ...",
        b"GIF",
        np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8).tobytes(),
    ],
)
def test_bytes_of_no_image_format(data):
    assert failure_of(data).status == Status.NOT_AN_IMAGE


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html><html>", b"\n\n<html lang='en'>", b"\xef\xbb\xbf<!doctype HTML>"]
)
def test_html_page_is_named(page):
    failure = failure_of(page + b"404 Not Found")
    assert failure.status == Status.NOT_AN_IMAGE
    assert "HTML" in failure.reason


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("SVG", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("SVG", b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg/>'),
        ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40),
        ("HEIC", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + b"\0" * 40),
        ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 40),
        ("JPEG 2000", b"\xff\x4f\xff\x51" + b"\0" * 40),
        ("JPEG XL", b"\xff\x0a" + b"\0" * 40),
        ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 40),
        ("ICO", encode(photo(32, 32), "ICO")),
        ("PSD", b"8BPS\0\x01" + b"\0" * 40),
        ("Netpbm", encode(photo(4, 4), "PPM")),
        ("DDS", encode(photo(4, 4), "DDS")),
        ("QOI", encode(photo(4, 4), "QOI")),
        ("ICNS", encode(photo(32, 32), "ICNS")),
    ],
)
def test_unsupported_format_is_named(name, data):
    failure = failure_of(data)
    assert failure.status == Status.UNSUPPORTED_FORMAT
    assert name in failure.reason


def test_integer_and_lab_tiff_are_refused_by_name():
    whole_numbers = Image.fromarray(np.arange(12, dtype=np.int32).reshape(3, 4))
    assert failure_of(encode(whole_numbers, "TIFF")).status == Status.UNSUPPORTED_FORMAT
    lab = Image.new("LAB", (4, 4))
    assert failure_of(encode(lab, "TIFF")).status == Status.UNSUPPORTED_FORMAT


def test_unsupported_jpeg_process_is_reported():
    data = bytearray(encode(photo(64, 48), "JPEG"))
    data[data.index(b"\xff\xc0") + 1] = 0xC5
    assert failure_of(bytes(data)).status == Status.UNSUPPORTED_FORMAT


@pytest.mark.parametrize("name", ENCODINGS)
def test_truncated_image_is_incomplete(name):
    data = ENCODINGS[name]()
    decode(as_tensor(data), LIMITS)
    # The last bytes of some formats are an end mark or padding that decoders do not need.
    needed = len(data) - {"GIF": 2}.get(name, 22 if "PNG" in name else 0)
    cuts = {18, 20, 30, 60, *range(100, needed, max(1, needed // 40)), needed - 1}
    for cut in sorted(cut for cut in cuts if cut < needed):
        assert failure_of(data[:cut]).status == Status.INCOMPLETE, f"cut at {cut} of {len(data)}"


def test_truncated_jpeg_is_never_filled_up():
    for progressive in (False, True):
        data = encode(photo(64, 48), "JPEG", progressive=progressive)
        for cut in range(4, len(data)):
            assert failure_of(data[:cut]).status == Status.INCOMPLETE, cut


def test_corrupt_images_never_end_the_process(tmp_path):
    """A decoder in C may crash on what it does not expect, and would take the worker with it."""
    for name, make in ENCODINGS.items():
        (tmp_path / name).write_bytes(make())
    program = """
import pathlib, sys, warnings
import numpy as np
import torch
from spark_vision.errors import RowFailure
from spark_vision.images.decoding import decode
from spark_vision.operators import ImageLimits
warnings.simplefilter("ignore")
random = np.random.default_rng(0)
limits = ImageLimits(max_pixels=100_000)
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    original = path.read_bytes()
    outcomes = set()
    for _ in range(150):
        data = bytearray(original)
        for _ in range(random.integers(1, 4)):
            data[random.integers(len(data) if random.integers(2) else 200)] = random.integers(256)
        try:
            pixels = decode(torch.frombuffer(data, dtype=torch.uint8), limits)
            assert pixels.dtype == torch.uint8 and pixels.shape[0] == 3
            outcomes.add("ok")
        except RowFailure as failure:
            outcomes.add(failure.status.value)
    print(path.name, "failed" if outcomes - {"ok"} else "always decoded", sep=": ")
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.splitlines() == [f"{name}: failed" for name in sorted(ENCODINGS)]


def overwrite_middle(data):
    middle = len(data) // 2
    return data[:middle] + b"\x55" * 50 + data[middle + 50 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda: encode(photo(64, 48), "JPEG").replace(b"\xff\xdb", b"\xff\xfe"),
        lambda: b"\xff\xd8\xff\xda\0\x08\x01\x01\0\0\0\0" + b"\0" * 50,
        lambda: encode(photo(64, 48), "PNG").replace(b"IHDR", b"JHDR"),
        lambda: overwrite_middle(encode(photo(64, 48), "PNG")),
        lambda: encode(photo(64, 48), "WEBP", lossless=True).replace(b"\x2f", b"\0", 1),
        lambda: encode(photo(64, 48), "WEBP").replace(b"VP8 ", b"VP9 "),
    ],
    ids=["JPEG tables", "JPEG frame", "PNG header", "PNG data", "WebP signature", "WebP chunk"],
)
def test_corrupt_image_is_a_decode_error(damage):
    assert failure_of(damage()).status == Status.DECODE_ERROR


@pytest.mark.parametrize("name", ENCODINGS)
def test_image_of_too_many_pixels_is_too_large(name):
    failure = failure_of(ENCODINGS[name](), SMALL)
    assert failure.status == Status.TOO_LARGE
    assert "64 × 48" in failure.reason


@pytest.mark.parametrize("name", ENCODINGS)
def test_image_with_the_maximum_pixels_is_decoded(name):
    assert decode(as_tensor(ENCODINGS[name]()), ImageLimits(max_pixels=64 * 48)).shape[0] == 3


def giant_jpeg():
    data = bytearray(encode(photo(64, 48), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xdc\xff\xdc"
    return bytes(data)


def giant_webp():
    frame = encode(photo(64, 48), "WEBP", lossless=True)
    bits = int.from_bytes(frame[21:25], "little") | 0x0FFFFFFF
    return frame[:21] + bits.to_bytes(4, "little") + frame[25:]


@pytest.mark.parametrize(
    "bomb",
    [
        lambda: png_with_size(60_000, 60_000),
        giant_jpeg,
        giant_webp,
        lambda: b"GIF89a" + b"\xff\xff\xff\xff" + encode(photo(64, 48), "GIF")[10:],
        lambda: encode(Image.new("1", (20_000, 20_000)), "TIFF", compression="group4"),
        lambda: encode(Image.new("1", (12_000, 12_000)), "PNG"),
    ],
    ids=["PNG", "JPEG", "WebP", "GIF", "TIFF", "real PNG"],
)
def test_bomb_is_refused_before_its_pixels_take_memory(bomb):
    data = as_tensor(bomb())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RowFailure) as caught:
        decode(data, LIMITS)
    assert caught.value.status == Status.TOO_LARGE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "KiB"


def test_frame_larger_than_the_screen_of_its_gif_is_too_large():
    data = bytearray(encode(photo(64, 48), "GIF"))
    at = data.index(b"\x2c\0\0\0\0") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"
    assert failure_of(bytes(data)).status == Status.TOO_LARGE


def test_compressed_text_in_png_is_bounded():
    import zlib

    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (80 * 2**20)))
    data = encode(photo(8, 8), "PNG")
    at = data.index(b"IDAT") - 4
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert failure_of(data[:at] + text + data[at:]).status == Status.DECODE_ERROR
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000, "KiB"


@pytest.mark.parametrize(
    "data",
    [
        png_with_size(0, 10),
        png_with_size(10, 0),
        b"GIF89a" + b"\0\0\x0a\0" + b"\0" * 20,
        encode(photo(64, 48), "JPEG").replace(b"\0\x11\x08\0\x30\0\x40", b"\0\x11\x08\0\0\0\x40"),
        encode(photo(64, 48), "BMP").replace(b"\x40\0\0\0\x30\0\0\0", b"\0\0\0\0\x30\0\0\0"),
    ],
    ids=["PNG width", "PNG height", "GIF", "JPEG", "BMP"],
)
def test_image_without_pixels_has_bad_dimensions(data):
    assert failure_of(data).status == Status.BAD_DIMENSIONS


def test_lack_of_memory_fails_only_the_row(tmp_path):
    program = """
import resource, sys, torch
from spark_vision.errors import RowFailure
from spark_vision.images.decoding import decode
from spark_vision.operators import ImageLimits
for path in sys.argv[1:]:
    data = torch.frombuffer(bytearray(open(path, "rb").read()), dtype=torch.uint8)
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + 30 * 2**20, resource.RLIM_INFINITY))
    try:
        decode(data, ImageLimits())
        print("decoded")
    except RowFailure as failure:
        print(failure.status.value)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
    for format in ("JPEG", "PNG"):
        Image.new("L", (5000, 5000)).save(tmp_path / format, format)
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "JPEG", tmp_path / "PNG"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout.split() == ["out_of_memory", "out_of_memory"], run.stderr[-2000:]
