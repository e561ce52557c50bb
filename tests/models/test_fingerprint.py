"""A fingerprint follows the contents of a checkpoint and nothing else."""

import json
import os
import shutil

import pytest

import checkpoints
from spark_vision.models.checkpoint_files import MIB, Checkpoint, fingerprint, open_folder


@pytest.fixture
def folder(tmp_path):
    return checkpoints.write_clip(tmp_path / "clip")


def test_a_copy_has_the_same_fingerprint(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "another" / "name")
    for path in copy.iterdir():
        os.utime(path, (1, 1))
    assert fingerprint(open_folder(copy)) == fingerprint(open_folder(folder))


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer.json", "config.json"])
def test_a_changed_setting_changes_it(folder, name):
    before = fingerprint(open_folder(folder))
    settings = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**settings, "resample": 1}))
    assert fingerprint(open_folder(folder)) != before


def test_other_weights_change_it(folder, tmp_path):
    other = checkpoints.write_clip(tmp_path / "other", seed=1)
    assert fingerprint(open_folder(other)) != fingerprint(open_folder(folder))


def test_files_that_no_model_reads_do_not_count(folder):
    before = fingerprint(open_folder(folder))
    (folder / "README.md").write_text("a text")
    assert fingerprint(open_folder(folder)) == before


@pytest.mark.parametrize("at", ["header", "start", "end", "throughout"])
def test_a_large_file_of_weights_counts_by_samples(tmp_path, at):
    size = 200 * MIB
    path = tmp_path / "model.safetensors"
    header = b'{"weight": {}}'
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(size)
    checkpoint = Checkpoint(tmp_path, "vit", {})
    before = fingerprint(checkpoint)
    places = {"header": [10], "start": [MIB - 1], "end": [size - 1]}
    with path.open("r+b") as file:
        for place in places.get(at, range(MIB, size, 2**14)):
            file.seek(place)
            file.write(b"1")
    assert fingerprint(checkpoint) != before
