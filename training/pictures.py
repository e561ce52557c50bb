"""Scenes to train on, each beside one that almost equals it, drawn at the size models see."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from PIL import Image

from spark_vision.demo.rendering import PICTURE_SIZES, render
from spark_vision.demo.scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    Split,
    draw_scene,
)

IMAGE_SIZE = 64
"""Pixels of the square that every picture is squashed to, by Pillow's bicubic filter."""

_MOST_OBJECTS = 3
# Pictures are drawn this large, and not as large as files, before they are squashed.
_SHORTER_EDGE = 104
# Pairs that one process draws before it takes others.
_CHUNK = 200
_TRIES = 50


@dataclass(frozen=True)
class Pictures:
    """Drawn scenes with their truth.

    Attributes:
        scenes: One for each row of the tensors.
        pixels: uint8 `[scenes, renderings, 3, 64, 64]`.
        boxes: float32 `[scenes, renderings, 3, 4]`: left, top, right and bottom of each object in
            those pixels; zeros where there is no object.
        objects: int64 `[scenes, 3, 3]`: colour, shape and size of each object, counted from 1; 0
            where there is none.
        relations: int64 `[scenes, 2]`, counted from 1; 0 where there is none.
        ids: int64 `[scenes]`, equal only for equal scenes.
    """

    scenes: list[Scene]
    pixels: torch.Tensor
    boxes: torch.Tensor
    objects: torch.Tensor
    relations: torch.Tensor
    ids: torch.Tensor


def near_miss(scene: Scene, random: np.random.Generator) -> Scene:
    """Change one thing in a scene, or let two objects change places.

    Args:
        scene: What to change.
        random: Decides what is changed.

    Returns:
        A scene that is not equal, of any split.
    """
    while True:
        objects, relations = list(scene.objects), list(scene.relations)
        kind = int(random.integers(5 if relations else 3))
        one = int(random.integers(len(objects)))
        if kind == 0:
            objects[one] = replace(objects[one], colour=str(random.choice(COLOURS)))
        elif kind == 1:
            objects[one] = replace(objects[one], shape=str(random.choice(SHAPES)))
        elif kind == 2:
            objects[one] = replace(objects[one], size=str(random.choice(SIZES)))
        elif kind == 3:
            relations[int(random.integers(len(relations)))] = str(random.choice(RELATIONS))
        else:
            # A red circle and a blue square become a red square and a blue circle.
            other = int(random.integers(len(objects)))
            here, there = objects[one], objects[other]
            objects[one] = SceneObject(here.size, here.colour, there.shape)
            objects[other] = SceneObject(there.size, there.colour, here.shape)
        # Only a change that leaves the first object first keeps the relations' meaning.
        ordered = objects == sorted(objects, key=lambda thing: thing.order)
        changed = Scene(tuple(objects), tuple(relations))
        if ordered and len(set(objects)) == len(objects) and changed != scene:
            return changed


def draw_pictures(
    pair_count: int, renderings: int, seed: int, split: Split, processes: int = 2
) -> Pictures:
    """Draw scenes of a split in pairs that almost equal each other.

    Args:
        pair_count: Half as many as there will be scenes; row `2 * i + 1` almost equals `2 * i`.
        renderings: Pictures of each scene.
        seed: Decides everything, whatever the number of processes.
        split: Which scenes.
        processes: How many draw at the same time.

    Returns:
        The pictures.
    """
    starts = range(0, pair_count, _CHUNK)
    counts = [min(_CHUNK, pair_count - start) for start in starts]
    draw = partial(_draw_chunk, renderings=renderings, seed=seed, split=split)
    # Spawned: a forked child would inherit the threads of torch without them running.
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        chunks = list(pool.map(draw, starts, counts))
    scenes = [scene for drawn, _, _ in chunks for scene in drawn]
    numbers: dict[Scene, int] = {}
    objects = torch.zeros(len(scenes), _MOST_OBJECTS, 3, dtype=torch.int64)
    relations = torch.zeros(len(scenes), _MOST_OBJECTS - 1, dtype=torch.int64)
    for row, scene in enumerate(scenes):
        for column, thing in enumerate(scene.objects):
            objects[row, column] = torch.tensor(thing.order) + 1
        for column, relation in enumerate(scene.relations):
            relations[row, column] = RELATIONS.index(relation) + 1
    return Pictures(
        scenes,
        torch.from_numpy(np.concatenate([pixels for _, pixels, _ in chunks])),
        torch.from_numpy(np.concatenate([boxes for _, _, boxes in chunks])),
        objects,
        relations,
        torch.tensor([numbers.setdefault(scene, len(numbers)) for scene in scenes]),
    )


def pair_rows(scene_count: int, pairs: int) -> torch.Tensor:
    """Choose pairs of almost equal scenes at random: int64 `[2 * pairs]` rows of `Pictures`."""
    first = torch.randint(scene_count // 2, (pairs,)) * 2
    return torch.stack([first, first + 1], dim=1).flatten()


def _draw_chunk(
    start: int, count: int, renderings: int, seed: int, split: Split
) -> tuple[list[Scene], np.ndarray, np.ndarray]:
    random = np.random.default_rng([seed, start])
    scenes: list[Scene] = []
    while len(scenes) < 2 * count:
        scene = draw_scene(random, split)
        others = (near_miss(scene, random) for _ in range(_TRIES))
        other = next((other for other in others if other.split == split), None)
        # In a small split some scenes of one object have no near miss.
        if other is not None:
            scenes += [scene, other]
    pixels = np.empty((len(scenes), renderings, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    boxes = np.zeros((len(scenes), renderings, _MOST_OBJECTS, 4), dtype=np.float32)
    for row, scene in enumerate(scenes):
        for column in range(renderings):
            picture = render(scene, random, _drawn_size(random))
            squashed = picture.image.resize((IMAGE_SIZE,) * 2, Image.Resampling.BICUBIC)
            pixels[row, column] = np.asarray(squashed).transpose(2, 0, 1)
            scale = np.array([*picture.image.size] * 2) / IMAGE_SIZE
            boxes[row, column, : len(scene.objects)] = np.array(picture.boxes) / scale
    return scenes, pixels, boxes


def _drawn_size(random: np.random.Generator) -> tuple[int, int]:
    width, height = PICTURE_SIZES[int(random.integers(len(PICTURE_SIZES)))]
    scale = _SHORTER_EDGE / min(width, height)
    return round(width * scale), round(height * scale)
