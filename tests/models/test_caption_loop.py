"""Rows that enter and leave a loop get the texts that transformers writes for each alone."""

import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from caption_checkpoints import write_qwen_vl
from caption_oracle import generated_tokens, inputs_of, parts
from oracles import draw_pictures
from spark_vision.models import caption_loop
from spark_vision.models.caption_inputs import load_caption_preprocessor
from spark_vision.models.caption_loop import CaptionLoop
from spark_vision.models.checkpoint_files import open_folder
from spark_vision.models.families import load_model
from spark_vision.models.protocols import GenerationSettings
from spark_vision.models.row_tensors import RowTensors
from spark_vision.operators import QwenVLImageUnderstanding

SIZES = [(75, 100), (300, 200), (40, 40), (500, 120), (29, 200), (28, 28), (90, 90), (60, 150)]
PROMPTS = ["What is it? 图里有几个人?", "x", "Describe the green circle, in 3 boxes! " * 3, "y"]
NEW_TOKENS = 20
ROWS = [
    (draw_pictures(1, *size, seed=seed)[0], PROMPTS[seed % len(PROMPTS)])
    for seed, size in enumerate(SIZES)
]


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl", "qwen3_vl"])
def any_folder(request, tmp_path_factory):
    return write_qwen_vl(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_qwen_vl(tmp_path_factory.mktemp("qwen"))


def load(folder):
    operator = QwenVLImageUnderstanding(model_name=str(folder), do_sample=True)
    checkpoint = open_folder(folder)
    model = load_model(checkpoint, "float32", torch.device("cpu"))
    return load_caption_preprocessor(checkpoint, operator), model


def start(preprocessor, model, **limits):
    settings = GenerationSettings(NEW_TOKENS)
    scaling = preprocessor.scaling
    return CaptionLoop(
        model._model, settings, lambda patches: model._pixel_values(patches, scaling), **limits
    )


def prepare(preprocessor, rows=ROWS):
    return preprocessor.collate([preprocessor.prepare(*row) for row in rows])


def run(loop):
    ended = []
    while len(loop):
        ended += loop.step()
    by_number = {row.number: row for row in ended}
    assert len(by_number) == len(ended)
    return by_number


def true_tokens(folder):
    return {number: generated_tokens(folder, *row, NEW_TOKENS) for number, row in enumerate(ROWS)}


def tokens_of(ended):
    return {number: list(row.token_ids) for number, row in ended.items()}


def count_rows(model):
    """Record the number of rows of each forward pass."""
    head, row_counts = model._model.lm_head.forward, []

    def counted(states):
        row_counts.append(len(states))
        return head(states)

    model._model.lm_head.forward = counted
    return row_counts


def test_rows_that_enter_between_steps_get_the_text_they_get_alone(any_folder):
    preprocessor, model = load(any_folder)
    loop = start(preprocessor, model)
    ended = []
    for number, row in enumerate(ROWS):
        assert loop.add(prepare(preprocessor, [row])) == [number]
        for _ in range(3):
            ended += loop.step()
    early = {row.number: row for row in ended}
    ended = early | run(loop)
    assert early
    assert tokens_of(ended) == true_tokens(any_folder)
    stops = parts(any_folder)[1].generation_config.eos_token_id
    for row in ended.values():
        is_stopped = row.token_ids[-1] in stops
        assert row.truncated == (not is_stopped)
        assert row.length == len(row.token_ids) - is_stopped
    assert {row.truncated for row in ended.values()} == {True, False}


@pytest.mark.parametrize("count", [1, 3])
def test_a_loop_is_as_full_as_its_rows_allow(folder, count):
    preprocessor, model = load(folder)
    row_counts = count_rows(model)
    loop = start(preprocessor, model, max_row_count=count)
    loop.add(prepare(preprocessor))
    true = true_tokens(folder)
    assert tokens_of(run(loop)) == true
    assert max(row_counts) == count
    # Each token is computed once, and no step lacks a row while one waits.
    assert sum(row_counts) == sum(map(len, true.values()))


def test_the_cache_keeps_within_its_size(folder):
    preprocessor, model = load(folder)
    batch = prepare(preprocessor)
    token_bytes = caption_loop._token_bytes(model._model)
    longest = batch.token_ids.shape[1] + NEW_TOKENS
    budget = 3 * longest * token_bytes
    loop = start(preprocessor, model, max_cache_bytes=budget)
    loop.add(batch)
    ended, sizes, row_counts = [], [], []
    while len(loop):
        ended += loop.step()
        if loop._tensors is not None:
            row_counts.append(len(loop._rows))
            layers = loop._tensors.cache.layers
            sizes.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers))
            # No column is padding alone.
            assert loop._tensors.mask[:, 0].any()
    assert tokens_of({row.number: row for row in ended}) == true_tokens(folder)
    assert budget / 2 < max(sizes) <= budget
    # More short rows fit than long ones.
    assert 3 <= max(row_counts) < len(ROWS)


def test_a_row_over_every_limit_is_alone(folder, monkeypatch):
    monkeypatch.setattr(caption_loop, "MAX_PROMPT_TOKENS", 1)
    preprocessor, model = load(folder)
    row_counts = count_rows(model)
    loop = start(preprocessor, model, max_cache_bytes=1)
    loop.add(prepare(preprocessor))
    assert tokens_of(run(loop)) == true_tokens(folder)
    assert set(row_counts) == {1}


class DrawAlone(LogitsProcessor):
    """Draws each token of one row by its seed, for transformers' greedy `generate`."""

    def __init__(self, seed):
        self.random = torch.Generator().manual_seed(seed)
        self.warpers = LogitsProcessorList(
            [TemperatureLogitsWarper(1.3), TopKLogitsWarper(60), TopPLogitsWarper(0.95)]
        )

    def __call__(self, input_ids, scores):
        cumulative = self.warpers(input_ids, scores)[0].softmax(-1, torch.float64).cumsum(-1)
        number = torch.rand(1, generator=self.random, dtype=torch.float64) * cumulative[-1]
        token = int((cumulative <= number).sum())
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)


def test_sampled_texts_are_those_of_each_row_alone(any_folder):
    preprocessor, model = load(any_folder)
    batch = prepare(preprocessor)
    settings = GenerationSettings(NEW_TOKENS, do_sample=True, temperature=1.3, top_k=60, top_p=0.95)
    generated = model.generate(batch, preprocessor.scaling, settings)
    _, theirs = parts(any_folder)
    for number, (row, seed) in enumerate(zip(ROWS, batch.seeds.tolist(), strict=True)):
        inputs = inputs_of(any_folder, *row)
        output = theirs.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            logits_processor=[DrawAlone(seed)],
        )
        true = output[0, inputs["input_ids"].shape[1] :].tolist()
        assert generated.token_ids[number, : len(true)].tolist() == true


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("failing", ["prompts", "newest tokens"])
def test_rows_start_again_when_memory_runs_out(folder, failing, limit):
    preprocessor, model = load(folder)
    forward, failed_counts = model._model.forward, []

    def bounded(**inputs):
        row_count, token_count = inputs["input_ids"].shape
        if row_count > limit and (token_count > 1) == (failing == "prompts"):
            failed_counts.append(row_count)
            raise torch.OutOfMemoryError("no memory")
        return forward(**inputs)

    model._model.forward = bounded
    loop = start(preprocessor, model)
    numbers = loop.add(prepare(preprocessor))
    assert tokens_of(run(loop)) == true_tokens(folder)
    assert failed_counts == [8, 4, 2][: len(failed_counts)]
    assert len(failed_counts) == (3 if limit == 1 else 2)
    # An empty loop forgets the limit.
    loop.add(prepare(preprocessor))
    first = {number - len(numbers): row for number, row in run(loop).items()}
    assert tokens_of(first) == true_tokens(folder)
    assert failed_counts.count(8) == 2


@pytest.mark.parametrize("method", ["join", "keep"])
def test_rows_start_again_when_memory_runs_out_between_passes(folder, method, monkeypatch):
    # Rows enter in several passes.
    monkeypatch.setattr(caption_loop, "MAX_PROMPT_TOKENS", 200)
    preprocessor, model = load(folder)
    true = true_tokens(folder)
    # The first row ends as it enters, with others.
    end = true[0][0]
    model._model.generation_config.eos_token_id.append(end)
    true = {row: ids[: [*ids, end].index(end) + 1] for row, ids in true.items()}
    change, has_failed = getattr(RowTensors, method), False

    def fragile(self, *arguments):
        nonlocal has_failed
        change(self, *arguments)
        if not has_failed:
            has_failed = True
            raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(RowTensors, method, fragile)
    loop = start(preprocessor, model)
    loop.add(prepare(preprocessor))
    assert tokens_of(run(loop)) == true
    assert has_failed


def test_an_error_of_a_prompt_ends_its_row_alone(folder):
    preprocessor, model = load(folder)
    batch = prepare(preprocessor)
    bad_grid = batch.grids[3].tolist()
    assert batch.grids.tolist().count(bad_grid) == 1
    forward = model._model.model.visual.forward

    def fragile(pixel_values, grid_thw, **options):
        if bad_grid in grid_thw.tolist():
            raise RuntimeError("bad kernel")
        return forward(pixel_values, grid_thw=grid_thw, **options)

    model._model.model.visual.forward = fragile
    loop = start(preprocessor, model)
    loop.add(batch)
    ended = run(loop)
    assert str(ended.pop(3).error) == "bad kernel"
    true = true_tokens(folder)
    del true[3]
    assert tokens_of(ended) == true
    assert all(row.error is None for row in ended.values())
    with pytest.raises(RuntimeError, match="bad kernel"):
        model.generate(batch, preprocessor.scaling, GenerationSettings(NEW_TOKENS))


def test_an_error_of_all_rows_ends_them_and_leaves_the_loop_usable(folder):
    preprocessor, model = load(folder)
    loop = start(preprocessor, model)
    loop.add(prepare(preprocessor, ROWS[:3]))
    assert loop.step() == []
    forward = model._model.forward

    def broken(**inputs):
        raise RuntimeError("bad step")

    model._model.forward = broken
    assert [str(row.error) for row in loop.step()] == ["bad step"] * 3
    assert len(loop) == 0
    model._model.forward = forward
    (number,) = loop.add(prepare(preprocessor, ROWS[:1]))
    assert tokens_of(run(loop)) == {number: true_tokens(folder)[0]}


def test_a_row_of_nan_ends_at_once_and_alone(folder):
    preprocessor, model = load(folder)
    head = model._model.lm_head.forward

    def poisoned(states):
        logits = head(states)
        if len(logits) == len(ROWS):
            logits[1] = torch.nan
        return logits

    model._model.lm_head.forward = poisoned
    loop = start(preprocessor, model)
    loop.add(prepare(preprocessor))
    (first,) = loop.step()
    assert (first.number, first.finite, len(first.token_ids)) == (1, False, 1)
    ended = run(loop)
    true = true_tokens(folder)
    del true[1]
    assert tokens_of(ended) == true
    assert all(row.finite for row in ended.values())
