"""Image vectors against the family's own transformers model and processor, used directly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

import checkpoints
from oracles import centred_cosine, cosine, draw_pictures, same
from spark_vision.models.checkpoints import resolve_checkpoint
from spark_vision.models.families import load_model
from spark_vision.models.pixel_batches import stack_pixels
from spark_vision.models.preprocessing import load_preprocessor
from spark_vision.operators import ClipImageEmbedding, ImageViTEmbedding

WRITERS = {
    "vit": checkpoints.write_vit,
    "vit_classifier": lambda folder: checkpoints.write_vit(folder, classifier=True),
    "dinov2": checkpoints.write_dinov2,
    "dinov2_with_registers": checkpoints.write_dinov2_with_registers,
    "dinov3_vit": checkpoints.write_dinov3,
    "dinov3_vit_gated": lambda folder: checkpoints.write_dinov3(folder, use_gated_mlp=True),
    "clip": checkpoints.write_clip,
    "chinese_clip": checkpoints.write_chinese_clip,
    "siglip": checkpoints.write_siglip,
    "siglip2_fixed_resolution": lambda folder: checkpoints.write_siglip(folder, second=True),
    "siglip2": checkpoints.write_siglip2,
}
POOLINGS = [
    ("vit", "cls"),
    ("vit", "mean"),
    ("vit", "pooler"),
    ("vit", "tokens"),
    ("vit_classifier", "cls"),
    ("vit_classifier", "mean"),
    ("dinov2", "cls"),
    ("dinov2", "mean"),
    ("dinov2", "tokens"),
    ("dinov2_with_registers", "cls"),
    ("dinov2_with_registers", "mean"),
    ("dinov2_with_registers", "tokens"),
    ("dinov3_vit", "cls"),
    ("dinov3_vit", "mean"),
    ("dinov3_vit", "tokens"),
    ("dinov3_vit_gated", "cls"),
    ("clip", "projection"),
    ("chinese_clip", "projection"),
    ("siglip", "projection"),
    ("siglip2_fixed_resolution", "projection"),
    ("siglip2", "projection"),
]
POOLING_OF = dict(reversed(POOLINGS))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: write(root / name) for name, write in WRITERS.items()}


def operator_for(folder: Path) -> ImageViTEmbedding | ClipImageEmbedding:
    kind = ImageViTEmbedding if folder.name.startswith(("vit", "dino")) else ClipImageEmbedding
    return kind(model_name=str(folder))


def ours(
    folder: Path,
    images: torch.Tensor,
    pooling: str,
    *,
    dtype: str = "float32",
    batch_size: int = 32,
    **overrides: Any,
) -> torch.Tensor:
    checkpoint = resolve_checkpoint(operator_for(folder))
    model = load_model(checkpoint, dtype, torch.device("cpu"))
    preprocessor = load_preprocessor(checkpoint, overrides)
    batches = torch.split(stack_pixels([preprocessor(image) for image in images]), batch_size)
    return torch.cat(
        [model.embed_images(batch, preprocessor.scaling, pooling) for batch in batches]
    )


def theirs(folder: Path, images: torch.Tensor, pooling: str, **overrides: Any) -> torch.Tensor:
    processor = AutoImageProcessor.from_pretrained(folder, backend="torchvision", **overrides)
    inputs = processor(images=list(images), return_tensors="pt")
    pixels = inputs["pixel_values"]
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        if model.config.model_type == "siglip2":
            return model.get_image_features(**inputs).pooler_output
        if pooling == "projection":
            size = model.config.vision_config.image_size
            resized = {"interpolate_pos_encoding": True} if pixels.shape[-1] != size else {}
            return model.get_image_features(pixel_values=pixels, **resized).pooler_output
        native = folder.name.startswith("dino") or pixels.shape[-1] == model.config.image_size
        output = model(pixels, **({} if native else {"interpolate_pos_encoding": True}))
    patch_count = (pixels.shape[-2] // model.config.patch_size) * (
        pixels.shape[-1] // model.config.patch_size
    )
    return {
        "cls": output.last_hidden_state[:, 0],
        "mean": output.last_hidden_state[:, -patch_count:].mean(dim=1),
        "pooler": output.pooler_output,
        "tokens": output.last_hidden_state,
    }[pooling]


@pytest.mark.parametrize(("family", "pooling"), POOLINGS)
def test_vectors_are_those_of_the_family_itself(folders, family, pooling):
    images = draw_pictures(16)
    vectors = ours(folders[family], images, pooling)
    assert vectors.dtype == torch.float32
    assert vectors.is_contiguous()
    assert same(vectors, theirs(folders[family], images, pooling))


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize(
    "mutate",
    [
        lambda images: images.flip(1),
        lambda images: (images * 0.9).to(torch.uint8),
        lambda images: images.flip(2),
    ],
    ids=["bgr", "darker", "upside_down"],
)
def test_the_vector_check_sees_a_changed_image(folders, family, mutate):
    images = draw_pictures(16)
    pooling = POOLING_OF[family]
    vectors = ours(folders[family], mutate(images), pooling)
    assert not same(vectors, theirs(folders[family], images, pooling))


@pytest.mark.parametrize("family", WRITERS)
def test_the_vector_check_sees_a_wrong_filter(folders, family):
    images = draw_pictures(16)
    pooling = POOLING_OF[family]
    bilinear = family.startswith(("vit", "dinov3", "siglip2"))
    vectors = ours(folders[family], images, pooling, resample=3 if bilinear else 2)
    assert not same(vectors, theirs(folders[family], images, pooling))


@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers", "clip"])
def test_the_vector_check_sees_a_missing_crop(folders, family):
    images = draw_pictures(16)
    pooling = POOLING_OF[family]
    size = 32 if family == "clip" else 28
    squeezed = {"do_center_crop": False, "size": {"height": size, "width": size}}
    vectors = ours(folders[family], images, pooling, **squeezed)
    assert not same(vectors, theirs(folders[family], images, pooling))


@pytest.mark.parametrize("family", WRITERS)
def test_images_of_another_size_than_trained_on_are_computed(folders, family):
    images = draw_pictures(8)
    pooling = POOLING_OF[family]
    overrides = {"do_center_crop": False, "size": {"height": 56, "width": 56}}
    if not family.startswith("dino"):
        overrides["size"] = {"height": 48, "width": 48}
    if family == "siglip2":
        overrides = {"max_num_patches": 40}
    vectors = ours(folders[family], images, pooling, **overrides)
    assert same(vectors, theirs(folders[family], images, pooling, **overrides))


@pytest.mark.parametrize("family", ["dinov2", "dinov3_vit"])
@pytest.mark.parametrize("size", [(28, 42), (56, 32), (31, 45)])
def test_images_that_are_not_square_or_no_whole_patches_are_computed(folders, family, size):
    overrides = {"do_center_crop": False, "size": dict(zip(("height", "width"), size, strict=True))}
    images = draw_pictures(8)
    vectors = ours(folders[family], images, "mean", **overrides)
    assert same(vectors, theirs(folders[family], images, "mean", **overrides))


@pytest.mark.parametrize("family", ["dinov2_with_registers", "dinov3_vit"])
def test_the_mean_leaves_cls_and_registers_out(folders, family):
    folder = folders[family]
    images = draw_pictures(8)
    tokens = ours(folder, images, "tokens")
    assert tokens.shape == (8, 1 + 4 + 16, 48)
    assert torch.allclose(ours(folder, images, "mean"), tokens[:, 5:].mean(dim=1), atol=1e-5)
    assert not same(ours(folder, images, "mean"), tokens[:, 1:].mean(dim=1))


@pytest.mark.parametrize("family", WRITERS)
def test_a_vector_does_not_depend_on_its_batch(folders, family):
    images = draw_pictures(12)
    pooling = POOLING_OF[family]
    together = torch.nn.functional.normalize(ours(folders[family], images, pooling), dim=-1)
    for batch_size in (1, 5):
        apart = ours(folders[family], images.flip(0), pooling, batch_size=batch_size).flip(0)
        apart = torch.nn.functional.normalize(apart, dim=-1)
        assert (together - apart).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", WRITERS)
def test_half_precision_agrees_loosely(folders, family, dtype):
    images = draw_pictures(12)
    pooling = POOLING_OF[family]
    full = ours(folders[family], images, pooling)
    half = ours(folders[family], images, pooling, dtype=dtype)
    assert half.dtype == torch.float32
    assert cosine(half, full) > 0.995
    assert centred_cosine(half, full) > 0.98
    assert not torch.equal(half, full)


@pytest.mark.parametrize("family", ["vit", "dinov2", "clip"])
def test_pickled_weights_give_the_vectors_of_safetensors(folders, family, tmp_path, caplog):
    writer = getattr(checkpoints, f"write_{family}")
    folder = writer(tmp_path / family, safetensors=False)
    images, pooling = draw_pictures(4), POOLING_OF[family]
    vectors = ours(folder, images, pooling)
    assert torch.allclose(vectors, ours(folders[family], images, pooling), atol=1e-5)
    assert [str(folder) in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("pooling", ["projection", "median"])
def test_a_pooling_that_the_family_lacks_is_refused(folders, pooling):
    with pytest.raises(ValueError, match=pooling):
        ours(folders["dinov2"], draw_pictures(1), pooling)
