"""The shipped Qwen2.5-VL sees and answers in a Spark column, and reads any text."""

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

from spark_vision import QwenVLImageUnderstanding
from spark_vision.demo import checkpoint_path, write_scenes
from spark_vision.demo.ground_truth import GroundTruth
from spark_vision.demo.questions import LANGUAGES, Question
from spark_vision.demo.scenes import Scene, SceneObject
from spark_vision.demo.understanding_scores import (
    Response,
    UnderstandingScore,
    ask,
    understanding_scores,
)

FOLDER = Path(checkpoint_path("qwen2_5_vl"))
COUNT = 40
# A little under what the checkpoint reaches over hundreds of scenes, as forty are few.
RIGHT = 0.85


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, COUNT, seed=2024)
    return folder


@pytest.fixture(scope="module")
def images(folder):
    return [Image.open(file).convert("RGB") for file in sorted(folder.glob("scene-*"))[:4]]


@pytest.fixture(scope="module")
def said(spark, folder):
    operator = QwenVLImageUnderstanding(
        model_name=str(FOLDER), dtype="float32", batch_size=32, max_caption_length=64
    )
    return ask(spark, folder, operator, seed=2024)


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


def test_captions_are_right_and_those_of_other_pictures_are_not(said):
    scores = {score.name: score for score in understanding_scores(said)}
    for language in LANGUAGES:
        exact = scores[f"{language} caption, exact"]
        assert exact.count == COUNT
        assert exact.share >= RIGHT
        assert exact.control == 0
        for attribute in ("colour", "shape", "size", "relation", "count"):
            judged = scores[f"{language} caption, {attribute}"]
            assert judged.share >= exact.share
            assert judged.control <= 0.65


def test_answers_follow_the_picture(said):
    scores = {score.name: score for score in understanding_scores(said)}
    answers = scores["all questions"]
    assert answers.count == 2 * len(LANGUAGES) * COUNT
    assert answers.share >= RIGHT
    assert answers.control <= 0.5


def test_a_figure_is_the_share_of_what_was_right():
    scene = Scene(
        (SceneObject("small", "red", "circle"), SceneObject("large", "blue", "ring")), ("above",)
    )
    truth = GroundTruth("a.jpg", scene)
    right = "a small red circle above a large blue ring"
    prompt = "Describe this image."
    count = Question("count", "en", "How many objects are there?", "two")
    said = [
        Response(truth, "en", prompt, None, right, "a small red circle"),
        Response(truth, "en", prompt, None, right.replace("ring", "star"), right),
        Response(truth, "en", count.text, count, "two", "one"),
        Response(truth, "en", count.text, count, "three", "one"),
    ]
    scores = {score.name: score for score in understanding_scores(said)}
    assert scores["en caption, exact"] == UnderstandingScore("en caption, exact", 0.5, 0.5, None, 2)
    assert scores["en caption, shape"].share == 0.75
    assert scores["en caption, count"].control == 0.5
    assert scores["en count?"] == UnderstandingScore("en count?", 0.5, 0.0, 1.0, 2)
    assert scores["all questions"].share == 0.5


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
