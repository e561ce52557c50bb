"""Scores a caption: exact match, and accuracy per attribute."""

import re
from collections.abc import Iterable

from spark_vision.demo.captions import COLOURS_ZH, RELATIONS_ZH, SHAPES_ZH, SIZES_ZH
from spark_vision.demo.questions import Language
from spark_vision.demo.scenes import COLOURS, RELATIONS, SHAPES, SIZES, Scene
from training.wordings import scene_caption

_WORDS: dict[Language, dict[str, Iterable[str]]] = {
    "en": {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "relation": RELATIONS},
    "zh": {
        "colour": COLOURS_ZH.values(),
        "shape": SHAPES_ZH.values(),
        "size": SIZES_ZH.values(),
        "relation": RELATIONS_ZH.values(),
    },
}


def caption_scores(scene: Scene, language: Language, text: str) -> dict[str, float]:
    """Compare a caption with the correct one of the scene.

    Args:
        scene: The scene in the image.
        language: The language of the caption.
        text: The caption; any text.

    Returns:
        `exact` (1 if it equals the correct caption), `count` (1 if the number of shapes is
        correct), and for `colour`, `shape`, `size` and `relation` the share of correct words,
        compared by position; extra words count as wrong. `relation` is missing if neither the
        scene nor the text has one.
    """
    expected = scene_caption(scene, language)
    scores = {"exact": float(text == expected)}
    for attribute, words in _WORDS[language].items():
        pattern = re.compile("|".join(words))
        wanted, found = pattern.findall(expected), pattern.findall(text)
        if attribute == "shape":
            scores["count"] = float(len(found) == len(wanted))
        if wanted or found:
            hits = sum(one == other for one, other in zip(wanted, found, strict=False))
            scores[attribute] = hits / max(len(wanted), len(found))
    return scores
