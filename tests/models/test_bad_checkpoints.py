"""A corrupt or hand-edited checkpoint is reported with the reason, at no cost."""

import json
import subprocess
import sys

import pytest
import torch

import checkpoints
from spark_vision.errors import UnsupportedCheckpointError
from spark_vision.models import config_files
from spark_vision.models.checkpoint_files import check_headers, open_folder
from spark_vision.models.families import load_model
from spark_vision.models.preprocessing import load_preprocessor

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    return checkpoints.write_vit(tmp_path / "vit")


def change(path, **settings):
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def nested(opening, closing, depth):
    return opening * depth + closing * depth


@pytest.mark.parametrize("depth", [33, 1000, 100_000])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_file_that_is_nested_too_deep_is_named(folder, name, depth):
    text = f'{{"model_type": "vit", "x": {nested("[", "]", depth)}}}'
    (folder / name).write_text(text)
    with pytest.raises(UnsupportedCheckpointError, match=f"{name} is nested deeper than 32 levels"):
        load_preprocessor(open_folder(folder), None)


def test_an_index_of_weights_that_is_nested_too_deep_is_named(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(nested("[", "]", 100_000))
    with pytest.raises(UnsupportedCheckpointError, match=r"index\.json is nested deeper"):
        check_headers(open_folder(folder))


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ({"hidden_size": 10**9}, "hidden_size=1000000000"),
        ({"hidden_size": 10**400}, "hidden_size=1000000000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
        ({"num_labels": 10**9}, "num_labels=1000000000"),
        ({"image_size": [10**9, 4]}, "image_size=1000000000"),
        ({"vision_config": {"patch_size": -1}}, "patch_size=-1"),
        ({"hidden_size": "48"}, "hidden_size='48'"),
        ({"hidden_size": 48.5}, "hidden_size=48.5"),
        ({"hidden_size": True}, "hidden_size=True"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps=nan"),
        ({"initializer_range": float("inf")}, "initializer_range=inf"),
        ({"vocab_size": 2**40}, "vocab_size=1099511627776"),
    ],
)
def test_a_size_that_no_model_has_is_named(folder, setting, shown):
    change(folder / "config.json", **setting)
    with pytest.raises(UnsupportedCheckpointError, match=rf"config\.json has {shown}.*allowed: "):
        open_folder(folder)


def test_an_infinite_number_that_only_overflows_is_named(folder):
    text = (folder / "config.json").read_text().replace("{", '{"layer_norm_eps": 1e999, ', 1)
    (folder / "config.json").write_text(text.replace('"layer_norm_eps": 1e-12,', ""))
    with pytest.raises(UnsupportedCheckpointError, match="layer_norm_eps=inf; allowed: a finite"):
        open_folder(folder)


def test_a_processor_with_a_size_that_none_has_is_named(folder):
    size = {"height": 10**9, "width": 32}
    change(folder / "preprocessor_config.json", size=size)
    with pytest.raises(UnsupportedCheckpointError, match=r"preprocessor_config\.json has height="):
        load_preprocessor(open_folder(folder), None)


def test_a_huge_file_is_refused_before_it_is_read(folder):
    with (folder / "config.json").open("r+b") as file:
        file.truncate(2**30)
    # A tenth of the file: reading it would end in a MemoryError.
    program = f"""
import resource, pathlib
from spark_vision.models.checkpoint_files import open_folder
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))
open_folder(pathlib.Path({str(folder)!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert "UnsupportedCheckpointError" in done.stderr
    assert "config.json has 1,073,741,824 bytes, more than the maximum of 16,777,216" in done.stderr


def test_a_huge_vocabulary_is_refused_before_a_library_reads_it(folder):
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(UnsupportedCheckpointError, match=r"tokenizer\.json has 1,073,741,824"):
        open_folder(folder)


def test_a_json_bomb_is_limited_by_its_bytes(folder, monkeypatch):
    monkeypatch.setattr(config_files, "MAX_BYTES", 1000)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "x": ["y"] * 1000}))
    with pytest.raises(UnsupportedCheckpointError, match="is it another file under its name"):
        open_folder(folder)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before_torch_1_6"])
def test_a_pickle_under_the_name_of_safetensors_is_named(folder, legacy):
    torch.save(
        {"x": torch.zeros(2)},
        folder / "model.safetensors",
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(UnsupportedCheckpointError, match=r"model\.safetensors: it is a pickle"):
        load_model(open_folder(folder), "float32", CPU)


def test_a_header_of_640_bytes_is_not_taken_for_a_pickle(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    for count in range(700):
        save_file({"x": torch.zeros(1)}, path, metadata={"y": "z" * count})
        if path.read_bytes().startswith(b"\x80\x02"):
            break
    assert path.read_bytes().startswith(b"\x80\x02")
    check_headers(open_folder(folder))
    assert set(load_file(path)) == {"x"}


def test_the_sizes_of_every_family_are_allowed(tmp_path):
    writers = [checkpoints.write_vit, checkpoints.write_dinov2, checkpoints.write_clip]
    writers += [checkpoints.write_chinese_clip, checkpoints.write_siglip]
    for writer in writers:
        assert open_folder(writer(tmp_path / writer.__name__)).config
