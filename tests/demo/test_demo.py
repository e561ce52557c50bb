"""The demonstration's images and checkpoint are what they claim, and always the same."""

import subprocess
import sys

import pytest
import torch
from PIL import Image, UnidentifiedImageError
from transformers import AutoImageProcessor, AutoModel

from spark_vision.demo.checkpoint import write_checkpoint
from spark_vision.demo.images import write_images


def test_images_can_be_read_and_differ(tmp_path):
    files = write_images(tmp_path, 12)
    good = [Image.open(file).convert("RGB") for file in files[:12]]
    assert len({image.tobytes() for image in good}) == 12
    assert len({image.size for image in good}) == 4
    assert {file.suffix for file in files} == {".jpg", ".png", ".webp"}


def test_the_bad_files_are_bad_each_in_its_way(tmp_path):
    empty, text, truncated = write_images(tmp_path, 1)[-3:]
    assert empty.read_bytes() == b""
    with pytest.raises(UnidentifiedImageError):
        Image.open(text)
    with pytest.raises(OSError, match="truncated"):
        Image.open(truncated).load()


def test_a_seed_decides_every_byte(tmp_path):
    def contents(name, seed):
        return [file.read_bytes() for file in write_images(tmp_path / name, 6, seed)]

    assert contents("a", 1) == contents("b", 1)
    assert contents("c", 2)[:6] != contents("a", 1)[:6]


def test_the_checkpoint_is_one_of_transformers(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    write_checkpoint(tmp_path / "a")
    assert torch.equal(torch.rand(1), expected), "the caller's random numbers are left alone"
    write_checkpoint(tmp_path / "b")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert len(weights[0]) < 8_000_000

    processor = AutoImageProcessor.from_pretrained(tmp_path / "a")
    pixels = processor(Image.new("RGB", (200, 150), "red"), return_tensors="pt")["pixel_values"]
    model = AutoModel.from_pretrained(tmp_path / "a").eval()
    with torch.no_grad():
        assert model(pixels).last_hidden_state.shape == (1, 65, 128)


def test_the_module_writes_both_once(tmp_path):
    command = [sys.executable, "-m", "spark_vision.demo", str(tmp_path), "--count", "2"]
    subprocess.run(command, check=True, timeout=120)
    written = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert tmp_path / "images" / "shapes-0001.png" in written
    assert tmp_path / "checkpoint" / "model.safetensors" in written
    subprocess.run(command, check=True, timeout=120)
    assert {file: file.stat().st_mtime_ns for file in written} == written
