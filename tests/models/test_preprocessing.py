"""Our pixels against those of Hugging Face's own processor, fed the same RGB."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor

from oracles import draw_pictures
from published_processors import PUBLISHED
from spark_vision.errors import InvalidOptionError, RowFailure, Status, UnsupportedCheckpointError
from spark_vision.models.checkpoint_files import open_folder
from spark_vision.models.pixel_batches import scale_pixels, stack_pixels
from spark_vision.models.preprocessing import load_preprocessor
from spark_vision.models.protocols import ImagePreprocessor, PixelScaling

CPU = torch.device("cpu")
ONE_STEP = 1 / 255 + 1e-6
SHAPES = {
    "landscape": (375, 500),
    "portrait": (500, 375),
    "wide": (37, 2000),
    "tall": (2000, 37),
    "one_pixel": (1, 1),
    "smaller_than_the_crop": (100, 60),
    "odd": (333, 251),
    "native": (224, 224),
    "one_off": (225, 223),
}
RESAMPLES = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def write_processor(
    folder: Path, settings: dict[str, Any], model_type: str = "vit", *, nested: bool = False
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if nested:
        text = json.dumps({"image_processor": settings, "processor_class": "CLIPProcessor"})
        (folder / "processor_config.json").write_text(text)
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def load(folder: Path, **overrides: Any) -> ImagePreprocessor:
    return load_preprocessor(open_folder(folder), overrides)


def theirs(folder: Path, image: torch.Tensor, **overrides: Any) -> torch.Tensor:
    processor = AutoImageProcessor.from_pretrained(folder, backend="torchvision", **overrides)
    output = processor(images=image, input_data_format="channels_first", return_tensors="pt")
    return output["pixel_values"][0]


def ours(preprocessor: ImagePreprocessor, image: torch.Tensor) -> torch.Tensor:
    pixels = preprocessor(image)
    assert pixels.dtype in (torch.uint8, torch.float32)
    return scale_pixels(pixels[None], preprocessor.scaling, CPU, torch.float32)[0]


def worst_difference(
    preprocessor: ImagePreprocessor, image: torch.Tensor, expected: torch.Tensor
) -> float:
    """The largest difference, as a share of the pixels' range before they were normalised."""
    scaled = ours(preprocessor, image)
    assert scaled.shape == expected.shape
    std = torch.tensor(preprocessor.scaling.std)[:, None, None]
    share = 1.0 if preprocessor.scaling.rescale_factor != 1 else 1 / 255
    return ((scaled - expected).abs() * std).max().item() * share


def interleaved(image: torch.Tensor) -> torch.Tensor:
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


@pytest.fixture(scope="module", params=PUBLISHED)
def published_folder(request, tmp_path_factory):
    model_type, settings = PUBLISHED[request.param]
    folder = tmp_path_factory.mktemp("published")
    return write_processor(folder, settings, model_type)


@pytest.mark.parametrize("shape", SHAPES)
def test_published_settings_give_the_pixels_of_their_own_processor(published_folder, shape):
    (image,) = draw_pictures(1, *SHAPES[shape])
    expected = theirs(published_folder, image)
    preprocessor = load(published_folder)
    assert worst_difference(preprocessor, image, expected) <= ONE_STEP
    assert worst_difference(preprocessor, interleaved(image), expected) <= ONE_STEP


def test_published_settings_take_the_fast_path(published_folder):
    assert type(load(published_folder)).__name__ == "_ResizeAndCrop"


@pytest.mark.parametrize("resample", RESAMPLES.values(), ids=RESAMPLES)
def test_dinov3_resizes_floats_as_its_own_processor_does(tmp_path, resample):
    model_type, settings = PUBLISHED["facebook/dinov3-vitb16-pretrain-lvd1689m"]
    folder = write_processor(tmp_path / "dinov3", {**settings, "resample": resample}, model_type)
    for height, width in ((375, 500), (100, 60), (1, 1), (224, 224)):
        (image,) = draw_pictures(1, height, width)
        expected = theirs(folder, image)
        assert worst_difference(load(folder), interleaved(image), expected) <= 1e-6
        if (height, width, resample) == (375, 500, RESAMPLES["bicubic"]):
            of_bytes = load(folder)
            of_bytes._as_floats = False
            assert worst_difference(of_bytes, image, expected) > ONE_STEP
    neither = {"do_rescale": False, "do_normalize": False}
    assert load(folder, **neither)(image).dtype == torch.uint8
    assert (
        worst_difference(load(folder, **neither), image, theirs(folder, image, **neither))
        <= ONE_STEP
    )


@pytest.mark.parametrize(
    "mutate",
    {
        "bgr": lambda image: image.flip(0),
        "upside_down": lambda image: image.flip(1),
        "darker": lambda image: (image * 0.9).to(torch.uint8),
    }.items(),
    ids=lambda item: item[0],
)
def test_the_pixel_check_sees_a_changed_image(published_folder, mutate):
    (image,) = draw_pictures(1, 375, 500)
    expected = theirs(published_folder, image)
    assert worst_difference(load(published_folder), mutate[1](image), expected) > ONE_STEP


def test_the_pixel_check_sees_a_wrong_filter(published_folder):
    (image,) = draw_pictures(1, 375, 500)
    expected = theirs(published_folder, image)
    own = json.loads((published_folder / "preprocessor_config.json").read_text())["resample"]
    for resample in {0, 2, 3} - {own}:
        preprocessor = load(published_folder, resample=resample)
        assert worst_difference(preprocessor, image, expected) > ONE_STEP


def test_the_pixel_check_sees_a_missing_crop(tmp_path):
    _, settings = PUBLISHED["facebook/dinov2-base"]
    folder = write_processor(tmp_path / "dinov2", settings, "dinov2")
    (image,) = draw_pictures(1, 375, 500)
    squeezed = load(folder, do_center_crop=False, size={"height": 224, "width": 224})
    assert worst_difference(squeezed, image, theirs(folder, image)) > ONE_STEP


@pytest.mark.parametrize("resample", RESAMPLES.values(), ids=RESAMPLES)
@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 40, "width": 70}},
        {"size": {"shortest_edge": 60}},
        {"size": {"shortest_edge": 60, "longest_edge": 90}},
        {"size": {"shortest_edge": 60}, "do_center_crop": True, "crop_size": [50, 60]},
        {"size": {"shortest_edge": 30}, "do_center_crop": True, "crop_size": [51, 34]},
        {"do_resize": False, "do_center_crop": True, "crop_size": 48},
        {"do_resize": False},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_every_common_setting_gives_the_pixels_of_their_own_processor(tmp_path, settings, resample):
    base = {"image_processor_type": "BitImageProcessor", "do_center_crop": False}
    folder = write_processor(tmp_path / "processor", {**base, "resample": resample, **settings})
    preprocessor = load(folder)
    assert type(preprocessor).__name__ == "_ResizeAndCrop"
    for height, width in ((75, 100), (101, 33), (60, 60), (31, 90), (7, 5)):
        (image,) = draw_pictures(1, height, width)
        expected = theirs(folder, image)
        assert worst_difference(preprocessor, interleaved(image), expected) <= ONE_STEP


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.1, 0.9], "image_std": [1, 2, 3]},
    ],
)
def test_rescale_and_normalise_follow_the_processor(tmp_path, settings):
    folder = write_processor(tmp_path / "processor", {"size": 32, **settings})
    (image,) = draw_pictures(1)
    expected = theirs(folder, image).to(torch.float32)
    assert torch.allclose(ours(load(folder), image), expected, rtol=1e-5, atol=1e-5)


def test_settings_inside_processor_config_are_read(tmp_path):
    settings = {**PUBLISHED["openai/clip-vit-base-patch32"][1], "size": 40, "crop_size": 32}
    settings["image_processor_type"] = "CLIPImageProcessor"
    folder = write_processor(tmp_path / "nested", settings, "clip", nested=True)
    (image,) = draw_pictures(1)
    preprocessor = load(folder)
    assert preprocessor(image).shape == (3, 32, 32)
    assert worst_difference(preprocessor, image, theirs(folder, image)) <= ONE_STEP


def test_overrides_take_the_place_of_the_processor_settings(tmp_path):
    folder = write_processor(
        tmp_path / "clip", PUBLISHED["openai/clip-vit-base-patch32"][1], "clip"
    )
    overrides = {"size": {"shortest_edge": 90}, "crop_size": {"height": 80, "width": 70}}
    (image,) = draw_pictures(1, 120, 150)
    preprocessor = load(folder, **overrides)
    expected = theirs(folder, image, **overrides)
    assert preprocessor(image).shape == (3, 80, 70)
    assert worst_difference(preprocessor, image, expected) <= ONE_STEP


@pytest.mark.parametrize(
    "settings",
    [
        {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 48},
            "crop_pct": 0.875,
        },
        {"image_processor_type": "ViTImageProcessor", "size": {"max_height": 40, "max_width": 50}},
    ],
    ids=["a_class_with_its_own_steps", "a_size_of_another_kind"],
)
def test_any_other_processor_is_run_itself(tmp_path, settings):
    folder = write_processor(tmp_path / "other", settings)
    preprocessor = load(folder)
    assert type(preprocessor).__name__ == "_ProcessorWrapper"
    (image,) = draw_pictures(1)
    assert worst_difference(preprocessor, image, theirs(folder, image)) <= ONE_STEP


@pytest.mark.parametrize(
    "settings",
    [
        {"image_processor_type": "Siglip2ImageProcessor"},
        {"image_processor_type": "ViTImageProcessor", "resample": 4, "size": 32},
        {"image_processor_type": "NoSuchImageProcessor"},
    ],
    ids=["patches", "box_filter", "unknown_class"],
)
def test_a_processor_that_returns_no_image_is_refused(tmp_path, settings):
    folder = write_processor(tmp_path / "bad", settings)
    with pytest.raises(UnsupportedCheckpointError, match=str(folder)):
        load(folder)


def test_an_unknown_override_is_refused_with_the_known_ones(tmp_path):
    folder = write_processor(tmp_path / "vit", {"size": 32})
    with pytest.raises(InvalidOptionError, match=r"'image_size'.*allowed: .*do_resize.*size"):
        load(folder, image_size=64)


def test_an_override_of_a_wrong_value_is_refused(tmp_path):
    folder = write_processor(tmp_path / "vit", {"size": 32})
    with pytest.raises(InvalidOptionError, match="image_processor_kwargs got"):
        load(folder, size={"diagonal": 64})


def test_an_image_that_would_be_resized_beyond_memory_fails_its_row(tmp_path):
    folder = write_processor(
        tmp_path / "clip", PUBLISHED["openai/clip-vit-base-patch32"][1], "clip"
    )
    preprocessor = load(folder)
    with pytest.raises(RowFailure, match="1×60000") as caught:
        preprocessor(torch.zeros(3, 60_000, 1, dtype=torch.uint8))
    assert caught.value.status == Status.BAD_DIMENSIONS


def test_an_image_that_a_processor_itself_would_resize_beyond_memory_fails_its_row(tmp_path):
    settings = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}
    preprocessor = load(write_processor(tmp_path / "convnext", {**settings, "crop_pct": 0.875}))
    assert type(preprocessor).__name__ == "_ProcessorWrapper"
    with pytest.raises(RowFailure, match="1×60000") as caught:
        preprocessor(torch.zeros(3, 60_000, 1, dtype=torch.uint8))
    assert caught.value.status == Status.BAD_DIMENSIONS


def test_an_image_whose_rows_alone_would_be_resized_beyond_memory_fails_its_row(tmp_path):
    folder = write_processor(tmp_path / "vit", {"size": 224})
    # Torch resizes the rows first: to 1,000,000 rows of 224 pixels.
    with pytest.raises(RowFailure, match="1×1000000") as caught:
        load(folder)(torch.zeros(3, 1_000_000, 1, dtype=torch.uint8))
    assert caught.value.status == Status.BAD_DIMENSIONS
    for height, width in ((1, 1_000_000), (60_000, 1), (100_000, 400)):
        image = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, height, width)
        assert load(folder)(image).shape == (3, 224, 224)


def test_an_image_that_would_be_resized_to_nothing_fails_its_row(tmp_path):
    size = {"shortest_edge": 20, "longest_edge": 30}
    folder = write_processor(
        tmp_path / "bit",
        {"image_processor_type": "BitImageProcessor", "size": size, "do_center_crop": False},
    )
    with pytest.raises(RowFailure, match="1000×1 pixels would be resized to 30×0"):
        load(folder)(torch.zeros(3, 1, 1000, dtype=torch.uint8))


def test_a_crop_does_not_keep_the_whole_image_alive(tmp_path):
    folder = write_processor(
        tmp_path / "clip", PUBLISHED["openai/clip-vit-base-patch32"][1], "clip"
    )
    pixels = load(folder)(torch.zeros(3, 37, 2000, dtype=torch.uint8))
    assert pixels.untyped_storage().nbytes() == 3 * 224 * 224


def test_stacked_pixels_are_the_images_in_order_and_interleaved():
    images = list(draw_pictures(5))
    mixed = [interleaved(image) if index % 2 else image for index, image in enumerate(images)]
    stacked = stack_pixels(mixed)
    assert torch.equal(stacked, torch.stack(images))
    assert stacked.is_contiguous(memory_format=torch.channels_last)


def test_scaling_is_the_same_for_planar_and_interleaved_pixels():
    scaling = PixelScaling(1 / 255, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    pixels = draw_pictures(3)
    planar = scale_pixels(pixels, scaling, CPU, torch.float32)
    channels_last = pixels.contiguous(memory_format=torch.channels_last)
    assert torch.equal(planar, scale_pixels(channels_last, scaling, CPU, torch.float32))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (scaling.mean, scaling.std))
    assert torch.allclose(planar, (pixels / 255 - mean) / std, atol=1e-6)
