"""JPEG files scaled down while they are decoded: as Pillow does it, and where enough is left."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize_image

from encoded_images import as_tensor, encode, exif_with_orientation, photo
from hostile_images import jpeg_with_size
from real_photographs import read_photographs
from spark_vision.errors import RowFailure, Status
from spark_vision.images import decoding
from spark_vision.images.decoding import decode, inspect_image
from spark_vision.images.sources import RawImage
from spark_vision.models.preprocessing import resized_size_rule
from spark_vision.operators import ImageLimits

LIMITS = ImageLimits()
SQUARE = {"height": 64, "width": 64}


def rules(*sizes):
    """The rules of models with these `size` settings."""
    return [resized_size_rule(size) for size in sizes]


def whole(height, width):
    """The rule of a model that does not resize."""
    return height, width


def scale_of(data, resized_sizes):
    return inspect_image(as_tensor(data), LIMITS, resized_sizes).scale


@pytest.mark.parametrize(
    ("width", "height", "sizes", "scale"),
    [
        (4000, 3000, [{"height": 224, "width": 224}], 4),
        (4000, 3000, [{"shortest_edge": 224}], 4),
        (4000, 3000, [{"shortest_edge": 256}], 2),
        (4000, 3000, [{"height": 112, "width": 112}], 8),
        (4000, 3000, [{"height": 112, "width": 112}, {"shortest_edge": 256}], 2),
        (1536, 1536, [SQUARE], 8),
        (1528, 1536, [SQUARE], 4),
        (1536, 1528, [SQUARE], 4),
        (1540, 1536, [SQUARE], 4),
        (1538, 1536, [SQUARE], 2),
        (1536, 1537, [SQUARE], 1),
        (384, 384, [SQUARE], 2),
        (383, 384, [SQUARE], 1),
        (376, 384, [SQUARE], 1),
        (4000, 400, [{"shortest_edge": 64}], 2),
        (4000, 3000, [], 1),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_enough_pixels_are_left_for_every_model(width, height, sizes, scale, orientation):
    exif = exif_with_orientation(orientation)
    data = encode(Image.new("L", (width, height)), "JPEG", exif=exif)
    assert scale_of(data, rules(*sizes)) == scale


def test_a_model_that_takes_every_pixel_gets_them():
    data = encode(Image.new("L", (1600, 1600)), "JPEG")
    assert scale_of(data, rules(SQUARE)) == 8
    assert scale_of(data, [*rules(SQUARE), whole]) == 1


def test_it_is_asked_for_the_size_of_the_upright_image():
    data = encode(Image.new("L", (800, 400)), "JPEG", exif=exif_with_orientation(6))
    upright = resized_size_rule({"height": 160, "width": 50})
    assert scale_of(data, [upright]) == 1
    assert scale_of(data, rules({"height": 120, "width": 50})) == 2


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_pillows_own_draft_upright(orientation, isolate):
    data = encode(photo(640, 480), "JPEG", exif=exif_with_orientation(orientation))
    for scale, side in ((8, 20), (4, 40), (2, 80)):
        expected = Image.open(io.BytesIO(data))
        expected.draft(None, (640 // scale, 480 // scale))
        expected = np.asarray(ImageOps.exif_transpose(expected))
        sizes = rules({"height": side, "width": side})
        got = decode(as_tensor(data), LIMITS, isolate=isolate, resized_sizes=sizes)
        assert sorted(got.shape[1:]) == [480 // scale, 640 // scale]
        np.testing.assert_array_equal(got.permute(1, 2, 0), expected)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_other_kinds_of_jpeg_are_scaled(mode, progressive):
    data = encode(photo(640, 480).convert(mode), "JPEG", progressive=progressive)
    got = decode(as_tensor(data), LIMITS, resized_sizes=rules({"height": 40, "width": 40}))
    box = Image.open(io.BytesIO(data)).convert("RGB").reduce(4)
    assert got.shape == (3, 120, 160)
    assert np.abs(got.permute(1, 2, 0).numpy() - np.asarray(box).astype(float)).mean() < 2


@pytest.mark.parametrize(
    "data",
    [
        encode(photo(380, 380), "JPEG", exif=exif_with_orientation(8)),
        encode(photo(641, 480), "JPEG"),
        *(encode(photo(640, 480), format) for format in ("PNG", "WEBP", "GIF", "TIFF")),
    ],
    ids=["small", "odd", "png", "webp", "gif", "tiff"],
)
def test_other_images_keep_every_bit(data):
    scaled = decode(as_tensor(data), LIMITS, resized_sizes=rules(SQUARE))
    assert torch.equal(scaled, decode(as_tensor(data), LIMITS))


def test_raw_pixels_are_not_scaled():
    image = RawImage(480, 640, 1, 0, torch.zeros(480 * 640, dtype=torch.uint8))
    assert decode(image, LIMITS, resized_sizes=rules(SQUARE)).shape == (3, 480, 640)


def pixel_differences(side):
    """By photograph: the mean difference at a model's size, in levels; 0 where it is not scaled."""

    def resized(data, **options):
        pixels = decode(as_tensor(data), LIMITS, **options)
        mode = InterpolationMode.BICUBIC
        return resize_image(pixels, [side, side], interpolation=mode).float()

    sizes = rules({"height": side, "width": side})
    return {
        name: (resized(data) - resized(data, resized_sizes=sizes)).abs().mean().item()
        for name, data in read_photographs().items()
    }


@pytest.mark.parametrize("side", [48, 64])
def test_photographs_differ_little_after_resizing(side):
    differences = pixel_differences(side)
    assert all(0 < each < 0.9 for each in differences.values()), differences


def test_the_check_of_photographs_sees_too_few_pixels(monkeypatch):
    monkeypatch.setattr(decoding, "_ENOUGH", 1)
    assert max(pixel_differences(64).values()) > 2


def test_a_truncated_file_is_incomplete():
    data = encode(photo(640, 480), "JPEG")
    for isolate in (False, True):
        with pytest.raises(RowFailure) as caught:
            decode(
                as_tensor(data[: len(data) // 2]),
                LIMITS,
                isolate=isolate,
                resized_sizes=rules({"height": 40, "width": 40}),
            )
        assert caught.value.status == Status.INCOMPLETE


def test_limits_are_those_of_the_whole_image():
    data = as_tensor(encode(Image.new("L", (1600, 1600)), "JPEG"))
    sizes = rules(SQUARE)
    assert inspect_image(data, ImageLimits(max_pixels=1600 * 1600), sizes).scale == 8
    with pytest.raises(RowFailure) as caught:
        inspect_image(data, ImageLimits(max_pixels=1600 * 1600 - 1), sizes)
    assert caught.value.status == Status.TOO_LARGE
    with pytest.raises(RowFailure) as caught:
        inspect_image(as_tensor(jpeg_with_size(9400, 9400, progressive=True, subsampling=0)),
                      LIMITS, sizes)  # fmt: skip
    assert caught.value.status == Status.TOO_LARGE
