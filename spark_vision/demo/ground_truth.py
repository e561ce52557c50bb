"""Reads the ground truth that `write_scenes` wrote, and derives example queries from it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spark_vision.demo.captions import caption, caption_zh
from spark_vision.demo.questions import LANGUAGES, Question, draw_questions
from spark_vision.demo.scenes import Scene, SceneObject

TRUTH_FILE = "scenes.jsonl"


@dataclass(frozen=True)
class GroundTruth:
    """The content of an image.

    Attributes:
        file: The file name of the image.
        scene: The scene in it.
    """

    file: str
    scene: Scene


def read_ground_truth(images: str) -> list[GroundTruth]:
    """Read the ground truth that `write_scenes` wrote.

    Args:
        images: The folder of the images, or a glob of files in it.

    Returns:
        One entry per image, in the order of the files; empty if there is no ground truth.
    """
    folder = Path(images)
    path = (folder if folder.is_dir() else folder.parent) / TRUTH_FILE
    if not path.is_file():
        return []
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return [GroundTruth(line["file"], _scene(line)) for line in lines]


def example_texts(truths: Sequence[GroundTruth]) -> list[str]:
    """Choose texts to search for: a scene for each number of objects, and one text in Chinese."""
    by_count = {len(truth.scene.objects): truth.scene for truth in reversed(truths)}
    examples = [scene for _, scene in sorted(by_count.items())]
    return [caption(scene) for scene in examples] + [caption_zh(scene) for scene in examples[1:2]]


def example_questions(truth: GroundTruth, seed: int = 0) -> list[Question]:
    """Draw questions about an image, in English and Chinese."""
    random = np.random.default_rng(seed)
    return [
        question
        for language in LANGUAGES
        for question in draw_questions(truth.scene, random, language)
    ]


def _scene(line: dict[str, list[dict[str, str]]]) -> Scene:
    objects = (
        SceneObject(thing["size"], thing["colour"], thing["shape"]) for thing in line["objects"]
    )
    return Scene(tuple(objects), tuple(related["relation"] for related in line["relations"]))
