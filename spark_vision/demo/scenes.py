"""The demo's scenes: one to three coloured shapes with spatial relations."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import numpy as np

Split = Literal["train", "validation", "test", "held_out_pairs", "held_out_relations"]
SPLITS: tuple[Split, ...] = get_args(Split)

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "large")
OPPOSITES = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
RELATIONS = tuple(OPPOSITES)

# Training includes each attribute alone, but never these combinations.
HELD_OUT_PAIRS = frozenset(
    {("yellow", "ring"), ("purple", "triangle"), ("orange", "cross"), ("black", "star")}
)
HELD_OUT_RELATIONS = frozenset(
    {
        ("star", "left of", "ring"),
        ("triangle", "left of", "cross"),
        ("square", "left of", "star"),
        ("cross", "above", "circle"),
        ("ring", "above", "square"),
        ("circle", "above", "triangle"),
    }
)

_COUNT_SHARES = (0.15, 0.4, 0.45)


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        size: One of `SIZES`.
        colour: One of `COLOURS`.
        shape: One of `SHAPES`.
    """

    size: str
    colour: str
    shape: str

    @property
    def order(self) -> tuple[int, int, int]:
        """The sort key of objects in a caption: colour, then shape, then size."""
        return COLOURS.index(self.colour), SHAPES.index(self.shape), SIZES.index(self.size)


@dataclass(frozen=True)
class Scene:
    """The content of an image, without positions.

    Attributes:
        objects: One to three distinct objects, sorted by `SceneObject.order`.
        relations: For each object after the first, the relation of the first object to it: the
            first object is `relations[0]` the second and `relations[1]` the third.
    """

    objects: tuple[SceneObject, ...]
    relations: tuple[str, ...]

    @property
    def split(self) -> Split:
        """The split of the scene, which depends only on the scene."""
        if any((thing.colour, thing.shape) in HELD_OUT_PAIRS for thing in self.objects):
            return "held_out_pairs"
        if any(triple in HELD_OUT_RELATIONS for triple in self._triples()):
            return "held_out_relations"
        words = [word for thing in self.objects for word in (thing.size, thing.colour, thing.shape)]
        bucket = hashlib.sha256(" ".join([*words, *self.relations]).encode()).digest()[0] % 10
        return "validation" if bucket == 0 else "test" if bucket <= 2 else "train"

    def _triples(self) -> Iterator[tuple[str, str, str]]:
        # Both directions: a star left of a ring is a ring right of a star.
        first = self.objects[0]
        for other, relation in zip(self.objects[1:], self.relations, strict=True):
            yield first.shape, relation, other.shape
            yield other.shape, OPPOSITES[relation], first.shape


def draw_scene(random: np.random.Generator, split: Split) -> Scene:
    """Draw a random scene of a split, with repetition.

    Args:
        random: The random generator.
        split: One of `SPLITS`.

    Returns:
        The scene; three objects are more frequent than one.

    Raises:
        ValueError: There is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split got {split!r}; allowed: {', '.join(SPLITS)}")
    while True:
        count = 1 + int(random.choice(3, p=_COUNT_SHARES))
        objects = {
            SceneObject(_one_of(random, SIZES), _one_of(random, COLOURS), _one_of(random, SHAPES))
            for _ in range(count)
        }
        scene = Scene(
            tuple(sorted(objects, key=lambda thing: thing.order)),
            tuple(_one_of(random, RELATIONS) for _ in range(len(objects) - 1)),
        )
        if scene.split == split:
            return scene


def draw_scenes(count: int, seed: int, split: Split = "test") -> list[Scene]:
    """Draw distinct scenes.

    Args:
        count: Number of scenes.
        seed: Determines the scenes; a larger count only adds scenes.
        split: One of `SPLITS`.

    Returns:
        The scenes.
    """
    return list(islice(_distinct(np.random.default_rng(seed), split), count))


def _distinct(random: np.random.Generator, split: Split) -> Iterator[Scene]:
    seen: set[Scene] = set()
    while True:
        scene = draw_scene(random, split)
        if scene not in seen:
            seen.add(scene)
            yield scene


def _one_of(random: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(random.integers(len(words)))]
