"""SigLIP 2 with variable resolution (NaFlex) against its own processor, which pads with patches."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

import checkpoints
from oracles import draw_pictures, same
from published_processors import PUBLISHED_NAFLEX
from spark_vision.errors import InvalidOptionError, RowFailure, Status, UnsupportedCheckpointError
from spark_vision.models.checkpoint_files import open_folder
from spark_vision.models.families import check_operator, load_model
from spark_vision.models.pixel_batches import scale_pixels, stack_pixels
from spark_vision.models.preprocessing import load_preprocessor
from spark_vision.operators import ClipImageEmbedding

CPU = torch.device("cpu")
ONE_STEP = 2 / 255 + 1e-6  # as a standard deviation of 0.5 doubles it
MAX_PATCHES = 40
SIZES = [(75, 100), (100, 75), (64, 64), (20, 300), (300, 20), (1, 1), (9, 7), (1, 60_000)]
MUTATIONS = {
    "bgr": lambda image: image.flip(0),
    "upside_down": lambda image: image.flip(1),
    "darker": lambda image: (image * 0.9).to(torch.uint8),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "siglip2"
    return checkpoints.write_siglip2(folder, max_num_patches=MAX_PATCHES)


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    return [draw_pictures(1, *size, seed=seed)[0] for seed, size in enumerate(SIZES)]


def ours(folder: Path, images: list[torch.Tensor], **overrides: Any) -> torch.Tensor:
    model = load_model(open_folder(folder), "float32", CPU)
    preprocessor = load_preprocessor(open_folder(folder), overrides)
    batches = [stack_pixels([preprocessor(image)]) for image in images]
    return torch.cat(
        [model.embed_images(batch, preprocessor.scaling, "projection") for batch in batches]
    )


def process(folder: Path, images: list[torch.Tensor], **overrides: Any) -> Any:
    processor = AutoImageProcessor.from_pretrained(folder, backend="torchvision", **overrides)
    return processor(images=images, input_data_format="channels_first", return_tensors="pt")


def theirs(folder: Path, images: list[torch.Tensor], **overrides: Any) -> torch.Tensor:
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model.get_image_features(**process(folder, images, **overrides)).pooler_output


def differ(folder: Path, image: torch.Tensor, expected: Any, **overrides: Any) -> float:
    """Return the greatest difference to the patches that the processor returned for the image."""
    preprocessor = load_preprocessor(open_folder(folder), overrides)
    pixels = preprocessor(image)
    assert pixels.dtype == torch.uint8
    rows, columns = expected["spatial_shapes"][0].tolist()
    size = math.isqrt(expected["pixel_values"].shape[2] // 3)
    assert pixels.shape == (3, rows * size, columns * size)
    assert expected["pixel_attention_mask"].sum() == rows * columns
    scaled = scale_pixels(pixels[None], preprocessor.scaling, CPU, torch.float32)[0]
    worst = 0.0
    for row in range(rows):
        for column in range(columns):
            square = scaled[:, row * size :, column * size :][:, :size, :size]
            patch = expected["pixel_values"][0, row * columns + column]
            worst = max(worst, (square.permute(1, 2, 0).flatten() - patch).abs().max().item())
    return worst


@pytest.mark.parametrize("published", [False, True])
def test_pixels_are_those_of_its_own_processor(folder, images, tmp_path, published):
    if published:
        folder = tmp_path
        (folder / "config.json").write_text('{"model_type": "siglip2"}')
        (folder / "preprocessor_config.json").write_text(json.dumps(PUBLISHED_NAFLEX))
    for image in images:
        expected = process(folder, [image])
        assert differ(folder, image, expected) <= ONE_STEP
        interleaved = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        assert differ(folder, interleaved, expected) <= ONE_STEP


@pytest.mark.parametrize("mutate", MUTATIONS.values(), ids=MUTATIONS)
def test_the_pixel_check_sees_a_changed_image(folder, images, mutate):
    expected = process(folder, images[:1])
    assert differ(folder, mutate(images[0]), expected) > ONE_STEP


def test_the_pixel_check_sees_a_wrong_filter(folder, images):
    assert differ(folder, images[0], process(folder, images[:1]), resample=0) > ONE_STEP


def test_images_without_padding_have_the_vectors_of_padded_ones(folder, images):
    patch_counts = process(folder, images)["pixel_attention_mask"].sum(dim=1)
    assert (patch_counts < MAX_PATCHES).sum() > 3
    vectors, expected = ours(folder, images), theirs(folder, images)
    assert same(vectors, expected)
    difference = torch.nn.functional.normalize(vectors) - torch.nn.functional.normalize(expected)
    assert difference.abs().max() <= 1e-5


def test_the_vector_check_sees_rows_and_columns_swapped(folder, images):
    # The same patches in the same order, at the positions of an image that lies on its side.
    model = load_model(open_folder(folder), "float32", CPU)
    own = model._image_inputs

    def swap(pixels: torch.Tensor) -> dict[str, Any]:
        inputs = own(pixels)
        return {**inputs, "spatial_shapes": inputs["spatial_shapes"].flip(1)}

    preprocessor = load_preprocessor(open_folder(folder), {})
    batch = [stack_pixels([preprocessor(image)]) for image in images[:2]]
    expected = theirs(folder, images[:2])
    for change, is_same in ((own, True), (swap, False)):
        model._image_inputs = change
        vectors = [model.embed_images(each, preprocessor.scaling, "projection") for each in batch]
        assert same(torch.cat(vectors), expected) == is_same


@pytest.mark.parametrize("count", [1, 7, 40, 100])
def test_max_num_patches_may_be_overridden(folder, images, count):
    check_operator(
        open_folder(folder), ClipImageEmbedding(image_processor_kwargs={"max_num_patches": count})
    )
    preprocessor = load_preprocessor(open_folder(folder), {"max_num_patches": count})
    for image in images:
        assert preprocessor(image)[0].numel() <= count * 8**2
    vectors = ours(folder, images, max_num_patches=count)
    assert same(vectors, theirs(folder, images, max_num_patches=count))


def test_an_image_that_takes_too_much_memory_fails_its_row(folder):
    preprocessor = load_preprocessor(open_folder(folder), {})
    # Torch resizes the rows first: to 5,000,000 rows of 8 pixels.
    image = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, 5_000_000, 1)
    with pytest.raises(RowFailure, match="1×5000000 pixels") as caught:
        preprocessor(image)
    assert caught.value.status == Status.BAD_DIMENSIONS


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_num_patches": 0}, "max_num_patches is 0; allowed: an integer, at least 1"),
        ({"max_num_patches": "40"}, "max_num_patches"),
        ({"patch_size": 16}, "patches of 8 pixels"),
        ({"do_resize": False}, "resized by max_num_patches alone"),
        ({"size": {"height": 64, "width": 64}}, "resized by max_num_patches alone"),
        ({"resample": 4}, "a filter of torch"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_applied_are_refused(folder, settings, reason):
    with pytest.raises(InvalidOptionError, match=f"image_processor_kwargs got .*{reason}"):
        load_preprocessor(open_folder(folder), settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}},
        {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 16},
    ],
    ids=["fixed_resolution", "other_patches"],
)
def test_a_processor_of_other_patches_is_refused(tmp_path, settings):
    folder = checkpoints.write_siglip2(tmp_path / "siglip2")
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedCheckpointError, match=f"{folder}, .*patches of 8 pixels"):
        load_preprocessor(open_folder(folder), {})
