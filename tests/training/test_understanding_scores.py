"""The shipped Qwen2.5-VL sees and answers in a Spark column, as the judge counts it."""

import pytest

from spark_vision import QwenVLImageUnderstanding
from spark_vision.demo import checkpoint_path, write_scenes
from spark_vision.demo.ground_truth import GroundTruth
from spark_vision.demo.questions import LANGUAGES, Question
from spark_vision.demo.scenes import Scene, SceneObject
from training.understanding_scores import Response, UnderstandingScore, ask, understanding_scores

# Training is not part of the package, and a change of it is rare.
pytestmark = pytest.mark.slow

COUNT = 40
# A little under what the checkpoint reaches over hundreds of scenes, as forty are few.
RIGHT = 0.85


@pytest.fixture(scope="module")
def said(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, COUNT, seed=2024)
    operator = QwenVLImageUnderstanding(
        model_name=checkpoint_path("qwen2_5_vl"),
        dtype="float32",
        batch_size=32,
        max_caption_length=64,
    )
    return ask(spark, folder, operator, seed=2024)


@pytest.mark.slow
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
