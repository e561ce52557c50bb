"""Windows computed together give what transformers' vision towers compute window by window."""

import pytest
import torch

from caption_checkpoints import write_qwen_vl
from caption_oracle import inputs_of, parts
from oracles import draw_pictures
from spark_vision.models import qwen_vl
from spark_vision.models.checkpoint_files import open_folder
from spark_vision.models.families import load_model

# Two of 10×10 patches, which are windows of 4×4, 4×2 and 2×2; then other sizes.
SIZES = [(140, 140), (140, 140), (70, 250), (40, 40)]
# Four windows of 4×4 patches.
GRIDS_OF_WHOLE_WINDOWS = torch.tensor([[1, 8, 8]])


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl", "qwen3_vl"])
def towers(request, tmp_path_factory):
    folder = write_qwen_vl(tmp_path_factory.mktemp(request.param), request.param)
    ours = load_model(open_folder(folder), "float32", torch.device("cpu"))._model.model.visual
    inputs = [
        inputs_of(folder, draw_pictures(1, *size, seed=seed)[0], "x")
        for seed, size in enumerate(SIZES)
    ]
    pixels = torch.cat([each["pixel_values"] for each in inputs])
    grids = torch.cat([each["image_grid_thw"] for each in inputs])
    return ours, parts(folder)[1].model.visual, pixels, grids


def run(tower, pixels, grids):
    with torch.inference_mode():
        return tower(pixels, grid_thw=grids).pooler_output


def test_a_tower_computes_what_it_computes_window_by_window(towers):
    ours, theirs, pixels, grids = towers
    assert theirs.config._attn_implementation == "sdpa"
    true = run(theirs, pixels, grids)
    assert torch.equal(run(ours, pixels, grids), true)
    first = grids[:1].prod().item()
    assert torch.equal(run(ours, pixels[:first], grids[:1]), run(theirs, pixels[:first], grids[:1]))


def test_neighbours_of_equal_length_take_one_call(towers, monkeypatch):
    ours, theirs, pixels, grids = towers
    attend, calls = torch.nn.functional.scaled_dot_product_attention, []

    def counted(query, *others, **options):
        calls.append(len(query))
        return attend(query, *others, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(qwen_vl, "scaled_dot_product_attention", counted)
    run(theirs, pixels, grids)
    window_count = len(calls)
    calls.clear()
    run(ours, pixels, grids)
    assert sum(calls) == window_count
    assert len(calls) < window_count
    # Alone, an image of whole windows takes one call per layer.
    calls.clear()
    whole = GRIDS_OF_WHOLE_WINDOWS
    run(ours, pixels[: whole.prod()], whole)
    assert calls == [4 if layer in windowed(ours) else 1 for layer in range(len(ours.blocks))]


def windowed(tower):
    """Return the layers that attend within windows, not within whole images."""
    layers = range(len(tower.blocks))
    return set(layers) - set(getattr(tower, "fullatt_block_indexes", layers))


@pytest.mark.parametrize("mutation", ["one window", "other lengths"])
def test_other_windows_give_other_vectors(towers, monkeypatch, mutation):
    ours, theirs, pixels, grids = towers
    find = qwen_vl._runs

    def mutated(boundaries):
        if mutation == "one window":
            return [(int(boundaries[-1]), 1)]
        return find(boundaries)[::-1]

    monkeypatch.setattr(qwen_vl, "_runs", mutated)
    difference = (run(ours, pixels, grids) - run(theirs, pixels, grids)).abs().max()
    assert difference > 1e-3
