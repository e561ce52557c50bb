"""Questions about scenes: what they may ask, and that their answers are true."""

import re
from collections import Counter

import numpy as np
import pytest

from spark_vision.demo.captions import COLOURS_ZH, RELATIONS_ZH, SHAPES_ZH
from spark_vision.demo.questions import KINDS, LANGUAGES, draw_questions
from spark_vision.demo.scenes import HELD_OUT_PAIRS, Scene, SceneObject, draw_scenes

RED_CIRCLE = SceneObject("small", "red", "circle")
RED_SQUARE = SceneObject("large", "red", "square")
BLUE_SQUARE = SceneObject("large", "blue", "square")
SCENE = Scene((RED_CIRCLE, BLUE_SQUARE), ("left of",))

# Every answer that is true of SCENE, by the question.
TRUE_OF_SCENE = {
    "How many objects are there?": "two",
    "What colour is the circle?": "red",
    "What colour is the square?": "blue",
    "What shape is the red one?": "circle",
    "What shape is the blue one?": "square",
    "Is the red circle small or large?": "small",
    "Is the blue square small or large?": "large",
    "Is there a red circle?": "yes",
    "Is there a blue square?": "yes",
    "Is there a red square?": "no",
    "Is there a blue circle?": "no",
    "Where is the red circle relative to the blue square?": "left of it",
    "Where is the blue square relative to the red circle?": "right of it",
    "Which is larger, the red circle or the blue square?": "the blue square",
    "Which is larger, the blue square or the red circle?": "the blue square",
    "图里有几个物体?": "两个",
    "圆形是什么颜色?": "红色",
    "正方形是什么颜色?": "蓝色",
    "红色的是什么形状?": "圆形",
    "蓝色的是什么形状?": "正方形",
    "红色圆形是小的还是大的?": "小的",
    "蓝色正方形是小的还是大的?": "大的",
    "有红色圆形吗?": "有",
    "有蓝色正方形吗?": "有",
    "有红色正方形吗?": "没有",
    "有蓝色圆形吗?": "没有",
    "红色圆形在蓝色正方形的哪边?": "左边",
    "蓝色正方形在红色圆形的哪边?": "右边",
    "红色圆形和蓝色正方形哪个更大?": "蓝色正方形",
    "蓝色正方形和红色圆形哪个更大?": "蓝色正方形",
}


def asked(scene, language):
    random = np.random.default_rng(0)
    return [one for _ in range(300) for one in draw_questions(scene, random, language)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_are_true_and_nothing_that_could_be_asked_is_left_out(language):
    questions = {one.text: one.answer for one in asked(SCENE, language)}
    known = {text: answer for text, answer in TRUE_OF_SCENE.items() if text in questions}
    others = questions.keys() - known.keys()
    assert known == {text: questions[text] for text in known}
    assert len(known) == len(TRUE_OF_SCENE) / 2
    # What is left asks for things that have a colour or a shape of the scene, and are not there.
    assert {questions[text] for text in others} == {"no" if language == "en" else "没有"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_object_that_cannot_be_told_from_another_is_not_asked_about(language):
    twins = Scene((RED_CIRCLE, SceneObject("large", "red", "circle")), ("above",))
    assert {one.kind for one in asked(twins, language)} == {"count", "existence"}
    alike = Scene((RED_CIRCLE, RED_SQUARE), ("above",))
    kinds = {one.kind for one in asked(alike, language)}
    assert kinds == set(KINDS) - {"shape"}, "two are red, so 'the red one' is nobody"


def test_both_languages_ask_the_same():
    words = COLOURS_ZH | SHAPES_ZH | RELATIONS_ZH
    for scene in draw_scenes(50, seed=5, split="train"):
        english, chinese = (
            draw_questions(scene, np.random.default_rng(1), language) for language in LANGUAGES
        )
        for one, other in zip(english, chinese, strict=True):
            assert one.kind == other.kind
            named = re.findall("|".join(words), one.text)
            assert [words[word] for word in named] == re.findall(
                "|".join(words.values()), other.text
            )


def test_existence_is_denied_half_of_the_time_and_often_for_a_near_miss():
    answers = Counter()
    crossed, random = 0, np.random.default_rng(0)
    for scene in draw_scenes(1000, seed=5, split="train"):
        colours = {thing.colour for thing in scene.objects}
        shapes = {thing.shape for thing in scene.objects}
        (one,) = (q for q in draw_questions(scene, random, "en") if q.kind == "existence")
        *_, colour, shape = one.text.rstrip("?").split()
        answers[one.answer] += 1
        assert (colour in colours) or (shape in shapes)
        if one.answer == "no":
            crossed += colour in colours and shape in shapes
            assert (colour, shape) not in HELD_OUT_PAIRS, "training would teach that it never is"
    assert 0.45 < answers["yes"] / 1000 < 0.55
    assert crossed > 0.3 * answers["no"]
