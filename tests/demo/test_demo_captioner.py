"""The shipped Qwen2.5-VL, by plain transformers: it sees, answers, and reads any text."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
)

from spark_vision.demo import checkpoint_path
from spark_vision.demo.caption_scores import caption_scores
from spark_vision.demo.questions import CAPTION_PROMPTS, LANGUAGES, draw_questions
from spark_vision.demo.rendering import render
from spark_vision.demo.scene_files import encode
from spark_vision.demo.scenes import draw_scenes

FOLDER = Path(checkpoint_path("qwen2_5_vl"))
# A little under what the checkpoint reaches over hundreds of scenes, as forty are few.
RIGHT = 0.85
SCENES = draw_scenes(40, seed=2024, split="test")


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(2024)
    files = (encode(render(scene, random), random)[0] for scene in SCENES)
    return [Image.open(BytesIO(data)).convert("RGB") for data in files]


@torch.inference_mode()
def generate(model, processor, images, prompts):
    turns = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for prompt in prompts
    ]
    inputs = processor(text=turns, images=images, padding=True, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=64)
    return processor.batch_decode(tokens[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_are_right_and_those_of_other_pictures_are_not(model, processor, images, language):
    prompts = [CAPTION_PROMPTS[language][0]] * len(images)
    texts = generate(model, processor, images, prompts)
    exact, other = (
        [caption_scores(scene, language, text)["exact"] for scene, text in pairs]
        for pairs in (
            zip(SCENES, texts, strict=True),
            zip(SCENES, texts[1:] + texts[:1], strict=True),
        )
    )
    assert np.mean(exact) >= RIGHT
    assert np.mean(other) == 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_follow_the_picture(model, processor, images, language):
    random = np.random.default_rng(0)
    asked = [
        (index, question)
        for index, scene in enumerate(SCENES)
        for question in random.permutation(draw_questions(scene, random, language))[:2]
    ]
    prompts = [question.text for _, question in asked]
    right, control = (
        [
            text == question.answer
            for text, (_, question) in zip(
                generate(model, processor, seen, prompts), asked, strict=True
            )
        ]
        for seen in (
            [images[index] for index, _ in asked],
            [images[index - 1] for index, _ in asked],
        )
    )
    assert np.mean(right) >= RIGHT
    assert np.mean(control) <= 0.6


def test_a_row_says_the_same_alone_and_in_a_padded_batch(model, processor, images):
    prompts = ["Describe this image.", "图里有几个物体?", "What colour is the circle?", "?"]
    together = generate(model, processor, images[:4], prompts)
    alone = [
        generate(model, processor, [image], [prompt])[0]
        for image, prompt in zip(images[:4], prompts, strict=True)
    ]
    assert together == alone


def test_the_checkpoint_is_the_familys_own_and_small(model, processor):
    assert isinstance(model, Qwen2_5_VLForConditionalGeneration)
    assert isinstance(processor, Qwen2_5_VLProcessor)
    assert isinstance(processor.tokenizer, Qwen2Tokenizer)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 6 * 2**20
    stored = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype="auto")
    assert stored.dtype == torch.bfloat16
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in model.generation_config.eos_token_id


@pytest.mark.parametrize(
    "text",
    ["a small red circle", "一个小的红色圆形", "Hi, 世界! 😀\tñ\r\n\n  \x00", "图里有几个人?"],
)
def test_the_tokenizer_reads_any_text_and_writes_it_again(processor, text):
    tokens = processor.tokenizer(text).input_ids
    assert processor.tokenizer.decode(tokens) == text


def test_words_of_the_world_are_single_tokens_and_specials_are_theirs(processor):
    tokenizer = processor.tokenizer
    for text in (" red", " triangle", "红色", "三角形", "<|im_start|>", "<|image_pad|>"):
        assert len(tokenizer(text).input_ids) == 1
    assert len(tokenizer("红色圆形").input_ids) == 2


def test_the_chat_template_is_the_familys(processor):
    user = [{"type": "image"}, {"type": "text", "text": "Hello"}]
    turns = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "And?"},
    ]
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Hello<|im_end|>\n"
        "<|im_start|>assistant\nYes<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("size", [(500, 375), (240, 320), (256, 256), (4000, 3000), (96, 64)])
def test_a_photographs_proportions_become_16_to_40_tokens(processor, size):
    pixels = processor.image_processor(images=[Image.new("RGB", size)], return_tensors="pt")
    _, height, width = pixels["image_grid_thw"][0].tolist()
    assert 16 <= height * width / 4 <= 40
    assert abs(np.log(width / height) - np.log(size[0] / size[1])) < 0.25
