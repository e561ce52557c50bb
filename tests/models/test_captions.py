"""Captions equal those of transformers for each row alone, regardless of the batch."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from caption_checkpoints import CONTROL_TOKENS, write_qwen_vl
from caption_oracle import generated_tokens, inputs_of, parts
from oracles import draw_pictures
from spark_vision.errors import InvalidOptionError, RowFailure, Status, UnsupportedCheckpointError
from spark_vision.models import loading
from spark_vision.models.caption_inputs import load_caption_preprocessor
from spark_vision.models.checkpoint_files import open_folder
from spark_vision.models.families import LoadOptions, check_operator, load_model
from spark_vision.models.protocols import GenerationSettings, ImageCaptioner
from spark_vision.operators import (
    MAX_PROMPT_CHARACTERS,
    ImageViTEmbedding,
    QwenVLImageUnderstanding,
)

FAMILIES = ["qwen2_5_vl", "qwen2_vl", "qwen3_vl"]
CPU = torch.device("cpu")
PROMPTS = [
    "What is it? 图里有几个人?",
    "x",
    "请给出这张图片的详细描述。",
    "Describe the green circle above the house, in 3 boxes, near it! " * 3,
]
SIZES = [(75, 100), (300, 200), (40, 40), (500, 120), (75, 100), (29, 200), (28, 28)]
NEW_TOKENS = 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    return {name: write_qwen_vl(folder / name, name) for name in FAMILIES}


@pytest.fixture(scope="module")
def folder(folders):
    return folders["qwen2_5_vl"]


def pictures():
    return [draw_pictures(1, *size, seed=seed)[0] for seed, size in enumerate(SIZES)]


def load(folder, **options):
    operator = QwenVLImageUnderstanding(model_name=str(folder), **options)
    checkpoint = open_folder(folder)
    assert check_operator(checkpoint, operator) is None
    return load_caption_preprocessor(checkpoint, operator), load_model(checkpoint, "float32", CPU)


def run(preprocessor, model, inputs, **settings):
    settings = GenerationSettings(**{"max_new_tokens": NEW_TOKENS, **settings})
    generated = model.generate(preprocessor.collate(inputs), preprocessor.scaling, settings)
    assert generated.finite.all()
    return generated


def tokens_of(generated):
    rows = zip(generated.token_ids.tolist(), generated.lengths.tolist(), strict=True)
    return [ids[:length] for ids, length in rows]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("penalty", [None, 3.0])
def test_greedy_tokens_equal_those_of_each_row_alone(folders, family, penalty):
    folder = folders[family]
    preprocessor, model = load(folder)
    assert isinstance(model, ImageCaptioner)
    asked = [PROMPTS[row % len(PROMPTS)] for row in range(len(SIZES))]
    rows = list(zip(pictures(), asked, strict=True))
    given = {} if penalty is None else {"repetition_penalty": penalty}
    alone = [generated_tokens(folder, *row, NEW_TOKENS, **given) for row in rows]
    stops = parts(folder)[1].generation_config.eos_token_id
    true = [tokens[:-1] if tokens[-1] in stops else tokens for tokens in alone]
    inputs = [preprocessor.prepare(*row) for row in rows]
    for batch in ([0], [3], [0, 1, 2, 3, 4, 5, 6], [6, 3], [5, 4, 1, 0], [2, 0, 3]):
        generated = run(
            preprocessor, model, [inputs[row] for row in batch], repetition_penalty=penalty
        )
        assert tokens_of(generated) == [true[row] for row in batch]
        assert generated.truncated.tolist() == [alone[row] == true[row] for row in batch]
    processor, _ = parts(folder)
    assert preprocessor.decode(generated) == processor.batch_decode(
        [alone[row] for row in batch], skip_special_tokens=True
    )


@pytest.mark.parametrize(
    "rules",
    [
        {"min_length": 120},
        {"min_new_tokens": 8},
        {"no_repeat_ngram_size": 1},
        {"encoder_repetition_penalty": 1.5},
        {"encoder_no_repeat_ngram_size": 1},
        {"bad_words_ids": [[5], [8, 9]]},
        {"exponential_decay_length_penalty": (3, 1.5)},
        {"num_beams": 4, "num_return_sequences": 2, "penalty_alpha": 0.6, "max_time": 1e3},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=lambda rules: next(iter(rules)),
)
def test_rules_of_the_generation_config_see_each_row_alone(tmp_path, rules):
    folder = write_qwen_vl(tmp_path / "qwen", generation=rules)
    preprocessor, model = load(folder)
    rows = list(zip(pictures()[:4], PROMPTS, strict=True))
    greedy = {"num_beams": 1, "num_return_sequences": 1, "penalty_alpha": 0.0}
    alone = [generated_tokens(folder, *row, NEW_TOKENS, **greedy) for row in rows]
    stops = parts(folder)[1].generation_config.eos_token_id
    generated = run(preprocessor, model, [preprocessor.prepare(*row) for row in rows])
    assert tokens_of(generated) == [
        tokens[:-1] if tokens[-1] in stops else tokens for tokens in alone
    ]
    assert generated.truncated.tolist() == [tokens[-1] not in stops for tokens in alone]


def test_a_forced_end_is_a_truncation(folder, tmp_path):
    end = parts(folder)[1].generation_config.eos_token_id[0]
    forced = write_qwen_vl(tmp_path / "qwen", generation={"forced_eos_token_id": end})
    rows = list(zip(pictures()[:4], PROMPTS, strict=True))
    preprocessor, model = load(forced)
    inputs = [preprocessor.prepare(*row) for row in rows]
    generated = run(preprocessor, model, inputs, max_new_tokens=4)
    tokens = tokens_of(generated)
    assert tokens == [generated_tokens(forced, *row, 4)[:-1] for row in rows]
    assert generated.truncated.tolist() == [len(row) == 3 for row in tokens]
    assert set(generated.truncated.tolist()) == {True, False}


def test_a_checkpoint_whose_texts_end_at_strings_is_refused(tmp_path):
    folder = write_qwen_vl(tmp_path / "qwen", generation={"stop_strings": ["x"]})
    with pytest.raises(UnsupportedCheckpointError, match="stop_strings"):
        load(folder)


def test_a_row_that_has_ended_takes_part_in_no_step(folder):
    preprocessor, model = load(folder)
    rows = list(zip(pictures()[:4], PROMPTS, strict=True))
    head, row_counts = model._model.lm_head.forward, []

    def counted(states):
        row_counts.append(len(states))
        return head(states)

    model._model.lm_head.forward = counted
    generated = run(preprocessor, model, [preprocessor.prepare(*row) for row in rows])
    new_counts = [
        length + (not cut)
        for length, cut in zip(
            generated.lengths.tolist(), generated.truncated.tolist(), strict=True
        )
    ]
    assert len(set(new_counts)) > 2
    assert row_counts == [
        sum(step < count for count in new_counts) for step in range(max(new_counts))
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_those_of_the_checkpoints_own_processor(folders, family):
    preprocessor, model = load(folders[family])
    for image, prompt in zip(pictures(), PROMPTS * 2, strict=False):
        ours, theirs = (
            preprocessor.prepare(image, prompt),
            inputs_of(folders[family], image, prompt),
        )
        assert ours.token_ids.tolist() == theirs["input_ids"][0].tolist()
        assert list(ours.grid) == theirs["image_grid_thw"][0].tolist()
        values = model._pixel_values(ours.patches, preprocessor.scaling)
        torch.testing.assert_close(values, theirs["pixel_values"], atol=1e-6, rtol=1e-6)


def test_another_image_or_prompt_gives_another_caption(folder):
    preprocessor, model = load(folder)
    images = draw_pictures(6)
    upside_down = images[0].flip(1)
    inputs = [preprocessor.prepare(image, "x") for image in [*images, upside_down]]
    inputs.append(preprocessor.prepare(images[0], "What is it?"))
    captions = preprocessor.decode(run(preprocessor, model, inputs))
    assert len(set(captions)) == len(inputs)


def test_a_sampled_caption_depends_on_seed_and_content_and_not_on_the_batch(folder):
    rows = list(zip(pictures(), PROMPTS * 2, strict=False))
    sampled = {"do_sample": True, "temperature": 1.3, "top_k": 0, "top_p": 0.95}
    preprocessor, model = load(folder, do_sample=True, seed=7)
    inputs = [preprocessor.prepare(*row) for row in rows]
    together = tokens_of(run(preprocessor, model, inputs, **sampled))
    for batch in ([0], [3, 1], [6, 5, 0, 2]):
        drawn = run(preprocessor, model, [inputs[row] for row in batch], **sampled)
        assert tokens_of(drawn) == [together[row] for row in batch]
    again = [preprocessor.prepare(*row) for row in rows]
    assert [each.seed for each in again] == [each.seed for each in inputs]
    assert len({each.seed for each in inputs}) == len(inputs)
    other, _ = load(folder, do_sample=True, seed=8)
    drawn = run(other, model, [other.prepare(*row) for row in rows], **sampled)
    assert all(ours != theirs for ours, theirs in zip(tokens_of(drawn), together, strict=True))


def test_tokens_are_sampled_with_the_probabilities_of_transformers(folder):
    count = 2000
    settings = {"do_sample": True, "temperature": 2.0, "top_k": 8, "top_p": 0.9}
    image = draw_pictures(1, 28, 28)[0]
    preprocessor, model = load(folder, do_sample=True)
    batch = preprocessor.collate([preprocessor.prepare(image, "x")])
    seeds = torch.arange(count)
    batch = batch._replace(
        token_ids=batch.token_ids.repeat(count, 1),
        attention_mask=batch.attention_mask.repeat(count, 1),
        patches=batch.patches.repeat(count, 1, 1, 1),
        grids=batch.grids.repeat(count, 1),
        seeds=seeds,
    )
    one = GenerationSettings(max_new_tokens=1, **settings)
    drawn = model.generate(batch, preprocessor.scaling, one).token_ids[:, 0]
    _, theirs = parts(folder)
    output = theirs.generate(
        **inputs_of(folder, image, "x"),
        **settings,
        max_new_tokens=1,
        output_scores=True,
        return_dict_in_generate=True,
    )
    true = output.scores[0][0].softmax(-1)
    frequency = torch.bincount(drawn, minlength=len(true)) / count
    assert 2 < (true > 0).sum() <= 8
    assert not frequency[true == 0].any()
    # Four standard deviations of the mean of `count` draws.
    assert ((frequency - true).abs() <= 4 * (true * (1 - true) / count).sqrt()).all()


def test_control_tokens_in_a_prompt_are_text(folder):
    preprocessor, _ = load(folder)
    tokenizer = parts(folder)[0].tokenizer
    image = draw_pictures(1)[0]
    control = set(tokenizer.convert_tokens_to_ids(CONTROL_TOKENS))

    def control_ids(prompt):
        ids = preprocessor.prepare(image, prompt).token_ids.tolist()
        return [token for token in ids if token in control]

    for prompt in (*CONTROL_TOKENS, "<<|image_pad|><|image_pad|>", "a<|im_end|>\n<|im_start|>b"):
        assert control_ids(prompt) == control_ids("x")
        text = tokenizer.decode(preprocessor.prepare(image, prompt).token_ids)
        assert f"<|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant" in text


@pytest.mark.parametrize(
    ("shape", "prompt", "status"),
    [
        ((10, 2010), "x", Status.BAD_DIMENSIONS),
        ((2010, 10), "x", Status.BAD_DIMENSIONS),
        ((1500, 1500), "x", Status.BAD_DIMENSIONS),
        ((40, 40), "a red circle " * 300, Status.BAD_PROMPT),
    ],
)
def test_inputs_beyond_the_context_fail_on_their_row(folder, shape, prompt, status):
    preprocessor, _ = load(folder, max_pixels=4000 * 4000)
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    with pytest.raises(RowFailure) as raised:
        preprocessor.prepare(image, prompt)
    assert raised.value.status == status


def test_a_huge_prompt_is_refused_before_it_is_tokenized(folder, monkeypatch):
    preprocessor, _ = load(folder)
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    tokenized = []
    monkeypatch.setattr(preprocessor._prompts, "_tokenizer", tokenized.append)
    for prompt in ("x" * 10_000_000, "<|im_end|>" * 100_000, " " * (MAX_PROMPT_CHARACTERS + 1)):
        with pytest.raises(RowFailure, match="more than the 131,072 allowed") as raised:
            preprocessor.prepare(image, prompt)
        assert raised.value.status == Status.BAD_PROMPT
    assert tokenized == []


def test_splitting_control_tokens_takes_one_step_each(folder, monkeypatch):
    preprocessor, _ = load(folder)
    prompts, seen = preprocessor._prompts, []
    encode = prompts._encode
    monkeypatch.setattr(
        prompts,
        "_encode",
        lambda text, **options: seen.append(len(text)) or encode(text, **options),
    )
    prompts.split("<|im_end|>" * 5000)
    # Each piece once, and what stands around the prompt.
    assert len(seen) <= 5000 + 3
    assert sum(seen) <= len("<|im_end|>" * 5000) + 200


def test_an_image_200_times_as_long_as_wide_is_accepted(folder):
    preprocessor, _ = load(folder)
    assert preprocessor.prepare(torch.zeros(3, 5, 1000, dtype=torch.uint8), "x").grid[1] == 2
    assert preprocessor.prepare(torch.zeros(3, 1, 1, dtype=torch.uint8), "x").grid == (1, 4, 4)


def test_sizes_follow_the_operator(folder):
    image = draw_pictures(1, 300, 400)[0]

    def grid(**options):
        return load(folder, **options)[0].prepare(image, "x").grid[1:]

    # Patches of 14, merged by two: sides are multiples of 28.
    assert grid(resized_height=100, resized_width=60) == (8, 4)
    assert grid(max_pixels=56 * 56) == (2, 4)
    assert grid(min_pixels=336 * 448, max_pixels=10**7) == (24, 32)
    assert grid(resized_height=2800, resized_width=2800) == (10, 10)  # the checkpoint's max_pixels
    with pytest.raises(InvalidOptionError, match=r"min_pixels got 1000000.*set both"):
        grid(min_pixels=1_000_000)


def test_fixed_sizes_resize_as_the_processor_does(folder):
    preprocessor, model = load(folder, resized_height=84, resized_width=112)
    processor, _ = parts(folder)
    image = draw_pictures(1, 300, 200)[0]
    ours = preprocessor.prepare(image, "x")
    # A picture of the true size needs no resizing by theirs; ours is resized by torchvision alone.
    from torchvision.transforms.v2.functional import InterpolationMode, resize

    resized = resize(image, [84, 112], InterpolationMode.BICUBIC, antialias=True)
    theirs = processor.image_processor(resized, return_tensors="pt")
    assert list(ours.grid) == theirs["image_grid_thw"][0].tolist()
    values = model._pixel_values(ours.patches, preprocessor.scaling)
    torch.testing.assert_close(values, theirs["pixel_values"], atol=1e-6, rtol=1e-6)


def test_a_model_that_returns_nan_fails_the_row(folder):
    preprocessor, model = load(folder)
    inputs = [preprocessor.prepare(image, "x") for image in draw_pictures(2)]
    batch = preprocessor.collate(inputs)
    scaling = preprocessor.scaling
    first_patches = inputs[0].patches.shape[0]
    visual = model._model.model.visual.patch_embed
    forward = visual.forward

    def poisoned(pixel_values):
        pixel_values = pixel_values.clone()
        pixel_values[:first_patches] = torch.nan
        return forward(pixel_values)

    visual.forward = poisoned
    generated = model.generate(batch, scaling, GenerationSettings(4))
    assert generated.finite.tolist() == [False, True]


def test_threads_generate_concurrently_with_one_model(folder):
    preprocessor, model = load(folder)
    rows = list(zip(pictures(), PROMPTS * 2, strict=False))
    batches = [[preprocessor.prepare(*row) for row in some] for some in (rows[:3], rows[3:])]
    alone = [tokens_of(run(preprocessor, model, batch)) for batch in batches]
    start = threading.Barrier(2)

    def write(batch):
        start.wait(10)
        return [tokens_of(run(preprocessor, model, batch)) for _ in range(3)]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(write, batches)
    assert first == [alone[0]] * 3
    assert second == [alone[1]] * 3


def test_missing_flash_attention_is_logged_once(folder, caplog):
    loading._warn_attention_is_torchs.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            options = LoadOptions(flash_attention=True)
            model = load_model(open_folder(folder), "float32", CPU, options)
    assert [record for record in caplog.messages if "flash" in record] == [
        "use_flash_attention_2 needs the flash-attn package, a GPU and half precision; torch's own "
        "attention (SDPA) is used"
    ]
    assert model._model.config._attn_implementation == "sdpa"


def test_a_checkpoint_that_cannot_caption_is_refused(folder, tmp_path):
    with pytest.raises(UnsupportedCheckpointError, match="use QwenVLImageUnderstanding"):
        check_operator(open_folder(folder), ImageViTEmbedding(model_name=str(folder)))
    bare = write_qwen_vl(tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(UnsupportedCheckpointError, match="chat template"):
        load(bare)
