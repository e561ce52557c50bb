"""Decoded pixels against Pillow, plus the rules that the package adds to it.

Tolerances: torchvision and Pillow each bundle a libjpeg and a libwebp, and versions of these may
round their colour conversion and chroma upsampling differently: up to 2 levels at a pixel and 0.3
on average. Lossless formats are exact. Compositing on white may round differently: 1 level.
"""

import io
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from encoded_images import (
    as_tensor,
    encode,
    exif_with_orientation,
    insert_jpeg_segment,
    photo,
    photo_with_alpha,
    png_16_bit,
    png_chunk,
    tiff_16_bit_rgb,
)
from spark_vision.images.decoding import decode, decode_inspected, inspect_image
from spark_vision.operators import ImageLimits

LIMITS = ImageLimits()
SIZES = [(120, 90), (37, 41), (2000, 37), (1, 1)]


def decode_to_array(data):
    """Decode to [height, width, 3]."""
    pixels = decode(as_tensor(data), LIMITS)
    assert pixels.dtype == torch.uint8
    assert pixels.shape[0] == 3
    return pixels.permute(1, 2, 0).numpy()


def on_white(rgba):
    """Composite float [height, width, 4] of range 0 to 255."""
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def by_pillow(data):
    """What Pillow makes of the bytes: upright, first frame, composited on white in floats."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        return on_white(np.asarray(image.convert("RGBA")).astype(float))
    return np.asarray(image.convert("RGB")).astype(float)


def assert_close(got, expected, most=0.0, mean=0.0):
    assert got.shape == expected.shape
    difference = np.abs(got.astype(float) - expected)
    assert difference.max() <= most
    assert difference.mean() <= mean


LOSSY = {"most": 2, "mean": 0.3}
COMPOSITED = {"most": 1, "mean": 0.51}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_as_pillow_reads_it(size, mode, progressive):
    data = encode(photo(*size).convert(mode), "JPEG", quality=85, progressive=progressive)
    assert_close(decode_to_array(data), by_pillow(data), **LOSSY)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [30, 75, 97])
def test_jpeg_subsampling_and_quality(subsampling, quality):
    data = encode(photo(131, 77), "JPEG", quality=quality, subsampling=subsampling)
    assert_close(decode_to_array(data), by_pillow(data), **LOSSY)


def cmyk_jpeg():
    inks = np.random.default_rng(3).integers(0, 256, (6, 8, 4), dtype=np.uint8)
    smooth = Image.fromarray(inks, "CMYK").resize((96, 72), Image.Resampling.BICUBIC)
    return encode(smooth, "JPEG", quality=95)


def test_cmyk_jpeg_with_its_black_ink():
    data = cmyk_jpeg()
    assert_close(decode_to_array(data), by_pillow(data), **LOSSY)


def test_ycck_jpeg():
    data = bytearray(cmyk_jpeg())
    transform_at = data.index(b"Adobe") + 11
    data[transform_at] = 2
    assert_close(decode_to_array(bytes(data)), by_pillow(bytes(data)), **LOSSY)


def test_cmyk_jpeg_without_adobe_marker():
    data = cmyk_jpeg()
    start = data.index(b"Adobe") - 4
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    data = data[:start] + data[start + 2 + length :]
    assert_close(decode_to_array(data), by_pillow(data), **LOSSY)


def test_rgb_jpeg_that_was_never_ycc():
    data = encode(photo(64, 48), "JPEG", keep_rgb=True)
    assert_close(decode_to_array(data), by_pillow(data), **LOSSY)


def test_multi_picture_jpeg_gives_its_first_picture():
    first = photo(64, 48, seed=1)
    data = encode(first, "MPO", save_all=True, append_images=[photo(64, 48, seed=2)])
    assert_close(decode_to_array(data), np.asarray(Image.open(io.BytesIO(data))), **LOSSY)
    assert np.abs(decode_to_array(data).astype(float) - np.asarray(first)).mean() < 10


def test_jpeg_with_bytes_after_its_end():
    data = encode(photo(64, 48), "JPEG")
    np.testing.assert_array_equal(decode_to_array(data + b"trailing" * 50), decode_to_array(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied(format, orientation):
    exif = exif_with_orientation(orientation)
    data = encode(photo(60, 40), format, exif=exif)
    expected = by_pillow(data)
    assert expected.shape == ((60, 40, 3) if orientation >= 5 else (40, 60, 3))
    assert_close(decode_to_array(data), expected, **LOSSY)


@pytest.mark.parametrize("byte_order", [b"II", b"MM"])
def test_exif_after_another_metadata_segment_is_found(byte_order):
    name = "little" if byte_order == b"II" else "big"

    def number(value, size):
        return value.to_bytes(size, name)

    entry = number(0x0112, 2) + number(3, 2) + number(1, 4) + number(6, 2) + b"\0\0"
    directory = number(1, 2) + entry + number(0, 4)
    exif = b"Exif\0\0" + byte_order + number(42, 2) + number(8, 4) + directory
    data = insert_jpeg_segment(encode(photo(60, 40), "JPEG"), 0xE1, exif)
    data = insert_jpeg_segment(data, 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")
    assert_close(decode_to_array(data), by_pillow(data), **LOSSY)
    assert decode_to_array(data).shape == (60, 40, 3)


@pytest.mark.parametrize(
    "exif", [b"", b"II", b"II*\0\xff\xff\xff\x7f", b"XX*\0\x08\0\0\0", b"MM\0*\0\0\0\x08\xff\xff"]
)
def test_broken_exif_leaves_the_image_as_it_is(exif):
    plain = encode(photo(60, 40), "JPEG")
    data = insert_jpeg_segment(plain, 0xE1, b"Exif\0\0" + exif)
    np.testing.assert_array_equal(decode_to_array(data), decode_to_array(plain))


@pytest.mark.parametrize("orientation", [0, 9, 257])
def test_meaningless_orientation_is_ignored(orientation):
    data = encode(photo(60, 40), "JPEG", exif=exif_with_orientation(orientation))
    assert decode_to_array(data).shape == (40, 60, 3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_opaque_png_is_exact(size, mode):
    data = encode(photo(*size).convert(mode), "PNG")
    assert_close(decode_to_array(data), by_pillow(data))


def test_png_of_two_and_four_bits():
    for colors in (4, 16):
        data = encode(photo(60, 40).quantize(colors), "PNG", bits=2 if colors == 4 else 4)
        assert_close(decode_to_array(data), by_pillow(data))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_alpha_is_composited_on_white(mode, format):
    image = photo_with_alpha(60, 40, mode)
    got = decode_to_array(encode(image, format))
    assert_close(got, on_white(np.asarray(image.convert("RGBA")).astype(float)), **COMPOSITED)
    assert (got[0] == 255).all()


def test_transparent_palette_colours_are_white():
    palette_image = photo(60, 40).quantize(32)
    levels = bytes(range(0, 256, 8))
    data = encode(palette_image, "PNG", transparency=levels)
    rgb = np.asarray(palette_image.convert("RGB")).astype(float)
    alpha = np.frombuffer(levels, np.uint8)[np.asarray(palette_image)]
    expected = on_white(np.dstack([rgb, alpha.astype(float)]))
    assert_close(decode_to_array(data), expected, **COMPOSITED)


@pytest.mark.parametrize(("mode", "key"), [("L", 77), ("RGB", (10, 20, 30))])
def test_colour_key_of_png_is_white(mode, key):
    pixels = np.asarray(photo(60, 40).convert(mode)).copy()
    pixels[5:9, 5:9] = key
    data = encode(Image.fromarray(pixels), "PNG", transparency=key)
    got = decode_to_array(data)
    assert (got[5:9, 5:9] == 255).all()
    assert_close(got, by_pillow(data), **COMPOSITED)


def sixteen_bit_samples(channels):
    samples = np.random.default_rng(7).integers(0, 65536, (40, 60, channels)).astype(np.uint16)
    samples[0, :4, 0] = [0, 127, 129, 65535]
    return samples


def scaled(samples):
    return np.round(samples.astype(float) / 257)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_scaled_by_both_bytes(channels):
    samples = sixteen_bit_samples(channels)
    values = scaled(samples)
    color = values[..., :3] if channels >= 3 else np.repeat(values[..., :1], 3, axis=2)
    has_alpha = channels in (2, 4)
    expected = on_white(np.dstack([color, values[..., -1:]])) if has_alpha else color
    got = decode_to_array(png_16_bit(samples))
    assert_close(got, expected, **(COMPOSITED if has_alpha else {}))


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_colour_key_of_png_is_white(channels):
    samples = sixteen_bit_samples(channels)
    samples[5:9, 5:9] = 4321
    samples[20, 20] = 4322
    key = png_chunk(b"tRNS", (4321).to_bytes(2, "big") * channels)
    got = decode_to_array(png_16_bit(samples, key))
    assert (got[5:9, 5:9] == 255).all()
    assert (got[20, 20] == 17).all()


def test_16_bit_gray_tiff_is_scaled():
    samples = sixteen_bit_samples(1)[..., 0]
    data = encode(Image.fromarray(samples), "TIFF")
    assert_close(decode_to_array(data), np.repeat(scaled(samples)[..., None], 3, axis=2))


def test_16_bit_rgb_tiff_is_scaled_to_within_a_level():
    samples = sixteen_bit_samples(3)
    assert_close(decode_to_array(tiff_16_bit_rgb(samples)), scaled(samples), most=1, mean=0.6)


def test_floating_point_tiff_has_white_at_one():
    samples = np.array([[0, 0.5, 1, 7, -3, np.nan]], np.float32)
    got = decode_to_array(encode(Image.fromarray(samples), "TIFF"))
    assert got[0, :, 0].tolist() == [0, 128, 255, 255, 0, 0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lossless", [False, True])
def test_webp_is_as_pillow_reads_it(size, lossless):
    data = encode(photo(*size), "WEBP", lossless=lossless)
    assert_close(decode_to_array(data), by_pillow(data), **({} if lossless else LOSSY))


@pytest.mark.parametrize("lossless", [False, True])
def test_webp_alpha_is_composited_on_white(lossless):
    data = encode(photo_with_alpha(60, 40), "WEBP", lossless=lossless, exact=True)
    assert_close(decode_to_array(data), by_pillow(data), **COMPOSITED)
    assert (decode_to_array(data)[0] == 255).all()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_first_frame_stands_for_an_animation(format):
    frames = [photo(60, 40, seed) for seed in (1, 2, 3)]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert_close(decode_to_array(data), by_pillow(data), **LOSSY)
    assert np.abs(decode_to_array(data).astype(float) - np.asarray(frames[0])).mean() < 12


@pytest.mark.parametrize("size", SIZES)
def test_gif_is_exact(size):
    data = encode(photo(*size), "GIF")
    assert_close(decode_to_array(data), by_pillow(data))


def test_transparent_gif_is_white_there():
    image = photo(60, 40).quantize(64)
    data = encode(image, "GIF", transparency=5)
    is_transparent = np.asarray(image) == 5
    assert is_transparent.any()
    assert (decode_to_array(data)[is_transparent] == 255).all()
    assert_close(decode_to_array(data), by_pillow(data), **COMPOSITED)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
@pytest.mark.parametrize("format", ["BMP", "TIFF"])
def test_bmp_and_tiff_are_exact(size, mode, format):
    data = encode(photo(*size).convert(mode), format)
    assert_close(decode_to_array(data), by_pillow(data))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_compressions_are_exact(compression):
    data = encode(photo(60, 40), "TIFF", compression=compression)
    assert_close(decode_to_array(data), by_pillow(data))


def test_big_tiff_is_exact():
    data = encode(photo(60, 40), "TIFF", big_tiff=True)
    assert data[2] == 43
    assert_close(decode_to_array(data), by_pillow(data))


def test_cmyk_tiff():
    data = encode(photo(60, 40).convert("CMYK"), "TIFF")
    assert_close(decode_to_array(data), by_pillow(data))


@pytest.mark.skipif(not features.check("avif"), reason="this build of Pillow has no AVIF")
@pytest.mark.parametrize("size", SIZES)
def test_avif_is_as_pillow_reads_it(size):
    data = encode(photo(*size), "AVIF")
    assert_close(decode_to_array(data), by_pillow(data))


@pytest.mark.skipif(not features.check("avif"), reason="this build of Pillow has no AVIF")
def test_avif_alpha_is_composited_on_white():
    data = encode(photo_with_alpha(60, 40), "AVIF")
    assert_close(decode_to_array(data), by_pillow(data), **COMPOSITED)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_result_is_interleaved_in_memory(format):
    pixels = decode(as_tensor(encode(photo(60, 40), format)), LIMITS)
    assert pixels.stride() == (1, 180, 3)


@pytest.mark.parametrize(("format", "is_watched"), [("JPEG", True), ("PNG", True), ("GIF", False)])
def test_only_what_this_process_decodes_is_watched(format, is_watched):
    entered = []

    class Watch:
        def __enter__(self):
            entered.append(True)

        def __exit__(self, *_):
            pass

    image = as_tensor(encode(photo(40, 30), format))
    decode_inspected(inspect_image(image, ImageLimits()), ImageLimits(), watch=Watch())
    assert bool(entered) == is_watched


def test_decoding_leaves_its_input_unchanged():
    for format in ("JPEG", "PNG", "WEBP"):
        data = encode(photo(60, 40), format)
        image = as_tensor(data)
        decode(image, LIMITS)
        assert image.numpy().tobytes() == data


def test_decoding_in_many_threads_gives_the_same_pixels():
    files = [
        encode(photo(80, 60, seed), format)
        for seed, format in enumerate(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
    ]
    expected = [decode_to_array(data) for data in files]
    differing = []

    def work():
        for _ in range(10):
            for data, pixels in zip(files, expected, strict=True):
                if not np.array_equal(decode_to_array(data), pixels):
                    differing.append(data)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not differing


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_other_threads_run_while_one_decodes(format):
    data = as_tensor(encode(photo(2400, 1800), format))

    def count_turns():
        thread = threading.Thread(target=decode, args=(data, LIMITS))
        turns = 0
        thread.start()
        while thread.is_alive():
            # A turn waits for the interpreter's lock, which decoding must not hold.
            time.sleep(0.0005)
            turns += 1
        return turns

    # On a busy machine this thread may have no core while the other one decodes.
    assert any(count_turns() > 5 for _ in range(50))


def test_decoding_starts_no_threads_of_its_own(tmp_path):
    files = {format: encode(photo(640, 480), format) for format in ("JPEG", "PNG", "WEBP", "AVIF")}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    program = """
import os, sys, pathlib, torch
from spark_vision.images.decoding import decode
from spark_vision.operators import ImageLimits
torch.set_num_threads(4)
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    for _ in range(3):
        decode(data, ImageLimits())
    print(path.name, count() - before)
"""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=True,
    )
    assert run.stdout.split() == ["AVIF", "0", "JPEG", "0", "PNG", "0", "WEBP", "0"]
