"""A caption's scores are the share of the scene's words that it has."""

import pytest

from spark_vision.demo.questions import LANGUAGES
from spark_vision.demo.scenes import Scene, SceneObject
from training.caption_scores import caption_scores
from training.wordings import scene_caption

RED_CIRCLE = SceneObject("small", "red", "circle")
RED_SQUARE = SceneObject("large", "red", "square")
BLUE_SQUARE = SceneObject("large", "blue", "square")
SCENE = Scene((RED_CIRCLE, BLUE_SQUARE), ("left of",))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_caption_is_scored_by_what_it_says(language):
    exact = caption_scores(SCENE, language, scene_caption(SCENE, language))
    assert exact == dict.fromkeys(["exact", "count", "colour", "shape", "size", "relation"], 1.0)
    other = Scene((RED_CIRCLE, RED_SQUARE), ("right of",))
    wrong = caption_scores(SCENE, language, scene_caption(other, language))
    assert wrong == {
        "exact": 0, "count": 1, "colour": 0.5, "shape": 1, "size": 1, "relation": 0
    }  # fmt: skip
    single = caption_scores(SCENE, language, scene_caption(Scene((RED_CIRCLE,), ()), language))
    assert (single["count"], single["colour"], single["relation"]) == (0, 0.5, 0)
    assert set(caption_scores(SCENE, language, "").values()) == {0.0}
