"""What training computes its own way is what transformers computes."""

import numpy as np
import pytest
import torch

from spark_vision.demo.questions import LANGUAGES, draw_questions
from spark_vision.demo.rendering import render
from spark_vision.demo.scenes import draw_scenes
from training.qwen_batches import Packer, answer_logits
from training.qwen_checkpoint import untrained_model, write_processor
from training.qwen_lessons import tokenizer_texts
from training.qwen_tower import image_features
from training.wordings import scene_caption


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return write_processor(tmp_path_factory.mktemp("qwen"), *tokenizer_texts(50))


@pytest.fixture
def model(processor):
    torch.manual_seed(0)
    return untrained_model(processor.tokenizer).eval()


@pytest.mark.parametrize("size", [(240, 320), (320, 240), (256, 256)])
@torch.inference_mode()
def test_the_tower_sees_many_images_at_once_as_it_does_itself(processor, model, size):
    pixels = torch.randint(256, (3, 3, *size), dtype=torch.uint8)
    inputs = processor.image_processor(images=list(pixels), return_tensors="pt")
    expected = model.model.visual(inputs.pixel_values, grid_thw=inputs.image_grid_thw)
    features, _ = image_features(model.model.visual, inputs.pixel_values, inputs.image_grid_thw)
    torch.testing.assert_close(features, expected.pooler_output)
    assert features.std() > 1e-3


@torch.inference_mode()
def test_packed_answers_have_the_logits_that_they_have_alone(processor, model):
    random = np.random.default_rng(0)
    scenes = draw_scenes(3, seed=1, split="train")
    sizes = ((320, 240), (240, 320), (256, 256))
    images = [render(scene, random, size).image for scene, size in zip(scenes, sizes, strict=True)]
    asked = [
        [("Describe this image.", scene_caption(scene, "en"))]
        + [(one.text, one.answer) for one in draw_questions(scene, random, LANGUAGES[1])]
        for scene in scenes
    ]
    packer = Packer(processor)
    batch = packer.pack(images, [[packer.conversation(*one) for one in row] for row in asked])
    features = model.model.visual(batch.pixel_values, grid_thw=batch.image_grid_thw).pooler_output
    packed, tokens = answer_logits(model, batch, features)
    alone, texts = [], []
    for image, row in zip(images, asked, strict=True):
        for question, answer in row:
            turn = [{"type": "image"}, {"type": "text", "text": question}]
            text = processor.apply_chat_template(
                [{"role": "user", "content": turn}], tokenize=False, add_generation_prompt=True
            )
            inputs = processor(
                text=[text + answer + "<|im_end|>"], images=[image], return_tensors="pt"
            )
            length = len(processor.tokenizer(answer).input_ids) + 1
            alone.append(model(**inputs).logits[0, -length - 1 : -1])
            texts.append(answer + "<|im_end|>")
    assert processor.tokenizer.decode(tokens) == "".join(texts)
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-4)
