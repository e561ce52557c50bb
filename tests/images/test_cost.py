"""The cost of decoding in memory and work: estimated from the header, measured, and limited."""

import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from encoded_images import (
    as_tensor,
    encode,
    exif_with_orientation,
    photo,
    png_16_bit,
    tiff_16_bit_rgb,
)
from hostile_images import (
    animated_webp_with_canvas,
    avif_with_size,
    bmp_of_runs,
    gif_with_blocks,
    jpeg_with_scan_per_channel,
    jpeg_with_scans,
    jpeg_with_size,
    png_of_kind,
    tiff_of_many_tags,
    tiff_of_one_tile,
    tiff_of_strips,
    tiff_of_wide_tiles,
)
from spark_vision.errors import RowFailure, Status
from spark_vision.images import cost, decoding, orientation
from spark_vision.images.decoding import decode, inspect_image
from spark_vision.images.headers import read_header
from spark_vision.images.sources import RawImage
from spark_vision.operators import ImageLimits

LIMITS = ImageLimits()
SIDE = 9400
"""Of a square image of fewer pixels than are allowed."""
WIDTH, HEIGHT = 3200, 2400
CONSTANT_BYTES = cost.EXTRA_BYTES // 2
"""Bands of rows, and what a library takes when it is first used."""


def flat(mode, format, **options):
    return lambda: encode(Image.new(mode, (WIDTH, HEIGHT)), format, **options)


def animation(format):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "blue")]
    return lambda: encode(frames[0], format, save_all=True, append_images=frames[1:])


def sixteen_bits(channels):
    return np.zeros((HEIGHT, WIDTH, channels), np.uint16)


ONE_STRIP = {"compression": "tiff_adobe_deflate", "tiffinfo": {278: HEIGHT}}
KINDS = {
    "JPEG": flat("RGB", "JPEG"),
    "gray JPEG": flat("L", "JPEG"),
    "CMYK JPEG": flat("CMYK", "JPEG"),
    "progressive JPEG": flat("RGB", "JPEG", progressive=True),
    "progressive 4:4:4 JPEG": flat("RGB", "JPEG", progressive=True, subsampling=0),
    "turned JPEG": flat("RGB", "JPEG", exif=exif_with_orientation(6)),
    "mirrored JPEG": flat("RGB", "JPEG", exif=exif_with_orientation(7)),
    "scaled JPEG": flat("RGB", "JPEG"),
    "scaled CMYK JPEG": flat("CMYK", "JPEG"),
    "scaled progressive JPEG": flat("RGB", "JPEG", progressive=True),
    "scaled turned JPEG": flat("RGB", "JPEG", exif=exif_with_orientation(6)),
    "PNG": flat("RGB", "PNG"),
    "gray PNG": flat("L", "PNG"),
    "palette PNG": flat("P", "PNG"),
    "PNG with alpha": flat("RGBA", "PNG"),
    "16-bit gray PNG": lambda: png_16_bit(sixteen_bits(1)),
    "16-bit PNG": lambda: png_16_bit(sixteen_bits(3)),
    "16-bit PNG with alpha": lambda: png_16_bit(sixteen_bits(4)),
    "WebP": flat("RGB", "WEBP", method=0),
    "lossless WebP": lambda: encode(
        photo(300, 200).resize((WIDTH, HEIGHT), 0), "WEBP", lossless=True, method=0
    ),
    "WebP with alpha": flat("RGBA", "WEBP", method=0),
    "animated WebP": animation("WEBP"),
    "GIF": flat("P", "GIF"),
    "BMP": flat("RGB", "BMP"),
    "palette BMP": flat("P", "BMP"),
    "run-length BMP": lambda: bmp_of_runs(WIDTH, 500, (b"\xff\x01" * 10 + b"\0\0") * 500),
    "TIFF": flat("RGB", "TIFF", compression="tiff_adobe_deflate"),
    "TIFF in one strip": flat("RGB", "TIFF", **ONE_STRIP),
    "JPEG TIFF in one strip": flat("RGB", "TIFF", compression="jpeg", tiffinfo={278: HEIGHT}),
    "TIFF with alpha": flat("RGBA", "TIFF", compression="tiff_lzw"),
    "CMYK TIFF": flat("CMYK", "TIFF", compression="tiff_lzw"),
    "turned TIFF": flat("RGB", "TIFF", compression="tiff_lzw", exif=exif_with_orientation(6)),
    "16-bit TIFF": lambda: tiff_16_bit_rgb(sixteen_bits(3)),
    "floating-point TIFF": flat("F", "TIFF", compression="tiff_lzw"),
    "AVIF": flat("RGB", "AVIF", speed=10),
    "4:4:4 AVIF": flat("RGB", "AVIF", speed=10, subsampling="4:4:4"),
    "AVIF with alpha": flat("RGBA", "AVIF", speed=10),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """By kind: the bytes that a fresh process takes at most to decode it, beyond the file."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, make in KINDS.items():
        (folder / name).write_bytes(make())
    program = """
import json, os, pathlib, resource, sys, torch
from spark_vision.errors import RowFailure
from spark_vision.images import isolated_decoding
from spark_vision.images.decoding import decode
from spark_vision.images.sources import RawImage
from spark_vision.operators import ImageLimits
# What a process of its own would take counts too: it is decoded here.
isolated_decoding.decode_isolated.__globals__["_is_possible"] = False
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
taken = {}
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    read, write = os.pipe()
    # A forked process begins with the memory of now as its peak.
    child = os.fork()
    if not child:
        before = peak()
        sizes = [lambda height, width: (height // 6, width // 6)] if "scaled" in path.name else []
        try:
            pixels = decode(data, ImageLimits(max_pixels=10**9), resized_sizes=sizes).numel()
        except RowFailure as failure:
            pixels = str(failure)
        os.write(write, json.dumps([peak() - before, pixels]).encode())
        os._exit(0)
    os.close(write)
    taken[path.name] = json.loads(os.read(read, 1000))
    os.waitpid(child, 0)
print(json.dumps(taken))
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads(run.stdout)
    return {
        name: (taken, pixels, (folder / name).read_bytes())
        for name, (taken, pixels) in results.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_takes_at_most_the_memory_estimated_from_its_header(measured, kind):
    taken_bytes, value_count, data = measured[kind]
    sizes = [lambda height, width: (height // 6, width // 6)] if "scaled" in kind else []
    _, header, peak_bytes, scale = inspect_image(as_tensor(data), LIMITS, sizes)
    assert value_count == 3 * (header.size[0] // scale) * (header.size[1] // scale)
    # Pillow copies the file, and gives it to some decoders in one piece.
    copies = 0 if header.is_plain and scale == 1 else 3 * len(data)
    # The forked process also copies pages of torch, with Python 3.12 11 MB more than with others.
    assert taken_bytes <= peak_bytes + copies + CONSTANT_BYTES * 3 // 2
    # An estimate far too high would refuse images that fit.
    assert peak_bytes <= 1.6 * taken_bytes


def test_ordinary_image_with_the_maximum_pixels_fits_into_memory():
    limits = ImageLimits(max_pixels=40_000_000)
    for data in (jpeg_with_size(8000, 5000), jpeg_with_size(8000, 5000, quality=30)):
        assert inspect_image(as_tensor(data), limits).peak_bytes <= cost.max_decode_bytes(limits)


ATTACKS = {
    "progressive JPEG": lambda: jpeg_with_size(SIDE, SIDE, progressive=True, subsampling=0),
    "JPEG with a scan per channel": lambda: jpeg_with_scan_per_channel(3, SIDE, SIDE),
    "JPEG with repeated scans": lambda: jpeg_with_scans(200, 6000, 6000),
    "JPEG with repeated scans of a channel": lambda: jpeg_with_scan_per_channel(500, 4000, 4000),
    "small JPEG with repeated scans": lambda: jpeg_with_scans(20_000),
    "JPEG with many segments": lambda: b"\xff\xd8" + b"\xff\xe1\0\x02" * 300_000,
    "JPEG with a long header": lambda: b"\xff\xd8\xff\xe0\0\x10" + bytes(17 * 2**20),
    "16-bit PNG": lambda: png_of_kind(SIDE, SIDE, 16, 6),
    "PNG of one row": lambda: png_of_kind(80_000_000, 1, 8, 2),
    "animated WebP": lambda: animated_webp_with_canvas(SIDE, SIDE),
    "AVIF": lambda: avif_with_size(SIDE, SIDE),
    "TIFF of one tile": lambda: tiff_of_one_tile(46_000),
    "BigTIFF of one tile": lambda: tiff_of_one_tile(46_000, big=True),
    "TIFF of wide tiles": tiff_of_wide_tiles,
    "TIFF of many tags": lambda: tiff_of_many_tags(40_000, 400_000),
    "TIFF of long tags": lambda: tiff_of_many_tags(1000, 400_000),
    "BigTIFF of long tags": lambda: tiff_of_many_tags(1000, 400_000, big=True),
    "TIFF of a long EXIF directory": lambda: tiff_of_many_tags(1000, 400_000, pointer=34665),
    "TIFF of many strips": lambda: tiff_of_strips(2**21),
    "run-length BMP": lambda: bmp_of_runs(4000, 4000, b"\1\1\0\0" * 4000),
    "long run-length BMP": lambda: bmp_of_runs(300, 300, b"\5\1" * 5_000_000),
    "GIF with a long comment": lambda: gif_with_blocks(100_000),
    "GIF with many extensions": lambda: gif_with_blocks(1, b"\1x\0!\xfe" * 50_000),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_small_file_with_a_high_cost_is_too_large(name):
    with pytest.raises(RowFailure) as caught:
        inspect_image(as_tensor(ATTACKS[name]()), LIMITS)
    assert caught.value.status == Status.TOO_LARGE
    assert not caught.value.reason.endswith("…")


def test_image_refused_for_its_memory_is_decoded_if_more_pixels_are_allowed():
    data = as_tensor(encode(photo(64, 48), "JPEG", progressive=True))
    header = inspect_image(data, LIMITS).header
    assert header.peak_bytes > 3 * 64 * 48
    tiff = as_tensor(tiff_of_one_tile(46_000))
    inspect_image(tiff, ImageLimits(max_pixels=600_000_000))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_ordinary_progressive_jpeg_of_many_pixels_is_not_too_much_work(subsampling):
    data = jpeg_with_size(7000, 6000, progressive=True, subsampling=subsampling)
    header = inspect_image(as_tensor(data), LIMITS).header
    assert 0 < header.work <= cost.max_decode_work(LIMITS) / 2


def test_data_after_a_progressive_jpeg_is_not_counted():
    """Such as a film, or a smaller image for screens."""
    data = encode(photo(64, 48), "JPEG", progressive=True)
    work = read_header(memoryview(data)).work
    assert work > 0
    assert read_header(memoryview(data + data + b"\xff\xda" * 5000)).work == work


@pytest.mark.parametrize(
    "between",
    [b"\xff\xfe\0\x04\xff\xd9", b"\xff\x02\xff\xff", b"\xff\xd8\xff\xff", b"\xff\0\xff\xd0\xff"],
    ids=["end in a comment", "reserved mark", "start of an image", "stuffed bytes"],
)
def test_no_scan_is_hidden_from_the_count(between):
    data = encode(photo(64, 48), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    more = data[:last] + between + data[last:]
    assert read_header(memoryview(more)).work == read_header(memoryview(data)).work


def test_scans_are_counted_for_no_other_jpeg():
    """The body of an ordinary JPEG is not searched."""
    data = encode(photo(64, 48), "JPEG")
    header = read_header(memoryview(data[:-2] + b"\xff\xda" * 5000 + data[-2:]))
    assert header.work == 0
    assert header.peak_bytes == 3 * 64 * 48 + 64 * cost.ROW


def test_memory_is_reserved_only_after_the_header_was_checked(monkeypatch):
    """A refusal must come before any decoder, and before any process for one."""

    def fail(*_):
        raise AssertionError("a decoder was asked")

    for name in ("decode_by_pillow", "decode_isolated", "_decode_by_torchvision"):
        monkeypatch.setattr(decoding, name, fail)
    for make in ATTACKS.values():
        with pytest.raises(RowFailure):
            decode(as_tensor(make()), LIMITS)


def test_large_image_is_turned_as_a_small_one_is():
    pixels = torch.arange(3 * 31 * 17, dtype=torch.int32).reshape(31, 17, 3).permute(2, 0, 1)
    for value in range(1, 9):
        expected = orientation.apply_orientation(pixels.clone(), value)
        for most in (1, 100, 400):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(orientation, "_TURNED_AT_ONCE", most)
                got = orientation.apply_orientation(pixels.clone(), value)
            assert torch.equal(got, expected), (value, most)


@pytest.mark.parametrize(("mode", "channels"), [(0, 1), (16, 3), (24, 4)])
def test_raw_pixels_take_no_more_memory_than_their_result(mode, channels):
    height, width = 1500, 2000
    data = np.random.default_rng(0).integers(0, 256, height * width * channels, dtype=np.uint8)
    image = RawImage(height, width, channels, mode, torch.from_numpy(data))
    expected_bytes = inspect_image(image, LIMITS).peak_bytes
    tracemalloc.start()
    try:
        pixels = decode(image, LIMITS)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes <= expected_bytes + CONSTANT_BYTES // 4
    stored = data.reshape(height, width, channels).astype(float)
    alpha = stored[..., 3:] / 255 if channels == 4 else 1
    shown = stored[..., 2::-1] if channels > 1 else stored.repeat(3, axis=2)
    on_white = shown * alpha + 255 * (1 - alpha)
    assert np.abs(pixels.permute(1, 2, 0).numpy() - on_white).max() <= 0.51
