"""The option `fast_decode`: vectors of real photographs hardly change, and everything else not."""

from dataclasses import replace

import pyarrow as pa
import pytest
import torch

import checkpoints as writers
from encoded_images import encode, photo
from oracles import centred_cosine
from real_photographs import read_photographs
from spark_vision import (
    ClipImageEmbedding,
    ClipImageTags,
    ClipVectorTags,
    ImageViTEmbedding,
    QwenVLImageUnderstanding,
)
from spark_vision.executor.columns import compute_columns
from spark_vision.executor.tagging import tag_vectors
from spark_vision.executor.task import Task
from spark_vision.images import decoding

TASK = Task(gpu_addresses=(), cpus=2)
SIDE = 64
LEAST_COSINE = 0.999


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    writers.write_vit(folder / "vit", image_size=SIDE)
    writers.write_vit(folder / "large", image_size=3 * SIDE)
    writers.write_clip(folder / "clip", image_size=SIDE)
    return folder


@pytest.fixture(scope="module")
def files():
    return list(read_photographs().values())


def vectors_of(files, *operators):
    (columns,) = compute_columns([pa.array(files, pa.binary())], operators, TASK)
    return [torch.tensor(column.to_pylist()) for column in columns]


@pytest.fixture(scope="module")
def full(folder, files):
    return vectors_of(files, ImageViTEmbedding(model_name=str(folder / "vit")))[0]


@pytest.fixture
def fast(folder):
    return ImageViTEmbedding(model_name=str(folder / "vit"), fast_decode=True)


def test_vectors_of_photographs_hardly_change(full, fast, files):
    (vectors,) = vectors_of(files, fast)
    assert centred_cosine(vectors, full) >= LEAST_COSINE
    assert (vectors != full).any(dim=1).all()


def test_the_check_sees_too_few_pixels(full, fast, files, monkeypatch):
    monkeypatch.setattr(decoding, "_ENOUGH", 1)
    (vectors,) = vectors_of(files, fast)
    assert centred_cosine(vectors, full) < LEAST_COSINE


def test_vectors_of_other_images_keep_every_bit(folder, fast):
    files = [
        encode(photo(190, 190), "JPEG"),
        encode(photo(641, 480), "JPEG"),
        encode(photo(640, 480), "PNG"),
    ]
    (expected,) = vectors_of(files, ImageViTEmbedding(model_name=str(folder / "vit")))
    assert torch.equal(vectors_of(files, fast)[0], expected)


def test_a_shared_image_has_enough_pixels_for_the_largest_model(folder, fast, files):
    large = ImageViTEmbedding(model_name=str(folder / "large"), fast_decode=True)
    together = vectors_of(files, fast, large)
    torch.testing.assert_close(together[1], vectors_of(files, large)[0], atol=1e-5, rtol=0)
    assert (together[0] - vectors_of(files, fast)[0]).abs().max() > 1e-4


def test_tags_are_those_of_the_scaled_image(folder, files):
    model = {"model_name": str(folder / "clip")}
    tags = {**model, "tags": ["red", "green", "blue"]}

    def scores(arrays):
        return [
            {each["tag"]: each["score"] for each in row}
            for array in arrays
            for row in array.to_pylist()
        ]

    images = [pa.array(files, pa.binary())]
    clip, tagger = ClipImageEmbedding(**model, fast_decode=True), ClipImageTags(**tags)
    (vectors,) = next(compute_columns(images, [clip], TASK))
    of_vectors = scores(tag_vectors([vectors], ClipVectorTags(**tags), TASK))
    expected = [pytest.approx(row, abs=1e-5) for row in of_vectors]
    (fast,) = next(compute_columns(images, [replace(tagger, fast_decode=True)], TASK))
    assert scores([fast]) == expected
    (full,) = next(compute_columns(images, [tagger], TASK))
    assert scores([full]) != expected


def test_operators_share_an_image_only_if_both_scale_it():
    slow, fast = (ClipImageEmbedding(fast_decode=each) for each in (False, True))
    assert slow.reading_options == QwenVLImageUnderstanding().reading_options
    assert slow.reading_options != fast.reading_options
    assert fast.reading_options == ImageViTEmbedding(fast_decode=True).reading_options
