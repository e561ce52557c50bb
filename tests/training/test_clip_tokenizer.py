"""The tokenizer of the demonstration's CLIP keeps words whole and takes any text."""

import numpy as np
import pytest
from transformers import AutoTokenizer, CLIPTokenizer

from spark_vision.demo.captions import caption, caption_zh
from spark_vision.demo.scenes import draw_scenes
from training.clip_tokenizer import CONTEXT_LENGTH, make_tokenizer
from training.wordings import wording

SCENES = draw_scenes(100, seed=4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_saved_tokenizer_is_clips_own(tokenizer):
    assert isinstance(tokenizer, CLIPTokenizer)
    assert tokenizer.eos_token_id == len(tokenizer) - 1


def test_each_word_of_a_caption_is_one_token(tokenizer):
    for scene in SCENES:
        assert len(tokenizer.tokenize(caption(scene))) == len(caption(scene).split())


def test_chinese_words_are_one_token_wherever_they_stand(tokenizer):
    for scene in SCENES:
        # One, size, colour, shape of each object; in, 's, side and comma of each relation.
        others = len(scene.relations)
        expected = 4 * (1 + others) + 3 * others + max(0, others - 1)
        assert len(tokenizer.tokenize(caption_zh(scene))) == expected, caption_zh(scene)


def test_different_captions_and_unknown_words_have_different_tokens(tokenizer):
    texts = [caption(scene) for scene in SCENES] + [caption_zh(scene) for scene in SCENES]
    texts += ["a crimson pentagon", "你好", "🙂", "naïve Ünïcode"]
    assert len({tuple(tokenizer(text).input_ids) for text in texts}) == len(texts)
    assert (
        tokenizer.unk_token_id not in tokenizer("🙂 pentagon", add_special_tokens=False).input_ids
    )


def test_wordings_fit_the_context(tokenizer):
    random = np.random.default_rng(0)
    lengths = [len(tokenizer(wording(scene, random)[0]).input_ids) for scene in SCENES * 5]
    assert max(lengths) <= CONTEXT_LENGTH
