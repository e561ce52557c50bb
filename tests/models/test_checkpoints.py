"""Where a checkpoint is found, and the error if it is not."""

import json
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import constants

import checkpoints
from spark_vision.errors import CheckpointNotFoundError, UnsupportedCheckpointError
from spark_vision.models.checkpoint_files import Checkpoint, weight_names
from spark_vision.models.checkpoints import find_checkpoint, resolve_checkpoint
from spark_vision.operators import ClipImageEmbedding, ClipTextEmbedding, ImageViTEmbedding


def vit(**options) -> ImageViTEmbedding:
    return ImageViTEmbedding(**{"model_path": None, **options})


def put_into_cache(cache, name, folder, *, revision="main"):
    """Lay a checkpoint out as huggingface_hub caches it."""
    repository = cache / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    return shutil.copytree(folder, repository / "snapshots" / commit)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def test_a_folder_under_model_path_comes_first(tmp_path, cache, monkeypatch):
    inside = checkpoints.write_vit(tmp_path / "models" / "google" / "vit")
    checkpoints.write_vit(tmp_path / "google" / "vit", seed=1)
    put_into_cache(cache, "google/vit", inside)
    monkeypatch.chdir(tmp_path)
    found = find_checkpoint(vit(model_path=str(tmp_path / "models"), model_name="google/vit"))
    assert found == resolve_checkpoint(vit(model_path="models", model_name=str(inside)))
    assert found.folder == inside
    assert found.model_type == "vit"
    assert found.config["hidden_size"] == 48


def test_a_folder_comes_before_the_cache(tmp_path, cache, monkeypatch):
    folder = checkpoints.write_vit(tmp_path / "google" / "vit")
    put_into_cache(cache, "google/vit", folder)
    monkeypatch.chdir(tmp_path)
    found = find_checkpoint(vit(model_path=str(tmp_path / "models"), model_name="google/vit"))
    assert found.folder.resolve() == folder


def test_a_checkpoint_in_the_cache_is_found_by_its_revision(tmp_path, cache):
    folder = checkpoints.write_vit(tmp_path / "vit")
    cached = put_into_cache(cache, "google/vit", folder, revision="v2")
    assert find_checkpoint(vit(model_name="google/vit", revision="v2")).folder == cached
    assert find_checkpoint(vit(model_name="google/vit")) is None


def test_openai_names_are_found_by_their_names_on_the_hub(tmp_path, cache):
    folder = checkpoints.write_clip(tmp_path / "clip")
    cached = put_into_cache(cache, "openai/clip-vit-large-patch14-336", folder)
    operator = ClipImageEmbedding(model_path=None, model_name="ViT-L/14@336px")
    assert find_checkpoint(operator).folder == cached


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json"])
def test_a_snapshot_that_is_not_complete_does_not_count(tmp_path, cache, name):
    cached = put_into_cache(cache, "google/vit", checkpoints.write_vit(tmp_path / "vit"))
    (cached / name).unlink()
    assert find_checkpoint(vit(model_name="google/vit")) is None


def test_a_checkpoint_that_is_nowhere_is_none_without_the_network(tmp_path, cache):
    assert find_checkpoint(vit(model_path=str(tmp_path), model_name="google/vit")) is None
    assert find_checkpoint(vit(model_name=str(tmp_path / "no" / "such" / "folder"))) is None


def test_a_missing_checkpoint_is_reported_with_every_place_searched(tmp_path, cache):
    operator = vit(model_path=str(tmp_path), model_name="google/vit", revision="v9")
    with pytest.raises(CheckpointNotFoundError) as caught:
        resolve_checkpoint(operator)
    message = str(caught.value)
    for part in ("'v9'", str(tmp_path / "google/vit"), str(cache), "HF_HUB_OFFLINE", "model_path"):
        assert part in message


def test_resolving_a_path_that_is_not_there_does_not_ask_the_hub(tmp_path, cache):
    with pytest.raises(CheckpointNotFoundError, match="not a hub name; correct model_path"):
        resolve_checkpoint(vit(model_name=str(tmp_path / "gone")))


@pytest.mark.parametrize(
    ("missing", "operator", "expected"),
    [
        ("config.json", ClipImageEmbedding, "config.json"),
        ("model.safetensors", ClipImageEmbedding, "weights"),
        ("preprocessor_config.json", ClipImageEmbedding, "image processor"),
        ("tokenizer.json", ClipTextEmbedding, "tokenizer"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_by_name(tmp_path, missing, operator, expected):
    folder = checkpoints.write_clip(tmp_path / "clip")
    (folder / missing).unlink()
    with pytest.raises(CheckpointNotFoundError, match=f"{folder} .* lacks .*{expected}"):
        find_checkpoint(operator(model_name=str(folder)))


def test_a_folder_needs_only_what_the_operator_reads(tmp_path):
    folder = checkpoints.write_clip(tmp_path / "clip")
    (folder / "preprocessor_config.json").unlink()
    assert find_checkpoint(ClipTextEmbedding(model_name=str(folder))) is not None


def test_an_empty_folder_is_refused_with_all_that_it_lacks(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json, weights .*, an image proc"):
        find_checkpoint(vit(model_name=str(tmp_path)))


@pytest.mark.parametrize("text", ["not json", "[]", '{"hidden_size": 4}'])
def test_a_config_without_a_model_type_is_refused(tmp_path, text):
    folder = checkpoints.write_vit(tmp_path / "vit")
    (folder / "config.json").write_text(text)
    with pytest.raises(UnsupportedCheckpointError, match=str(folder)):
        find_checkpoint(vit(model_name=str(folder)))


def test_a_missing_shard_is_named(tmp_path):
    folder = checkpoints.write_vit(tmp_path / "vit")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {f"w{n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointNotFoundError, match=r"lacks model-00002-of-00002\.safetensors"):
        find_checkpoint(vit(model_name=str(folder)))


@pytest.mark.parametrize("text", ["{}", "no json", '{"weight_map": {"w": "../../secret"}}'])
def test_a_bad_index_of_weights_is_refused(tmp_path, text):
    folder = checkpoints.write_vit(tmp_path / "vit")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UnsupportedCheckpointError, match=r"index\.json"):
        find_checkpoint(vit(model_name=str(folder)))


def test_a_checkpoint_can_be_a_key(tmp_path):
    folder = checkpoints.write_clip(tmp_path / "clip")
    first, second = (find_checkpoint(ClipImageEmbedding(model_name=str(folder))) for _ in range(2))
    assert {first: "model"}[second] == "model"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before_torch_1_6"])
def test_names_of_pickled_weights_are_read_without_unpickling(tmp_path, legacy):
    import torch

    folder = checkpoints.write_vit(tmp_path / "vit")
    expected = weight_names(Checkpoint(folder, "vit", {}))
    weights = {name: torch.zeros(2) for name in expected}
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    names = weight_names(Checkpoint(folder, "vit", {}))
    assert expected <= names
    assert "classifier.weight" not in names


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x10\0\0\0\0\0\0\0{"])
def test_a_damaged_header_is_refused(tmp_path, content):
    folder = checkpoints.write_vit(tmp_path / "vit")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UnsupportedCheckpointError, match=r"model\.safetensors"):
        weight_names(Checkpoint(folder, "vit", {}))


def test_looking_for_a_checkpoint_imports_neither_torch_nor_transformers(tmp_path):
    folder = checkpoints.write_vit(tmp_path / "vit")
    program = f"""
import sys
from spark_vision.models.checkpoints import find_checkpoint, fingerprint
from spark_vision.models.families import check_operator
from spark_vision.operators import ImageViTEmbedding
operator = ImageViTEmbedding(model_name={str(folder)!r}, pooling="pooler")
checkpoint = find_checkpoint(operator)
print(check_operator(checkpoint, operator), len(fingerprint(checkpoint)))
print(sorted({{"torch", "torchvision", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split("\n")[:2] == ["48 64", "[]"]
