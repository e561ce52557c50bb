"""Questions about a scene and their answers, in English and Chinese."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from spark_vision.demo.captions import COLOURS_ZH, RELATIONS_ZH, SHAPES_ZH
from spark_vision.demo.scenes import (
    COLOURS,
    HELD_OUT_PAIRS,
    OPPOSITES,
    SHAPES,
    Scene,
    SceneObject,
)

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
Kind = Literal["count", "colour", "shape", "size", "existence", "relation", "larger"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_COUNTS: dict[Language, tuple[str, ...]] = {
    "en": ("one", "two", "three"),
    "zh": ("一个", "两个", "三个"),
}
_SIZES_ZH = {"small": "小的", "large": "大的"}
_Pair = tuple[str, str]


@dataclass(frozen=True)
class Question:
    """One question about one scene.

    Attributes:
        kind: The kind of question.
        language: The language of the question and its answer.
        text: The question.
        answer: The only correct answer, to be matched exactly.
    """

    kind: Kind
    language: Language
    text: str
    answer: str


def draw_questions(
    scene: Scene, random: np.random.Generator, language: Language
) -> tuple[Question, ...]:
    """Draw one question of each kind that has one clear answer.

    Args:
        scene: The scene.
        random: Chooses the objects. "Is there a red square?" has the answer no in half of the
            cases; if possible, half of those combine a colour and a shape of different objects.
        language: The language of questions and answers.

    Returns:
        The questions in the order of `KINDS`. Count and existence are always included, other kinds
        only if the shape, the colour or both identify an object.
    """
    return tuple(_questions(scene, random, language))


def _questions(scene: Scene, random: np.random.Generator, language: Language) -> Iterator[Question]:
    english = language == "en"

    def question(kind: Kind, en: str, zh: str, answer: str) -> Question:
        return Question(kind, language, en if english else zh, answer)

    yield question(
        "count",
        "How many objects are there?",
        "图里有几个物体?",
        _COUNTS[language][len(scene.objects) - 1],
    )
    by_shape = _unique(random, [thing.shape for thing in scene.objects])
    if by_shape is not None:
        thing = scene.objects[by_shape]
        yield question(
            "colour",
            f"What colour is the {thing.shape}?",
            f"{SHAPES_ZH[thing.shape]}是什么颜色?",
            thing.colour if english else COLOURS_ZH[thing.colour],
        )
    by_colour = _unique(random, [thing.colour for thing in scene.objects])
    if by_colour is not None:
        thing = scene.objects[by_colour]
        yield question(
            "shape",
            f"What shape is the {thing.colour} one?",
            f"{COLOURS_ZH[thing.colour]}的是什么形状?",
            thing.shape if english else SHAPES_ZH[thing.shape],
        )
    pairs = [_pair(thing) for thing in scene.objects]
    by_pair = _unique(random, pairs)
    if by_pair is not None:
        thing = scene.objects[by_pair]
        name = _name(_pair(thing), language)
        yield question(
            "size",
            f"Is the {name} small or large?",
            f"{name}是小的还是大的?",
            thing.size if english else _SIZES_ZH[thing.size],
        )
    present = random.random() < 0.5
    asked = pairs[int(random.integers(len(pairs)))] if present else _absent(scene, random)
    article = "an" if asked[0] == "orange" else "a"
    yield question(
        "existence",
        f"Is there {article} {_name(asked, 'en')}?",
        f"有{_name(asked, 'zh')}吗?",
        ("yes" if present else "no") if english else ("有" if present else "没有"),
    )
    if len(scene.objects) == 1:
        return
    # A scene defines the relations of its first object only, so one of the two is the first.
    other = int(random.integers(1, len(pairs)))
    if Counter(pairs)[pairs[0]] > 1 or Counter(pairs)[pairs[other]] > 1:
        return
    relation = scene.relations[other - 1]
    one, two = 0, other
    if random.random() < 0.5:
        one, two, relation = other, 0, OPPOSITES[relation]
    first, second = _name(pairs[one], language), _name(pairs[two], language)
    yield question(
        "relation",
        f"Where is the {first} relative to the {second}?",
        f"{first}在{second}的哪边?",
        f"{relation} it" if english else RELATIONS_ZH[relation],
    )
    if scene.objects[one].size != scene.objects[two].size:
        larger = first if scene.objects[one].size == "large" else second
        yield question(
            "larger",
            f"Which is larger, the {first} or the {second}?",
            f"{first}和{second}哪个更大?",
            f"the {larger}" if english else larger,
        )


def _pair(thing: SceneObject) -> _Pair:
    return thing.colour, thing.shape


def _name(pair: _Pair, language: Language) -> str:
    colour, shape = pair
    return f"{colour} {shape}" if language == "en" else COLOURS_ZH[colour] + SHAPES_ZH[shape]


def _unique(random: np.random.Generator, names: list[str] | list[_Pair]) -> int | None:
    """Return the index of a name that only one object has."""
    counts = Counter(names)
    indices = [index for index, name in enumerate(names) if counts[name] == 1]
    return indices[int(random.integers(len(indices)))] if indices else None


def _absent(scene: Scene, random: np.random.Generator) -> _Pair:
    """Return a colour and a shape of which at least one is in the scene, but not both together."""
    there = {_pair(thing) for thing in scene.objects}
    colours, shapes = {colour for colour, _ in there}, {shape for _, shape in there}
    # Training must not teach that the held-out pairs never occur.
    barred = there | HELD_OUT_PAIRS if scene.split == "train" else there
    absent = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    absent = [pair for pair in absent if pair not in barred]
    both = [pair for pair in absent if pair[0] in colours and pair[1] in shapes]
    either = [pair for pair in absent if (pair[0] in colours) != (pair[1] in shapes)]
    pairs = both if both and random.random() < 0.5 else either
    return pairs[int(random.integers(len(pairs)))]
