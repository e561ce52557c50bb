"""A placement is that of the model that computed a row, in Spark's type; a failed row has none."""

import os

import pyarrow as pa
import pytest

from encoded_images import encode, photo
from spark_vision import ClipTextEmbedding, ImageViTEmbedding
from spark_vision.executor.model_access import load_once
from spark_vision.executor.placement import PLACEMENT_TYPE, place_rows
from spark_vision.executor.task import Task
from spark_vision.models.checkpoint_files import open_folder

TASK = Task(gpu_addresses=(), cpus=2)
FILE = encode(photo(60, 50), "JPEG")


def placed(batch, operator):
    (array,) = place_rows([batch], operator, TASK)
    assert array.type == PLACEMENT_TYPE
    assert len(array) == len(batch)
    return array.to_pylist()


@pytest.fixture
def vit(checkpoints):
    return ImageViTEmbedding(model_name=str(checkpoints / "dinov2"), on_error="raise")


def test_a_failed_row_has_no_placement_whatever_the_operator_does_with_it(vit):
    first, bad, last = placed(pa.array([FILE, b"text", FILE]), vit)
    assert bad is None
    assert first == last
    assert (first["server_pid"], first["device"]) == (os.getpid(), "cpu")
    assert first["executor"] is None
    assert len(first["fingerprint"]) == 64


def test_a_placement_needs_no_good_row(vit):
    assert placed(pa.array([b"text", None]), vit) == [None, None]


def test_texts_have_a_placement_too(checkpoints):
    clip = ClipTextEmbedding(model_name=str(checkpoints / "clip"))
    word, null = placed(pa.array(["red", None]), clip)
    assert null is None
    assert word["server_pid"] == os.getpid()


def test_what_is_loaded_once_is_loaded_again_when_its_files_change(checkpoints, tmp_path):
    for file in (checkpoints / "dinov2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    checkpoint = open_folder(tmp_path)
    loads = []

    def load(checkpoint, setting):
        loads.append(setting)
        return object()

    first = load_once(load, checkpoint, "a")
    assert load_once(load, checkpoint, "a") is first
    assert load_once(load, checkpoint, "b") is not first
    os.utime(tmp_path / "config.json", ns=(1, 1))
    assert load_once(load, checkpoint, "a") is not first
    assert loads == ["a", "b", "a"]
