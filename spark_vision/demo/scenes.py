"""The demonstration's small world: scenes of one to three coloured shapes in relation."""

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

# Each attribute alone is in training; put together like this it never is.
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
    """One thing in a scene.

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
        """Where it comes in a caption: by colour, then shape, then size."""
        return COLOURS.index(self.colour), SHAPES.index(self.shape), SIZES.index(self.size)


@dataclass(frozen=True)
class Scene:
    """What a picture shows, without where each pixel is.

    Attributes:
        objects: One to three, no two of them equal, in `SceneObject.order`.
        relations: For each object after the first, where the first one is as seen from it: the
            first object is `relations[0]` the second and `relations[1]` the third.
    """

    objects: tuple[SceneObject, ...]
    relations: tuple[str, ...]

    @property
    def split(self) -> Split:
        """The one split that the scene belongs to: it follows from the scene alone."""
        if any((thing.colour, thing.shape) in HELD_OUT_PAIRS for thing in self.objects):
            return "held_out_pairs"
        if any(triple in HELD_OUT_RELATIONS for triple in self._triples()):
            return "held_out_relations"
        words = [word for thing in self.objects for word in (thing.size, thing.colour, thing.shape)]
        bucket = hashlib.sha256(" ".join([*words, *self.relations]).encode()).digest()[0] % 10
        return "validation" if bucket == 0 else "test" if bucket <= 2 else "train"

    def _triples(self) -> Iterator[tuple[str, str, str]]:
        # Both ways round: a star left of a ring is a ring right of a star.
        first = self.objects[0]
        for other, relation in zip(self.objects[1:], self.relations, strict=True):
            yield first.shape, relation, other.shape
            yield other.shape, OPPOSITES[relation], first.shape


def draw_scene(random: np.random.Generator, split: Split) -> Scene:
    """Draw any scene of a split; the same scene may come again.

    Args:
        random: Decides the scene.
        split: Which scenes are wanted.

    Returns:
        The scene: of three objects more often than of one.

    Raises:
        ValueError: There is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}; a scene belongs to one of {', '.join(SPLITS)}")
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
    """Draw scenes of which no two are equal.

    Args:
        count: How many scenes.
        seed: Decides them; a larger count only adds to a smaller one's.
        split: Which scenes are wanted, one of `SPLITS`.

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
