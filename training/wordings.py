"""The caption of a scene and its prompts, and other ways to say it, as people might search."""

import numpy as np

from spark_vision.demo.captions import (
    COLOURS_ZH,
    RELATIONS_ZH,
    SHAPES_ZH,
    SIZES_ZH,
    caption,
    caption_zh,
)
from spark_vision.demo.questions import Language
from spark_vision.demo.scenes import OPPOSITES, Scene, SceneObject

# Prompts for a caption; the first of each language is the default.
CAPTION_PROMPTS: dict[Language, tuple[str, ...]] = {
    "en": (
        "Describe this image.",
        "Describe this image in detail.",
        "Please describe the picture.",
        "What is in this picture?",
    ),
    "zh": (
        "请给出这张图片的详细描述。",
        "请描述这张图片。",
        "描述一下这张图。",
        "图里有什么?",
    ),
}

_OPENINGS = ("", "", "", "a photo of ", "a picture of ", "an image of ")
_OPENINGS_ZH = ("", "", "", "图里有", "一张照片,")
_RELATIONS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_CHINESE_SHARE = 0.4
_SIZELESS_SHARE = 0.4
_NOISE_SHARE = 0.05
_LETTERS = np.array([*"abcdefghijklmnopqrstuvwxyz"])


def scene_caption(scene: Scene, language: Language) -> str:
    """Describe a scene in a language."""
    return caption(scene) if language == "en" else caption_zh(scene)


def wording(scene: Scene, random: np.random.Generator) -> tuple[str, bool]:
    """Describe a scene in one of many ways, in English or Chinese.

    Args:
        scene: What is described.
        random: Decides the way.

    Returns:
        The text, and whether it says how large things are. All else is said by every text.
    """
    sized = random.random() >= _SIZELESS_SHARE
    first, *others = scene.objects
    related = list(zip(others, scene.relations, strict=True))
    if random.random() < 0.5:
        related.reverse()
    if len(related) == 1 and random.random() < 0.5:
        # Seen from the other one.
        ((other, relation),) = related
        first, related = other, [(first, OPPOSITES[relation])]
    describe = _chinese if random.random() < _CHINESE_SHARE else _english
    text = describe(first, related, sized, random)
    if random.random() < _NOISE_SHARE:
        text = f"{text} {_noise(random)}"
    return text, sized


def _english(
    first: SceneObject,
    related: list[tuple[SceneObject, str]],
    sized: bool,
    random: np.random.Generator,
) -> str:
    def phrase(thing: SceneObject) -> str:
        words = f"{thing.size} {thing.colour}" if sized else thing.colour
        article = "an" if words.startswith("o") else "a"
        return f"{article} {words} {thing.shape}"

    relations = [
        f" {_one_of(random, _RELATIONS[relation])} {phrase(other)}" for other, relation in related
    ]
    return _one_of(random, _OPENINGS) + phrase(first) + " and".join(relations)


def _chinese(
    first: SceneObject,
    related: list[tuple[SceneObject, str]],
    sized: bool,
    random: np.random.Generator,
) -> str:
    article = _one_of(random, ("一个", ""))

    def phrase(thing: SceneObject) -> str:
        size = f"{SIZES_ZH[thing.size]}的" if sized else ""
        return f"{article}{size}{COLOURS_ZH[thing.colour]}{SHAPES_ZH[thing.shape]}"

    relations = [f"在{phrase(other)}的{RELATIONS_ZH[relation]}" for other, relation in related]
    return _one_of(random, _OPENINGS_ZH) + phrase(first) + ",".join(relations)


def _noise(random: np.random.Generator) -> str:
    """A word that means nothing, for the model to look past."""
    return "".join(random.choice(_LETTERS, int(random.integers(2, 8))))


def _one_of(random: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(random.integers(len(choices)))]
