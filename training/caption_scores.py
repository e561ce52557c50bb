"""How right a caption is: as a whole, and in each thing that it says."""

import re
from collections.abc import Iterable

from spark_vision.demo.captions import COLOURS_ZH, RELATIONS_ZH, SHAPES_ZH, SIZES_ZH
from spark_vision.demo.questions import Language, scene_caption
from spark_vision.demo.scenes import COLOURS, RELATIONS, SHAPES, SIZES, Scene

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
    """Compare a caption with the scene's.

    Args:
        scene: What was shown.
        language: The caption's.
        text: The caption, of any form.

    Returns:
        `exact` (1 if it is the scene's caption, letter by letter), `count` (1 if it names as many
        shapes), and for `colour`, `shape`, `size` and `relation` the share of the scene's words,
        in their order, that the text has at the same place among its own; too many words count
        as wrong ones. A scene of one object that no relation is claimed of has no `relation`.
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
